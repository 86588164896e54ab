//! Redacting what relates to an event together with it. See MSC3912.

use ruma::{CanonicalJsonObject, EventId, RoomId, events::TimelineEventType};

use super::Lifecycle;
use crate::{
    error::{Error, Result},
    protocol::ids::EventNid,
    service::{Requester, rooms::NewEvent},
    store::{View, schema::RELATIONS},
};

/// Stands for all types of relations.
const ALL: &str = "*";

/// How many types may be named.
const MOST_TYPES: usize = 20;

/// How many events are redacted at most. Who asks again goes on.
const MOST_EVENTS: usize = 10_000;

/// How many are redacted in one commit; the room is free in between.
const CHUNK: usize = 100;

impl Lifecycle {
    /// Redacts, as far as the user may, what relates to an event by one of these types of relations, as it was redacted
    /// itself: with the same `content`.
    ///
    /// # Errors
    /// 400 for too many types; when the user has been sent out of the room meanwhile.
    pub async fn redact_related(
        &self,
        requester: &Requester,
        room: &RoomId,
        target: &EventId,
        types: &[String],
        content: &CanonicalJsonObject,
    ) -> Result<()> {
        check_types(types)?;
        let view = self.store.latest();
        let found = self.rooms.find_event(&view, target)?;
        // What is of another room was refused when it was to be redacted itself.
        let Some(target) = found.filter(|found| found.event.header.room_id == room) else {
            return Ok(());
        };
        let related = related(&view, target.nid, types)?;
        for chunk in related.chunks(CHUNK) {
            let mut guard = self.rooms.lock_for(requester, room).await?;
            let head = guard.head();
            let view = self.store.latest();
            let levels = self.rooms.power_levels(&view, &head.state, head.rules)?;
            let mut redactions = Vec::new();
            for stored in self.rooms.events(&view, chunk)? {
                let header = &stored.event.header;
                if stored.facts.redacted_by.is_none()
                    && !stored.event.is_state()
                    && levels.may_redact(&requester.user_id, &header.sender)
                {
                    redactions.push(NewEvent {
                        sender: requester.user_id.clone(),
                        event_type: TimelineEventType::RoomRedaction,
                        state_key: None,
                        content: content.clone(),
                        redacts: Some(header.id.clone()),
                        transaction: None,
                    });
                }
            }
            self.write_all(guard, redactions).await?;
        }
        self.settle().await
    }
}

/// Makes sure that types of relations can be looked for.
pub(super) fn check_types(types: &[String]) -> Result<()> {
    if types.len() > MOST_TYPES {
        return Err(Error::invalid_param(format!(
            "At most {MOST_TYPES} types of relations can be named"
        )));
    }
    Ok(())
}

fn related(view: &View, target: EventNid, types: &[String]) -> Result<Vec<EventNid>> {
    let mut related = Vec::new();
    if types.iter().any(|kind| kind == ALL) {
        for row in RELATIONS.scan(view, &(target,)).take(MOST_EVENTS) {
            related.push(row?.1.event);
        }
        return Ok(related);
    }
    for kind in types {
        let left = MOST_EVENTS - related.len();
        for row in RELATIONS.scan(view, &(target, kind.as_str())).take(left) {
            related.push(row?.1.event);
        }
    }
    related.sort();
    related.dedup();
    Ok(related)
}
