//! "Transactions": what other servers send, and what is fetched for it.

use http::{Method, StatusCode};
use kontor::store::schema::INBOX;
use serde_json::json;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crate::{
    elsewhere::{Elsewhere, check, finds, id, pdu, timeline, until, until_found},
    neighbour::Neighbour,
    room::Room,
    server::{Client, TestServer, ok, refused},
};

const BOB: &str = "@bob:b.example";
const MISSING: &str = "/_matrix/federation/v1/get_missing_events/";

/// A node with a user in a public room, a neighbour with another one, and the room as that sees it.
async fn shared() -> (TestServer, Client, Room, Neighbour, Elsewhere) {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let room = Room::new(&alice, "shared").await;
    let neighbour = Neighbour::new(&server.lan, "b.example", 1);
    let elsewhere = Elsewhere::joined(&server, &room, &neighbour, BOB).await;
    (server, alice, room, neighbour, elsewhere)
}

#[tokio::test]
async fn a_message_arrives_and_stays() {
    let (server, alice, room, neighbour, mut elsewhere) = shared().await;
    let message = elsewhere.say(&neighbour, BOB, "hello");
    let results = ok(neighbour.push(&server, "1", &[pdu(&message)]).await);
    assert_eq!(results, json!({ "pdus": { (id(&message)): {} } }));
    // It is there as soon as it is answered.
    assert_eq!(timeline(&alice, &room).await.0.last(), Some(&id(&message)));
    // The same transaction is answered as before and not looked at.
    let other = elsewhere.say(&neighbour, BOB, "again");
    let again = ok(neighbour.push(&server, "1", &[pdu(&other)]).await);
    assert_eq!(again, results);
    assert!(!finds(&alice, &room, &other).await);
    // An event that is known is as good as one that is new.
    ok(neighbour
        .push(&server, "2", &[pdu(&message), pdu(&message)])
        .await);
    let server = server.restart();
    assert!(finds(&alice, &room, &message).await);
    check(&server);
}

#[tokio::test]
async fn a_fork_is_healed() {
    let (server, alice, room, neighbour, mut elsewhere) = shared().await;
    let ends = elsewhere.ends.clone();
    let left = elsewhere.say(&neighbour, BOB, "left");
    elsewhere.ends = ends;
    let right = elsewhere.say(&neighbour, BOB, "right");
    elsewhere.ends = vec![left.header.id.clone(), right.header.id.clone()];
    let both = elsewhere.say(&neighbour, BOB, "both");
    let all = [pdu(&left), pdu(&right), pdu(&both)];
    ok(neighbour.push(&server, "1", &all).await);
    let (told, _) = timeline(&alice, &room).await;
    assert!(told.ends_with(&[id(&left), id(&right), id(&both)]));
    let now = Elsewhere::of(&server, &room).await;
    assert_eq!(now.ends, std::slice::from_ref(&both.header.id));
    check(&server);
}

