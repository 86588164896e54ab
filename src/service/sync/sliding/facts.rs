//! What is known of a room to say in which lists it is, and where.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use ruma::{OwnedRoomId, events::room::member::MembershipState};
use serde::Deserialize;
use serde_json::Value;

use super::{
    super::{Sync, SyncRequest, v3::Asking},
    request::List,
};
use crate::{
    error::{Error, Result},
    protocol::ids::{Position, RoomNid},
    service::{Requester, rooms::Stored},
    store::{
        View,
        schema::{
            ACCOUNT_DATA, CURRENT_STATE, HeadRow, MemberRow, ROOM_HEADS, STRIPPED, USER_ROOMS,
        },
    },
};

/// The number that stands for no room.
const GLOBAL: RoomNid = RoomNid(0);

/// What is to be known of each room, besides what always is.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Questions {
    pub(super) encrypted: bool,
    pub(super) room_type: bool,
    pub(super) tags: bool,
}

/// What decides in which lists a room is, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) standing: Standing,
    /// When something has happened in the room the last time.
    pub(super) active: Position,
    pub(super) direct: bool,
    pub(super) encrypted: bool,
    pub(super) room_type: Option<Arc<str>>,
    pub(super) tags: BTreeSet<String>,
}

/// How the user stands to a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Joined.
    In,
    /// Invited.
    Invited,
    /// Has knocked.
    Knocked,
    /// Was sent out, having been in, which they may not know yet.
    Expelled,
    /// Has left.
    Gone,
}

#[derive(Deserialize)]
struct Tags {
    #[serde(default)]
    tags: BTreeMap<String, Value>,
}

/// The moment and the user for whom the lists are.
pub(super) struct Eyes<'a> {
    pub(super) sync: &'a Sync,
    pub(super) requester: &'a Requester,
    pub(super) view: &'a View,
}

impl Questions {
    pub(super) fn of(lists: &BTreeMap<String, List>) -> Self {
        let filters = || lists.values().filter_map(|list| list.filters.as_ref());
        Self {
            encrypted: filters().any(|f| f.is_encrypted.is_some()),
            room_type: filters().any(|f| f.room_types.is_some() || f.not_room_types.is_some()),
            tags: filters().any(|f| f.tags.is_some() || f.not_tags.is_some()),
        }
    }

    pub(super) fn and(self, other: Self) -> Self {
        Self {
            encrypted: self.encrypted || other.encrypted,
            room_type: self.room_type || other.room_type,
            tags: self.tags || other.tags,
        }
    }
}

