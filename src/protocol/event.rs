//! One room event: a parsed header for decisions, and two halves of ready-made JSON for output.
//!
//! The *client half* holds the signed members that clients see, the *wire half* all other signed members. Neither has
//! surrounding braces, so any shape is a concatenation (see [`super::format`]).

use std::sync::OnceLock;

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, EventId, MilliSecondsSinceUnixEpoch, OwnedEventId,
    OwnedRoomId, OwnedUserId, RoomId, UInt, UserId,
    events::{TimelineEventType, room::member::MembershipState},
    room_version_rules::RoomVersionRules,
    state_res,
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{
    format::push_string,
    ids::{EventNid, SnapshotId},
    integrity::{write_object, write_value},
};

/// Members that clients see, in the order in which they are written.
const CLIENT_MEMBERS: [&str; 6] = [
    "content",
    "origin_server_ts",
    "redacts",
    "sender",
    "state_key",
    "type",
];

/// How every client half begins.
pub(super) const CONTENT_START: &str = "\"content\":";

/// What was found out about an event when it was stored, besides what it says itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flags {
    /// It failed authorisation: kept, never shown, never built upon.
    pub rejected: bool,
    /// It passed at its place in the graph but not against the current state: kept, not shown to clients.
    pub soft_failed: bool,
}

/// How an event refers to another one by `m.relates_to`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relation {
    /// `m.replace`, `m.annotation`, `m.thread`, `m.reference`, or anything else.
    pub rel_type: String,
    /// The event referred to.
    pub event_id: OwnedEventId,
}

/// The transaction by which a local device sent an event; only that device is told. Of one that has waited for its time
/// (MSC4140) it is the id by which it did, of no device; all devices of the sender are told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The sending device.
    pub device_id: String,
    /// Its transaction id.
    pub txn_id: String,
}

impl Origin {
    /// Of an event that has waited under this id. No device has an empty name.
    #[must_use]
    pub fn delayed(delay_id: &str) -> Self {
        Self {
            device_id: String::new(),
            txn_id: delay_id.to_owned(),
        }
    }

    /// The id under which the event has waited, if it has.
    #[must_use]
    pub fn delay_id(&self) -> Option<&str> {
        self.device_id.is_empty().then_some(&self.txn_id)
    }
}

/// The fixed part of an event: everything that authorisation, filters, visibility and push ask about first.
#[derive(Clone, Debug)]
pub struct Header {
    /// The event's id.
    pub id: OwnedEventId,
    /// The room it is in.
    pub room_id: OwnedRoomId,
    /// Who sent it.
    pub sender: OwnedUserId,
    /// Its type.
    pub event_type: TimelineEventType,
    /// Its state key, for a state event.
    pub state_key: Option<String>,
    /// When it was sent, by the clock of its origin.
    pub origin_server_ts: MilliSecondsSinceUnixEpoch,
    /// One more than the greatest depth of the events it follows.
    pub depth: u64,
    /// The event that it redacts, if it is a redaction.
    pub redacts: Option<OwnedEventId>,
    /// What it relates to.
    pub relation: Option<Relation>,
    /// `content.membership`, if it is an `m.room.member`.
    pub membership: Option<MembershipState>,
    /// Verdicts.
    pub flags: Flags,
}

/// One room event.
#[derive(Clone, Debug)]
pub struct Event {
    /// The parsed part.
    pub header: Header,
    /// The members that clients see, as JSON without braces.
    pub client: Box<str>,
    /// All other signed members, as JSON without braces.
    pub wire: Box<str>,
    /// Where in the client half the value of `content` lies.
    content_len: usize,
    content: OnceLock<Box<RawValue>>,
    edges: OnceLock<Edges>,
}

#[derive(Clone, Debug, Default)]
struct Edges {
    prev: Vec<OwnedEventId>,
    auth: Vec<OwnedEventId>,
    names_room: bool,
}

/// Why a JSON object is not an event.
#[derive(Debug, thiserror::Error)]
#[error("malformed event: {0}")]
pub struct Malformed(pub String);

