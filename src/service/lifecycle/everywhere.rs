//! What a user does in all of their rooms at once: wear a new name, or leave for good.

use ruma::{
    CanonicalJsonObject, OwnedRoomId, UserId,
    events::{StateEventType, room::member::MembershipState},
};

use super::Lifecycle;
use crate::{
    error::Result,
    protocol::ids::UserNid,
    service::{
        Requester,
        rooms::{NewEvent, Run},
    },
    store::schema::USER_ROOMS,
};

impl Lifecycle {
    /// Tells every room that the user has joined their present name and picture.
    ///
    /// # Errors
    /// When the store fails. A room that refuses is left as it is.
    pub async fn spread_profile(&self, requester: &Requester) -> Result<()> {
        let profile = self.profile(&self.store.latest(), &requester.user_id)?;
        let is_joined = |membership: &MembershipState| *membership == MembershipState::Join;
        for room in self.rooms_of(requester.nid, is_joined)? {
            let user = &*requester.user_id;
            self.rewrite_member(requester, &room, user, &profile)
                .await?;
        }
        self.settle().await
    }

    /// Leaves every room, declines every invite and takes back every knock.
    ///
    /// # Errors
    /// When the store fails. A room that refuses is left as it is.
    pub async fn leave_everything(&self, requester: &Requester) -> Result<()> {
        let is_there = |membership: &MembershipState| {
            use MembershipState::{Invite, Join, Knock};
            matches!(membership, Join | Invite | Knock)
        };
        for room in self.rooms_of(requester.nid, is_there)? {
            if let Err(error) = self
                .leave(requester, &room, CanonicalJsonObject::new())
                .await
            {
                if error.is_internal() {
                    return Err(error);
                }
                tracing::info!(%room, user = %requester.user_id, %error, "a room was not left");
            }
        }
        Ok(())
    }

    fn rooms_of(
        &self,
        user: UserNid,
        wanted: impl Fn(&MembershipState) -> bool,
    ) -> Result<Vec<OwnedRoomId>> {
        let view = self.store.latest();
        let mut rooms = Vec::new();
        for row in USER_ROOMS.scan(&view, &(user,)) {
            let ((_, room), member) = row?;
            if wanted(&member.membership) {
                rooms.push((*self.store.room_id(room)?).clone());
            }
        }
        Ok(rooms)
    }

    async fn rewrite_member(
        &self,
        requester: &Requester,
        room: &OwnedRoomId,
        user: &UserId,
        profile: &CanonicalJsonObject,
    ) -> Result<()> {
        let mut guard = self.rooms.lock(room).await?;
        let head = guard.head();
        let view = self.store.latest();
        let kind = StateEventType::RoomMember;
        let present = self
            .rooms
            .entry(&view, &head.state, &kind.to_string(), user.as_str())?;
        let Some(present) = present.filter(|_| head.members.contains(&requester.nid)) else {
            return Ok(());
        };
        let before = present
            .event
            .content_as::<CanonicalJsonObject>()
            .unwrap_or_default();
        let mut content = before.clone();
        content.remove("displayname");
        content.remove("avatar_url");
        // Whoever let the user in has done so.
        content.remove("join_authorised_via_users_server");
        content.extend(profile.clone());
        content.insert("membership".to_owned(), "join".to_owned().into());
        if content == before {
            return Ok(());
        }
        let mut run = Run::new(&self.rooms, head);
        match run.add(NewEvent::state(user, kind, user.as_str(), content)) {
            Ok(_) => drop(run.commit(|_| Ok(()))?),
            Err(error) if error.is_internal() => return Err(error),
            Err(error) => tracing::info!(%room, %user, %error, "a profile was not taken over"),
        }
        Ok(())
    }
}
