//! "Authorization rules" of each room version, rule by rule.
//!
//! Each row of the table is one small room, one event, and the room versions in which it must be allowed; in all
//! others it must be refused.

use std::{collections::BTreeMap, sync::Arc};

use kontor::protocol::{auth, event::Event, integrity::parse_object};
use ruma::{
    EventId, OwnedEventId, OwnedRoomId, RoomId, UserId,
    events::{StateEventType, TimelineEventType},
    room_version_rules::RoomVersionRules,
    state_res::StateMap,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

const CREATOR: &str = "@creator:example.org";

/// From one room version up to another, both included.
type Versions = (u8, u8);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    /// Which rule it is, in words.
    rule: String,
    /// In which versions the row says anything.
    #[serde(default = "all")]
    versions: Versions,
    /// In which versions the event is allowed; none when left out.
    allowed: Option<Versions>,
    /// More content of the create event.
    #[serde(default)]
    create: Map<String, Value>,
    /// Memberships; the creator's is `join` unless it says otherwise.
    #[serde(default)]
    members: BTreeMap<String, String>,
    join_rules: Option<Value>,
    power_levels: Option<Value>,
    /// Other state.
    #[serde(default)]
    state: Vec<Given>,
    event: Given,
}

/// An event, as far as the rules look at it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Given {
    #[serde(rename = "type")]
    event_type: String,
    sender: String,
    state_key: Option<String>,
    content: Value,
    /// Instead of one event that is not the create event.
    prev_events: Option<Vec<String>>,
    /// Instead of the room's own.
    room_id: Option<String>,
    /// State that it cites although it must not.
    #[serde(default)]
    cites: Vec<(String, String)>,
    /// For versions 1 and 2, the event that it redacts.
    redacts: Option<String>,
}

fn all() -> Versions {
    (1, 12)
}

struct Room {
    version: u8,
    rules: &'static RoomVersionRules,
    id: OwnedRoomId,
    events: BTreeMap<OwnedEventId, Arc<Event>>,
    state: StateMap<OwnedEventId>,
}

impl Room {
    fn new(version: u8, rules: &'static RoomVersionRules, row: &Row) -> Self {
        let id = if rules.authorization.room_create_event_id_as_room_id {
            "!create"
        } else {
            "!room:example.org"
        };
        let mut room = Self {
            version,
            rules,
            id: RoomId::parse(id).expect("a room id"),
            events: BTreeMap::new(),
            state: StateMap::new(),
        };
        let mut create = row.create.clone();
        create.insert("room_version".to_owned(), json!(version.to_string()));
        create.insert("creator".to_owned(), json!(CREATOR));
        room.set("m.room.create", CREATOR, "", Value::Object(create));
        for (user, membership) in &row.members {
            room.set(
                "m.room.member",
                user,
                user,
                json!({ "membership": membership }),
            );
        }
        if !row.members.contains_key(CREATOR) {
            room.set(
                "m.room.member",
                CREATOR,
                CREATOR,
                json!({ "membership": "join" }),
            );
        }
        if let Some(content) = &row.power_levels {
            room.set("m.room.power_levels", CREATOR, "", content.clone());
        }
        if let Some(content) = &row.join_rules {
            room.set("m.room.join_rules", CREATOR, "", content.clone());
        }
        for given in &row.state {
            let key = given.state_key.as_deref().expect("state has a key");
            room.set(&given.event_type, &given.sender, key, given.content.clone());
        }
        room
    }

    /// Puts an event into the state, allowed or not.
    fn set(&mut self, event_type: &str, sender: &str, state_key: &str, content: Value) {
        let given = Given {
            event_type: event_type.to_owned(),
            sender: sender.to_owned(),
            state_key: Some(state_key.to_owned()),
            content,
            prev_events: (event_type == "m.room.create").then(Vec::new),
            room_id: None,
            cites: vec![],
            redacts: None,
        };
        let name = match event_type {
            "m.room.create" => "create".to_owned(),
            _ => format!("state{}", self.events.len()),
        };
        let event = self.event(&name, &given);
        let key = (event_type.into(), state_key.to_owned());
        self.state.insert(key, event.header.id.clone());
        self.events.insert(event.header.id.clone(), Arc::new(event));
    }

    fn name(&self, name: &str) -> String {
        // Where ids have no server, these letters are all there is.
        if self.version <= 2 && !name.contains(':') {
            format!("${name}:example.org")
        } else {
            format!("${name}")
        }
    }

