//! What a server outside of a room is told of it, as it is kept for the user: a list of stripped events in JSON.

use ruma::{RoomId, events::TimelineEventType, room_version_rules::RoomVersionRules};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Federation, malformed};
use crate::{
    error::{Error, Result},
    protocol::{format, ingest, integrity::MAX_EVENT_BYTES},
};

/// The most events that are kept.
const MOST: usize = 50;

/// The most that they may be together, in bytes.
const MOST_BYTES: usize = 4 * MAX_EVENT_BYTES;

/// What every stripped event has.
#[derive(Deserialize)]
struct Stripped {
    #[serde(rename = "type")]
    event_type: String,
    state_key: String,
    sender: ruma::OwnedUserId,
    content: Box<RawValue>,
}

impl Federation {
    /// Turns what another server tells of a room into stripped events.
    ///
    /// In rooms whose id is made by their create event only events whole are believed, and the create event must be
    /// there and make the room's id; with `strict` anything else is an error, else it is left out. In older rooms
    /// nothing could be checked that matters, and old servers send events stripped already.
    pub(super) async fn stripped(
        &self,
        room: &RoomId,
        rules: &'static RoomVersionRules,
        told: &[Box<RawValue>],
        strict: bool,
    ) -> Result<String> {
        let is_proven = rules.authorization.room_create_event_id_as_room_id;
        let mut events = Vec::new();
        let mut has_create = false;
        for json in told.iter().take(MOST) {
            match ingest::receive(json.get(), rules) {
                Ok(received) => {
                    let header = &received.event().header;
                    if header.room_id != room || header.state_key.is_none() {
                        if strict && is_proven {
                            return Err(Error::invalid_param(format!(
                                "An event of the invited room's state is not in {room}"
                            )));
                        }
                        continue;
                    }
                    let is_create = header.event_type == TimelineEventType::RoomCreate;
                    if !is_proven {
                        events.push(format::stripped(received.event()));
                    } else if let Ok(pdu) = self.verify_one(received, rules).await? {
                        has_create |= is_create;
                        events.push(format::stripped(&pdu.event));
                    }
                }
                Err(dropped) if strict && is_proven => {
                    return Err(Error::invalid_param(malformed(&dropped).to_string()));
                }
                Err(_) if is_proven => {}
                Err(_) => events.extend(loose(json)),
            }
        }
        if strict && is_proven && !has_create {
            return Err(Error::invalid_param(
                "The create event of the room is missing, or not signed",
            ));
        }
        let mut out = "[".to_owned();
        for event in events {
            if out.len() + event.len() > MOST_BYTES {
                break;
            }
            if out.len() > 1 {
                out.push(',');
            }
            out.push_str(&event);
        }
        out.push(']');
        Ok(out)
    }
}

/// An event that came without what could prove it.
fn loose(json: &RawValue) -> Option<String> {
    let Stripped {
        event_type,
        state_key,
        sender,
        content,
    } = serde_json::from_str(json.get()).ok()?;
    let is_object = content.get().starts_with('{');
    if !is_object || json.get().len() > MAX_EVENT_BYTES {
        return None;
    }
    let mut out = "{\"content\":".to_owned();
    out.push_str(content.get());
    out.push_str(",\"sender\":");
    format::push_string(&mut out, sender.as_str());
    out.push_str(",\"state_key\":");
    format::push_string(&mut out, &state_key);
    out.push_str(",\"type\":");
    format::push_string(&mut out, &event_type);
    out.push('}');
    Some(out)
}
