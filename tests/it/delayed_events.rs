//! Events that are sent later: MSC4140.

use std::{sync::Arc, time::Duration};

use http::Method;
use serde_json::{Value, json};

use crate::{
    server::{Client, TestServer, ok, refused, text},
    several::sound,
};

pub(crate) const ALL: &str = "/_matrix/client/unstable/org.matrix.msc4140/delayed_events";
const KIND: &str = "m.call.member";

pub(crate) fn begin(server: &TestServer) {
    let delayed = Arc::clone(&server.services.delayed);
    server.services.tasks.spawn(delayed.run());
}

pub(crate) async fn room(client: &Client) -> String {
    let body = json!({
        "preset": "public_chat",
        "power_level_content_override": { "events": { KIND: 0 } },
    });
    text(
        &ok(client.post("/_matrix/client/v3/createRoom", body).await),
        "room_id",
    )
}

pub(crate) fn message(room: &str, txn: &str, delay: &str) -> String {
    format!("/_matrix/client/v3/rooms/{room}/send/m.note/{txn}?org.matrix.msc4140.delay={delay}")
}

pub(crate) fn state(room: &str, key: &str) -> String {
    format!("/_matrix/client/v3/rooms/{room}/state/{KIND}/{key}")
}

pub(crate) async fn later(client: &Client, path: &str, delay: u64, body: Value) -> String {
    let path = format!("{path}?org.matrix.msc4140.delay={delay}");
    text(&ok(client.put(&path, body).await), "delay_id")
}

pub(crate) async fn act(client: &Client, id: &str, action: &str) -> crate::server::Answer {
    client
        .post(&format!("{ALL}/{id}/{action}"), json!({}))
        .await
}

pub(crate) async fn waiting(client: &Client) -> Vec<Value> {
    let all = ok(client.get(ALL).await);
    all["delayed_events"].as_array().expect("a list").clone()
}

pub(crate) async fn notes(client: &Client, room: &str) -> Vec<Value> {
    let path = format!("/_matrix/client/v3/rooms/{room}/messages?dir=b&limit=100");
    let all = ok(client.get(&path).await);
    let all = all["chunk"].as_array().expect("a list").iter().rev();
    all.filter(|event| event["type"] == "m.note")
        .map(|event| event["content"]["n"].clone())
        .collect()
}

/// Lets what is due be sent.
pub(crate) async fn pass(server: &TestServer, milliseconds: u64) {
    // The sender must have begun to wait.
    settled().await;
    server.clock.advance(Duration::from_millis(milliseconds));
    settled().await;
}

pub(crate) async fn settled() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn a_message_is_sent_once_when_it_is_due() {
    let server = TestServer::new();
    begin(&server);
    let alice = server.register("alice").await;
    let bob = server.register("bob").await;
    let room = room(&alice).await;
    let mut ids = Vec::new();
    for (n, delay) in [(3, "900"), (1, "700"), (2, "800")] {
        let path = message(&room, &format!("t{n}"), delay);
        let id = text(&ok(alice.put(&path, json!({ "n": n })).await), "delay_id");
        // The same transaction once more, even without the content.
        let (status, _, again) = alice.raw(Method::PUT, &path, &[], "").await;
        assert_eq!(status, 200, "{again}");
        assert!(again.contains(&id), "{again}");
        ids.push(id);
    }
    let all = waiting(&alice).await;
    let order: Vec<_> = all.iter().map(|one| &one["content"]["n"]).collect();
    assert_eq!(order, [1, 2, 3]);
    assert_eq!(all[0]["delay"], 700);
    assert_eq!(all[0]["running_since"], crate::server::START);
    assert_eq!(all[0]["room_id"], json!(room));
    assert_eq!(all[0]["type"], "m.note");
    assert_eq!(all[0].get("state_key"), None);
    assert!(waiting(&bob).await.is_empty());
    pass(&server, 699).await;
    assert!(notes(&alice, &room).await.is_empty());
    pass(&server, 1).await;
    assert_eq!(notes(&alice, &room).await, [1]);
    pass(&server, 200).await;
    assert_eq!(notes(&alice, &room).await, [1, 2, 3]);
    assert!(waiting(&alice).await.is_empty());
    // Also afterwards a repeated request makes no second event.
    let path = message(&room, "t1", "700");
    let id = text(&ok(alice.put(&path, json!({ "n": 1 })).await), "delay_id");
    assert_eq!(id, ids[1]);
    pass(&server, 1_000).await;
    assert_eq!(notes(&alice, &room).await, [1, 2, 3]);
    for action in ["restart", "cancel"] {
        refused(act(&alice, &id, action).await, 409, "M_UNKNOWN");
    }
    ok(act(&alice, &id, "send").await);
    assert_eq!(notes(&alice, &room).await, [1, 2, 3]);
    server.stop().await;
    sound(&[&server]);
}

