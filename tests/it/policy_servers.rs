//! "Policy Servers" in the server-server API: one that is driven by hand signs, refuses, forges, or is away.

use std::{sync::Arc, time::Duration};

use http::{Method, StatusCode};
use kontor::protocol::{
    event::Event,
    integrity::{self, ServerKey},
    policy::{KEY_ID, PolicyServer},
    version,
};
use parking_lot::Mutex;
use ruma::{RoomVersionId, room_version_rules::RoomVersionRules};
use serde_json::{Value, json};
use tokio_util::task::TaskTracker;

use crate::{
    elsewhere::{Elsewhere, check, finds, id, pdu, until, until_found},
    handshakes::finished,
    neighbour::{HELD, Neighbour},
    room::{Room, encoded},
    server::{Answer, Client, START, TestServer, ok, refused, text},
};

pub(crate) const SIGN: &str = "/_matrix/policy/v1/sign";
const SEND: &str = "/_matrix/federation/v1/send/";
const BOB: &str = "@bob:b.example";
const JUDGE: &str = "@judge:policy.example";

fn rules() -> &'static RoomVersionRules {
    version::rules(&RoomVersionId::V12).expect("it is served")
}

fn policy_key(seed: u8) -> ServerKey {
    ServerKey::from_seed(&[seed; 32], "policy_server").expect("a key")
}

/// An event as a server has signed it with a key.
fn signed(event: &Value, name: &str, key: &ServerKey) -> Value {
    let mut object = integrity::parse_object(&event.to_string()).expect("an event");
    let name = name.try_into().expect("a name");
    integrity::sign_event(&mut object, key, name, rules()).expect("it can be signed");
    serde_json::from_str(&integrity::canonical(&object)).expect("an event")
}

/// A node with a user in a room, another server that is there too, and a policy server.
pub(crate) struct Scene {
    pub(crate) node: TestServer,
    pub(crate) alice: Client,
    pub(crate) room: Room,
    other: Neighbour,
    elsewhere: Elsewhere,
    pub(crate) judge: Neighbour,
    key: ServerKey,
    /// The types of what it was asked about.
    asked: Arc<Mutex<Vec<String>>>,
}

impl Scene {
    /// With the policy server in the room.
    pub(crate) async fn new() -> Self {
        let mut scene = Self::before().await;
        scene.elsewhere = Elsewhere::joined(&scene.node, &scene.room, &scene.judge, JUDGE).await;
        let content = scene.content();
        scene.room.set(&scene.alice, "m.room.policy", content).await;
        scene.refresh().await;
        scene
    }

    /// With the policy server outside.
    async fn before() -> Self {
        let node = TestServer::new();
        let alice = node.register("alice").await;
        let room = Room::new(&alice, "shared").await;
        let other = Neighbour::new(&node.lan, "b.example", 1);
        let judge = Neighbour::new(&node.lan, "policy.example", 2);
        for server in [&other, &judge] {
            server.answers(SEND, StatusCode::OK, json!({ "pdus": {} }));
        }
        let elsewhere = Elsewhere::joined(&node, &room, &other, BOB).await;
        let scene = Self {
            node,
            alice,
            room,
            other,
            elsewhere,
            judge,
            key: policy_key(9),
            asked: Arc::default(),
        };
        scene.judge_fairly();
        scene
    }

    fn content(&self) -> Value {
        let keys = json!({ "ed25519": self.key.public_base64() });
        json!({ "via": "policy.example", "public_keys": keys })
    }

    /// The policy server signs everything.
    pub(crate) fn judge_fairly(&self) {
        self.judge_with(policy_key(9), "policy.example");
    }

    /// It signs with any key and under any name.
    fn judge_with(&self, key: ServerKey, name: &'static str) {
        let asked = self.asked.clone();
        self.judge.computes(SIGN, move |body| {
            let event: Value = serde_json::from_str(body).expect("it is asked with JSON");
            asked.lock().push(text(&event, "type"));
            let signed = signed(&event, name, &key);
            json!({ (name): { (KEY_ID): signed["signatures"][name][KEY_ID] } }).to_string()
        });
    }