    fn event(&self, name: &str, given: &Given) -> Event {
        let event_type = TimelineEventType::from(&*given.event_type);
        let sender = UserId::parse(&given.sender).expect("a user id");
        let content = serde_json::value::to_raw_value(&given.content).expect("JSON");
        let key = given.state_key.as_deref();
        let needed = auth::auth_types(self.rules, &event_type, &sender, key, &content);
        let mut needed = needed.unwrap_or_default();
        let cites = given
            .cites
            .iter()
            .map(|(kind, key)| (StateEventType::from(&**kind), key.clone()));
        needed.extend(cites);
        let auth_events = needed.iter().filter_map(|key| self.state.get(key));
        let reference = |id: &str| match self.version {
            1 | 2 => json!([id, { "sha256": "x" }]),
            _ => json!(id),
        };
        let prev_events = match &given.prev_events {
            Some(names) => names.iter().map(|name| self.name(name)).collect(),
            None => vec![self.name("earlier")],
        };
        let id = self.name(name);
        let mut object = json!({
            "type": given.event_type, "sender": given.sender, "content": given.content, "depth": 9,
            "origin_server_ts": 1_000, "hashes": {}, "signatures": {},
            "prev_events": prev_events.iter().map(|id| reference(id)).collect::<Vec<_>>(),
            "auth_events": auth_events.map(|id| reference(id.as_str())).collect::<Vec<_>>(),
        });
        let members = object.as_object_mut().expect("an object");
        if let Some(key) = key {
            members.insert("state_key".to_owned(), json!(key));
        }
        if let Some(redacts) = &given.redacts {
            members.insert("redacts".to_owned(), json!(redacts));
        }
        let nameless = self.rules.authorization.room_create_event_id_as_room_id
            && given.event_type == "m.room.create";
        let own = || (!nameless).then(|| self.id.to_string());
        let room_id = given.room_id.clone().or_else(own);
        if let Some(room_id) = &room_id {
            members.insert("room_id".to_owned(), json!(room_id));
        }
        let room_id = room_id.map_or_else(
            || self.id.clone(),
            |id| RoomId::parse(id).expect("a room id"),
        );
        let object = parse_object(&object.to_string()).expect("canonical");
        let id = EventId::parse(id).expect("an event id");
        Event::new(id, room_id, &object, self.rules).expect("an event")
    }

    fn check(&self, event: &Event) -> Result<(), auth::Denied> {
        let by_id = |id: &EventId| self.events.get(id).cloned();
        let by_key = |event_type: &StateEventType, key: &str| {
            by_id(self.state.get(&(event_type.clone(), key.to_owned()))?)
        };
        auth::check(self.rules, &event, by_key, by_id)
    }
}

#[test]
fn what_was_rejected_authorises_nothing() {
    let row = json!({
        "rule": "an event does not cite what was rejected", "members": { "@user:example.org": "join" },
        "event": { "type": "m.room.message", "sender": "@user:example.org", "content": {} },
    });
    let row: Row = serde_json::from_value(row).expect("a row");
    let member = (StateEventType::RoomMember, "@user:example.org".to_owned());
    for (version, rules) in super::versions() {
        let mut room = Room::new(version, rules, &row);
        assert_eq!(
            room.check(&room.event("new", &row.event)),
            Ok(()),
            "version {version}"
        );
        let id = room.state.get(&member).expect("in the state");
        let stored = room
            .events
            .get_mut(id)
            .and_then(Arc::get_mut)
            .expect("not shared");
        stored.header.flags.rejected = true;
        let verdict = room.check(&room.event("new", &row.event));
        assert!(verdict.is_err(), "version {version}");
    }
}

#[test]
fn rule_by_rule() {
    let rows: Vec<Row> = super::data(include_str!("auth.json"));
    let mut wrong = Vec::new();
    for row in &rows {
        for (version, rules) in super::versions() {
            let within = |versions: Versions| (versions.0..=versions.1).contains(&version);
            if !within(row.versions) {
                continue;
            }
            let room = Room::new(version, rules, row);
            let name = if row.event.event_type == "m.room.create" {
                "create"
            } else {
                "new"
            };
            let verdict = room.check(&room.event(name, &row.event));
            if verdict.is_ok() != row.allowed.is_some_and(within) {
                wrong.push(format!("version {version}: {}: {verdict:?}", row.rule));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
