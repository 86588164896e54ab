//! Works off what has come in and has no place yet: one task for each room and sender, so that no room waits for another,
//! and nobody for a server that is silent.
//!
//! The room's lock is held only to write. What is missing is fetched without it. An event that was pushed must bring all
//! that lies between it and what is here; whoever has sent it has that. The history of a long time is too much: below those
//! that were fetched so, one more is put with the state before it as another server tells it, and the gap is marked.

use std::{
    collections::HashMap,
    ops::Bound,
    sync::Arc,
    time::{Duration, Instant},
};

use ruma::{EventId, OwnedEventId, state_res::Event as _};
use tokio::sync::Notify;

use super::{
    Federation,
    search::{Failed, Search},
    verify::beside,
};
use crate::{
    error::{Error, Result},
    protocol::{
        ids::{Position, RoomNid, ServerNid},
        ingest::{Dropped, Need, Pdu},
        version,
    },
    service::rooms::{Before, Outcome},
    store::{
        self,
        schema::{INBOX, InboxRow},
    },
};

/// How many events are read at once.
const CHUNK: usize = 20;

/// How long one event may take, however many servers are asked.
const PATIENCE: Duration = Duration::from_secs(180);

/// How long it is until an event is tried again, by how often it was tried; the last is kept to.
const AGAIN: [Duration; 7] = [
    Duration::from_secs(2),
    Duration::from_secs(10),
    Duration::from_secs(30),
    Duration::from_secs(60),
    Duration::from_secs(300),
    Duration::from_secs(1800),
    Duration::from_secs(7200),
];

/// How soon it is tried again when something else of the room has come in, or its server was heard of: this, and twice as
/// long each time that it was in vain.
const SOON: Duration = Duration::from_secs(1);

/// How often that doubles.
const MOST_DOUBLED: u32 = 6;

/// After so many in a row for which somebody was silent the others of the same sender wait, too.
const MOST_IN_VAIN: usize = 3;

/// How soon when too much of its server is worked off already.
const NOT_YET: Duration = Duration::from_millis(250);

/// How long what it needs may be out of reach until it is given up; what follows it leads to it again.
const LONGEST: Duration = Duration::from_hours(24 * 30);

/// What became of an event that waits.
enum Fate {
    /// It is written, and its row is gone with the same commit.
    Written,
    /// It is not to be written, or was already.
    Over,
    /// It may be tried again.
    Later,
    /// It was not tried.
    NotYet,
}

/// An event that must wait longer.
struct Parked {
    since: Instant,
    /// How often it was tried at its time, and how often before.
    tries: usize,
    hastened: u32,
    is_hastened: bool,
    last: Instant,
    until: Instant,
}

impl Parked {
    fn new(now: Instant) -> Self {
        Self {
            since: now,
            tries: 0,
            hastened: 0,
            is_hastened: false,
            last: now,
            until: now,
        }
    }

    /// It was tried in vain. False if that is enough.
    fn again(&mut self, now: Instant) -> bool {
        if std::mem::take(&mut self.is_hastened) {
            self.hastened = (self.hastened + 1).min(MOST_DOUBLED);
        } else {
            self.tries = (self.tries + 1).min(AGAIN.len());
        }
        let wait = AGAIN.get(self.tries.saturating_sub(1));
        self.last = now;
        self.until = now + wait.copied().unwrap_or_default();
        now < self.since + LONGEST
    }

    /// There is a reason to try it before its time.
    fn hasten(&mut self) {
        let soon = self.last + SOON * (1 << self.hastened);
        if soon < self.until {
            self.until = soon;
            self.is_hastened = true;
        }
    }
}

impl From<Failed> for Fate {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Silent => Self::Later,
            Failed::Nowhere => Self::Over,
        }
    }
}

impl Federation {
    /// Sees to it that a task works off what a server has sent for a room.
    pub(super) fn work_off(&self, room: RoomNid, origin: ServerNid) {
        let Some(wake) = self.0.inbox.begin(room, origin) else {
            return;
        };
        let federation = self.clone();
        self.0.tasks.spawn(async move {
            let stop = federation.0.stop.clone();
            tokio::select! {
                () = stop.cancelled() => {}
                () = federation.work(room, origin, &wake) => {}
            }
        });
    }

    async fn work(&self, room: RoomNid, origin: ServerNid, wake: &Notify) {
        let mut parked: HashMap<Position, Parked> = HashMap::new();
        loop {
            let news = self.0.inbox.news(room, origin);
            for parked in parked.values_mut() {
                if news.written || news.heard {
                    parked.hasten();
                }
            }
            let now = self.0.clock.instant();
            let mut wait = PATIENCE;
            if news.more || parked.values().any(|parked| parked.until <= now) {
                match self.round((room, origin), &mut parked).await {
                    Ok(()) => {}
                    Err(Error::Store(store::Error::Closed)) => return,
                    Err(error) => {
                        tracing::error!(%error, "what other servers have sent could not be worked off");
                        // So that it is looked at again.
                        let _the_task_is_here = self.0.inbox.begin(room, origin);
                        self.0.clock.sleep(SOON).await;
                        continue;
                    }
                }
            }
            if parked.is_empty() && self.0.inbox.end(room, origin) {
                return;
            }
            let now = self.0.clock.instant();
            if let Some(first) = parked.values().map(|parked| parked.until).min() {
                wait = wait.min(first.saturating_duration_since(now));
            }
            tokio::select! {
                () = wake.notified() => {}
                () = self.0.clock.sleep(wait) => {}
            }
        }
    }