impl Eyes<'_> {
    /// The rooms that the user calls direct chats.
    pub(super) fn direct_rooms(&self) -> Result<HashSet<RoomNid>> {
        let mut found = HashSet::new();
        let key = (self.requester.nid, GLOBAL, "m.direct");
        let Some(row) = ACCOUNT_DATA.get(self.view, &key)? else {
            return Ok(found);
        };
        let content: Value = serde_json::from_str(&row.content).unwrap_or_default();
        for rooms in content.as_object().into_iter().flat_map(|o| o.values()) {
            for room in rooms.as_array().into_iter().flatten() {
                if let Some(Ok(room)) = room.as_str().map(OwnedRoomId::try_from) {
                    found.extend(self.sync.store.find_room(&room)?);
                }
            }
        }
        Ok(found)
    }

    /// What is known of all rooms of the user that are for them to see.
    pub(super) fn all_facts(
        &self,
        direct: &HashSet<RoomNid>,
        asked: Questions,
    ) -> Result<HashMap<RoomNid, Facts>> {
        let rows = USER_ROOMS.scan(self.view, &(self.requester.nid,));
        let rows = rows.map(|row| row.map(|((_, room), member)| (room, member)));
        let members: Vec<_> = rows.collect::<Result<_, _>>()?;
        let joined = members
            .iter()
            .filter(|(_, member)| member.membership == MembershipState::Join);
        let keys: Vec<_> = joined.map(|(room, _)| (*room,)).collect();
        // Far faster than to ask for one after the other.
        let mut heads = ROOM_HEADS.multi_get(self.view, &keys)?.into_iter();
        let mut found = HashMap::with_capacity(members.len());
        for (room, member) in members {
            let is_in = member.membership == MembershipState::Join;
            let head = if is_in { heads.next().flatten() } else { None };
            let is_direct = direct.contains(&room);
            if let Some(facts) = self.facts_at(room, (&member, head), is_direct, asked)? {
                found.insert(room, facts);
            }
        }
        Ok(found)
    }

    /// What is known of a room; nothing if it is not for the user to see.
    pub(super) fn facts(
        &self,
        room: RoomNid,
        direct: bool,
        asked: Questions,
    ) -> Result<Option<Facts>> {
        let Some(member) = USER_ROOMS.get(self.view, &(self.requester.nid, room))? else {
            return Ok(None);
        };
        let head = match member.membership {
            MembershipState::Join => ROOM_HEADS.get(self.view, &(room,))?,
            _ => None,
        };
        self.facts_at(room, (&member, head), direct, asked)
    }

    fn facts_at(
        &self,
        room: RoomNid,
        (member, head): (&MemberRow, Option<HeadRow>),
        direct: bool,
        asked: Questions,
    ) -> Result<Option<Facts>> {
        if member.forgotten {
            return Ok(None);
        }
        let mut active = member.since;
        let standing = match member.membership {
            MembershipState::Join => {
                let head =
                    head.ok_or_else(|| Error::Internal(format!("room {room} has no head")))?;
                active = head.last;
                Standing::In
            }
            MembershipState::Invite => {
                if self.is_unwanted(room, member)? {
                    return Ok(None);
                }
                Standing::Invited
            }
            MembershipState::Knock => Standing::Knocked,
            _ => self.gone(room, member)?,
        };
        let mut facts = Facts {
            standing,
            active,
            direct,
            encrypted: false,
            room_type: None,
            tags: BTreeSet::new(),
        };
        if standing == Standing::Gone {
            // These are in no list.
            return Ok(Some(facts));
        }
        if asked.encrypted {
            facts.encrypted = match standing {
                Standing::In => {
                    CURRENT_STATE.contains(self.view, &(room, "m.room.encryption", ""))?
                }
                _ => self.told(room, member, "m.room.encryption")?.is_some(),
            };
        }
        if asked.room_type {
            facts.room_type = self.room_type(room, member, standing)?;
        }
        if asked.tags {
            let key = (self.requester.nid, room, "m.tag");
            let row = ACCOUNT_DATA.get(self.view, &key)?;
            let tags = row.and_then(|row| serde_json::from_str::<Tags>(&row.content).ok());
            facts.tags = tags.map_or_else(BTreeSet::new, |tags| tags.tags.into_keys().collect());
        }
        Ok(Some(facts))
    }

    fn is_unwanted(&self, room: RoomNid, member: &MemberRow) -> Result<bool> {
        let request = SyncRequest::bare();
        let asking = Asking {
            view: self.view,
            requester: self.requester,
            request: &request,
            since: None,
        };
        self.sync.is_unwanted(&asking, room, member)
    }

    /// Whether the user has left by themselves, or was never in the room, or was sent out.
    fn gone(&self, room: RoomNid, member: &MemberRow) -> Result<Standing> {
        let event = self.sync.rooms.event(self.view, member.event)?;
        if event.event.header.sender == self.requester.user_id
            || event.event.header.membership.as_ref() != Some(&member.membership)
            || !ROOM_HEADS.contains(self.view, &(room,))?
        {
            return Ok(Standing::Gone);
        }
        let sight = self.sync.rooms.sight(self.view, room, self.requester)?;
        Ok(if sight.was_joined() {
            Standing::Expelled
        } else {
            Standing::Gone
        })
    }

    fn room_type(
        &self,
        room: RoomNid,
        member: &MemberRow,
        standing: Standing,
    ) -> Result<Option<Arc<str>>> {
        // The event that creates a room never changes; whoever is not in the room may have been told another.
        let is_in = standing == Standing::In;
        if is_in && let Some(known) = self.sync.sliding.room_types.get(&room) {
            return Ok(known);
        }
        let content = if is_in {
            let create = self
                .sync
                .rooms
                .current(self.view, room, &"m.room.create".into(), "")?;
            create.and_then(|create| create.event.content_as::<Value>().ok())
        } else {
            self.told(room, member, "m.room.create")?
        };
        let room_type = content.and_then(|content| content["type"].as_str().map(Arc::from));
        if is_in {
            self.sync.sliding.room_types.insert(room, room_type.clone());
        }
        Ok(room_type)
    }

    /// The content of an event by which somebody outside knows the room, as it was when they were told.
    fn told(&self, room: RoomNid, member: &MemberRow, kind: &str) -> Result<Option<Value>> {
        let event = self.sync.rooms.event(self.view, member.event)?;
        if event.facts.aside {
            return self.told_from_outside(room, kind);
        }
        let state = self.sync.store.state(event.facts.before)?;
        let entry = self.sync.rooms.entry(self.view, &state, kind, "")?;
        Ok(entry.and_then(|stored: Arc<Stored>| stored.event.content_as().ok()))
    }

    fn told_from_outside(&self, room: RoomNid, kind: &str) -> Result<Option<Value>> {
        let told = STRIPPED.get(self.view, &(room, self.requester.nid))?;
        let told: Vec<Value> = told
            .and_then(|told| serde_json::from_str(&told).ok())
            .unwrap_or_default();
        let found = told.into_iter().find(|event| event["type"] == kind);
        Ok(found.map(|mut event| event["content"].take()))
    }
}
