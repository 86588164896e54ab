//! "Jumping to dates": `/timestamp_to_event` for clients and between servers.

use std::time::Duration;

use http::StatusCode;
use serde_json::json;

use crate::{
    elsewhere::Elsewhere,
    joining::join,
    neighbour::Neighbour,
    room::{Room, encoded},
    server::{Answer, Client, START, TestServer, ok, refused, text},
    several::{named, network, node, sound},
};

async fn at(who: &Client, room: &Room, ts: u64, dir: &str) -> Answer {
    let room = &room.0;
    let path = format!("/_matrix/client/v1/rooms/{room}/timestamp_to_event?ts={ts}&dir={dir}");
    who.get(&path).await
}

async fn id_at(who: &Client, room: &Room, ts: u64, dir: &str) -> String {
    text(&ok(at(who, room, ts, dir).await), "event_id")
}

/// One message a minute, from one minute after the start.
async fn chat(server: &TestServer, who: &Client, room: &Room, count: usize) -> Vec<String> {
    let mut said = Vec::new();
    for n in 0..count {
        server.clock.advance(Duration::from_secs(60));
        said.push(room.say(who, &n.to_string()).await);
    }
    said
}

const MINUTE: u64 = 60_000;

#[tokio::test]
async fn an_event_is_found_by_its_time() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = Room::new(&alice, "shared").await;
    let said = chat(&server, &alice, &room, 600).await;
    for (n, id) in (1_u64..).zip(&said).step_by(97) {
        let ts = START + n * MINUTE;
        assert_eq!(id_at(&alice, &room, ts, "f").await, *id);
        assert_eq!(id_at(&alice, &room, ts, "b").await, *id);
        assert_eq!(id_at(&alice, &room, ts - 1, "f").await, *id);
        assert_eq!(id_at(&alice, &room, ts + 1, "b").await, *id);
    }
    let found = ok(at(&alice, &room, START + MINUTE, "f").await);
    assert_eq!(found["origin_server_ts"], START + MINUTE);
    let (end, before) = (START + 600 * MINUTE, START - 1);
    refused(at(&alice, &room, end + 1, "f").await, 404, "M_NOT_FOUND");
    refused(at(&alice, &room, before, "b").await, 404, "M_NOT_FOUND");
    assert_eq!(id_at(&alice, &room, end + 1, "b").await, said[599]);
    // Of many at one time the first or the last.
    let first = room.say(&alice, "again").await;
    let last = room.say(&alice, "and again").await;
    assert_eq!(id_at(&alice, &room, end, "b").await, last);
    assert_eq!(id_at(&alice, &room, end, "f").await, said[599]);
    assert_ne!(first, last);
    // Who may not read the room learns nothing of it.
    refused(at(&bob, &room, START, "f").await, 403, "M_FORBIDDEN");
    let nowhere = Room("!nowhere:localhost".to_owned());
    refused(at(&bob, &nowhere, START, "f").await, 403, "M_FORBIDDEN");
    room.does(&bob, "join").await;
    assert_eq!(id_at(&bob, &room, START + MINUTE, "f").await, said[0]);
    room.does(&bob, "leave").await;
    refused(at(&bob, &room, START, "f").await, 403, "M_FORBIDDEN");
    for (ts, dir) in [("x", "f"), ("-1", "f"), ("1", "x"), ("1", "")] {
        let path = room.path("timestamp_to_event").replace("/v3/", "/v1/");
        let answer = alice.get(&format!("{path}?ts={ts}&dir={dir}")).await;
        refused(answer, 400, "M_INVALID_PARAM");
    }
}

#[tokio::test]
async fn what_somebody_may_not_see_is_not_found_by_its_time() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = Room::new(&alice, "joined").await;
    let said = chat(&server, &alice, &room, 5).await;
    server.clock.advance(Duration::from_secs(60));
    room.does(&bob, "join").await;
    let joined = START + 6 * MINUTE;
    let found = ok(at(&bob, &room, START + 2 * MINUTE, "f").await);
    assert_eq!(found["origin_server_ts"], joined);
    // How the room began may be seen by everybody, what was said then may not.
    let before = id_at(&bob, &room, START + 5 * MINUTE, "b").await;
    assert!(!said.contains(&before));
}

#[tokio::test]
async fn what_is_missing_here_is_fetched() {
    let lan = network();
    let (a, b) = (node(&lan, "a.example"), node(&lan, "b.example"));
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let room = Room::new(&alice, "shared").await;
    let said = chat(&a, &alice, &room, 250).await;
    b.clock.advance(Duration::from_secs(251 * 60));
    ok(join(&bob, &room, &["a.example"]).await);
    for n in [249_usize, 20] {
        let ts = START + (u64::try_from(n).unwrap() + 1) * MINUTE;
        assert_eq!(id_at(&bob, &room, ts, "b").await, said[n]);
        assert_eq!(id_at(&bob, &room, ts - 1, "f").await, said[n]);
        // And from there one can read on.
        let context = ok(room
            .get(&bob, &format!("context/{}?limit=2", encoded(&said[n])))
            .await);
        assert_eq!(context["events_before"][0]["event_id"], said[n - 1]);
    }
    lan.set_link(&named("a.example"), &named("b.example"), false);
    ok(at(&bob, &room, START, "f").await);
    sound(&[&a, &b]);
}

#[tokio::test]
async fn servers_in_the_room_are_told() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let other = Neighbour::new(&server.lan, "b.example", 1);
    let room = Room::new(&alice, "joined").await;
    let ask = async |room: &str, query: &str| {
        let room = encoded(room);
        let path = format!("/_matrix/federation/v1/timestamp_to_event/{room}?{query}");
        other.get(&server, &path).await
    };
    let query = format!("ts={START}&dir=f");
    refused(ask(&room.0, &query).await, 403, "M_FORBIDDEN");
    let before = chat(&server, &alice, &room, 1).await;
    let zoe = "@zoe:b.example";
    Elsewhere::joined(&server, &room, &other, zoe).await;
    server.clock.advance(Duration::from_secs(60));
    let after = room.say(&alice, "after").await;
    let found = ok(ask(&room.0, &format!("ts={}&dir=b", START + 9 * MINUTE)).await);
    assert_eq!(
        found,
        json!({ "event_id": after, "origin_server_ts": START + 2 * MINUTE })
    );
    // What its users may not see is not told.
    let found = ok(ask(&room.0, &format!("ts={}&dir=f", START + MINUTE)).await);
    assert_ne!(found["event_id"], before[0]);
    refused(ask("!nowhere:localhost", &query).await, 403, "M_FORBIDDEN");
    refused(ask(&room.0, "ts=1").await, 400, "M_MISSING_PARAM");
    refused(ask(&room.0, "ts=1&dir=b").await, 404, "M_NOT_FOUND");
    let acl = json!({ "allow": ["*"], "deny": ["b.example"] });
    room.set(&alice, "m.room.server_acl", acl).await;
    refused(ask(&room.0, &query).await, 403, "M_FORBIDDEN");
    other.answers("/", StatusCode::OK, "{}");
}
