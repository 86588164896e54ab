//! The threads of a room, those first in which something was said last.
//!
//! A row of `THREADS` stands at the place of a thread's newest reply and moves with it, so that a page costs what it
//! shows. See "Threading" in the client-server API.

use std::{fmt::Write as _, ops::Bound};

use ruma::RoomId;

use super::{MAX_PAGE, Page, Rooms, Seen, Sight, Stored};
use crate::{
    error::Result,
    protocol::{
        format::Shape,
        ids::{EventNid, UserNid},
        token::PageToken,
    },
    service::Requester,
    store::{
        self, View,
        schema::{RELATIONS, THREAD_REPLIES, THREAD_REPLIES_OF, THREADS},
    },
};

/// How a reply in a thread relates to its root.
pub(super) const THREAD: &str = "m.thread";

/// The most threads that are looked at for one page.
const MAX_LOOKED_AT: usize = 1_000;

/// The most replies that are counted for somebody who has left the room.
const MAX_COUNTED: usize = 1_000;

/// Up to so many users that are ignored it is looked how much each has said in a thread; beyond, who has said something
/// in the thread.
const MAX_IGNORED: usize = 64;

/// The order of the newest reply in a thread before a place.
pub(super) fn last_reply(view: &View, root: EventNid, before: i64) -> store::Result<Option<i64>> {
    let bounds = (Bound::Unbounded, Bound::Excluded((root, THREAD, before)));
    let mut rows = RELATIONS.range_back(view, &(root, THREAD), bounds);
    let row = rows.next().transpose()?;
    Ok(row.map(|((_, _, order), _)| order))
}

impl Rooms {
    /// A page of a room's threads, as the answer of `/threads`; `participated` leaves out those in which the user has said
    /// nothing.
    ///
    /// # Errors
    /// 403 when the user was never in the room and it is not open to everybody.
    pub fn threads(
        &self,
        asker: &Requester,
        room: &RoomId,
        participated: bool,
        page: Page,
    ) -> Result<String> {
        let view = self.store.view();
        let sight = self.sight_of(&view, room, asker)?;
        sight.reach()?;
        let (roots, next) = sight.threads(participated, page)?;
        let mut out = String::from("{\"chunk\":[");
        sight.show_all(&mut out, &roots, Shape::Client)?;
        out.push(']');
        if let Some(next) = next {
            let _ = write!(out, ",\"next_batch\":\"{next}\"");
        }
        out.push('}');
        Ok(out)
    }
}

impl Sight<'_> {
    /// The roots, and where to go on if there may be more.
    fn threads(&self, participated: bool, page: Page) -> Result<(Vec<Seen>, Option<PageToken>)> {
        let limit = page.limit.clamp(1, MAX_PAGE);
        let from = page.from.map_or(i64::MAX, |PageToken(order)| order);
        let bounds = (
            Bound::Unbounded,
            Bound::Included((self.room, from, EventNid(u64::MAX))),
        );
        let mut roots = Vec::new();
        let mut end = None;
        let rows = THREADS.range_back(self.view, &(self.room,), bounds);
        for (looked_at, row) in rows.enumerate() {
            let ((_, order, root), ()) = row?;
            if roots.len() == limit || looked_at == MAX_LOOKED_AT {
                return Ok((roots, end));
            }
            end = Some(PageToken(order - 1));
            // What was overtaken comes at another place.
            if last_reply(self.view, root, i64::MAX)? != Some(order) {
                continue;
            }
            let stored = self.rooms.event(self.view, root)?;
            if participated && !self.has_taken_part(&stored)? {
                continue;
            }
            if let Some(membership) = self.sees(&stored)? {
                roots.push(Seen { stored, membership });
            }
        }
        Ok((roots, None))
    }

    /// Whether the asker has begun a thread, or said something in it.
    pub(super) fn has_taken_part(&self, root: &Stored) -> Result<bool> {
        Ok(root.event.header.sender == self.asker.user_id
            || self.replies_of(root.nid, self.asker.nid)? > 0)
    }

    /// How many replies in a thread there are for the asker: not those by users whom they ignore, nor what was said after
    /// they had left.
    pub(super) fn replies(&self, root: EventNid) -> Result<u64> {
        let horizon = self.horizon();
        if horizon < i64::MAX {
            return self.replies_before(root, horizon);
        }
        let all = THREAD_REPLIES.get(self.view, &(root,))?;
        let mut unwanted = 0;
        if self.ignored.len() > MAX_IGNORED {
            for row in THREAD_REPLIES_OF.scan(self.view, &(root,)) {
                let ((_, user), (count,)) = row?;
                if self.ignores(user)? {
                    unwanted += count;
                }
            }
        } else {
            for user in &self.ignored {
                if let Some(user) = self.rooms.store.find_user(user)? {
                    unwanted += self.replies_of(root, user)?;
                }
            }
        }
        Ok(all.map_or(0, |(all,)| all).saturating_sub(unwanted))
    }

    fn replies_of(&self, root: EventNid, user: UserNid) -> Result<u64> {
        let count = THREAD_REPLIES_OF.get(self.view, &(root, user))?;
        Ok(count.map_or(0, |(count,)| count))
    }

    /// For one who has left, for whom nobody has counted.
    fn replies_before(&self, root: EventNid, horizon: i64) -> Result<u64> {
        let bounds = (Bound::Unbounded, Bound::Excluded((root, THREAD, horizon)));
        let rows = RELATIONS.range_back(self.view, &(root, THREAD), bounds);
        let mut count = 0;
        for row in rows.take(MAX_COUNTED) {
            if !self.ignores(row?.1.sender)? {
                count += 1;
            }
        }
        Ok(count)
    }
}
