//! The timeline as one user sees it: pages of it, what surrounds an event, and one event alone.
//!
//! See "Syncing" (`/messages`, `/context`, `/event`) in the client-server API.

use std::{
    collections::{BTreeSet, HashSet},
    ops::{Bound, RangeInclusive},
    sync::Arc,
};

use ruma::{EventId, RoomId, UserId, api::Direction, events::TimelineEventType};

use super::{Rooms, Seen, Sight, Stored, visibility::not_in_room};
use crate::{
    error::{Error, Result},
    protocol::{
        filter::RoomEventFilter,
        format::{self, Shape},
        ids::{EventNid, RoomNid, SnapshotId, UserNid},
        searchable::has_url,
        token::PageToken,
    },
    service::Requester,
    store::{
        self, StateMap, View,
        schema::{RELATIONS, RELATIONS_BY, TIMELINE},
    },
};

/// The most events of an answer.
pub const MAX_PAGE: usize = 1000;

/// The most events that are looked at for one answer. A filter that lets few pass gives short pages instead of long
/// waits.
const MAX_SCANNED: usize = 2000;

/// The most pairs of a sender and a kind of relation that are looked for one by one.
const MAX_PAIRS: usize = 256;

/// The most relations of one event that are looked at for a filter that names more.
const MAX_RELATED: usize = 10_000;

/// The fewest events that are read at once.
const MIN_READ: usize = 16;

/// Which part of a timeline is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    /// Where to begin; where the timeline ends or begins if nothing is said.
    pub from: Option<PageToken>,
    /// Where to stop.
    pub to: Option<PageToken>,
    /// Which way to go.
    pub dir: Direction,
    /// The most events to give.
    pub limit: usize,
}

/// Events of a page, in the direction in which it was read.
#[derive(Debug)]
pub struct Slice {
    /// The events.
    pub events: Vec<Seen>,
    /// Where to go on.
    pub end: PageToken,
    /// Whether nothing lies behind `end` before the place where to stop.
    pub exhausted: bool,
}

impl Rooms {
    /// What a user sees of the room with this id.
    ///
    /// # Errors
    /// 403 when there is no such room, the same as for a room that the user is not in.
    pub fn sight_of<'r>(
        &'r self,
        view: &'r View,
        room: &RoomId,
        asker: &'r Requester,
    ) -> Result<Sight<'r>> {
        let room = self.store.find_room(room)?.ok_or_else(not_in_room)?;
        self.sight(view, room, asker)
    }

    /// A page of the timeline, as the answer of `/messages`.
    ///
    /// # Errors
    /// 403 when the user was never in the room and it is not open to everybody.
    pub fn messages(
        &self,
        asker: &Requester,
        room: &RoomId,
        page: Page,
        filter: &RoomEventFilter,
    ) -> Result<String> {
        let view = self.store.view();
        let sight = self.sight_of(&view, room, asker)?;
        sight.reach()?;
        let slice = sight.slice(page, filter)?;
        let mut out = String::with_capacity(slice.events.len() * 900 + 200);
        out.push_str("{\"chunk\":[");
        sight.show_all(&mut out, &slice.events, Shape::Client)?;
        out.push_str("],\"start\":");
        format::push_string(&mut out, &sight.start(page).to_string());
        // Forward, more may come any time; a client that has got nothing knows that it is at the end.
        let is_last = match page.dir {
            Direction::Backward => slice.exhausted,
            Direction::Forward => slice.exhausted && slice.events.is_empty(),
        };
        if !is_last {
            out.push_str(",\"end\":");
            format::push_string(&mut out, &slice.end.to_string());
        }
        if filter.lazy_load_members
            && let Some(first) = slice.events.first()
        {
            let state = self.store.state(first.stored.after())?;
            let members = sight.senders_in(&state, &slice.events)?;
            out.push_str(",\"state\":[");
            sight.show_state(
                &mut out,
                members.iter().map(|stored| &**stored),
                Shape::Client,
            )?;
            out.push(']');
        }
        out.push('}');
        Ok(out)
    }

    /// One event, as the answer of `/event`.
    ///
    /// # Errors
    /// 404 when it is not in this room, or not for this user to see.
    pub fn single_event(&self, asker: &Requester, room: &RoomId, id: &EventId) -> Result<String> {
        let missing = || Error::not_found("The event");
        let view = self.store.view();
        let nid = self.store.find_room(room)?.ok_or_else(missing)?;
        let sight = self.sight(&view, nid, asker)?;
        let seen = sight.find(room, id)?.ok_or_else(missing)?;
        let mut out = String::new();
        sight.show(&mut out, &seen, Shape::Client)?;
        Ok(out)
    }

    /// An event with what surrounds it, as the answer of `/context`.
    ///
    /// # Errors
    /// 403 when the user may not see the room, 404 when they may but not the event.
    pub fn context(
        &self,
        asker: &Requester,
        room: &RoomId,
        id: &EventId,
        limit: usize,
        filter: &RoomEventFilter,
    ) -> Result<String> {
        let view = self.store.view();
        let sight = self.sight_of(&view, room, asker)?;
        let Some(seen) = sight.find(room, id)? else {
            sight.reach()?;
            return Err(Error::not_found("The event"));
        };
        let limit = limit.min(MAX_PAGE);
        let limits = (limit / 2, limit - limit / 2);
        let Surroundings { before, after } = sight.around(&seen, limits, filter)?;
        let last = after.events.last().unwrap_or(&seen).stored.after();

        let mut out = String::from("{\"event\":");
        sight.show(&mut out, &seen, Shape::Client)?;
        out.push(',');
        sight.show_surroundings(&mut out, &before, &after)?;
        let all: Vec<_> = before
            .events
            .into_iter()
            .chain([seen])
            .chain(after.events)
            .collect();
        let state = sight.state_around(last, &all, filter)?;
        out.push_str(",\"state\":[");
        sight.show_state(
            &mut out,
            state.iter().map(|stored| &**stored),
            Shape::Client,
        )?;
        out.push_str("]}");
        Ok(out)
    }
}

