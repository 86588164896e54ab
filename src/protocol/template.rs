//! From what a user wants to say to a finished event of the room's version: format, hash, signature, id.
//!
//! See "PDUs" in the server-server API and "Event format" of each room version.

use std::collections::BTreeMap;

use js_int::Int;
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId,
    OwnedUserId, ServerName,
    events::TimelineEventType,
    room_version_rules::{EventsReferenceFormatVersion, RoomVersionRules},
};

use super::{
    event::Event,
    integrity::{
        BadEvent, MAX_AUTH_EVENTS, MAX_PREV_EVENTS, ServerKey, check_event_size, check_id_size,
        hash_and_sign, room_id_of_create,
    },
};

/// A local event before it has hashes, signatures and an id.
#[derive(Clone, Debug)]
pub struct Draft {
    /// The room; not looked at in the create event of a room of version 12, whose id makes the room's.
    pub room_id: Option<OwnedRoomId>,
    /// The sender.
    pub sender: OwnedUserId,
    /// The type.
    pub event_type: TimelineEventType,
    /// The state key, for a state event.
    pub state_key: Option<String>,
    /// The content.
    pub content: CanonicalJsonObject,
    /// The event to redact, for a redaction; put where the room version wants it.
    pub redacts: Option<OwnedEventId>,
    /// The time of sending.
    pub origin_server_ts: MilliSecondsSinceUnixEpoch,
    /// The events that it follows.
    pub prev_events: Vec<OwnedEventId>,
    /// The events that authorise it.
    pub auth_events: Vec<OwnedEventId>,
    /// One more than the greatest depth of the events that it follows.
    pub depth: u64,
    /// Only for room versions 1 and 2.
    pub legacy: Option<Legacy>,
}

/// What an event of room versions 1 and 2 needs besides. See "Event format" of room version 1.
#[derive(Clone, Debug)]
pub struct Legacy {
    /// The event's id: any unused one on our server.
    pub event_id: OwnedEventId,
    /// The reference hashes of the events that it refers to, as far as they are known, in unpadded base64.
    pub reference_hashes: BTreeMap<OwnedEventId, String>,
}

/// The draft as an object in the format of its room version, without hashes and signatures: what `make_join` and the
/// like answer.
///
/// # Errors
/// When the room version wants something that the draft does not have, or a limit is broken.
pub fn unsigned(draft: Draft, rules: &RoomVersionRules) -> Result<CanonicalJsonObject, BadEvent> {
    let Draft {
        room_id,
        sender,
        event_type,
        state_key,
        mut content,
        redacts,
        ..
    } = draft;
    let legacy = draft.legacy.as_ref();
    if draft.prev_events.len() > MAX_PREV_EVENTS || draft.auth_events.len() > MAX_AUTH_EVENTS {
        return Err(BadEvent::Malformed(
            "it refers to more events than a PDU may".to_owned(),
        ));
    }
    let is_unnamed = event_type == TimelineEventType::RoomCreate
        && !rules.event_format.require_room_create_room_id;

    let mut object = CanonicalJsonObject::new();
    let mut put = |key: &str, value| object.insert(key.to_owned(), value);
    for (key, ids) in [
        ("auth_events", draft.auth_events),
        ("prev_events", draft.prev_events),
    ] {
        put(
            key,
            ids.into_iter()
                .map(|id| reference(&id, legacy, rules))
                .collect::<Vec<_>>()
                .into(),
        );
    }
    put(
        "depth",
        Int::try_from(draft.depth).unwrap_or(Int::MAX).into(),
    );
    put("origin_server_ts", draft.origin_server_ts.0.into());
    if rules.event_format.require_event_id {
        let id = legacy.map(|legacy| legacy.event_id.as_str());
        let id = id.ok_or_else(|| {
            BadEvent::Malformed("room versions 1 and 2 want an event id".to_owned())
        })?;
        put("event_id", limited("event_id", id)?);
    }
    if !is_unnamed {
        let id = room_id.ok_or_else(|| {
            BadEvent::Malformed("only a create event can go without a room".to_owned())
        })?;
        put("room_id", limited("room_id", id.as_str())?);
    }
    put("sender", limited("sender", sender.as_str())?);
    if let Some(state_key) = state_key {
        put("state_key", limited("state_key", &state_key)?);
    }
    put("type", limited("type", &event_type.to_string())?);
    if let Some(target) = redacts {
        let target = target.as_str().into();
        if rules.redaction.content_field_redacts {
            content.insert("redacts".to_owned(), target);
        } else {
            put("redacts", target);
        }
    }
    put("content", content.into());
    Ok(object)
}

/// Makes the event: hash, signature, id, size check. See "Signing events" in the server-server API.
///
/// # Errors
/// When the room version wants something that the draft does not have, or the event is over a limit.
pub fn finish(
    draft: Draft,
    key: &ServerKey,
    server_name: &ServerName,
    rules: &RoomVersionRules,
) -> Result<Event, BadEvent> {
    let room_id = draft.room_id.clone();
    let mut object = unsigned(draft, rules)?;
    let id = hash_and_sign(&mut object, key, server_name, rules)?;
    let room_id = match room_id {
        Some(room_id) if object.contains_key("room_id") => room_id,
        _ => room_id_of_create(&id)?,
    };
    let event =
        Event::new(id, room_id, &object, rules).map_err(|error| BadEvent::Malformed(error.0))?;
    check_event_size(event.client.len() + event.wire.len() + "{,}".len())?;
    Ok(event)
}

fn limited(what: &str, text: &str) -> Result<CanonicalJsonValue, BadEvent> {
    check_id_size(what, text)?;
    Ok(text.into())
}

/// How an event names another one: by its id, or before room version 3 by its id and its hash.
fn reference(
    id: &OwnedEventId,
    legacy: Option<&Legacy>,
    rules: &RoomVersionRules,
) -> CanonicalJsonValue {
    if rules.events_reference_format != EventsReferenceFormatVersion::V1 {
        return id.as_str().into();
    }
    let hash = legacy.and_then(|legacy| legacy.reference_hashes.get(id));
    let hashes: CanonicalJsonObject = hash
        .map(|hash| ("sha256".to_owned(), hash.as_str().into()))
        .into_iter()
        .collect();
    vec![id.as_str().into(), hashes.into()].into()
}

#[cfg(test)]
mod tests;
