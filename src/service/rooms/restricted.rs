//! Who may join rooms that are open to the members of other rooms. See "Restricted rooms".

use ruma::{OwnedRoomId, OwnedUserId, UserId, events::room::member::MembershipState};
use serde::Deserialize;

use super::{RoomHead, Rooms};
use crate::{
    error::Result,
    store::schema::{ROOM_HEADS, ROOM_MEMBERS},
};

/// How many members are asked whether they may let somebody in.
const MAX_ASKED: usize = 1000;

/// How many of the rooms whose members are let in are looked at.
const MAX_ALLOWED: usize = 1000;

#[derive(Deserialize)]
pub(super) struct JoinRules {
    pub(super) join_rule: String,
    #[serde(default)]
    allow: Vec<Allow>,
}

#[derive(Deserialize)]
struct Allow {
    #[serde(rename = "type")]
    kind: String,
    room_id: Option<OwnedRoomId>,
}

impl JoinRules {
    /// The rooms whose members are let in, if the rule is one that asks for them.
    pub(super) fn allowed_rooms(&self) -> Option<Vec<OwnedRoomId>> {
        if !matches!(&*self.join_rule, "restricted" | "knock_restricted") {
            return None;
        }
        let memberships = self
            .allow
            .iter()
            .filter(|allow| allow.kind == "m.room_membership");
        let rooms = memberships.filter_map(|allow| allow.room_id.clone());
        Some(rooms.take(MAX_ALLOWED).collect())
    }
}

/// How somebody gets into a room, as far as being a member of other rooms matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Door {
    /// It does not matter: the other rules say all.
    Ordinary,
    /// In the name of this local user, who must be named in the join.
    By(OwnedUserId),
    /// They are in none of the rooms whose members are let in.
    Closed,
    /// This node is not in all of those rooms, and they are in none of the others.
    Unknown,
    /// They may be let in, but nobody on this node has the power to do it.
    NobodyHere,
}

impl Rooms {
    /// Whether a user who is `before` in the room needs somebody to let them in, and who does.
    ///
    /// # Errors
    /// When the store fails.
    pub fn door(&self, head: &RoomHead, user: &UserId, before: &MembershipState) -> Result<Door> {
        let view = self.store.latest();
        let rules = self.entry(&view, &head.state, "m.room.join_rules", "")?;
        let rules = rules.and_then(|rules| rules.event.content_as::<JoinRules>().ok());
        let Some(rules) = rules.filter(|rules| {
            let known = &head.rules.authorization;
            (rules.join_rule == "restricted" && known.restricted_join_rule)
                || (rules.join_rule == "knock_restricted" && known.knock_restricted_join_rule)
        }) else {
            return Ok(Door::Ordinary);
        };
        if matches!(
            before,
            MembershipState::Invite | MembershipState::Join | MembershipState::Ban
        ) {
            return Ok(Door::Ordinary);
        }
        let user = self.store.find_user(user)?;
        let (mut allowed, mut unknown) = (false, false);
        let rooms = rules
            .allow
            .iter()
            .filter(|allow| allow.kind == "m.room_membership");
        for allow in rooms.take(MAX_ALLOWED) {
            let Some(id) = allow.room_id.as_deref() else {
                continue;
            };
            let room = self.store.find_room(id)?;
            let room = match room {
                Some(room) if ROOM_HEADS.contains(&view, &(room,))? => room,
                _ => {
                    unknown = true;
                    continue;
                }
            };
            // What this node remembers of a room that it has left may be long past.
            if !self.has_server(&view, room, &self.server_name)? {
                unknown = true;
                continue;
            }
            if let Some(user) = user {
                let row = ROOM_MEMBERS.get(&view, &(room, user))?;
                allowed |= row.is_some_and(|row| row.membership == MembershipState::Join);
            }
        }
        if !allowed {
            return Ok(if unknown { Door::Unknown } else { Door::Closed });
        }
        let power = self.power_levels(&view, &head.state, head.rules)?;
        for member in head.members.iter().take(MAX_ASKED) {
            let member = self.store.user_id(*member)?;
            if power.may_invite(&member) {
                return Ok(Door::By((*member).clone()));
            }
        }
        Ok(Door::NobodyHere)
    }
}
