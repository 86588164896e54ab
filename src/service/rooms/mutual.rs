//! The rooms that two users share. See "Mutual Rooms".

use ruma::{OwnedRoomId, UserId, events::room::member::MembershipState};
use serde::Serialize;

use super::Rooms;
use crate::{
    error::{Error, Result},
    protocol::ids::RoomNid,
    service::Requester,
    store::schema::{ROOM_MEMBERS, USER_ROOMS},
};

/// The rooms that two users share, or a part of them.
#[derive(Debug, Serialize)]
pub struct Mutual {
    /// The rooms.
    pub joined: Vec<OwnedRoomId>,
    /// How many they are in all.
    pub count: usize,
    /// Where to go on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_batch: Option<String>,
}

impl Rooms {
    /// The rooms that the asker and another user have joined, up to `limit` of them.
    ///
    /// # Errors
    /// 400 for the asker's own id, and for a token that is none.
    pub fn mutual(
        &self,
        asker: &Requester,
        user: &UserId,
        from: Option<&str>,
        limit: usize,
    ) -> Result<Mutual> {
        if user == asker.user_id {
            return Err(Error::invalid_param(
                "You share all of your rooms with yourself",
            ));
        }
        let from = from.map(str::parse::<u64>).transpose();
        let from = from.map_err(|_| Error::invalid_param("`from` is not a token of ours"))?;
        let mut mutual = Mutual {
            joined: Vec::new(),
            count: 0,
            next_batch: None,
        };
        let Some(other) = self.store.find_user(user)? else {
            return Ok(mutual);
        };
        let view = self.store.view();
        let mut last = RoomNid::default();
        let joined = |membership| membership == MembershipState::Join;
        for row in USER_ROOMS.scan(&view, &(asker.nid,)) {
            let ((_, room), member) = row?;
            let theirs = || ROOM_MEMBERS.get(&view, &(room, other));
            if !joined(member.membership) || !theirs()?.is_some_and(|row| joined(row.membership)) {
                continue;
            }
            mutual.count += 1;
            if from.is_some_and(|from| room <= RoomNid(from)) {
                continue;
            }
            if mutual.joined.len() < limit {
                mutual.joined.push((*self.store.room_id(room)?).clone());
                last = room;
            } else {
                mutual.next_batch = Some(last.0.to_string());
            }
        }
        Ok(mutual)
    }
}
