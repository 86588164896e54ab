//! The events that relate to an event, directly or by way of others.
//!
//! See "Relationships API" in the client-server API.

use std::{collections::BTreeMap, fmt::Write as _, ops::Bound};

use ruma::{EventId, RoomId, api::Direction, events::TimelineEventType};

use super::{MAX_PAGE, Page, Rooms, Seen, Sight, Stored};
use crate::{
    error::{Error, Result},
    protocol::{
        format::{self, Shape},
        ids::EventNid,
        token::PageToken,
    },
    service::Requester,
    store::{
        View,
        schema::{RELATIONS, RelationRow},
    },
};

/// How many relations lie at most between an event and what is found for it.
const MAX_DEPTH: usize = 3;

/// The most relations that are gathered, so that a made-up web of them costs no more than a busy thread.
const MAX_GATHERED: usize = 20_000;

/// Which related events are asked for.
#[derive(Clone, Debug, Default)]
pub struct Kind {
    /// How they relate.
    pub rel_type: Option<String>,
    /// What they are.
    pub event_type: Option<TimelineEventType>,
    /// Whether also by way of others.
    pub recurse: bool,
}

impl Rooms {
    /// Whether an event relates to another one of its room, directly or by way of others.
    ///
    /// # Errors
    /// When the store fails.
    pub fn leads_to(&self, view: &View, from: &Stored, to: &EventId) -> Result<bool> {
        let header = &from.event.header;
        let mut relation = header.relation.clone();
        for _ in 0..MAX_DEPTH {
            let Some(up) = &relation else { break };
            let Some(next) = self.find_event(view, &up.event_id)? else {
                break;
            };
            if next.event.header.room_id != header.room_id {
                break;
            }
            if up.event_id == to {
                return Ok(true);
            }
            relation.clone_from(&next.event.header.relation);
        }
        Ok(false)
    }

    /// The events that relate to `parent`, as the answer of `/relations`.
    ///
    /// # Errors
    /// 403 when the user may not see the room, 404 when they may but not the event.
    pub fn relations(
        &self,
        asker: &Requester,
        room: &RoomId,
        parent: &EventId,
        kind: &Kind,
        page: Page,
    ) -> Result<String> {
        let view = self.store.view();
        let sight = self.sight_of(&view, room, asker)?;
        let Some(parent) = sight.find(room, parent)? else {
            sight.reach()?;
            return Err(Error::not_found("The event"));
        };
        let found = sight.gather(parent.stored.nid, kind)?;
        let (seen, next) = sight.page_of(found, kind, page)?;

        let mut out = String::from("{\"chunk\":[");
        sight.show_all(&mut out, &seen, Shape::Client)?;
        out.push(']');
        for (name, token) in [("next_batch", next), ("prev_batch", page.from)] {
            if let Some(token) = token {
                out.push_str(",\"");
                out.push_str(name);
                out.push_str("\":");
                format::push_string(&mut out, &token.to_string());
            }
        }
        if kind.recurse {
            let _ = write!(out, ",\"recursion_depth\":{MAX_DEPTH}");
        }
        out.push('}');
        Ok(out)
    }
}

/// Related events by their place in the timeline.
type Found = BTreeMap<i64, RelationRow>;

impl Sight<'_> {
    fn gather(&self, parent: EventNid, kind: &Kind) -> Result<Found> {
        let mut found = Found::new();
        let depth = if kind.recurse { MAX_DEPTH } else { 1 };
        // An event relates to one event at most, so none is found twice.
        let (mut parents, mut gathered) = (vec![parent], 0);
        for _ in 0..depth {
            for parent in std::mem::take(&mut parents) {
                // With recursion, an event of another kind may lead to one of the kind.
                let rows = match &kind.rel_type {
                    Some(rel_type) if !kind.recurse => {
                        RELATIONS.scan(self.view, &(parent, rel_type.as_str()))
                    }
                    _ => RELATIONS.scan(self.view, &(parent,)),
                };
                for row in rows.take(MAX_GATHERED - gathered) {
                    let ((_, rel_type, order), row) = row?;
                    gathered += 1;
                    parents.push(row.event);
                    if kind
                        .rel_type
                        .as_ref()
                        .is_none_or(|wanted| *wanted == rel_type)
                    {
                        found.insert(order, row);
                    }
                }
            }
        }
        Ok(found)
    }

    /// The visible ones among them, and where to go on if there are more.
    fn page_of(
        &self,
        found: Found,
        kind: &Kind,
        page: Page,
    ) -> Result<(Vec<Seen>, Option<PageToken>)> {
        let limit = page.limit.clamp(1, MAX_PAGE);
        let (from, to) = (
            page.from.map(|PageToken(order)| order),
            page.to.map(|PageToken(order)| order),
        );
        let excluded = |order: Option<i64>| order.map_or(Bound::Unbounded, Bound::Excluded);
        let included = |order: Option<i64>| order.map_or(Bound::Unbounded, Bound::Included);
        let (after, until) = match page.dir {
            Direction::Backward => (to, from),
            Direction::Forward => (from, to),
        };
        // An empty range is no range for a map.
        if matches!((after, until), (Some(after), Some(until)) if after >= until) {
            return Ok((Vec::new(), None));
        }
        let range = found.range((excluded(after), included(until)));
        let range: Box<dyn Iterator<Item = (&i64, &RelationRow)>> = match page.dir {
            Direction::Backward => Box::new(range.rev()),
            Direction::Forward => Box::new(range),
        };
        let (mut seen, mut last) = (Vec::new(), None);
        for (order, row) in range {
            if seen.len() == limit {
                return Ok((seen, last));
            }
            let stored = self.rooms.event(self.view, row.event)?;
            let header = &stored.event.header;
            if kind
                .event_type
                .as_ref()
                .is_some_and(|wanted| *wanted != header.event_type)
            {
                continue;
            }
            if let Some(membership) = self.sees(&stored)? {
                seen.push(Seen { stored, membership });
                last = Some(PageToken(match page.dir {
                    Direction::Backward => order.saturating_sub(1),
                    Direction::Forward => *order,
                }));
            }
        }
        Ok((seen, None))
    }
}
