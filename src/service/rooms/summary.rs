//! What those outside are told of a room: in directories, in the trees of spaces, and before they join.
//!
//! See "Listing rooms", "Spaces" and "Room summary" in the client-server API.

use ruma::{
    OwnedRoomId, RoomId, ServerName,
    events::{StateEventType, room::member::MembershipState},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};

use super::{Rooms, restricted::JoinRules};
use crate::{
    error::Result,
    protocol::{
        format,
        ids::{RoomNid, UserNid},
    },
    store::{
        View,
        schema::{CURRENT_STATE, ROOM_HEADS, ROOM_MEMBERS},
    },
};

/// The most children that are told of a space.
const MAX_CHILDREN: usize = 5_000;

/// What is told of a room, as the specification writes it; also what another server has told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Summary {
    /// The room.
    pub room_id: OwnedRoomId,
    /// Its main alias.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canonical_alias: Option<String>,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its topic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    /// Its picture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub avatar_url: Option<String>,
    /// What kind of room it is; none for one to talk in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub room_type: Option<String>,
    /// How many have joined it.
    #[serde(default)]
    pub num_joined_members: u64,
    /// How it is entered.
    #[serde(default = "public")]
    pub join_rule: String,
    /// The rooms whose members may enter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_room_ids: Option<Vec<OwnedRoomId>>,
    /// Whether everybody may read it.
    #[serde(default)]
    pub world_readable: bool,
    /// Whether guests may enter.
    #[serde(default)]
    pub guest_can_join: bool,
    /// How its messages are encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<String>,
    /// The version of the room.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub room_version: Option<String>,
}

/// What a summary says when it does not say how a room is entered.
fn public() -> String {
    "public".to_owned()
}

/// Who wants to know of a room.
#[derive(Clone, Copy, Debug)]
pub enum Stranger<'s> {
    /// Somebody who is not logged in.
    Anybody,
    /// A local user.
    User(UserNid),
    /// The users of another server.
    Server(&'s ServerName),
}

impl Summary {
    /// Whether it is a space.
    pub fn is_space(&self) -> bool {
        self.room_type.as_deref() == Some("m.space")
    }

    /// What of it stands in a directory: only what the specification names there. matrix-nio fails at anything else.
    #[must_use]
    pub fn listed(self) -> Self {
        Self {
            allowed_room_ids: None,
            encryption: None,
            room_version: None,
            ..self
        }
    }

    /// Whether everybody may know of the room: it can be read, entered or knocked at.
    fn is_open(&self) -> bool {
        self.world_readable || matches!(&*self.join_rule, "public" | "knock" | "knock_restricted")
    }
}

impl Rooms {
    /// What may be told of a room as it is now, if this node knows it.
    ///
    /// # Errors
    /// When the store fails.
    pub fn summary(&self, view: &View, room: RoomNid) -> Result<Option<Summary>> {
        let Some(head) = ROOM_HEADS.get(view, &(room,))? else {
            return Ok(None);
        };
        let content = |event_type: &str| -> Result<Value> {
            let event_type = StateEventType::from(event_type);
            let stored = self.current(view, room, &event_type, "")?;
            let content = stored.and_then(|stored| stored.event.content_as().ok());
            Ok(content.unwrap_or_default())
        };
        let text = |event_type: &str, name: &str| -> Result<Option<String>> {
            let content = content(event_type)?;
            let text = content[name].as_str().filter(|text| !text.is_empty());
            Ok(text.map(ToOwned::to_owned))
        };
        let rules = self.current(view, room, &StateEventType::RoomJoinRules, "")?;
        let rules = rules.and_then(|rules| rules.event.content_as::<JoinRules>().ok());
        let allowed_room_ids = rules.as_ref().and_then(JoinRules::allowed_rooms);
        let access = text("m.room.guest_access", "guest_access")?;
        let visibility = text("m.room.history_visibility", "history_visibility")?;
        Ok(Some(Summary {
            room_id: (*self.store.room_id(room)?).clone(),
            canonical_alias: text("m.room.canonical_alias", "alias")?,
            name: text("m.room.name", "name")?,
            topic: text("m.room.topic", "topic")?,
            avatar_url: text("m.room.avatar", "url")?,
            room_type: text("m.room.create", "type")?,
            num_joined_members: head.joined,
            join_rule: rules.map_or_else(|| "invite".to_owned(), |rules| rules.join_rule),
            allowed_room_ids,
            world_readable: visibility.as_deref() == Some("world_readable"),
            guest_can_join: access.as_deref() == Some("can_join"),
            encryption: text("m.room.encryption", "algorithm")?,
            room_version: Some(head.version.to_string()),
        }))
    }

