//! What other servers are to be told, as it becomes durable: a list in memory for the one who tells them.
//!
//! It only says where to look, and only until it was taken: whoever starts, or was told that something is missing here,
//! finds all that must not be lost in the tables.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::futures::Notified;

use crate::protocol::ids::{EventNid, Position, RoomNid, ServerNid, UserNid};

/// How much is kept for one who does not come to take it.
const MOST: usize = 50_000;

/// Something that other servers are to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// An event, by the row in `LOCAL_EVENTS` that has its position.
    Event {
        /// Its room.
        room: RoomNid,
        /// The event.
        event: EventNid,
    },
    /// An event for a server that is not in the room, by the row in `EXTRA_TARGETS` that has its position.
    Extra {
        /// The server.
        server: ServerNid,
        /// The room.
        room: RoomNid,
        /// The event.
        event: EventNid,
    },
    /// A message for a server that must not be lost, by the row in `LASTING_EDUS` that has its position.
    Lasting {
        /// The server.
        server: ServerNid,
    },
    /// A server has left a room, by its row in `LEFT_SERVERS`: it is not found among those in the room any more, but must
    /// be told what was before.
    Left {
        /// The server.
        server: ServerNid,
    },
    /// Users here and servers have met in a room, by a row in `INTRODUCTIONS`.
    Introduction,
    /// A receipt of a local user, by the row in `RECEIPTS` that has its position.
    Receipt {
        /// The room.
        room: RoomNid,
    },
    /// A local user has begun or stopped to type.
    Typing {
        /// Where.
        room: RoomNid,
        /// Who.
        user: UserNid,
        /// Whether they type now.
        typing: bool,
    },
    /// A local user is there, or is not any more.
    Presence {
        /// Who.
        user: UserNid,
        /// What there is to say, as JSON.
        json: Arc<str>,
    },
}

/// What is to be told and was not taken yet.
#[derive(Default)]
pub struct Outgoing {
    noted: Mutex<Noted>,
    wake: tokio::sync::Notify,
}

#[derive(Default)]
struct Noted {
    followed: bool,
    list: Vec<(Position, Note)>,
    incomplete: bool,
}

impl Outgoing {
    /// Notes what comes from now on; what was before is in the tables.
    pub fn follow(&self) {
        self.noted.lock().followed = true;
    }

    /// Returns when there is something to take.
    pub fn wait(&self) -> Notified<'_> {
        self.wake.notified()
    }

    /// What is to be told, in the order in which it became durable, and whether something is missing from it.
    #[must_use]
    pub fn take(&self) -> (Vec<(Position, Note)>, bool) {
        let mut noted = self.noted.lock();
        let incomplete = std::mem::take(&mut noted.incomplete);
        (std::mem::take(&mut noted.list), incomplete)
    }

    /// Adds what has become durable and visible, never anything before that.
    pub(super) fn publish(&self, notes: Vec<(Position, Note)>) {
        if notes.is_empty() {
            return;
        }
        let mut noted = self.noted.lock();
        if !noted.followed {
            return;
        }
        if noted.list.len() + notes.len() > MOST {
            noted.list.clear();
            noted.incomplete = true;
        } else {
            noted.list.extend(notes);
        }
        drop(noted);
        self.wake.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(position: u64) -> Vec<(Position, Note)> {
        let (room, event) = (RoomNid(1), EventNid(position));
        vec![(Position(position), Note::Event { room, event })]
    }

    #[test]
    fn what_is_not_taken_does_not_pile_up() {
        let outgoing = Outgoing::default();
        outgoing.publish(note(1));
        assert_eq!(outgoing.take(), (Vec::new(), false));
        outgoing.follow();
        outgoing.publish(note(2));
        assert_eq!(outgoing.take(), (note(2), false));
        for position in 0..=u64::try_from(MOST).unwrap() {
            outgoing.publish(note(position));
        }
        let (list, incomplete) = outgoing.take();
        assert!(incomplete && list.is_empty());
        assert!(!outgoing.take().1);
    }
}