#[tokio::test]
async fn what_can_not_be_is_refused_alone() {
    let (server, alice, room, neighbour, mut elsewhere) = shared().await;
    let stranger = Neighbour::new(&server.lan, "c.example", 2);
    let forged = elsewhere.make(&stranger, BOB, "m.room.message", None, json!({}), |_| {});
    let mut float =
        pdu(&elsewhere.make(&neighbour, BOB, "m.room.message", None, json!({}), |_| {}));
    float["content"]["number"] = json!(1.5);
    let nowhere = elsewhere.make(
        &neighbour,
        BOB,
        "m.room.message",
        None,
        json!({}),
        |draft| {
            draft.room_id = Some("!nowhere:b.example".try_into().unwrap());
        },
    );
    let mut large =
        pdu(&elsewhere.make(&neighbour, BOB, "m.room.message", None, json!({}), |_| {}));
    large["content"]["body"] = "x".repeat(70_000).into();
    let changed = {
        let event = elsewhere.make(
            &neighbour,
            BOB,
            "m.room.message",
            None,
            json!({ "body": "as it was signed" }),
            |_| {},
        );
        let mut changed = pdu(&event);
        changed["content"]["body"] = "as it was changed".into();
        (event, changed)
    };
    let good = elsewhere.say(&neighbour, BOB, "good");
    let all = [
        pdu(&forged),
        float,
        pdu(&nowhere),
        large,
        json!({}),
        json!({ "room_id": room.0 }),
        changed.1,
        pdu(&good),
    ];
    let results = ok(neighbour.push(&server, "1", &all).await);
    let results = &results["pdus"];
    for bad in [&forged, &nowhere] {
        assert!(results[id(bad)]["error"].is_string(), "{results}");
    }
    assert_eq!(results[id(&good)], json!({}));
    assert!(finds(&alice, &room, &good).await);
    assert!(!finds(&alice, &room, &forged).await);
    // What was changed on the way is kept without its content.
    let shown = ok(room.get(&alice, &format!("event/{}", id(&changed.0))).await);
    assert_eq!(shown["content"], json!({}));
    check(&server);
}

#[tokio::test]
async fn a_transaction_is_bounded() {
    let (server, _, _, neighbour, mut elsewhere) = shared().await;
    let message = pdu(&elsewhere.say(&neighbour, BOB, "hello"));
    let many = vec![message; 51];
    refused(
        neighbour.push(&server, "1", &many).await,
        400,
        "M_INVALID_PARAM",
    );
    let many = vec![json!({ "edu_type": "m.x", "content": {} }); 101];
    refused(
        neighbour.murmur(&server, "2", &many).await,
        400,
        "M_INVALID_PARAM",
    );
    let path = "/_matrix/federation/v1/send/3";
    let large = format!("{{\"pdus\":[],\"x\":\"{}\"}}", "x".repeat(11 << 20));
    let header = neighbour.sign(&Method::PUT, path, &large);
    let answer = neighbour.send(&server, Method::PUT, path, &header, &large);
    refused(answer.await, 413, "M_TOO_LARGE");
    let header = neighbour.sign(&Method::PUT, path, "{\"pdus\":[]}");
    let answer = neighbour.send(&server, Method::PUT, path, &header, "{\"pdus\":[{}]}");
    refused(answer.await, 401, "M_UNAUTHORIZED");
}

#[tokio::test]
async fn who_is_kept_out_sends_nothing() {
    let (server, alice, room, neighbour, mut elsewhere) = shared().await;
    let acl = json!({ "allow": ["*"], "deny": ["b.example"] });
    ok(room.put(&alice, "state/m.room.server_acl/", acl).await);
    let message = elsewhere.say(&neighbour, BOB, "hello");
    let results = ok(neighbour.push(&server, "1", &[pdu(&message)]).await);
    assert!(results["pdus"][id(&message)]["error"].is_string());
    assert!(!finds(&alice, &room, &message).await);
    // A room that everybody here has left is as good as none.
    let other = Room::new(&alice, "shared").await;
    let mut elsewhere = Elsewhere::of(&server, &other).await;
    other.does(&alice, "leave").await;
    let content = json!({ "membership": "join" });
    let join = elsewhere.add(&neighbour, BOB, "m.room.member", Some(BOB), content);
    let results = ok(neighbour.push(&server, "2", &[pdu(&join)]).await);
    assert!(results["pdus"][id(&join)]["error"].is_string());
}