#[tokio::test]
async fn whoever_knows_the_id_restarts_cancels_and_sends() {
    let server = TestServer::new();
    begin(&server);
    let alice = server.register("alice").await;
    let stranger = server.anonymous();
    let room = room(&alice).await;
    let key = state(&room, "a");
    let id = later(&alice, &key, 1_000, json!({ "left": 1 })).await;
    let one = ok(alice.get(&format!("{ALL}/{id}")).await);
    assert_eq!(
        (&one["state_key"], &one["delay_id"]),
        (&json!("a"), &json!(id))
    );
    for _ in 0..3 {
        pass(&server, 900).await;
        ok(act(&stranger, &id, "restart").await);
    }
    refused(alice.get(&key).await, 404, "M_NOT_FOUND");
    pass(&server, 1_000).await;
    assert_eq!(ok(alice.get(&key).await), json!({ "left": 1 }));
    let id = later(&alice, &key, 1_000, json!({ "left": 2 })).await;
    let body = json!({ "action": "send" });
    ok(stranger.post(&format!("{ALL}/{id}"), body).await);
    assert_eq!(ok(alice.get(&key).await), json!({ "left": 2 }));
    let id = later(&alice, &key, 1_000, json!({ "left": 3 })).await;
    ok(act(&stranger, &id, "cancel").await);
    pass(&server, 2_000).await;
    assert_eq!(ok(alice.get(&key).await), json!({ "left": 2 }));
    refused(act(&stranger, "unknown", "send").await, 404, "M_NOT_FOUND");
    refused(
        act(&stranger, "unknown", "oops").await,
        404,
        "M_UNRECOGNIZED",
    );
    let path = format!("{ALL}/unknown");
    refused(stranger.post(&path, json!({})).await, 400, "M_BAD_JSON");
    let body = json!({ "action": "oops" });
    refused(stranger.post(&path, body).await, 400, "M_INVALID_PARAM");
    // The way of newer clients.
    let path =
        format!("/_matrix/client/unstable/org.matrix.msc4140/rooms/{room}/delayed_event/{KIND}/t");
    let body = json!({ "delay": 500, "state_key": "b", "content": { "x": 1 } });
    let id = text(&ok(alice.put(&path, body.clone()).await), "delay_id");
    assert_eq!(text(&ok(alice.put(&path, body).await), "delay_id"), id);
    pass(&server, 500).await;
    assert_eq!(ok(alice.get(&state(&room, "b")).await), json!({ "x": 1 }));
    server.stop().await;
    sound(&[&server]);
}

#[tokio::test]
async fn it_outlives_the_node() {
    let server = TestServer::new();
    begin(&server);
    let alice = server.register("alice").await;
    let room = room(&alice).await;
    let first = message(&room, "1", "1000");
    ok(alice.put(&first, json!({ "n": 1 })).await);
    let later_one = later(&alice, &state(&room, "x"), 5_000, json!({ "n": 2 })).await;
    server.stop().await;
    server.clock.advance(Duration::from_secs(2));
    let server = server.restart();
    assert_eq!(waiting(&alice).await.len(), 2);
    begin(&server);
    settled().await;
    assert_eq!(notes(&alice, &room).await, [1]);
    let left = waiting(&alice).await;
    assert_eq!(left.len(), 1);
    assert_eq!(left[0]["delay_id"], json!(later_one));
    ok(act(&alice, &later_one, "restart").await);
    pass(&server, 4_999).await;
    refused(alice.get(&state(&room, "x")).await, 404, "M_NOT_FOUND");
    pass(&server, 1).await;
    ok(alice.get(&state(&room, "x")).await);
    server.stop().await;
    sound(&[&server]);
}

