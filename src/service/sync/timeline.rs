//! The timeline of one room in a sync: the newest events since the client's token, and how they are shown.

use std::{collections::HashSet, ops::Bound, sync::Arc};

use ruma::events::{TimelineEventType, room::member::MembershipState};

use super::{Sync, v3::RoomPart};
use crate::{
    error::{Error, Result},
    protocol::{
        filter::{EventFormat, RoomEventFilter},
        format::{self, Shape},
        ids::{EventNid, StateKeyNid},
    },
    service::rooms::{Seen, Stored},
    store::{self, schema::TIMELINE},
};

/// How many events a client gets that does not say how many it wants, and how many at most.
const DEFAULT_LIMIT: usize = 10;
const MAX_LIMIT: usize = 200;

/// The most events that are looked at to find those that a filter wants.
const MAX_LOOKED_AT: usize = 1000;

/// The events of a timeline, oldest first.
pub(super) struct Window {
    pub(super) shown: Vec<Seen>,
    /// State events of the window that the client's filter kept out of it.
    pub(super) unshown_state: Vec<Arc<Stored>>,
    /// Whether the timeline does not go on where the client's ends: there are older events that it has not seen, or may
    /// not have.
    pub(super) limited: bool,
    /// Whether the room's history was split: its state has changed by more than what the timeline tells.
    pub(super) split: bool,
    /// The place before the first event.
    pub(super) before: i64,
    /// Whether what the room is called by, or who is in it, changed.
    pub(super) summary_changed: bool,
    /// What is set by state events of the window that another branch of the room has undone.
    pub(super) undone: Vec<StateKeyNid>,
}

impl Window {
    /// None of the events before this place.
    pub(super) const fn empty(before: i64) -> Self {
        Self {
            shown: Vec::new(),
            unshown_state: Vec::new(),
            limited: false,
            split: false,
            before,
            summary_changed: false,
            undone: Vec::new(),
        }
    }
}

impl Sync {
    /// The newest events up to the place `upto` that the client does not know.
    pub(super) fn window(&self, part: &RoomPart<'_>, upto: i64) -> Result<Window> {
        let filter = &part.asking.request.filter.room.timeline;
        let asked = filter
            .event
            .limit
            .and_then(|limit| usize::try_from(limit).ok());
        let limit = asked.unwrap_or(DEFAULT_LIMIT).min(MAX_LIMIT);
        let mut window = Window::empty(upto);
        let newest = i64::try_from(part.head.last.0).unwrap_or(i64::MAX);
        if part.known.is_some_and(|known| newest <= known) {
            return Ok(window);
        }
        // What lies beyond a gap does not come right before what lies above it.
        let gap = part.head.gap.filter(|gap| *gap < upto);
        let gap = gap.filter(|gap| part.known.is_none_or(|known| known < *gap));
        let lower = gap.or(part.known).map_or(Bound::Unbounded, |known| {
            Bound::Excluded((part.room, known))
        });
        let bounds = (lower, Bound::Included((part.room, upto)));
        let mut rows = TIMELINE.range_back(part.asking.view, &(part.room,), bounds);
        let mut looked_at = 0;
        let mut batch = limit + 1;
        loop {
            let rows: Vec<_> = rows.by_ref().take(batch).collect::<store::Result<_>>()?;
            if rows.is_empty() {
                break;
            }
            let nids: Vec<EventNid> = rows.iter().map(|(_, (nid,))| *nid).collect();
            let events = self.rooms.events(part.asking.view, &nids)?;
            for (((_, order), _), stored) in rows.iter().zip(events) {
                if looked_at == MAX_LOOKED_AT {
                    window.limited = true;
                    break;
                }
                looked_at += 1;
                window.split |= stored.facts.current.is_some();
                let Some(seen) = part.look_at(filter, stored, &mut window)? else {
                    continue;
                };
                // Only what the client would have got makes a gap.
                if window.shown.len() == limit {
                    window.limited = true;
                    break;
                }
                window.before = *order - 1;
                window.shown.push(seen);
            }
            if window.limited {
                break;
            }
            batch = MAX_LIMIT;
        }
        // Who comes into a room goes through it from its end, whatever the client has kept of an earlier stay: it must
        // not take this timeline for the continuation of that one.
        window.limited |= gap.is_some() || (part.known.is_none() && part.asking.since.is_some());
        window.shown.reverse();
        if window.split {
            self.find_what_was_undone(part, &mut window, upto)?;
        }
        if window.limited || window.split {
            // Whose changes lie in the gap is not worth finding out.
            window.summary_changed = true;
        }
        Ok(window)
    }
}

