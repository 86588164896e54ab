//! A client that syncs all the time, and what it believes to know.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::Value;

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
}

#[derive(Default)]
pub(crate) struct Follower {
    client: Option<Client>,
    since: Option<String>,
    /// What came for its device alone, in the order in which it came.
    pub(crate) whispers: Vec<String>,
    pub(crate) rooms: HashMap<String, Known>,
}

fn list<'a>(part: &'a Value, section: &str) -> &'a [Value] {
    part[section]["events"]
        .as_array()
        .map_or(&[], Vec::as_slice)
}

impl Known {
    fn apply(&mut self, event: &Value) {
        if let Some(key) = event["state_key"].as_str() {
            let key = (text(event, "type"), key.to_owned());
            self.state.insert(key, text(event, "event_id"));
        }
    }

    fn take(&mut self, part: &Value, who: &str) {
        if !self.is_in {
            self.state.clear();
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
