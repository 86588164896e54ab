//! "Key management": keys of devices, uploaded, asked for and claimed, in one office and between offices.

use std::{collections::BTreeSet, time::Duration};

use futures_util::future::join_all;
use http::StatusCode;
use serde_json::{Map, Value, json};

use crate::{
    identity::identity,
    neighbour::Neighbour,
    server::{Client, TestServer, ok, refused},
    several::{named, network, node, sound},
};

const UPLOAD: &str = "/_matrix/client/v3/keys/upload";
const QUERY: &str = "/_matrix/client/v3/keys/query";
const CLAIM: &str = "/_matrix/client/v3/keys/claim";

fn one_time(numbers: std::ops::Range<usize>) -> Value {
    let keys = numbers.map(|n| {
        let key = json!({ "key": format!("key {n}"), "signatures": {} });
        (format!("signed_curve25519:{n:03}"), key)
    });
    Value::Object(keys.collect())
}

fn wanted(client: &Client) -> Value {
    json!({ "one_time_keys": { &client.user_id: { &client.device_id: "signed_curve25519" } } })
}

/// The ids of the keys that a claim has given.
fn given(answer: &Value, client: &Client) -> Vec<String> {
    let keys = answer["one_time_keys"][&client.user_id][&client.device_id].as_object();
    keys.map(|keys| keys.keys().cloned().collect())
        .unwrap_or_default()
}

async fn sync(client: &Client, since: &str) -> Value {
    let since = if since.is_empty() {
        String::new()
    } else {
        format!("&since={since}")
    };
    let path = format!("/_matrix/client/v3/sync?timeout=0{since}");
    ok(client.get(&path).await)
}

#[tokio::test]
async fn keys_are_given_once_in_the_order_in_which_they_came() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let bob = server.register("bob").await;
    let body = json!({ "device_keys": identity(&alice, 1), "one_time_keys": one_time(5..7) });
    let counts = json!({ "one_time_key_counts": { "signed_curve25519": 2 } });
    assert_eq!(ok(alice.post(UPLOAD, body.clone()).await), counts);
    // The same once more changes nothing.
    assert_eq!(ok(alice.post(UPLOAD, body).await), counts);
    let more = json!({ "one_time_keys": one_time(0..2) });
    let count =
        ok(alice.post(UPLOAD, more).await)["one_time_key_counts"]["signed_curve25519"].clone();
    assert_eq!(count, 4);
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.extend(given(&ok(bob.post(CLAIM, wanted(&alice)).await), &alice));
    }
    assert_eq!(
        ids,
        ["005", "006", "000", "001"].map(|id| format!("signed_curve25519:{id}"))
    );
    let server = server.restart();
    let none = ok(bob.post(CLAIM, wanted(&alice)).await);
    assert_eq!(none, json!({ "one_time_keys": {} }));
    sound(&[&server]);
}

#[tokio::test]
async fn nobody_gets_the_same_key_at_the_same_time() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let body = json!({ "device_keys": identity(&alice, 1), "one_time_keys": one_time(0..40) });
    ok(alice.post(UPLOAD, body).await);
    let bob = server.register("bob").await;
    let claims = (0..50).map(|_| {
        let (bob, wanted) = (bob.clone(), wanted(&alice));
        server
            .services
            .tasks
            .spawn(async move { ok(bob.post(CLAIM, wanted).await) })
    });
    let answers = join_all(claims).await;
    let all: Vec<_> = answers
        .into_iter()
        .flat_map(|answer| given(&answer.expect("it ends"), &alice))
        .collect();
    assert_eq!(all.len(), 40);
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 40);
    sound(&[&server]);
}

