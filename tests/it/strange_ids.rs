//! Ids of every kind that name nothing, or nothing of the asker's, at every endpoint of rooms that takes one.

use http::Method;
use serde_json::{Value, json};

use crate::{
    room::{Room, encoded},
    server::{Client, TestServer, ok},
};

/// The endpoints below a room, with bodies that would do.
fn endpoints(event: &str, user: &str) -> Vec<(Method, String, Option<Value>)> {
    let body = Some(json!({ "user_id": user, "typing": false, "membership": "leave" }));
    let mut all = Vec::new();
    for path in [
        "join",
        "leave",
        "forget",
        "invite",
        "kick",
        "ban",
        "unban",
        "read_markers",
    ] {
        all.push((Method::POST, path.to_owned(), body.clone()));
    }
    all.push((
        Method::POST,
        format!("receipt/m.read/{event}"),
        Some(json!({})),
    ));
    for path in [
        format!("redact/{event}/txn"),
        format!("state/m.room.member/{user}"),
        format!("typing/{user}"),
        "send/m.room.message/txn".to_owned(),
        "state/m.room.topic".to_owned(),
    ] {
        all.push((Method::PUT, path, body.clone()));
    }
    for path in [
        format!("event/{event}"),
        format!("context/{event}"),
        format!("state/m.room.member/{user}"),
        "state".to_owned(),
        "members".to_owned(),
        "joined_members".to_owned(),
        "messages?dir=b".to_owned(),
    ] {
        all.push((Method::GET, path, None));
    }
    all
}

async fn is_refused(who: &Client, method: Method, path: &str, body: Option<Value>) {
    let (status, answer) = who.send(method.clone(), path, body).await;
    assert!(
        status.is_client_error(),
        "{method} {path}: {status} {answer}"
    );
    assert!(answer["errcode"].is_string(), "{method} {path}: {answer}");
}

#[tokio::test]
async fn what_names_no_room_is_refused() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let long = format!("!{}:localhost", "x".repeat(300));
    for room in [
        "!unknown:localhost",
        "!unknown",
        "nothing",
        "@alice:localhost",
        "\0",
        " ",
        "!",
        &long,
        "é!",
    ] {
        let room = encoded(room);
        for (method, path, body) in endpoints("$event", &alice.user_id) {
            let path = format!("/_matrix/client/v3/rooms/{room}/{path}");
            is_refused(&alice, method, &path, body).await;
        }
        for path in ["join", "knock"] {
            let path = format!("/_matrix/client/v3/{path}/{room}");
            is_refused(&alice, Method::POST, &path, Some(json!({}))).await;
        }
    }
}

#[tokio::test]
async fn what_names_no_event_or_user_is_refused() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let (room, other) = (
        Room::new(&alice, "shared").await,
        Room::create(&bob, json!({})).await,
    );
    let foreign = other.say(&bob, "elsewhere").await;
    let long = format!("${}", "x".repeat(300));
    for event in [
        &*foreign,
        "$unknown",
        "nothing",
        "!room:localhost",
        "\0",
        "$",
        &long,
    ] {
        let event = encoded(event);
        for (method, path, body) in endpoints(&event, &alice.user_id) {
            if path.contains(&event) && !path.starts_with("receipt") {
                is_refused(&alice, method, &room.path(&path), body).await;
            }
        }
    }
    for user in ["nobody", "@", "\0", "!room:localhost", "", "@a:"] {
        for what in ["invite", "kick", "ban", "unban"] {
            let body = json!({ "user_id": user });
            is_refused(&alice, Method::POST, &room.path(what), Some(body)).await;
        }
        let path = room.path(&format!("state/m.room.member/{}", encoded(user)));
        let body = json!({ "membership": "invite" });
        is_refused(&alice, Method::PUT, &path, Some(body)).await;
    }
    // Whoever was never there is told of nothing that is.
    for (method, path, body) in endpoints(&encoded(&foreign), &alice.user_id) {
        if path != "join" {
            is_refused(&alice, method.clone(), &other.path(&path), body.clone()).await;
            let (unknown, known) = (Room("!unknown:localhost".to_owned()), &other);
            let one = alice
                .send(method.clone(), &unknown.path(&path), body.clone())
                .await;
            let two = alice.send(method, &known.path(&path), body).await;
            assert_eq!(one, two, "{path}");
        }
    }
    ok(room.get(&alice, "state").await);
}
