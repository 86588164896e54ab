//! Older events that this node does not have, fetched when somebody scrolls up to where they are missing.
//!
//! See "Backfilling and retrieving missing events" in the server-server API. Whoever asks waits a few seconds at most,
//! and then sees what is here; the work goes on, and the next page finds more.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use ruma::{OwnedEventId, RoomId, ServerName, api::federation::backfill::get_backfill, uint};

use super::{Federation, search::Search, verify::beside};
use crate::{
    error::{Error, Result},
    protocol::{ids::RoomNid, token::PageToken, version},
    remote::Limits,
    service::{
        Requester,
        rooms::{Filled, Gap, MAX_BACKFILL},
    },
};

/// How long a client waits for older events.
const PATIENCE: Duration = Duration::from_secs(8);

/// How long a server may take to answer with older events, and how long the answer may be.
const PIECE: Limits = Limits {
    time: Duration::from_secs(10),
    body: 16 << 20,
};

/// The most events from which it is asked backwards; they stand in the path.
const MAX_FROM: usize = 20;

/// The most states that are asked for to fill a piece of a gap, one for each end of it that is open.
const MAX_STATES: usize = 10;

/// How often it is tried to go on with what has been fetched.
const ROUNDS: usize = 5;

/// Who fills which room now, so that many who scroll up together have it done once.
pub(super) type Filling = Mutex<HashMap<RoomNid, Weak<tokio::sync::Mutex<()>>>>;

impl Federation {
    /// If a page that goes backwards from a place begins at a gap, fills a piece of it from other servers. What goes
    /// wrong is told to the log: the page shows what is here.
    pub async fn fill_before(&self, asker: &Requester, room: &RoomId, from: PageToken) {
        let found = self.gap_before(asker, room, from);
        let (nid, gap) = match found {
            Ok(Some(found)) => found,
            Ok(None) => return,
            Err(error) => return tracing::debug!(%error, %room, "no gap is looked for"),
        };
        let (federation, id) = (self.clone(), room.to_owned());
        // It is done in any case, even if the client goes away.
        let work = self.0.tasks.spawn(async move {
            let stop = federation.0.stop.clone();
            tokio::select! {
                () = stop.cancelled() => {}
                done = federation.fill_gap(&id, nid, gap.below, from) => if let Err(error) = done {
                    tracing::warn!(%error, room = %id, "older events could not be fetched");
                },
            }
        });
        tokio::select! {
            _done = work => {}
            () = self.0.clock.sleep(PATIENCE) => {}
        }
    }

    fn gap_before(
        &self,
        asker: &Requester,
        room: &RoomId,
        from: PageToken,
    ) -> Result<Option<(RoomNid, Gap)>> {
        let parts = &self.0;
        if !parts.remote.is_on() {
            return Ok(None);
        }
        let view = parts.store.view();
        let Some(nid) = parts.store.find_room(room)? else {
            return Ok(None);
        };
        let Some(gap) = parts.rooms.gap_at(&view, nid, from.0)? else {
            return Ok(None);
        };
        // Only for those who may see the room at all.
        parts.rooms.sight(&view, nid, asker)?.reach()?;
        Ok(Some((nid, gap)))
    }

    async fn fill_gap(
        &self,
        room: &RoomId,
        nid: RoomNid,
        below: i64,
        from: PageToken,
    ) -> Result<()> {
        let turn = {
            let mut filling = self.2.lock();
            filling.retain(|_, turn| turn.strong_count() > 0);
            let known = filling.get(&nid).and_then(Weak::upgrade);
            let turn = known.unwrap_or_default();
            filling.insert(nid, Arc::downgrade(&turn));
            turn
        };
        let _mine = turn.lock().await;
        let (parts, view) = (&self.0, self.0.store.view());
        // Somebody else may have filled it meanwhile.
        let gap = parts.rooms.gap_at(&view, nid, from.0)?;
        let Some(gap) = gap.filter(|gap| gap.below == below) else {
            return Ok(());
        };
        let Some(rules) = parts.rooms.version_of(&view, room)? else {
            return Ok(());
        };
        let rules = version::rules(&rules)
            .ok_or_else(|| Error::Internal("a room has no version".to_owned()))?;
        for server in self.whom_to_ask(nid)? {
            let search = Search::only((nid, room.to_owned()), rules, vec![server.clone()]);
            match self.fill_from(&server, &Arc::new(search), &gap).await {
                Ok(placed) if placed > 0 => {
                    tracing::debug!(%server, %room, placed, "older events have come");
                    return Ok(());
                }
                Ok(_) => tracing::debug!(%server, %room, "it gives no older events"),
                Err(error) => tracing::debug!(%server, %room, %error, "no older events"),
            }
        }
        Ok(())
    }

    /// Fills a piece of a gap with what one server tells; says how many events have got a place.
    async fn fill_from(
        &self,
        server: &ServerName,
        search: &Arc<Search>,
        gap: &Gap,
    ) -> Result<usize> {
        let parts = &self.0;
        let from: Vec<_> = gap.row.missing.iter().take(MAX_FROM).cloned().collect();
        let request =
            || get_backfill::v1::Request::new(search.room.clone(), from.clone(), uint!(100));
        let Ok(answer) = self.ask(search, request, PIECE).await else {
            return Ok(0);
        };
        let pdus = answer.pdus.into_iter().take(MAX_BACKFILL);
        let pdus = self.genuine(search, pdus).await?;
        if pdus.is_empty() {
            return Ok(0);
        }
        let pdus = Arc::new(pdus);
        let mut states: HashMap<OwnedEventId, Vec<OwnedEventId>> = HashMap::new();
        for _ in 0..ROUNDS {
            let (rooms, below) = (parts.rooms.clone(), gap.below);
            let mut guard = parts.rooms.lock(&search.room).await?;
            let (given, known) = (pdus.clone(), states.clone());
            let filled = beside(move || rooms.fill(guard.head(), below, &given, &known));
            match filled.await?? {
                Filled::Done {
                    placed, position, ..
                } => {
                    parts.store.durable(position).await?;
                    return Ok(placed);
                }
                Filled::Needs {
                    auth,
                    states: lacking,
                } => {
                    let (found, _) = self.fetch_upwards(search, auth).await?;
                    self.keep(search, found).await?;
                    for event in lacking.into_iter().take(MAX_STATES) {
                        if states.contains_key(&event) {
                            continue;
                        }
                        match self.fetch_state(search, &event).await? {
                            Ok(state) => states.insert(event, state),
                            Err(_) => return Ok(0),
                        };
                    }
                }
            }
        }
        tracing::debug!(%server, room = %search.room, "it does not tell all that its older events need");
        Ok(0)
    }
}