    async fn refresh(&mut self) {
        self.elsewhere = Elsewhere::of(&self.node, &self.room).await;
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock())
    }

    async fn say(&self, txn: &str) -> Answer {
        let content = json!({ "msgtype": "m.text", "body": txn });
        let path = format!("send/m.room.message/{txn}");
        self.room.put(&self.alice, &path, content).await
    }

    /// An event of the other server as the policy server has signed it.
    fn recommended(&self, event: &Event) -> Value {
        signed(&pdu(event), "policy.example", &self.key)
    }

    async fn push(&self, txn: &str, events: &[Value]) -> Value {
        let results = ok(self.other.push(&self.node, txn, events).await);
        for (id, result) in results["pdus"].as_object().expect("results") {
            assert_eq!(*result, json!({}), "{id}");
        }
        results
    }

    /// Nobody is shown an event, and nothing is broken.
    async fn is_hidden(&self, event: &Event) {
        assert!(!finds(&self.alice, &self.room, event).await);
        check(&self.node);
    }

    /// The events that the other server was sent, by their ids.
    async fn sent(&self, id: &str) -> Value {
        let find = || {
            let put = self.other.put();
            let mut pdus = put.into_iter().flat_map(|(_, body)| {
                let pdus = body["pdus"].as_array().cloned();
                pdus.unwrap_or_default()
            });
            pdus.find(|pdu| {
                let object = integrity::parse_object(&pdu.to_string()).expect("an event");
                integrity::event_id(&object, rules()).is_ok_and(|found| found == id)
            })
        };
        until(async || find().is_some()).await;
        find().expect("it was there before")
    }

    fn is_recommended(&self, event: &Value) -> bool {
        let policy = PolicyServer::named(&self.content().to_string()).expect("it is valid");
        let object = integrity::parse_object(&event.to_string()).expect("an event");
        policy.has_signed(&object, rules())
    }
}

#[tokio::test]
async fn what_is_sent_is_signed_first() {
    let mut scene = Scene::new().await;
    // The state that names it needs no signature.
    assert_eq!(scene.asked(), Vec::<String>::new());
    let first = text(&ok(scene.say("one").await), "event_id");
    assert_eq!(text(&ok(scene.say("one").await), "event_id"), first);
    assert_eq!(scene.asked(), ["m.room.message"]);
    assert!(scene.is_recommended(&scene.sent(&first).await));
    // The device finds its transaction again.
    let sync = ok(scene.alice.get("/_matrix/client/v3/sync").await);
    let timeline = &sync["rooms"]["join"][&scene.room.0]["timeline"]["events"];
    let last = timeline.as_array().expect("a list").last().expect("one");
    assert_eq!(last["event_id"], json!(first));
    assert_eq!(last["unsigned"]["transaction_id"], "one");

    // State, redactions and memberships as well; the redaction is carried out.
    let topic = json!({ "topic": "tea" });
    let topic = scene.room.set(&scene.alice, "m.room.topic", topic).await;
    assert!(scene.is_recommended(&scene.sent(&topic).await));
    let path = format!("redact/{first}/r");
    ok(scene.room.put(&scene.alice, &path, json!({})).await);
    let shown = ok(scene
        .room
        .get(&scene.alice, &format!("event/{first}"))
        .await);
    assert_eq!(shown["content"], json!({}));
    let carol = scene.node.register("carol").await;
    scene.room.does(&carol, "join").await;
    let name = json!({ "displayname": "Alice" });
    let path = format!(
        "/_matrix/client/v3/profile/{}/displayname",
        scene.alice.user_id
    );
    ok(scene.alice.put(&path, name).await);
    let policy = json!({ "via": "nobody" });
    scene
        .room
        .set(&scene.alice, "m.room.policy/other", policy)
        .await;
    scene.room.does(&carol, "leave").await;
    let kinds = [
        "m.room.topic",
        "m.room.redaction",
        "m.room.member",
        "m.room.member",
        "m.room.policy",
        "m.room.member",
    ];
    assert_eq!(scene.asked(), kinds);
    let member = ok(scene
        .room
        .get(
            &scene.alice,
            &format!("state/m.room.member/{}", carol.user_id),
        )
        .await);
    assert_eq!(member["membership"], "leave");

    // Who is sent away hears of it although their server is not in the room any more.
    scene.refresh().await;
    let kick = json!({ "user_id": BOB });
    ok(scene.room.post(&scene.alice, "kick", kick).await);
    until(async || {
        let put = scene.other.put();
        let mut pdus = put.iter().filter_map(|(_, body)| body["pdus"].as_array());
        pdus.any(|pdus| {
            let is_it =
                |pdu: &Value| pdu["state_key"] == BOB && pdu["content"]["membership"] == "leave";
            pdus.iter().any(is_it)
        })
    })
    .await;
    check(&scene.node);
    let node = scene.node.restart();
    assert_eq!(
        text(
            &ok({
                let path = "send/m.room.message/one";
                scene
                    .room
                    .put(&scene.alice, path, json!({ "body": "one" }))
                    .await
            }),
            "event_id"
        ),
        first
    );
    check(&node);
}

