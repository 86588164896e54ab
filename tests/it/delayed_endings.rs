//! Events that are sent later, MSC4140: what becomes of them, and how their sender learns of it.

use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};

use crate::{
    delayed_events::{ALL, act, begin, later, message, notes, pass, room, settled, state, waiting},
    policy_servers::{SIGN, Scene},
    server::{Client, PASSWORD, TestServer, ok, refused, text},
    several::sound,
};

const MINUTE: u64 = 60_000;

async fn ended(client: &Client) -> Vec<Value> {
    let all = ok(client.get(&format!("{ALL}?status=finalised")).await);
    all["delayed_events"].as_array().expect("a list").clone()
}

async fn one(client: &Client, id: &str) -> Value {
    ok(client.get(&format!("{ALL}/{id}")).await)
}

async fn add(client: &Client, room: &str, txn: &str, delay: &str, n: u64) -> String {
    let path = message(room, txn, delay);
    text(&ok(client.put(&path, json!({ "n": n })).await), "delay_id")
}

#[tokio::test]
async fn what_can_not_be_sent_yet_is_tried_until_it_is() {
    let mut scene = Scene::new().await;
    begin(&scene.node);
    let room = scene.room.0.clone();
    let away = StatusCode::INTERNAL_SERVER_ERROR;
    scene.judge.answers(SIGN, away, json!({}));
    let id = add(&scene.alice, &room, "1", "1000", 7).await;
    // Who asks for it to be sent at once is told why that fails, and it keeps its time.
    let answer = act(&scene.alice, &id, "send").await;
    refused(answer, 502, "M_UNKNOWN");
    assert_eq!(waiting(&scene.alice).await.len(), 1);
    pass(&scene.node, 1_000).await;
    for _ in 0..3 {
        for _ in 0..8 {
            pass(&scene.node, 10 * MINUTE).await;
            let left = waiting(&scene.alice).await;
            assert_eq!(left.len(), 1);
            assert_eq!(left[0]["delay_id"], json!(id));
            assert!(ended(&scene.alice).await.is_empty());
        }
        scene.node.stop().await;
        sound(&[&scene.node]);
        scene.node = scene.node.restart();
        begin(&scene.node);
    }
    assert!(notes(&scene.alice, &room).await.is_empty());
    scene.judge_fairly();
    pass(&scene.node, 10 * MINUTE).await;
    pass(&scene.node, MINUTE).await;
    assert_eq!(notes(&scene.alice, &room).await, [7]);
    assert!(waiting(&scene.alice).await.is_empty());
    assert!(one(&scene.alice, &id).await["event_id"].is_string());
    pass(&scene.node, 30 * MINUTE).await;
    assert_eq!(notes(&scene.alice, &room).await, [7]);
    scene.node.stop().await;
    sound(&[&scene.node]);
}

#[tokio::test]
async fn attempts_become_rare() {
    let scene = Scene::new().await;
    begin(&scene.node);
    let attempts = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = attempts.clone();
    scene.judge.computes(SIGN, move |_| {
        count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        "{}".to_owned()
    });
    add(&scene.alice, &scene.room.0, "1", "1000", 7).await;
    // One hour, in steps of five seconds, which is the shortest time between two attempts.
    for _ in 0..720 {
        scene.node.clock.advance(Duration::from_secs(5));
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }
    settled().await;
    let attempts = attempts.load(std::sync::atomic::Ordering::Relaxed);
    assert!((5..40).contains(&attempts), "{attempts} attempts");
    assert_eq!(waiting(&scene.alice).await.len(), 1);
    scene.node.stop().await;
}

