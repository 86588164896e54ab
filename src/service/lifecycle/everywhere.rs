//! What a user does in all of their rooms at once: wear a new name, or leave for good.

use std::{pin::pin, time::Duration};

use futures_util::{StreamExt as _, stream};
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

/// In how many rooms something is done at the same time: in some of them others are asked.
const SIDE_BY_SIDE: usize = 16;

/// How long that may take. A room in which those who must be asked do not answer is then left as it is.
const MOST_TIME: Duration = Duration::from_secs(30);

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
        let rooms = self.rooms_of(requester.nid, is_joined)?;
        let profile = &profile;
        let rewritten = rooms.into_iter().map(|room| async move {
            let user = &*requester.user_id;
            self.rewrite_member(requester, &room, user, profile).await
        });
        self.side_by_side(&requester.user_id, rewritten).await?;
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
        let rooms = self.rooms_of(requester.nid, is_there)?;
        let left = rooms.into_iter().map(|room| async move {
            let left = self.leave(requester, &room, CanonicalJsonObject::new());
            match left.await {
                Err(error) if error.is_internal() => return Err(error),
                Err(error) => {
                    tracing::info!(%room, user = %requester.user_id, %error, "a room was not left");
                }
                Ok(_) => {}
            }
            Ok(())
        });
        self.side_by_side(&requester.user_id, left).await?;
        // Nobody elsewhere can keep an invite open by not answering.
        for room in self.rooms_of(requester.nid, is_there)? {
            if !self.rooms.takes_part_in(&room).await? {
                self.leave_unasked(requester, &room).await?;
            }
        }
        Ok(())
    }

    /// Does what is to be done in each of many rooms, a few at a time, and for no longer than [`MOST_TIME`].
    async fn side_by_side(
        &self,
        user: &UserId,
        rooms: impl ExactSizeIterator<Item: Future<Output = Result<()>> + Send> + Send,
    ) -> Result<()> {
        let mut left = rooms.len();
        let mut all = stream::iter(rooms.map(Box::pin)).buffer_unordered(SIDE_BY_SIDE);
        let mut end = pin!(self.clock.sleep(MOST_TIME));
        loop {
            tokio::select! {
                done = all.next() => match done {
                    Some(done) => done?,
                    None => return Ok(()),
                },
                () = &mut end => {
                    tracing::warn!(%user, rooms = left, "not all rooms of a user were written: others who must be asked first do not answer");
                    return Ok(());
                }
            }
            left -= 1;
        }
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
