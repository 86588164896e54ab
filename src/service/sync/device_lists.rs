//! Whose devices a client has to look at again, and whose no more. See "Tracking the device list for a user".

use std::{collections::BTreeSet, ops::Bound};

use ruma::{OwnedUserId, events::room::member::MembershipState};

use super::{Range, Sync, SyncRequest, v3::Asking};
use crate::{
    error::Result,
    protocol::{
        ids::{Position, RoomNid, UserNid},
        token::SyncToken,
    },
    service::Requester,
    store::{
        View,
        notify::{Changes, Kinds},
        schema::{MEMBER_CHANGES, MemberRow, ROOM_HEADS, ROOM_MEMBERS, USER_ROOMS},
    },
};

/// Users, in the order of their names.
#[derive(Debug, Default)]
pub struct DeviceLists {
    /// Whose devices are to be looked at.
    pub changed: BTreeSet<OwnedUserId>,
    /// Who shares no room any more.
    pub left: BTreeSet<OwnedUserId>,
}

impl DeviceLists {
    pub(super) fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.left.is_empty()
    }
}

/// Whom the user has met or lost in rooms.
#[derive(Default)]
struct Met {
    met: BTreeSet<UserNid>,
    lost: BTreeSet<UserNid>,
}

impl Sync {
    /// What has changed since a token, as the next syncs would tell.
    ///
    /// # Errors
    /// When the store fails.
    pub fn device_lists_since(
        &self,
        requester: &Requester,
        since: SyncToken,
    ) -> Result<DeviceLists> {
        let view = self.store.view();
        let request = SyncRequest {
            since: Some(since),
            ..SyncRequest::bare()
        };
        let position = since.position.min(view.position());
        let range = Range {
            view,
            since: Some(position),
            changes: Changes::Unknown,
        };
        let asking = Asking {
            view: &range.view,
            requester,
            request: &request,
            since: range.since,
        };
        self.device_lists(&asking, &range)
    }

    /// What the client has to know after its token; nothing if it begins.
    pub(super) fn device_lists(&self, asking: &Asking<'_>, range: &Range) -> Result<DeviceLists> {
        let (Some(since), view, user) = (asking.since, asking.view, asking.requester.nid) else {
            return Ok(DeviceLists::default());
        };
        let mut met = Met::default();
        match &range.changes {
            Changes::None => {}
            Changes::Some(changed) => {
                for (room, kinds) in changed {
                    let Some(room) = room else { continue };
                    if kinds.any(Kinds::TIMELINE.and(Kinds::MEMBERSHIP))
                        && let Some(member) = USER_ROOMS.get(view, &(user, *room))?
                    {
                        self.look(asking, since, (*room, &member), &mut met)?;
                    }
                }
            }
            Changes::Unknown => {
                for row in USER_ROOMS.scan(view, &(user,)) {
                    let ((_, room), member) = row?;
                    self.look(asking, since, (room, &member), &mut met)?;
                }
            }
        }
        let mut changed = met.met;
        if range.may_have(Kinds::DEVICES) {
            changed.extend(self.encryption.changed(view, user, since)?);
        }
        let mut lists = DeviceLists::default();
        for other in met.lost {
            if other != user && !self.encryption.share(view, other, user)? {
                lists.left.insert((*self.store.user_id(other)?).clone());
            }
        }
        for other in changed {
            lists.changed.insert((*self.store.user_id(other)?).clone());
        }
        Ok(lists)
    }

    /// Who came to the user in a room, and who went.
    fn look(
        &self,
        asking: &Asking<'_>,
        since: Position,
        (room, member): (RoomNid, &MemberRow),
        met: &mut Met,
    ) -> Result<()> {
        let view = asking.view;
        let is_in = member.membership == MembershipState::Join;
        let is_new = member.since > since;
        if !is_in && !is_new || !ROOM_HEADS.contains(view, &(room,))? {
            return Ok(());
        }
        // Only those are lost who were there with the user: who came or was invited meanwhile is none of their business.
        let part = self.part(asking, room, member, None)?;
        let order = since.live_order();
        if is_new && is_in {
            met.met.extend(joined(view, room)?);
        }
        if is_new && !self.was_joined(&part, order)? {
            return Ok(());
        }
        if is_new && !is_in {
            let was_there = |row: &MemberRow| row.since <= since;
            met.lost.extend(joined_if(view, room, was_there)?);
        }
        for other in moved(view, room, since)? {
            let row = ROOM_MEMBERS.get(view, &(room, other))?;
            if is_in && row.is_some_and(|row| row.membership == MembershipState::Join) {
                met.met.insert(other);
            } else if self.was_member(&part, order, self.store.user_id(other)?.as_str())? {
                met.lost.insert(other);
            }
        }
        Ok(())
    }
}

/// All who are in a room.
fn joined(view: &View, room: RoomNid) -> Result<Vec<UserNid>> {
    joined_if(view, room, |_| true)
}

/// Those who are in a room for whom this holds.
fn joined_if(
    view: &View,
    room: RoomNid,
    holds: impl Fn(&MemberRow) -> bool,
) -> Result<Vec<UserNid>> {
    let mut found = Vec::new();
    for row in ROOM_MEMBERS.scan(view, &(room,)) {
        let ((_, user), member) = row?;
        if member.membership == MembershipState::Join && holds(&member) {
            found.push(user);
        }
    }
    Ok(found)
}

/// Whose membership in a room changed.
fn moved(view: &View, room: RoomNid, since: Position) -> Result<Vec<UserNid>> {
    let from = Bound::Included((room, Position(since.0 + 1), UserNid::default()));
    let rows = MEMBER_CHANGES.range(view, &(room,), (from, Bound::Unbounded));
    rows.map(|row| Ok(row?.0.2)).collect()
}
