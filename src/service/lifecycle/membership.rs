//! Entering and leaving rooms, and letting others in or sending them out. See "Room Membership".

use http::StatusCode;
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedEventId, OwnedServerName, RoomId, UserId,
    events::{
        StateEventType,
        room::{guest_access::GuestAccess, member::MembershipState},
    },
};
use serde::Deserialize;

use super::Lifecycle;
use crate::{
    error::{Error, Result},
    protocol::ids::UserNid,
    service::{
        Requester,
        limits::Kind,
        rooms::{Door, NewEvent, RoomGuard, RoomHead},
    },
    store::{
        notify::Kinds,
        schema::{MemberRow, ROOM_MEMBERS, USER_ROOMS},
    },
};

/// The member of a content that says who has let somebody in.
pub(super) const AUTHORISED_BY: &str = "join_authorised_via_users_server";

/// How an attempt to join a room that this node is in went.
enum Entry {
    /// The user is in it by this event.
    Done(OwnedEventId),
    /// Somebody on another server must let them in.
    Elsewhere,
}

fn nobody_here() -> Error {
    Error::forbidden("Nobody on this server may let you into the room")
}

#[derive(Deserialize)]
struct GuestAccessContent {
    guest_access: GuestAccess,
}

impl Lifecycle {
    /// Joins a room, unless the user is in it. What `custom` does not say is taken from the user's profile. A room that
    /// this node is not in is entered by way of the servers `via`, and of those that are known to have been in it.
    ///
    /// # Errors
    /// 403 when the room's rules say no, 404 when nobody knows the room; why the other servers do not help.
    pub async fn join(
        &self,
        requester: &Requester,
        room: &RoomId,
        via: &[OwnedServerName],
        mut custom: CanonicalJsonObject,
    ) -> Result<OwnedEventId> {
        custom.remove("third_party_signed");
        self.limits.check(Kind::Join, requester.user_id.as_str())?;
        // Who lets somebody in is for the servers to say.
        custom.remove(AUTHORISED_BY);
        let mut always = false;
        if self.rooms.takes_part_in(room).await? {
            match self.enter(requester, room, custom.clone(), false).await? {
                Entry::Done(id) => return Ok(id),
                Entry::Elsewhere => always = true,
            }
        }
        let found = self.join_elsewhere(requester, room, via, custom.clone(), always);
        if let Some(id) = found.await? {
            self.bring_settings(requester, room).await?;
            return Ok(id);
        }
        match self.enter(requester, room, custom, false).await? {
            Entry::Done(id) => Ok(id),
            Entry::Elsewhere => Err(nobody_here()),
        }
    }

    /// Joins a room, or writes the membership of somebody who is in it anew.
    async fn join_again(
        &self,
        requester: &Requester,
        room: &RoomId,
        mut custom: CanonicalJsonObject,
    ) -> Result<OwnedEventId> {
        if !self.rooms.takes_part_in(room).await? {
            return self.join(requester, room, &[], custom).await;
        }
        self.limits.check(Kind::Join, requester.user_id.as_str())?;
        custom.remove(AUTHORISED_BY);
        match self.enter(requester, room, custom.clone(), true).await? {
            Entry::Done(id) => Ok(id),
            Entry::Elsewhere => {
                let found = self.join_elsewhere(requester, room, &[], custom, true);
                found.await?.ok_or_else(nobody_here)
            }
        }
    }

    /// Joins a room that this node is in, or with `again` writes the membership of somebody who is in it anew.
    async fn enter(
        &self,
        requester: &Requester,
        room: &RoomId,
        custom: CanonicalJsonObject,
        again: bool,
    ) -> Result<Entry> {
        let mut guard = self.rooms.lock(room).await?;
        let head = guard.head();
        let present = ROOM_MEMBERS.get(&self.store.latest(), &(head.nid, requester.nid))?;
        let before = present
            .as_ref()
            .map_or(MembershipState::Leave, |row| row.membership.clone());
        if let Some(row) = present
            && before == MembershipState::Join
            && !again
        {
            let event = self.rooms.event(&self.store.latest(), row.event)?;
            drop(guard);
            self.settle().await?;
            return Ok(Entry::Done(event.event.header.id.clone()));
        }
        if requester.guest {
            self.check_guest(head)?;
        }
        let mut content = self.introduced(&requester.user_id, custom)?;
        match self.rooms.door(head, &requester.user_id, &before)? {
            Door::Ordinary => {}
            Door::By(by) => {
                content.insert(AUTHORISED_BY.to_owned(), by.to_string().into());
            }
            Door::Closed => {
                return Err(Error::forbidden(
                    "You are in none of the rooms whose members may join this one",
                ));
            }
            // Another server in the room may know better, or have somebody who may.
            Door::Unknown | Door::NobodyHere if head.servers.len() > 1 => {
                return Ok(Entry::Elsewhere);
            }
            Door::Unknown | Door::NobodyHere => return Err(nobody_here()),
        }
        let target = &*requester.user_id;
        let id = self
            .change(guard, requester, target, MembershipState::Join, content)
            .await?;
        if before != MembershipState::Join {
            self.bring_settings(requester, room).await?;
        }
        Ok(Entry::Done(id))
    }

