//! Rooms whose current state has changed, as it becomes visible: for the one who keeps a directory of rooms in memory.

use std::collections::HashSet;

use parking_lot::Mutex;

use crate::protocol::ids::RoomNid;

/// How many rooms are noted for one who does not come to take them.
const MOST: usize = 50_000;

/// Rooms that have changed and were not taken yet.
#[derive(Default)]
pub struct ChangedRooms(Mutex<Noted>);

#[derive(Default)]
struct Noted {
    followed: bool,
    rooms: HashSet<RoomNid>,
    incomplete: bool,
}

impl ChangedRooms {
    /// Notes what changes from now on.
    pub fn follow(&self) {
        self.0.lock().followed = true;
    }

    /// The rooms that have changed since this was asked the last time, and whether some are missing from them. A view
    /// that is taken afterwards shows all of these changes.
    #[must_use]
    pub fn take(&self) -> (HashSet<RoomNid>, bool) {
        let mut noted = self.0.lock();
        let incomplete = std::mem::take(&mut noted.incomplete);
        (std::mem::take(&mut noted.rooms), incomplete)
    }

    /// Adds what has become visible, never anything before that.
    pub(super) fn publish(&self, rooms: &[RoomNid]) {
        if rooms.is_empty() {
            return;
        }
        let mut noted = self.0.lock();
        if !noted.followed {
            return;
        }
        noted.rooms.extend(rooms);
        if noted.rooms.len() > MOST {
            noted.rooms.clear();
            noted.incomplete = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_taken_does_not_pile_up() {
        let changed = ChangedRooms::default();
        changed.publish(&[RoomNid(1)]);
        assert_eq!(changed.take(), (HashSet::new(), false));
        changed.follow();
        changed.publish(&[RoomNid(1), RoomNid(2), RoomNid(1)]);
        assert_eq!(changed.take(), ([RoomNid(1), RoomNid(2)].into(), false));
        for room in 0..=u64::try_from(MOST).unwrap() {
            changed.publish(&[RoomNid(room)]);
        }
        let (rooms, incomplete) = changed.take();
        assert!(incomplete && rooms.is_empty());
        assert!(!changed.take().1);
    }
}
