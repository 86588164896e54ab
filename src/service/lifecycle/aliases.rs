//! Names for rooms, and the directory in which rooms are listed. See "Room aliases" and "Listing rooms" in the
//! client-server API.

use http::StatusCode;
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedRoomAliasId, OwnedRoomId, OwnedServerName,
    RoomAliasId, RoomId, ServerName,
    events::{StateEventType, TimelineEventType, room::member::MembershipState},
};

use super::Lifecycle;
use crate::{
    error::{Error, Result},
    protocol::ids::RoomNid,
    service::{
        Requester,
        limits::Kind,
        rooms::{Listed, Listing, NewEvent, Reach, RoomHead, Run, Stored},
    },
    store::{
        Batch,
        schema::{ALIASES, AliasRow, PUBLIC_ROOMS, ROOM_ALIASES, ROOM_HEADS},
    },
};

/// The most aliases of other servers in one event; each costs a question to its server.
const MOST_REMOTE: usize = 10;

/// The most aliases of a room on this node.
const MOST_ALIASES: usize = 1000;

impl Lifecycle {
    /// The room that an alias of any server stands for, and servers that know it.
    ///
    /// # Errors
    /// 404 when there is no such alias; why its server can not be asked.
    pub async fn find_room_by_alias(
        &self,
        alias: &RoomAliasId,
    ) -> Result<(OwnedRoomId, Vec<OwnedServerName>)> {
        if alias.server_name() == self.rooms.server_name() {
            return self.alias_told(alias);
        }
        self.federation.look_up_alias(alias).await
    }

    /// Gives a room that the user is in one more name.
    ///
    /// # Errors
    /// 400 when it can not be a name here, 403 when the user is not in the room, 409 when it is taken.
    pub async fn create_alias(
        &self,
        requester: &Requester,
        alias: &RoomAliasId,
        room: &RoomId,
    ) -> Result<()> {
        self.limits
            .check(Kind::Message, requester.user_id.as_str())?;
        self.check_new_alias(alias)?;
        let mut guard = self.rooms.lock_for(requester, room).await?;
        let nid = guard.head().nid;
        let taken = self.aliases.lock();
        let view = self.store.latest();
        if ALIASES.contains(&view, &(alias.as_str(),))? {
            return Err(Error::api(
                StatusCode::CONFLICT,
                "M_UNKNOWN",
                format!("The alias {alias} is already taken"),
            ));
        }
        if ROOM_ALIASES.scan(&view, &(nid,)).take(MOST_ALIASES).count() == MOST_ALIASES {
            return Err(Error::invalid_param("The room has too many aliases"));
        }
        let row = AliasRow {
            room: nid,
            creator: requester.user_id.clone(),
        };
        let committed = self.store.commit(|batch| {
            put_alias(batch, alias, &row);
            Ok(())
        })?;
        drop(taken);
        drop(guard);
        Ok(self.store.durable(committed.position).await?)
    }

    /// Takes a name from a room. If the room calls itself so, and the user may change that, it does not any more.
    ///
    /// # Errors
    /// 404 when there is no such alias here, 403 for users who have neither made it nor have power in its room.
    pub async fn delete_alias(&self, requester: &Requester, alias: &RoomAliasId) -> Result<()> {
        if alias.server_name() != self.rooms.server_name() {
            return Err(Error::invalid_param(format!(
                "{alias} belongs to another server, and can only be deleted there"
            )));
        }
        self.limits
            .check(Kind::Message, requester.user_id.as_str())?;
        let missing = || Error::not_found("The room alias");
        let key = (alias.as_str(),);
        let row = ALIASES.get(&self.store.latest(), &key)?;
        let row = row.ok_or_else(missing)?;
        let room = self.store.room_id(row.room)?;
        let mut guard = None;
        if ROOM_HEADS.contains(&self.store.latest(), &(row.room,))? {
            guard = Some(self.rooms.lock(&room).await?);
        }
        let taken = self.aliases.lock();
        // It may have gone, or moved to another room, meanwhile.
        let now = ALIASES.get(&self.store.latest(), &key)?;
        let now = now.filter(|now| now.room == row.room).ok_or_else(missing)?;
        let may_name = match &mut guard {
            Some(guard) => self.may_name(requester, guard.head())?,
            None => false,
        };
        if now.creator != requester.user_id && !may_name && !requester.admin {
            return Err(Error::forbidden(
                "Only whoever has made the alias, or may set the room's main alias, can delete it",
            ));
        }
        let delete = |batch: &mut Batch<'_>| drop_alias(batch, alias, row.room);
        let renamed = match &mut guard {
            Some(guard) if may_name => self.without(guard.head(), alias)?,
            _ => None,
        };
        let kind = StateEventType::RoomCanonicalAlias;
        let mut rename =
            renamed.map(|content| NewEvent::state(&requester.user_id, kind, "", content));
        let at_once = match (&mut guard, &rename) {
            (Some(guard), Some(event)) => self.policy_for(guard.head(), event)?.is_none(),
            _ => true,
        };
        match (guard.as_mut(), rename.take_if(|_| at_once)) {
            (Some(guard), Some(event)) => {
                let mut run = Run::new(&self.rooms, guard.head());
                run.add(event)?;
                run.commit(delete)?;
            }
            _ => {
                let _durable_with_the_next = self.store.commit(|batch| {
                    delete(batch);
                    Ok(())
                })?;
            }
        }
        drop(taken);
        if let (Some(guard), Some(event)) = (guard, rename) {
            // The alias is gone, whatever the room's policy server thinks of its name.
            match self.write(guard, event).await {
                Err(error) if error.is_internal() => return Err(error),
                Err(error) => {
                    tracing::info!(%room, %error, "a room keeps the name of an alias that is gone");
                }
                Ok(_) => {}
            }
        }
        self.settle().await
    }

