//! What other servers have sent and what has no place in its room yet: kept on the disk before the sender is answered,
//! so that neither a stop nor a dead link loses it, and worked off by one task for each room and sender.
//!
//! All bounds are counted in memory, for each server alone, so that none can fill another one's place. A server that has
//! too much waiting is told to come back, which loses nothing; where too much of it waits for one room the rest is
//! refused, and fetched later by what follows it.

use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use quick_cache::sync::Cache;
use ruma::{OwnedEventId, OwnedServerName, ServerName};
use tokio::sync::{Notify, Semaphore};

use super::Federation;
use crate::{
    error::Result,
    protocol::ids::{Position, RoomNid, ServerNid},
    store::{
        Store,
        schema::{INBOX, InboxRow},
    },
};

/// The most events of one server that wait for one room.
const MOST_OF_ROOM: usize = 1_000;

/// The most events of one server that wait.
pub(super) const MOST_OF_SERVER: usize = 5_000;

/// How many events of one server are worked off at the same time, as each may cause many requests.
const MOST_AT_WORK: usize = 8;

/// A server that is heard all the time is taken note of no more often than this.
const HEARD: Duration = Duration::from_millis(500);

/// Of how many transactions the answers are kept. A server sends one at a time, and asks again only for the last.
const ANSWERS: usize = 2_000;

/// How many whole states are fetched at the same time; each may be large.
const STATES: usize = 3;

/// Of how many servers it is remembered that the log was told of them, and how often it is.
const TOLD: usize = 1_000;
const TELL: Duration = Duration::from_hours(1);

/// The answer to a transaction, once there is one; whoever comes second waits for it.
pub(super) type Answer = Arc<tokio::sync::Mutex<Option<String>>>;

/// What has come in and has no place yet.
pub struct Inbox {
    waiting: Mutex<Waiting>,
    /// By origin and transaction.
    pub(super) answers: Cache<String, Answer>,
    /// How many whole states are fetched at the same time.
    pub(super) states: Semaphore,
    /// Of each server one: it may never answer.
    turns: Cache<OwnedServerName, Arc<tokio::sync::Mutex<()>>>,
    /// When the log was told of a server last.
    told: Cache<OwnedServerName, Instant>,
}

#[derive(Default)]
struct Waiting {
    rooms: HashMap<RoomNid, HashMap<ServerNid, Queue>>,
    servers: HashMap<ServerNid, Sent>,
    /// How many events of each server are worked off now.
    at_work: HashMap<ServerNid, usize>,
}

/// What of one server waits for one room.
#[derive(Default)]
struct Queue {
    count: usize,
    /// Whether a task works it off.
    busy: bool,
    /// Told when the task should look again.
    wake: Arc<Notify>,
    news: News,
}

impl Queue {
    fn tell(&mut self, news: impl FnOnce(&mut News)) {
        news(&mut self.news);
        self.wake.notify_one();
    }
}

/// What of one server waits.
#[derive(Default)]
struct Sent {
    count: usize,
    rooms: HashSet<RoomNid>,
    /// When it was heard last.
    heard: Option<Instant>,
}

/// Why a task should look again.
#[derive(Default)]
pub(super) struct News {
    /// More has come in.
    pub(super) more: bool,
    /// Something was written that others may have waited for.
    pub(super) written: bool,
    /// The server has proven that it is there.
    pub(super) heard: bool,
}

/// The right to work off an event of a server.
pub(super) struct Seat<'i>(&'i Inbox, ServerNid);

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        let mut waiting = self.0.waiting.lock();
        if let Some(count) = waiting.at_work.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                waiting.at_work.remove(&self.1);
            }
        }
    }
}

impl Waiting {
    fn count(&mut self, room: RoomNid, origin: ServerNid, number: usize) {
        self.queue(room, origin).count += number;
        let sent = self.servers.entry(origin).or_default();
        sent.count += number;
        sent.rooms.insert(room);
    }

    fn queue(&mut self, room: RoomNid, origin: ServerNid) -> &mut Queue {
        self.rooms
            .entry(room)
            .or_default()
            .entry(origin)
            .or_default()
    }

    fn known(&mut self, room: RoomNid, origin: ServerNid) -> Option<&mut Queue> {
        self.rooms.get_mut(&room)?.get_mut(&origin)
    }
}

impl Inbox {
    /// Counts what waits from before.
    ///
    /// # Errors
    /// When the store fails.
    pub fn open(store: &Store) -> Result<Self> {
        let mut waiting = Waiting::default();
        for row in INBOX.scan(&store.view(), &()) {
            let ((room, _), row) = row?;
            waiting.count(room, row.origin, 1);
        }
        Ok(Self {
            waiting: Mutex::new(waiting),
            answers: Cache::new(ANSWERS),
            states: Semaphore::new(STATES),
            turns: Cache::new(TOLD),
            told: Cache::new(TOLD),
        })
    }

    /// How many events of a server wait.
    pub(super) fn of_server(&self, server: ServerNid) -> usize {
        let waiting = self.waiting.lock();
        waiting.servers.get(&server).map_or(0, |sent| sent.count)
    }

    /// How many more events of a server may wait for a room.
    fn free(&self, room: RoomNid, origin: ServerNid) -> usize {
        let mut waiting = self.waiting.lock();
        let count = waiting.known(room, origin).map_or(0, |queue| queue.count);
        MOST_OF_ROOM.saturating_sub(count)
    }

