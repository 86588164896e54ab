//! What a server that wants to enter or leave a room, or to invite into it, is told about it.

use std::cell::RefCell;

use ruma::{
    CanonicalJsonObject, EventId, OwnedEventId, OwnedServerName, OwnedUserId, RoomId,
    RoomVersionId, ServerName, UserId,
    events::{StateEventType, room::member::MembershipState},
    state_res::Event as _,
};
use serde::Deserialize;
use serde_json::Value;

use super::{NewEvent, RoomGuard, RoomHead, Rooms, Run};
use crate::{
    error::{Error, Result},
    protocol::{
        auth,
        event::Event,
        format,
        ids::{EventNid, RoomNid, UserNid},
        summary::stripped_state,
    },
    store::{
        View,
        schema::{MemberRow, ROOM_MEMBERS, STRIPPED},
    },
};

/// The state of a room as a server that joins is told it, all events in the format of their room version.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// The state before the join.
    pub state: Vec<EventNid>,
    /// All that authorises it and the join.
    pub auth_chain: Vec<EventNid>,
    /// The servers that were in the room.
    pub servers: Vec<OwnedServerName>,
}

impl Rooms {
    /// Waits for the lock of a room in which this node can speak for others: a user of ours is in it.
    ///
    /// # Errors
    /// 404 when there is none, whether this node knows the room or not; 403 when the room keeps the server out.
    pub async fn lock_as_resident(&self, room: &RoomId, origin: &ServerName) -> Result<RoomGuard> {
        let mut guard = self.lock(room).await?;
        let head = guard.head();
        if head.row.extremities.is_empty() || head.members.is_empty() {
            return Err(Error::not_found("The room"));
        }
        if !self.acl_allows(&self.store.latest(), head.nid, origin)? {
            return Err(Error::forbidden(format!(
                "{origin} is kept out of this room"
            )));
        }
        Ok(guard)
    }