#[tokio::test]
async fn this_node_is_none() {
    let scene = Scene::before().await;
    let event = scene.elsewhere.state.values().next().map(pdu);
    let answer = scene.other.post(&scene.node, SIGN, &json!(event)).await;
    refused(answer, 404, "M_UNRECOGNIZED");
}

#[tokio::test]
async fn what_it_refuses_is_not_sent_and_the_client_is_told_why() {
    let scene = Scene::new().await;
    let ends = Elsewhere::of(&scene.node, &scene.room).await.ends;
    let said = json!({ "errcode": "M_FORBIDDEN", "error": "This looks like spam" });
    for status in [400, 403] {
        let code = StatusCode::from_u16(status).expect("a status");
        scene.judge.answers(SIGN, code, &said);
        let answer = scene.say("one").await;
        assert_eq!(answer.1, said);
        refused(answer, status, "M_FORBIDDEN");
    }
    let slower = json!({ "errcode": "M_LIMIT_EXCEEDED", "retry_after_ms": 1234 });
    scene
        .judge
        .answers(SIGN, StatusCode::TOO_MANY_REQUESTS, slower);
    let answer = scene.say("one").await;
    assert_eq!(answer.1["retry_after_ms"], 1234);
    refused(answer, 429, "M_LIMIT_EXCEEDED");
    // What would mean something else to a client is not passed on.
    for (status, code) in [
        (401, "M_UNKNOWN_TOKEN"),
        (403, "M_USER_DEACTIVATED"),
        (404, "M_UNRECOGNIZED"),
        (500, "M_FORBIDDEN"),
    ] {
        let code_of = StatusCode::from_u16(status).expect("a status");
        scene
            .judge
            .answers(SIGN, code_of, json!({ "errcode": code }));
        refused(scene.say("one").await, 502, "M_UNKNOWN");
    }
    let topic = scene.room.put(
        &scene.alice,
        "state/m.room.topic",
        json!({ "topic": "tea" }),
    );
    refused(topic.await, 502, "M_UNKNOWN");
    refused(
        scene.room.post(&scene.alice, "leave", json!({})).await,
        502,
        "M_UNKNOWN",
    );
    let now = Elsewhere::of(&scene.node, &scene.room).await;
    assert_eq!(now.ends, ends, "nothing was written");
    // Other rooms have nothing to do with it.
    let free = Room::new(&scene.alice, "shared").await;
    free.say(&scene.alice, "hello").await;
    // The same transaction is no lost one.
    scene.judge_fairly();
    ok(scene.say("one").await);
    check(&scene.node);
}

#[tokio::test]
async fn a_signature_that_is_none_is_as_good_as_none() {
    let scene = Scene::new().await;
    let ends = Elsewhere::of(&scene.node, &scene.room).await.ends;
    // By another key, under another name, for another event.
    scene.judge_with(policy_key(10), "policy.example");
    refused(scene.say("one").await, 502, "M_UNKNOWN");
    scene.judge_with(policy_key(9), "b.example");
    refused(scene.say("one").await, 502, "M_UNKNOWN");
    let stale = signed(
        &json!({ "type": "m.x", "content": {} }),
        "policy.example",
        &scene.key,
    );
    let huge = "x".repeat(1 << 20);
    for answer in [
        stale["signatures"].to_string(),
        "{}".to_owned(),
        "<html>".to_owned(),
        "[]".to_owned(),
        json!({ "policy.example": { (KEY_ID): 5 } }).to_string(),
        json!({ "policy.example": { (KEY_ID): "no base64" } }).to_string(),
        json!({ "policy.example": { (KEY_ID): huge } }).to_string(),
    ] {
        scene.judge.answers(SIGN, StatusCode::OK, answer);
        refused(scene.say("one").await, 502, "M_UNKNOWN");
    }
    assert_eq!(Elsewhere::of(&scene.node, &scene.room).await.ends, ends);
    check(&scene.node);
}

