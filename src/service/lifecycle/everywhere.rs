//! What a user does in all of their rooms at once: wear a new name, or leave for good.

use ruma::{
    CanonicalJsonObject, OwnedRoomId, UserId,
    api::client::uiaa::AuthData,
    events::{StateEventType, room::member::MembershipState},
};

use serde_json::Value;

use super::{Lifecycle, membership::AUTHORISED_BY};
use crate::{
    error::Result,
    protocol::ids::UserNid,
    service::{Requester, rooms::NewEvent},
    store::schema::USER_ROOMS,
};

impl Lifecycle {
    /// Changes one field of the user's own profile, also in the rooms that show it; `None` removes it.
    ///
    /// # Errors
    /// As [`Accounts::set_profile_field`](crate::service::accounts::Accounts::set_profile_field).
    pub async fn set_profile_field(
        &self,
        requester: &Requester,
        user: &UserId,
        field: &str,
        value: Option<Value>,
    ) -> Result<()> {
        let rooms_show_it = self
            .accounts
            .set_profile_field(requester, user, field, value)
            .await?;
        if rooms_show_it {
            self.spread_profile(requester).await?;
        }
        Ok(())
    }

    /// Closes the user's account for good, once they have given their password, and leaves all rooms.
    ///
    /// # Errors
    /// What the client must do first, see [`Error::Uiaa`](crate::error::Error::Uiaa).
    pub async fn deactivate(
        &self,
        requester: &Requester,
        auth: Option<&AuthData>,
        erase: bool,
    ) -> Result<()> {
        self.accounts.confirm(requester, "deactivate", auth).await?;
        // A node that dies between the two leaves an account whose owner can ask again, not a ghost in rooms.
        self.leave_everything(requester).await?;
        self.accounts.deactivate(requester.nid, erase).await?;
        // Another device may have entered one meanwhile; now none can.
        self.leave_everything(requester).await
    }

    /// Tells every room that the user has joined their present name and picture.
    ///
    /// # Errors
    /// When the store fails. A room that refuses is left as it is.
    async fn spread_profile(&self, requester: &Requester) -> Result<()> {
        let profile = self.profile(&requester.user_id)?;
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
    async fn leave_everything(&self, requester: &Requester) -> Result<()> {
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
        content.remove(AUTHORISED_BY);
        content.extend(profile.clone());
        content.insert("membership".to_owned(), "join".to_owned().into());
        if content == before {
            return Ok(());
        }
        let event = NewEvent::state(user, kind, user.as_str(), content);
        match self.write(guard, event).await {
            Ok(_) => {}
            Err(error) if error.is_internal() => return Err(error),
            Err(error) => tracing::info!(%room, %user, %error, "a profile was not taken over"),
        }
        Ok(())
    }
}