#[tokio::test]
async fn a_device_is_told_how_many_keys_it_has_left() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let fallback =
        json!({ "signed_curve25519:f": { "key": "f", "fallback": true, "signatures": {} } });
    let body = json!({
        "device_keys": identity(&alice, 1), "one_time_keys": one_time(0..2), "fallback_keys": fallback,
    });
    ok(alice.post(UPLOAD, body.clone()).await);
    let told = |answer: &Value| {
        let count = answer["device_one_time_keys_count"]["signed_curve25519"].clone();
        (count, answer["device_unused_fallback_key_types"].clone())
    };
    let first = sync(&alice, "").await;
    assert_eq!(told(&first), (json!(2), json!(["signed_curve25519"])));
    let mut since = first["next_batch"].as_str().expect("a token").to_owned();
    assert_eq!(
        told(&sync(&alice, &since).await),
        told(&first),
        "nothing has happened"
    );
    for (count, unused) in [
        (1, json!(["signed_curve25519"])),
        (0, json!(["signed_curve25519"])),
        (0, json!([])),
    ] {
        let path = format!("/_matrix/client/v3/sync?timeout=30000&since={since}");
        let waiting = alice.clone();
        let waiting = server
            .services
            .tasks
            .spawn(async move { ok(waiting.get(&path).await) });
        tokio::time::sleep(Duration::from_millis(10)).await;
        let answer = ok(alice.post(CLAIM, wanted(&alice)).await);
        assert_eq!(given(&answer, &alice).len(), 1);
        let answer = waiting.await.expect("it ends");
        assert_eq!(told(&answer), (json!(count), unused));
        answer["next_batch"]
            .as_str()
            .expect("a token")
            .clone_into(&mut since);
    }
    // It is given again and again, until there is another.
    assert_eq!(
        given(&ok(alice.post(CLAIM, wanted(&alice)).await), &alice),
        ["signed_curve25519:f"]
    );
    ok(alice
        .post(UPLOAD, json!({ "fallback_keys": fallback }))
        .await);
    assert_eq!(
        told(&sync(&alice, "").await).1,
        json!([]),
        "the same is as used as before"
    );
    let other = json!({ "signed_curve25519:g": { "key": "g", "fallback": true } });
    ok(alice.post(UPLOAD, json!({ "fallback_keys": other })).await);
    assert_eq!(
        told(&sync(&alice, "").await).1,
        json!(["signed_curve25519"])
    );
    ok(alice.post("/_matrix/client/v3/logout", json!({})).await);
    sound(&[&server]);
}

#[tokio::test]
async fn bad_keys_are_refused_and_leave_nothing() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let bob = server.register("bob").await;
    let upload = async |keys: Value| {
        let body = json!({ "device_keys": keys, "one_time_keys": one_time(0..1) });
        alice.post(UPLOAD, body).await
    };
    refused(upload(identity(&bob, 2)).await, 400, "M_INVALID_PARAM");
    let mut forged = identity(&alice, 1);
    forged["algorithms"] = json!(["another"]);
    refused(upload(forged).await, 400, "M_INVALID_SIGNATURE");
    let bare = json!({ "user_id": alice.user_id, "device_id": alice.device_id });
    refused(upload(bare).await, 400, "M_BAD_JSON");
    for (name, key) in [
        ("signed_curve25519", json!({})),
        (":x", json!({})),
        ("a:", json!({})),
    ] {
        let body = json!({ "one_time_keys": { name: key } });
        let (status, _) = alice.post(UPLOAD, body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{name}");
    }
    let body = json!({ "one_time_keys": { "a:b": 5 } });
    refused(alice.post(UPLOAD, body).await, 400, "M_BAD_JSON");
    let many: Map<_, _> = (0..1_001).map(|n| (format!("a:{n}"), json!("k"))).collect();
    refused(
        alice.post(UPLOAD, json!({ "one_time_keys": many })).await,
        413,
        "M_TOO_LARGE",
    );
    let many: Map<_, _> = (0..100_000)
        .map(|n| (format!("a:{n}"), json!("k")))
        .collect();
    refused(
        alice.post(UPLOAD, json!({ "one_time_keys": many })).await,
        413,
        "M_TOO_LARGE",
    );
    // Several requests do not get further than one.
    for part in [0..600, 600..1_000] {
        ok(alice
            .post(UPLOAD, json!({ "one_time_keys": one_time(part) }))
            .await);
    }
    refused(
        alice
            .post(UPLOAD, json!({ "one_time_keys": one_time(1_000..1_001) }))
            .await,
        413,
        "M_TOO_LARGE",
    );
    let other = json!({ "one_time_keys": { "signed_curve25519:000": { "key": "other" } } });
    refused(alice.post(UPLOAD, other).await, 400, "M_INVALID_PARAM");
    let object = json!({ "device_keys": { &bob.user_id: { "x": true } } });
    refused(alice.post(QUERY, object).await, 400, "M_BAD_JSON");
    let many: Map<_, _> = (0..10_001)
        .map(|n| (format!("@{n}:localhost"), json!([])))
        .collect();
    refused(
        alice.post(QUERY, json!({ "device_keys": many })).await,
        413,
        "M_TOO_LARGE",
    );
    let many: Map<_, _> = (0..10_001).map(|n| (n.to_string(), json!("a"))).collect();
    let many = json!({ "one_time_keys": { &bob.user_id: many } });
    refused(alice.post(CLAIM, many).await, 413, "M_TOO_LARGE");
    let answer = ok(bob
        .post(QUERY, json!({ "device_keys": { &alice.user_id: [] } }))
        .await);
    assert_eq!(answer["device_keys"][&alice.user_id], json!({}));
    sound(&[&server]);
}

