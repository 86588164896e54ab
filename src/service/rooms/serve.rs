//! What this node tells other servers of a room that they are in.
//!
//! An event that a server may not see goes to it redacted, as the graph of the room could not be followed without it.
//! Every walk is bounded, whoever asks. See "Retrieving events" and "Backfilling and retrieving missing events" in the
//! server-server API.

use std::{
    cell::{OnceCell, RefCell},
    collections::{BTreeSet, BinaryHeap, HashMap, HashSet, VecDeque},
    sync::Arc,
};

use quick_cache::sync::Cache;
use ruma::{
    EventId, OwnedEventId, OwnedServerName, RoomId, RoomVersionId, ServerName, UserId,
    events::{
        TimelineEventType,
        room::{history_visibility::HistoryVisibility, member::MembershipState},
    },
    room_version_rules::RoomVersionRules,
    state_res::Event as _,
};

use super::{Rooms, Stored, visibility::visibility_of};
use crate::{
    error::{Error, Result},
    protocol::{
        acl::Acl,
        format,
        ids::{EventNid, Position, RoomNid, SnapshotId, StateKeyNid},
        version,
        visibility::{Moment, may_see},
    },
    store::{
        View,
        schema::{AUTH_EDGES, ROOM_HEADS, ROOM_MEMBERS},
    },
};

/// The most events of an answer to `/get_missing_events`.
pub const MAX_MISSING_EVENTS: usize = 20;

/// The most events of an answer to `/backfill`.
pub const MAX_BACKFILL: usize = 100;

/// How many times as many events as are answered a walk looks at, because some are rejected or too old.
const MAX_LOOKED_AT: usize = 10;

/// The most events of an auth chain.
const MAX_CHAIN: usize = 1_000_000;

/// How many rows are read at once.
const CHUNK: usize = 1000;

/// How many access lists are kept.
const ACLS: usize = 2000;

/// The access lists of rooms as they are read, by their event and whether that has been redacted.
pub(super) struct Acls(Cache<(EventNid, bool), Arc<Acl>>);

impl Default for Acls {
    fn default() -> Self {
        Self(Cache::new(ACLS))
    }
}

/// What one other server may have of one room. What was looked up once is kept, so use it for a whole answer.
pub struct Guest<'r> {
    pub(super) rooms: &'r Rooms,
    pub(super) view: &'r View,
    /// The room.
    pub room: RoomNid,
    server: OwnedServerName,
    rules: &'static RoomVersionRules,
    /// The entries of a state that are memberships of the server's users.
    users: OnceCell<Vec<StateKeyNid>>,
    moments: RefCell<HashMap<SnapshotId, Moment>>,
    /// When the server has left, if it has: it may have what was here then, which it needs to understand that it was put
    /// out.
    until: Option<Position>,
}

/// A state, and all that authorises it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateBefore {
    /// The events of the state.
    pub state: Vec<EventNid>,
    /// Those by which they are authorised, directly or not, oldest first.
    pub auth_chain: Vec<EventNid>,
}

impl Rooms {
    /// The version of a room that this node knows.
    ///
    /// # Errors
    /// When the store fails.
    pub fn version_of(&self, view: &View, room: &RoomId) -> Result<Option<RoomVersionId>> {
        let Some(room) = self.store.find_room(room)? else {
            return Ok(None);
        };
        Ok(ROOM_HEADS.get(view, &(room,))?.map(|head| head.version))
    }

    /// Whether the access list of a room, if it has one, lets a server take part.
    ///
    /// # Errors
    /// When the store fails.
    pub fn acl_allows(&self, view: &View, room: RoomNid, server: &ServerName) -> Result<bool> {
        let Some(stored) = self.current(view, room, &"m.room.server_acl".into(), "")? else {
            return Ok(true);
        };
        let key = (stored.nid, stored.facts.redacted_by.is_some());
        let acl = self.acls.0.get(&key).unwrap_or_else(|| {
            let acl = Arc::new(Acl::new(stored.event.content_json()));
            self.acls.0.insert(key, acl.clone());
            acl
        });
        Ok(acl.allows(server))
    }