    /// Tries all that waits and is due, in the order in which it came.
    async fn round(
        &self,
        (room, origin): (RoomNid, ServerNid),
        parked: &mut HashMap<Position, Parked>,
    ) -> Result<()> {
        let mut from = Bound::Unbounded;
        let mut in_vain = 0;
        loop {
            let rows = {
                let view = self.0.store.latest();
                let rows = INBOX.range(&view, &(room,), (from, Bound::Unbounded));
                rows.take(CHUNK).collect::<store::Result<Vec<_>>>()?
            };
            let Some(((_, last), _)) = rows.last() else {
                break;
            };
            from = Bound::Excluded((room, *last));
            for ((_, at), row) in rows {
                let now = self.0.clock.instant();
                let is_due = parked.get(&at).is_none_or(|parked| parked.until <= now);
                if row.origin != origin || !is_due {
                    continue;
                }
                if in_vain >= MOST_IN_VAIN {
                    // Whoever is silent is not asked for each of them.
                    let known = parked.entry(at).or_insert_with(|| Parked::new(now));
                    known.until = now + AGAIN[0];
                    continue;
                }
                let fate = tokio::select! {
                    fate = Box::pin(self.attempt(room, at, &row)) => fate?,
                    () = self.0.clock.sleep(PATIENCE) => Fate::Later,
                };
                let now = self.0.clock.instant();
                let known = || Parked::new(now);
                match fate {
                    Fate::NotYet => {
                        parked.entry(at).or_insert_with(known).until = now + NOT_YET;
                        continue;
                    }
                    Fate::Later => {
                        in_vain += 1;
                        let origin = self.0.store.server_name(origin)?;
                        if self.0.inbox.may_complain(&origin, now) {
                            tracing::info!(id = %row.id, %origin, "what an event of another server needs can not be had now; it waits");
                        }
                        if parked.entry(at).or_insert_with(known).again(now) {
                            continue;
                        }
                        tracing::warn!(id = %row.id, %origin, "what an event of another server needs could not be had; it is given up");
                        self.forget(room, at)?;
                    }
                    Fate::Written => {
                        in_vain = 0;
                        // The link is back, or what was missing has come by another way.
                        self.0.inbox.written(room);
                    }
                    Fate::Over => self.forget(room, at)?,
                }
                parked.remove(&at);
                self.0.inbox.discount(room, origin);
            }
        }
        Ok(())
    }

    fn forget(&self, room: RoomNid, at: Position) -> Result<()> {
        // Nobody is told of it, so nobody waits for the disk.
        let _not_awaited = self.0.store.commit(|batch| {
            INBOX.delete(batch, &(room, at));
            Ok(())
        })?;
        Ok(())
    }

    async fn attempt(&self, room: RoomNid, at: Position, row: &InboxRow) -> Result<Fate> {
        let Some(_seat) = self.0.inbox.seat(row.origin) else {
            return Ok(Fate::NotYet);
        };
        let id = (*self.0.store.room_id(room)?).clone();
        let origin = self.0.store.server_name(row.origin)?;
        let rules = {
            let (view, rooms) = (self.0.store.latest(), &self.0.rooms);
            // It may have been left, or have changed whom it lets in, while this waited.
            if !rooms.has_server(&view, room, rooms.server_name())?
                || !rooms.acl_allows(&view, room, &origin)?
            {
                return Ok(Fate::Over);
            }
            rooms.version_of(&view, &id)?
        };
        let Some(rules) = rules.and_then(|version| version::rules(&version)) else {
            return Ok(Fate::Over);
        };
        let checked = Box::pin(self.verify(rules, vec![row.json.clone()]));
        let pdu = match checked.await?.pop() {
            Some(Ok(pdu)) => Arc::new(pdu),
            // The keys may be had later.
            Some(Err(Dropped::Signature(_))) => return Ok(Fate::Later),
            Some(Err(_)) | None => return Ok(Fate::Over),
        };
        let sender = pdu.event.header.sender.server_name();
        let search = self.search((room, id), rules, &origin, sender);
        Box::pin(self.take_pushed(&search, &pdu, at)).await
    }

