//! The event of a room that was sent next to some time.
//!
//! The timeline is nearly in the order of time, as far as the clocks of servers agree, and no index of times is kept:
//! the place is found by halving, and some events around it are looked at, whichever time they say. See "Jumping to
//! dates" (`/timestamp_to_event`) in the client-server API.

use std::{ops::Bound, sync::Arc};

use ruma::{OwnedEventId, RoomId, api::Direction};

use super::{Guest, Rooms, Stored, visibility::not_in_room};
use crate::{
    error::Result,
    protocol::{ids::RoomNid, token::PageToken},
    service::Requester,
    store::{View, schema::TIMELINE},
};

/// How many events before and behind the place are looked at.
const AROUND: usize = 200;

/// The most events that are looked at when those around may not be seen.
const MAX_LOOKED_AT: usize = 2000;

/// What was sent next to a time.
#[derive(Clone, Debug)]
pub struct AtTime {
    /// The event and its time, in milliseconds since the epoch.
    pub found: Option<(OwnedEventId, u64)>,
    /// Events are missing here between this time and what is known next to it; a page that goes backwards from this
    /// place begins at the gap.
    pub gap: Option<PageToken>,
}

/// A time, and on which side of it the event is to be.
#[derive(Clone, Copy, Debug)]
pub struct When {
    /// Milliseconds since the epoch.
    pub ts: u64,
    /// After the time, or before.
    pub dir: Direction,
}

impl When {
    /// Whether an event of this time is on the right side.
    pub fn fits(self, ts: u64) -> bool {
        match self.dir {
            Direction::Forward => ts >= self.ts,
            Direction::Backward => ts <= self.ts,
        }
    }

    /// Whether an event of the time `one` is next to the time rather than one of the time `other`.
    pub fn is_nearer(self, one: u64, other: u64) -> bool {
        one.abs_diff(self.ts) < other.abs_diff(self.ts)
    }
}

fn time_of(stored: &Stored) -> u64 {
    stored.event.header.origin_server_ts.get().into()
}

impl Rooms {
    /// The event next to a time of those that a user may see.
    ///
    /// # Errors
    /// 403 for users who may not read the room now.
    pub fn seen_at(&self, asker: &Requester, room: &RoomId, when: When) -> Result<AtTime> {
        let view = self.store.view();
        let sight = self.sight_of(&view, room, asker)?;
        if !sight.is_joined() && !matches!(sight.reach()?, super::Reach::Now) {
            return Err(not_in_room());
        }
        let sees = |stored: &Stored| Ok(sight.sees(stored)?.is_some());
        self.at_time(&view, sight.room, when, &sees)
    }

    fn at_time(
        &self,
        view: &View,
        room: RoomNid,
        when: When,
        sees: &dyn Fn(&Stored) -> Result<bool>,
    ) -> Result<AtTime> {
        let place = self.place_of(view, room, when)?;
        let mut best: Option<Arc<Stored>> = None;
        let mut beside = [None, None];
        for (side, back) in [(0, true), (1, false)] {
            let bounds = if back {
                (Bound::Unbounded, Bound::Excluded((room, place)))
            } else {
                (Bound::Included((room, place)), Bound::Unbounded)
            };
            let rows: Box<dyn Iterator<Item = _>> = if back {
                Box::new(TIMELINE.range_back(view, &(room,), bounds))
            } else {
                Box::new(TIMELINE.range(view, &(room,), bounds))
            };
            let is_wanted_side = back == (when.dir == Direction::Backward);
            for (count, row) in rows.take(MAX_LOOKED_AT).enumerate() {
                if count >= AROUND && (best.is_some() || !is_wanted_side) {
                    break;
                }
                let ((_, order), (nid,)) = row?;
                beside[side].get_or_insert(order);
                let stored = self.event(view, nid)?;
                let ts = time_of(&stored);
                // Of events of the same time the first one after, or the last one before.
                let is_better = best.as_ref().is_none_or(|best| {
                    let other = time_of(best);
                    when.is_nearer(ts, other)
                        || (ts == other
                            && (stored.facts.order > best.facts.order)
                                == (when.dir == Direction::Backward))
                });
                if when.fits(ts) && is_better && sees(&stored)? {
                    best = Some(stored);
                }
            }
        }
        let [before, behind] = beside;
        let before = before.unwrap_or(i64::MIN);
        let gaps = self.gaps(view, room)?;
        let gap = behind.filter(|behind| {
            let lies_between = |next: i64| before < next && next < *behind;
            gaps.iter().any(|gap| lies_between(gap.row.next))
        });
        Ok(AtTime {
            found: best.map(|best| (best.event.header.id.clone(), time_of(&best))),
            gap: gap.map(|behind| PageToken(behind - 1)),
        })
    }

    /// The place from which on events are later than a time, if they are all in order. For what is to be before the
    /// time, those of just this time come before the place.
    fn place_of(&self, view: &View, room: RoomNid, when: When) -> Result<i64> {
        let first = TIMELINE.scan(view, &(room,)).next().transpose()?;
        let last = TIMELINE.last(view, &(room,))?;
        let (Some(((_, mut low), _)), Some(((_, last), _))) = (first, last) else {
            return Ok(0);
        };
        let mut high = last + 1;
        while low < high {
            // Rounded down, so that every round makes the span smaller.
            let middle = low.saturating_add(high.saturating_sub(low) / 2);
            let bounds = (
                Bound::Included((room, middle)),
                Bound::Excluded((room, high)),
            );
            let next = TIMELINE.range(view, &(room,), bounds).next().transpose()?;
            let Some(((_, order), (nid,))) = next else {
                high = middle;
                continue;
            };
            let ts = time_of(&*self.event(view, nid)?);
            let is_behind = match when.dir {
                Direction::Forward => ts >= when.ts,
                Direction::Backward => ts > when.ts,
            };
            if is_behind {
                high = middle;
            } else {
                low = order + 1;
            }
        }
        Ok(low)
    }
}

impl Guest<'_> {
    /// The event next to a time of those that the server may see.
    ///
    /// # Errors
    /// When the store fails.
    pub fn seen_at(&self, when: When) -> Result<AtTime> {
        let sees = |stored: &Stored| {
            let flags = &stored.event.header.flags;
            Ok(!flags.rejected && !flags.soft_failed && self.sees(stored)?)
        };
        self.rooms.at_time(self.view, self.room, when, &sees)
    }
}