    /// The aliases of a room on this node.
    ///
    /// # Errors
    /// 403 for users who are not in the room, unless everybody may read it.
    pub fn aliases_of(
        &self,
        requester: &Requester,
        room: &RoomId,
    ) -> Result<Vec<OwnedRoomAliasId>> {
        let view = self.store.view();
        let sight = self.rooms.sight_of(&view, room, requester)?;
        if !matches!(sight.reach()?, Reach::Now) {
            return Err(Error::forbidden("You are not in this room"));
        }
        let mut aliases = Vec::new();
        for row in ROOM_ALIASES.scan(&view, &(sight.room,)) {
            let ((_, alias), ()) = row?;
            aliases.extend(RoomAliasId::parse(&alias).ok());
        }
        Ok(aliases)
    }

    /// Whether a room is listed in the directory of this node.
    ///
    /// # Errors
    /// 404 when this node does not know the room.
    pub fn is_listed(&self, room: &RoomId) -> Result<bool> {
        let view = self.store.view();
        let missing = || Error::not_found("The room");
        let room = self.store.find_room(room)?.ok_or_else(missing)?;
        if !ROOM_HEADS.contains(&view, &(room,))? {
            return Err(missing());
        }
        Ok(PUBLIC_ROOMS.contains(&view, &(room,))?)
    }

    /// Lists a room in the directory, or takes it out.
    ///
    /// # Errors
    /// 403 for users who could not give the room its main alias.
    pub async fn set_listed(
        &self,
        requester: &Requester,
        room: &RoomId,
        listed: bool,
    ) -> Result<()> {
        let mut guard = if requester.admin {
            self.rooms.lock(room).await?
        } else {
            self.rooms.lock_for(requester, room).await?
        };
        let head = guard.head();
        if !requester.admin && !self.may_name(requester, head)? {
            return Err(Error::forbidden(
                "Only those who may set the room's main alias can list the room",
            ));
        }
        let key = (head.nid,);
        let committed = self.store.commit(|batch| {
            if listed {
                PUBLIC_ROOMS.put(batch, &key, &());
            } else {
                PUBLIC_ROOMS.delete(batch, &key);
            }
            Ok(())
        })?;
        drop(guard);
        Ok(self.store.durable(committed.position).await?)
    }

    /// A part of the directory of this node, or of another server.
    ///
    /// # Errors
    /// 400 for what can not be asked; what the other server says, or why it does not.
    pub async fn public_rooms(
        &self,
        server: Option<&ServerName>,
        listing: Listing,
    ) -> Result<Listed> {
        if let Some(server) = server.filter(|server| *server != self.rooms.server_name()) {
            return self.federation.public_rooms(server, &listing).await;
        }
        let rooms = self.rooms.clone();
        let listed = tokio::task::spawn_blocking(move || rooms.listed_rooms(&listing)).await;
        listed.map_err(|e| Error::Internal(format!("reading the directory broke off: {e}")))?
    }

    /// Makes sure that a new alias can be one.
    ///
    /// # Errors
    /// 400 when it can not.
    pub(super) fn check_new_alias(&self, alias: &RoomAliasId) -> Result<()> {
        let localpart = alias.alias();
        if alias.server_name() != self.rooms.server_name() {
            return Err(Error::invalid_param(format!(
                "An alias here ends in :{}",
                self.rooms.server_name()
            )));
        }
        if localpart.is_empty()
            || localpart.contains([':', '\0'])
            || localpart.contains(|c: char| c.is_whitespace() || c.is_control())
        {
            return Err(Error::invalid_param(format!("{alias} can not be an alias")));
        }
        Ok(())
    }

    /// Whether somebody is in a room and may set its main alias.
    fn may_name(&self, requester: &Requester, head: &RoomHead) -> Result<bool> {
        if !head.members.contains(&requester.nid) {
            return Ok(false);
        }
        let view = self.store.latest();
        let power = self.rooms.power_levels(&view, &head.state, head.rules)?;
        Ok(power.may_send(
            &requester.user_id,
            &TimelineEventType::RoomCanonicalAlias,
            true,
        ))
    }

    fn canonical(&self, head: &RoomHead) -> Result<Option<std::sync::Arc<Stored>>> {
        let view = self.store.latest();
        self.rooms
            .entry(&view, &head.state, "m.room.canonical_alias", "")
    }

