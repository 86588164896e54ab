//! What changed for whom, in memory, and the wake-up of those who wait.
//!
//! Only *live* users, those who have synced lately, are followed. Changes are recorded before the moment that holds
//! them becomes visible, and waiters are woken after it; so whoever opens a [`View`](super::View) finds every change up
//! to its position here, and a wake-up is never lost.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use super::batch::{Touch, Users};
use crate::protocol::ids::{Position, RoomNid, UserNid};

/// How many changes are remembered for a live user. Who is further behind looks at all rooms.
const REMEMBERED: usize = 128;

/// Among how many of the last changes it is looked whether the same has come before.
const LATELY: usize = 8;

/// What kinds of things changed, as a set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kinds(u8);

impl Kinds {
    /// Events in a room.
    pub const TIMELINE: Self = Self(1);
    /// Read receipts in a room.
    pub const RECEIPTS: Self = Self(2);
    /// Who is typing in a room.
    pub const TYPING: Self = Self(4);
    /// Account data, global or of a room.
    pub const ACCOUNT_DATA: Self = Self(8);
    /// The user's own membership in a room.
    pub const MEMBERSHIP: Self = Self(16);
    /// Somebody's presence.
    pub const PRESENCE: Self = Self(32);
    /// To-device messages, device lists or one-time keys.
    pub const DEVICES: Self = Self(64);
    /// Which threads the user follows.
    pub const THREADS: Self = Self(128);

    /// Both sets together.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether any kind of `other` is in this set.
    #[must_use]
    pub const fn any(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// One thing that changed for a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The room, unless it is global.
    pub room: Option<RoomNid>,
    /// What kinds of things.
    pub kinds: Kinds,
}

/// What changed for a user after some position.
#[derive(Clone, Debug)]
pub enum Changes {
    /// Nothing at all.
    None,
    /// Just these, each room once.
    Some(HashMap<Option<RoomNid>, Kinds>),
    /// Too long ago to know: everything has to be looked at.
    Unknown,
}

/// All live users.
#[derive(Default)]
pub struct Notify {
    users: RwLock<HashMap<UserNid, Arc<Live>>>,
}

/// One live user.
pub struct Live {
    changes: Mutex<Recent>,
    wake: watch::Sender<()>,
}

struct Recent {
    /// Changes at or before this position are not remembered.
    floor: Position,
    /// In the order of their last positions.
    list: VecDeque<Entry>,
}

/// A change that came once or, with others in between, several times.
struct Entry {
    first: Position,
    last: Position,
    change: Change,
}

impl Notify {
    /// Follows a user from now on; `now` gives the position of the store's present view.
    pub fn follow(&self, user: UserNid, now: impl FnOnce() -> Position) -> Arc<Live> {
        if let Some(live) = self.users.read().get(&user) {
            return live.clone();
        }
        let mut users = self.users.write();
        users
            .entry(user)
            .or_insert_with(|| {
                // The record lock is held, so nothing can be published unrecorded after this position.
                let changes = Recent {
                    floor: now(),
                    list: VecDeque::new(),
                };
                Arc::new(Live {
                    changes: Mutex::new(changes),
                    wake: watch::channel(()).0,
                })
            })
            .clone()
    }

    /// Forgets users who have nobody waiting; their next sync looks at everything once.
    pub fn forget_idle(&self) {
        self.users
            .write()
            .retain(|_, live| Arc::strong_count(live) > 1 || live.wake.receiver_count() > 0);
    }

    /// Records changes, makes them visible by `show`, and then wakes those who wait for them.
    pub(super) fn publish(&self, touches: &[(Position, Touch)], show: impl FnOnce()) {
        // Held over both steps, so that nobody starts to be followed between them.
        let users = self.users.read();
        let mut woken: Vec<Arc<Live>> = Vec::new();
        for (position, touch) in touches {
            let mut record = |live: &Arc<Live>| {
                live.record(*position, touch.change);
                woken.push(live.clone());
            };
            match &touch.users {
                Users::One(user) => {
                    if let Some(live) = users.get(user) {
                        record(live);
                    }
                }
                Users::All => users.values().for_each(record),
                Users::Many(many) if many.len() <= users.len() => {
                    many.iter()
                        .filter_map(|user| users.get(user))
                        .for_each(record);
                }
                Users::Many(many) => {
                    users
                        .iter()
                        .filter(|(user, _)| many.contains(*user))
                        .for_each(|(_, live)| record(live));
                }
            }
        }
        show();
        drop(users);
        for live in woken {
            live.wake.send_replace(());
        }
    }
}

impl Live {
    fn record(&self, position: Position, change: Change) {
        let mut recent = self.changes.lock();
        let list = &mut recent.list;
        // What comes again and again, such as messages in one room, takes one place: so whoever was away for a night
        // is still told from memory.
        let lately = list.len().saturating_sub(LATELY)..list.len();
        let again = list
            .range(lately.clone())
            .rposition(|entry| entry.change == change)
            .and_then(|index| list.remove(lately.start + index));
        let first = again.map_or(position, |entry| entry.first);
        if list.len() == REMEMBERED
            && let Some(oldest) = list.pop_front()
        {
            recent.floor = oldest.last;
        }
        recent.list.push_back(Entry {
            first,
            last: position,
            change,
        });
    }

    /// Starts listening; every wake-up after this call is seen by the receiver.
    #[must_use]
    pub fn listen(&self) -> watch::Receiver<()> {
        let mut receiver = self.wake.subscribe();
        receiver.mark_unchanged();
        receiver
    }

    /// What changed after `since`, up to and including `until`.
    #[must_use]
    pub fn changes(&self, since: Position, until: Position) -> Changes {
        let recent = self.changes.lock();
        if since < recent.floor {
            return Changes::Unknown;
        }
        let mut changed: HashMap<Option<RoomNid>, Kinds> = HashMap::new();
        for Entry { change, .. } in recent
            .list
            .iter()
            .rev()
            .take_while(|entry| entry.last > since)
            // One that came before and after, but not between, is told too: whoever looks finds nothing.
            .filter(|entry| entry.first <= until)
        {
            let kinds = changed.entry(change.room).or_default();
            *kinds = kinds.and(change.kinds);
        }
        if changed.is_empty() {
            Changes::None
        } else {
            Changes::Some(changed)
        }
    }
}
