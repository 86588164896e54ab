//! Joining rooms that are open to the members of other rooms. See "Restricted rooms".

use ruma::{OwnedRoomId, OwnedUserId, events::room::member::MembershipState};
use serde::Deserialize;

use super::Lifecycle;
use crate::{
    error::{Error, Result},
    service::{Requester, rooms::RoomHead},
    store::schema::ROOM_MEMBERS,
};

/// How many members are asked whether they may let somebody in.
const MAX_ASKED: usize = 1000;

#[derive(Deserialize)]
struct JoinRules {
    join_rule: String,
    #[serde(default)]
    allow: Vec<Allow>,
}

#[derive(Deserialize)]
struct Allow {
    #[serde(rename = "type")]
    kind: String,
    room_id: Option<OwnedRoomId>,
}

impl Lifecycle {
    /// The member in whose name the requester is let in, if the room is restricted and needs one.
    ///
    /// # Errors
    /// 403 when the requester is in none of the rooms whose members are let in.
    pub(super) fn authorised_by(
        &self,
        head: &RoomHead,
        requester: &Requester,
        before: &MembershipState,
    ) -> Result<Option<OwnedUserId>> {
        let view = self.store.latest();
        let rules = self
            .rooms
            .entry(&view, &head.state, "m.room.join_rules", "")?;
        let rules = rules.and_then(|rules| rules.event.content_as::<JoinRules>().ok());
        let Some(rules) = rules.filter(|rules| {
            let known = &head.rules.authorization;
            (rules.join_rule == "restricted" && known.restricted_join_rule)
                || (rules.join_rule == "knock_restricted" && known.knock_restricted_join_rule)
        }) else {
            return Ok(None);
        };
        if matches!(before, MembershipState::Invite | MembershipState::Join) {
            return Ok(None);
        }
        let mut allowed = false;
        for allow in rules
            .allow
            .iter()
            .filter(|allow| allow.kind == "m.room_membership")
        {
            let room = allow.room_id.as_deref().map(|id| self.store.find_room(id));
            let Some(room) = room.transpose()?.flatten() else {
                continue;
            };
            let row = ROOM_MEMBERS.get(&view, &(room, requester.nid))?;
            allowed |= row.is_some_and(|row| row.membership == MembershipState::Join);
        }
        if !allowed {
            return Err(Error::forbidden(
                "You are in none of the rooms whose members may join this one",
            ));
        }
        let power = self.rooms.power_levels(&view, &head.state, head.rules)?;
        for member in head.members.iter().take(MAX_ASKED) {
            let member = self.store.user_id(*member)?;
            if power.may_invite(&member) {
                return Ok(Some((*member).clone()));
            }
        }
        Err(Error::forbidden(
            "Nobody on this server may let you into the room",
        ))
    }
}
