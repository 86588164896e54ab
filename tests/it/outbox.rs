//! What other servers are told of what happens here: "Transactions" in the server-server API, over links that fail.

use std::{collections::BTreeSet, time::Duration};

use http::{Method, StatusCode};
use kontor::{
    config::{Config, Peer},
    protocol::{format, ingest::Verdict},
    remote::memory::Faults,
    service::rooms::{Before, Outcome},
    store::schema::{EXTRA_TARGETS, LOCAL_EVENTS},
};
use ruma::ServerName;
use serde_json::{Value, json};

use crate::{
    elsewhere::{Elsewhere, check},
    neighbour::{Neighbour, us},
    room::Room,
    server::{Client, START, TestServer, ok},
};

const SEND: &str = "/_matrix/federation/v1/send/";

fn with_peers(config: &mut Config) {
    for name in ["b.example", "c.example"] {
        let name = ServerName::parse(name).expect("it is so in these tests");
        config.federation.peers.insert(name, Peer::default());
    }
}

/// A node, a user, and a server in its network that takes all that it is sent.
async fn node(change: impl FnOnce(&mut Config)) -> (TestServer, Client, Neighbour) {
    let server = TestServer::with(change);
    let b = branch(&server, "b.example", 2);
    let alice = server.register("alice").await;
    (server, alice, b)
}

fn branch(server: &TestServer, name: &str, seed: u8) -> Neighbour {
    let branch = Neighbour::new(&server.lan, name, seed);
    branch.answers(SEND, StatusCode::OK, json!({ "pdus": {} }));
    branch
}

/// A user of the other server changes their membership.
async fn becomes(server: &TestServer, who: &Neighbour, room: &Room, membership: &str) -> String {
    let services = &server.services;
    let user = format!("@bob:{}", who.name);
    let mut elsewhere = Elsewhere::of(server, room).await;
    let content = json!({ "membership": membership });
    let event = elsewhere.add(who, &user, "m.room.member", Some(&user), content);
    let (id, rules) = (elsewhere.room, elsewhere.rules);
    let text = format::federation(&event);
    let mut verified = services
        .federation
        .verify(rules, vec![text])
        .await
        .expect("it is so in these tests");
    let pdu = verified.remove(0).expect("the event is genuine");
    let mut guard = services
        .rooms
        .lock(&id)
        .await
        .expect("it is so in these tests");
    let outcome = services
        .rooms
        .receive(guard.head(), &pdu, Before::Previous, |_| ())
        .expect("it is so in these tests");
    let Outcome::Written { verdict, .. } = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(verdict, Verdict::Accepted);
    pdu.event.header.id.to_string()
}

/// Waits until something is so; a task may need a thread for it.
async fn until(what: &str, is_so: impl Fn() -> bool) {
    for _ in 0..2_000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    panic!("never: {what}");
}

/// Long enough for everything that does not wait for the clock.
async fn rest() {
    tokio::time::sleep(Duration::from_millis(60)).await;
}

/// The message texts of one transaction.
fn texts(transaction: &Value) -> Vec<String> {
    let pdus = transaction["pdus"]
        .as_array()
        .expect("it is so in these tests");
    let bodies = pdus.iter().filter(|pdu| pdu["type"] == "m.room.message");
    bodies
        .map(|pdu| {
            pdu["content"]["body"]
                .as_str()
                .expect("it is so in these tests")
                .to_owned()
        })
        .collect()
}

/// All message texts in the order in which they came for the first time.
fn heard(branch: &Neighbour) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let all = branch.put().into_iter();
    all.flat_map(|(_, body)| texts(&body))
        .filter(|text| seen.insert(text.clone()))
        .collect()
}

fn edus(branch: &Neighbour, kind: &str) -> Vec<Value> {
    let mut found = Vec::new();
    for (_, body) in branch.put() {
        for edu in body["edus"].as_array().expect("it is so in these tests") {
            if edu["edu_type"] == kind {
                found.push(edu["content"].clone());
            }
        }
    }
    found
}