#[tokio::test]
async fn one_that_is_away_can_be_done_without_by_taking_it_away() {
    let scene = Scene::new().await;
    scene.node.lan.detach(&scene.judge.name);
    refused(scene.say("one").await, 502, "M_UNKNOWN");
    scene
        .room
        .set(&scene.alice, "m.room.policy", json!({}))
        .await;
    ok(scene.say("one").await);
    check(&scene.node);
}

#[tokio::test]
async fn one_that_never_answers_holds_up_nobody_else() {
    let mut scene = Scene::new().await;
    scene.judge.answers(SIGN, StatusCode::IM_A_TEAPOT, "");
    let before = scene.judge.asked();
    let (room, alice) = (Room(scene.room.0.clone()), scene.alice.clone());
    let stuck = TaskTracker::new().spawn(async move {
        let path = "send/m.room.message/stuck";
        room.put(&alice, path, json!({ "body": "stuck" })).await
    });
    until(async || scene.judge.asked() > before).await;
    // The room is free.
    let message = scene.elsewhere.say(&scene.other, BOB, "hello");
    scene.push("1", &[scene.recommended(&message)]).await;
    assert!(finds(&scene.alice, &scene.room, &message).await);
    until(async || {
        scene.node.clock.advance(Duration::from_secs(5));
        stuck.is_finished()
    })
    .await;
    refused(stuck.await.expect("it ends"), 504, "M_UNKNOWN");
    check(&scene.node);
}

#[tokio::test]
async fn what_has_happened_meanwhile_is_seen() {
    let mut scene = Scene::new().await;
    let (room, alice) = (scene.room.0.clone(), scene.alice.clone());
    let spawn = move |txn: &'static str| {
        let (room, alice) = (Room(room.clone()), alice.clone());
        TaskTracker::new().spawn(async move {
            let content = json!({ "msgtype": "m.text", "body": "hello" });
            room.put(&alice, &format!("send/m.room.message/{txn}"), content)
                .await
        })
    };
    // The same twice at once, while another one speaks: one event, which follows what it was drafted on.
    scene.judge.answers(SIGN, HELD, "");
    let before = scene.judge.asked();
    let (first, second) = (spawn("one"), spawn("one"));
    until(async || scene.judge.asked() >= before + 2).await;
    let ends = scene.elsewhere.ends.clone();
    let message = scene.elsewhere.say(&scene.other, BOB, "in between");
    scene.push("1", &[scene.recommended(&message)]).await;
    scene.judge_fairly();
    let first = text(&ok(first.await.expect("it ends")), "event_id");
    assert_eq!(text(&ok(second.await.expect("it ends")), "event_id"), first);
    assert_eq!(scene.asked().len(), 2);
    let sent = scene.sent(&first).await;
    assert_eq!(sent["prev_events"], json!(ends));
    scene.refresh().await;
    assert_eq!(scene.elsewhere.ends.len(), 2);

    // Where the state has changed it is drafted again.
    scene.judge.answers(SIGN, HELD, "");
    let before = scene.judge.asked();
    let again = spawn("two");
    until(async || scene.judge.asked() > before).await;
    let named = json!({ "membership": "join", "displayname": "Bob" });
    let name = scene
        .elsewhere
        .add(&scene.other, BOB, "m.room.member", Some(BOB), named);
    scene.push("2", &[scene.recommended(&name)]).await;
    scene.judge_fairly();
    let again = text(&ok(again.await.expect("it ends")), "event_id");
    assert_eq!(scene.asked().len(), 2);
    let sent = scene.sent(&again).await;
    assert_eq!(sent["prev_events"], json!([id(&name)]));

    // State is drafted again also for a message, and follows it.
    scene.refresh().await;
    scene.judge.answers(SIGN, HELD, "");
    let before = scene.judge.asked();
    let (room, who) = (Room(scene.room.0.clone()), scene.alice.clone());
    let topic = TaskTracker::new().spawn(async move {
        let topic = json!({ "topic": "tea" });
        room.put(&who, "state/m.room.topic", topic).await
    });
    until(async || scene.judge.asked() > before).await;
    let message = scene.elsewhere.say(&scene.other, BOB, "in between");
    scene.push("topic", &[scene.recommended(&message)]).await;
    scene.judge_fairly();
    let topic = text(&ok(topic.await.expect("it ends")), "event_id");
    assert_eq!(
        scene.sent(&topic).await["prev_events"],
        json!([id(&message)])
    );

    // Who was sent away meanwhile can say nothing any more.
    let levels = json!({ "users": { BOB: 100 } });
    scene
        .room
        .set(&scene.alice, "m.room.power_levels", levels)
        .await;
    let carol = scene.node.register("carol").await;
    scene.room.does(&carol, "join").await;
    scene.refresh().await;
    scene.judge.answers(SIGN, HELD, "");
    let before = scene.judge.asked();
    let room = Room(scene.room.0.clone());
    let who = carol.clone();
    let late = TaskTracker::new().spawn(async move {
        room.put(&who, "send/m.room.message/late", json!({ "body": "late" }))
            .await
    });
    until(async || scene.judge.asked() > before).await;
    let out = json!({ "membership": "leave" });
    let kick = scene.elsewhere.add(
        &scene.other,
        BOB,
        "m.room.member",
        Some(&carol.user_id),
        out,
    );
    scene.push("3", &[scene.recommended(&kick)]).await;
    scene.judge_fairly();
    refused(late.await.expect("it ends"), 403, "M_FORBIDDEN");
    assert_eq!(
        Elsewhere::of(&scene.node, &scene.room).await.ends,
        [kick.header.id]
    );
    check(&scene.node);
}

