//! What clients do in rooms, for the tests of what can be seen of it.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicUsize, Ordering},
};

use serde_json::{Value, json};

use crate::server::{Answer, Client, ok, text};

/// A room, by its id.
pub(crate) struct Room(pub(crate) String);

impl Room {
    /// A public room with this history visibility.
    pub(crate) async fn new(creator: &Client, visibility: &str) -> Self {
        let body = json!({
            "preset": "public_chat",
            "initial_state": [{
                "type": "m.room.history_visibility",
                "content": { "history_visibility": visibility },
            }],
        });
        Self::create(creator, body).await
    }

    /// Any room.
    pub(crate) async fn create(creator: &Client, body: Value) -> Self {
        let room = ok(creator.post("/_matrix/client/v3/createRoom", body).await);
        Self(text(&room, "room_id"))
    }

    /// A path below the room's.
    pub(crate) fn path(&self, rest: &str) -> String {
        format!("/_matrix/client/v3/rooms/{}/{rest}", self.0)
    }

    pub(crate) async fn get(&self, who: &Client, rest: &str) -> Answer {
        who.get(&self.path(rest)).await
    }

    pub(crate) async fn post(&self, who: &Client, rest: &str, body: Value) -> Answer {
        who.post(&self.path(rest), body).await
    }

    pub(crate) async fn put(&self, who: &Client, rest: &str, body: Value) -> Answer {
        who.put(&self.path(rest), body).await
    }

    /// What one is in the room, as another sees it.
    pub(crate) async fn membership(&self, viewer: &Client, of: &Client) -> Value {
        let path = format!("state/m.room.member/{}", of.user_id);
        ok(self.get(viewer, &path).await)["membership"].clone()
    }

    /// Joins, leaves, and the like.
    pub(crate) async fn does(&self, who: &Client, what: &str) {
        ok(who.post(&self.path(what), json!({})).await);
    }

    /// One does something with another's membership.
    pub(crate) async fn does_to(&self, who: &Client, what: &str, whom: &Client) {
        let body = json!({ "user_id": whom.user_id });
        ok(who.post(&self.path(what), body).await);
    }

    pub(crate) async fn send(&self, who: &Client, event_type: &str, content: Value) -> String {
        static TRANSACTIONS: AtomicUsize = AtomicUsize::new(0);
        let txn = TRANSACTIONS.fetch_add(1, Ordering::Relaxed);
        let path = self.path(&format!("send/{event_type}/{txn}"));
        text(&ok(who.put(&path, content).await), "event_id")
    }

    pub(crate) async fn say(&self, who: &Client, body: &str) -> String {
        let content = json!({ "msgtype": "m.text", "body": body });
        self.send(who, "m.room.message", content).await
    }

    pub(crate) async fn relate(&self, who: &Client, kind: &str, parent: &str) -> String {
        let content = json!({
            "msgtype": "m.text", "body": kind,
            "m.relates_to": { "rel_type": kind, "event_id": parent },
        });
        self.send(who, "m.room.message", content).await
    }

    pub(crate) async fn set(&self, who: &Client, event_type: &str, content: Value) -> String {
        let path = self.path(&format!("state/{event_type}"));
        text(&ok(who.put(&path, content).await), "event_id")
    }
}

/// The ids of the events in a list.
pub(crate) fn ids(list: &Value) -> Vec<String> {
    let list = list.as_array().unwrap_or_else(|| panic!("no list: {list}"));
    list.iter().map(|event| text(event, "event_id")).collect()
}

/// Percent-encodes what stands in a query.
pub(crate) fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        let _ = write!(out, "%{byte:02X}");
        out
    })
}
