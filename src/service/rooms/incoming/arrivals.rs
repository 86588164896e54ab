//! What had to wait for an event: redactions of it, events that relate to it, events that follow it.

use ruma::state_res::Event as _;

use crate::{
    error::Result,
    protocol::{event::Event, ids::EventNid},
    service::rooms::{RoomHead, Rooms, aggregations::Tie, read},
    store::{
        View,
        schema::{RelationRow, WAITING},
    },
};

/// The most events that can wait for one; any server can make up events that refer to one that never was.
const MAX_WAITING: usize = 1000;

/// What waited for an event.
#[derive(Default)]
pub(in crate::service::rooms) struct Arrivals {
    /// Those who need wait no more.
    pub(in crate::service::rooms) done: Vec<EventNid>,
    /// The first redaction of it that may redact it, and what that leaves.
    pub(in crate::service::rooms) redaction: Option<(EventNid, Event)>,
    /// What relates to it, and where that stands.
    pub(in crate::service::rooms) relations: Vec<(Tie, i64, RelationRow)>,
    /// Whether an event that follows it is here, so that it is no end of the room.
    pub(in crate::service::rooms) is_followed: bool,
}

impl Arrivals {
    /// Leaves out what an event relates by that is redacted in the same commit.
    pub(in crate::service::rooms) fn without(&mut self, redacted: EventNid) {
        self.relations.retain(|(_, _, row)| row.event != redacted);
    }
}

impl Rooms {
    /// What has waited for an event that is about to be written.
    pub(in crate::service::rooms) fn arrivals(
        &self,
        view: &View,
        head: &RoomHead,
        event: &Event,
    ) -> Result<Arrivals> {
        let mut arrivals = Arrivals::default();
        let id = &event.header.id;
        for row in WAITING
            .scan(view, &(head.nid, id.as_str()))
            .take(MAX_WAITING)
        {
            let ((_, _, nid), ()) = row?;
            let stored = self.event(view, nid)?;
            let header = &stored.event.header;
            arrivals.done.push(nid);
            if stored.has_state() && stored.event.prev_events().any(|prev| prev == id) {
                // Who was rejected or has failed softly leaves the event an end of the room.
                arrivals.is_followed |= !header.flags.rejected && !header.flags.soft_failed;
            }
            if header.flags.rejected {
                continue;
            }
            if header.relation.as_ref().is_some_and(|r| r.event_id == *id)
                && let Some(order) = stored.facts.order
                && stored.facts.redacted_by.is_none()
                && let Some(tie) = Tie::of(&stored.event, event)
            {
                let sender = self.store.user_nid(&header.sender)?;
                let row = RelationRow { event: nid, sender };
                arrivals.relations.push((tie, order, row));
            }
            if header.redacts.as_ref() == Some(id)
                && !header.flags.soft_failed
                && arrivals.redaction.is_none()
            {
                let state = self.store.state(stored.facts.before)?;
                let power = self.power_levels(view, &state, head.rules)?;
                if power.redaction_applies(&header.sender, &event.header.sender) {
                    let emptied = read::emptied(event, head.rules)?;
                    arrivals.redaction = Some((nid, emptied));
                }
            }
        }
        Ok(arrivals)
    }
}
