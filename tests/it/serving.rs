//! "Retrieving events" and "Backfilling and retrieving missing events" of the server-server API, and the directory.

use serde_json::{Value, json};

use crate::{
    elsewhere::{Elsewhere, check, id, pdu},
    neighbour::Neighbour,
    room::Room,
    server::{Client, TestServer, ok, refused, text},
};

const BOB: &str = "@bob:b.example";
const V1: &str = "/_matrix/federation/v1";

async fn says(room: &Room, who: &Client, body: &str) -> String {
    let content = json!({ "msgtype": "m.text", "body": body });
    let path = format!("send/m.room.message/{body}");
    text(&ok(room.put(who, &path, content).await), "event_id")
}

/// All that a server may ask about an event of a room.
fn questions(room: &Room, event: &str) -> Vec<(String, Option<Value>)> {
    let room = &room.0;
    vec![
        (format!("{V1}/state/{room}?event_id={event}"), None),
        (format!("{V1}/state_ids/{room}?event_id={event}"), None),
        (format!("{V1}/event_auth/{room}/{event}"), None),
        (format!("{V1}/backfill/{room}?v={event}&limit=10"), None),
        (
            format!("{V1}/get_missing_events/{room}"),
            Some(json!({ "earliest_events": [], "latest_events": [event] })),
        ),
    ]
}

async fn ask(
    server: &TestServer,
    who: &Neighbour,
    (path, body): &(String, Option<Value>),
) -> crate::server::Answer {
    match body {
        Some(body) => who.post(server, path, body).await,
        None => who.get(server, path).await,
    }
}

#[tokio::test]
async fn who_is_in_the_room_gets_its_events() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let room = Room::new(&alice, "shared").await;
    let early = says(&room, &alice, "early").await;
    let neighbour = Neighbour::new(&server.lan, "b.example", 1);
    let elsewhere = Elsewhere::joined(&server, &room, &neighbour, BOB).await;
    let join = elsewhere.ends[0].to_string();
    let late = says(&room, &alice, "late").await;
    let last = says(&room, &alice, "last").await;

    let got = ok(neighbour.get(&server, &format!("{V1}/event/{last}")).await);
    assert_eq!(got["origin"], "localhost");
    assert_eq!(got["pdus"][0]["content"]["body"], "last");
    assert_eq!(got["pdus"][0]["prev_events"], json!([late]));

    let asked = questions(&room, &late);
    let state = ok(ask(&server, &neighbour, &asked[0]).await);
    let ids = ok(ask(&server, &neighbour, &asked[1]).await);
    let told = ids["pdu_ids"].as_array().unwrap();
    assert!(told.contains(&json!(join)));
    assert_eq!(told.len(), elsewhere.state.len());
    assert_eq!(state["pdus"].as_array().unwrap().len(), told.len());
    let chain = ids["auth_chain_ids"].as_array().unwrap();
    assert!(!chain.is_empty());
    assert_eq!(state["auth_chain"].as_array().unwrap().len(), chain.len());

    let auth = ok(ask(&server, &neighbour, &asked[2]).await);
    let types = auth["auth_chain"].as_array().unwrap().iter();
    let types: Vec<_> = types.map(|event| event["type"].as_str().unwrap()).collect();
    assert!(types.contains(&"m.room.power_levels"), "{types:?}");
    assert!(!types.contains(&"m.room.message"), "{types:?}");

    let back = format!("{V1}/backfill/{}?v={last}&limit=3", room.0);
    let back = ok(neighbour.get(&server, &back).await);
    let bodies = back["pdus"].as_array().unwrap().iter();
    let bodies: Vec<_> = bodies
        .map(|event| event["content"]["body"].clone())
        .collect();
    assert_eq!(bodies, [json!("last"), json!("late"), Value::Null]);

    let between = json!({ "earliest_events": [early], "latest_events": [last], "limit": 10 });
    let path = format!("{V1}/get_missing_events/{}", room.0);
    let between = ok(neighbour.post(&server, &path, &between).await);
    let events = between["events"].as_array().unwrap();
    assert_eq!(events.len(), 2);
    assert_eq!(events[0]["type"], "m.room.member");
    assert_eq!(events[1]["content"]["body"], "late");
}

#[tokio::test]
async fn what_was_not_to_be_seen_comes_without_its_content() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let room = Room::new(&alice, "joined").await;
    let secret = says(&room, &alice, "secret").await;
    let neighbour = Neighbour::new(&server.lan, "b.example", 1);
    Elsewhere::joined(&server, &room, &neighbour, BOB).await;
    let got = ok(neighbour
        .get(&server, &format!("{V1}/event/{secret}"))
        .await);
    assert_eq!(got["pdus"][0]["content"], json!({}));
    let back = format!("{V1}/backfill/{}?v={secret}&limit=1", room.0);
    let back = ok(neighbour.get(&server, &back).await);
    assert_eq!(back["pdus"][0]["content"], json!({}));
}

