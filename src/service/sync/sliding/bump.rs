//! When something was said in a room the last time, by which clients sort what they show.

use std::ops::Bound;

use quick_cache::sync::Cache;

use super::super::Sync;
use crate::{
    error::Result,
    protocol::ids::{Position, RoomNid},
    store::{
        self, View,
        schema::{HeadRow, TIMELINE},
    },
};

/// Events of these types bring a room to the top of what people look at.
const BUMPS: [&str; 7] = [
    "m.room.create",
    "m.room.message",
    "m.room.encrypted",
    "m.sticker",
    "m.call.invite",
    "m.poll.start",
    "m.beacon_info",
];

/// How many events are looked at to find one of these, and how many at once.
const MOST_LOOKED_AT: usize = 1000;
const CHUNK: usize = 20;

/// In how many rooms the last such event is remembered.
const REMEMBERED: usize = 50_000;

/// The last event of each room that brought it to the top, and up to where it was looked for.
pub(in crate::service::sync) struct Bumps(Cache<RoomNid, (Position, i64)>);

impl Bumps {
    pub(super) fn new() -> Self {
        Self(Cache::new(REMEMBERED))
    }
}

impl Sync {
    /// When something was said in a room the last time, as far as that can be found without long search.
    pub(super) fn bump_stamp(&self, view: &View, room: RoomNid, head: &HeadRow) -> Result<i64> {
        let known = self.sliding.bumps.0.get(&room);
        if let Some((upto, stamp)) = known
            && upto >= head.last
        {
            return Ok(stamp);
        }
        let from = known.map_or(i64::MIN, |(upto, _)| upto.live_order());
        let bounds = (
            Bound::Excluded((room, from)),
            Bound::Included((room, view.position().live_order())),
        );
        let mut rows = TIMELINE.range_back(view, &(room,), bounds);
        let mut stamp = known.map_or(0, |(_, stamp)| stamp);
        let mut looked_at = 0;
        'search: while looked_at < MOST_LOOKED_AT {
            let chunk: Vec<_> = rows.by_ref().take(CHUNK).collect::<store::Result<_>>()?;
            if chunk.is_empty() {
                break;
            }
            looked_at += chunk.len();
            let nids: Vec<_> = chunk.iter().map(|(_, (nid,))| *nid).collect();
            for (((_, order), _), stored) in chunk.iter().zip(self.rooms.events(view, &nids)?) {
                let header = &stored.event.header;
                let is_bump = BUMPS.contains(&&*header.event_type.to_string())
                    && !header.flags.rejected
                    && !header.flags.soft_failed;
                if is_bump || looked_at >= MOST_LOOKED_AT {
                    stamp = stamp.max(*order);
                    break 'search;
                }
            }
        }
        self.sliding.bumps.0.insert(room, (head.last, stamp));
        Ok(stamp)
    }
}
