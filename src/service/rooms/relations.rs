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

/// The most relations that are looked at, so that a made-up web of them costs no more than a busy thread.
const MAX_GATHERED: usize = 20_000;

/// The most ways in which events relate to one that are told apart when none is named.
const MAX_KINDS: usize = 100;

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
        let (seen, next) = sight.related(parent.stored.nid, kind, page)?;

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

/// An event that relates to another one, by its place in the timeline.
type Related = (i64, RelationRow);

/// The places of a page: behind the one, up to the other.
type Span = (Bound<i64>, Bound<i64>);

impl Sight<'_> {
    /// What relates to an event, also by way of others, within a span. All of it is read, as what is about a reply lies
    /// nowhere near what is about another.
    fn gather(
        &self,
        parent: EventNid,
        kind: &Kind,
        span: Span,
    ) -> Result<impl DoubleEndedIterator<Item = Result<Related>> + use<>> {
        let depth = if kind.recurse { MAX_DEPTH } else { 1 };
        let mut found = BTreeMap::new();
        // An event relates to one event at most, so none is found twice.
        let (mut parents, mut gathered) = (vec![parent], 0);
        for _ in 0..depth {
            for parent in std::mem::take(&mut parents) {
                let rows = RELATIONS.scan(self.view, &(parent,));
                for row in rows.take(MAX_GATHERED - gathered) {
                    let ((_, rel_type, order), row) = row?;
                    gathered += 1;
                    // An event of another kind may lead to one of the kind.
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
        let found = found.range(span).map(|(order, row)| Ok((*order, *row)));
        Ok(found.collect::<Vec<_>>().into_iter())
    }

    /// What relates to an event itself in these ways, within a span and in a direction; it is read as it is asked for.
    fn directly(
        &self,
        parent: EventNid,
        kinds: Vec<String>,
        (after, until): Span,
        dir: Direction,
    ) -> impl Iterator<Item = Result<Related>> {
        let mut lists = Vec::new();
        for kind in kinds {
            let key = |order| (parent, kind.as_str(), order);
            let bounds = (after.map(key), until.map(key));
            let prefix = (parent, kind.as_str());
            let rows = match dir {
                Direction::Backward => RELATIONS.range_back(self.view, &prefix, bounds),
                Direction::Forward => RELATIONS.range(self.view, &prefix, bounds),
            };
            lists.push(rows.peekable());
        }
        std::iter::from_fn(move || {
            // Each kind is in order by itself.
            let next = lists.iter_mut().filter_map(|rows| {
                let rank = match rows.peek()? {
                    // What can not be read must not be passed over.
                    Err(_) => i64::MIN,
                    Ok(((_, _, order), _)) if dir == Direction::Backward => !order,
                    Ok(((_, _, order), _)) => *order,
                };
                Some((rank, rows))
            });
            let (_, rows) = next.min_by_key(|(rank, _)| *rank)?;
            let row = rows.next()?;
            Some(
                row.map(|((_, _, order), row)| (order, row))
                    .map_err(Into::into),
            )
        })
    }

    /// In which of the ways that are asked for something relates to an event; none if they are too many.
    fn kinds_of(&self, parent: EventNid, asked: &Kind) -> Result<Option<Vec<String>>> {
        if let Some(kind) = &asked.rel_type {
            return Ok(Some(vec![kind.clone()]));
        }
        let mut kinds: Vec<String> = Vec::new();
        while kinds.len() < MAX_KINDS {
            let from = match kinds.last() {
                Some(kind) => Bound::Excluded((parent, kind.as_str(), i64::MAX)),
                None => Bound::Unbounded,
            };
            let mut rows = RELATIONS.range(self.view, &(parent,), (from, Bound::Unbounded));
            let Some(row) = rows.next() else {
                return Ok(Some(kinds));
            };
            kinds.push(row?.0.1);
        }
        Ok(None)
    }

    /// The visible ones among what relates to an event, and where to go on if there are more.
    fn related(
        &self,
        parent: EventNid,
        kind: &Kind,
        page: Page,
    ) -> Result<(Vec<Seen>, Option<PageToken>)> {
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
        let span = (excluded(after), included(until));
        if !kind.recurse
            && let Some(kinds) = self.kinds_of(parent, kind)?
        {
            let found = self.directly(parent, kinds, span, page.dir);
            return self.page_of(found.take(MAX_GATHERED), kind, page);
        }
        let found = self.gather(parent, kind, span)?;
        match page.dir {
            Direction::Backward => self.page_of(found.rev(), kind, page),
            Direction::Forward => self.page_of(found, kind, page),
        }
    }

    fn page_of(
        &self,
        found: impl Iterator<Item = Result<Related>>,
        kind: &Kind,
        page: Page,
    ) -> Result<(Vec<Seen>, Option<PageToken>)> {
        let limit = page.limit.clamp(1, MAX_PAGE);
        let (mut seen, mut last) = (Vec::new(), None);
        for related in found {
            let (order, row) = related?;
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
                    Direction::Forward => order,
                }));
            }
        }
        Ok((seen, None))
    }
}
