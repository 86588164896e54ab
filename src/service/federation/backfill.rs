//! Older events that this node does not have, fetched when somebody scrolls up to where they are missing.
//!
//! See "Backfilling and retrieving missing events" in the server-server API. Whoever asks waits a few seconds at most,
//! and then sees what is here; the work goes on, and the next page finds more.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use ruma::{
    OwnedEventId, OwnedServerName, RoomId, ServerName,
    api::federation::{
        backfill::get_backfill,
        event::{get_event, get_room_state, get_room_state_ids},
    },
    room_version_rules::RoomVersionRules,
    state_res::Event as _,
    uint,
};
use serde_json::value::RawValue;
use tokio::task::JoinSet;

use super::Federation;
use crate::{
    error::{Error, Result},
    protocol::{ids::RoomNid, ingest::Pdu, token::PageToken, version},
    remote::Limits,
    service::{
        Requester,
        rooms::{Filled, Gap, MAX_BACKFILL},
    },
};

/// How long a client waits for older events.
const PATIENCE: Duration = Duration::from_secs(8);

/// How long a server may take for one answer, and how long the answer may be.
const ONE: Limits = Limits {
    time: Duration::from_secs(10),
    body: 16 << 20,
};

/// The same for a whole state.
const STATE: Limits = Limits {
    time: Duration::from_secs(60),
    body: 256 << 20,
};

/// How many servers are asked.
const MAX_SERVERS: usize = 4;

/// The most events from which it is asked backwards; they stand in the path.
const MAX_FROM: usize = 20;

/// The most states that are asked for to fill a piece of a gap, one for each end of it that is open.
const MAX_STATES: usize = 10;

/// How many events are fetched one by one; when more are missing of a state, it is fetched whole.
const MAX_SINGLE: usize = 50;

