//! Servers that send and answer what nobody should: each costs a bounded time and amount, and nobody else notices.

use http::{Method, StatusCode};
use kontor::store::schema::{EVENTS, INBOX};
use serde_json::{Value, json};
use std::time::Duration;

use crate::{
    elsewhere::{Elsewhere, check, finds, id, pdu, until, until_found},
    log::Log,
    neighbour::Neighbour,
    room::Room,
    server::{Client, TestServer, ok, refused},
};

pub(crate) const BOB: &str = "@bob:b.example";
pub(crate) const CAROL: &str = "@carol:c.example";
pub(crate) const V1: &str = "/_matrix/federation/v1";

/// A node, a user, a good neighbour with a room, and a bad one with another.
pub(crate) struct Scene {
    pub(crate) server: TestServer,
    pub(crate) alice: Client,
    pub(crate) room: Room,
    pub(crate) good: Neighbour,
    pub(crate) elsewhere: Elsewhere,
    pub(crate) other: Room,
    pub(crate) bad: Neighbour,
    pub(crate) theirs: Elsewhere,
}

impl Scene {
    pub(crate) async fn new() -> Self {
        let server = TestServer::new();
        let alice = server.register("alice").await;
        let (room, other) = (
            Room::new(&alice, "shared").await,
            Room::new(&alice, "shared").await,
        );
        let good = Neighbour::new(&server.lan, "b.example", 1);
        let bad = Neighbour::new(&server.lan, "c.example", 2);
        let elsewhere = Elsewhere::joined(&server, &room, &good, BOB).await;
        let theirs = Elsewhere::joined(&server, &other, &bad, CAROL).await;
        Self {
            server,
            alice,
            room,
            good,
            elsewhere,
            other,
            bad,
            theirs,
        }
    }

    /// The other room works, and nothing is broken.
    pub(crate) async fn all_is_well(&mut self) {
        let message = self.elsewhere.say(&self.good, BOB, "hello");
        let txn = id(&message);
        ok(self
            .good
            .push(&self.server, &txn[1..], &[pdu(&message)])
            .await);
        assert!(finds(&self.alice, &self.room, &message).await);
        self.other.say(&self.alice, "still here").await;
        check(&self.server);
    }

    pub(crate) fn waiting(&self) -> usize {
        let view = self.server.services.store().latest();
        INBOX.scan(&view, &()).count()
    }

    pub(crate) fn events(&self) -> usize {
        let view = self.server.services.store().latest();
        EVENTS.scan(&view, &()).count()
    }
}

/// An answer with these events.
pub(crate) fn told(name: &str, events: &[Value]) -> Value {
    json!({ "origin": "c.example", "origin_server_ts": 1, (name): events })
}