#[tokio::test]
async fn what_somebody_else_has_changed_is_not_changed_back() {
    let server = TestServer::new();
    begin(&server);
    let alice = server.register("alice").await;
    let bob = server.register("bob").await;
    let room = room(&alice).await;
    ok(bob
        .post(&format!("/_matrix/client/v3/join/{room}"), json!({}))
        .await);
    let key = state(&room, "k");
    ok(bob.put(&key, json!({ "by": "bob" })).await);
    let id = later(&alice, &key, 1_000, json!({ "by": "later" })).await;
    // One's own change does not matter, and neither does another piece of state.
    ok(alice.put(&key, json!({ "by": "alice" })).await);
    ok(bob.put(&state(&room, "other"), json!({})).await);
    assert_eq!(waiting(&alice).await.len(), 1);
    ok(bob.put(&key, json!({ "by": "bob again" })).await);
    ok(alice.put(&key, json!({ "by": "alice again" })).await);
    assert!(waiting(&alice).await.is_empty());
    for action in ["restart", "send"] {
        refused(act(&alice, &id, action).await, 409, "M_UNKNOWN");
    }
    pass(&server, 2_000).await;
    assert_eq!(ok(alice.get(&key).await), json!({ "by": "alice again" }));
    server.stop().await;
    sound(&[&server]);
    let store = server.services.store();
    let left = kontor::store::schema::DELAYED_EVENTS
        .scan(&store.view(), &())
        .count();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn only_who_may_send_now_and_then_sends_later() {
    let server = TestServer::new();
    begin(&server);
    let alice = server.register("alice").await;
    let bob = server.register("bob").await;
    let room = room(&alice).await;
    let path = message(&room, "1", "1000");
    refused(bob.put(&path, json!({ "n": 1 })).await, 403, "M_FORBIDDEN");
    let nowhere = message("!nowhere:localhost", "1", "1000");
    refused(
        bob.put(&nowhere, json!({ "n": 1 })).await,
        403,
        "M_FORBIDDEN",
    );
    ok(bob
        .post(&format!("/_matrix/client/v3/join/{room}"), json!({}))
        .await);
    ok(bob.put(&path, json!({ "n": 1 })).await);
    let topic = format!("/_matrix/client/v3/rooms/{room}/state/m.room.topic/");
    let id = later(&bob, &topic, 1_000, json!({ "topic": "mine" })).await;
    refused(alice.get(&format!("{ALL}/{id}")).await, 404, "M_NOT_FOUND");
    // What the room does not allow when its time has come is dropped; until then it may come to allow it.
    refused(act(&bob, &id, "send").await, 403, "M_FORBIDDEN");
    assert_eq!(waiting(&bob).await.len(), 2);
    ok(bob
        .post(&format!("/_matrix/client/v3/rooms/{room}/leave"), json!({}))
        .await);
    pass(&server, 1_000).await;
    assert!(waiting(&bob).await.is_empty());
    assert!(notes(&alice, &room).await.is_empty());
    // And with its account.
    let id = later(&alice, &state(&room, "k"), 1_000, json!({})).await;
    let auth = json!({
        "type": "m.login.password",
        "identifier": { "type": "m.id.user", "user": "alice" },
        "password": crate::server::PASSWORD,
    });
    let body = json!({ "auth": auth });
    ok(alice
        .post("/_matrix/client/v3/account/deactivate", body)
        .await);
    refused(
        act(&server.anonymous(), &id, "send").await,
        404,
        "M_NOT_FOUND",
    );
    server.stop().await;
    sound(&[&server]);
}

#[tokio::test]
async fn what_can_not_be_is_refused() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let room = room(&alice).await;
    for delay in ["-1", "soon", "", "1.5", "99999999999999999999999"] {
        let path = message(&room, "1", delay);
        refused(alice.put(&path, json!({})).await, 400, "M_INVALID_PARAM");
    }
    let day = message(&room, "1", "86400001");
    refused(alice.put(&day, json!({})).await, 403, "M_FORBIDDEN");
    let path = message(&room, "1", "1000");
    let (status, _, _) = alice.raw(Method::PUT, &path, &[], "").await;
    assert_eq!(status, 400);
    let now = format!("/_matrix/client/v3/rooms/{room}/send/m.note/1");
    let (status, _, body) = alice.raw(Method::PUT, &now, &[], "").await;
    assert_eq!(status, 400);
    assert!(body.contains("M_NOT_JSON"), "{body}");
    let long = json!({ "x": "x".repeat(61 << 10) });
    refused(alice.put(&path, long).await, 413, "M_TOO_LARGE");
    refused(
        alice.put(&path, json!({ "x": 1.5 })).await,
        400,
        "M_BAD_JSON",
    );
    let create =
        format!("/_matrix/client/v3/rooms/{room}/state/m.room.create/?org.matrix.msc4140.delay=5");
    refused(alice.put(&create, json!({})).await, 400, "M_INVALID_PARAM");
    for n in 0..100 {
        later(&alice, &state(&room, &n.to_string()), 1_000 + n, json!({})).await;
    }
    let one_more = format!("{}?org.matrix.msc4140.delay=5", state(&room, "more"));
    let answer = alice.put(&one_more, json!({})).await;
    assert_eq!(answer.1["retry_after_ms"], 1_000);
    refused(answer, 429, "M_LIMIT_EXCEEDED");
    assert_eq!(waiting(&alice).await.len(), 100);
    sound(&[&server]);
    // Answers to transactions are forgotten after some time.
    let first = message(&room, "t", "1000");
    let one = text(&waiting(&alice).await[0], "delay_id");
    ok(act(&alice, &one, "cancel").await);
    let id = text(&ok(alice.put(&first, json!({})).await), "delay_id");
    let day = Duration::from_hours(24);
    assert_eq!(
        server
            .services
            .delayed
            .forget_transactions(day)
            .expect("it works"),
        0
    );
    server.clock.advance(day + Duration::from_secs(1));
    assert_eq!(
        server
            .services
            .delayed
            .forget_transactions(day)
            .expect("it works"),
        1
    );
    ok(act(&alice, &id, "cancel").await);
    assert_ne!(
        text(&ok(alice.put(&first, json!({})).await), "delay_id"),
        id
    );
    sound(&[&server]);
}
