//! The checks on an event that another server sends, from its bytes to the verdict.
//!
//! See "Checks performed on receipt of a PDU" in the server-server API. Nothing is fetched or stored here: whoever
//! drives this finds the events and the keys, and asks again when it has got them.

use std::sync::Arc;

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, EventId, OwnedEventId, OwnedRoomId, OwnedServerName,
    RoomId,
    events::{StateEventType, TimelineEventType},
    room_version_rules::RoomVersionRules,
    signatures::PublicKeyMap,
    state_res::Event as _,
};
use serde::Deserialize;

use super::{
    auth::{self, Denied},
    event::Event,
    integrity::{self, BadEvent, BadJson, BadSignature},
    policy::PolicyServer,
};

/// Why an event is dropped: it is as if it had never come.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Dropped {
    /// It is not canonical JSON.
    #[error(transparent)]
    Json(#[from] BadJson),
    /// It does not have the format of its room version.
    #[error(transparent)]
    Format(#[from] BadEvent),
    /// It is not signed by those who must have signed it.
    #[error(transparent)]
    Signature(#[from] BadSignature),
}

/// An event as it has come, before its signatures are checked.
#[derive(Debug)]
pub struct Received {
    object: CanonicalJsonObject,
    rules: &'static RoomVersionRules,
    event: Event,
    /// The servers that must have signed it.
    pub signers: Vec<OwnedServerName>,
    /// Whether its content is what its origin has hashed; if not, only the redacted event is used.
    pub intact: bool,
}

/// An event of another server that is signed by those who must have signed it.
#[derive(Clone, Debug)]
pub struct Pdu {
    /// The event, redacted if its content is not the one that was signed.
    pub event: Event,
    /// Whether the room's policy server was asked to sign it, in vain.
    pub refused: bool,
}

/// The room that an event says it is in, to find the version of which it must be.
#[must_use]
pub fn room_named(text: &str) -> Option<OwnedRoomId> {
    #[derive(Deserialize)]
    struct Named {
        room_id: OwnedRoomId,
    }
    serde_json::from_str::<Named>(text)
        .ok()
        .map(|named| named.room_id)
}

/// The first and the third check: format and size, and the content hash.
///
/// # Errors
/// When the event is to be dropped.
pub fn receive(text: &str, rules: &'static RoomVersionRules) -> Result<Received, Dropped> {
    receive_object(integrity::parse_pdu(text, rules)?, rules)
}

/// As [`receive`], for an object that was parsed as a part of something else.
///
/// # Errors
/// When the event is to be dropped.
pub fn receive_object(
    mut object: CanonicalJsonObject,
    rules: &'static RoomVersionRules,
) -> Result<Received, Dropped> {
    // Whoever sends an event may add to this member what they like, so nothing of it is believed.
    object.remove("unsigned");
    integrity::check_format(&object, rules)?;
    let id = integrity::event_id(&object, rules)?;
    let room_id = room_of(&object, &id, rules)?;
    let signers = integrity::required_signers(&object, rules)?;
    let intact = is_intact(&object);
    let event = if intact {
        Event::new(id, room_id, &object, rules)
    } else {
        let redacted = integrity::redact(object.clone(), rules)?;
        Event::new(id, room_id, &redacted, rules)
    };
    let event = event.map_err(|error| BadEvent::Malformed(error.0))?;
    Ok(Received {
        object,
        rules,
        event,
        signers,
        intact,
    })
}

/// The room: the one named, but the room that it makes for a create event of room version 12.
fn room_of(
    object: &CanonicalJsonObject,
    id: &EventId,
    rules: &RoomVersionRules,
) -> Result<OwnedRoomId, BadEvent> {
    let is_create = object.get("type").and_then(CanonicalJsonValue::as_str)
        == Some("m.room.create")
        && object.get("state_key").is_some();
    match object.get("room_id").and_then(CanonicalJsonValue::as_str) {
        Some(room) => {
            RoomId::parse(room).map_err(|e| BadEvent::Malformed(format!("`room_id`: {e}")))
        }
        None if is_create && !rules.event_format.require_room_create_room_id => {
            integrity::room_id_of_create(id)
        }
        None => Err(BadEvent::Malformed("`room_id` is missing".to_owned())),
    }
}

fn is_intact(object: &CanonicalJsonObject) -> bool {
    let claimed = object
        .get("hashes")
        .and_then(|hashes| hashes.as_object()?.get("sha256")?.as_str());
    claimed.is_some_and(|hash| hash.trim_end_matches('=') == integrity::content_hash(object))
}

impl Received {
    /// The event, of which nobody knows yet whether it is genuine.
    #[must_use]
    pub fn event(&self) -> &Event {
        &self.event
    }

    /// The event as it came, but for `unsigned`.
    #[must_use]
    pub fn object(&self) -> &CanonicalJsonObject {
        &self.object
    }

    /// The second check. `keys` holds the keys that were valid at the event's time, by server and key id.
    ///
    /// # Errors
    /// When the event is to be dropped.
    pub fn verify(self, keys: &PublicKeyMap) -> Result<Pdu, Dropped> {
        integrity::verify(&self.object, keys, self.rules)?;
        Ok(self.signed())
    }

    /// The event, for whoever has checked its signatures already.
    #[must_use]
    pub fn signed(self) -> Pdu {
        Pdu {
            event: self.event,
            refused: false,
        }
    }
}

/// How a state is asked for.
pub type Lookup<'a> = &'a dyn Fn(&StateEventType, &str) -> Option<Arc<Event>>;

/// What is known around an event.
pub struct Known<'a> {
    /// Any event of which this node has the bytes.
    pub event: &'a dyn Fn(&EventId) -> Option<Arc<Event>>,
    /// Whether the state after an event is known.
    pub has_state: &'a dyn Fn(&EventId) -> bool,
    /// The state before the event. Whoever was told it by another server needs no previous events.
    pub before: Option<Lookup<'a>>,
    /// The current state of the room, if it is another one than that before the event.
    pub current: Option<Lookup<'a>>,
}

/// What must be had before an event can be judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Need {
    /// These events, by which it says to be authorised.
    AuthEvents(Vec<OwnedEventId>),
    /// These events, which it follows, or the state before it.
    PrevEvents(Vec<OwnedEventId>),
    /// The state before it: all events that it follows are there.
    StateBefore,
    /// The signature of the room's policy server.
    Recommendation(PolicyServer),
}