#[tokio::test]
async fn answers_that_make_no_sense_cost_an_event_and_no_more() {
    let mut scene = Scene::new().await;
    scene.theirs.say(&scene.bad, CAROL, "never told");
    let huge = format!("{{\"events\":[\"{}\"]}}", "x".repeat(100 << 20));
    let deep = format!(
        "{{\"events\":{}{}}}",
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    for (number, garbage) in ["<html>", "{\"events\":{}}", "\u{0}", &deep, &huge]
        .into_iter()
        .enumerate()
    {
        let event = scene.theirs.make(
            &scene.bad,
            CAROL,
            "m.room.message",
            None,
            json!({ "body": number }),
            |_| {},
        );
        scene.bad.answers(V1, StatusCode::OK, garbage);
        ok(scene
            .bad
            .push(&scene.server, &number.to_string(), &[pdu(&event)])
            .await);
        until(async || scene.waiting() == 0).await;
        assert!(!finds(&scene.alice, &scene.other, &event).await);
    }
    scene.all_is_well().await;
}

#[tokio::test]
async fn who_never_answers_is_waited_for_in_the_background() {
    let mut scene = Scene::new().await;
    scene.bad.answers(V1, StatusCode::IM_A_TEAPOT, "");
    scene.theirs.say(&scene.bad, CAROL, "never told");
    let stuck = scene.theirs.say(&scene.bad, CAROL, "stuck");
    ok(scene.bad.push(&scene.server, "1", &[pdu(&stuck)]).await);
    // Others write to that very room meanwhile.
    let mut beside = Elsewhere::of(&scene.server, &scene.other).await;
    let content = json!({ "membership": "join" });
    let join = beside.add(&scene.good, BOB, "m.room.member", Some(BOB), content);
    ok(scene.good.push(&scene.server, "join", &[pdu(&join)]).await);
    let message = beside.say(&scene.good, BOB, "not stuck");
    ok(scene
        .good
        .push(&scene.server, "say", &[pdu(&message)])
        .await);
    assert!(finds(&scene.alice, &scene.other, &message).await);
    assert_eq!(scene.waiting(), 1);
    scene.all_is_well().await;
}

#[tokio::test]
async fn endless_history_is_not_followed_to_its_end() {
    let mut scene = Scene::new().await;
    // Whatever is asked for, there are always more before it.
    let chain: Vec<_> = (0..400)
        .map(|number| scene.theirs.say(&scene.bad, CAROL, &number.to_string()))
        .collect();
    let last = scene.theirs.say(&scene.bad, CAROL, "last");
    let all: Vec<_> = chain.iter().rev().take(300).map(pdu).collect();
    scene.bad.answers(
        &format!("{V1}/get_missing_events"),
        StatusCode::OK,
        told("events", &all),
    );
    let before = (scene.bad.questions(), scene.events());
    ok(scene.bad.push(&scene.server, "1", &[pdu(&last)]).await);
    until(async || scene.waiting() == 0).await;
    assert!(scene.bad.questions() - before.0 <= 300);
    assert_eq!(scene.events(), before.1, "nothing of it hangs together");
    scene.all_is_well().await;
}

#[tokio::test]
async fn a_thousand_ends_that_nobody_has_cost_few_requests() {
    let mut scene = Scene::new().await;
    let nobody = |number: usize| -> ruma::OwnedEventId {
        format!("${number:043}").try_into().expect("it is an id")
    };
    // Each follows twenty events that are not there, and is followed by the next.
    let mut events = Vec::new();
    for number in 0..60 {
        let mut ends: Vec<_> = (0..19).map(|at| nobody(number * 20 + at)).collect();
        ends.extend(scene.theirs.ends.clone());
        let event = scene.theirs.make(
            &scene.bad,
            CAROL,
            "m.room.message",
            None,
            json!({}),
            |draft| draft.prev_events = ends,
        );
        scene.theirs.put(&event);
        events.push(pdu(&event));
    }
    let last = events.pop().expect("there are some");
    let answer = told("events", &events);
    scene
        .bad
        .answers(&format!("{V1}/get_missing_events"), StatusCode::OK, answer);
    let before = scene.bad.questions();
    ok(scene.bad.push(&scene.server, "1", &[last]).await);
    until(async || scene.waiting() == 0).await;
    assert!(scene.bad.questions() - before <= 300);
    scene.all_is_well().await;
}

#[tokio::test]
async fn of_an_auth_chain_only_what_authorises_is_kept() {
    let mut scene = Scene::new().await;
    // A thousand events that nothing leads to, and a chain of memberships that does.
    let content = |number: usize| json!({ "membership": "join", "displayname": number });
    let mut bomb = Vec::new();
    for number in 0..1_000 {
        let kind = "m.room.member";
        let event = scene.theirs.make(
            &scene.bad,
            CAROL,
            kind,
            Some(CAROL),
            content(number),
            |_| {},
        );
        bomb.push(pdu(&event));
    }
    for number in 0..30 {
        let kind = "m.room.member";
        let event = scene
            .theirs
            .add(&scene.bad, CAROL, kind, Some(CAROL), content(number));
        bomb.push(pdu(&event));
    }
    let ends = Elsewhere::of(&scene.server, &scene.other).await.ends;
    let event = scene.theirs.make(
        &scene.bad,
        CAROL,
        "m.room.message",
        None,
        json!({}),
        |draft| draft.prev_events = ends,
    );
    let path = format!("{V1}/event_auth");
    scene
        .bad
        .answers(&path, StatusCode::OK, told("auth_chain", &bomb));
    let before = scene.events();
    ok(scene.bad.push(&scene.server, "1", &[pdu(&event)]).await);
    until(async || scene.waiting() == 0).await;
    assert_eq!(scene.events() - before, 31);
    scene.all_is_well().await;
}

#[tokio::test]
async fn what_is_authorised_by_another_room_is_rejected() {
    let mut scene = Scene::new().await;
    let foreign = scene.elsewhere.state[&("m.room.create".to_owned(), String::new())]
        .header
        .id
        .clone();
    let levels = scene.elsewhere.state[&("m.room.power_levels".to_owned(), String::new())]
        .header
        .id
        .clone();
    for (number, cited) in [foreign, levels].into_iter().enumerate() {
        let event = scene.theirs.make(
            &scene.bad,
            CAROL,
            "m.room.message",
            None,
            json!({}),
            |draft| draft.auth_events.push(cited),
        );
        let answer = scene
            .bad
            .push(&scene.server, &number.to_string(), &[pdu(&event)])
            .await;
        ok(answer);
        until(async || scene.waiting() == 0).await;
        assert!(!finds(&scene.alice, &scene.other, &event).await);
    }
    scene.all_is_well().await;
}

#[tokio::test]
async fn a_room_whose_every_event_forks_stays_usable() {
    let mut scene = Scene::new().await;
    let start = scene.theirs.ends.clone();
    let mut last = None;
    for transaction in 0..4 {
        let mut events = Vec::new();
        for number in 0..50 {
            scene.theirs.ends.clone_from(&start);
            let event = if number % 5 == 0 {
                let name = json!({ "membership": "join", "displayname": number });
                let kind = "m.room.member";
                scene
                    .theirs
                    .make(&scene.bad, CAROL, kind, Some(CAROL), name, |_| {})
            } else {
                scene.theirs.make(
                    &scene.bad,
                    CAROL,
                    "m.room.message",
                    None,
                    json!({ "body": number + transaction * 50 }),
                    |_| {},
                )
            };
            events.push(pdu(&event));
            last = Some(event);
        }
        let txn = transaction.to_string();
        ok(scene.bad.push(&scene.server, &txn, &events).await);
    }
    let last = last.expect("there are some");
    until_found(&scene.alice, &scene.other, &last).await;
    let ends = Elsewhere::of(&scene.server, &scene.other).await.ends.len();
    assert!(ends <= 20, "{ends}");
    // Whatever is said next brings it together.
    scene.other.say(&scene.alice, "enough").await;
    assert_eq!(
        Elsewhere::of(&scene.server, &scene.other).await.ends.len(),
        1
    );
    scene.all_is_well().await;
}

#[tokio::test]
async fn json_that_is_too_deep_is_refused_alone() {
    let mut scene = Scene::new().await;
    let message = scene.theirs.say(&scene.bad, CAROL, "hello");
    let deep = format!("{}{}", "[".repeat(20_000), "]".repeat(20_000));
    let room = &scene.other.0;
    let event = format!(
        "{{\"room_id\":\"{room}\",\"type\":\"m.x\",\"sender\":\"{CAROL}\",\"content\":{{\"a\":{deep}}}}}"
    );
    let path = format!("{V1}/send/1");
    let good = pdu(&message).to_string();
    let body = format!(
        "{{\"origin\":\"c.example\",\"origin_server_ts\":1,\"pdus\":[{event},{good}],\"edus\":[{{\"edu_type\":\"m.typing\",\"content\":{deep}}}]}}"
    );
    // It is signed as it stands, as nobody could write it canonically.
    let (status, answer) = {
        let header = scene.bad.sign(&Method::PUT, &path, "{}");
        scene
            .bad
            .send(&scene.server, Method::PUT, &path, &header, &body)
            .await
    };
    assert!(matches!(status.as_u16(), 400 | 401), "{status} {answer}");
    for (method, path) in [
        (Method::PUT, format!("{V1}/send/2")),
        (
            Method::PUT,
            format!("/_matrix/federation/v2/send_join/{room}/$x"),
        ),
        (
            Method::PUT,
            format!("/_matrix/federation/v2/invite/{room}/$x"),
        ),
        (Method::POST, format!("{V1}/get_missing_events/{room}")),
    ] {
        let body = format!("{{\"pdus\":[],\"a\":{deep}}}");
        let header = scene.bad.sign(&method, &path, "{}");
        let answer = scene
            .bad
            .send(&scene.server, method, &path, &header, &body)
            .await;
        assert!(
            matches!(answer.0.as_u16(), 400 | 401),
            "{} {}",
            answer.0,
            answer.1
        );
    }
    // An event as deep as an event may be is none of this.
    let nested = (0..60).fold(json!(1), |inner, _| json!([inner]));
    let kind = "m.room.message";
    let content = json!({ "body": "nested", "a": nested });
    let fine = scene.theirs.add(&scene.bad, CAROL, kind, None, content);
    let both = [pdu(&message), pdu(&fine)];
    ok(scene.bad.push(&scene.server, "3", &both).await);
    assert!(finds(&scene.alice, &scene.other, &fine).await);
    scene.all_is_well().await;
}

#[tokio::test]
async fn a_state_of_very_many_events_is_not_fetched() {
    let mut scene = Scene::new().await;
    scene.theirs.say(&scene.bad, CAROL, "never told");
    let lowest = scene.theirs.say(&scene.bad, CAROL, "lowest");
    let first = scene.theirs.say(&scene.bad, CAROL, "first");
    let last = scene.theirs.say(&scene.bad, CAROL, "last");
    let path = |what: &str| format!("{V1}/{what}");
    let ids: Vec<_> = (0..210_000)
        .map(|number| format!("${number:043}"))
        .collect();
    let ids = json!({ "pdu_ids": ids, "auth_chain_ids": [] });
    let bad = &scene.bad;
    bad.answers(&path("state_ids"), StatusCode::OK, ids);
    bad.answers(
        &path("event"),
        StatusCode::OK,
        told("pdus", &[pdu(&lowest)]),
    );
    bad.answers(
        &path("get_missing_events"),
        StatusCode::OK,
        told("events", &[pdu(&first)]),
    );
    let before = bad.questions();
    ok(bad.push(&scene.server, "1", &[pdu(&last)]).await);
    until(async || scene.waiting() == 0).await;
    // What lies before, and the ids of the state.
    assert_eq!(scene.bad.questions() - before, 2);
    assert!(!finds(&scene.alice, &scene.other, &last).await);
    scene.all_is_well().await;
}

#[tokio::test]
async fn one_server_does_not_fill_the_place_of_another() {
    let mut scene = Scene::new().await;
    // Both are in one room; one sends what can never be placed.
    let mut beside = Elsewhere::of(&scene.server, &scene.other).await;
    let content = json!({ "membership": "join" });
    let join = beside.add(&scene.good, BOB, "m.room.member", Some(BOB), content);
    ok(scene.good.push(&scene.server, "join", &[pdu(&join)]).await);
    scene.bad.answers(V1, StatusCode::IM_A_TEAPOT, "");
    scene.theirs.say(&scene.bad, CAROL, "never told");
    let mut refusals = 0;
    for transaction in 0..22 {
        let events: Vec<_> = (0..50)
            .map(|_| pdu(&scene.theirs.say(&scene.bad, CAROL, "stuck")))
            .collect();
        let txn = transaction.to_string();
        let results = ok(scene.bad.push(&scene.server, &txn, &events).await);
        let results = results["pdus"].as_object().expect("there are results");
        refusals += results
            .values()
            .filter(|result| result["error"].is_string())
            .count();
    }
    assert_eq!((scene.waiting(), refusals), (1_000, 100));
    let first = beside.say(&scene.good, BOB, "first");
    let second = beside.say(&scene.good, BOB, "second");
    let results = ok(scene.good.push(&scene.server, "2", &[pdu(&second)]).await);
    assert_eq!(results["pdus"][id(&second)], json!({}));
    let results = ok(scene.good.push(&scene.server, "3", &[pdu(&first)]).await);
    assert_eq!(results["pdus"][id(&first)], json!({}));
    assert!(finds(&scene.alice, &scene.other, &first).await);
    // What waits for the silent one is in nobody's way.
    until(async || {
        scene.server.clock.advance(Duration::from_secs(1));
        finds(&scene.alice, &scene.other, &second).await
    })
    .await;
    assert_eq!(scene.waiting(), 1_000);
    scene.all_is_well().await;
}

#[tokio::test]
async fn who_sends_too_much_is_told_to_come_back() {
    let scene = Scene::new().await;
    scene.bad.answers(V1, StatusCode::IM_A_TEAPOT, "");
    let mut last = None;
    for number in 0..6 {
        let room = Room::new(&scene.alice, "shared").await;
        let mut theirs = Elsewhere::of(&scene.server, &room).await;
        let content = json!({ "membership": "join" });
        let join = theirs.add(&scene.bad, CAROL, "m.room.member", Some(CAROL), content);
        let answer = scene
            .bad
            .push(&scene.server, &format!("join{number}"), &[pdu(&join)])
            .await;
        if number == 5 {
            last = Some(answer);
            break;
        }
        ok(answer);
        theirs.say(&scene.bad, CAROL, "never told");
        for transaction in 0..20 {
            let events: Vec<_> = (0..50)
                .map(|_| pdu(&theirs.say(&scene.bad, CAROL, "stuck")))
                .collect();
            let txn = format!("{number}-{transaction}");
            ok(scene.bad.push(&scene.server, &txn, &events).await);
        }
    }
    assert_eq!(scene.waiting(), 5_000);
    refused(last.expect("it was sent"), 429, "M_LIMIT_EXCEEDED");
}

#[tokio::test]
async fn nobody_undoes_what_is_known_by_not_telling_of_it() {
    let mut scene = Scene::new().await;
    let topic = json!({ "topic": "tea" });
    scene.other.set(&scene.alice, "m.room.topic", topic).await;
    let mut theirs = Elsewhere::of(&scene.server, &scene.other).await;
    let kept = theirs.state.clone();
    theirs
        .state
        .remove(&("m.room.topic".to_owned(), String::new()));
    let ids = theirs.state_ids();
    theirs.state = kept;
    // It follows the topic, and something that nobody tells.
    let nobody = format!("${:043}", 1).try_into().expect("it is an id");
    let lowest = theirs.make(
        &scene.bad,
        CAROL,
        "m.room.message",
        None,
        json!({ "body": "lowest" }),
        |draft| draft.prev_events.push(nobody),
    );
    theirs.put(&lowest);
    let first = theirs.say(&scene.bad, CAROL, "first");
    let last = theirs.say(&scene.bad, CAROL, "last");
    let bad = &scene.bad;
    let path = |what: &str| format!("{V1}/{what}");
    bad.answers(&path("state_ids"), StatusCode::OK, ids);
    bad.answers(
        &path("event"),
        StatusCode::OK,
        told("pdus", &[pdu(&lowest)]),
    );
    bad.answers(
        &path("get_missing_events"),
        StatusCode::OK,
        told("events", &[pdu(&first)]),
    );
    ok(bad.push(&scene.server, "1", &[pdu(&last)]).await);
    until_found(&scene.alice, &scene.other, &last).await;
    let topic = ok(scene.other.get(&scene.alice, "state/m.room.topic").await);
    assert_eq!(topic["topic"], "tea");
    scene.all_is_well().await;
}

#[tokio::test]
async fn the_log_is_told_once_who_gives_answers_of_no_use() {
    let log = Log::of_this_thread();
    let mut scene = Scene::new().await;
    scene.theirs.say(&scene.bad, CAROL, "never told");
    for (number, garbage) in ["<html>", "{\"events\":{}}", "[]", "7"]
        .into_iter()
        .enumerate()
    {
        let event = scene.theirs.say(&scene.bad, CAROL, "stuck");
        scene.bad.answers(V1, StatusCode::OK, garbage);
        let txn = number.to_string();
        ok(scene.bad.push(&scene.server, &txn, &[pdu(&event)]).await);
        until(async || scene.waiting() == 0).await;
        assert_eq!(log.warnings_about("c.example"), 1, "{garbage}");
    }
    assert_eq!(log.warnings_about("b.example"), 0);
    // Whoever reads the log later is told again.
    scene.server.clock.advance(Duration::from_hours(1));
    let event = scene.theirs.say(&scene.bad, CAROL, "stuck");
    ok(scene.bad.push(&scene.server, "later", &[pdu(&event)]).await);
    until(async || scene.waiting() == 0).await;
    assert_eq!(log.warnings_about("c.example"), 2);
    scene.all_is_well().await;
}