    /// Asks to be let into a room.
    ///
    /// # Errors
    /// 403 when the room takes no such requests, 404 when nobody knows the room; why the other servers do not help.
    pub async fn knock(
        &self,
        requester: &Requester,
        room: &RoomId,
        via: &[OwnedServerName],
        custom: CanonicalJsonObject,
    ) -> Result<OwnedEventId> {
        self.limits.check(Kind::Join, requester.user_id.as_str())?;
        if !self.rooms.takes_part_in(room).await? {
            return self.knock_elsewhere(requester, room, via, custom).await;
        }
        let guard = self.rooms.lock(room).await?;
        let content = self.introduced(&requester.user_id, custom)?;
        let target = &*requester.user_id;
        self.change(guard, requester, target, MembershipState::Knock, content)
            .await
    }

    /// Leaves a room, declines an invite or takes back a knock. Who is out already stays so.
    ///
    /// # Errors
    /// 403 when the user has nothing to do with the room.
    pub async fn leave(
        &self,
        requester: &Requester,
        room: &RoomId,
        custom: CanonicalJsonObject,
    ) -> Result<OwnedEventId> {
        let mut guard = self.rooms.lock_known(requester, room).await?;
        let key = (guard.head().nid, requester.nid);
        let view = self.store.latest();
        if let Some(row) = ROOM_MEMBERS.get(&view, &key)?
            && row.membership == MembershipState::Leave
        {
            let event = self.rooms.event(&view, row.event)?;
            drop(guard);
            self.settle().await?;
            return Ok(event.event.header.id.clone());
        }
        if !self.rooms.takes_part(guard.head()) {
            drop(guard);
            return self.leave_elsewhere(requester, room, custom).await;
        }
        let target = &*requester.user_id;
        self.change(guard, requester, target, MembershipState::Leave, custom)
            .await
    }

    /// Invites somebody.
    ///
    /// # Errors
    /// 403 when the asker may not, or when the user is in the room already or banned.
    pub async fn invite(
        &self,
        requester: &Requester,
        room: &RoomId,
        target: &UserId,
        custom: CanonicalJsonObject,
    ) -> Result<OwnedEventId> {
        self.limits
            .check(Kind::Invite, requester.user_id.as_str())?;
        self.limits.check(Kind::Invited, target.as_str())?;
        let guard = self.rooms.lock_for(requester, room).await?;
        if target.server_name() != self.rooms.server_name() {
            drop(guard);
            let pair = (&*requester.user_id, target);
            return Box::pin(self.federation.invite(room, pair, custom)).await;
        }
        self.rooms.check_invite(&requester.user_id, target)?;
        let content = self.introduced(target, custom)?;
        self.change(guard, requester, target, MembershipState::Invite, content)
            .await
    }

    /// Sends somebody out of the room.
    ///
    /// # Errors
    /// 403 when the asker may not, or when the user is not there.
    pub async fn kick(
        &self,
        requester: &Requester,
        room: &RoomId,
        target: &UserId,
        custom: CanonicalJsonObject,
    ) -> Result<OwnedEventId> {
        let mut guard = self.rooms.lock_for(requester, room).await?;
        let before = self.membership_of(guard.head(), target)?;
        if matches!(before, MembershipState::Leave | MembershipState::Ban) {
            return Err(Error::forbidden(format!("{target} is not in the room")));
        }
        self.change(guard, requester, target, MembershipState::Leave, custom)
            .await
    }

    /// Bans somebody, who need not be in the room.
    ///
    /// # Errors
    /// 403 when the asker may not.
    pub async fn ban(
        &self,
        requester: &Requester,
        room: &RoomId,
        target: &UserId,
        custom: CanonicalJsonObject,
    ) -> Result<OwnedEventId> {
        let guard = self.rooms.lock_for(requester, room).await?;
        let content = self.introduced(target, custom)?;
        self.change(guard, requester, target, MembershipState::Ban, content)
            .await
    }

    /// Lifts a ban.
    ///
    /// # Errors
    /// 403 when the asker may not, or when the user is not banned.
    pub async fn unban(
        &self,
        requester: &Requester,
        room: &RoomId,
        target: &UserId,
        custom: CanonicalJsonObject,
    ) -> Result<OwnedEventId> {
        let mut guard = self.rooms.lock_for(requester, room).await?;
        if self.membership_of(guard.head(), target)? != MembershipState::Ban {
            return Err(Error::forbidden(format!("{target} is not banned")));
        }
        self.change(guard, requester, target, MembershipState::Leave, custom)
            .await
    }

