//! "Send-to-Device messaging", in one office and between offices.

use std::time::Duration;

use http::{Method, StatusCode};
use kontor::remote::memory::Faults;
use serde_json::{Value, json};

use crate::{
    neighbour::Neighbour,
    server::{Client, TestServer, ok, refused},
    several::{named, network, node, sound},
};

const SYNC: &str = "/_matrix/client/v3/sync?timeout=0";

async fn send(from: &Client, txn: &str, messages: Value) {
    let body = json!({ "messages": messages });
    let path = format!("/_matrix/client/v3/sendToDevice/m.test/{txn}");
    ok(from.put(&path, body).await);
}

/// What a device is told after a token, and the next token.
async fn told(client: &Client, since: &str) -> (Vec<Value>, String) {
    let path = match since {
        "" => SYNC.to_owned(),
        since => format!("{SYNC}&since={since}"),
    };
    let answer = ok(client.get(&path).await);
    let events = answer["to_device"]["events"].as_array();
    let next = answer["next_batch"].as_str().expect("a token").to_owned();
    (events.cloned().unwrap_or_default(), next)
}

fn bodies(events: &[Value]) -> Vec<u64> {
    let bodies = events.iter();
    bodies
        .map(|event| event["content"]["n"].as_u64().expect("a number"))
        .collect()
}

#[tokio::test]
async fn a_message_waits_until_the_device_says_that_it_has_it() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let bob = server.register("bob").await;
    let other = server.log_in("bob").await;
    let (_, start) = told(&bob, "").await;
    let message =
        json!({ &bob.user_id: { &bob.device_id: { "n": 1 } }, "@nobody:localhost": { "*": {} } });
    send(&alice, "1", message.clone()).await;
    // The same once more is not sent once more.
    send(&alice, "1", message).await;
    let (events, next) = told(&bob, &start).await;
    let expected = json!({ "content": { "n": 1 }, "sender": alice.user_id, "type": "m.test" });
    assert_eq!(events, [expected]);
    // The answer may have been lost; and the node may be started anew.
    assert_eq!(told(&bob, &start).await.0, events);
    let server = server.restart();
    assert_eq!(told(&bob, &start).await.0, events);
    assert!(told(&other, "").await.0.is_empty(), "it was for one device");
    assert!(told(&bob, &next).await.0.is_empty());
    assert!(told(&bob, "").await.0.is_empty(), "it is gone");
    sound(&[&server]);
}

#[tokio::test]
async fn more_than_fits_comes_with_the_next_answers() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let (_, start) = told(&alice, "").await;
    for n in 0..230 {
        let message = json!({ &alice.user_id: { "*": { "n": n } } });
        send(&alice, &n.to_string(), message).await;
    }
    let (mut all, mut since) = (Vec::new(), start);
    let mut rounds = 0;
    loop {
        let (events, next) = told(&alice, &since).await;
        // Whoever asks again is told the same again.
        assert_eq!(told(&alice, &since).await.0, events);
        if events.is_empty() {
            break;
        }
        assert!(events.len() <= 100);
        all.extend(bodies(&events));
        (since, rounds) = (next, rounds + 1);
    }
    assert_eq!((all, rounds), ((0..230).collect(), 3));
    sound(&[&server]);
}

#[tokio::test]
async fn whoever_waits_is_woken() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let bob = server.register("bob").await;
    let (_, start) = told(&bob, "").await;
    let waiting = bob.clone();
    let path = format!("/_matrix/client/v3/sync?timeout=30000&since={start}");
    let waiting = server
        .services
        .tasks
        .spawn(async move { ok(waiting.get(&path).await) });
    tokio::time::sleep(Duration::from_millis(20)).await;
    let message = json!({ &bob.user_id: { "*": { "n": 1 } } });
    send(&alice, "1", message).await;
    let answer = waiting.await.expect("it ends");
    assert_eq!(answer["to_device"]["events"][0]["content"]["n"], 1);
}

#[tokio::test]
async fn what_waits_goes_with_its_device() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let second = server.log_in("alice").await;
    send(&second, "1", json!({ &alice.user_id: { "*": { "n": 1 } } })).await;
    ok(second.post("/_matrix/client/v3/logout", json!({})).await);
    sound(&[&server]);
    assert_eq!(told(&alice, "").await.0.len(), 1);
}

