//! "Receipts" and "Fully read markers".

use http::{Method, StatusCode};
use kontor::store::schema::ACCOUNT_DATA_CHANGES;
use serde_json::{Value, json};

use crate::{
    room::Room,
    server::{Answer, Client, TestServer, ok, refused, text},
};

async fn reads(room: &Room, who: &Client, kind: &str, event: &str, body: Value) -> Answer {
    who.post(&room.path(&format!("receipt/{kind}/{event}")), body)
        .await
}

/// What a sync says of the room: its receipts and its fully read marker.
async fn sync(who: &Client, room: &Room, since: &mut String) -> (Value, Value) {
    let answer = ok(who.get(&format!("/_matrix/client/v3/sync?{since}")).await);
    *since = format!("since={}", text(&answer, "next_batch"));
    let room = &answer["rooms"]["join"][&*room.0];
    let content = |events: &Value, kind: &str| {
        let events = events["events"].as_array().cloned().unwrap_or_default();
        let event = events.into_iter().find(|event| event["type"] == kind);
        event.map_or(Value::Null, |event| event["content"].clone())
    };
    (
        content(&room["ephemeral"], "m.receipt"),
        content(&room["account_data"], "m.fully_read"),
    )
}

#[tokio::test]
async fn a_receipt_moves_forward_and_everybody_sees_it() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = Room::new(&alice, "shared").await;
    room.does(&bob, "join").await;
    let (first, second) = (room.say(&alice, "1").await, room.say(&alice, "2").await);
    let (mut since, mut private) = (String::new(), String::new());
    sync(&alice, &room, &mut since).await;
    sync(&bob, &room, &mut private).await;

    ok(reads(&room, &bob, "m.read", &second, json!({})).await);
    let seen = sync(&alice, &room, &mut since).await.0;
    assert!(
        seen[&*second]["m.read"][&*bob.user_id]["ts"].is_u64(),
        "{seen}"
    );
    ok(reads(&room, &bob, "m.read", &first, json!({})).await);
    assert_eq!(
        sync(&alice, &room, &mut since).await.0,
        Value::Null,
        "never backwards"
    );

    let third = room.say(&alice, "3").await;
    ok(reads(&room, &bob, "m.read", &third, json!({})).await);
    let all = sync(&alice, &room, &mut String::new()).await.0;
    assert_eq!(
        all.as_object().map(serde_json::Map::len),
        Some(1),
        "the old one is gone: {all}"
    );

    // A private receipt is nobody else's business.
    let fourth = room.say(&alice, "4").await;
    sync(&alice, &room, &mut since).await;
    sync(&bob, &room, &mut private).await;
    ok(reads(&room, &bob, "m.read.private", &fourth, json!({})).await);
    assert_eq!(sync(&alice, &room, &mut since).await.0, Value::Null);
    assert!(
        !sync(&alice, &room, &mut String::new())
            .await
            .0
            .to_string()
            .contains("private")
    );
    let own = sync(&bob, &room, &mut private).await.0;
    assert!(
        own[&*fourth]["m.read.private"][&*bob.user_id].is_object(),
        "{own}"
    );
}

#[tokio::test]
async fn receipts_in_threads() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let room = Room::new(&alice, "shared").await;
    let root = room.say(&alice, "root").await;
    let reply = room.relate(&alice, "m.thread", &root).await;
    let reaction = room.relate(&alice, "m.annotation", &reply).await;
    let reference = room.relate(&alice, "m.reference", &root).await;
    let beside = room.relate(&alice, "m.annotation", &reference).await;
    let other = room.say(&alice, "other").await;
    let mut since = String::new();
    sync(&alice, &room, &mut since).await;
    for (event, thread) in [
        (&reply, &*root),
        (&reaction, &*root),
        // What belongs to the root is read in its thread as well as outside.
        (&reference, &*root),
        (&beside, &*root),
        (&root, "main"),
        (&beside, "main"),
        (&other, "main"),
    ] {
        ok(reads(
            &room,
            &alice,
            "m.read",
            event,
            json!({ "thread_id": thread }),
        )
        .await);
        let seen = sync(&alice, &room, &mut since).await.0;
        assert_eq!(
            seen[&**event]["m.read"][&*alice.user_id]["thread_id"], thread,
            "{seen}"
        );
    }
    let all = sync(&alice, &room, &mut String::new()).await.0;
    assert!(
        all[&*beside].is_object() && all[&*other].is_object(),
        "one in each: {all}"
    );
    for (event, thread) in [
        (&reply, "main"),
        (&other, &*root),
        (&reply, &*reference),
        (&reaction, &*reference),
        (&other, "nothing"),
        (&reply, "$x"),
    ] {
        let answer = reads(
            &room,
            &alice,
            "m.read",
            event,
            json!({ "thread_id": thread }),
        )
        .await;
        refused(answer, 400, "M_INVALID_PARAM");
    }
    let answer = reads(
        &room,
        &alice,
        "m.fully_read",
        &other,
        json!({ "thread_id": "main" }),
    )
    .await;
    refused(answer, 400, "M_INVALID_PARAM");
    refused(
        reads(&room, &alice, "m.other", &other, json!({})).await,
        400,
        "M_INVALID_PARAM",
    );
}

