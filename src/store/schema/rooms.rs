//! Rows about rooms and their events.

use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedEventId, RoomVersionId,
    events::{TimelineEventType, room::member::MembershipState},
};
use serde::{Deserialize, Serialize};

use crate::{
    protocol::{
        event::{Event, Flags, Header, Origin, Relation},
        ids::{EventNid, Position, RoomNid, SnapshotId, UserNid},
    },
    store::{Chain, Result, Store, codec::Record},
};

/// A stored event. Its room and sender are numbers here, because every event of a room would repeat their names.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EventRow {
    /// The event's id.
    pub id: OwnedEventId,
    /// The room it is in.
    pub room: RoomNid,
    /// Who sent it.
    sender: UserNid,
    event_type: TimelineEventType,
    state_key: Option<String>,
    origin_server_ts: MilliSecondsSinceUnixEpoch,
    depth: u64,
    redacts: Option<OwnedEventId>,
    relation: Option<Relation>,
    membership: Option<MembershipState>,
    flags: Flags,
    /// The members that clients see.
    client: Box<str>,
    /// The other signed members.
    wire: Box<str>,
    /// Length of the value of `content` in the client half.
    content_len: u32,
    /// What this node knows about the event.
    pub facts: Facts,
}

impl Record for EventRow {}

/// What this node knows about an event besides the event itself.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Facts {
    /// The state before the event.
    pub before: SnapshotId,
    /// Where the event stands in the timeline; none for one known only as an auth or state event.
    pub order: Option<i64>,
    /// The state event that it replaced.
    pub replaces: Option<EventNid>,
    /// The redaction that emptied it.
    pub redacted_by: Option<EventNid>,
    /// The root of the thread that it belongs to.
    pub thread: Option<OwnedEventId>,
    /// The transaction of the local device that sent it.
    pub origin: Option<Origin>,
    /// It is known only because a local user was told of it from outside of the room. Nobody finds it by its id: should it
    /// ever become known as a part of the room, it gets another number.
    pub aside: bool,
    /// The state right after it, where that does not have the event's own number: the event was known without its place
    /// in the room before.
    pub after: Option<SnapshotId>,
    /// What became the room's current state with the event, where that is more than the event on top of what was current
    /// before: it has come from another branch of the room's history.
    pub current: Option<SnapshotId>,
}

impl EventRow {
    /// Makes the row of an event in a room by a sender.
    #[must_use]
    pub fn new(event: &Event, facts: Facts, room: RoomNid, sender: UserNid) -> Self {
        let header = event.header.clone();
        Self {
            room,
            sender,
            id: header.id,
            event_type: header.event_type,
            state_key: header.state_key,
            origin_server_ts: header.origin_server_ts,
            depth: header.depth,
            redacts: header.redacts,
            relation: header.relation,
            membership: header.membership,
            flags: header.flags,
            client: event.client.clone(),
            wire: event.wire.clone(),
            content_len: u32::try_from(event.content_len()).expect("events are below 64 KiB"),
            facts,
        }
    }

    /// What the event is called: its type and, for a state event, its state key.
    #[must_use]
    pub fn kind(&self) -> (&TimelineEventType, Option<&str>) {
        (&self.event_type, self.state_key.as_deref())
    }

    /// The verdicts on the event.
    #[must_use]
    pub fn flags(&self) -> Flags {
        self.flags
    }

    /// The event and what is known about it.
    ///
    /// # Errors
    /// When the numbers in it stand for nothing.
    pub fn into_parts(self, store: &Store) -> Result<(Event, Facts)> {
        let header = Header {
            room_id: (*store.room_id(self.room)?).clone(),
            sender: (*store.user_id(self.sender)?).clone(),
            id: self.id,
            event_type: self.event_type,
            state_key: self.state_key,
            origin_server_ts: self.origin_server_ts,
            depth: self.depth,
            redacts: self.redacts,
            relation: self.relation,
            membership: self.membership,
            flags: self.flags,
        };
        let content_len = usize::try_from(self.content_len).expect("lengths fit");
        let event = Event::from_parts(header, self.client, self.wire, content_len);
        Ok((event, self.facts))
    }
}

/// The end of a room's graph.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HeadRow {
    /// The room's version.
    pub version: RoomVersionId,
    /// Events that nothing follows yet.
    pub extremities: Vec<(OwnedEventId, EventNid)>,
    /// The greatest depth of the extremities.
    pub depth: u64,
    /// The current state.
    pub chain: Chain,
    /// The position of the newest event.
    pub last: Position,
    /// The event that created the room.
    pub create: EventNid,
    /// How many users have joined.
    pub joined: u64,
    /// How many users are invited.
    pub invited: u64,
    /// From here on in the timeline each event was sent on top of what was current then.
    pub straight_from: i64,
    /// The newest place in the timeline at and below which there may be events that this node does not know.
    pub gap: Option<i64>,
}

/// A place in a timeline where events are missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GapRow {
    /// The place that the next older event gets.
    pub next: i64,
    /// The places above this one are free.
    pub floor: i64,
    /// The newest of the missing events.
    pub missing: Vec<OwnedEventId>,
}

impl Record for GapRow {}

/// A server in a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerRow {
    /// How many of its users have joined.
    pub joined: u64,
    /// When the first of them came.
    pub since: Position,
}

impl Record for ServerRow {}

impl Record for HeadRow {}

/// A user's membership in a room.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MemberRow {
    /// The membership now.
    pub membership: MembershipState,
    /// The member event.
    pub event: EventNid,
    /// When it took its present value; a changed profile does not move it.
    pub since: Position,
    /// Whether the user asked that the room be forgotten.
    pub forgotten: bool,
}

impl Record for MemberRow {}

/// Unread counts worked out up to some place in the timeline.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnreadRow {
    /// Events up to this order have been counted.
    pub counted: i64,
    /// Receipts up to this position have been taken into account.
    pub as_of: Position,
    /// Outside of threads.
    pub main: Counts,
    /// By thread root.
    pub threads: Vec<(OwnedEventId, Counts)>,
}

impl Record for UnreadRow {}

/// How many unread events there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Events that notify.
    pub notifications: u64,
    /// Events that notify loudly.
    pub highlights: u64,
}
