//! What servers answer us when users of ours enter their rooms or leave them, by no rules, or by old ones.

use http::{Method, StatusCode};
use kontor::protocol::{
    integrity::{event_id, parse_object},
    version,
};
use ruma::RoomVersionId;
use serde_json::{Value, json};

use crate::{
    handshakes::{FEDERATION, finished},
    joining::join,
    neighbour::Neighbour,
    room::{Room, encoded},
    server::{START, TestServer, ok, refused},
    several::sound,
};

/// A server that lets a user of ours into a room and tells what it likes.
pub(crate) struct Host {
    pub(crate) server: Neighbour,
    pub(crate) room: Room,
    pub(crate) events: Vec<Value>,
    pub(crate) template: Value,
}

impl Host {
    pub(crate) fn new(node: &TestServer) -> Self {
        Self::named(node, "host.example", "@alice:localhost")
    }

    /// One of this name that lets this user in.
    fn named(node: &TestServer, name: &str, user: &str) -> Self {
        let server = Neighbour::new(&node.lan, name, 5);
        let room = &*format!("!room:{name}");
        let owner = &*format!("@owner:{name}");
        let mut events: Vec<Value> = Vec::new();
        let mut ids: Vec<String> = Vec::new();
        for (kind, key, content) in [
            (
                "m.room.create",
                "",
                json!({ "room_version": "10", "creator": owner }),
            ),
            ("m.room.member", owner, json!({ "membership": "join" })),
            (
                "m.room.power_levels",
                "",
                json!({ "users": { owner: 100 } }),
            ),
            ("m.room.join_rules", "", json!({ "join_rule": "public" })),
            ("m.room.topic", "", json!({ "topic": "tea" })),
        ] {
            let auth = if kind == "m.room.topic" {
                &ids[..3]
            } else {
                &ids[..]
            };
            let event = json!({
                "type": kind, "state_key": key, "content": content, "sender": owner,
                "room_id": room, "origin_server_ts": START, "depth": ids.len() + 1,
                "prev_events": ids.last().into_iter().collect::<Vec<_>>(),
                "auth_events": auth,
            });
            let (id, event) = finished(&server, "10", &event);
            ids.push(id);
            events.push(serde_json::from_str(&event).expect("JSON"));
        }
        let template = json!({
            "room_version": "10",
            "event": {
                "type": "m.room.member", "state_key": user,
                "sender": user, "room_id": room, "depth": 6,
                "content": { "membership": "join" }, "origin_server_ts": START,
                "prev_events": [ids[4]], "auth_events": [ids[0], ids[2], ids[3]],
            },
        });
        let host = Self {
            server,
            room: Room(room.to_owned()),
            events,
            template,
        };
        host.says("make_join", &host.template);
        host
    }

    pub(crate) fn says(&self, what: &str, answer: impl ToString) {
        let version = if what == "send_join" { "v2" } else { "v1" };
        let path = format!("{FEDERATION}/{version}/{what}");
        self.server.answers(&path, StatusCode::OK, answer);
    }

    /// What it was told of joins, so many times.
    fn joins_told(&self) -> usize {
        let put = self.server.put();
        let joins = put.iter().filter(|(path, _)| path.contains("send_join"));
        joins.count()
    }

    pub(crate) fn tells(&self, state: &[Value], chain: &[Value]) {
        self.says("send_join", json!({ "state": state, "auth_chain": chain }));
    }
}