#[tokio::test]
async fn markers_are_set_together() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let room = Room::new(&alice, "shared").await;
    let (first, second) = (room.say(&alice, "1").await, room.say(&alice, "2").await);
    let mut since = String::new();
    sync(&alice, &room, &mut since).await;
    let path = room.path("read_markers");
    ok(alice.post(&path, json!({})).await);
    // Old apps send nothing with a receipt, not even an empty object.
    let receipt = room.path(&format!("receipt/m.read/{first}"));
    let (status, ..) = alice.raw(Method::POST, &receipt, &[], "").await;
    assert_eq!(status, StatusCode::OK);
    let marks = json!({ "m.fully_read": second, "m.read": first, "m.read.private": second });
    ok(alice.post(&path, marks).await);
    let (receipts, marker) = sync(&alice, &room, &mut since).await;
    assert_eq!(marker, json!({ "event_id": second }));
    assert!(receipts[&*first]["m.read"].is_object(), "{receipts}");
    assert!(
        receipts[&*second]["m.read.private"].is_object(),
        "{receipts}"
    );

    ok(reads(&room, &alice, "m.fully_read", &first, json!({})).await);
    assert_eq!(
        sync(&alice, &room, &mut since).await,
        (Value::Null, Value::Null)
    );
    let third = room.say(&alice, "3").await;
    ok(reads(&room, &alice, "m.fully_read", &third, json!({})).await);
    let moved = json!({ "event_id": third });
    assert_eq!(sync(&alice, &room, &mut since).await.1, moved);
    assert_eq!(sync(&alice, &room, &mut String::new()).await.1, moved);

    // Whoever is behind needs only the newest of its changes.
    let view = server.services.store().view();
    let user = server.requester(&alice).nid;
    let changes = ACCOUNT_DATA_CHANGES.scan(&view, &(user,));
    let changes = changes.map(|row| row.expect("the row is whole").1.data_type);
    assert_eq!(changes.filter(|kind| kind == "m.fully_read").count(), 1);

    // One bad mark, and none is set.
    let marks = json!({ "m.read": third, "m.fully_read": "$unknown" });
    refused(alice.post(&path, marks).await, 404, "M_NOT_FOUND");
    assert_eq!(sync(&alice, &room, &mut since).await.0, Value::Null);
}

#[tokio::test]
async fn only_what_one_sees_is_read() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let eve = server.register("eve").await;
    let (room, other) = (
        Room::new(&alice, "joined").await,
        Room::new(&alice, "shared").await,
    );
    let unknown = Room("!unknown:localhost".to_owned());
    let (hidden, foreign) = (
        room.say(&alice, "hidden").await,
        other.say(&alice, "foreign").await,
    );
    room.does(&bob, "join").await;
    for kind in ["m.read", "m.read.private", "m.fully_read"] {
        for (room, who, event) in [(&room, &eve, &hidden), (&unknown, &alice, &hidden)] {
            refused(
                reads(room, who, kind, event, json!({})).await,
                403,
                "M_FORBIDDEN",
            );
        }
        for (who, event) in [(&alice, &*foreign), (&bob, &*hidden), (&alice, "$unknown")] {
            refused(
                reads(&room, who, kind, event, json!({})).await,
                404,
                "M_NOT_FOUND",
            );
        }
    }
    let seen = room.say(&alice, "seen").await;
    room.does(&bob, "leave").await;
    refused(
        reads(&room, &bob, "m.read", &seen, json!({})).await,
        403,
        "M_FORBIDDEN",
    );
    refused(
        bob.post(&room.path("read_markers"), json!({ "m.read": seen }))
            .await,
        403,
        "M_FORBIDDEN",
    );
}
