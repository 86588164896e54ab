//! A room as another server knows it: makes events of its users by hand, in any order and of any kind.

use std::collections::BTreeMap;

use http::{Method, StatusCode};
use kontor::protocol::{
    auth,
    event::Event,
    format,
    integrity::ServerKey,
    template::{self, Draft},
    version,
};
use ruma::{
    CanonicalJsonObject, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, RoomId, ServerName,
    UInt, UserId, room_version_rules::RoomVersionRules,
};
use serde_json::{Value, json};

use crate::{
    neighbour::Neighbour,
    room::Room,
    server::{Answer, Client, START, TestServer, ok},
};

/// Events by type and state key.
type State = BTreeMap<(String, String), Event>;

pub(crate) struct Elsewhere {
    pub(crate) room: OwnedRoomId,
    pub(crate) rules: &'static RoomVersionRules,
    /// What the next event follows.
    pub(crate) ends: Vec<OwnedEventId>,
    pub(crate) state: State,
    depth: u64,
    time: u64,
}

impl Elsewhere {
    /// The room as the node knows it now.
    pub(crate) async fn of(server: &TestServer, room: &Room) -> Self {
        let rooms = &server.services.rooms;
        let room = RoomId::parse(&*room.0).expect("the test makes it so");
        let mut guard = rooms.lock(&room).await.expect("the test makes it so");
        let head = guard.head();
        let view = server.services.store().latest();
        let mut state = State::new();
        for nid in head.state.values() {
            let stored = rooms.event(&view, *nid).expect("the test makes it so");
            let header = &stored.event.header;
            let key = header.state_key.clone().expect("the test makes it so");
            state.insert(
                (header.event_type.to_string(), key),
                (*stored.event).clone(),
            );
        }
        Self {
            room,
            rules: version::rules(&head.row.version).expect("the test makes it so"),
            ends: head
                .row
                .extremities
                .iter()
                .map(|(id, _)| id.clone())
                .collect(),
            state,
            depth: head.row.depth,
            time: START,
        }
    }

    /// The room after a user of the neighbour has joined it, which the node was told by a transaction.
    pub(crate) async fn joined(
        server: &TestServer,
        room: &Room,
        neighbour: &Neighbour,
        user: &str,
    ) -> Self {
        let mut elsewhere = Self::of(server, room).await;
        let content = json!({ "membership": "join" });
        let join = elsewhere.add(neighbour, user, "m.room.member", Some(user), content);
        let txn = format!("join-{}", &id(&join)[1..]);
        let results = ok(neighbour.push(server, &txn, &[pdu(&join)]).await);
        assert_eq!(results, json!({ "pdus": { (id(&join)): {} } }));
        elsewhere
    }

    /// An event on top of all others.
    pub(crate) fn add(
        &mut self,
        signer: &Neighbour,
        sender: &str,
        event_type: &str,
        state_key: Option<&str>,
        content: Value,
    ) -> Event {
        let event = self.make(signer, sender, event_type, state_key, content, |_| {});
        self.put(&event);
        event
    }

    pub(crate) fn say(&mut self, signer: &Neighbour, sender: &str, body: &str) -> Event {
        let content = json!({ "msgtype": "m.text", "body": body });
        self.add(signer, sender, "m.room.message", None, content)
    }

    /// What follows follows this event.
    pub(crate) fn put(&mut self, event: &Event) {
        let header = &event.header;
        self.ends = vec![header.id.clone()];
        self.depth = header.depth;
        if let Some(key) = &header.state_key {
            let key = (header.event_type.to_string(), key.clone());
            self.state.insert(key, event.clone());
        }
    }

    /// An event on top of all others that nothing follows yet.
    pub(crate) fn make(
        &mut self,
        signer: &Neighbour,
        sender: &str,
        event_type: &str,
        state_key: Option<&str>,
        content: Value,
        change: impl FnOnce(&mut Draft),
    ) -> Event {
        let signer = (&signer.key, &*signer.name);
        self.signed(signer, sender, event_type, state_key, content, change)
    }