#[tokio::test]
async fn a_room_whose_policy_server_is_none_asks_nobody() {
    let mut scene = Scene::before().await;
    let good = scene.content();
    let keys = good["public_keys"].clone();
    // It is not in the room.
    scene
        .room
        .set(&scene.alice, "m.room.policy", good.clone())
        .await;
    ok(scene.say("outside").await);
    scene.refresh().await;
    let message = scene.elsewhere.say(&scene.other, BOB, "hello");
    scene.push("1", &[pdu(&message)]).await;
    assert!(finds(&scene.alice, &scene.room, &message).await);
    let joined = Elsewhere::joined(&scene.node, &scene.room, &scene.judge, JUDGE).await;
    scene.elsewhere = joined;
    // What names it is not valid, or names somebody else.
    for (number, content) in [
        json!({}),
        json!({ "via": "policy.example" }),
        json!({ "via": "policy.example", "public_keys": {} }),
        json!({ "via": "policy.example", "public_keys": { "ed25519": 5 } }),
        json!({ "via": 5, "public_keys": keys }),
        json!({ "via": "no name!", "public_keys": keys }),
        json!({ "via": "nobody.example", "public_keys": keys }),
        json!({ "via": "localhost", "public_keys": keys }),
    ]
    .into_iter()
    .enumerate()
    {
        scene.room.set(&scene.alice, "m.room.policy", content).await;
        ok(scene.say(&format!("invalid{number}")).await);
    }
    assert_eq!(scene.asked(), Vec::<String>::new());
    // A key that is none is one by which nobody can sign.
    let content = json!({ "via": "policy.example", "public_keys": { "ed25519": "?" } });
    scene.room.set(&scene.alice, "m.room.policy", content).await;
    refused(scene.say("key").await, 502, "M_UNKNOWN");
    scene.room.set(&scene.alice, "m.room.policy", good).await;
    ok(scene.say("force").await);
    assert_eq!(scene.asked().len(), 2);
    // When it leaves it is over; that it does it has signed itself.
    scene.refresh().await;
    let out = json!({ "membership": "leave" });
    let leave = scene
        .elsewhere
        .add(&scene.judge, JUDGE, "m.room.member", Some(JUDGE), out);
    let leave = scene.recommended(&leave);
    ok(scene.judge.push(&scene.node, "leave", &[leave]).await);
    ok(scene.say("over").await);
    assert_eq!(scene.asked(), Vec::<String>::new());
    check(&scene.node);
}

