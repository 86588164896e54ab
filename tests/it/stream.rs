//! A client that syncs, for the tests of what it is told.

use serde_json::Value;

use crate::{
    room::{Room, encoded},
    server::{Client, ok, text},
};

/// One client's stream of syncs, each going on where the last one ended.
pub(crate) struct Stream {
    client: Client,
    /// Further parameters of every request.
    query: String,
    pub(crate) since: Option<String>,
}

impl Stream {
    pub(crate) fn new(client: &Client) -> Self {
        Self {
            client: client.clone(),
            query: "timeout=0".to_owned(),
            since: None,
        }
    }

    /// The same with a filter.
    pub(crate) fn filtered(client: &Client, filter: &Value) -> Self {
        let mut stream = Self::new(client);
        stream.also(&format!("filter={}", encoded(&filter.to_string())));
        stream
    }

    /// One that has had its first answer.
    pub(crate) async fn begun(client: &Client) -> Self {
        let mut stream = Self::new(client);
        stream.next().await;
        stream
    }

    /// Adds a parameter.
    pub(crate) fn also(&mut self, parameter: &str) {
        self.query = format!("{}&{parameter}", self.query);
    }

    /// The next answer.
    pub(crate) async fn next(&mut self) -> Value {
        let mut path = format!("/_matrix/client/v3/sync?{}", self.query);
        if let Some(since) = &self.since {
            path = format!("{path}&since={since}");
        }
        let answer = ok(self.client.get(&path).await);
        self.since = Some(text(&answer, "next_batch"));
        answer
    }

    /// What the next answer says of a room that the user has joined.
    pub(crate) async fn joined(&mut self, room: &Room) -> Value {
        self.next().await["rooms"]["join"][&room.0].clone()
    }

    /// What the next answer says of a room that the user has left.
    pub(crate) async fn left(&mut self, room: &Room) -> Value {
        self.next().await["rooms"]["leave"][&room.0].clone()
    }
}

/// The events in a section such as `timeline`.
pub(crate) fn events<'s>(part: &'s Value, section: &str) -> &'s Vec<Value> {
    let list = part[section]["events"].as_array();
    list.unwrap_or_else(|| panic!("no {section} in {part}"))
}

/// The types of the events in a section.
pub(crate) fn types(part: &Value, section: &str) -> Vec<String> {
    let list = events(part, section);
    list.iter().map(|event| text(event, "type")).collect()
}

/// The texts of the messages in a section.
pub(crate) fn bodies(part: &Value, section: &str) -> Vec<String> {
    let list = events(part, section).iter();
    let bodies = list.filter_map(|event| event["content"]["body"].as_str());
    bodies.map(ToOwned::to_owned).collect()
}

/// Those whose member events are in a section, sorted.
pub(crate) fn members(part: &Value, section: &str) -> Vec<String> {
    let list = events(part, section).iter();
    let members = list.filter(|event| event["type"] == "m.room.member");
    let mut members: Vec<_> = members.map(|event| text(event, "state_key")).collect();
    members.sort();
    members
}