    /// Forgets a room that the user has left.
    ///
    /// # Errors
    /// 400 while the user is in it, 403 when they never had to do with it.
    pub async fn forget(&self, requester: &Requester, room: &RoomId) -> Result<()> {
        let mut guard = self.rooms.lock_known(requester, room).await?;
        let head = guard.head();
        let view = self.store.latest();
        let row = ROOM_MEMBERS.get(&view, &(head.nid, requester.nid))?;
        let Some(row) = row.filter(|row| gone(&row.membership)) else {
            return Err(Error::api(
                StatusCode::BAD_REQUEST,
                "M_UNKNOWN",
                "Leave the room before you forget it",
            ));
        };
        let row = MemberRow {
            forgotten: true,
            ..row
        };
        let nid = head.nid;
        let committed = self.store.commit(|batch| {
            let position = batch.position();
            ROOM_MEMBERS.put(batch, &(nid, requester.nid), &row);
            USER_ROOMS.put(batch, &(requester.nid, nid), &row);
            batch.touch_user(position, requester.nid, Some(nid), Kinds::MEMBERSHIP);
            Ok(())
        })?;
        drop(guard);
        Ok(self.store.durable(committed.position).await?)
    }

    /// Sets a membership as the piece of state that it is, by the same ways as the endpoints for each change.
    ///
    /// # Errors
    /// 400 when it is no membership, else as those ways.
    pub(super) async fn set_membership(
        &self,
        requester: &Requester,
        room: &RoomId,
        target: &str,
        custom: CanonicalJsonObject,
    ) -> Result<OwnedEventId> {
        let target = UserId::parse(target)
            .map_err(|e| Error::bad_json(format!("The state key must be a user id: {e}")))?;
        let membership = custom
            .get("membership")
            .and_then(CanonicalJsonValue::as_str)
            .map(MembershipState::from)
            .ok_or_else(|| Error::bad_json("`membership` must be a text"))?;
        let is_own = target == requester.user_id;
        match membership {
            MembershipState::Join if is_own => self.join_again(requester, room, custom).await,
            MembershipState::Knock if is_own => self.knock(requester, room, &[], custom).await,
            MembershipState::Leave if is_own => self.leave(requester, room, custom).await,
            MembershipState::Leave => {
                let mut guard = self.rooms.lock_for(requester, room).await?;
                let before = self.membership_of(guard.head(), &target)?;
                drop(guard);
                if before == MembershipState::Ban {
                    self.unban(requester, room, &target, custom).await
                } else {
                    self.kick(requester, room, &target, custom).await
                }
            }
            MembershipState::Invite => self.invite(requester, room, &target, custom).await,
            MembershipState::Ban => self.ban(requester, room, &target, custom).await,
            MembershipState::Join | MembershipState::Knock => Err(Error::forbidden(
                "Nobody can join or knock for somebody else",
            )),
            _ => Err(Error::bad_json(format!(
                "There is no membership {membership}"
            ))),
        }
    }

    /// Writes a member event, unless it says what is so already, and waits until it is safe.
    async fn change(
        &self,
        guard: RoomGuard,
        requester: &Requester,
        target: &UserId,
        membership: MembershipState,
        mut content: CanonicalJsonObject,
    ) -> Result<OwnedEventId> {
        content.insert("membership".to_owned(), membership.to_string().into());
        let kind = StateEventType::RoomMember;
        let event = NewEvent::state(&requester.user_id, kind, target.as_str(), content);
        let id = self.write(guard, event).await?;
        self.settle().await?;
        Ok(id)
    }

    /// The content of a member event: what `custom` does not say is taken from the user's profile.
    pub(super) fn introduced(
        &self,
        user: &UserId,
        custom: CanonicalJsonObject,
    ) -> Result<CanonicalJsonObject> {
        let mut content = self.profile(user)?;
        content.extend(custom);
        Ok(content)
    }

    pub(super) fn membership(&self, head: &RoomHead, user: UserNid) -> Result<MembershipState> {
        let row = ROOM_MEMBERS.get(&self.store.latest(), &(head.nid, user))?;
        Ok(row.map_or(MembershipState::Leave, |row| row.membership))
    }

    fn membership_of(&self, head: &RoomHead, user: &UserId) -> Result<MembershipState> {
        match self.store.find_user(user)? {
            Some(nid) => self.membership(head, nid),
            None => Ok(MembershipState::Leave),
        }
    }

    /// Guests need to be allowed expressly.
    fn check_guest(&self, head: &RoomHead) -> Result<()> {
        let view = self.store.latest();
        let event = self
            .rooms
            .entry(&view, &head.state, "m.room.guest_access", "")?;
        let access = event.and_then(|event| event.event.content_as::<GuestAccessContent>().ok());
        if access.is_some_and(|content| content.guest_access == GuestAccess::CanJoin) {
            return Ok(());
        }
        Err(Error::api(
            StatusCode::FORBIDDEN,
            "M_GUEST_ACCESS_FORBIDDEN",
            "Guests can not join this room",
        ))
    }
}

fn gone(membership: &MembershipState) -> bool {
    matches!(membership, MembershipState::Leave | MembershipState::Ban)
}