#[tokio::test]
async fn what_is_missing_is_asked_for() {
    let (server, alice, room, neighbour, mut elsewhere) = shared().await;
    let earlier: Vec<_> = (0..5)
        .map(|n| elsewhere.say(&neighbour, BOB, &n.to_string()))
        .collect();
    let last = elsewhere.say(&neighbour, BOB, "last");
    let mut events: Vec<_> = earlier.iter().map(pdu).collect();
    // In a strange order, with something of another room and something that nothing leads to.
    events.reverse();
    let stray = elsewhere.make(&neighbour, BOB, "m.room.message", None, json!({}), |_| {});
    events.push(pdu(&stray));
    events.push(json!({ "room_id": "!other:b.example" }));
    neighbour.answers(MISSING, StatusCode::OK, json!({ "events": events }));
    let results = ok(neighbour.push(&server, "1", &[pdu(&last)]).await);
    assert_eq!(results, json!({ "pdus": { (id(&last)): {} } }));
    until_found(&alice, &room, &last).await;
    let (told, _) = timeline(&alice, &room).await;
    let expect: Vec<_> = earlier.iter().chain([&last]).map(id).collect();
    assert!(told.ends_with(&expect), "{told:?}");
    assert!(!finds(&alice, &room, &stray).await);
    check(&server);
}

#[tokio::test]
async fn what_nobody_gives_leaves_a_gap() {
    let (server, alice, room, neighbour, mut elsewhere) = shared().await;
    elsewhere.say(&neighbour, BOB, "never seen");
    let name = json!({ "membership": "join", "displayname": "of the lost time" });
    let name = elsewhere.add(&neighbour, BOB, "m.room.member", Some(BOB), name);
    let told = elsewhere.state_ids();
    let lowest = elsewhere.say(&neighbour, BOB, "lowest");
    let first = elsewhere.say(&neighbour, BOB, "first");
    let last = elsewhere.say(&neighbour, BOB, "last");
    let events = json!({ "events": [pdu(&first)] });
    neighbour.answers(MISSING, StatusCode::OK, events);
    neighbour.answers("/_matrix/federation/v1/state_ids/", StatusCode::OK, told);
    for event in [&name, &lowest] {
        // Only the letters of the id are as they are in the path.
        let path = format!("/_matrix/federation/v1/event/%24{}", &id(event)[1..]);
        let plain = path.replace("%24", "$");
        let event = json!({ "origin": "b.example", "origin_server_ts": 1, "pdus": [pdu(event)] });
        neighbour.answers(&path, StatusCode::OK, &event);
        neighbour.answers(&plain, StatusCode::OK, &event);
    }
    ok(neighbour.push(&server, "1", &[pdu(&last)]).await);
    until_found(&alice, &room, &last).await;
    let (told, is_limited) = timeline(&alice, &room).await;
    assert_eq!(told, [id(&lowest), id(&first), id(&last)]);
    assert!(is_limited);
    let path = format!("state/m.room.member/{BOB}");
    let state = ok(room.get(&alice, &path).await);
    assert_eq!(state["displayname"], "of the lost time");
    check(&server);
}

#[tokio::test]
async fn what_hangs_in_the_air_is_dropped_and_may_come_again() {
    let (server, alice, room, neighbour, mut elsewhere) = shared().await;
    let first = elsewhere.say(&neighbour, BOB, "first");
    let second = elsewhere.say(&neighbour, BOB, "second");
    for answer in ["{}", "[1]", "{\"events\":[]}", "{\"events\":[{},1]}"] {
        neighbour.answers(MISSING, StatusCode::OK, answer);
        ok(neighbour
            .push(&server, answer.len().to_string().as_str(), &[pdu(&second)])
            .await);
    }
    // It is dropped when it was asked for in vain; if it still waited it would find its place now.
    until(async || INBOX.scan(&server.services.store().latest(), &()).count() == 0).await;
    let first_pushed = ok(neighbour.push(&server, "a", &[pdu(&first)]).await);
    assert_eq!(first_pushed["pdus"][id(&first)], json!({}));
    until_found(&alice, &room, &first).await;
    assert!(!finds(&alice, &room, &second).await);
    ok(neighbour.push(&server, "b", &[pdu(&second)]).await);
    until_found(&alice, &room, &second).await;
    let (told, _) = timeline(&alice, &room).await;
    assert!(told.ends_with(&[id(&first), id(&second)]));
    check(&server);
}