impl Event {
    /// Takes a complete event apart.
    ///
    /// `object` is a PDU (its `unsigned` is dropped); `room_id` is given because a create event of room version 12
    /// does not name its room; `rules` say where a redaction names its target.
    ///
    /// # Errors
    /// When a member that every event has is missing or of the wrong type.
    pub fn new(
        id: OwnedEventId,
        room_id: OwnedRoomId,
        object: &CanonicalJsonObject,
        rules: &RoomVersionRules,
    ) -> Result<Self, Malformed> {
        let text = |key: &str| object.get(key).and_then(CanonicalJsonValue::as_str);
        let need = |key: &str| {
            text(key).ok_or_else(|| Malformed(format!("`{key}` is missing or not a string")))
        };
        let number = |key: &str| object.get(key).and_then(CanonicalJsonValue::as_integer);
        let content = object
            .get("content")
            .and_then(CanonicalJsonValue::as_object)
            .ok_or_else(|| Malformed("`content` is missing or not an object".to_owned()))?;

        let sender =
            UserId::parse(need("sender")?).map_err(|e| Malformed(format!("`sender`: {e}")))?;
        let event_type = TimelineEventType::from(need("type")?);
        let state_key = text("state_key").map(ToOwned::to_owned);
        let origin_server_ts = number("origin_server_ts")
            .and_then(|number| UInt::try_from(i64::from(number)).ok())
            .map(MilliSecondsSinceUnixEpoch)
            .ok_or_else(|| {
                Malformed("`origin_server_ts` is missing or not a positive integer".to_owned())
            })?;
        let depth = number("depth")
            .and_then(|number| u64::try_from(i64::from(number)).ok())
            .unwrap_or_default();
        let redacts = (event_type == TimelineEventType::RoomRedaction)
            .then(|| redacts(object, content, rules))
            .flatten()
            .and_then(|id| EventId::parse(id).ok());
        let membership = (event_type == TimelineEventType::RoomMember)
            .then(|| {
                content
                    .get("membership")
                    .and_then(CanonicalJsonValue::as_str)
                    .map(MembershipState::from)
            })
            .flatten();

        let mut client = String::with_capacity(512);
        let mut wire = String::with_capacity(640);
        client.push_str(CONTENT_START);
        write_object(&mut client, content, &[]);
        let content_len = client.len() - CONTENT_START.len();
        for (key, value) in object {
            let half = match key.as_str() {
                "content" | "unsigned" => continue,
                // Room versions 1 and 2 carry the id inside the event; clients get it from the header.
                key if CLIENT_MEMBERS.contains(&key) => &mut client,
                _ => &mut wire,
            };
            if !half.is_empty() {
                half.push(',');
            }
            push_string(half, key);
            half.push(':');
            write_value(half, value);
        }

        let header = Header {
            id,
            room_id,
            sender,
            event_type,
            state_key,
            origin_server_ts,
            depth,
            redacts,
            relation: relation(content),
            membership,
            flags: Flags::default(),
        };
        Ok(Self::from_parts(
            header,
            client.into(),
            wire.into(),
            content_len,
        ))
    }

    /// Puts a stored event together again; the reverse of reading its public fields and [`Self::content_len`].
    #[must_use]
    pub fn from_parts(
        header: Header,
        client: Box<str>,
        wire: Box<str>,
        content_len: usize,
    ) -> Self {
        Self {
            header,
            client,
            wire,
            content_len,
            content: OnceLock::new(),
            edges: OnceLock::new(),
        }
    }

    /// The length in bytes of the value of `content`, which opens the client half.
    #[must_use]
    pub fn content_len(&self) -> usize {
        self.content_len
    }

    /// The value of `content` as JSON text.
    #[must_use]
    pub fn content_json(&self) -> &str {
        let start = CONTENT_START.len();
        self.client
            .get(start..start + self.content_len)
            .unwrap_or("{}")
    }

    /// Reads `content` as `T`.
    ///
    /// # Errors
    /// When the content does not have the shape of `T`.
    pub fn content_as<'a, T: Deserialize<'a>>(&'a self) -> serde_json::Result<T> {
        serde_json::from_str(self.content_json())
    }