/// What becomes of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is a part of the room.
    Accepted,
    /// It is kept and takes part in state resolution, but clients are not told of it, and nothing is sent on top of it.
    SoftFailed(Denied),
    /// It is kept only to be recognised.
    Rejected(Denied),
}

/// Where the checks of an event have come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// They can not go on without this.
    Need(Need),
    /// They are done.
    Done(Verdict),
}

/// The fourth, fifth and sixth check, as far as they can be made with what is known.
pub fn step(rules: &RoomVersionRules, event: &Event, known: &Known<'_>) -> Step {
    let missing = |ids: &mut dyn Iterator<Item = &OwnedEventId>, has: &dyn Fn(&EventId) -> bool| {
        ids.filter(|id| !has(id)).cloned().collect::<Vec<_>>()
    };
    let mut auth = missing(&mut event.auth_events(), &|id| (known.event)(id).is_some());
    if rules.authorization.room_create_event_id_as_room_id
        && event.header.event_type != TimelineEventType::RoomCreate
    {
        let create = integrity::create_of_room_id(&event.header.room_id);
        auth.extend(create.filter(|id| (known.event)(id).is_none()));
    }
    if !auth.is_empty() {
        return Step::Need(Need::AuthEvents(auth));
    }
    if let Err(denied) = check_by_auth_events(rules, event, known.event) {
        return Step::Done(Verdict::Rejected(denied));
    }
    let Some(before) = known.before else {
        let prev = missing(&mut event.prev_events(), known.has_state);
        return Step::Need(if prev.is_empty() {
            Need::StateBefore
        } else {
            Need::PrevEvents(prev)
        });
    };
    if let Err(denied) = auth::check_against(rules, &event, before) {
        return Step::Done(Verdict::Rejected(denied));
    }
    Step::Done(match known.current {
        Some(current) => match auth::check_against(rules, &event, current) {
            Ok(()) => Verdict::Accepted,
            Err(denied) => Verdict::SoftFailed(denied),
        },
        None => Verdict::Accepted,
    })
}

/// The fourth check, which is all that can be said of an event whose place in the room is not known.
///
/// # Errors
/// When the event is to be rejected.
pub fn check_by_auth_events(
    rules: &RoomVersionRules,
    event: &Event,
    lookup: &dyn Fn(&EventId) -> Option<Arc<Event>>,
) -> Result<(), Denied> {
    let header = &event.header;
    let is_create = header.event_type == TimelineEventType::RoomCreate;
    if !is_create && event.prev_events().next().is_none() {
        return Err(Denied::from("it follows no event".to_owned()));
    }
    auth::check_citations(rules, &event, lookup)?;
    let mut cited: Vec<Arc<Event>> = event.auth_events().filter_map(|id| lookup(id)).collect();
    if rules.authorization.room_create_event_id_as_room_id && !is_create {
        // Every event of such a room is authorised by the create event without citing it.
        cited.extend(integrity::create_of_room_id(&header.room_id).and_then(|id| lookup(&id)));
    }
    auth::check_against(rules, &event, |event_type, state_key| {
        let event_type = event_type.to_string();
        let matches = |event: &&Arc<Event>| {
            event.header.state_key.as_deref() == Some(state_key)
                && event.header.event_type.to_string() == event_type
        };
        cited.iter().find(matches).cloned()
    })
}

#[cfg(test)]
mod tests;
