//! Numbers that stand for Matrix strings inside one node, each a type of its own so that they can not be mixed up.
//!
//! A *nid* never leaves the node: it is short, sorts well and makes keys small. It is not the same on any two nodes.

use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub u64);

        impl From<u64> for $name {
            fn from(number: u64) -> Self {
                Self(number)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// A point in the node's one stream of changes. Positions are handed out in commit order, without gaps.
    Position
}
number! {
    /// A room.
    RoomNid
}
number! {
    /// An event: the position of the commit that first stored it, so an auth event's nid is below that of every event
    /// that it authorises.
    EventNid
}
number! {
    /// A user, local or remote.
    UserNid
}
number! {
    /// A server, this one or another.
    ServerNid
}
number! {
    /// A pair of event type and state key.
    StateKeyNid
}
number! {
    /// A room's full state at one moment. The state after a state event has the number of that event.
    SnapshotId
}

impl Position {
    /// The place in every room's timeline that lies right after this moment.
    ///
    /// # Panics
    /// Never: the count would take longer than the sun has left.
    #[must_use]
    pub fn live_order(self) -> i64 {
        i64::try_from(self.0).expect("positions stay below 2^63")
    }
}

impl EventNid {
    /// The state right after this event, when it is a state event that was accepted.
    #[must_use]
    pub fn snapshot_after(self) -> SnapshotId {
        SnapshotId(self.0)
    }

    /// Where a live event stands in its room's timeline: at the position of its commit.
    ///
    /// Events fetched from before the room was known here have orders below zero.
    #[must_use]
    pub fn live_order(self) -> i64 {
        i64::try_from(self.0).expect("positions stay below 2^63")
    }
}