#[tokio::test]
async fn whoever_sends_too_much_at_once_sends_it_later() {
    let server = TestServer::with(|config| config.limits.enabled = true);
    begin(&server);
    let alice = server.register("alice").await;
    let room = room(&alice).await;
    let id = add(&alice, &room, "later", "50", 1).await;
    let mut n = 0;
    loop {
        let path = format!("/_matrix/client/v3/rooms/{room}/send/m.text/{n}");
        let (status, _) = alice.put(&path, json!({})).await;
        if status != StatusCode::OK {
            break;
        }
        n += 1;
    }
    pass(&server, 50).await;
    assert!(notes(&alice, &room).await.is_empty());
    assert_eq!(waiting(&alice).await[0]["delay_id"], json!(id));
    pass(&server, 5_000).await;
    assert_eq!(notes(&alice, &room).await, [1]);
    server.stop().await;
    sound(&[&server]);
}

#[tokio::test]
async fn the_sender_learns_what_has_become_of_it() {
    let server = TestServer::new();
    begin(&server);
    let alice = server.register("alice").await;
    let bob = server.register("bob").await;
    let room = room(&alice).await;
    ok(bob
        .post(&format!("/_matrix/client/v3/join/{room}"), json!({}))
        .await);
    let topic = format!("/_matrix/client/v3/rooms/{room}/state/m.room.topic/");
    let sent = add(&bob, &room, "1", "1000", 1).await;
    let cancelled = add(&bob, &room, "2", "1000", 2).await;
    let wrong = later(&bob, &topic, 1_000, json!({ "topic": "mine" })).await;
    let overtaken = later(&bob, &state(&room, "k"), 1_000, json!({ "by": "bob" })).await;
    ok(alice
        .put(&state(&room, "k"), json!({ "by": "alice" }))
        .await);
    ok(act(&alice, &cancelled, "cancel").await);
    // What may not be sent now may be when its time comes.
    refused(act(&bob, &wrong, "send").await, 403, "M_FORBIDDEN");
    pass(&server, 1_000).await;
    assert!(waiting(&bob).await.is_empty());
    let server = {
        server.stop().await;
        server.restart()
    };
    let all = ended(&bob).await;
    assert_eq!(all.len(), 4);
    assert_eq!(all[0]["delay_id"], json!(cancelled));
    for told in &all {
        assert_eq!(*told, one(&bob, &text(told, "delay_id")).await);
        assert_eq!(told["finalised_ts"], told["origin_server_ts"]);
        assert_eq!(told["room_id"], json!(room));
    }
    let now = crate::server::START + 1_000;
    let told = one(&bob, &sent).await;
    assert_eq!(told["finalised_ts"], now);
    assert_eq!(
        (&told["content"], &told["delay"]),
        (&json!({ "n": 1 }), &json!(1_000))
    );
    assert_eq!(told.get("error"), None);
    let id = text(&told, "event_id");
    let event = format!("/_matrix/client/v3/rooms/{room}/event/{id}");
    assert_eq!(ok(bob.get(&event).await)["content"], json!({ "n": 1 }));
    let told = one(&bob, &cancelled).await;
    assert_eq!((told.get("error"), told.get("event_id")), (None, None));
    let told = one(&bob, &wrong).await;
    assert_eq!(told["error"]["errcode"], "M_FORBIDDEN");
    assert!(told["error"]["error"].is_string());
    assert_eq!(one(&bob, &overtaken).await["error"]["errcode"], "M_UNKNOWN");
    // Doing it again is well, doing something else is not.
    for (id, well) in [
        (&sent, "send"),
        (&cancelled, "cancel"),
        (&wrong, "cancel"),
        (&overtaken, "cancel"),
    ] {
        for action in ["restart", "cancel", "send"] {
            let answer = act(&server.anonymous(), id, action).await;
            if action == well {
                assert_eq!(ok(answer), json!({}));
            } else {
                refused(answer, 409, "M_UNKNOWN");
            }
        }
    }
    // Nobody else is told of them.
    assert!(ended(&alice).await.is_empty());
    for id in [&sent, &wrong] {
        let path = format!("{ALL}/{id}");
        refused(alice.get(&path).await, 404, "M_NOT_FOUND");
    }
    for status in ["", "all", "Finalised"] {
        let path = format!("{ALL}?status={status}");
        refused(bob.get(&path).await, 400, "M_INVALID_PARAM");
    }
    assert!(waiting(&bob).await.is_empty());
    sound(&[&server]);
    // After a week it is forgotten.
    server.clock.advance(Duration::from_hours(24 * 7));
    assert_eq!(server.services.delayed.forget_ended().expect("it works"), 1);
    server.clock.advance(Duration::from_secs(2));
    assert_eq!(server.services.delayed.forget_ended().expect("it works"), 3);
    refused(act(&bob, &sent, "send").await, 404, "M_NOT_FOUND");
    assert!(ended(&bob).await.is_empty());
    sound(&[&server]);
}

