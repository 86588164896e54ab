//! What other servers have sent and what has no place in its room yet: kept on the disk before the sender is answered,
//! so that neither a stop nor a dead link loses it, and worked off by one task per room.
//!
//! Both bounds are counted in memory. A server that has too much waiting is told to come back, which loses nothing; in a
//! room that has too much waiting the rest is refused, and fetched later by what follows it.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use quick_cache::sync::Cache;
use ruma::OwnedEventId;
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

/// The most events that wait for one room.
pub(super) const MOST_OF_ROOM: usize = 1_000;

/// The most events of one server that wait.
pub(super) const MOST_OF_SERVER: usize = 5_000;

/// Of how many transactions the answers are kept. A server sends one at a time, and asks again only for the last.
const ANSWERS: usize = 2_000;

/// How many whole states are fetched at the same time; each may be large.
const STATES: usize = 8;

/// The answer to a transaction, once there is one; whoever comes second waits for it.
pub(super) type Answer = Arc<tokio::sync::Mutex<Option<String>>>;

/// What has come in and has no place yet.
pub struct Inbox {
    waiting: Mutex<Waiting>,
    /// By origin and transaction.
    pub(super) answers: Cache<String, Answer>,
    /// How many whole states are fetched at the same time.
    pub(super) states: Semaphore,
}

#[derive(Default)]
struct Waiting {
    rooms: HashMap<RoomNid, Queue>,
    servers: HashMap<ServerNid, usize>,
}

#[derive(Default)]
struct Queue {
    count: usize,
    /// Whether a task works it off.
    busy: bool,
    /// Told when more has come.
    news: Arc<Notify>,
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
            waiting.rooms.entry(room).or_default().count += 1;
            *waiting.servers.entry(row.origin).or_default() += 1;
        }
        Ok(Self {
            waiting: Mutex::new(waiting),
            answers: Cache::new(ANSWERS),
            states: Semaphore::new(STATES),
        })
    }

    /// How many events of a server wait.
    pub(super) fn of_server(&self, server: ServerNid) -> usize {
        let waiting = self.waiting.lock();
        waiting.servers.get(&server).copied().unwrap_or_default()
    }

    /// How many events wait for a room.
    pub(super) fn of_room(&self, room: RoomNid) -> usize {
        let waiting = self.waiting.lock();
        waiting.rooms.get(&room).map_or(0, |queue| queue.count)
    }

    /// The rooms for which something waits.
    pub(super) fn rooms(&self) -> Vec<RoomNid> {
        self.waiting.lock().rooms.keys().copied().collect()
    }

    /// So many more wait.
    fn count(&self, room: RoomNid, origin: ServerNid, number: usize) {
        let mut waiting = self.waiting.lock();
        waiting.rooms.entry(room).or_default().count += number;
        *waiting.servers.entry(origin).or_default() += number;
    }

    /// One waits no more.
    pub(super) fn discount(&self, room: RoomNid, origin: ServerNid) {
        let mut waiting = self.waiting.lock();
        if let Some(queue) = waiting.rooms.get_mut(&room) {
            queue.count = queue.count.saturating_sub(1);
        }
        if let Some(count) = waiting.servers.get_mut(&origin) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                waiting.servers.remove(&origin);
            }
        }
    }

    /// Begins to work a room off, or tells the task that does that there is more. The caller must start one if this
    /// gives what to listen to.
    pub(super) fn begin(&self, room: RoomNid) -> Option<Arc<Notify>> {
        let mut waiting = self.waiting.lock();
        let queue = waiting.rooms.entry(room).or_default();
        queue.news.notify_one();
        (!std::mem::replace(&mut queue.busy, true)).then(|| queue.news.clone())
    }

    /// Ends working a room off; false if something has come meanwhile.
    pub(super) fn end(&self, room: RoomNid) -> bool {
        let mut waiting = self.waiting.lock();
        if waiting
            .rooms
            .get(&room)
            .is_some_and(|queue| queue.count > 0)
        {
            return false;
        }
        waiting.rooms.remove(&room);
        true
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
        let free = MOST_OF_ROOM.saturating_sub(self.0.inbox.of_room(room));
        let refused = events.split_off(events.len().min(free));
        let refused = refused.into_iter().map(|(id, _)| id).collect();
        if events.is_empty() {
            return Ok((None, refused));
        }
        let number = events.len();
        // Before they can be seen, as whoever works them off counts down.
        self.0.inbox.count(room, origin, number);
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
        self.work_off(room);
        Ok((Some(position), refused))
    }

    /// Goes on with what has come in before the node was stopped.
    pub fn resume(&self) {
        for room in self.0.inbox.rooms() {
            self.work_off(room);
        }
    }
}