#[tokio::test]
async fn who_is_not_in_the_room_learns_nothing() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let room = Room::new(&alice, "world_readable").await;
    let event = says(&room, &alice, "hello").await;
    let neighbour = Neighbour::new(&server.lan, "b.example", 1);
    let nowhere = Room("!nowhere:localhost".to_owned());
    for question in questions(&room, &event) {
        refused(
            ask(&server, &neighbour, &question).await,
            403,
            "M_FORBIDDEN",
        );
    }
    for question in questions(&nowhere, &event) {
        refused(
            ask(&server, &neighbour, &question).await,
            403,
            "M_FORBIDDEN",
        );
    }
    for event in [event.as_str(), "$nothing"] {
        let answer = neighbour.get(&server, &format!("{V1}/event/{event}")).await;
        refused(answer, 404, "M_NOT_FOUND");
    }
}

#[tokio::test]
async fn who_is_kept_out_is_told_nothing_more() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let room = Room::new(&alice, "shared").await;
    let neighbour = Neighbour::new(&server.lan, "b.example", 1);
    Elsewhere::joined(&server, &room, &neighbour, BOB).await;
    let event = says(&room, &alice, "hello").await;
    let acl = json!({ "allow": ["*"], "deny": ["*.example"] });
    ok(room.put(&alice, "state/m.room.server_acl/", acl).await);
    let mut all = questions(&room, &event);
    all.push((format!("{V1}/event/{event}"), None));
    for question in all {
        refused(
            ask(&server, &neighbour, &question).await,
            403,
            "M_FORBIDDEN",
        );
    }
}

#[tokio::test]
async fn events_of_other_rooms_are_not_there() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let (room, other) = (
        Room::new(&alice, "shared").await,
        Room::new(&alice, "shared").await,
    );
    let foreign = says(&other, &alice, "elsewhere").await;
    let neighbour = Neighbour::new(&server.lan, "b.example", 1);
    let mut elsewhere = Elsewhere::joined(&server, &room, &neighbour, BOB).await;
    for question in &questions(&room, &foreign)[..3] {
        refused(ask(&server, &neighbour, question).await, 404, "M_NOT_FOUND");
    }
    let asked = questions(&room, &foreign);
    assert_eq!(
        ok(ask(&server, &neighbour, &asked[3]).await)["pdus"],
        json!([])
    );
    // What was rejected is not given to anybody.
    let levels = json!({ "users": { BOB: 100 } });
    let kind = "m.room.power_levels";
    let rejected = elsewhere.make(&neighbour, BOB, kind, Some(""), levels, |_| {});
    ok(neighbour.push(&server, "1", &[pdu(&rejected)]).await);
    let path = format!("{V1}/event/{}", id(&rejected));
    refused(neighbour.get(&server, &path).await, 404, "M_NOT_FOUND");
    check(&server);
}

#[tokio::test]
async fn latest_events_of_other_rooms_lead_nowhere() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let (room, other) = (
        Room::new(&alice, "shared").await,
        Room::new(&alice, "shared").await,
    );
    says(&other, &alice, "before").await;
    let foreign = says(&other, &alice, "elsewhere").await;
    let neighbour = Neighbour::new(&server.lan, "b.example", 1);
    Elsewhere::joined(&server, &room, &neighbour, BOB).await;
    let asked = questions(&room, &foreign);
    let answer = ok(ask(&server, &neighbour, &asked[4]).await);
    assert_eq!(answer["events"], json!([]));
}

#[tokio::test]
async fn an_alias_leads_to_its_room() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let body = json!({ "preset": "public_chat", "room_alias_name": "lobby" });
    let room = Room::create(&alice, body).await;
    let neighbour = Neighbour::new(&server.lan, "b.example", 1);
    let path = |alias: &str| format!("{V1}/query/directory?room_alias=%23{alias}");
    let answer = ok(neighbour.get(&server, &path("lobby:localhost")).await);
    assert_eq!(
        answer,
        json!({ "room_id": room.0, "servers": ["localhost"] })
    );
    for alias in ["other:localhost", "lobby:b.example"] {
        refused(
            neighbour.get(&server, &path(alias)).await,
            404,
            "M_NOT_FOUND",
        );
    }
    let path = format!("{V1}/query/directory");
    refused(neighbour.get(&server, &path).await, 400, "M_MISSING_PARAM");
}