    /// Writes an event that was pushed, and what lies before it. That comes first: what authorises it is most often
    /// there.
    async fn take_pushed(
        &self,
        search: &Arc<Search>,
        pdu: &Arc<Pdu>,
        at: Position,
    ) -> Result<Fate> {
        let id = &pdu.event.header.id;
        if let Some(fate) = self.try_to_write(search, pdu, None, Some(at)).await? {
            return Ok(fate);
        }
        if !self.placeless(pdu.event.prev_events())?.is_empty() {
            let before = match self.fetch_before(search, pdu).await? {
                Ok(before) => before,
                Err(failed) => return Ok(failed.into()),
            };
            for earlier in before {
                self.take_fetched(search, Arc::new(earlier)).await?;
            }
        }
        Ok(
            match self.write_with_auth(search, pdu, None, Some(at)).await? {
                Some(fate) => fate,
                None => {
                    tracing::debug!(%id, room = %search.room, "an event can not be placed");
                    search.failed().into()
                }
            },
        )
    }

    /// Writes an event that was asked for. What it follows is put over a gap if it is not here.
    async fn take_fetched(&self, search: &Arc<Search>, pdu: Arc<Pdu>) -> Result<Fate> {
        if let Some(fate) = self.try_to_write(search, &pdu, None, None).await? {
            return Ok(fate);
        }
        for id in self.placeless(pdu.event.prev_events())? {
            if let Fate::Later = self.take_over_gap(search, &id).await? {
                return Ok(Fate::Later);
            }
        }
        let fate = self.write_with_auth(search, &pdu, None, None).await?;
        Ok(fate.unwrap_or(Fate::Over))
    }

    /// Gets an event and the state before it, and writes it with a gap below.
    async fn take_over_gap(&self, search: &Arc<Search>, id: &EventId) -> Result<Fate> {
        let state = match self.fetch_state(search, id).await? {
            Ok(state) => Arc::new(state),
            Err(failed) => return Ok(failed.into()),
        };
        let pdu = match self.fetch_event(search, id).await? {
            Ok(pdu) => Arc::new(pdu),
            Err(failed) => return Ok(failed.into()),
        };
        let fate = self
            .write_with_auth(search, &pdu, Some(&state), None)
            .await?;
        Ok(fate.unwrap_or(Fate::Over))
    }

    /// Writes an event, and gets what authorises it if that is all that is missing; none if it is not.
    async fn write_with_auth(
        &self,
        search: &Arc<Search>,
        pdu: &Arc<Pdu>,
        state: Option<&Arc<Vec<OwnedEventId>>>,
        staged: Option<Position>,
    ) -> Result<Option<Fate>> {
        match self.write(search, pdu, state, staged).await? {
            Outcome::Needs(Need::AuthEvents(ids)) => {
                let fetched = self.fetch_auth(search, &pdu.event.header.id, ids);
                if let Err(failed) = fetched.await? {
                    return Ok(Some(failed.into()));
                }
                self.try_to_write(search, pdu, state, staged).await
            }
            outcome => Ok(fate_of(&outcome)),
        }
    }

    /// Writes an event; none if something is missing.
    async fn try_to_write(
        &self,
        search: &Search,
        pdu: &Arc<Pdu>,
        state: Option<&Arc<Vec<OwnedEventId>>>,
        staged: Option<Position>,
    ) -> Result<Option<Fate>> {
        let outcome = self.write(search, pdu, state, staged).await?;
        Ok(fate_of(&outcome))
    }

    /// Writes an event if nothing is missing, but for a signature of the room's policy server, which is asked for. See
    /// "Validating Policy Server signatures" in the server-server API.
    async fn write(
        &self,
        search: &Search,
        pdu: &Arc<Pdu>,
        state: Option<&Arc<Vec<OwnedEventId>>>,
        staged: Option<Position>,
    ) -> Result<Outcome> {
        let mut pdu = pdu.clone();
        loop {
            match self.write_once(search, &pdu, state, staged).await? {
                // One that was asked in vain is not asked again, even if the room takes another one meanwhile.
                Outcome::Needs(Need::Recommendation(server)) => {
                    let judged = Box::pin(self.judged(&server, &pdu, search.rules)).await?;
                    pdu = Arc::new(judged);
                }
                outcome => return Ok(outcome),
            }
        }
    }

    /// Writes an event if nothing is missing; with it goes the row in which it waited.
    async fn write_once(
        &self,
        search: &Search,
        pdu: &Arc<Pdu>,
        state: Option<&Arc<Vec<OwnedEventId>>>,
        staged: Option<Position>,
    ) -> Result<Outcome> {
        let (rooms, pdu, room) = (self.0.rooms.clone(), pdu.clone(), search.nid);
        let state = state.cloned();
        let mut guard = rooms.lock(&search.room).await?;
        let write = move || {
            let before = match &state {
                Some(ids) => Before::Given(ids),
                None => Before::Previous,
            };
            rooms.receive(guard.head(), &pdu, before, |batch| {
                if let Some(at) = staged {
                    INBOX.delete(batch, &(room, at));
                }
            })
        };
        beside(write).await?
    }
}

fn fate_of(outcome: &Outcome) -> Option<Fate> {
    match outcome {
        Outcome::Written { .. } => Some(Fate::Written),
        Outcome::Known => Some(Fate::Over),
        Outcome::Needs(_) => None,
    }
}