    /// The whole signed event, as it goes to other servers.
    ///
    /// # Errors
    /// When the stored halves are not JSON, which means that the store is damaged.
    pub fn to_canonical(&self) -> serde_json::Result<CanonicalJsonObject> {
        serde_json::from_str(&super::format::federation(self))
    }

    /// Whether this is a state event.
    #[must_use]
    pub fn is_state(&self) -> bool {
        self.header.state_key.is_some()
    }

    /// The state right after this event, given its number and the state before it.
    #[must_use]
    pub fn snapshot_after(&self, nid: EventNid, before: SnapshotId) -> SnapshotId {
        if self.is_state() && !self.header.flags.rejected {
            nid.snapshot_after()
        } else {
            before
        }
    }

    fn edges(&self) -> &Edges {
        /// Room versions 1 and 2 write `[id, hashes]`, all later ones just the id.
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Edge {
            Id(OwnedEventId),
            WithHash(OwnedEventId, serde::de::IgnoredAny),
        }
        #[derive(Deserialize)]
        struct Wire {
            #[serde(default)]
            prev_events: Vec<Edge>,
            #[serde(default)]
            auth_events: Vec<Edge>,
            room_id: Option<serde::de::IgnoredAny>,
        }
        fn ids(edges: Vec<Edge>) -> Vec<OwnedEventId> {
            edges
                .into_iter()
                .map(|(Edge::Id(id) | Edge::WithHash(id, _))| id)
                .collect()
        }
        self.edges.get_or_init(|| {
            serde_json::from_str::<Wire>(&format!("{{{}}}", self.wire))
                .map(|wire| Edges {
                    prev: ids(wire.prev_events),
                    auth: ids(wire.auth_events),
                    names_room: wire.room_id.is_some(),
                })
                .unwrap_or_default()
        })
    }
}

/// The event that a redaction names: inside the content from room version 11, beside it before. See "Redactions".
fn redacts<'a>(
    object: &'a CanonicalJsonObject,
    content: &'a CanonicalJsonObject,
    rules: &RoomVersionRules,
) -> Option<&'a str> {
    let place = if rules.redaction.content_field_redacts {
        content
    } else {
        object
    };
    place.get("redacts")?.as_str()
}

/// What a content relates to. See "Forming relationships between events" in the client-server API.
pub(super) fn relation(content: &CanonicalJsonObject) -> Option<Relation> {
    let relates_to = content.get("m.relates_to")?.as_object()?;
    Some(Relation {
        rel_type: relates_to.get("rel_type")?.as_str()?.to_owned(),
        event_id: EventId::parse(relates_to.get("event_id")?.as_str()?).ok()?,
    })
}

impl state_res::Event for Event {
    type Id = OwnedEventId;

    fn event_id(&self) -> &OwnedEventId {
        &self.header.id
    }

    fn room_id(&self) -> Option<&RoomId> {
        // The create event of room version 12 must not name its room, and the rules want to see that it does not.
        let silent =
            self.header.event_type == TimelineEventType::RoomCreate && !self.edges().names_room;
        (!silent).then_some(&self.header.room_id)
    }

    fn sender(&self) -> &UserId {
        &self.header.sender
    }

    fn origin_server_ts(&self) -> MilliSecondsSinceUnixEpoch {
        self.header.origin_server_ts
    }

    fn event_type(&self) -> &TimelineEventType {
        &self.header.event_type
    }

    fn content(&self) -> &RawValue {
        self.content.get_or_init(|| {
            RawValue::from_string(self.content_json().to_owned())
                .or_else(|_| RawValue::from_string("{}".to_owned()))
                .expect("an empty object is JSON")
        })
    }

    fn state_key(&self) -> Option<&str> {
        self.header.state_key.as_deref()
    }

    fn prev_events(&self) -> Box<dyn DoubleEndedIterator<Item = &OwnedEventId> + '_> {
        Box::new(self.edges().prev.iter())
    }

    fn auth_events(&self) -> Box<dyn DoubleEndedIterator<Item = &OwnedEventId> + '_> {
        Box::new(self.edges().auth.iter())
    }

    fn redacts(&self) -> Option<&OwnedEventId> {
        self.header.redacts.as_ref()
    }

    fn rejected(&self) -> bool {
        self.header.flags.rejected
    }
}
