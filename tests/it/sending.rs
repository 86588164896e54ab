//! "Sending events to a room".

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    room::Room,
    server::{Client, TestServer, ok, refused, text},
};

/// Sends a message and gives its id.
async fn send(room: &Room, who: &Client, rest: &str) -> String {
    let answer = room.put(who, rest, json!({ "body": "hello" })).await;
    text(&ok(answer), "event_id")
}

#[tokio::test]
async fn a_transaction_makes_one_event() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let (phone, bob) = (server.log_in("alice").await, server.register("bob").await);
    let room = Room::new(&alice, "shared").await;
    let other_room = Room::new(&alice, "shared").await;
    room.does(&bob, "join").await;
    let path = "send/m.room.message/txn";
    let first = send(&room, &alice, path).await;
    assert_eq!(send(&room, &alice, path).await, first);
    // Also when the client has thought better of what to say.
    let other = ok(room.put(&alice, path, json!({ "body": "other" })).await);
    assert_eq!(text(&other, "event_id"), first);

    let mut all = vec![
        first,
        send(&room, &phone, path).await,
        send(&room, &bob, path).await,
        send(&other_room, &alice, path).await,
        send(&room, &alice, "send/org.example.other/txn").await,
        send(&room, &alice, "send/m.room.message/other").await,
        // A name with a slash is not another type.
        send(&room, &alice, "send/a%2Fb/c").await,
        send(&room, &alice, "send/a/b%2Fc").await,
    ];
    let count = all.len();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), count);

    let target = room.say(&alice, "wrong").await;
    let path = format!("redact/{target}/txn");
    let first = text(&ok(room.put(&alice, &path, json!({})).await), "event_id");
    let again = text(&ok(room.put(&alice, &path, json!({})).await), "event_id");
    assert_eq!(first, again);
    let restarted = server.restart();
    let again = text(&ok(room.put(&alice, &path, json!({})).await), "event_id");
    assert_eq!(first, again, "also after a restart");
    drop(restarted);
}

#[tokio::test]
async fn a_retry_is_answered_after_leaving_too() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = Room::new(&alice, "shared").await;
    room.does(&bob, "join").await;
    let path = "send/m.room.message/txn";
    let first = send(&room, &bob, path).await;
    room.does_to(&alice, "kick", &bob).await;
    assert_eq!(send(&room, &bob, path).await, first);
    refused(
        room.put(&bob, "send/m.room.message/new", json!({})).await,
        403,
        "M_FORBIDDEN",
    );
}

#[tokio::test]
async fn what_can_not_be_an_event() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let room = Room::new(&alice, "shared").await;
    let message = room.path("send/m.room.message/1");
    let state = room.path("state/org.example.state/key");
    let deep = format!("{}{}", "{\"a\":".repeat(200), "1") + &"}".repeat(200);
    for path in [&message, &state] {
        for (body, errcode) in [
            ("{\"a\":1.5}", "M_BAD_JSON"),
            ("{\"a\":1e3}", "M_BAD_JSON"),
            ("{\"a\":-1.0}", "M_BAD_JSON"),
            ("{\"a\":9007199254740992}", "M_BAD_JSON"),
            ("{\"a\":[{\"b\":-9007199254740992}]}", "M_BAD_JSON"),
            ("{\"a\":99999999999999999999999}", "M_BAD_JSON"),
            ("[]", "M_BAD_JSON"),
            ("\"text\"", "M_BAD_JSON"),
            ("null", "M_BAD_JSON"),
            (&deep, "M_BAD_JSON"),
            ("{", "M_NOT_JSON"),
            ("{} {}", "M_NOT_JSON"),
            ("", "M_NOT_JSON"),
        ] {
            let (status, _, answer) = alice.raw(Method::PUT, path, &[], body.to_owned()).await;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{body}: {answer}");
            assert!(answer.contains(errcode), "{body}: {answer}");
        }
        let large = json!({ "body": "x".repeat(66_000) });
        refused(alice.put(path, large).await, 413, "M_TOO_LARGE");
    }
    // The greatest integers and a text close to the limit can be.
    let fits = json!({ "a": 9_007_199_254_740_991_i64, "b": -9_007_199_254_740_991_i64, "c": "x".repeat(60_000) });
    ok(alice.put(&message, fits).await);
    let long = "t".repeat(256);
    for path in [
        format!("send/{long}/2"),
        format!("state/{long}"),
        format!("state/a/{long}"),
    ] {
        refused(room.put(&alice, &path, json!({})).await, 413, "M_TOO_LARGE");
    }
    for kind in ["m.room.create", "m.room.member"] {
        let (status, body) = room
            .put(
                &alice,
                &format!("send/{kind}/3"),
                json!({ "membership": "join" }),
            )
            .await;
        assert!(matches!(status.as_u16(), 400 | 403), "{kind}: {body}");
    }
}