#[tokio::test]
async fn who_cites_what_is_rejected_is_rejected() {
    let (server, alice, room, neighbour, mut elsewhere) = shared().await;
    let levels = json!({ "users": { BOB: 100 } });
    let rejected = elsewhere.make(
        &neighbour,
        BOB,
        "m.room.power_levels",
        Some(""),
        levels,
        |_| {},
    );
    ok(neighbour.push(&server, "1", &[pdu(&rejected)]).await);
    let join = json!({ "membership": "join", "test": 1 });
    let outlier = elsewhere.make(&neighbour, BOB, "m.room.member", Some(BOB), join, |draft| {
        draft.auth_events.push(rejected.header.id.clone());
    });
    let cite = |draft: &mut kontor::protocol::template::Draft| {
        draft.auth_events.push(outlier.header.id.clone());
    };
    let first = elsewhere.make(&neighbour, BOB, "m.room.message", None, json!({}), cite);
    elsewhere.put(&first);
    let second = elsewhere.make(&neighbour, BOB, "m.room.message", None, json!({}), cite);
    elsewhere.put(&second);
    let last = elsewhere.say(&neighbour, BOB, "last");
    neighbour.answers(
        "/_matrix/federation/v1/event_auth/",
        StatusCode::OK,
        json!({ "auth_chain": [pdu(&outlier)] }),
    );
    let all = [pdu(&first), pdu(&second), pdu(&last)];
    ok(neighbour.push(&server, "2", &all).await);
    until_found(&alice, &room, &last).await;
    for event in [&rejected, &outlier, &first, &second] {
        assert!(!finds(&alice, &room, event).await);
    }
    check(&server);
}

#[tokio::test]
async fn what_waits_for_a_silent_server_outlives_a_restart() {
    let (server, alice, room, neighbour, mut elsewhere) = shared().await;
    let first = elsewhere.say(&neighbour, BOB, "first");
    let second = elsewhere.say(&neighbour, BOB, "second");
    neighbour.answers(MISSING, StatusCode::BAD_GATEWAY, "");
    let asked = neighbour.asked_for(MISSING);
    ok(neighbour.push(&server, "1", &[pdu(&second)]).await);
    until(async || neighbour.asked_for(MISSING) > asked).await;
    assert!(!finds(&alice, &room, &second).await);
    check(&server);
    server.stop().await;
    let server = server.restart();
    let events = json!({ "events": [pdu(&first)] });
    neighbour.answers(MISSING, StatusCode::OK, events);
    server.services.federation.resume();
    until_found(&alice, &room, &second).await;
    // It is tried again by itself, too.
    let third = elsewhere.say(&neighbour, BOB, "third");
    let fourth = elsewhere.say(&neighbour, BOB, "fourth");
    neighbour.answers(MISSING, StatusCode::BAD_GATEWAY, "");
    let asked = neighbour.asked_for(MISSING);
    ok(neighbour.push(&server, "2", &[pdu(&fourth)]).await);
    until(async || neighbour.asked_for(MISSING) > asked).await;
    neighbour.answers(MISSING, StatusCode::OK, json!({ "events": [pdu(&third)] }));
    until(async || {
        server.clock.advance(Duration::from_secs(3));
        finds(&alice, &room, &fourth).await
    })
    .await;
    check(&server);
}