#[tokio::test]
async fn bad_requests_are_refused() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let path = "/_matrix/client/v3/sendToDevice/m.test/1";
    let many: serde_json::Map<_, _> = (0..10_001).map(|n| (n.to_string(), json!({}))).collect();
    let to = |messages: Value| json!({ "messages": { &alice.user_id: messages } });
    refused(alice.put(path, to(json!(many))).await, 413, "M_TOO_LARGE");
    let long = json!({ "*": { "x": "x".repeat(65 << 10) } });
    refused(alice.put(path, to(long)).await, 413, "M_TOO_LARGE");
    refused(
        alice.put(path, to(json!({ "*": 5 }))).await,
        400,
        "M_BAD_JSON",
    );
    refused(alice.put(path, json!({})).await, 400, "M_BAD_JSON");
    let huge = json!({ "messages": {}, "x": "x".repeat(2 << 20) });
    refused(alice.put(path, huge).await, 413, "M_TOO_LARGE");
    // Nothing of it was done.
    assert!(told(&alice, "").await.0.is_empty());
}

#[tokio::test]
async fn messages_reach_another_office_once_however_long_the_link_is_down() {
    let lan = network();
    let (a, b) = (node(&lan, "a.example"), node(&lan, "b.example"));
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let (_, mut since) = told(&bob, "").await;
    let to_bob = |n: u64| json!({ &bob.user_id: { &bob.device_id: { "n": n } } });
    send(&alice, "0", to_bob(0)).await;
    let mut all = Vec::new();
    let mut collect = async |count: usize| {
        for _ in 0..1_000 {
            let (events, next) = told(&bob, &since).await;
            since = next;
            all.extend(events);
            if all.len() >= count {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        bodies(&all)
    };
    assert_eq!(collect(1).await, [0]);
    // Half of the answers are lost, so that much is sent twice.
    lan.set_faults(Faults {
        unanswered: 500,
        ..Faults::default()
    });
    let names = (named("a.example"), named("b.example"));
    lan.set_link(&names.0, &names.1, false);
    for n in 1..150 {
        send(&alice, &n.to_string(), to_bob(n)).await;
    }
    a.clock.advance(Duration::from_hours(24 * 7));
    tokio::time::sleep(Duration::from_millis(20)).await;
    lan.set_link(&names.0, &names.1, true);
    let clock = a.clock.clone();
    let passing = a.services.tasks.spawn(async move {
        loop {
            clock.advance(Duration::from_hours(1));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let expected: Vec<_> = (0..150).collect();
    assert_eq!(collect(150).await, expected);
    // Nothing comes twice.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(collect(151).await, expected);
    passing.abort();
    sound(&[&a, &b]);
}

#[tokio::test]
async fn a_server_speaks_for_its_own_users_and_says_nothing_twice() {
    let server = TestServer::new();
    let b = Neighbour::new(&server.lan, "b.example", 2);
    let alice = server.register("alice").await;
    let edu = |sender: &str, id: &str, n: u64| {
        json!({ "edu_type": "m.direct_to_device", "content": {
            "sender": sender, "type": "m.test", "message_id": id,
            "messages": { &alice.user_id: { "*": { "n": n } }, "@x:b.example": { "*": {} } },
        } })
    };
    let mut transaction = 0;
    let mut receive = async |edus: Value| {
        transaction += 1;
        let path = format!("/_matrix/federation/v1/send/{transaction}");
        let body = json!({ "origin": b.name, "origin_server_ts": 1, "pdus": [], "edus": edus });
        let body = body.to_string();
        let header = b.sign(&Method::PUT, &path, &body);
        let answer = b.send(&server, Method::PUT, &path, &header, &body).await;
        assert_eq!(answer.0, StatusCode::OK, "{}", answer.1);
    };
    receive(json!([
        edu("@bob:b.example", "m1", 1),
        edu("@eve:c.example", "m2", 2),
        edu("@alice:localhost", "m3", 3),
        edu("@bob:b.example", &"x".repeat(300), 4),
        { "edu_type": "m.direct_to_device", "content": { "sender": 5 } },
    ]))
    .await;
    receive(json!([
        edu("@bob:b.example", "m1", 1),
        edu("@bob:b.example", "m5", 5)
    ]))
    .await;
    let (events, _) = told(&alice, "").await;
    assert_eq!(bodies(&events), [1, 5]);
    sound(&[&server]);
}
