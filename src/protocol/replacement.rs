//! Whether an event that says that it replaces another one does so. See "Validity of replacement events" in the
//! client-server API.

use ruma::events::TimelineEventType;
use serde::{Deserialize, de::IgnoredAny};

use super::event::Event;

/// How an edit relates to what it edits.
pub const REPLACE: &str = "m.replace";

/// Whether `edit`, which relates to `original` by `m.replace`, is a valid edit of it, if both are in one room. That nobody
/// edits an edit is for whoever shows the original; the new content of an encrypted edit can not be seen from here.
#[must_use]
pub fn replaces(edit: &Event, original: &Event) -> bool {
    #[derive(Deserialize)]
    struct Content {
        #[serde(rename = "m.new_content")]
        _new_content: IgnoredAny,
    }
    let (new, old) = (&edit.header, &original.header);
    new.sender == old.sender
        && new.event_type == old.event_type
        && !edit.is_state()
        && !original.is_state()
        && (new.event_type == TimelineEventType::RoomEncrypted
            || edit.content_as::<Content>().is_ok())
}
