//! The end of a room's graph, and the lock without which nobody can write the room.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use ruma::{
    OwnedRoomId, RoomId, events::room::member::MembershipState,
    room_version_rules::RoomVersionRules,
};
use tokio::sync::OwnedMutexGuard;

use super::Rooms;
use crate::{
    error::{Error, Result},
    protocol::{
        ids::{RoomNid, UserNid},
        version,
    },
    store::{
        Members, StateMap,
        schema::{HeadRow, ROOM_HEADS, ROOM_MEMBERS},
    },
};

/// How many heads stay in memory when nobody uses them.
const KEPT: usize = 1024;

/// What a room's next event builds on.
#[derive(Clone)]
pub struct RoomHead {
    /// The room's number.
    pub nid: RoomNid,
    /// The room's id.
    pub id: OwnedRoomId,
    /// The rules of its version.
    pub rules: &'static RoomVersionRules,
    /// What is stored of it.
    pub row: HeadRow,
    /// The current state.
    pub state: StateMap,
    /// The joined users of this node, who are to be woken.
    pub members: Members,
}

/// The right to write a room. Nothing may await the network while holding it.
pub struct RoomGuard(OwnedMutexGuard<Option<RoomHead>>);

impl RoomGuard {
    /// The head.
    pub fn head(&mut self) -> &mut RoomHead {
        self.0
            .as_mut()
            .expect("a guard is only given for a loaded head")
    }
}

/// The heads in memory, each behind its room's lock.
#[derive(Default)]
pub(super) struct Heads(Mutex<HashMap<RoomNid, Arc<tokio::sync::Mutex<Option<RoomHead>>>>>);

impl Heads {
    fn slot(&self, room: RoomNid) -> Arc<tokio::sync::Mutex<Option<RoomHead>>> {
        let mut heads = self.0.lock();
        if heads.len() > KEPT {
            // Whoever holds or awaits a room's lock has a second reference to it.
            heads.retain(|_, slot| Arc::strong_count(slot) > 1);
        }
        heads.entry(room).or_default().clone()
    }
}

impl Rooms {
    /// Waits for the room's lock.
    ///
    /// # Errors
    /// 404 when the room does not exist here.
    pub async fn lock(&self, id: &RoomId) -> Result<RoomGuard> {
        let nid = self
            .store
            .find_room(id)?
            .ok_or_else(|| Error::not_found("The room"))?;
        let mut guard = self.heads.slot(nid).lock_owned().await;
        if guard.is_none() {
            *guard = self.load(nid, id)?;
        }
        if guard.is_none() {
            return Err(Error::not_found("The room"));
        }
        Ok(RoomGuard(guard))
    }

    /// Takes the lock of a room that does not exist yet, for its first events.
    pub(super) async fn lock_new(&self, head: RoomHead) -> RoomGuard {
        let mut guard = self.heads.slot(head.nid).lock_owned().await;
        *guard = Some(head);
        RoomGuard(guard)
    }

    fn load(&self, nid: RoomNid, id: &RoomId) -> Result<Option<RoomHead>> {
        let view = self.store.latest();
        let Some(row) = ROOM_HEADS.get(&view, &(nid,))? else {
            return Ok(None);
        };
        let rules = version::rules(&row.version).ok_or_else(|| {
            Error::Internal(format!(
                "room version {} is stored but not known",
                row.version
            ))
        })?;
        let mut members = Members::new();
        for entry in ROOM_MEMBERS.scan(&view, &(nid,)) {
            let ((_, user), member) = entry?;
            if member.membership == MembershipState::Join && self.is_local(user)? {
                members.insert(user);
            }
        }
        Ok(Some(RoomHead {
            nid,
            id: id.to_owned(),
            rules,
            state: self.store.state(row.chain.tip)?,
            row,
            members,
        }))
    }

    /// Whether a user's account would be on this node.
    pub fn is_local(&self, user: UserNid) -> Result<bool> {
        Ok(self.store.user_id(user)?.server_name() == self.server_name)
    }
}
