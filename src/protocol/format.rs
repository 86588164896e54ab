//! Splices an event's halves into the shapes that clients and servers expect, by copying, not by parsing.

use ruma::{OwnedEventId, events::TimelineEventType};

use super::event::Event;

/// What a server says about an event besides the event itself; depends on who asks and when.
///
/// See "Room event format" in the client-server API.
#[derive(Clone, Debug, Default)]
pub struct Unsigned {
    /// Milliseconds since the event was sent.
    pub age: Option<i64>,
    /// The asking device's own transaction id.
    pub transaction_id: Option<String>,
    /// The id under which the asker's own event has waited for its time. See MSC4140.
    pub delay_id: Option<String>,
    /// The asker's membership at the time of the event.
    pub membership: Option<String>,
    /// The content of the state event that this one replaced, as JSON.
    pub prev_content: Option<String>,
    /// The sender of the state event that this one replaced.
    pub prev_sender: Option<String>,
    /// The state event that this one replaced.
    pub replaces_state: Option<OwnedEventId>,
    /// The redaction that emptied this event, as a whole client event in JSON.
    pub redacted_because: Option<String>,
    /// Aggregations by relation type, as a JSON object.
    pub relations: Option<String>,
}

/// Whether the room is told by the surrounding response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// With `room_id`: /messages, /context, /event, /state.
    Client,
    /// Without `room_id`: /sync.
    Sync,
}

/// An event for a client, as one JSON object.
#[must_use]
pub fn client(event: &Event, shape: Shape, unsigned: &Unsigned) -> String {
    let mut out = String::with_capacity(event.client.len() + 320);
    push_client(&mut out, event, shape, unsigned);
    out
}

/// Appends an event for a client.
pub fn push_client(out: &mut String, event: &Event, shape: Shape, unsigned: &Unsigned) {
    let header = &event.header;
    out.push('{');
    match &header.redacts {
        // Whichever place the room version has chosen, clients find the id in both.
        Some(id) if event.client.contains("\"redacts\":") => {
            push_with_both_redacts(out, event, id.as_str());
        }
        _ => out.push_str(&event.client),
    }
    out.push_str(",\"event_id\":");
    push_string(out, header.id.as_str());
    if shape == Shape::Client {
        out.push_str(",\"room_id\":");
        push_string(out, header.room_id.as_str());
    }
    push_unsigned(out, unsigned);
    out.push('}');
}

/// An event as invited or knocking users see it: no id, no time, only what it says. The create event has both, because
/// by them it can be told that a room is the one that it says. See "Stripped state".
#[must_use]
pub fn stripped(event: &Event) -> String {
    let is_create = event.header.event_type == TimelineEventType::RoomCreate;
    strip(event, is_create, is_create)
}

/// The membership of whoever is invited or knocks, beside [`stripped`] events: with id and time, by which apps say when
/// it was and sort what waits for an answer. It is about the user, so nothing of the room is told by it.
#[must_use]
pub fn stripped_membership(event: &Event) -> String {
    strip(event, true, true)
}

/// An event as those see it who look at the tree of a space: with its time, by which children are ordered. See
/// `children_state` in the answer of `/hierarchy`.
#[must_use]
pub fn stripped_with_time(event: &Event) -> String {
    strip(event, false, true)
}

fn strip(event: &Event, with_id: bool, with_time: bool) -> String {
    let header = &event.header;
    let mut out = String::with_capacity(event.client.len() + 64);
    out.push_str("{\"content\":");
    out.push_str(event.content_json());
    out.push_str(",\"sender\":");
    push_string(&mut out, header.sender.as_str());
    out.push_str(",\"state_key\":");
    push_string(&mut out, header.state_key.as_deref().unwrap_or_default());
    out.push_str(",\"type\":");
    push_string(&mut out, &header.event_type.to_string());
    if with_id {
        out.push_str(",\"event_id\":");
        push_string(&mut out, header.id.as_str());
    }
    if with_time {
        out.push_str(",\"origin_server_ts\":");
        out.push_str(&header.origin_server_ts.get().to_string());
    }
    out.push('}');
    out
}

/// An event as it goes to other servers.
#[must_use]
pub fn federation(event: &Event) -> String {
    let mut out = String::with_capacity(event.client.len() + event.wire.len() + 3);
    out.push('{');
    out.push_str(&event.client);
    if !event.wire.is_empty() {
        out.push(',');
        out.push_str(&event.wire);
    }
    out.push('}');
    out
}

/// Appends `text` as a JSON string.
pub fn push_string(out: &mut String, text: &str) {
    if text.bytes().all(|b| b >= 0x20 && b != b'"' && b != b'\\') {
        out.push('"');
        out.push_str(text);
        out.push('"');
    } else {
        out.push_str(&serde_json::to_string(text).expect("a string always serialises"));
    }
}

fn push_with_both_redacts(out: &mut String, event: &Event, id: &str) {
    let content = event.content_json();
    let rest = event
        .client
        .get("\"content\":".len() + content.len()..)
        .unwrap_or_default();
    out.push_str("\"content\":");
    if content.contains("\"redacts\":") {
        out.push_str(content);
    } else {
        out.push_str("{\"redacts\":");
        push_string(out, id);
        if content != "{}" {
            out.push(',');
        }
        out.push_str(content.get(1..).unwrap_or("}"));
    }
    out.push_str(rest);
    if !rest.contains("\"redacts\":") {
        out.push_str(",\"redacts\":");
        push_string(out, id);
    }
}

fn push_unsigned(out: &mut String, unsigned: &Unsigned) {
    let start = out.len();
    let mut member = |name: &str, write: &dyn Fn(&mut String)| {
        out.push_str(if out.len() == start {
            ",\"unsigned\":{\""
        } else {
            ",\""
        });
        out.push_str(name);
        out.push_str("\":");
        write(out);
    };
    if let Some(age) = unsigned.age {
        member("age", &|out| out.push_str(&age.to_string()));
    }
    for (name, text) in [
        ("transaction_id", unsigned.transaction_id.as_deref()),
        ("org.matrix.msc4140.delay_id", unsigned.delay_id.as_deref()),
        ("membership", unsigned.membership.as_deref()),
        ("prev_sender", unsigned.prev_sender.as_deref()),
        (
            "replaces_state",
            unsigned.replaces_state.as_ref().map(|id| id.as_str()),
        ),
    ] {
        if let Some(text) = text {
            member(name, &|out| push_string(out, text));
        }
    }
    for (name, json) in [
        ("prev_content", &unsigned.prev_content),
        ("redacted_because", &unsigned.redacted_because),
        ("m.relations", &unsigned.relations),
    ] {
        if let Some(json) = json {
            member(name, &|out| out.push_str(json));
        }
    }
    if out.len() != start {
        out.push('}');
    }
}

#[cfg(test)]
mod tests;