#[tokio::test]
async fn state_is_set_under_its_key() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = Room::new(&alice, "shared").await;
    room.does(&bob, "join").await;
    let mut set = Vec::new();
    for path in ["state/m.room.topic", "state/m.room.topic/"] {
        let answer = ok(room.put(&alice, path, json!({ "topic": "same" })).await);
        set.push(text(&answer, "event_id"));
    }
    assert_eq!(set[0], set[1], "what is so already is not set again");
    let answer = ok(room
        .put(&alice, "state/m.room.topic/", json!({ "topic": "other" }))
        .await);
    assert_ne!(text(&answer, "event_id"), set[0]);
    let slash = "state/org.example.a/with%2Fslash";
    ok(room.put(&alice, slash, json!({ "a": 1 })).await);
    assert_eq!(ok(room.get(&alice, slash).await), json!({ "a": 1 }));

    let keyed = |key: &str| format!("state/org.example.a/{key}");
    let levels = json!({ "users": {}, "state_default": 0 });
    let levels = match alice.get(&room.path("state/m.room.power_levels")).await {
        (_, old) if old["users"][&alice.user_id].is_i64() => {
            json!({ "users": { &*alice.user_id: 100 }, "state_default": 0 })
        }
        _ => levels,
    };
    room.set(&alice, "m.room.power_levels", levels).await;
    ok(room.put(&bob, &keyed(&bob.user_id), json!({})).await);
    // A key that is somebody's id is theirs.
    refused(
        room.put(&bob, &keyed(&alice.user_id), json!({})).await,
        403,
        "M_FORBIDDEN",
    );
    refused(
        room.put(&alice, "state/m.room.create", json!({ "a": 1 }))
            .await,
        400,
        "M_INVALID_PARAM",
    );
    for bad in [
        json!({ "users": [] }),
        json!({ "users": { "nobody": 5 } }),
        json!({ "users_default": "much" }),
        json!({ "events": { "a": "b" } }),
    ] {
        let (status, body) = room
            .put(&alice, "state/m.room.power_levels", bad.clone())
            .await;
        assert!(matches!(status.as_u16(), 400 | 403), "{bad}: {body}");
    }
}

#[tokio::test]
async fn only_members_send() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = Room::new(&alice, "shared").await;
    let unknown = Room("!unknown:localhost".to_owned());
    let mut answers = Vec::new();
    for (room, who) in [(&room, &bob), (&unknown, &bob), (&unknown, &alice)] {
        for path in [
            "send/m.room.message/1",
            "state/m.room.topic",
            "redact/$event/1",
        ] {
            let (status, body) = room.put(who, path, json!({})).await;
            assert_eq!(status, 403, "{path}: {body}");
            answers.push(body);
        }
    }
    assert!(
        answers.iter().all(|answer| *answer == answers[0]),
        "whether the room exists is not told: {answers:?}"
    );
    refused(
        room.put(&server.anonymous(), "send/m.room.message/1", json!({}))
            .await,
        401,
        "M_MISSING_TOKEN",
    );
    let silent = json!({ "users": { &*alice.user_id: 100 }, "events_default": 50 });
    let wish = json!({
        "preset": "public_chat", "room_version": "11", "power_level_content_override": silent,
    });
    let silent = Room::create(&alice, wish).await;
    silent.does(&bob, "join").await;
    refused(
        silent.put(&bob, "send/m.room.message/1", json!({})).await,
        403,
        "M_FORBIDDEN",
    );
}