/// How many of these at once.
const AT_ONCE: usize = 8;

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
        for server in self.whom_to_ask(&parts.rooms.servers_in(&view, nid)?) {
            match self.fill_from(&server, room, rules, &gap).await {
                Ok(placed) if placed > 0 => {
                    tracing::debug!(%server, %room, placed, "older events have come");
                    return Ok(());
                }
                Ok(_) => tracing::debug!(%server, %room, "it has no older events"),
                Err(error) => tracing::debug!(%server, %room, %error, "no older events"),
            }
        }
        Ok(())
    }

    /// Some servers of a room: peers first, and those last that cannot be reached.
    pub(super) fn whom_to_ask(&self, servers: &[OwnedServerName]) -> Vec<OwnedServerName> {
        let parts = &self.0;
        let mut all: Vec<_> = servers
            .iter()
            .filter(|server| **server != *parts.keyring.name() && parts.remote.admits(server))
            .map(|server| {
                let is_stranger = !parts.remote.is_peer(server);
                (
                    self.is_down(server),
                    is_stranger,
                    parts.entropy.number(),
                    server,
                )
            })
            .collect();
        all.sort();
        let some = all.into_iter().take(MAX_SERVERS);
        some.map(|(.., server)| server.clone()).collect()
    }

    /// Fills a piece of a gap with what one server tells; says how many events have got a place.
    async fn fill_from(
        &self,
        server: &ServerName,
        room: &RoomId,
        rules: &'static RoomVersionRules,
        gap: &Gap,
    ) -> Result<usize> {
        let parts = &self.0;
        let from = gap.row.missing.iter().take(MAX_FROM).cloned().collect();
        let request = get_backfill::v1::Request::new(room.to_owned(), from, uint!(100));
        let answer = parts.remote.send_within(server, request, ONE).await?;
        let pdus = self
            .genuine_of(room, rules, answer.pdus, MAX_BACKFILL)
            .await?;
        if pdus.is_empty() {
            return Ok(0);
        }
        let pdus = Arc::new(pdus);
        let mut states: HashMap<OwnedEventId, Vec<OwnedEventId>> = HashMap::new();
        for _ in 0..ROUNDS {
            let (rooms, below) = (parts.rooms.clone(), gap.below);
            let mut guard = parts.rooms.lock(room).await?;
            let (given, known) = (pdus.clone(), states.clone());
            let filled = parts
                .tasks
                .spawn_blocking(move || rooms.fill(guard.head(), below, &given, &known));
            match filled.await.map_err(broken)?? {
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
                    let mut wanted: Vec<OwnedEventId> = auth;
                    let mut more = Vec::new();
                    for event in lacking.into_iter().take(MAX_STATES) {
                        if states.contains_key(&event) {
                            continue;
                        }
                        let request =
                            get_room_state_ids::v1::Request::new(event.clone(), room.to_owned());
                        let told = parts.remote.send_within(server, request, STATE).await?;
                        let missing =
                            self.missing(told.pdu_ids.iter().chain(&told.auth_chain_ids))?;
                        if missing.len() > MAX_SINGLE {
                            let request =
                                get_room_state::v1::Request::new(event.clone(), room.to_owned());
                            let whole = parts.remote.send_within(server, request, STATE).await?;
                            let texts = whole.pdus.into_iter().chain(whole.auth_chain);
                            more.extend(
                                self.genuine_of(room, rules, texts.collect(), usize::MAX)
                                    .await?,
                            );
                        } else {
                            wanted.extend(missing);
                        }
                        states.insert(event, told.pdu_ids);
                    }
                    more.extend(self.fetch(server, room, rules, wanted).await?);
                    let rooms = parts.rooms.clone();
                    let mut guard = parts.rooms.lock(room).await?;
                    let stored = parts
                        .tasks
                        .spawn_blocking(move || rooms.store_unplaced_events(guard.head(), more));
                    stored.await.map_err(broken)??;
                }
            }
        }
        Err(Error::Internal(format!(
            "{server} does not tell all that its events need"
        )))
    }

    /// Those of the events that are not here.
    fn missing<'i>(
        &self,
        ids: impl Iterator<Item = &'i OwnedEventId>,
    ) -> Result<Vec<OwnedEventId>> {
        let view = self.0.store.latest();
        let mut missing = Vec::new();
        for id in ids {
            if self.0.rooms.find_event(&view, id)?.is_none() {
                missing.push(id.clone());
            }
        }
        Ok(missing)
    }

    /// Fetches events one by one, and those that authorise them.
    async fn fetch(
        &self,
        server: &ServerName,
        room: &RoomId,
        rules: &'static RoomVersionRules,
        ids: Vec<OwnedEventId>,
    ) -> Result<Vec<Pdu>> {
        let mut asked: HashSet<OwnedEventId> = HashSet::new();
        let mut todo: VecDeque<OwnedEventId> = ids.into();
        let mut found = Vec::new();
        while !todo.is_empty() && asked.len() < MAX_SINGLE * ROUNDS {
            let some: Vec<_> = todo
                .drain(..todo.len().min(MAX_SINGLE))
                .filter(|id| asked.insert(id.clone()))
                .collect();
            let mut texts = Vec::new();
            for few in some.chunks(AT_ONCE) {
                let mut asking = JoinSet::new();
                for id in few {
                    let (remote, server) = (self.0.remote.clone(), server.to_owned());
                    let request = get_event::v1::Request::new(id.clone());
                    asking.spawn(async move { remote.send_within(&server, request, ONE).await });
                }
                let answers = asking.join_all().await;
                texts.extend(answers.into_iter().flatten().map(|answer| answer.pdu));
            }
            let pdus = self.genuine_of(room, rules, texts, MAX_SINGLE).await?;
            let auth = pdus.iter().flat_map(|pdu| pdu.event.auth_events());
            todo.extend(self.missing(auth)?);
            found.extend(pdus);
        }
        Ok(found)
    }

    /// Those of the events that are of this room and what they say they are.
    async fn genuine_of(
        &self,
        room: &RoomId,
        rules: &'static RoomVersionRules,
        texts: Vec<Box<RawValue>>,
        most: usize,
    ) -> Result<Vec<Pdu>> {
        let texts = texts.into_iter().take(most);
        let texts = texts.map(|text| text.get().to_owned()).collect();
        let checked = self.verify(rules, texts).await?;
        let genuine = checked.into_iter().flatten();
        Ok(genuine
            .filter(|pdu| pdu.event.header.room_id == *room)
            .collect())
    }
}

fn broken(error: tokio::task::JoinError) -> Error {
    Error::Internal(format!("filling a gap broke off: {error}"))
}