#[tokio::test]
async fn what_comes_without_a_signature_is_asked_about() {
    let mut scene = Scene::new().await;
    // One that has it costs no question, wherever it comes from.
    let message = scene.elsewhere.say(&scene.other, BOB, "signed");
    scene.push("1", &[scene.recommended(&message)]).await;
    assert!(finds(&scene.alice, &scene.room, &message).await);
    let own = scene.elsewhere.say(&scene.judge, JUDGE, "mine");
    let keys = scene.judge.asked();
    ok(scene
        .judge
        .push(&scene.node, "1", &[scene.recommended(&own)])
        .await);
    assert!(finds(&scene.alice, &scene.room, &own).await);
    assert_eq!(
        scene.judge.asked(),
        keys,
        "its key for policies is in the room"
    );
    assert_eq!(scene.asked(), Vec::<String>::new());
    // One that lacks it, and one whose signature is by another key or of another event.
    let plain = scene.elsewhere.say(&scene.other, BOB, "plain");
    scene.push("2", &[pdu(&plain)]).await;
    until_found(&scene.alice, &scene.room, &plain).await;
    let forged = scene.elsewhere.say(&scene.other, BOB, "forged");
    let by_another = signed(&pdu(&forged), "policy.example", &policy_key(10));
    scene.push("3", &[by_another]).await;
    until_found(&scene.alice, &scene.room, &forged).await;
    let copied = scene.elsewhere.say(&scene.other, BOB, "copied");
    let mut with_copied = pdu(&copied);
    let stolen = &scene.recommended(&plain)["signatures"]["policy.example"];
    with_copied["signatures"]["policy.example"] = stolen.clone();
    scene.push("4", &[with_copied]).await;
    until_found(&scene.alice, &scene.room, &copied).await;
    assert_eq!(scene.asked(), ["m.room.message"; 3]);
    // Who asks us for it gets it with the signature.
    let path = format!("/_matrix/federation/v1/event/{}", encoded(&id(&forged)));
    let told = ok(scene.other.get(&scene.node, &path).await);
    assert!(scene.is_recommended(&told["pdus"][0]));
    check(&scene.node);
}

#[tokio::test]
async fn what_is_not_recommended_is_not_shown() {
    let mut scene = Scene::new().await;
    let refusal = json!({ "errcode": "M_FORBIDDEN", "error": "spam" });
    scene.judge.answers(SIGN, StatusCode::BAD_REQUEST, refusal);
    let spam = scene.elsewhere.say(&scene.other, BOB, "spam");
    scene.push("1", &[pdu(&spam)]).await;
    // What follows it, and is signed, is shown all the same.
    let fine = scene.elsewhere.say(&scene.other, BOB, "fine");
    scene.push("2", &[scene.recommended(&fine)]).await;
    until_found(&scene.alice, &scene.room, &fine).await;
    scene.is_hidden(&spam).await;
    // A signature that is none.
    scene.judge_with(policy_key(10), "policy.example");
    let forged = scene.elsewhere.say(&scene.other, BOB, "forged");
    scene.push("3", &[pdu(&forged)]).await;
    // Somebody who is not there.
    let fine = scene.elsewhere.say(&scene.other, BOB, "fine");
    scene.push("4", &[scene.recommended(&fine)]).await;
    until_found(&scene.alice, &scene.room, &fine).await;
    scene.is_hidden(&forged).await;
    scene.node.lan.detach(&scene.judge.name);
    let named = json!({ "membership": "join", "displayname": "Spam" });
    let state = scene
        .elsewhere
        .add(&scene.other, BOB, "m.room.member", Some(BOB), named);
    scene.push("5", &[pdu(&state)]).await;
    let fine = scene.elsewhere.say(&scene.other, BOB, "fine");
    scene.push("6", &[scene.recommended(&fine)]).await;
    until_found(&scene.alice, &scene.room, &fine).await;
    scene.is_hidden(&state).await;
    // What names a policy server needs none.
    let levels = json!({ "users": { BOB: 100 } });
    let path = "state/m.room.power_levels";
    refused(
        scene.room.put(&scene.alice, path, levels).await,
        502,
        "M_UNKNOWN",
    );
    scene
        .room
        .set(&scene.alice, "m.room.policy", json!({}))
        .await;
    let levels = json!({ "users": { BOB: 100 } });
    scene
        .room
        .set(&scene.alice, "m.room.power_levels", levels)
        .await;
    scene.refresh().await;
    let content = scene.content();
    let kind = "m.room.policy";
    let policy = scene
        .elsewhere
        .add(&scene.other, BOB, kind, Some(""), content);
    scene.push("7", &[pdu(&policy)]).await;
    until_found(&scene.alice, &scene.room, &policy).await;
    refused(scene.say("one").await, 502, "M_UNKNOWN");
    check(&scene.node);
}