#[tokio::test]
async fn aliases_lead_to_their_room() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let room = Room::create(&alice, json!({ "room_alias_name": "own" })).await;
    Room::create(&alice, json!({ "room_alias_name": "other" })).await;
    let path = "state/m.room.canonical_alias";
    for (content, errcode) in [
        (json!({ "alias": "#other:localhost" }), "M_BAD_ALIAS"),
        (json!({ "alias": "#none:localhost" }), "M_BAD_ALIAS"),
        (json!({ "alias": "none" }), "M_INVALID_PARAM"),
        (json!({ "alias": 5 }), "M_INVALID_PARAM"),
        (
            json!({ "alt_aliases": ["#other:localhost"] }),
            "M_BAD_ALIAS",
        ),
        (json!({ "alt_aliases": ["none"] }), "M_INVALID_PARAM"),
        (json!({ "alt_aliases": [5] }), "M_INVALID_PARAM"),
        (
            json!({ "alt_aliases": "#own:localhost" }),
            "M_INVALID_PARAM",
        ),
    ] {
        let (status, body) = room.put(&alice, path, content.clone()).await;
        assert_eq!(
            (status.as_u16(), &body["errcode"]),
            (400, &json!(errcode)),
            "{content}: {body}"
        );
    }
    for content in [
        json!({ "alias": "#own:localhost", "alt_aliases": ["#own:localhost"] }),
        json!({ "alias": Value::Null, "alt_aliases": [] }),
        json!({}),
    ] {
        ok(room.put(&alice, path, content).await);
    }
}

#[tokio::test]
async fn nobody_reacts_twice_in_the_same_way() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = Room::new(&alice, "shared").await;
    room.does(&bob, "join").await;
    let said = room.say(&alice, "hello").await;
    let reaction = |key: &str| json!({ "m.relates_to": { "rel_type": "m.annotation", "event_id": said, "key": key } });
    let first = room.send(&alice, "m.reaction", reaction("a")).await;
    refused(
        room.put(&alice, "send/m.reaction/again", reaction("a"))
            .await,
        400,
        "M_DUPLICATE_ANNOTATION",
    );
    room.send(&alice, "m.reaction", reaction("b")).await;
    room.send(&bob, "m.reaction", reaction("a")).await;
    // Taken back, it can be given again.
    ok(room
        .put(&alice, &format!("redact/{first}/1"), json!({}))
        .await);
    room.send(&alice, "m.reaction", reaction("a")).await;

    let reply = room.relate(&bob, "m.thread", &said).await;
    let nested = json!({ "m.relates_to": { "rel_type": "m.thread", "event_id": reply } });
    refused(
        room.put(&bob, "send/m.room.message/nested", nested).await,
        400,
        "M_UNKNOWN",
    );
    // What relates to nothing that is known is sent all the same.
    for odd in [
        json!({ "m.relates_to": 5 }),
        json!({ "m.relates_to": { "rel_type": 5, "event_id": 5 } }),
        json!({ "m.relates_to": { "rel_type": "m.thread", "event_id": "nothing" } }),
        json!({ "m.relates_to": { "rel_type": "m.thread", "event_id": "$unknown" } }),
    ] {
        room.send(&bob, "m.room.message", odd).await;
    }
}

#[tokio::test]
async fn creators_have_no_level() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let wish = json!({
        "room_version": "12",
        "creation_content": { "additional_creators": [bob.user_id] },
    });
    let room = Room::create(&alice, wish).await;
    for creator in [&alice, &bob] {
        let levels = json!({ "users": { &*creator.user_id: 100 } });
        refused(
            room.put(&alice, "state/m.room.power_levels", levels).await,
            400,
            "M_BAD_JSON",
        );
    }
    let levels = json!({ "users": { "@carol:localhost": 9_007_199_254_740_991_i64 } });
    ok(room.put(&alice, "state/m.room.power_levels", levels).await);
}
