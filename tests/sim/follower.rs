//! A client that syncs all the time, and what it believes to know.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::{Value, json};

use crate::{
    room::{Room, encoded},
    server::{Client, ok, text},
};

/// What a client knows of a room that it has been in.
#[derive(Default)]
pub(crate) struct Known {
    /// Whether it thinks that it is in.
    pub(crate) is_in: bool,
    /// All events that its timeline has shown, of all times.
    pub(crate) seen: BTreeSet<String>,
    /// Those since the timeline began anew.
    piece: BTreeSet<String>,
    /// From where on it has to look back, as its timeline began anew there.
    holes: Vec<String>,
    /// The state, as the answers add up to it.
    pub(crate) state: BTreeMap<(String, String), String>,
    /// Who is in the room.
    members: BTreeSet<String>,
    /// Who types there.
    pub(crate) typists: Value,
}

#[derive(Default)]
pub(crate) struct Follower {
    client: Option<Client>,
    since: Option<String>,
    /// What came for its device alone, in the order in which it came.
    pub(crate) whispers: Vec<String>,
    pub(crate) rooms: HashMap<String, Known>,
    /// The devices of all with whom it shares a room, as it has last asked for them.
    pub(crate) devices: BTreeMap<String, Value>,
    /// Whose devices have changed since it has asked.
    outdated: BTreeSet<String>,
}

fn list<'a>(part: &'a Value, section: &str) -> &'a [Value] {
    part[section]["events"]
        .as_array()
        .map_or(&[], Vec::as_slice)
}

impl Known {
    fn apply(&mut self, event: &Value) {
        if let Some(key) = event["state_key"].as_str() {
            if event["type"] == "m.room.member" {
                if event["content"]["membership"] == "join" {
                    self.members.insert(key.to_owned());
                } else {
                    self.members.remove(key);
                }
            }
            let key = (text(event, "type"), key.to_owned());
            self.state.insert(key, text(event, "event_id"));
        }
    }

    fn take(&mut self, part: &Value, who: &str) {
        if !self.is_in {
            self.state.clear();
            self.members.clear();
        }
        for event in list(part, "ephemeral") {
            if event["type"] == "m.typing" {
                self.typists = event["content"]["user_ids"].clone();
            }
        }
        for event in list(part, "state") {
            self.apply(event);
        }
        if part["timeline"]["limited"] == true {
            self.piece.clear();
            self.holes.push(text(&part["timeline"], "prev_batch"));
        }
        for event in list(part, "timeline") {
            let id = text(event, "event_id");
            assert!(
                self.piece.insert(id.clone()),
                "{who} is told of {id} twice: {part}"
            );
            self.seen.insert(id);
            self.apply(event);
        }
    }
}

impl Follower {
    pub(crate) fn new(client: &Client) -> Self {
        Self {
            client: Some(client.clone()),
            ..Self::default()
        }
    }

    fn client(&self) -> &Client {
        self.client.as_ref().expect("it was made with one")
    }

    /// Looks once what is new.
    pub(crate) async fn follow(&mut self) {
        let filter = encoded(r#"{"room":{"timeline":{"limit":50}}}"#);
        let mut path = format!("/_matrix/client/v3/sync?timeout=0&filter={filter}");
        if let Some(since) = &self.since {
            path = format!("{path}&since={since}");
        }
        let answer = ok(self.client().get(&path).await);
        self.since = Some(text(&answer, "next_batch"));
        for event in list(&answer, "to_device") {
            self.whispers.push(text(&event["content"], "text"));
        }
        let who = self.client().user_id.clone();
        for (section, is_in) in [("join", true), ("leave", false)] {
            for (id, part) in answer["rooms"][section].as_object().into_iter().flatten() {
                let known = self.rooms.entry(id.clone()).or_default();
                known.take(part, &who);
                known.is_in = is_in;
            }
        }
        let lists = &answer["device_lists"];
        let users = |of: &Value| -> Vec<String> {
            let users = of.as_array().into_iter().flatten();
            users
                .filter_map(|user| Some(user.as_str()?.to_owned()))
                .collect()
        };
        self.outdated.extend(users(&lists["changed"]));
        for user in users(&lists["left"]) {
            self.devices.remove(&user);
        }
        self.look_up().await;
    }

    /// Asks for the devices of those whom it does not know, or not any more.
    async fn look_up(&mut self) {
        let shared = self.rooms.values().filter(|known| known.is_in);
        let wanted: BTreeSet<&String> = shared.flat_map(|known| &known.members).collect();
        self.devices.retain(|user, _| wanted.contains(user));
        let asked: Vec<_> = wanted
            .into_iter()
            .filter(|user| !self.devices.contains_key(*user) || self.outdated.contains(*user))
            .cloned()
            .collect();
        if asked.is_empty() {
            return;
        }
        let told = devices_of(self.client(), &asked).await;
        for user in asked {
            if let Some(devices) = told.get(&user) {
                self.outdated.remove(&user);
                self.devices.insert(user, devices.clone());
            }
        }
    }

    /// Whose devices it wants to know and does not.
    pub(crate) fn unknown(&self) -> Vec<&String> {
        let shared = self.rooms.values().filter(|known| known.is_in);
        let wanted = shared.flat_map(|known| &known.members);
        wanted
            .filter(|user| !self.devices.contains_key(*user) || self.outdated.contains(*user))
            .collect()
    }

    /// Looks back wherever its timeline began anew, as far as there is anything.
    pub(crate) async fn look_back(&mut self) {
        let client = self.client().clone();
        for (id, known) in &mut self.rooms {
            if !known.is_in {
                continue;
            }
            for hole in std::mem::take(&mut known.holes) {
                let events = history(&client, &Room(id.clone()), &hole).await;
                known
                    .seen
                    .extend(events.iter().map(|event| text(event, "event_id")));
            }
        }
    }
}

/// The devices of users, as far as their servers can be asked.
pub(crate) async fn devices_of(client: &Client, users: &[String]) -> BTreeMap<String, Value> {
    let wanted: BTreeMap<_, _> = users.iter().map(|user| (user, json!([]))).collect();
    let body = json!({ "device_keys": wanted });
    let answer = ok(client.post("/_matrix/client/v3/keys/query", body).await);
    let failures = &answer["failures"];
    let is_told = |user: &&String| {
        let (_, server) = user.split_once(':').expect("it is the id of a user");
        failures.get(server).is_none()
    };
    let told = users.iter().filter(is_told);
    told.map(|user| {
        let devices = answer["device_keys"].get(user);
        (user.clone(), devices.cloned().unwrap_or_else(|| json!({})))
    })
    .collect()
}

/// All that a client finds before a place in a room, newest first.
pub(crate) async fn history(client: &Client, room: &Room, from: &str) -> Vec<Value> {
    let mut from = from.to_owned();
    let mut all: Vec<Value> = Vec::new();
    for _ in 0..100 {
        let from_here = if from.is_empty() {
            String::new()
        } else {
            format!("&from={from}")
        };
        let path = format!("messages?dir=b&limit=100{from_here}");
        let page = ok(room.get(client, &path).await);
        all.extend(page["chunk"].as_array().into_iter().flatten().cloned());
        match page["end"].as_str() {
            Some(end) => end.clone_into(&mut from),
            None => return all,
        }
    }
    panic!("the history of {} has no end", room.0);
}