    /// Whether this node is told what happens in a room.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn takes_part_in(&self, room: &RoomId) -> Result<bool> {
        match self.lock(room).await {
            Ok(mut guard) => Ok(self.takes_part(guard.head())),
            Err(error) if error.is_internal() => Err(error),
            Err(_) => Ok(false),
        }
    }

    /// The event by which a membership would change now, signed by us and checked, but not written.
    ///
    /// # Errors
    /// 403 when the room does not allow it.
    pub fn member_event(
        &self,
        head: &mut RoomHead,
        (sender, target): (&UserId, &UserId),
        content: CanonicalJsonObject,
    ) -> Result<Event> {
        let new = NewEvent::state(sender, StateEventType::RoomMember, target.as_str(), content);
        Run::new(self, head).try_out(new)
    }

    /// Whether the room, as it is now, allows an event.
    ///
    /// # Errors
    /// 403 when it does not.
    pub fn check_now(&self, head: &RoomHead, event: &Event) -> Result<()> {
        let view = self.store.latest();
        // The rules ask by a closure that can not fail, so a failure of the store is kept aside.
        let failure = RefCell::new(None);
        let verdict = auth::check_against(
            head.rules,
            &event,
            |kind: &StateEventType, key: &str| match self.entry(
                &view,
                &head.state,
                &kind.to_string(),
                key,
            ) {
                Ok(found) => found.map(|stored| stored.event.clone()),
                Err(error) => {
                    failure.borrow_mut().replace(error);
                    None
                }
            },
        );
        match failure.into_inner() {
            Some(error) => Err(error),
            None => Ok(verdict?),
        }
    }

    /// What somebody is in a room now.
    ///
    /// # Errors
    /// When the store fails.
    pub fn membership_now(&self, room: RoomNid, user: &UserId) -> Result<MembershipState> {
        let row = match self.store.find_user(user)? {
            Some(user) => ROOM_MEMBERS.get(&self.store.latest(), &(room, user))?,
            None => None,
        };
        Ok(row.map_or(MembershipState::Leave, |row| row.membership))
    }

    /// Whether a change of membership is one on which the newest one that is known here builds.
    ///
    /// # Errors
    /// When the store fails.
    pub fn has_passed(&self, room: RoomNid, user: UserNid, change: &EventId) -> Result<bool> {
        let view = self.store.latest();
        let Some(row) = ROOM_MEMBERS.get(&view, &(room, user))? else {
            return Ok(false);
        };
        let newest = self.event(&view, row.event)?;
        let builds_on = |id: &OwnedEventId| id == change;
        Ok(newest.event.auth_events().any(builds_on) || newest.event.prev_events().any(builds_on))
    }

    /// The few events of the current state by which somebody outside of the room is told what room it is, whole, as
    /// servers send them to each other. See "Stripped state".
    ///
    /// # Errors
    /// When the store fails.
    pub fn introduction(&self, head: &RoomHead, speaker: &UserId) -> Result<Vec<String>> {
        let view = self.store.latest();
        let mut events = Vec::new();
        let members = [speaker];
        for (event_type, key) in stripped_state(&members) {
            let found = self.entry(&view, &head.state, &event_type.to_string(), key)?;
            events.extend(found.map(|found| format::federation(&found.event)));
        }
        Ok(events)
    }

    /// What a server whose user has just joined by `join` is told.
    ///
    /// # Errors
    /// When the store fails, or the event has no place in the room.
    pub fn told_on_join(&self, view: &View, room: RoomNid, join: &EventId) -> Result<Told> {
        let stored = self.find_event(view, join)?;
        let stored = stored.filter(|stored| stored.has_state());
        let stored = stored.ok_or_else(|| Error::not_found("The event"))?;
        let state = self.store.state(stored.facts.before)?;
        let state: Vec<EventNid> = state.values().copied().collect();
        let mut of = state.clone();
        of.push(stored.nid);
        let auth_chain = self.auth_chain(view, &of)?;
        Ok(Told {
            state,
            auth_chain,
            servers: self.servers_in(view, room)?,
        })
    }

    /// Whoever has invited a user to a room.
    ///
    /// # Errors
    /// When the store fails.
    pub fn invited_by(&self, room: &RoomId, user: UserNid) -> Result<Option<OwnedUserId>> {
        let view = self.store.latest();
        let Some(room) = self.store.find_room(room)? else {
            return Ok(None);
        };
        let row = ROOM_MEMBERS.get(&view, &(room, user))?;
        let Some(row) = row.filter(|row| row.membership == MembershipState::Invite) else {
            return Ok(None);
        };
        let event = self.event(&view, row.event)?;
        Ok(Some(event.event.header.sender.clone()))
    }

    /// The servers that may know a room in which this node does not take part, the best first: those of whoever has
    /// invited the user, those named in what was told of the room, those that were in it, and the one in its name.
    ///
    /// # Errors
    /// When the store fails.
    pub fn servers_that_may_know(
        &self,
        room: &RoomId,
        user: UserNid,
    ) -> Result<Vec<OwnedServerName>> {
        let view = self.store.latest();
        let mut servers: Vec<OwnedServerName> = Vec::new();
        let mut add = |server: &ServerName| {
            if server != self.server_name && !servers.iter().any(|known| known == server) {
                servers.push(server.to_owned());
            }
        };
        if let Some(nid) = self.store.find_room(room)? {
            if let Some(MemberRow { event, .. }) = ROOM_MEMBERS.get(&view, &(nid, user))? {
                add(self.event(&view, event)?.event.header.sender.server_name());
            }
            let told = STRIPPED.get(&view, &(nid, user))?.unwrap_or_default();
            for sender in senders(&told) {
                add(sender.server_name());
            }
            for server in self.servers_in(&view, nid)? {
                add(&server);
            }
        }
        if let Some(server) = room.server_name() {
            add(server);
        }
        Ok(servers)
    }

    /// The version of a room as somebody who is invited to it, or knocks at it, was told.
    ///
    /// # Errors
    /// When the store fails.
    pub fn version_told(&self, room: &RoomId, user: UserNid) -> Result<Option<RoomVersionId>> {
        let view = self.store.latest();
        if let Some(version) = self.version_of(&view, room)? {
            return Ok(Some(version));
        }
        let Some(nid) = self.store.find_room(room)? else {
            return Ok(None);
        };
        let told = STRIPPED.get(&view, &(nid, user))?.unwrap_or_default();
        let told: Vec<Value> = serde_json::from_str(&told).unwrap_or_default();
        let create = told.iter().find(|event| event["type"] == "m.room.create");
        let version = create.and_then(|create| create["content"]["room_version"].as_str());
        Ok(version.and_then(|version| version.try_into().ok()))
    }
}

/// Who has sent the events that tell of a room.
fn senders(told: &str) -> Vec<OwnedUserId> {
    #[derive(Deserialize)]
    struct Sent {
        sender: OwnedUserId,
    }
    let told: Vec<Value> = serde_json::from_str(told).unwrap_or_default();
    let sent = told
        .into_iter()
        .filter_map(|event| Sent::deserialize(event).ok());
    sent.map(|sent| sent.sender).collect()
}