/// What surrounds an event.
#[derive(Debug)]
pub struct Surroundings {
    /// What came before it, the nearest first.
    pub before: Slice,
    /// What came after it.
    pub after: Slice,
}

impl Sight<'_> {
    /// At most so many events before and after one.
    pub fn around(
        &self,
        seen: &Seen,
        limits: (usize, usize),
        filter: &RoomEventFilter,
    ) -> Result<Surroundings> {
        let order = seen.stored.facts.order.unwrap_or_default();
        let page = |dir, from, limit| Page {
            from: Some(PageToken(from)),
            to: None,
            dir,
            limit,
        };
        Ok(Surroundings {
            before: self.slice(page(Direction::Backward, order - 1, limits.0), filter)?,
            after: self.slice(page(Direction::Forward, order, limits.1), filter)?,
        })
    }

    /// Appends what surrounds an event, and the tokens to go on in both directions, as members of a JSON object.
    pub fn show_surroundings(&self, out: &mut String, before: &Slice, after: &Slice) -> Result<()> {
        for (name, slice) in [("events_before", before), ("events_after", after)] {
            out.push('"');
            out.push_str(name);
            out.push_str("\":[");
            self.show_all(out, &slice.events, Shape::Client)?;
            out.push_str("],");
        }
        for (name, token) in [("start", before.end), ("end", after.end)] {
            out.push_str(if name == "end" { ",\"" } else { "\"" });
            out.push_str(name);
            out.push_str("\":");
            format::push_string(out, &token.to_string());
        }
        Ok(())
    }

    /// The event with this id, if it is in this room and the asker may see it.
    pub fn find(&self, room: &RoomId, id: &EventId) -> Result<Option<Seen>> {
        let found = self.rooms.find_event(self.view, id)?;
        let Some(stored) = found.filter(|stored| stored.event.header.room_id == room) else {
            return Ok(None);
        };
        let membership = self.sees(&stored)?;
        Ok(membership.map(|membership| Seen { stored, membership }))
    }

    /// Reads a page of what the asker may see.
    pub fn slice(&self, page: Page, filter: &RoomEventFilter) -> Result<Slice> {
        let limit = page.limit.min(MAX_PAGE);
        let whole = self.span(page);
        let bound = self.bound(&whole, page.dir)?;
        let is_bounded = bound.is_some();
        let mut span = bound.clone().unwrap_or(whole);
        let mut events: Vec<Seen> = Vec::new();
        let mut scanned = 0;
        let exhausted = 'reading: loop {
            if span.is_empty() {
                break true;
            }
            // One more than wanted tells whether there is more.
            let wanted = (limit - events.len() + 1).max(MIN_READ);
            let read = self.read(&span, page.dir, wanted)?;
            let reached_end = read.len() < wanted;
            scanned += read.len();
            for stored in read {
                if events.len() == limit {
                    break 'reading false;
                }
                let order = stored.facts.order.unwrap_or_default();
                span = behind(span, page.dir, order);
                if !self.passes(&stored, filter)? {
                    continue;
                }
                match self.sees(&stored)? {
                    Some(membership) => events.push(Seen { stored, membership }),
                    None if page.dir == Direction::Backward => {
                        if let Some(since) = self.hidden_since(&stored)?
                            && since < order
                        {
                            span = *span.start()..=since;
                            continue 'reading;
                        }
                    }
                    None => {}
                }
            }
            if reached_end {
                break true;
            }
            if scanned >= MAX_SCANNED {
                break false;
            }
        };
        let end = match (page.dir, bound) {
            // The next page begins at the gap, and not somewhere above it where nothing is.
            (Direction::Backward, Some(bound)) if exhausted => bound.start().saturating_sub(1),
            (Direction::Forward, Some(bound)) if exhausted => *bound.end(),
            (Direction::Backward, _) => *span.end(),
            (Direction::Forward, _) => span.start().saturating_sub(1),
        };
        Ok(Slice {
            events,
            end: PageToken(end),
            exhausted: exhausted && !is_bounded,
        })
    }

    /// Where a page begins.
    fn start(&self, page: Page) -> PageToken {
        page.from.unwrap_or(match page.dir {
            Direction::Backward => self.now(),
            Direction::Forward => PageToken(i64::MIN),
        })
    }

    /// The gap behind all that there is now.
    fn now(&self) -> PageToken {
        PageToken(self.view.position().live_order())
    }

    /// The orders that a page covers. A token is the gap behind the event with its order.
    fn span(&self, page: Page) -> RangeInclusive<i64> {
        let PageToken(from) = self.start(page);
        let to = page.to.map(|PageToken(to)| to);
        let (low, high) = match page.dir {
            Direction::Backward => (to.map_or(i64::MIN, |to| to.saturating_add(1)), from),
            Direction::Forward => (from.saturating_add(1), to.unwrap_or(i64::MAX)),
        };
        low..=high.min(self.now().0)
    }

    /// What of a page lies before the next gap, if there is one. A page that begins at a gap goes on beyond it.
    fn bound(
        &self,
        span: &RangeInclusive<i64>,
        dir: Direction,
    ) -> Result<Option<RangeInclusive<i64>>> {
        let (low, high) = (*span.start(), *span.end());
        let mut bound = None;
        for gap in self.rooms.gaps(self.view, self.room)? {
            let (next, floor) = (gap.row.next, gap.row.floor);
            match dir {
                // The newest of them comes last.
                Direction::Backward => {
                    let is_inside = low <= next && next < high;
                    if is_inside && first_back(self.view, self.room, next, high)?.is_some() {
                        bound = Some(next.saturating_add(1)..=high);
                    }
                }
                Direction::Forward => {
                    if bound.is_none() && low <= floor && floor < high {
                        bound = Some(low..=floor);
                    }
                }
            }
        }
        Ok(bound)
    }

    /// The next events of the timeline, whoever may see them.
    fn read(
        &self,
        span: &RangeInclusive<i64>,
        dir: Direction,
        count: usize,
    ) -> Result<Vec<Arc<Stored>>> {
        let bounds = (
            Bound::Included((self.room, *span.start())),
            Bound::Included((self.room, *span.end())),
        );
        let rows = match dir {
            Direction::Backward => TIMELINE.range_back(self.view, &(self.room,), bounds),
            Direction::Forward => TIMELINE.range(self.view, &(self.room,), bounds),
        };
        let nids: Vec<_> = rows
            .take(count)
            .map(|row| row.map(|(_, (nid,))| nid))
            .collect::<store::Result<_>>()?;
        self.rooms.events(self.view, &nids)
    }

    /// Whether a filter lets an event pass.
    pub fn passes(&self, stored: &Stored, filter: &RoomEventFilter) -> Result<bool> {
        if filter.allows_all() {
            return Ok(true);
        }
        if !filter.allows_event(&stored.event.header, || has_url(&stored.event)) {
            return Ok(false);
        }
        if !filter.asks_for_relations() {
            return Ok(true);
        }
        self.is_related_as(stored.nid, filter)
    }

    /// Whether something relates to an event in the way that a filter asks for.
    fn is_related_as(&self, parent: EventNid, filter: &RoomEventFilter) -> Result<bool> {
        let (senders, kinds) = (&filter.related_by_senders, &filter.related_by_rel_types);
        let count = |named: Option<usize>| named.unwrap_or(1);
        let pairs = count(senders.as_ref().map(HashSet::len))
            .saturating_mul(count(kinds.as_ref().map(HashSet::len)));
        if pairs > MAX_PAIRS {
            return self.is_related_as_one_of_many(parent, filter);
        }
        let kinds: Vec<Option<&str>> = match kinds {
            Some(kinds) => kinds.iter().map(|kind| Some(kind.as_str())).collect(),
            None => vec![None],
        };
        let mut users = vec![None];
        if let Some(senders) = senders {
            users.clear();
            for sender in senders {
                users.extend(self.rooms.store.find_user(sender)?.map(Some));
            }
        }
        for user in &users {
            for kind in &kinds {
                if self.is_related(parent, *user, *kind)? {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Whether anything relates to an event, by this user and in this way if these are named.
    fn is_related(
        &self,
        parent: EventNid,
        user: Option<UserNid>,
        kind: Option<&str>,
    ) -> Result<bool> {
        let (any, by) = (&RELATIONS, &RELATIONS_BY);
        let found = match (user, kind) {
            (None, None) => any.last(self.view, &(parent,))?.is_some(),
            (None, Some(kind)) => any.last(self.view, &(parent, kind))?.is_some(),
            (Some(user), None) => by.last(self.view, &(parent, user))?.is_some(),
            (Some(user), Some(kind)) => by.last(self.view, &(parent, user, kind))?.is_some(),
        };
        Ok(found)
    }

    /// The same for a filter that names more than can be looked for one by one.
    fn is_related_as_one_of_many(
        &self,
        parent: EventNid,
        filter: &RoomEventFilter,
    ) -> Result<bool> {
        for row in RELATIONS.scan(self.view, &(parent,)).take(MAX_RELATED) {
            let ((_, kind, _), row) = row?;
            let sender = self.rooms.store.user_id(row.sender)?;
            if filter.allows_related_by([(&**sender, kind.as_str())].into_iter()) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The member events of those who have sent these events.
    pub fn senders_in(&self, state: &StateMap, events: &[Seen]) -> Result<Vec<Arc<Stored>>> {
        let senders: BTreeSet<&UserId> = events
            .iter()
            .map(|seen| &*seen.stored.event.header.sender)
            .collect();
        let mut nids = Vec::with_capacity(senders.len());
        for sender in senders {
            let key = self
                .rooms
                .store
                .find_state_key("m.room.member", sender.as_str())?;
            nids.extend(key.and_then(|key| state.get(&key).copied()));
        }
        self.rooms.events(self.view, &nids)
    }

    /// The state at the end of some events, as far as the filter wants it.
    fn state_around(
        &self,
        at: SnapshotId,
        events: &[Seen],
        filter: &RoomEventFilter,
    ) -> Result<Vec<Arc<Stored>>> {
        let state = self.rooms.store.state(at)?;
        let nids: Vec<_> = state.values().copied().collect();
        let mut all = self.rooms.events(self.view, &nids)?;
        if filter.lazy_load_members {
            all.retain(|stored| stored.event.header.event_type != TimelineEventType::RoomMember);
            all.extend(self.senders_in(&state, events)?);
        }
        all.retain(|stored| filter.allows_event(&stored.event.header, || has_url(&stored.event)));
        Ok(all)
    }
}

/// The place of the newest event above `low`, up to and including `high`.
pub(super) fn first_back(view: &View, room: RoomNid, low: i64, high: i64) -> Result<Option<i64>> {
    if low >= high {
        return Ok(None);
    }
    let bounds = (Bound::Excluded((room, low)), Bound::Included((room, high)));
    let mut rows = TIMELINE.range_back(view, &(room,), bounds);
    Ok(rows.next().transpose()?.map(|((_, order), _)| order))
}

/// What is left of a span behind the event with this order.
fn behind(span: RangeInclusive<i64>, dir: Direction, order: i64) -> RangeInclusive<i64> {
    match dir {
        Direction::Backward => *span.start()..=order.saturating_sub(1),
        Direction::Forward => order.saturating_add(1)..=*span.end(),
    }
}

#[cfg(test)]
mod tests;