#[tokio::test]
async fn who_knows_nothing_of_an_event_does_not_answer_for_a_silent_server() {
    const CAROL: &str = "@carol:c.example";
    let (server, alice, room, neighbour, mut elsewhere) = shared().await;
    let other = Neighbour::new(&server.lan, "c.example", 2);
    let join = json!({ "membership": "join" });
    let join = elsewhere.add(&other, CAROL, "m.room.member", Some(CAROL), join);
    ok(neighbour.push(&server, "1", &[pdu(&join)]).await);
    until_found(&alice, &room, &join).await;
    let first = elsewhere.say(&neighbour, BOB, "first");
    let second = elsewhere.say(&neighbour, BOB, "second");
    neighbour.answers(MISSING, StatusCode::BAD_GATEWAY, "");
    let was_asked = Arc::new(AtomicBool::new(false));
    let asked = was_asked.clone();
    other.computes(MISSING, move |_| {
        asked.store(true, Ordering::Relaxed);
        json!({ "events": [] }).to_string()
    });
    ok(neighbour.push(&server, "2", &[pdu(&second)]).await);
    until(async || was_asked.load(Ordering::Relaxed)).await;
    neighbour.answers(MISSING, StatusCode::OK, json!({ "events": [pdu(&first)] }));
    until(async || {
        server.clock.advance(Duration::from_secs(3));
        finds(&alice, &room, &second).await
    })
    .await;
    check(&server);
}

#[tokio::test]
async fn a_server_that_never_answers_stalls_no_other_room() {
    let (server, alice, room, neighbour, mut elsewhere) = shared().await;
    let other = Room::new(&alice, "shared").await;
    let silent = Neighbour::new(&server.lan, "c.example", 2);
    let mut theirs = Elsewhere::joined(&server, &other, &silent, "@carol:c.example").await;
    silent.answers("/_matrix/federation/v1/", StatusCode::IM_A_TEAPOT, "");
    theirs.say(&silent, "@carol:c.example", "lost");
    let stuck = theirs.say(&silent, "@carol:c.example", "stuck");
    ok(silent.push(&server, "1", &[pdu(&stuck)]).await);
    let message = elsewhere.say(&neighbour, BOB, "hello");
    ok(neighbour.push(&server, "1", &[pdu(&message)]).await);
    assert!(finds(&alice, &room, &message).await);
    // Nor what anybody here says in that room.
    let body = json!({ "msgtype": "m.text", "body": "still here" });
    ok(other.put(&alice, "send/m.room.message/1", body).await);
    assert!(!finds(&alice, &other, &stuck).await);
    check(&server);
}

#[tokio::test]
async fn what_waits_for_a_server_is_tried_when_it_is_heard_of() {
    let (server, alice, room, neighbour, mut elsewhere) = shared().await;
    let first = elsewhere.say(&neighbour, BOB, "first");
    let second = elsewhere.say(&neighbour, BOB, "second");
    neighbour.answers(MISSING, StatusCode::BAD_GATEWAY, "");
    let mut asked = neighbour.asked();
    ok(neighbour.push(&server, "1", &[pdu(&second)]).await);
    for seconds in [3, 11, 31, 61] {
        until(async || neighbour.asked() > asked).await;
        asked = neighbour.asked();
        tokio::time::sleep(Duration::from_millis(60)).await;
        server.clock.advance(Duration::from_secs(seconds));
    }
    until(async || neighbour.asked() > asked).await;
    tokio::time::sleep(Duration::from_millis(60)).await;
    // It would be tried in five minutes.
    server.clock.advance(Duration::from_secs(2));
    neighbour.answers(MISSING, StatusCode::OK, json!({ "events": [pdu(&first)] }));
    let path = "/_matrix/federation/v1/query/profile?user_id=@alice:localhost";
    ok(neighbour.get(&server, path).await);
    until_found(&alice, &room, &second).await;
    check(&server);
}