    /// Whether somebody may be told of a room: they are in it or asked to be, could read or enter it, or knock.
    ///
    /// # Errors
    /// When the store fails.
    pub fn may_know(&self, view: &View, summary: &Summary, who: Stranger<'_>) -> Result<bool> {
        if summary.is_open() || self.is_among(view, &summary.room_id, who, true)? {
            return Ok(true);
        }
        for room in summary.allowed_room_ids.iter().flatten() {
            if self.is_among(view, room, who, false)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether somebody is in a room, or an invite will do.
    fn is_among(
        &self,
        view: &View,
        room: &RoomId,
        who: Stranger<'_>,
        or_invited: bool,
    ) -> Result<bool> {
        let Some(room) = self.store.find_room(room)? else {
            return Ok(false);
        };
        match who {
            Stranger::Anybody => Ok(false),
            Stranger::Server(server) => self.has_server(view, room, server),
            Stranger::User(user) => {
                let row = ROOM_MEMBERS.get(view, &(room, user))?;
                Ok(row.is_some_and(|row| match row.membership {
                    MembershipState::Join => true,
                    MembershipState::Invite => or_invited,
                    _ => false,
                }))
            }
        }
    }

    /// The membership of a local user in a room, if they ever had to do with it.
    ///
    /// # Errors
    /// When the store fails.
    pub fn membership_at(
        &self,
        view: &View,
        room: RoomNid,
        user: UserNid,
    ) -> Result<Option<MembershipState>> {
        Ok(ROOM_MEMBERS
            .get(view, &(room, user))?
            .map(|row| row.membership))
    }

    /// The rooms and spaces that a space names, in the order of the specification, as stripped events with the time.
    ///
    /// # Errors
    /// When the store fails.
    pub fn children(&self, view: &View, room: RoomNid) -> Result<Vec<Child>> {
        let rows = CURRENT_STATE.scan(view, &(room, "m.space.child"));
        let mut children = Vec::new();
        for row in rows {
            let (_, (nid,)) = row?;
            let stored = self.event(view, nid)?;
            let header = &stored.event.header;
            let json = format::stripped_with_time(&stored.event);
            let key = header.state_key.as_deref().unwrap_or_default();
            children.extend(Child::read(key, json, header.origin_server_ts.get().into()));
            if children.len() == MAX_CHILDREN {
                break;
            }
        }
        children.sort_by(Child::cmp_order);
        Ok(children)
    }
}

/// What a space says of a room that belongs to it.
#[derive(Clone, Debug)]
pub struct Child {
    /// The room.
    pub room: OwnedRoomId,
    /// The servers that may know it.
    pub via: Vec<ruma::OwnedServerName>,
    /// Whether it is suggested to those who look at the space.
    pub suggested: bool,
    /// The event, stripped, as JSON.
    pub json: Box<RawValue>,
    order: Option<String>,
    ts: u64,
}

/// The most servers that are taken from one child event.
const MAX_VIA: usize = 10;

/// The longest `order`, in characters. See `m.space.child`.
const LONGEST_ORDER: usize = 50;

impl Child {
    /// Reads a stripped child event, if it names a room and where to ask for it.
    pub fn read(state_key: &str, json: String, ts: u64) -> Option<Self> {
        #[derive(Deserialize)]
        struct Event {
            content: Content,
        }
        #[derive(Deserialize)]
        struct Content {
            via: Vec<Value>,
            #[serde(default)]
            suggested: Value,
            #[serde(default)]
            order: Value,
        }
        let Event { content } = serde_json::from_str(&json).ok()?;
        let named = content.via.iter().filter_map(Value::as_str);
        let servers = named.filter_map(|name| ServerName::parse(name).ok());
        let via: Vec<_> = servers.take(MAX_VIA).collect();
        let is_order = |order: &&str| {
            order.chars().count() <= LONGEST_ORDER
                && order.chars().all(|c| (' '..='~').contains(&c))
        };
        let order = content.order.as_str().filter(is_order);
        Some(Self {
            room: RoomId::parse(state_key).ok()?,
            suggested: content.suggested == Value::Bool(true),
            order: order.map(ToOwned::to_owned),
            json: RawValue::from_string(json).ok()?,
            ts,
            via,
        })
        .filter(|child| !child.via.is_empty())
    }

    /// Reads a stripped child event as another server has told it.
    pub fn told(json: &RawValue) -> Option<Self> {
        #[derive(Deserialize)]
        struct Stripped {
            #[serde(rename = "type")]
            event_type: String,
            state_key: String,
            #[serde(default)]
            origin_server_ts: u64,
        }
        let event: Stripped = serde_json::from_str(json.get()).ok()?;
        let is_child = event.event_type == "m.space.child";
        is_child
            .then(|| {
                Self::read(
                    &event.state_key,
                    json.get().to_owned(),
                    event.origin_server_ts,
                )
            })
            .flatten()
    }

    /// See "Ordering of children within a space".
    pub fn cmp_order(&self, other: &Self) -> std::cmp::Ordering {
        let key = |child: &Self| (child.order.is_none(), child.order.clone(), child.ts);
        key(self)
            .cmp(&key(other))
            .then_with(|| self.room.cmp(&other.room))
    }
}