#[tokio::test]
async fn only_so_much_is_remembered() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let room = room(&alice).await;
    let mut ids = Vec::new();
    for n in 0..103 {
        let id = add(&alice, &room, &format!("t{n}"), "1000", n).await;
        ok(act(&alice, &id, "cancel").await);
        server.clock.advance(Duration::from_millis(1));
        ids.push(id);
    }
    let known: Vec<_> = ended(&alice).await;
    let known: Vec<_> = known.iter().map(|told| text(told, "delay_id")).collect();
    assert_eq!(known, ids[3..]);
    sound(&[&server]);
    let auth = json!({
        "type": "m.login.password",
        "identifier": { "type": "m.id.user", "user": "alice" },
        "password": PASSWORD,
    });
    let body = json!({ "auth": auth });
    ok(alice
        .post("/_matrix/client/v3/account/deactivate", body)
        .await);
    let answer = act(&server.anonymous(), &ids[50], "cancel").await;
    refused(answer, 404, "M_NOT_FOUND");
    sound(&[&server]);
}

#[tokio::test]
async fn all_devices_of_the_sender_know_the_event_by_its_delay() {
    let server = TestServer::new();
    begin(&server);
    let alice = server.register("alice").await;
    let other = server.log_in("alice").await;
    let bob = server.register("bob").await;
    let room = room(&alice).await;
    ok(bob
        .post(&format!("/_matrix/client/v3/join/{room}"), json!({}))
        .await);
    let note = add(&alice, &room, "1", "1000", 1).await;
    let member = later(&alice, &state(&room, "a"), 1_000, json!({ "left": 1 })).await;
    let at_once = format!("/_matrix/client/v3/rooms/{room}/send/m.note/2");
    ok(alice.put(&at_once, json!({ "n": 2 })).await);
    pass(&server, 1_000).await;
    let path = format!("/_matrix/client/v3/rooms/{room}/messages?dir=b&limit=3");
    for client in [&alice, &other, &bob] {
        let page = ok(client.get(&path).await);
        let sync = ok(client.get("/_matrix/client/v3/sync").await);
        let timeline = &sync["rooms"]["join"][&room]["timeline"]["events"];
        for events in [&page["chunk"], timeline] {
            let unsigned = |is_it: &dyn Fn(&Value) -> bool| {
                let events = events.as_array().expect("a list");
                let event = events.iter().find(|event| is_it(event));
                event.expect("it is there")["unsigned"].clone()
            };
            let first = unsigned(&|event| event["content"]["n"] == 1);
            let second = unsigned(&|event| event["content"]["left"] == 1);
            let third = unsigned(&|event| event["content"]["n"] == 2);
            let name = "org.matrix.msc4140.delay_id";
            if client.user_id == alice.user_id {
                assert_eq!(
                    (&first[name], &second[name]),
                    (&json!(note), &json!(member))
                );
            } else {
                assert_eq!((first.get(name), second.get(name)), (None, None));
            }
            assert_eq!(first.get("transaction_id"), None);
            assert_eq!(third.get(name), None);
            let is_sender = client.device_id == alice.device_id;
            assert_eq!(third.get("transaction_id").is_some(), is_sender);
        }
    }
    server.stop().await;
    sound(&[&server]);
}