#[tokio::test]
async fn keys_are_shown_with_the_names_of_the_devices() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let other = server.log_in("alice").await;
    let keys = [identity(&alice, 1), identity(&other, 2)];
    ok(alice.post(UPLOAD, json!({ "device_keys": keys[0] })).await);
    ok(other.post(UPLOAD, json!({ "device_keys": keys[1] })).await);
    let path = format!("/_matrix/client/v3/devices/{}", alice.device_id);
    ok(alice
        .put(&path, json!({ "display_name": "A \"phone\"" }))
        .await);
    let bob = server.register("bob").await;
    let ask = async |devices: Value| {
        let body = json!({ "device_keys": { &alice.user_id: devices, "@nobody:localhost": [] } });
        let answer = ok(bob.post(QUERY, body).await);
        assert_eq!(answer["device_keys"]["@nobody:localhost"], json!({}));
        answer["device_keys"][&alice.user_id].clone()
    };
    let mut named = keys[0].clone();
    named["unsigned"] = json!({ "device_display_name": "A \"phone\"" });
    let all = json!({ &alice.device_id: named, &other.device_id: keys[1] });
    assert_eq!(ask(json!([])).await, all);
    assert_eq!(
        ask(json!([other.device_id, "NONE"])).await,
        json!({ &other.device_id: keys[1] })
    );
    ok(other.post("/_matrix/client/v3/logout", json!({})).await);
    assert_eq!(ask(json!([])).await, json!({ &alice.device_id: named }));
}

#[tokio::test]
async fn keys_come_from_other_offices() {
    let lan = network();
    let (a, b) = (node(&lan, "a.example"), node(&lan, "b.example"));
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let keys = identity(&alice, 1);
    ok(alice
        .post(
            UPLOAD,
            json!({ "device_keys": keys, "one_time_keys": one_time(0..1) }),
        )
        .await);
    let query = json!({ "device_keys": { &alice.user_id: [], "@x:c.example": [] } });
    let answer = ok(bob.post(QUERY, query).await);
    assert_eq!(
        answer["device_keys"],
        json!({ &alice.user_id: { &alice.device_id: keys } })
    );
    assert_eq!(answer["failures"]["c.example"]["errcode"], "M_UNKNOWN");
    let answer = ok(bob.post(CLAIM, wanted(&alice)).await);
    assert_eq!(given(&answer, &alice), ["signed_curve25519:000"]);
    assert!(given(&ok(bob.post(CLAIM, wanted(&alice)).await), &alice).is_empty());
    lan.set_link(&named("a.example"), &named("b.example"), false);
    let answer = ok(bob.post(CLAIM, wanted(&alice)).await);
    assert!(answer["failures"]["a.example"].is_object(), "{answer}");
    sound(&[&a, &b]);
}

#[tokio::test]
async fn a_server_speaks_for_the_keys_of_its_own_users_only() {
    let server = TestServer::new();
    let b = Neighbour::new(&server.lan, "b.example", 2);
    let alice = server.register("alice").await;
    let own = identity(&alice, 1);
    ok(alice.post(UPLOAD, json!({ "device_keys": own })).await);
    let of = |user: &str, device: &str| json!({ "user_id": user, "device_id": device });
    b.answers("/_matrix/federation/v1/user/keys/query", StatusCode::OK, json!({ "device_keys": {
        "@bob:b.example": { "GOOD": of("@bob:b.example", "GOOD"), "BAD": of("@eve:b.example", "BAD"), "ODD": 5 },
        "@eve:b.example": { "X": of("@eve:b.example", "X") },
        &alice.user_id: { "FAKE": of(&alice.user_id, "FAKE") },
    } }));
    let query = json!({ "device_keys": { "@bob:b.example": [], &alice.user_id: [] } });
    let answer = ok(alice.post(QUERY, query).await);
    let expected = json!({
        "@bob:b.example": { "GOOD": of("@bob:b.example", "GOOD") },
        &alice.user_id: { &alice.device_id: own },
    });
    assert_eq!(answer["device_keys"], expected);
    b.answers(
        "/_matrix/federation/v1/user/keys/query",
        StatusCode::OK,
        "nonsense",
    );
    let query = json!({ "device_keys": { "@bob:b.example": [] } });
    let answer = ok(alice.post(QUERY, query).await);
    assert!(answer["failures"]["b.example"].is_object(), "{answer}");
}
