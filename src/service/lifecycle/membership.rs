//! Entering and leaving rooms, and letting others in or sending them out. See "Room Membership".

use http::StatusCode;
use ruma::{
    CanonicalJsonObject, OwnedRoomId, RoomAliasId, RoomId, RoomOrAliasId, UserId,
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
        rooms::{NewEvent, RoomGuard, RoomHead, Run},
    },
    store::{
        notify::Kinds,
        schema::{MemberRow, ROOM_MEMBERS, USER_ROOMS},
    },
};

#[derive(Deserialize)]
struct GuestAccessContent {
    guest_access: GuestAccess,
}

impl Lifecycle {
    /// The room that an id or an alias means.
    ///
    /// # Errors
    /// 404 when this node does not know the alias.
    pub fn room_meant(&self, id_or_alias: &RoomOrAliasId) -> Result<OwnedRoomId> {
        if let Ok(id) = <&RoomId>::try_from(id_or_alias) {
            return Ok(id.to_owned());
        }
        let alias = <&RoomAliasId>::try_from(id_or_alias)
            .map_err(|e| Error::invalid_param(format!("{id_or_alias}: {e}")))?;
        self.resolve_alias(alias)?
            .ok_or_else(|| Error::not_found("The room alias"))
    }

    /// Joins a room.
    ///
    /// # Errors
    /// 403 when the room's rules say no, 404 when this node does not know the room.
    pub async fn join(
        &self,
        requester: &Requester,
        room: &RoomId,
        reason: Option<String>,
        custom: CanonicalJsonObject,
    ) -> Result<()> {
        self.limits.check(Kind::Join, requester.user_id.as_str())?;
        let mut guard = self.rooms.lock(room).await?;
        let head = guard.head();
        let before = self.membership(head, requester.nid)?;
        if before == MembershipState::Join && custom.is_empty() {
            drop(guard);
            return self.settle().await;
        }
        if requester.guest {
            self.check_guest(head)?;
        }
        let mut content = custom;
        content.extend(self.profile(&self.store.latest(), &requester.user_id)?);
        if before != MembershipState::Join
            && let Some(by) = self.authorised_by(head, requester, &before)?
        {
            content.insert(
                "join_authorised_via_users_server".to_owned(),
                by.to_string().into(),
            );
        }
        self.change(
            guard,
            requester,
            &requester.user_id,
            MembershipState::Join,
            reason,
            content,
        )
        .await
    }

    /// Asks to be let into a room.
    ///
    /// # Errors
    /// 403 when the room takes no such requests, 404 when this node does not know the room.
    pub async fn knock(
        &self,
        requester: &Requester,
        room: &RoomId,
        reason: Option<String>,
    ) -> Result<()> {
        self.limits.check(Kind::Join, requester.user_id.as_str())?;
        let guard = self.rooms.lock(room).await?;
        let profile = self.profile(&self.store.latest(), &requester.user_id)?;
        self.change(
            guard,
            requester,
            &requester.user_id,
            MembershipState::Knock,
            reason,
            profile,
        )
        .await
    }

    /// Leaves a room, declines an invite or takes back a knock.
    ///
    /// # Errors
    /// 403 when the user has nothing to do with the room.
    pub async fn leave(
        &self,
        requester: &Requester,
        room: &RoomId,
        reason: Option<String>,
    ) -> Result<()> {
        let mut guard = self.rooms.lock_known(requester, room).await?;
        let membership = self.membership(guard.head(), requester.nid)?;
        if membership == MembershipState::Leave {
            drop(guard);
            return self.settle().await;
        }
        let target = &*requester.user_id;
        self.change(
            guard,
            requester,
            target,
            MembershipState::Leave,
            reason,
            CanonicalJsonObject::new(),
        )
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
        reason: Option<String>,
    ) -> Result<()> {
        self.check_reachable(target)?;
        self.limits
            .check(Kind::Invite, requester.user_id.as_str())?;
        self.limits.check(Kind::Invited, target.as_str())?;
        let guard = self.rooms.lock_for(requester, room).await?;
        let profile = self.profile(&self.store.latest(), target)?;
        self.change(
            guard,
            requester,
            target,
            MembershipState::Invite,
            reason,
            profile,
        )
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
        reason: Option<String>,
    ) -> Result<()> {
        let mut guard = self.rooms.lock_for(requester, room).await?;
        let before = self.membership_of(guard.head(), target)?;
        if matches!(before, MembershipState::Leave | MembershipState::Ban) {
            return Err(Error::forbidden(format!("{target} is not in the room")));
        }
        self.change(
            guard,
            requester,
            target,
            MembershipState::Leave,
            reason,
            CanonicalJsonObject::new(),
        )
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
        reason: Option<String>,
    ) -> Result<()> {
        let guard = self.rooms.lock_for(requester, room).await?;
        let profile = self.profile(&self.store.latest(), target)?;
        self.change(
            guard,
            requester,
            target,
            MembershipState::Ban,
            reason,
            profile,
        )
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
        reason: Option<String>,
    ) -> Result<()> {
        let mut guard = self.rooms.lock_for(requester, room).await?;
        if self.membership_of(guard.head(), target)? != MembershipState::Ban {
            return Err(Error::forbidden(format!("{target} is not banned")));
        }
        self.change(
            guard,
            requester,
            target,
            MembershipState::Leave,
            reason,
            CanonicalJsonObject::new(),
        )
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

    /// Writes a member event and waits until it is safe.
    async fn change(
        &self,
        mut guard: RoomGuard,
        requester: &Requester,
        target: &UserId,
        membership: MembershipState,
        reason: Option<String>,
        mut content: CanonicalJsonObject,
    ) -> Result<()> {
        content.insert("membership".to_owned(), membership.to_string().into());
        if let Some(reason) = reason {
            content.insert("reason".to_owned(), reason.into());
        }
        let mut run = Run::new(&self.rooms, guard.head());
        let key = target.as_str();
        run.add(NewEvent::state(
            &requester.user_id,
            StateEventType::RoomMember,
            key,
            content,
        ))?;
        run.commit(|_| Ok(()))?;
        drop(guard);
        self.settle().await
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

    /// Whoever has their account elsewhere could not be told of an invite.
    pub(super) fn check_reachable(&self, user: &UserId) -> Result<()> {
        if user.server_name() == self.rooms.server_name() {
            return Ok(());
        }
        Err(Error::forbidden(format!(
            "This node does not reach other servers yet, so {user} can not be invited"
        )))
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