    /// The rooms for which something waits, and of whom.
    fn all(&self) -> Vec<(RoomNid, ServerNid)> {
        let waiting = self.waiting.lock();
        let rooms = waiting.rooms.iter();
        let all = rooms.flat_map(|(room, queues)| queues.keys().map(|origin| (*room, *origin)));
        all.collect()
    }

    /// One waits no more.
    pub(super) fn discount(&self, room: RoomNid, origin: ServerNid) {
        let mut waiting = self.waiting.lock();
        let mut is_last = false;
        if let Some(queue) = waiting.known(room, origin) {
            queue.count = queue.count.saturating_sub(1);
            is_last = queue.count == 0;
        }
        if let Some(sent) = waiting.servers.get_mut(&origin) {
            sent.count = sent.count.saturating_sub(1);
            if is_last {
                sent.rooms.remove(&room);
            }
            if sent.count == 0 {
                waiting.servers.remove(&origin);
            }
        }
    }

    /// Begins to work off what a server has sent for a room, or tells the task that does that there is more. The caller
    /// must start one if this gives what to listen to.
    pub(super) fn begin(&self, room: RoomNid, origin: ServerNid) -> Option<Arc<Notify>> {
        let mut waiting = self.waiting.lock();
        let queue = waiting.queue(room, origin);
        queue.tell(|news| news.more = true);
        (!std::mem::replace(&mut queue.busy, true)).then(|| queue.wake.clone())
    }

    /// Ends that; false if something has come meanwhile.
    pub(super) fn end(&self, room: RoomNid, origin: ServerNid) -> bool {
        let mut waiting = self.waiting.lock();
        if waiting
            .known(room, origin)
            .is_some_and(|queue| queue.count > 0)
        {
            return false;
        }
        if let Some(queues) = waiting.rooms.get_mut(&room) {
            queues.remove(&origin);
            if queues.is_empty() {
                waiting.rooms.remove(&room);
            }
        }
        true
    }

    /// What the task has not been told yet.
    pub(super) fn news(&self, room: RoomNid, origin: ServerNid) -> News {
        let mut waiting = self.waiting.lock();
        let queue = waiting.known(room, origin);
        queue
            .map(|queue| std::mem::take(&mut queue.news))
            .unwrap_or_default()
    }

    /// An event of a room was written: those that wait may have waited for it.
    pub(super) fn written(&self, room: RoomNid) {
        let mut waiting = self.waiting.lock();
        for queue in waiting
            .rooms
            .get_mut(&room)
            .into_iter()
            .flat_map(HashMap::values_mut)
        {
            queue.tell(|news| news.written = true);
        }
    }

    /// A server has proven that it is there: what waits for an answer of it is tried again.
    pub(super) fn heard(&self, server: ServerNid, now: Instant) {
        let waiting = &mut *self.waiting.lock();
        let Some(sent) = waiting.servers.get_mut(&server) else {
            return;
        };
        if sent.heard.is_some_and(|heard| now < heard + HEARD) {
            return;
        }
        sent.heard = Some(now);
        for room in &sent.rooms {
            let queues = waiting.rooms.get_mut(room);
            if let Some(queue) = queues.and_then(|queues| queues.get_mut(&server)) {
                queue.tell(|news| news.heard = true);
            }
        }
    }

    /// Whether the log may be told that a server does what it should not; it is not to be filled by that.
    pub(super) fn may_complain(&self, server: &ServerName, now: Instant) -> bool {
        let is_new = self.told.get(server).is_none_or(|told| now >= told + TELL);
        if is_new {
            self.told.insert(server.to_owned(), now);
        }
        is_new
    }

    /// Held while a whole state is fetched because of a server.
    pub(super) fn turn(&self, server: &ServerName) -> Arc<tokio::sync::Mutex<()>> {
        let new = || Ok::<_, Infallible>(Arc::default());
        match self.turns.get_or_insert_with(server, new) {
            Ok(turn) => turn,
            Err(never) => match never {},
        }
    }

    /// A place for one more event of a server to be worked off, if there is one.
    pub(super) fn seat(&self, server: ServerNid) -> Option<Seat<'_>> {
        let mut waiting = self.waiting.lock();
        let count = waiting.at_work.entry(server).or_default();
        if *count >= MOST_AT_WORK {
            return None;
        }
        *count += 1;
        Some(Seat(self, server))
    }
}

impl Federation {
    /// Keeps events of a room until they have their place; says which did not fit, and from when on the others are safe.
    pub(super) fn stage(
        &self,
        room: RoomNid,
        origin: ServerNid,
        mut events: Vec<(OwnedEventId, String)>,
    ) -> Result<(Option<Position>, Vec<OwnedEventId>)> {
        let free = self.0.inbox.free(room, origin);
        let refused = events.split_off(events.len().min(free));
        let refused = refused.into_iter().map(|(id, _)| id).collect();
        if events.is_empty() {
            return Ok((None, refused));
        }
        let number = events.len();
        // Before they can be seen, as whoever works them off counts down.
        self.0.inbox.waiting.lock().count(room, origin, number);
        let committed = self.0.store.commit(|batch| {
            for (id, json) in events {
                let key = (room, batch.position());
                INBOX.put(batch, &key, &InboxRow { origin, id, json });
            }
            Ok(())
        });
        if committed.is_err() {
            (0..number).for_each(|_| self.0.inbox.discount(room, origin));
        }
        let position = committed?.position;
        self.work_off(room, origin);
        Ok((Some(position), refused))
    }

    /// Goes on with what has come in before the node was stopped.
    pub fn resume(&self) {
        for (room, origin) in self.0.inbox.all() {
            self.work_off(room, origin);
        }
    }
}
