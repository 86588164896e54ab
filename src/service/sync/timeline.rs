//! The timeline of one room in a sync: the newest events since the client's token, and how they are shown.

use std::{ops::Bound, sync::Arc};

use ruma::events::TimelineEventType;

use super::{Sync, v3::RoomPart};
use crate::{
    error::{Error, Result},
    protocol::{
        filter::{EventFormat, RoomEventFilter},
        format::{self, Shape},
        ids::EventNid,
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
    /// The place before the first event.
    pub(super) before: i64,
    /// Whether what the room is called by, or who is in it, changed.
    pub(super) summary_changed: bool,
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
        let mut window = Window {
            shown: Vec::new(),
            unshown_state: Vec::new(),
            limited: false,
            before: upto,
            summary_changed: false,
        };
        if part.known.is_some() && part.head.last.0 <= part.asking.since.map_or(0, |since| since.0)
        {
            return Ok(window);
        }
        let lower = part.known.map_or(Bound::Unbounded, |known| {
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
        window.limited |= part.known.is_none() && part.asking.since.is_some();
        if window.limited {
            // Whose changes lie in the gap is not worth finding out.
            window.summary_changed = true;
        }
        window.shown.reverse();
        Ok(window)
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
                .show_state(out, events.iter().map(|stored| &**stored), Shape::Sync);
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
                self.sight.show_state(&mut event, [&**stored], Shape::Sync);
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
