//! Servers that answer nonsense, or nothing, at any step of what is asked of them.

use std::time::Duration;

use http::StatusCode;
use kontor::protocol::event::Event;
use serde_json::{Value, json};

use crate::{
    elsewhere::{Elsewhere, finds, id, pdu, until, until_found},
    hostile::{BOB, CAROL, Scene, V1, told},
    log::Log,
    neighbour::Neighbour,
    room::Room,
    server::{TestServer, ok},
};

/// Has a server send an event for whose place the state must be told. What it tells of what lies between is kept in a
/// list of all of its rooms.
async fn wants_a_state(
    server: &TestServer,
    (peer, user): (&Neighbour, &str),
    theirs: &mut Elsewhere,
    between: &mut Vec<Value>,
) -> Event {
    theirs.say(peer, user, "never told");
    let lowest = theirs.say(peer, user, "lowest");
    let first = theirs.say(peer, user, "first");
    let last = theirs.say(peer, user, "last");
    between.push(pdu(&first));
    let answer = told("pdus", &[pdu(&lowest)]);
    peer.answers(&format!("{V1}/event/"), StatusCode::OK, answer);
    let path = format!("{V1}/get_missing_events");
    peer.answers(&path, StatusCode::OK, told("events", between));
    ok(peer.push(server, &id(&last)[1..], &[pdu(&last)]).await);
    last
}

/// So many ids of events that nobody has, as those of a state.
fn unknown_state() -> Value {
    let ids: Vec<_> = (0..150).map(|number| format!("${number:043}")).collect();
    json!({ "pdu_ids": ids, "auth_chain_ids": [] })
}

#[tokio::test]
async fn a_server_that_never_tells_its_states_holds_up_no_other_state() {
    let mut scene = Scene::new().await;
    let path = |what: &str| format!("{V1}/{what}/");
    let (bad, good) = (&scene.bad, &scene.good);
    bad.answers(&path("state_ids"), StatusCode::OK, unknown_state());
    bad.answers(&path("state"), StatusCode::IM_A_TEAPOT, "");
    let mut between = Vec::new();
    for _ in 0..4 {
        let room = Room::new(&scene.alice, "shared").await;
        let mut theirs = Elsewhere::joined(&scene.server, &room, bad, CAROL).await;
        wants_a_state(&scene.server, (bad, CAROL), &mut theirs, &mut between).await;
    }
    until(async || bad.asked_for(&path("state_ids")) == 4).await;
    until(async || bad.asked_for(&path("state")) == 1).await;
    // A state with many who have come meanwhile.
    let mut joins = Vec::new();
    for number in 0..120 {
        let user = format!("@u{number}:b.example");
        let (kind, content) = ("m.room.member", json!({ "membership": "join" }));
        let elsewhere = &mut scene.elsewhere;
        joins.push(pdu(&elsewhere.add(good, &user, kind, Some(&user), content)));
    }
    let state = json!({ "pdus": joins, "auth_chain": [] });
    let ids = scene.elsewhere.state_ids();
    good.answers(&path("state_ids"), StatusCode::OK, ids);
    good.answers(&path("state"), StatusCode::OK, state);
    let (theirs, mut between) = (&mut scene.elsewhere, Vec::new());
    let last = wants_a_state(&scene.server, (good, BOB), theirs, &mut between).await;
    until_found(&scene.alice, &scene.room, &last).await;
    assert_eq!(bad.asked_for(&path("state")), 1);
    scene.all_is_well().await;
}

#[tokio::test]
async fn an_event_that_follows_ten_thousand_is_refused_alone() {
    let mut scene = Scene::new().await;
    let nobody = |number: usize| -> ruma::OwnedEventId {
        format!("${number:043}").try_into().expect("it is an id")
    };
    let events = scene.events();
    for list in ["prev_events", "auth_events"] {
        let ids: Vec<_> = (0..10_000).map(nobody).collect();
        let content = json!({ "body": "heavy" });
        let kind = "m.room.message";
        let mut heavy = pdu(&scene
            .theirs
            .make(&scene.bad, CAROL, kind, None, content, |_| {}));
        // Nobody could make it by the rules, so nobody can sign it either.
        heavy[list] = json!(ids);
        let light = scene.theirs.say(&scene.bad, CAROL, list);
        let asked = scene.bad.questions();
        let both = [heavy, pdu(&light)];
        ok(scene.bad.push(&scene.server, list, &both).await);
        until_found(&scene.alice, &scene.other, &light).await;
        assert_eq!(scene.bad.questions(), asked, "nothing of it is looked for");
    }
    assert_eq!(scene.events() - events, 2);
    scene.all_is_well().await;
}