#[tokio::test]
async fn what_a_server_tells_of_a_room_is_not_believed_unseen() {
    let node = TestServer::new();
    let alice = node.register("alice").await;
    let host = Host::new(&node);
    let asked = async || join(&alice, &host.room, &["host.example"]).await;
    let all = host.events.clone();
    let without = |kind: &str| -> Vec<Value> {
        let events = all.iter().filter(|event| event["type"] != kind);
        events.cloned().collect()
    };
    let changed = |kind: &str, change: &dyn Fn(&mut Value)| -> Vec<Value> {
        let mut events = all.clone();
        let found = events.iter_mut().find(|event| event["type"] == kind);
        change(found.expect("it is there"));
        events
    };
    let topic = all[4].clone();
    let mut other_topic = topic.clone();
    other_topic["content"]["topic"] = "coffee".into();
    let (_, other_topic) = finished(&host.server, "10", &other_topic);
    let twice = [
        all.clone(),
        vec![serde_json::from_str(&other_topic).unwrap()],
    ]
    .concat();
    let mut nothing = Vec::new();
    for state in [
        Vec::new(),
        without("m.room.create"),
        without("m.room.join_rules"),
        changed("m.room.create", &|event| event["signatures"] = json!({})),
        changed("m.room.join_rules", &|event| {
            event["room_id"] = "!x:host.example".into();
        }),
        twice,
    ] {
        host.tells(&state, &state);
        nothing.push(asked().await);
    }
    for garbage in [
        "",
        "[]",
        "{}",
        "{\"state\":7}",
        "{\"state\":[7],\"auth_chain\":[]}",
        "<html>",
    ] {
        host.says("send_join", garbage);
        nothing.push(asked().await);
    }
    for (status, body) in nothing {
        assert_eq!(status, StatusCode::BAD_GATEWAY, "{body}");
        refused(host.room.get(&alice, "state").await, 403, "M_FORBIDDEN");
    }
    // An event that matters to nobody else is left out.
    let state = changed("m.room.topic", &|event| event["signatures"] = json!({}));
    host.tells(&state, &all[..4]);
    ok(asked().await);
    let state = ok(host.room.get(&alice, "state").await);
    assert_eq!(state.as_array().unwrap().len(), 5, "{state}");
    sound(&[&node]);
}

/// The id of an event.
pub(crate) fn id_of(event: &Value) -> String {
    let object = parse_object(&event.to_string()).expect("it is an event");
    let rules = version::rules(&RoomVersionId::V10).expect("it is served");
    event_id(&object, rules).expect("it has an id").to_string()
}

#[tokio::test]
async fn what_was_not_told_with_a_room_is_asked_for() {
    let node = TestServer::new();
    let alice = node.register("alice").await;
    let host = Host::new(&node);
    // The name of the owner hangs on a membership that is told nowhere.
    let (mut first, mut named) = (host.events[1].clone(), host.events[4].clone());
    first["content"] = json!({ "membership": "join", "displayname": "before" });
    first["auth_events"] = json!([id_of(&host.events[0]), id_of(&host.events[1])]);
    let (first_id, first) = finished(&host.server, "10", &first);
    let first: Value = serde_json::from_str(&first).expect("JSON");
    named["auth_events"] = json!([id_of(&host.events[0]), id_of(&host.events[2]), first_id]);
    let (_, named) = finished(&host.server, "10", &named);
    let mut state = host.events.clone();
    state[4] = serde_json::from_str(&named).expect("JSON");
    host.tells(&state, &state);
    let answer = json!({ "origin": "host.example", "origin_server_ts": 1, "pdus": [first] });
    host.says("event", answer);
    ok(join(&alice, &host.room, &["host.example"]).await);
    let topic = ok(host.room.get(&alice, "state/m.room.topic").await);
    assert_eq!(topic["topic"], "tea");
    sound(&[&node]);
}

#[tokio::test]
async fn a_server_that_knows_only_the_first_version_is_asked_so() {
    let node = TestServer::new();
    let alice = node.register("alice").await;
    let host = Host::new(&node);
    let all = json!({ "state": host.events, "auth_chain": host.events });
    let path = |what: &str| format!("{FEDERATION}/v1/{what}");
    let old = |what: &str, answer: Value| {
        host.server
            .answers(&path(what), StatusCode::OK, json!([200, answer]));
    };
    old("send_join", all);
    ok(join(&alice, &host.room, &["host.example"]).await);
    let asked = || -> Vec<String> {
        let all = host.server.put().into_iter();
        all.map(|(path, _)| path)
            .filter(|path| path.contains("send_"))
            .collect()
    };
    let starts = |at: usize, with: &str| asked()[at].starts_with(&format!("{FEDERATION}/{with}/"));
    assert!(starts(0, "v2/send_join") && starts(1, "v1/send_join"));
    // Another refusal is not one of these.
    let bob = node.register("bob").await;
    let there = Host::named(&node, "there.example", &bob.user_id);
    let refusal = json!({ "errcode": "M_NOT_FOUND", "error": "no such room" });
    let path = format!("{FEDERATION}/v2/send_join");
    there.server.answers(&path, StatusCode::NOT_FOUND, refusal);
    refused(
        join(&bob, &there.room, &["there.example"]).await,
        404,
        "M_NOT_FOUND",
    );
    assert_eq!(there.server.put().len(), 1);
    sound(&[&node]);
}