#[tokio::test]
async fn one_that_never_answers_holds_up_only_what_needs_it() {
    let mut scene = Scene::new().await;
    scene.judge.answers(SIGN, StatusCode::IM_A_TEAPOT, "");
    let before = scene.judge.asked();
    let plain = scene.elsewhere.say(&scene.other, BOB, "plain");
    scene.push("1", &[pdu(&plain)]).await;
    until(async || scene.judge.asked() > before).await;
    let mut beside = Elsewhere::of(&scene.node, &scene.room).await;
    let fine = beside.say(&scene.other, BOB, "fine");
    scene.push("2", &[scene.recommended(&fine)]).await;
    assert!(finds(&scene.alice, &scene.room, &fine).await);
    let ends = scene.elsewhere.ends.clone();
    let last = scene.elsewhere.say(&scene.other, BOB, "last");
    assert_eq!(ends, std::slice::from_ref(&plain.header.id));
    scene.push("3", &[scene.recommended(&last)]).await;
    until(async || {
        scene.node.clock.advance(Duration::from_secs(5));
        finds(&scene.alice, &scene.room, &last).await
    })
    .await;
    scene.is_hidden(&plain).await;
}

#[tokio::test]
async fn who_comes_in_from_outside_is_asked_about() {
    let scene = Scene::new().await;
    let zoe = "@zoe:other.example";
    let other = Neighbour::new(&scene.node.lan, "other.example", 3);
    let join = async || {
        let (room, user) = (encoded(&scene.room.0), encoded(zoe));
        let path = format!("/_matrix/federation/v1/make_join/{room}/{user}?ver=12");
        let mut told = ok(other.get(&scene.node, &path).await);
        told["event"]["origin_server_ts"] = START.into();
        let (id, body) = finished(&other, "12", &told["event"]);
        let path = format!("/_matrix/federation/v2/send_join/{room}/{}", encoded(&id));
        let header = other.sign(&Method::PUT, &path, &body);
        other
            .send(&scene.node, Method::PUT, &path, &header, &body)
            .await
    };
    let refusal = json!({ "errcode": "M_FORBIDDEN", "error": "bots stay outside" });
    scene.judge.answers(SIGN, StatusCode::BAD_REQUEST, refusal);
    refused(join().await, 400, "M_FORBIDDEN");
    let path = format!("state/m.room.member/{zoe}");
    refused(
        scene.room.get(&scene.alice, &path).await,
        404,
        "M_NOT_FOUND",
    );
    scene.judge_fairly();
    let answer = ok(join().await);
    assert!(scene.is_recommended(&answer["event"]));
    assert_eq!(scene.asked(), ["m.room.member"]);
    let member = ok(scene.room.get(&scene.alice, &path).await);
    assert_eq!(member["membership"], "join");
    check(&scene.node);
}

#[tokio::test]
async fn an_invite_is_signed_by_both() {
    let scene = Scene::new().await;
    let guest = "@guest:policy.example";
    let path = "/_matrix/federation/v2/invite/";
    let key = ServerKey::from_seed(&[2; 32], "k2").expect("a key");
    let seen = Arc::new(Mutex::new(Vec::new()));
    let policy = policy_key(9);
    let told = seen.clone();
    // One server for both: it signs as what it was asked.
    scene.judge.computes("/_matrix/", move |body| {
        let body: Value = serde_json::from_str(body).expect("it is asked with JSON");
        if body.get("room_version").is_some() {
            told.lock().push("invite");
            let event = signed(&body["event"], "policy.example", &key);
            json!({ "event": event }).to_string()
        } else {
            told.lock().push("policy");
            let signed = signed(&body, "policy.example", &policy);
            signed["signatures"].to_string()
        }
    });
    scene.judge.answers(
        path,
        StatusCode::FORBIDDEN,
        json!({ "errcode": "M_FORBIDDEN" }),
    );
    let invite = json!({ "user_id": guest });
    let answer = scene.room.post(&scene.alice, "invite", invite.clone());
    refused(answer.await, 403, "M_FORBIDDEN");
    scene.judge.forget(path);
    ok(scene.room.post(&scene.alice, "invite", invite).await);
    assert_eq!(*seen.lock(), ["policy", "policy", "invite"]);
    let now = Elsewhere::of(&scene.node, &scene.room).await;
    let event = pdu(&now.state[&("m.room.member".to_owned(), guest.to_owned())]);
    assert!(scene.is_recommended(&event));
    assert!(event["signatures"]["policy.example"]["ed25519:k2"].is_string());
    // The policy server says no: nobody else is asked.
    scene.judge.answers(
        SIGN,
        StatusCode::FORBIDDEN,
        json!({ "errcode": "M_FORBIDDEN" }),
    );
    let invite = json!({ "user_id": "@other:policy.example" });
    refused(
        scene.room.post(&scene.alice, "invite", invite).await,
        403,
        "M_FORBIDDEN",
    );
    assert_eq!(seen.lock().len(), 3);
    check(&scene.node);
}

