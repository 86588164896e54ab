//! "EDUs": typing, receipts and presence as other servers tell them.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    elsewhere::{Elsewhere, check, id, pdu},
    neighbour::Neighbour,
    room::Room,
    server::{Client, TestServer, ok},
};

const BOB: &str = "@bob:b.example";

/// The short-lived events of a room that a new client is told.
async fn told(who: &Client, room: &Room, kind: &str) -> Value {
    let answer = ok(who
        .get("/_matrix/client/v3/sync?set_presence=offline")
        .await);
    let events = &answer["rooms"]["join"][&*room.0]["ephemeral"]["events"];
    let mut events = events
        .as_array()
        .into_iter()
        .flatten()
        .filter(|event| event["type"] == kind);
    events
        .next()
        .map_or(Value::Null, |event| event["content"].clone())
}

fn types(room: &Room, user: &str, typing: bool) -> Value {
    let content = json!({ "room_id": room.0, "user_id": user, "typing": typing });
    json!({ "edu_type": "m.typing", "content": content })
}

fn reads(room: &Room, user: &str, event: &str, thread: Option<&str>) -> Value {
    let mut data = json!({ "ts": 5 });
    if let Some(thread) = thread {
        data["thread_id"] = thread.into();
    }
    let receipt = json!({ "data": data, "event_ids": [event] });
    json!({ "edu_type": "m.receipt", "content": { (&*room.0): { "m.read": { user: receipt } } } })
}

#[tokio::test]
async fn users_of_other_servers_type_and_read() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let room = Room::new(&alice, "shared").await;
    let neighbour = Neighbour::new(&server.lan, "b.example", 1);
    let mut elsewhere = Elsewhere::joined(&server, &room, &neighbour, BOB).await;
    let message = elsewhere.say(&neighbour, BOB, "hello");
    ok(neighbour.push(&server, "1", &[pdu(&message)]).await);

    ok(neighbour
        .murmur(&server, "2", &[types(&room, BOB, true)])
        .await);
    assert_eq!(
        told(&alice, &room, "m.typing").await,
        json!({ "user_ids": [BOB] })
    );
    ok(neighbour
        .murmur(&server, "3", &[types(&room, BOB, false)])
        .await);
    assert_eq!(told(&alice, &room, "m.typing").await, Value::Null);
    ok(neighbour
        .murmur(&server, "4", &[types(&room, BOB, true)])
        .await);
    server.clock.advance(Duration::from_secs(61));
    crate::elsewhere::until(async || told(&alice, &room, "m.typing").await == Value::Null).await;

    let event = id(&message);
    let all = [
        reads(&room, BOB, "$unknown", None),
        reads(&room, BOB, &event, None),
        reads(&room, BOB, &event, Some("main")),
        // Not in that thread.
        reads(&room, BOB, &event, Some("$other")),
    ];
    ok(neighbour.murmur(&server, "5", &all).await);
    let receipts = told(&alice, &room, "m.receipt").await;
    let read = &receipts[&*event]["m.read"][BOB];
    assert_eq!(read["ts"], 5, "{receipts}");
    assert_eq!(receipts.as_object().unwrap().len(), 1);
    check(&server);
}

#[tokio::test]
async fn what_the_own_server_of_a_user_says_last_is_what_they_have_read() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let room = Room::new(&alice, "shared").await;
    let neighbour = Neighbour::new(&server.lan, "b.example", 1);
    let mut elsewhere = Elsewhere::joined(&server, &room, &neighbour, BOB).await;
    let first = elsewhere.say(&neighbour, BOB, "first");
    let second = elsewhere.say(&neighbour, BOB, "second");
    let late = elsewhere.say(&neighbour, BOB, "late");
    let known = [pdu(&first), pdu(&second)];
    ok(neighbour.push(&server, "1", &known).await);
    let mut number = 2;
    let mut read = async |event: &str, thread: Option<&str>| {
        number += 1;
        let read = [reads(&room, BOB, event, thread)];
        let txn = number.to_string();
        ok(neighbour.murmur(&server, &txn, &read).await);
        let told = told(&alice, &room, "m.receipt").await;
        let told = told.as_object().expect("there are receipts");
        told.keys().cloned().collect::<Vec<_>>()
    };
    // There the events may stand in another order.
    assert_eq!(read(&id(&second), None).await, [id(&second)]);
    assert_eq!(read(&id(&first), None).await, [id(&first)]);
    // It may have what comes here later by another server.
    assert_eq!(read(&id(&late), None).await, [id(&late)]);
    // Nobody makes up threads, nor reads in other rooms.
    let other = Room::new(&alice, "shared").await;
    let foreign = other.say(&alice, "foreign").await;
    for (event, thread) in [("$unknown", Some("$made-up")), (&*foreign, None)] {
        assert_eq!(read(event, thread).await, [id(&late)]);
    }
    ok(neighbour.push(&server, "2", &[pdu(&late)]).await);
    assert_eq!(read(&id(&late), None).await, [id(&late)]);
    check(&server);
}

