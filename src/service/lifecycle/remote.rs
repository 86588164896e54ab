//! What a user does in rooms that this node is not in: the other servers are asked.

use ruma::{
    CanonicalJsonObject, OwnedEventId, OwnedRoomId, OwnedServerName, RoomAliasId, RoomId,
    RoomOrAliasId, RoomVersionId,
};

use super::Lifecycle;
use crate::{
    error::{Error, Result},
    service::{Requester, federation::Wish},
};

/// The version that is taken for a room of which nothing is known, when its user leaves it for themselves alone.
const ANY_VERSION: RoomVersionId = RoomVersionId::V11;

/// The servers in the answer to who knows an alias.
const MOST_SERVERS: usize = 50;

impl Lifecycle {
    /// The room that an id or an alias means, and the servers that may know it: `via`, and those that the server of the
    /// alias names.
    ///
    /// # Errors
    /// 404 when nobody knows the alias; why its server can not be asked.
    pub async fn room_meant(
        &self,
        id_or_alias: &RoomOrAliasId,
        via: Vec<OwnedServerName>,
    ) -> Result<(OwnedRoomId, Vec<OwnedServerName>)> {
        if let Ok(id) = <&RoomId>::try_from(id_or_alias) {
            return Ok((id.to_owned(), via));
        }
        let alias = <&RoomAliasId>::try_from(id_or_alias)
            .map_err(|e| Error::invalid_param(format!("{id_or_alias}: {e}")))?;
        if alias.server_name() == self.rooms.server_name() {
            let room = self.resolve_alias(alias)?;
            let room = room.ok_or_else(|| Error::not_found("The room alias"))?;
            return Ok((room, via));
        }
        let (room, mut servers) = self.federation.find_alias(alias).await?;
        servers.extend(via);
        Ok((room, servers))
    }

    /// The same for somebody who only looks around.
    ///
    /// # Errors
    /// As [`room_meant`](Self::room_meant), and 429 when too many do.
    pub(super) async fn room_looked_for(
        &self,
        id_or_alias: &RoomOrAliasId,
        via: Vec<OwnedServerName>,
    ) -> Result<(OwnedRoomId, Vec<OwnedServerName>)> {
        let own = self.rooms.server_name();
        match <&RoomAliasId>::try_from(id_or_alias) {
            Ok(alias) if alias.server_name() != own => {
                let (room, mut servers) = self.federation.look_up_alias(alias).await?;
                servers.extend(via);
                Ok((room, servers))
            }
            _ => self.room_meant(id_or_alias, via).await,
        }
    }

    /// What another server is told of an alias of ours: its room, and the servers in it.
    ///
    /// # Errors
    /// 404 when there is no such alias.
    pub fn alias_told(&self, alias: &RoomAliasId) -> Result<(OwnedRoomId, Vec<OwnedServerName>)> {
        let missing = || Error::not_found("The room alias");
        if alias.server_name() != self.rooms.server_name() {
            return Err(missing());
        }
        let room = self.resolve_alias(alias)?.ok_or_else(missing)?;
        let nid = self.store.find_room(&room)?.ok_or_else(missing)?;
        let mut servers = self.rooms.servers_in(&self.store.latest(), nid)?;
        // Whoever asks us should ask us first.
        servers.sort_by_key(|server| server != self.rooms.server_name());
        servers.truncate(MOST_SERVERS);
        Ok((room, servers))
    }

    /// Joins by way of the other servers; none when this node has come into the room meanwhile.
    pub(super) async fn join_elsewhere(
        &self,
        requester: &Requester,
        room: &RoomId,
        via: &[OwnedServerName],
        custom: CanonicalJsonObject,
        always: bool,
    ) -> Result<Option<OwnedEventId>> {
        let content = self.introduced(&requester.user_id, custom)?;
        let wish = self.wish(requester, room, via, content)?;
        if requester.guest && !wish.via.is_empty() {
            return Err(Error::guest_access_forbidden(
                "Guests can not join rooms of other servers",
            ));
        }
        Box::pin(self.federation.join(&wish, always)).await
    }

    /// Knocks by way of the other servers.
    pub(super) async fn knock_elsewhere(
        &self,
        requester: &Requester,
        room: &RoomId,
        via: &[OwnedServerName],
        custom: CanonicalJsonObject,
    ) -> Result<OwnedEventId> {
        let content = self.introduced(&requester.user_id, custom)?;
        let wish = self.wish(requester, room, via, content)?;
        Box::pin(self.federation.knock(&wish)).await
    }

    /// Declines an invite to a room of others, or takes back a knock there.
    pub(super) async fn leave_elsewhere(
        &self,
        requester: &Requester,
        room: &RoomId,
        custom: CanonicalJsonObject,
    ) -> Result<OwnedEventId> {
        let version = self.rooms.version_told(room, requester.nid)?;
        let wish = self.wish(requester, room, &[], custom)?;
        let version = version.unwrap_or(ANY_VERSION);
        Box::pin(self.federation.leave(&wish, &version)).await
    }

    /// The same without asking anybody there.
    pub(super) async fn leave_unasked(&self, requester: &Requester, room: &RoomId) -> Result<()> {
        let version = self.rooms.version_told(room, requester.nid)?;
        let wish = Wish {
            room,
            user: &requester.user_id,
            content: CanonicalJsonObject::new(),
            via: Vec::new(),
        };
        let version = version.unwrap_or(ANY_VERSION);
        Box::pin(self.federation.leave(&wish, &version)).await?;
        Ok(())
    }

    fn wish<'w>(
        &self,
        requester: &'w Requester,
        room: &'w RoomId,
        via: &[OwnedServerName],
        content: CanonicalJsonObject,
    ) -> Result<Wish<'w>> {
        let mut via = via.to_vec();
        // To name us is to name nobody.
        via.retain(|server| server != self.rooms.server_name());
        let may_know = self.rooms.servers_that_may_know(room, requester.nid)?;
        match self.rooms.invited_by(room, requester.nid)? {
            _ if via.is_empty() => via = may_know,
            // Whoever says which servers to ask means these; only who has invited surely lets the user in.
            Some(by) => via.push(by.server_name().to_owned()),
            None => {}
        }
        Ok(Wish {
            room,
            user: &requester.user_id,
            content,
            via,
        })
    }
}