    /// The number of a room that somebody has named.
    ///
    /// # Errors
    /// When the store fails.
    pub fn nid_of(&self, room: &RoomId) -> Result<Option<RoomNid>> {
        Ok(self.store.find_room(room)?)
    }

    /// What another server may have of a room.
    ///
    /// # Errors
    /// 404 when this node does not know the room, 403 when the server is kept out, or is not in it and has been told so.
    pub fn guest<'r>(
        &'r self,
        view: &'r View,
        room: &RoomId,
        server: &ServerName,
    ) -> Result<Guest<'r>> {
        let missing = || Error::not_found("The room");
        let nid = self.store.find_room(room)?.ok_or_else(missing)?;
        let head = ROOM_HEADS.get(view, &(nid,))?.ok_or_else(missing)?;
        let mut until = None;
        if !self.has_server(view, nid, server)? {
            until = self.left_at(view, nid, server)?;
            if until.is_none() {
                return Err(Error::forbidden(format!("{server} is not in this room")));
            }
        }
        if !self.acl_allows(view, nid, server)? {
            return Err(Error::forbidden(format!(
                "{server} is kept out of this room"
            )));
        }
        let rules = version::rules(&head.version);
        Ok(Guest {
            rooms: self,
            view,
            room: nid,
            server: server.to_owned(),
            rules: rules.ok_or_else(|| Error::Internal("a room has no version".to_owned()))?,
            users: OnceCell::new(),
            moments: RefCell::default(),
            until,
        })
    }

    /// What a server may have of the room of an event, for requests that name no room.
    ///
    /// # Errors
    /// 404 when this node does not have the event, else as [`Self::guest`].
    pub fn guest_at<'r>(
        &'r self,
        view: &'r View,
        event: &EventId,
        server: &ServerName,
    ) -> Result<(Guest<'r>, Arc<Stored>)> {
        let missing = || Error::not_found("The event");
        let stored = self.find_event(view, event)?.ok_or_else(missing)?;
        let guest = self.guest(view, &stored.event.header.room_id, server)?;
        guest.must_have_been_here(&stored)?;
        if stored.event.header.flags.rejected {
            return Err(missing());
        }
        Ok((guest, stored))
    }

    /// All that authorises some events, directly or not, oldest first and without the events themselves, unless one
    /// authorises another.
    ///
    /// # Errors
    /// 413 when it is more than any room needs.
    pub fn auth_chain(&self, view: &View, events: &[EventNid]) -> Result<Vec<EventNid>> {
        let mut chain = BTreeSet::new();
        let mut todo: Vec<EventNid> = events.to_vec();
        while !todo.is_empty() {
            let some = todo.split_off(todo.len().saturating_sub(CHUNK));
            let keys: Vec<_> = some.into_iter().map(|nid| (nid,)).collect();
            for edges in AUTH_EDGES.multi_get(view, &keys)?.into_iter().flatten() {
                todo.extend(edges.0.into_iter().filter(|nid| chain.insert(*nid)));
            }
            if chain.len() > MAX_CHAIN {
                return Err(Error::too_large("The auth chain is too long"));
            }
        }
        Ok(chain.into_iter().collect())
    }
}

