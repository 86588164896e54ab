//! `/initialSync`, `/rooms/{roomId}/initialSync` and `/events`, as clients of old and guests use them.

use serde_json::{Value, json};

use crate::{
    room::{Room, ids},
    server::{Client, TestServer, ok, refused, text},
};

const EVENTS: &str = "/_matrix/client/v3/events";
const ALL: &str = "/_matrix/client/v3/initialSync";

async fn guest(server: &TestServer) -> Client {
    let path = "/_matrix/client/v3/register?kind=guest";
    server.client(&ok(server.anonymous().post(path, json!({})).await))
}

fn readable() -> Value {
    json!({ "preset": "private_chat", "initial_state": [{
        "type": "m.room.history_visibility",
        "content": { "history_visibility": "world_readable" },
    }] })
}

/// The ids of new events, and where to go on.
async fn hear(client: &Client, query: &str) -> (Vec<String>, String) {
    let answer = ok(client.get(&format!("{EVENTS}?{query}")).await);
    (ids(&answer["chunk"]), text(&answer, "end"))
}

#[tokio::test]
async fn a_guest_looks_into_a_room_that_everybody_may_read() {
    let server = TestServer::with(|config| config.registration.guests = true);
    let (alice, guest) = (server.register("alice").await, guest(&server).await);
    let (open, closed) = (
        Room::create(&alice, readable()).await,
        Room::create(&alice, json!({ "preset": "private_chat" })).await,
    );
    let said = open.say(&alice, "hello").await;
    let first = ok(open.get(&guest, "initialSync?limit=2").await);
    assert_eq!(first["room_id"], open.0);
    assert_eq!(first.get("membership"), None);
    assert_eq!(first["visibility"], "private");
    assert_eq!(first["account_data"], json!([]));
    let chunk = ids(&first["messages"]["chunk"]);
    assert_eq!((chunk.len(), &chunk[1]), (2, &said));
    let state = first["state"].as_array().expect("there is state");
    assert!(state.iter().any(|event| event["type"] == "m.room.create"));
    let before = text(&first["messages"], "start");
    let page = ok(open
        .get(&guest, &format!("messages?dir=b&from={before}"))
        .await);
    assert!(!ids(&page["chunk"]).contains(&said));

    let end = text(&first["messages"], "end");
    let query = |from: &str| format!("room_id={}&from={from}&timeout=10000", open.0);
    let waiting = query(&end);
    let (heard, next) = tokio::join!(hear(&guest, &waiting), open.say(&alice, "again"));
    assert_eq!(heard.0, [next]);
    closed.say(&alice, "not for you").await;
    let none = hear(&guest, &format!("room_id={}&from={}", open.0, heard.1)).await;
    assert_eq!(none.0, [""; 0]);

    refused(closed.get(&guest, "initialSync").await, 403, "M_FORBIDDEN");
    for room in [&*closed.0, "!nowhere:localhost"] {
        let path = format!("{EVENTS}?room_id={room}");
        refused(guest.get(&path).await, 403, "M_FORBIDDEN");
    }
    for query in ["from=x", "timeout=x", "room_id=x"] {
        let path = format!("{EVENTS}?{query}");
        refused(guest.get(&path).await, 400, "M_INVALID_PARAM");
    }
    // What is closed now is closed to those who looked in.
    let content = json!({ "history_visibility": "joined" });
    open.set(&alice, "m.room.history_visibility", content).await;
    let path = format!("{EVENTS}?{}", query(&heard.1));
    refused(guest.get(&path).await, 403, "M_FORBIDDEN");
}

#[tokio::test]
async fn all_rooms_of_a_user_are_told_and_then_what_happens_in_them() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let (one, two) = (
        Room::new(&alice, "shared").await,
        Room::new(&alice, "shared").await,
    );
    let (left, asked) = (
        Room::new(&alice, "shared").await,
        Room::new(&alice, "shared").await,
    );
    for room in [&one, &two, &left] {
        room.does(&bob, "join").await;
    }
    left.does(&bob, "leave").await;
    left.say(&alice, "bob is gone").await;
    asked.does_to(&alice, "invite", &bob).await;
    let all = ok(bob.get(&format!("{ALL}?limit=1")).await);
    let of = |all: &Value, room: &Room| {
        let rooms = all["rooms"].as_array().expect("there are rooms").clone();
        let found = rooms.into_iter().find(|found| found["room_id"] == room.0);
        found.unwrap_or_default()
    };
    assert_eq!(of(&all, &one)["membership"], "join");
    assert_eq!(ids(&of(&all, &one)["messages"]["chunk"]).len(), 1);
    assert_eq!(of(&all, &left), Value::Null);
    let invite = of(&all, &asked);
    assert_eq!(invite["membership"], "invite");
    assert_eq!(invite["invite"]["content"]["membership"], "invite");
    assert_eq!(invite.get("state"), None);
    let types = all["account_data"]
        .as_array()
        .expect("there is account data");
    assert!(types.iter().any(|data| data["type"] == "m.push_rules"));
    let archived = ok(bob.get(&format!("{ALL}?archived=true")).await);
    assert_eq!(of(&archived, &left)["membership"], "leave");
    assert!(!of(&archived, &left).to_string().contains("bob is gone"));

    let end = text(&all, "end");
    let mut said = Vec::new();
    for (room, words) in [(&one, "1"), (&two, "2"), (&one, "3")] {
        said.push(room.say(&alice, words).await);
    }
    asked.say(&alice, "not yet").await;
    assert_eq!(hear(&bob, &format!("from={end}")).await.0, said);
    // More than fits comes with the next answers, and nothing twice.
    for n in 0..120 {
        said.push(
            if n % 2 == 0 { &one } else { &two }
                .say(&alice, "more")
                .await,
        );
    }
    let (mut heard, mut from) = (Vec::new(), end);
    loop {
        let (events, end) = hear(&bob, &format!("from={from}")).await;
        if events.is_empty() {
            break;
        }
        heard.extend(events);
        from = end;
    }
    assert_eq!(heard, said);
}

#[tokio::test]
async fn one_event_is_found_without_its_room() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = Room::create(&alice, json!({ "preset": "private_chat" })).await;
    let said = room.say(&alice, "hello").await;
    let path = |id: &str| format!("{EVENTS}/{id}");
    let event = ok(alice.get(&path(&said)).await);
    assert_eq!(
        (&event["event_id"], &event["room_id"]),
        (&json!(said), &json!(room.0))
    );
    refused(bob.get(&path(&said)).await, 404, "M_NOT_FOUND");
    refused(alice.get(&path("$nothing")).await, 404, "M_NOT_FOUND");
    refused(alice.get(&path("nothing")).await, 400, "M_INVALID_PARAM");
}