impl Sync {
    /// Notes what holds instead of state events that another branch of the room has undone.
    ///
    /// A client takes the state from the timeline as it comes, and would stay with what does not hold. In a room that the
    /// user is in, the next sync puts it right. Where there is nothing to put in its place, or no next time, or where the
    /// client would think that its user has gone, the timeline begins after the event: the client is told of a gap, in
    /// which it finds the event as a thing of the past.
    fn find_what_was_undone(
        &self,
        part: &RoomPart<'_>,
        window: &mut Window,
        upto: i64,
    ) -> Result<()> {
        if part.asking.request.state_after.is_some() {
            return Ok(());
        }
        let is_in = part.member.membership == MembershipState::Join;
        let user = part.asking.requester.user_id.as_str();
        let end = self.store.state(self.snapshot_at(part, upto)?)?;
        let mut settled = HashSet::new();
        let mut cut = None;
        for (index, seen) in window.shown.iter().enumerate().rev() {
            let header = &seen.stored.event.header;
            let Some(state_key) = &header.state_key else {
                continue;
            };
            let kind = header.event_type.to_string();
            let Some(key) = self.store.find_state_key(&kind, state_key)? else {
                continue;
            };
            // What a later event of the timeline has replaced does no harm.
            if !settled.insert(key) {
                continue;
            }
            let is_own = header.membership.is_some() && state_key == user;
            match end.get(&key) {
                Some(holds) if *holds == seen.stored.nid => {}
                Some(_) if is_in && !is_own => window.undone.push(key),
                _ => {
                    cut = Some((index, seen.stored.facts.order));
                    break;
                }
            }
        }
        if let Some((index, order)) = cut {
            window.shown.drain(..=index);
            window.limited = true;
            window.before = order.unwrap_or(window.before);
        }
        Ok(())
    }

    /// What the last answer owes of a room: what its timeline set and what did not hold.
    pub(super) fn owed(&self, part: &RoomPart<'_>) -> Result<Vec<StateKeyNid>> {
        let (Some(from), Some(since)) = (part.asking.request.unsettled(), part.asking.since) else {
            return Ok(Vec::new());
        };
        if part.head.straight_from <= from.live_order() || part.known.is_none() {
            return Ok(Vec::new());
        }
        let mut past = self.part(part.asking, part.room, part.member, None)?;
        // That answer knew nothing of a room that the user came into since the one before it, nor did the first of all.
        let knew = from.0 > 0 && part.member.since <= from;
        past.known = knew.then_some(from.live_order());
        Ok(self.window(&past, since.live_order())?.undone)
    }
}

impl RoomPart<'_> {
    /// The event, if the client may and wants to see it.
    fn look_at(
        &self,
        filter: &RoomEventFilter,
        stored: Arc<Stored>,
        window: &mut Window,
    ) -> Result<Option<Seen>> {
        let Some(membership) = self.sight.sees(&stored)? else {
            return Ok(None);
        };
        let header = &stored.event.header;
        window.summary_changed |= matches!(
            header.event_type,
            TimelineEventType::RoomMember
                | TimelineEventType::RoomName
                | TimelineEventType::RoomCanonicalAlias
        );
        if self.sight.passes(&stored, filter)? {
            return Ok(Some(Seen { stored, membership }));
        }
        if stored.event.is_state() {
            window.unshown_state.push(stored);
        }
        Ok(None)
    }

    /// Appends events as the members of a JSON array.
    pub(super) fn write_events(&self, events: &[Seen], out: &mut String) -> Result<()> {
        let filter = &self.asking.request.filter;
        if filter.event_fields.is_all() && filter.event_format == EventFormat::Client {
            return self.sight.show_all(out, events, Shape::Sync);
        }
        for (index, seen) in events.iter().enumerate() {
            if index > 0 {
                out.push(',');
            }
            let mut event = String::new();
            if filter.event_format == EventFormat::Federation {
                event = format::federation(&seen.stored.event);
            } else {
                self.sight.show(&mut event, seen, Shape::Sync)?;
            }
            out.push_str(&self.projected(event)?);
        }
        Ok(())
    }

    /// Appends state events as the members of a JSON array.
    pub(super) fn write_state(&self, events: &[Arc<Stored>], out: &mut String) -> Result<()> {
        let filter = &self.asking.request.filter;
        if filter.event_fields.is_all() && filter.event_format == EventFormat::Client {
            self.sight
                .show_state(out, events.iter().map(|stored| &**stored), Shape::Sync)?;
            return Ok(());
        }
        for (index, stored) in events.iter().enumerate() {
            if index > 0 {
                out.push(',');
            }
            let mut event = String::new();
            if filter.event_format == EventFormat::Federation {
                event = format::federation(&stored.event);
            } else {
                self.sight
                    .show_state(&mut event, [&**stored], Shape::Sync)?;
            }
            out.push_str(&self.projected(event)?);
        }
        Ok(())
    }

    fn projected(&self, event: String) -> Result<String> {
        let fields = &self.asking.request.filter.event_fields;
        fields
            .apply(event)
            .map_err(|e| Error::Internal(format!("an event is no JSON: {e}")))
    }
}