#[tokio::test]
async fn nonsense_is_of_no_use_at_any_step() {
    let mut scene = Scene::new().await;
    let deep = format!(
        "{{\"pdu_ids\":{}{}}}",
        "[".repeat(50_000),
        "]".repeat(50_000)
    );
    let numbers = json!({ "pdu_ids": [1], "auth_chain_ids": {}, "pdus": [[]], "auth_chain": [7] });
    let (huge, numbers) = (" ".repeat(150 << 20), numbers.to_string());
    let path = |what: &str| format!("{V1}/{what}/");
    let mut between = Vec::new();
    for garbage in ["<html>", "", "[]", &numbers, &deep, &huge] {
        for step in ["state_ids", "state"] {
            // All is as it should be but for one step.
            let bad = &scene.bad;
            bad.answers(&path("state_ids"), StatusCode::OK, unknown_state());
            bad.answers(&path(step), StatusCode::OK, garbage);
            let asked = bad.asked_for(&path(step));
            let room = Room::new(&scene.alice, "shared").await;
            let mut theirs = Elsewhere::joined(&scene.server, &room, bad, CAROL).await;
            let who = (bad, CAROL);
            let last = wants_a_state(&scene.server, who, &mut theirs, &mut between).await;
            until(async || scene.waiting() == 0).await;
            assert!(bad.asked_for(&path(step)) > asked, "{step}");
            assert!(!finds(&scene.alice, &room, &last).await);
        }
    }
    scene.all_is_well().await;
}

#[tokio::test]
async fn what_authorises_an_event_is_taken_from_no_nonsense_and_from_no_other_room() {
    let log = Log::of_this_thread();
    let mut scene = Scene::new().await;
    let path = format!("{V1}/event_auth/");
    let ends = Elsewhere::of(&scene.server, &scene.other).await.ends;
    // Two memberships that are told nowhere else authorise what follows what is here. The room is of version 12, in which
    // the creation authorises all without being named.
    let named = |number: usize| json!({ "membership": "join", "displayname": number });
    let mut chain = Vec::new();
    for number in 0..2 {
        let (theirs, kind) = (&mut scene.theirs, "m.room.member");
        chain.push(pdu(&theirs.add(
            &scene.bad,
            CAROL,
            kind,
            Some(CAROL),
            named(number),
        )));
    }
    let mut says = |number: usize| {
        let content = json!({ "body": number });
        let ends = ends.clone();
        let (theirs, kind) = (&mut scene.theirs, "m.room.message");
        theirs.make(&scene.bad, CAROL, kind, None, content, |draft| {
            draft.prev_events = ends;
        })
    };
    let messages: Vec<_> = (0..12).map(&mut says).collect();
    // A chain that is as good, but of another room, of which the node knows a part.
    let mut foreign = Elsewhere::of(&scene.server, &scene.room).await;
    for number in 0..2 {
        foreign.add(
            &scene.bad,
            CAROL,
            "m.room.member",
            Some(CAROL),
            named(number),
        );
    }
    let foreign: Vec<_> = foreign.state.values().map(pdu).collect();
    let deep = format!(
        "{{\"auth_chain\":{}{}}}",
        "[".repeat(50_000),
        "]".repeat(50_000)
    );
    let huge = format!("{{\"auth_chain\":[\"{}\"]}}", "x".repeat(100 << 20));
    let unsigned: Vec<_> = chain
        .iter()
        .cloned()
        .map(|mut event| {
            event["signatures"] = json!({});
            event
        })
        .collect();
    let answers = [
        "<html>".to_owned(),
        String::new(),
        "[]".to_owned(),
        "{\"auth_chain\":{}}".to_owned(),
        "{\"auth_chain\":[7,{},\"x\",[[]]]}".to_owned(),
        deep,
        huge,
        told("auth_chain", &[]).to_string(),
        told("auth_chain", &foreign).to_string(),
        told("auth_chain", &unsigned).to_string(),
    ];
    let events = scene.events();
    for (number, (answer, message)) in answers.into_iter().zip(&messages).enumerate() {
        scene.bad.answers(&path, StatusCode::OK, answer);
        let txn = number.to_string();
        ok(scene.bad.push(&scene.server, &txn, &[pdu(message)]).await);
        until(async || scene.waiting() == 0).await;
        assert_eq!(scene.bad.asked_for(&path), number + 1);
        assert!(!finds(&scene.alice, &scene.other, message).await);
        assert_eq!(scene.events(), events, "nothing of it is kept");
        assert_eq!(log.warnings_about("c.example"), 1);
    }
    assert_eq!(log.warnings_about("b.example"), 0);
    // Who says nothing is waited for, and nobody else has to wait.
    scene.bad.answers(&path, StatusCode::IM_A_TEAPOT, "");
    ok(scene
        .bad
        .push(&scene.server, "silent", &[pdu(&messages[10])])
        .await);
    until(async || scene.bad.asked_for(&path) == 11).await;
    scene.all_is_well().await;
    assert_eq!(scene.waiting(), 1);
    // What it should have said is enough for the one, and for the other when it is tried again.
    scene
        .bad
        .answers(&path, StatusCode::OK, told("auth_chain", &chain));
    until(async || {
        scene.server.clock.advance(Duration::from_secs(5));
        finds(&scene.alice, &scene.other, &messages[10]).await
    })
    .await;
    ok(scene
        .bad
        .push(&scene.server, "good", &[pdu(&messages[11])])
        .await);
    until_found(&scene.alice, &scene.other, &messages[11]).await;
    scene.all_is_well().await;
}