impl Guest<'_> {
    /// An event of the room that is not rejected.
    ///
    /// # Errors
    /// When the store fails.
    pub fn find(&self, id: &EventId) -> Result<Option<Arc<Stored>>> {
        let found = self.rooms.find_event(self.view, id)?;
        let room = self.rooms.store.room_id(self.room)?;
        Ok(found.filter(|stored| {
            stored.event.header.room_id == *room && !stored.event.header.flags.rejected
        }))
    }

    /// The event as it goes to the server: whole, or redacted if it may not see it.
    ///
    /// # Errors
    /// When the store fails.
    pub fn pdu(&self, stored: &Stored) -> Result<String> {
        if self.sees(stored)? {
            return Ok(format::federation(&stored.event));
        }
        Ok(format::federation(&stored.emptied(self.rules)?))
    }

    /// Whether somebody of the server may see an event.
    ///
    /// # Errors
    /// When the store fails.
    pub fn sees(&self, stored: &Stored) -> Result<bool> {
        if !self.was_here(stored) {
            return Ok(false);
        }
        if !stored.has_state() {
            // It goes to every server in the room as a part of states and auth chains.
            return Ok(true);
        }
        let before = self.moment(stored.facts.before)?;
        let mut after = before.clone();
        let header = &stored.event.header;
        match (&header.event_type, header.state_key.as_deref()) {
            (TimelineEventType::RoomHistoryVisibility, Some("")) => {
                after.visibility = visibility_of(&stored.event);
            }
            (TimelineEventType::RoomMember, Some(user)) => {
                let user = <&UserId>::try_from(user).ok();
                if user.is_some_and(|user| user.server_name() == self.server)
                    && let Some(membership) = &header.membership
                    && openness(membership) > openness(&after.membership)
                {
                    after.membership = membership.clone();
                }
            }
            _ => {}
        }
        // The server is in the room, or was after that.
        Ok(may_see(&before, &after, true))
    }

    /// Whether an event was here before the server left.
    fn was_here(&self, stored: &Stored) -> bool {
        self.until.is_none_or(|until| stored.nid.0 <= until.0)
    }

    /// Fails if an event was not here before the server left.
    ///
    /// # Errors
    /// 403 then.
    pub fn must_have_been_here(&self, stored: &Stored) -> Result<()> {
        if self.was_here(stored) {
            return Ok(());
        }
        let server = &self.server;
        Err(Error::forbidden(format!("{server} is not in this room")))
    }

    fn moment(&self, at: SnapshotId) -> Result<Moment> {
        if let Some(moment) = self.moments.borrow().get(&at) {
            return Ok(moment.clone());
        }
        let state = self.rooms.store.state(at)?;
        let visibility = self
            .rooms
            .entry(self.view, &state, "m.room.history_visibility", "")?
            .map(|stored| visibility_of(&stored.event));
        let mut membership = MembershipState::Leave;
        // Who was there matters only where not all is shown to all who come.
        if matches!(
            visibility,
            Some(HistoryVisibility::Joined | HistoryVisibility::Invited)
        ) {
            for key in self.users()? {
                let Some(nid) = state.get(key) else { continue };
                let stored = self.rooms.event(self.view, *nid)?;
                if let Some(found) = &stored.event.header.membership
                    && openness(found) > openness(&membership)
                {
                    membership = found.clone();
                }
            }
        }
        let moment = Moment::new(visibility, Some(membership));
        self.moments.borrow_mut().insert(at, moment.clone());
        Ok(moment)
    }

    fn users(&self) -> Result<&[StateKeyNid]> {
        if let Some(users) = self.users.get() {
            return Ok(users);
        }
        let mut users = Vec::new();
        for row in ROOM_MEMBERS.scan(self.view, &(self.room,)) {
            let ((_, user), _) = row?;
            let user = self.rooms.store.user_id(user)?;
            if user.server_name() == self.server {
                let key = self
                    .rooms
                    .store
                    .find_state_key("m.room.member", user.as_str())?;
                users.extend(key);
            }
        }
        Ok(self.users.get_or_init(|| users))
    }

    /// The state before an event, and all that authorises it, as the answers of `/state` and `/state_ids`.
    ///
    /// # Errors
    /// 404 when the event, or the state around it, is not here.
    pub fn state_before(&self, id: &EventId) -> Result<StateBefore> {
        let stored = self.find(id)?.filter(|stored| stored.has_state());
        let stored = stored.ok_or_else(|| Error::not_found("The event"))?;
        self.must_have_been_here(&stored)?;
        let state = self.rooms.store.state(stored.facts.before)?;
        let state: Vec<EventNid> = state.values().copied().collect();
        let auth_chain = self.rooms.auth_chain(self.view, &state)?;
        Ok(StateBefore { state, auth_chain })
    }

    /// The events between some that the server has and some that it has heard of, oldest first.
    ///
    /// # Errors
    /// When the store fails.
    pub fn missing_events(
        &self,
        earliest: &[OwnedEventId],
        latest: &[OwnedEventId],
        limit: usize,
        min_depth: u64,
    ) -> Result<Vec<Arc<Stored>>> {
        let limit = limit.min(MAX_MISSING_EVENTS);
        let mut seen: HashSet<OwnedEventId> = earliest.iter().chain(latest).cloned().collect();
        let mut found = Vec::new();
        let mut todo: VecDeque<OwnedEventId> = VecDeque::new();
        for id in latest.iter().take(MAX_MISSING_EVENTS) {
            if let Some(stored) = self.rooms.find_event(self.view, id)? {
                self.must_have_been_here(&stored)?;
                todo.extend(stored.event.prev_events().cloned());
            }
        }
        let mut looked_at = 0;
        while let Some(id) = todo.pop_front() {
            if found.len() == limit || looked_at == limit * MAX_LOOKED_AT {
                break;
            }
            if !seen.insert(id.clone()) {
                continue;
            }
            looked_at += 1;
            let Some(stored) = self.walkable(&id)? else {
                continue;
            };
            if stored.event.header.depth < min_depth {
                continue;
            }
            todo.extend(stored.event.prev_events().cloned());
            if !stored.event.header.flags.rejected {
                found.push(stored);
            }
        }
        found.sort_by_key(|stored| (stored.event.header.depth, stored.nid));
        Ok(found)
    }

    /// Some events and those that were before them, newest first.
    ///
    /// # Errors
    /// When the store fails.
    pub fn backfill(&self, from: &[OwnedEventId], limit: usize) -> Result<Vec<Arc<Stored>>> {
        let limit = limit.min(MAX_BACKFILL);
        let mut seen: HashSet<OwnedEventId> = HashSet::new();
        let mut todo: BinaryHeap<(u64, EventNid)> = BinaryHeap::new();
        let mut found = Vec::new();
        let mut reach = |ids: &mut dyn Iterator<Item = &OwnedEventId>,
                         todo: &mut BinaryHeap<(u64, EventNid)>|
         -> Result<()> {
            for id in ids {
                if seen.insert(id.clone())
                    && let Some(stored) = self.walkable(id)?
                {
                    todo.push((stored.event.header.depth, stored.nid));
                }
            }
            Ok(())
        };
        reach(&mut from.iter().take(MAX_MISSING_EVENTS), &mut todo)?;
        for _ in 0..limit * MAX_LOOKED_AT {
            let Some((_, nid)) = todo.pop() else { break };
            let stored = self.rooms.event(self.view, nid)?;
            reach(&mut stored.event.prev_events(), &mut todo)?;
            if !stored.event.header.flags.rejected {
                found.push(stored);
            }
            if found.len() == limit {
                break;
            }
        }
        Ok(found)
    }

    /// An event of the room whose place in it is known, rejected or not.
    fn walkable(&self, id: &EventId) -> Result<Option<Arc<Stored>>> {
        let found = self.rooms.find_event(self.view, id)?;
        let room = self.rooms.store.room_id(self.room)?;
        Ok(found.filter(|stored| {
            stored.has_state() && self.was_here(stored) && stored.event.header.room_id == *room
        }))
    }
}

/// How much a membership lets somebody see.
fn openness(membership: &MembershipState) -> u8 {
    match membership {
        MembershipState::Join => 2,
        MembershipState::Invite => 1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests;