#[tokio::test]
async fn an_invite_is_declined_by_the_first_version_where_there_is_no_other() {
    let node = TestServer::new();
    let alice = node.register("alice").await;
    let host = Host::new(&node);
    let content = json!({ "membership": "invite" });
    let invite = json!({
        "type": "m.room.member", "state_key": alice.user_id, "sender": "@owner:host.example",
        "room_id": host.room.0, "origin_server_ts": START, "content": content,
        "auth_events": [], "prev_events": [], "depth": 7,
    });
    let (id, invite) = finished(&host.server, "10", &invite);
    let invite: Value = serde_json::from_str(&invite).expect("JSON");
    let body = json!({ "room_version": "10", "event": invite, "invite_room_state": host.events })
        .to_string();
    let (room, id) = (encoded(&host.room.0), encoded(&id));
    let path = format!("{FEDERATION}/v2/invite/{room}/{id}");
    let header = host.server.sign(&Method::PUT, &path, &body);
    let sent = host.server.send(&node, Method::PUT, &path, &header, &body);
    ok(sent.await);
    let mut template = host.template.clone();
    template["event"]["content"]["membership"] = "leave".into();
    host.says("make_leave", template);
    let path = format!("{FEDERATION}/v1/send_leave");
    host.server.answers(&path, StatusCode::OK, "[200,{}]");
    host.room.does(&alice, "leave").await;
    let put = host.server.put();
    let paths: Vec<_> = put.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(paths.len(), 2, "{paths:?}");
    assert!(paths[1].contains("v1/send_leave") && put[0].1 == put[1].1);
    sound(&[&node]);
}

#[tokio::test]
async fn templates_for_something_else_are_not_signed() {
    let node = TestServer::new();
    let alice = node.register("alice").await;
    let host = Host::new(&node);
    host.tells(&host.events, &[]);
    let good = json!({
        "room_version": "10",
        "event": {
            "type": "m.room.member", "state_key": "@alice:localhost",
            "sender": "@alice:localhost", "room_id": host.room.0, "depth": 6,
            "content": { "membership": "join" }, "origin_server_ts": START,
            "prev_events": ["$x"], "auth_events": [],
        },
    });
    for (name, value) in [
        ("type", json!("m.room.power_levels")),
        ("state_key", json!("@bob:localhost")),
        ("sender", json!("@bob:localhost")),
        ("room_id", json!("!other:host.example")),
        ("content", json!({ "membership": "leave" })),
        ("prev_events", json!("x")),
        ("depth", json!("x")),
        ("prev_events", json!(vec!["$x"; 1_000])),
    ] {
        let mut template = good.clone();
        template["event"][name] = value;
        host.says("make_join", template);
        let (status, body) = join(&alice, &host.room, &["host.example"]).await;
        assert_eq!(status, StatusCode::BAD_GATEWAY, "{name}: {body}");
    }
    let mut template = good.clone();
    template["room_version"] = "99".into();
    host.says("make_join", template);
    let answer = join(&alice, &host.room, &["host.example"]).await;
    refused(answer, 400, "M_INCOMPATIBLE_ROOM_VERSION");
    // Whoever is invited must be able to agree only to what they were asked.
    let room = Room::create(&alice, json!({ "room_version": "10" })).await;
    let invite = json!({ "user_id": "@zoe:host.example" });
    for garbage in [
        "{}",
        "{\"event\":{}}",
        "{\"event\":{\"signatures\":{\"host.example\":7}}}",
    ] {
        let path = format!("{FEDERATION}/v2/invite");
        host.server.answers(&path, StatusCode::OK, garbage);
        let (status, body) = room.post(&alice, "invite", invite.clone()).await;
        assert_eq!(status, StatusCode::BAD_GATEWAY, "{body}");
    }
    sound(&[&node]);
}

#[tokio::test]
async fn a_large_room_is_asked_for_once_more_and_one_without_end_is_not_entered() {
    let node = TestServer::new();
    let alice = node.register("alice").await;
    let host = Host::new(&node);
    let tell = |bytes: usize| {
        let (events, padding) = (&host.events, "x".repeat(bytes));
        let answer = json!({ "state": events, "auth_chain": events, "padding": padding });
        host.says("send_join", answer);
    };
    tell(300 << 20);
    refused(
        join(&alice, &host.room, &["host.example"]).await,
        502,
        "M_UNKNOWN",
    );
    assert_eq!(host.joins_told(), 2);
    tell(40 << 20);
    ok(join(&alice, &host.room, &["host.example"]).await);
    assert_eq!(host.joins_told(), 4);
    sound(&[&node]);
}