#[tokio::test]
async fn what_is_done_for_a_user_is_signed_too() {
    let mut scene = Scene::new().await;
    let alias = "/_matrix/client/v3/directory/room/%23tea:localhost";
    let id = json!({ "room_id": scene.room.0 });
    ok(scene.alice.put(alias, id.clone()).await);
    let name = json!({ "alias": "#tea:localhost" });
    let kind = "m.room.canonical_alias";
    scene.room.set(&scene.alice, kind, name.clone()).await;
    ok(scene.alice.delete(alias).await);
    let named = async |room: &Room| ok(room.get(&scene.alice, &format!("state/{kind}")).await);
    assert_eq!(named(&scene.room).await, json!({}));
    ok(scene.alice.put(alias, id).await);
    scene.room.set(&scene.alice, kind, name).await;
    assert_eq!(scene.asked(), [kind, kind, kind]);

    // A room that its policy server does not let end is not replaced.
    let rooms = async || {
        let joined = ok(scene.alice.get("/_matrix/client/v3/joined_rooms").await);
        joined["joined_rooms"].as_array().expect("a list").len()
    };
    let upgrade = json!({ "new_version": "12" });
    let refusal = json!({ "errcode": "M_FORBIDDEN", "error": "no" });
    scene.judge.answers(SIGN, StatusCode::FORBIDDEN, refusal);
    let answer = scene.room.post(&scene.alice, "upgrade", upgrade.clone());
    refused(answer.await, 403, "M_FORBIDDEN");
    assert_eq!(rooms().await, 1);
    scene.judge_fairly();
    let new = ok(scene.room.post(&scene.alice, "upgrade", upgrade).await);
    let new = Room(text(&new, "replacement_room"));
    assert_eq!(rooms().await, 2);
    assert_eq!(named(&scene.room).await, json!({}));
    assert_eq!(named(&new).await["alias"], "#tea:localhost");
    let tombstone = "m.room.tombstone";
    assert_eq!(scene.asked()[..2], [tombstone, kind]);
    scene.refresh().await;
    for kind in [tombstone, kind] {
        let event = &scene.elsewhere.state[&(kind.to_owned(), String::new())];
        assert!(scene.is_recommended(&pdu(event)), "{kind}");
    }
    // The new one has the same policy server, which is not there yet.
    new.say(&scene.alice, "hello").await;
    assert_eq!(scene.asked(), Vec::<String>::new());
    check(&scene.node);
}

#[tokio::test]
async fn spaces_with_a_policy_server_follow_their_rooms() {
    let scene = Scene::new().await;
    let child = Room::new(&scene.alice, "shared").await;
    let via = json!({ "via": ["localhost"] });
    let old = format!("m.space.child/{}", child.0);
    scene.room.set(&scene.alice, &old, via.clone()).await;
    let parent = format!("m.space.parent/{}", scene.room.0);
    child.set(&scene.alice, &parent, via).await;
    let upgrade = json!({ "new_version": "12" });
    let new = ok(child.post(&scene.alice, "upgrade", upgrade).await);
    assert_eq!(scene.asked(), ["m.space.child"; 3]);
    let path = format!("state/m.space.child/{}", text(&new, "replacement_room"));
    assert!(ok(scene.room.get(&scene.alice, &path).await)["via"].is_array());
    let path = format!("state/{old}");
    assert_eq!(ok(scene.room.get(&scene.alice, &path).await), json!({}));
    check(&scene.node);
}