#[tokio::test]
async fn an_event_is_not_given_up_because_its_room_is_busy() {
    let (server, alice, room, neighbour, mut elsewhere) = shared().await;
    let ends = elsewhere.ends.clone();
    let first = elsewhere.say(&neighbour, BOB, "first");
    let second = elsewhere.say(&neighbour, BOB, "second");
    elsewhere.ends = ends;
    neighbour.answers(MISSING, StatusCode::BAD_GATEWAY, "");
    ok(neighbour.push(&server, "0", &[pdu(&second)]).await);
    for number in 1..12 {
        // What follows what is here waits for nobody.
        let event = elsewhere.say(&neighbour, BOB, "in between");
        ok(neighbour
            .push(&server, &number.to_string(), &[pdu(&event)])
            .await);
        assert!(finds(&alice, &room, &event).await);
        tokio::time::sleep(Duration::from_millis(30)).await;
        server.clock.advance(Duration::from_secs(100));
    }
    neighbour.answers(MISSING, StatusCode::OK, json!({ "events": [pdu(&first)] }));
    until(async || {
        server.clock.advance(Duration::from_secs(60));
        finds(&alice, &room, &second).await
    })
    .await;
    check(&server);
}

#[tokio::test]
async fn one_server_causes_few_fetches_at_a_time() {
    let (server, alice, room, neighbour, mut elsewhere) = shared().await;
    let silent = Neighbour::new(&server.lan, "c.example", 2);
    let carol = "@carol:c.example";
    let mut stuck = Vec::new();
    for number in 0..20 {
        let other = Room::new(&alice, "shared").await;
        let mut theirs = Elsewhere::of(&server, &other).await;
        let content = json!({ "membership": "join" });
        let join = theirs.add(&silent, carol, "m.room.member", Some(carol), content);
        ok(silent
            .push(&server, &format!("join{number}"), &[pdu(&join)])
            .await);
        theirs.say(&silent, carol, "lost");
        stuck.push((theirs.say(&silent, carol, "stuck"), other));
    }
    silent.answers(MISSING, StatusCode::IM_A_TEAPOT, "");
    let before = silent.asked();
    let events: Vec<_> = stuck.iter().map(|(event, _)| pdu(event)).collect();
    ok(silent.push(&server, "all", &events).await);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(silent.asked() - before, 8);
    // Others are served meanwhile.
    let first = elsewhere.say(&neighbour, BOB, "first");
    let second = elsewhere.say(&neighbour, BOB, "second");
    neighbour.answers(MISSING, StatusCode::OK, json!({ "events": [pdu(&first)] }));
    ok(neighbour.push(&server, "1", &[pdu(&second)]).await);
    until_found(&alice, &room, &second).await;
    // The rest comes when these have ended.
    silent.answers(MISSING, StatusCode::OK, "{\"events\":[]}");
    until(async || {
        server.clock.advance(Duration::from_secs(10));
        silent.asked() - before >= 20
    })
    .await;
    check(&server);
}

#[tokio::test]
async fn a_redaction_may_come_before_its_event() {
    let (server, alice, room, neighbour, mut elsewhere) = shared().await;
    neighbour.answers(
        "/_matrix/federation/v1/send/",
        StatusCode::OK,
        "{\"pdus\":{}}",
    );
    let unseen = elsewhere.say(&neighbour, BOB, "unseen");
    let path = format!("redact/{}/1", id(&unseen));
    let redaction = ok(room.put(&alice, &path, json!({ "reason": "spam" })).await);
    until(async || !neighbour.put().is_empty()).await;
    let sent = &neighbour.put()[0].1["pdus"][0];
    assert_eq!(sent["type"], "m.room.redaction");
    assert_eq!(sent["content"]["redacts"], json!(id(&unseen)));
    ok(neighbour.push(&server, "1", &[pdu(&unseen)]).await);
    let shown = ok(room.get(&alice, &format!("event/{}", id(&unseen))).await);
    assert_eq!(shown["content"], json!({}));
    let because = &shown["unsigned"]["redacted_because"]["event_id"];
    assert_eq!(*because, redaction["event_id"]);
    // Where nobody else is there can be no such event.
    let alone = Room::new(&alice, "shared").await;
    refused(
        alone.put(&alice, &path, json!({})).await,
        404,
        "M_NOT_FOUND",
    );
    check(&server);
}