    /// The same for any key.
    pub(crate) fn signed(
        &mut self,
        (key, name): (&ServerKey, &ServerName),
        sender: &str,
        event_type: &str,
        state_key: Option<&str>,
        content: Value,
        change: impl FnOnce(&mut Draft),
    ) -> Event {
        self.time += 1;
        let sender = UserId::parse(sender).expect("the test makes it so");
        let content: CanonicalJsonObject =
            serde_json::from_value(content).expect("the test makes it so");
        let raw = serde_json::value::to_raw_value(&content).expect("the test makes it so");
        let kind = event_type.into();
        let types = auth::auth_types(self.rules, &kind, &sender, state_key, &raw)
            .expect("the test makes it so");
        let auth = types.into_iter().filter_map(|(kind, key)| {
            let event = self.state.get(&(kind.to_string(), key))?;
            Some(event.header.id.clone())
        });
        let mut draft = Draft {
            room_id: Some(self.room.clone()),
            sender,
            event_type: kind,
            state_key: state_key.map(ToOwned::to_owned),
            content,
            redacts: None,
            origin_server_ts: MilliSecondsSinceUnixEpoch(UInt::new_saturating(self.time)),
            prev_events: self.ends.clone(),
            auth_events: auth.collect(),
            depth: self.depth + 1,
            legacy: None,
        };
        change(&mut draft);
        template::finish(draft, key, name, self.rules).expect("the test makes it so")
    }

    /// What `state_ids` answers about the present state.
    pub(crate) fn state_ids(&self) -> Value {
        let ids: Vec<_> = self.state.values().map(id).collect();
        json!({ "pdu_ids": ids, "auth_chain_ids": [] })
    }
}

/// The id of an event.
pub(crate) fn id(event: &Event) -> String {
    event.header.id.to_string()
}

/// An event as it goes over the wire.
pub(crate) fn pdu(event: &Event) -> Value {
    serde_json::from_str(&format::federation(event)).expect("the test makes it so")
}

impl Neighbour {
    /// Sends a transaction with these events.
    pub(crate) async fn push(&self, server: &TestServer, txn: &str, pdus: &[Value]) -> Answer {
        self.transact(server, txn, json!({ "pdus": pdus })).await
    }

    /// Sends a transaction with these short-lived messages.
    pub(crate) async fn murmur(&self, server: &TestServer, txn: &str, edus: &[Value]) -> Answer {
        let body = json!({ "pdus": null, "edus": edus });
        self.transact(server, txn, body).await
    }

    async fn transact(&self, server: &TestServer, txn: &str, mut body: Value) -> Answer {
        body["origin"] = self.name.as_str().into();
        body["origin_server_ts"] = START.into();
        let path = format!("/_matrix/federation/v1/send/{txn}");
        let body = body.to_string();
        let header = self.sign(&Method::PUT, &path, &body);
        self.send(server, Method::PUT, &path, &header, &body).await
    }

    /// Asks with a body.
    pub(crate) async fn post(&self, server: &TestServer, path: &str, body: &Value) -> Answer {
        let body = body.to_string();
        let header = self.sign(&Method::POST, path, &body);
        self.send(server, Method::POST, path, &header, &body).await
    }
}

/// Whether a user finds an event.
pub(crate) async fn finds(who: &Client, room: &Room, event: &Event) -> bool {
    let (status, body) = room.get(who, &format!("event/{}", id(event))).await;
    assert!(
        [StatusCode::OK, StatusCode::NOT_FOUND].contains(&status),
        "{body}"
    );
    status == StatusCode::OK
}

/// Waits until a user finds an event.
pub(crate) async fn until_found(who: &Client, room: &Room, event: &Event) {
    until(async || finds(who, room, event).await).await;
}

/// Waits until something is so.
pub(crate) async fn until(is_so: impl AsyncFn() -> bool) {
    for _ in 0..1_000 {
        if is_so().await {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("it does not come to be");
}

/// The messages of a room that a client is told from the beginning, and whether that is all.
pub(crate) async fn timeline(who: &Client, room: &Room) -> (Vec<String>, bool) {
    let filter = "%7B%22room%22:%7B%22timeline%22:%7B%22limit%22:100%7D%7D%7D";
    let path = format!("/_matrix/client/v3/sync?filter={filter}");
    let answer = ok(who.get(&path).await);
    let timeline = &answer["rooms"]["join"][&*room.0]["timeline"];
    let events = timeline["events"]
        .as_array()
        .expect("the test makes it so")
        .iter();
    let ids = events.map(|event| {
        event["event_id"]
            .as_str()
            .expect("the test makes it so")
            .to_owned()
    });
    (ids.collect(), timeline["limited"] == true)
}

/// Fails if the store breaks one of its laws.
#[track_caller]
pub(crate) fn check(server: &TestServer) {
    let mut complaints = Vec::new();
    let say = |line| complaints.push(line);
    server
        .services
        .store()
        .check(say)
        .expect("the test makes it so");
    assert_eq!(complaints, Vec::<String>::new());
}