    /// What the room calls itself without an alias; none if it does not call itself so.
    fn without(&self, head: &RoomHead, alias: &RoomAliasId) -> Result<Option<CanonicalJsonObject>> {
        let Some(stored) = self.canonical(head)? else {
            return Ok(None);
        };
        let before = stored.event.content_as::<CanonicalJsonObject>();
        let before = before.unwrap_or_default();
        let mut after = before.clone();
        let is_gone = |value: &CanonicalJsonValue| value.as_str() == Some(alias.as_str());
        after.retain(|name, value| name != "alias" || !is_gone(value));
        if let Some(CanonicalJsonValue::Array(others)) = after.get_mut("alt_aliases") {
            others.retain(|other| !is_gone(other));
            if others.is_empty() {
                after.remove("alt_aliases");
            }
        }
        Ok((after != before).then_some(after))
    }

    /// Before the room is locked: aliases of other servers must lead to the room, as those servers say.
    ///
    /// # Errors
    /// 400 M_BAD_ALIAS when one leads elsewhere or nowhere.
    pub(super) async fn check_remote_aliases(
        &self,
        requester: &Requester,
        room: &RoomId,
        content: &CanonicalJsonObject,
    ) -> Result<()> {
        let view = self.store.view();
        let Some(nid) = self.store.find_room(room)? else {
            return Ok(());
        };
        // Who is not in the room is refused for that, and has nobody asked.
        if self.rooms.membership_at(&view, nid, requester.nid)? != Some(MembershipState::Join) {
            return Ok(());
        }
        let kind = StateEventType::RoomCanonicalAlias;
        let before = self.rooms.current(&view, nid, &kind, "")?;
        let new = new_aliases(content, before.as_deref())?;
        let own = self.rooms.server_name();
        let remote: Vec<_> = new.iter().filter(|a| a.server_name() != own).collect();
        if remote.len() > MOST_REMOTE {
            return Err(Error::invalid_param(format!(
                "At most {MOST_REMOTE} aliases of other servers can be added at once"
            )));
        }
        for alias in remote {
            match self.federation.look_up_alias(alias).await {
                Ok((found, _)) if found == room => {}
                Err(error) if error.is_internal() => return Err(error),
                _ => return Err(bad_alias(alias)),
            }
        }
        Ok(())
    }

    /// An alias of ours that a room calls itself by must lead to the room.
    pub(super) fn check_aliases(
        &self,
        head: &RoomHead,
        content: &CanonicalJsonObject,
    ) -> Result<()> {
        let before = self.canonical(head)?;
        for alias in new_aliases(content, before.as_deref())? {
            if alias.server_name() == self.rooms.server_name()
                && self.resolve_alias(&alias)?.as_ref() != Some(&head.id)
            {
                return Err(bad_alias(&alias));
            }
        }
        Ok(())
    }
}

/// Writes an alias, under both of its keys.
pub(super) fn put_alias(batch: &mut Batch<'_>, alias: &RoomAliasId, row: &AliasRow) {
    ALIASES.put(batch, &(alias.as_str(),), row);
    ROOM_ALIASES.put(batch, &(row.room, alias.as_str()), &());
}

/// Removes an alias.
pub(super) fn drop_alias(batch: &mut Batch<'_>, alias: &RoomAliasId, room: RoomNid) {
    ALIASES.delete(batch, &(alias.as_str(),));
    ROOM_ALIASES.delete(batch, &(room, alias.as_str()));
}

fn bad_alias(alias: &RoomAliasId) -> Error {
    Error::api(
        StatusCode::BAD_REQUEST,
        "M_BAD_ALIAS",
        format!("{alias} does not lead to this room"),
    )
}

/// The aliases of a `m.room.canonical_alias` that the event before it does not have.
///
/// # Errors
/// 400 for what can be no alias.
fn new_aliases(
    content: &CanonicalJsonObject,
    before: Option<&Stored>,
) -> Result<Vec<OwnedRoomAliasId>> {
    let main = content
        .get("alias")
        .filter(|alias| **alias != CanonicalJsonValue::Null);
    let others = match content.get("alt_aliases") {
        None => None,
        Some(CanonicalJsonValue::Array(aliases)) => Some(aliases),
        Some(_) => return Err(Error::invalid_param("`alt_aliases` must be a list")),
    };
    let before = before.and_then(|stored| stored.event.content_as::<CanonicalJsonObject>().ok());
    let before = before.unwrap_or_default();
    let known = |alias: &CanonicalJsonValue| {
        before.get("alias") == Some(alias)
            || before
                .get("alt_aliases")
                .and_then(CanonicalJsonValue::as_array)
                .is_some_and(|known| known.contains(alias))
    };
    let mut new = Vec::new();
    for alias in main.into_iter().chain(others.into_iter().flatten()) {
        let text = alias.as_str().unwrap_or_default();
        let parsed = RoomAliasId::parse(text)
            .map_err(|e| Error::invalid_param(format!("{text:?} is not an alias: {e}")))?;
        if !known(alias) && !new.contains(&parsed) {
            new.push(parsed);
        }
    }
    Ok(new)
}