fn numbers(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

#[tokio::test]
async fn messages_reach_the_servers_of_the_room() {
    let (server, alice, b) = node(|_| ()).await;
    let c = branch(&server, "c.example", 3);
    let room = Room::new(&alice, "shared").await;
    let other = Room::new(&alice, "shared").await;
    room.say(&alice, "before").await;
    becomes(&server, &b, &room, "join").await;
    becomes(&server, &c, &other, "join").await;
    let id = room.say(&alice, "1").await;
    other.say(&alice, "elsewhere").await;
    until("it arrives", || !heard(&b).is_empty()).await;
    until("the other too", || !heard(&c).is_empty()).await;
    // Who has which devices may be told before.
    let mut told = b.put().into_iter();
    let (path, body) = told.find(|(_, body)| body["pdus"] != json!([])).unwrap();
    assert!(path.starts_with(SEND), "{path}");
    assert_eq!(
        (&body["origin"], body["origin_server_ts"].as_u64()),
        (&json!(us()), Some(START))
    );
    let pdus = body["pdus"].as_array().unwrap();
    assert_eq!(texts(&body), ["1"]);
    assert_eq!(pdus[0]["room_id"], json!(room.0));
    assert!(pdus[0]["signatures"]["localhost"].is_object() && pdus[0]["hashes"].is_object());
    assert!(pdus[0]["unsigned"].is_null() && pdus[0]["event_id"].is_null() && !id.is_empty());
    for number in numbers(2..150) {
        room.say(&alice, &number).await;
    }
    until("all arrive", || heard(&b).len() == 149).await;
    assert_eq!(heard(&b), numbers(1..150));
    assert_eq!(heard(&c), ["elsewhere"]);
    let ids: BTreeSet<_> = b.put().into_iter().map(|(path, _)| path).collect();
    assert_eq!(ids.len(), b.put().len());
    becomes(&server, &b, &room, "leave").await;
    room.say(&alice, "nobody is told").await;
    rest().await;
    assert_eq!(heard(&b).len(), 149);
    check(&server);
}

#[tokio::test]
async fn what_waits_for_a_link_arrives_once_and_in_order() {
    let (server, alice, b) = node(|_| ()).await;
    let room = Room::new(&alice, "shared").await;
    becomes(&server, &b, &room, "join").await;
    // It is told of the devices of whoever is there.
    until("the introduction", || b.all_put().len() == 1).await;
    server.lan.set_link(&us(), &b.name, false);
    for number in numbers(0..120) {
        room.say(&alice, &number).await;
        server.clock.advance(Duration::from_millis(500));
    }
    rest().await;
    assert_eq!(b.put().len(), 0);
    let status = server.services.federation.destinations().unwrap();
    assert_eq!(
        (status.len(), status[0].waiting, status[0].oldest),
        (1, 120, Some(START))
    );
    assert!(status[0].down_since.is_some() && status[0].last_error.is_some());
    server.lan.set_link(&us(), &b.name, true);
    // A busy machine may be late with an attempt.
    until("all arrive", || {
        server.clock.advance(Duration::from_secs(3_600));
        heard(&b).len() == 120
    })
    .await;
    assert_eq!(heard(&b), numbers(0..120));
    let sizes: Vec<usize> = b.put().iter().map(|(_, body)| texts(body).len()).collect();
    assert_eq!(sizes.iter().sum::<usize>(), 120);
    assert!(sizes.iter().all(|size| *size <= 50), "{sizes:?}");
    rest().await;
    let status = server.services.federation.destinations().unwrap();
    assert_eq!((status[0].waiting, status[0].down_since), (0, None));
    assert!(status[0].last_success.is_some());
    server.clock.advance(Duration::from_secs(2));
    rest().await;
    // The hour may have been over before.
    server.services.federation.forget_delivered().unwrap();
    let view = server.services.store().view();
    assert_eq!(LOCAL_EVENTS.scan(&view, &()).count(), 0);
    check(&server);
}

#[tokio::test]
async fn a_transaction_whose_answer_was_lost_is_repeated_as_it_was() {
    let (server, alice, b) = node(|_| ()).await;
    let room = Room::new(&alice, "shared").await;
    becomes(&server, &b, &room, "join").await;
    let unanswered = Faults {
        unanswered: 1000,
        ..Faults::default()
    };
    server.lan.set_faults(unanswered);
    room.say(&alice, "1").await;
    until("it arrives", || b.put().len() == 1).await;
    room.say(&alice, "2").await;
    ok(room
        .put(
            &alice,
            &format!("typing/{}", alice.user_id),
            json!({ "typing": true, "timeout": 30000 }),
        )
        .await);
    server.clock.advance(Duration::from_secs(3));
    until("it is repeated", || b.put().len() == 2).await;
    server.lan.set_faults(Faults::default());
    server.clock.advance(Duration::from_secs(5));
    until("the next comes", || heard(&b).len() == 2).await;
    let all = b.put();
    assert_eq!((&all[0], &all[0]), (&all[1], &all[2]));
    assert_ne!(all[3].0, all[0].0);
    assert_eq!(texts(&all[3].1), ["2"]);
}

#[tokio::test]
async fn a_restart_loses_nothing() {
    let (server, alice, b) = node(with_peers).await;
    let room = Room::new(&alice, "shared").await;
    becomes(&server, &b, &room, "join").await;
    room.say(&alice, "0").await;
    until("it arrives", || heard(&b).len() == 1).await;
    server.lan.set_link(&us(), &b.name, false);
    for number in numbers(1..60) {
        room.say(&alice, &number).await;
    }
    rest().await;
    server.clock.advance(Duration::from_secs(1));
    rest().await;
    let server = server.restart();
    room.say(&alice, "60").await;
    rest().await;
    server.lan.set_link(&us(), &b.name, true);
    server.clock.advance(Duration::from_secs(61));
    until("all arrive", || heard(&b).len() == 61).await;
    assert_eq!(heard(&b), numbers(0..61));
    // It was written down that the first one had arrived.
    let all: Vec<_> = b.put().iter().flat_map(|(_, body)| texts(body)).collect();
    assert_eq!(all, numbers(0..61));
    check(&server);
}

#[tokio::test]
async fn whoever_is_heard_of_is_tried_at_once() {
    let (server, alice, b) = node(|_| ()).await;
    let room = Room::new(&alice, "shared").await;
    becomes(&server, &b, &room, "join").await;
    server.lan.set_link(&us(), &b.name, false);
    room.say(&alice, "1").await;
    for _ in 0..12 {
        rest().await;
        server.clock.advance(Duration::from_secs(3_600));
    }
    rest().await;
    server.clock.advance(Duration::from_secs(1));
    server.lan.set_link(&us(), &b.name, true);
    // One that is not signed as it should be says nothing.
    b.publish(&[], server.clock.now_ms() + 3_600_000);
    let path = "/_matrix/federation/v1/query/profile?user_id=@alice:localhost";
    let forged = b.sign(&Method::GET, "/elsewhere", "");
    b.send(&server, Method::GET, path, &forged, "").await;
    rest().await;
    assert_eq!(heard(&b).len(), 0);
    ok(b.get(&server, path).await);
    until("it arrives", || heard(&b) == ["1"]).await;
}

#[tokio::test]
async fn peers_are_greeted() {
    let (server, alice, b) = node(with_peers).await;
    until("the hello", || b.put().len() == 1).await;
    assert_eq!(
        (&b.put()[0].1["pdus"], &b.put()[0].1["edus"]),
        (&json!([]), &json!([]))
    );
    let room = Room::new(&alice, "shared").await;
    becomes(&server, &b, &room, "join").await;
    // That alice was introduced is written down, so that nothing waits.
    until("the introduction", || b.all_put().len() == 2).await;
    rest().await;
    server.clock.advance(Duration::from_secs(2));
    rest().await;
    server.lan.set_link(&us(), &b.name, false);
    let server = server.restart();
    rest().await;
    for _ in 0..5 {
        server.clock.advance(Duration::from_secs(60));
        rest().await;
    }
    server.lan.set_link(&us(), &b.name, true);
    server.clock.advance(Duration::from_secs(60));
    until("the second hello", || b.put().len() == 2).await;
    assert_ne!(b.put()[0].0, b.put()[1].0);
    // When somebody has something to say to a peer that was down, it is tried soon.
    server.lan.set_link(&us(), &b.name, false);
    room.say(&alice, "1").await;
    for _ in 0..9 {
        rest().await;
        server.clock.advance(Duration::from_secs(60));
    }
    rest().await;
    server.lan.set_link(&us(), &b.name, true);
    server.clock.advance(Duration::from_secs(2));
    room.say(&alice, "2").await;
    until("both arrive", || heard(&b).len() == 2).await;
}

#[tokio::test]
async fn whoever_is_sent_away_is_told() {
    let (server, alice, b) = node(|_| ()).await;
    let room = Room::new(&alice, "shared").await;
    becomes(&server, &b, &room, "join").await;
    server.lan.set_link(&us(), &b.name, false);
    let kick = json!({ "user_id": "@bob:b.example" });
    ok(room.post(&alice, "kick", kick).await);
    room.say(&alice, "among ourselves").await;
    rest().await;
    server.clock.advance(Duration::from_secs(1));
    rest().await;
    let server = server.restart();
    server.lan.set_link(&us(), &b.name, true);
    server.clock.advance(Duration::from_secs(10));
    until("it arrives", || !b.put().is_empty()).await;
    rest().await;
    let all = b.put();
    assert_eq!(all.len(), 1);
    let pdus = all[0].1["pdus"].as_array().unwrap();
    assert_eq!(pdus.len(), 1);
    assert_eq!(pdus[0]["content"]["membership"], "leave");
    server.clock.advance(Duration::from_secs(2));
    rest().await;
    check(&server);
    let server = server.restart();
    rest().await;
    assert_eq!(b.put().len(), 1);
    assert_eq!(
        server.services.federation.destinations().unwrap()[0].waiting,
        0
    );
}

#[tokio::test]
async fn what_was_said_before_somebody_was_sent_away_is_for_them_too() {
    let (server, alice, b) = node(|_| ()).await;
    let (room, other) = (
        Room::new(&alice, "shared").await,
        Room::new(&alice, "shared").await,
    );
    room.say(&alice, "before they came").await;
    for room in [&room, &other] {
        becomes(&server, &b, room, "join").await;
    }
    server.lan.set_link(&us(), &b.name, false);
    for number in numbers(0..60) {
        room.say(&alice, &number).await;
    }
    let kick = json!({ "user_id": "@bob:b.example" });
    ok(room.post(&alice, "kick", kick).await);
    room.say(&alice, "among ourselves").await;
    other.say(&alice, "elsewhere").await;
    rest().await;
    server.clock.advance(Duration::from_secs(1));
    rest().await;
    // Nothing of it is swept away.
    server.services.federation.forget_delivered().unwrap();
    let server = server.restart();
    server.services.federation.forget_delivered().unwrap();
    server.lan.set_link(&us(), &b.name, true);
    until("it arrives", || {
        server.clock.advance(Duration::from_secs(10));
        heard(&b).len() == 61
    })
    .await;
    let expect = [numbers(0..60), vec!["elsewhere".to_owned()]].concat();
    assert_eq!(heard(&b), expect);
    let all = b.put();
    let pdus = all.iter().filter_map(|(_, body)| body["pdus"].as_array());
    let leave = pdus
        .flatten()
        .position(|pdu| pdu["content"]["membership"] == "leave");
    assert_eq!(leave, Some(60));
    rest().await;
    server.clock.advance(Duration::from_secs(2));
    rest().await;
    server.services.federation.forget_delivered().unwrap();
    let view = server.services.store().view();
    assert_eq!(LOCAL_EVENTS.scan(&view, &()).count(), 0);
    assert_eq!(EXTRA_TARGETS.scan(&view, &()).count(), 0);
    check(&server);
}

#[tokio::test]
async fn what_is_on_its_way_when_somebody_is_sent_away_arrives() {
    let (server, alice, b) = node(|_| ()).await;
    let room = Room::new(&alice, "shared").await;
    becomes(&server, &b, &room, "join").await;
    room.say(&alice, "0").await;
    until("it arrives", || heard(&b).len() == 1).await;
    // While this is under way the next one waits in memory.
    b.answers(SEND, StatusCode::IM_A_TEAPOT, "");
    room.say(&alice, "1").await;
    until("it is sent", || heard(&b).len() == 2).await;
    room.say(&alice, "2").await;
    rest().await;
    let ban = json!({ "user_id": "@bob:b.example" });
    ok(room.post(&alice, "ban", ban).await);
    rest().await;
    b.answers(SEND, StatusCode::OK, json!({ "pdus": {} }));
    until("all arrives", || {
        server.clock.advance(Duration::from_secs(5));
        heard(&b).len() == 3
    })
    .await;
    assert_eq!(heard(&b), numbers(0..3));
    check(&server);
}

#[tokio::test]
async fn an_attempt_that_hangs_is_repeated_when_the_server_is_heard_of() {
    let (server, alice, b) = node(|_| ()).await;
    let room = Room::new(&alice, "shared").await;
    becomes(&server, &b, &room, "join").await;
    b.answers(SEND, StatusCode::IM_A_TEAPOT, "");
    room.say(&alice, "1").await;
    until("it is sent", || b.put().len() == 1).await;
    room.say(&alice, "2").await;
    b.answers(SEND, StatusCode::OK, json!({ "pdus": {} }));
    // Whoever is slow is not asked twice.
    server.clock.advance(Duration::from_secs(3));
    rest().await;
    assert_eq!(b.put().len(), 1);
    ok(b.get(
        &server,
        "/_matrix/federation/v1/query/profile?user_id=@alice:localhost",
    )
    .await);
    until("both arrive", || heard(&b).len() == 2).await;
    let all = b.put();
    assert_eq!((all.len(), &all[0]), (3, &all[1]));
    let status = server.services.federation.destinations().unwrap();
    assert_eq!(status[0].down_since, None);
}

#[tokio::test]
async fn what_is_new_for_a_peer_that_is_down_does_not_wait_for_an_attempt_that_hangs() {
    let (server, alice, b) = node(with_peers).await;
    let room = Room::new(&alice, "shared").await;
    becomes(&server, &b, &room, "join").await;
    server.lan.set_link(&us(), &b.name, false);
    room.say(&alice, "1").await;
    for _ in 0..9 {
        rest().await;
        server.clock.advance(Duration::from_secs(60));
    }
    rest().await;
    // The link is back, but whoever tries at this moment is not answered.
    b.answers(SEND, StatusCode::IM_A_TEAPOT, "");
    server.lan.set_link(&us(), &b.name, true);
    let before = b.put().len();
    server.clock.advance(Duration::from_secs(60));
    until("it is tried", || b.put().len() == before + 1).await;
    b.answers(SEND, StatusCode::OK, json!({ "pdus": {} }));
    room.say(&alice, "2").await;
    rest().await;
    server.clock.advance(Duration::from_millis(1_500));
    until("both arrive", || heard(&b).len() == 2).await;
}

#[tokio::test]
async fn a_peer_that_was_down_for_a_moment_is_tried_soon() {
    let (server, alice, b) = node(with_peers).await;
    let room = Room::new(&alice, "shared").await;
    becomes(&server, &b, &room, "join").await;
    server.lan.set_link(&us(), &b.name, false);
    room.say(&alice, "1").await;
    for _ in 0..15 {
        rest().await;
        server.clock.advance(Duration::from_millis(1_100));
    }
    rest().await;
    server.lan.set_link(&us(), &b.name, true);
    server.clock.advance(Duration::from_millis(1_100));
    until("it arrives", || heard(&b) == ["1"]).await;
    // After an hour a minute more is not much.
    server.lan.set_link(&us(), &b.name, false);
    room.say(&alice, "2").await;
    for _ in 0..60 {
        rest().await;
        server.clock.advance(Duration::from_mins(1));
    }
    rest().await;
    server.lan.set_link(&us(), &b.name, true);
    server.clock.advance(Duration::from_secs(10));
    rest().await;
    assert_eq!(heard(&b), ["1"]);
    server.clock.advance(Duration::from_secs(50));
    until("both arrive", || heard(&b) == ["1", "2"]).await;
}

#[tokio::test]
async fn whoever_is_heard_of_during_an_attempt_is_tried_again_at_once() {
    let (server, alice, b) = node(with_peers).await;
    let room = Room::new(&alice, "shared").await;
    becomes(&server, &b, &room, "join").await;
    server.lan.set_link(&us(), &b.name, false);
    room.say(&alice, "1").await;
    for _ in 0..9 {
        rest().await;
        server.clock.advance(Duration::from_secs(60));
    }
    rest().await;
    let slow = Faults {
        delay: Duration::from_millis(100),
        ..Faults::default()
    };
    server.lan.set_faults(slow);
    server.clock.advance(Duration::from_secs(60));
    rest().await;
    // It fails, as the link is down in this direction; but in the other one it was up meanwhile.
    ok(b.get(
        &server,
        "/_matrix/federation/v1/query/profile?user_id=@alice:localhost",
    )
    .await);
    server.clock.advance(Duration::from_millis(200));
    rest().await;
    server.lan.set_faults(Faults::default());
    server.lan.set_link(&us(), &b.name, true);
    server.clock.advance(Duration::from_millis(600));
    until("it arrives", || heard(&b) == ["1"]).await;
}

#[tokio::test]
async fn receipts_and_typing_are_told_as_they_are_now() {
    let (server, alice, b) = node(|_| ()).await;
    let room = Room::new(&alice, "shared").await;
    becomes(&server, &b, &room, "join").await;
    let root = room.say(&alice, "1").await;
    let reply = room.relate(&alice, "m.thread", &root).await;
    let last = room.say(&alice, "3").await;
    until("they arrive", || heard(&b).len() == 3).await;
    let typing = format!("typing/{}", alice.user_id);
    ok(room
        .put(
            &alice,
            &typing,
            json!({ "typing": true, "timeout": 30_000 }),
        )
        .await);
    until("she types", || !edus(&b, "m.typing").is_empty()).await;
    assert_eq!(
        edus(&b, "m.typing")[0],
        json!({ "room_id": room.0, "user_id": alice.user_id, "typing": true })
    );
    ok(room
        .post(&alice, &format!("receipt/m.read/{root}"), json!({}))
        .await);
    until("she has read", || edus(&b, "m.receipt").len() == 1).await;
    server.lan.set_link(&us(), &b.name, false);
    ok(room.put(&alice, &typing, json!({ "typing": false })).await);
    rest().await;
    for _ in 0..3 {
        ok(room
            .put(
                &alice,
                &typing,
                json!({ "typing": true, "timeout": 30_000 }),
            )
            .await);
        ok(room.put(&alice, &typing, json!({ "typing": false })).await);
    }
    for (kind, event, thread) in [
        ("m.read", &root, None),
        ("m.read", &last, None),
        ("m.read", &reply, Some(&root)),
        ("m.read.private", &last, None),
    ] {
        let body = thread.map_or(json!({}), |thread| json!({ "thread_id": thread }));
        ok(room
            .post(&alice, &format!("receipt/{kind}/{event}"), body)
            .await);
    }
    rest().await;
    // Who types is forgotten with the node, but not who has read what.
    let server = server.restart();
    server.lan.set_link(&us(), &b.name, true);
    server.clock.advance(Duration::from_secs(3));
    until("receipts arrive", || edus(&b, "m.receipt").len() == 3).await;
    rest().await;
    let receipts = edus(&b, "m.receipt").split_off(1);
    let of = |at: usize| &receipts[at][&room.0]["m.read"][&alice.user_id];
    let mut found: Vec<_> = (0..2).map(|at| of(at).clone()).collect();
    found.sort_by_key(|receipt| receipt["data"]["thread_id"].is_string());
    assert_eq!(found[0]["event_ids"], json!([last]));
    assert_eq!(found[1]["event_ids"], json!([reply]));
    assert_eq!(found[1]["data"]["thread_id"], json!(root));
    assert_eq!(found[0]["data"]["ts"], json!(START));
    assert_eq!(edus(&b, "m.typing").len(), 1);
    assert_eq!(edus(&b, "m.receipt").len(), 3);
}

#[tokio::test]
async fn presence_goes_to_those_who_share_a_room() {
    let (server, alice, b) = node(|_| ()).await;
    let c = branch(&server, "c.example", 3);
    let carol = server.register("carol").await;
    let (room, other) = (
        Room::new(&alice, "shared").await,
        Room::new(&carol, "shared").await,
    );
    becomes(&server, &b, &room, "join").await;
    becomes(&server, &c, &other, "join").await;
    let path = format!("/_matrix/client/v3/presence/{}/status", alice.user_id);
    ok(alice
        .put(&path, json!({ "presence": "online", "status_msg": "here" }))
        .await);
    for _ in 0..3 {
        rest().await;
        server.clock.advance(Duration::from_secs(1));
    }
    until("it is told", || !edus(&b, "m.presence").is_empty()).await;
    let told = &edus(&b, "m.presence")[0]["push"][0];
    assert_eq!(
        (&told["user_id"], &told["presence"]),
        (&json!(alice.user_id), &json!("online"))
    );
    assert_eq!(
        (&told["status_msg"], &told["currently_active"]),
        (&json!("here"), &json!(true))
    );
    assert!(told["last_active_ago"].is_u64());
    assert_eq!(edus(&c, "m.presence").len(), 0);
}

/// Whatever the links do, in the end everything is there once and in order.
#[tokio::test]
async fn at_rest_everything_has_arrived() {
    for seed in 0..6_u64 {
        let (mut server, alice, b) = node(with_peers).await;
        let rooms = [
            Room::new(&alice, "shared").await,
            Room::new(&alice, "shared").await,
        ];
        for room in &rooms {
            becomes(&server, &b, room, "join").await;
        }
        let mut sent = [Vec::new(), Vec::new()];
        let mut chance: u64 = seed * 7_919 + 1;
        for number in 0..150_usize {
            chance = chance
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let draw = chance >> 33;
            match draw % 12 {
                0 => server.lan.set_link(&us(), &b.name, draw % 5 < 3),
                1 => server.lan.set_faults(Faults {
                    lost: draw % 400,
                    unanswered: draw / 7 % 400,
                    doubled: draw / 11 % 400,
                    delay: Duration::ZERO,
                }),
                2 => server.clock.advance(Duration::from_millis(draw % 5_000)),
                3 => tokio::time::sleep(Duration::from_millis(3)).await,
                4 if draw.is_multiple_of(5) => {
                    rest().await;
                    server = server.restart();
                }
                _ => {}
            }
            let at = usize::from(draw / 3 % 2 == 1);
            let text = format!("{at}/{number}");
            rooms[at].say(&alice, &text).await;
            sent[at].push(text);
        }
        server.lan.set_link(&us(), &b.name, true);
        server.lan.set_faults(Faults::default());
        // A busy machine may be late with an attempt.
        for _ in 0..400 {
            server.clock.advance(Duration::from_secs(60));
            tokio::time::sleep(Duration::from_millis(5)).await;
            if heard(&b).len() == 150 {
                break;
            }
        }
        let all = heard(&b);
        for (at, sent) in sent.iter().enumerate() {
            let of_room = all
                .iter()
                .filter(|text| text.starts_with(&format!("{at}/")));
            assert_eq!(&of_room.cloned().collect::<Vec<_>>(), sent, "seed {seed}");
        }
        for (path, body) in b.put() {
            assert!(texts(&body).len() <= 50);
            // The same id is the same transaction.
            let same: Vec<_> = b
                .put()
                .into_iter()
                .filter(|(other, _)| *other == path)
                .collect();
            assert!(same.iter().all(|(_, other)| other["pdus"] == body["pdus"]));
        }
        check(&server);
    }
}