#[tokio::test]
async fn a_server_speaks_for_its_own_users_only() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let room = Room::new(&alice, "shared").await;
    let other = Room::new(&alice, "shared").await;
    let neighbour = Neighbour::new(&server.lan, "b.example", 1);
    let mut elsewhere = Elsewhere::joined(&server, &room, &neighbour, BOB).await;
    let message = elsewhere.say(&neighbour, BOB, "hello");
    ok(neighbour.push(&server, "1", &[pdu(&message)]).await);
    let event = id(&message);
    let nowhere = Room("!nowhere:b.example".to_owned());
    let online =
        |user: &str| json!({ "user_id": user, "presence": "online", "last_active_ago": 1 });
    let wrong = [
        types(&room, &alice.user_id, true),
        types(&room, "@nobody:b.example", true),
        types(&other, BOB, true),
        types(&nowhere, BOB, true),
        reads(&room, &alice.user_id, &event, None),
        reads(&other, BOB, &event, None),
        json!({ "edu_type": "m.presence", "content": { "push": [online("@x:b.example"), online(&alice.user_id), 5] } }),
        json!({ "edu_type": "m.direct_to_device", "content": { "sender": BOB } }),
        json!({ "edu_type": "m.typing", "content": [] }),
        json!({ "edu_type": 7 }),
        json!(null),
    ];
    assert_eq!(
        ok(neighbour.murmur(&server, "2", &wrong).await),
        json!({ "pdus": {} })
    );
    for room in [&room, &other] {
        assert_eq!(told(&alice, room, "m.typing").await, Value::Null);
        assert_eq!(told(&alice, room, "m.receipt").await, Value::Null);
    }
    // Whoever is kept out of a room is not heard in it.
    let acl = json!({ "allow": ["*"], "deny": ["b.example"] });
    ok(room.put(&alice, "state/m.room.server_acl/", acl).await);
    let all = [types(&room, BOB, true), reads(&room, BOB, &event, None)];
    ok(neighbour.murmur(&server, "3", &all).await);
    assert_eq!(told(&alice, &room, "m.typing").await, Value::Null);
    assert_eq!(told(&alice, &room, "m.receipt").await, Value::Null);
    check(&server);
}

#[tokio::test]
async fn it_is_told_who_is_there_elsewhere() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let room = Room::new(&alice, "shared").await;
    let neighbour = Neighbour::new(&server.lan, "b.example", 1);
    Elsewhere::joined(&server, &room, &neighbour, BOB).await;
    let path = format!("/_matrix/client/v3/presence/{BOB}/status");
    let push =
        |content: Value| json!({ "edu_type": "m.presence", "content": { "push": [content] } });
    let here = json!({
        "user_id": BOB, "presence": "unavailable", "last_active_ago": 5_000, "status_msg": "at lunch"
    });
    ok(neighbour.murmur(&server, "1", &[push(here)]).await);
    let status = ok(alice.get(&path).await);
    assert_eq!(
        status,
        json!({ "presence": "unavailable", "last_active_ago": 5_000, "status_msg": "at lunch", "currently_active": false })
    );
    let gone = json!({ "user_id": BOB, "presence": "offline", "last_active_ago": 6_000 });
    ok(neighbour.murmur(&server, "2", &[push(gone)]).await);
    assert_eq!(ok(alice.get(&path).await)["presence"], "offline");
    let back = json!({ "user_id": BOB, "presence": "online", "currently_active": true });
    ok(neighbour.murmur(&server, "3", &[push(back)]).await);
    let status = ok(alice.get(&path).await);
    assert_eq!(
        (&status["presence"], &status["currently_active"]),
        (&json!("online"), &json!(true))
    );
    // A server that says nothing more has lost its user.
    crate::elsewhere::until(async || {
        server.clock.advance(Duration::from_secs(300));
        ok(alice.get(&path).await)["presence"] == "offline"
    })
    .await;
    check(&server);
}
