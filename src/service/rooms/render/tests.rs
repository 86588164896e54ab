//! What a client is told with an event, and what not.

use std::time::Duration;

use ruma::OwnedEventId;
use serde_json::{Value, json};

use super::*;
use crate::service::{
    Requester,
    rooms::testing::{Node, Room},
};

/// The event as this user gets it.
fn shown(room: &Room<'_>, user: &Requester, id: &OwnedEventId) -> Value {
    let view = room.node.view();
    let sight = room
        .node
        .services
        .rooms
        .sight(&view, room.nid, user)
        .unwrap();
    let seen = sight.visible(vec![room.event(id)]).unwrap();
    let mut out = String::new();
    sight.show_all(&mut out, &seen, Shape::Client).unwrap();
    serde_json::from_str(&out).expect(&out)
}

fn relations(room: &Room<'_>, user: &Requester, id: &OwnedEventId) -> Value {
    shown(room, user, id)["unsigned"]["m.relations"].clone()
}

#[tokio::test]
async fn what_is_known_besides() {
    let node = Node::new();
    let (alice, bob) = (node.user("alice"), node.user("bob"));
    let room = node.room(&alice, "shared").await;
    room.member(&bob, &bob, "join").await;
    let said = room.say(&alice, "hello").await;
    node.clock.advance(Duration::from_millis(250));

    let own = shown(&room, &alice, &said);
    assert_eq!(own["event_id"], said.as_str());
    assert_eq!(own["room_id"], room.id.as_str());
    assert_eq!(own["unsigned"]["age"], 250);
    assert_eq!(own["unsigned"]["membership"], "join");
    assert!(own["unsigned"]["transaction_id"].is_string());
    let elsewhere = Requester {
        device_id: Some("OTHER".to_owned()),
        ..alice.clone()
    };
    let same_name = Requester {
        device_id: alice.device_id.clone(),
        ..bob.clone()
    };
    for user in [&bob, &elsewhere, &same_name] {
        assert_eq!(
            shown(&room, user, &said)["unsigned"],
            json!({ "age": 250, "membership": "join" })
        );
    }

    let first = room
        .state(&alice, "m.room.topic", "", json!({ "topic": "a" }))
        .await;
    let second = room
        .state(&alice, "m.room.topic", "", json!({ "topic": "b" }))
        .await;
    let unsigned = &shown(&room, &bob, &second)["unsigned"];
    assert_eq!(unsigned["prev_content"], json!({ "topic": "a" }));
    assert_eq!(unsigned["prev_sender"], "@alice:localhost");
    assert_eq!(unsigned["replaces_state"], first.as_str());

    let redaction = room.redact(&alice, &said).await;
    let emptied = shown(&room, &bob, &said);
    assert_eq!(emptied["content"], json!({}));
    let because = &emptied["unsigned"]["redacted_because"];
    assert_eq!(because["event_id"], redaction.as_str());
    assert_eq!(because["content"]["redacts"], said.as_str());
}

#[tokio::test]
async fn the_newest_valid_edit_comes_with_an_event() {
    let node = Node::new();
    let (alice, bob) = (node.user("alice"), node.user("bob"));
    let room = node.room(&alice, "shared").await;
    room.member(&bob, &bob, "join").await;
    let said = room.say(&alice, "hello").await;
    assert_eq!(relations(&room, &bob, &said), Value::Null);

    let edit = room.relate(&alice, "m.replace", &said, "hallo").await;
    let by_other = room.relate(&bob, "m.replace", &said, "HA").await;
    let wrong_type = json!({
        "m.new_content": {}, "m.relates_to": { "rel_type": "m.replace", "event_id": said },
    });
    room.send(&alice, "org.example.note", wrong_type).await;
    let empty = json!({ "m.relates_to": { "rel_type": "m.replace", "event_id": said } });
    room.send(&alice, "m.room.message", empty).await;
    let bundle = relations(&room, &bob, &said);
    assert_eq!(bundle["m.replace"]["event_id"], edit.as_str());
    assert_eq!(
        bundle["m.replace"]["content"]["m.new_content"]["body"],
        "hallo"
    );

    node.clock.advance(Duration::from_millis(1));
    let newer = room.relate(&alice, "m.replace", &said, "hi").await;
    assert_eq!(
        relations(&room, &bob, &said)["m.replace"]["event_id"],
        newer.as_str()
    );
    // An edit has no edits.
    room.relate(&alice, "m.replace", &newer, "?").await;
    assert_eq!(relations(&room, &bob, &newer), Value::Null);

    room.redact(&alice, &newer).await;
    assert_eq!(
        relations(&room, &bob, &said)["m.replace"]["event_id"],
        edit.as_str()
    );
    room.redact(&alice, &edit).await;
    assert_eq!(
        relations(&room, &bob, &said),
        Value::Null,
        "not even {by_other}"
    );
    room.relate(&alice, "m.replace", &said, "again").await;
    room.redact(&alice, &said).await;
    assert_eq!(
        relations(&room, &bob, &said),
        Value::Null,
        "nothing edits what is gone"
    );
}

#[tokio::test]
async fn a_thread_is_summed_up_at_its_root() {
    let node = Node::new();
    let (alice, bob, eve) = (node.user("alice"), node.user("bob"), node.user("eve"));
    let room = node.room(&alice, "shared").await;
    for user in [&bob, &eve] {
        room.member(user, user, "join").await;
    }
    let root = room.say(&alice, "root").await;
    let first = room.relate(&bob, "m.thread", &root, "1").await;
    room.member(&eve, &eve, "leave").await;
    let second = room.relate(&bob, "m.thread", &root, "2").await;
    let edit = room.relate(&bob, "m.replace", &second, "two").await;

    for (user, participated) in [(&alice, true), (&bob, true)] {
        let thread = &relations(&room, user, &root)["m.thread"];
        assert_eq!(thread["count"], 2);
        assert_eq!(thread["current_user_participated"], participated);
        assert_eq!(thread["latest_event"]["event_id"], second.as_str());
        let latest = &thread["latest_event"]["unsigned"]["m.relations"];
        assert_eq!(latest["m.replace"]["event_id"], edit.as_str());
    }
    // Who has left gets the thread as it was.
    let thread = &relations(&room, &eve, &root)["m.thread"];
    assert_eq!(thread["count"], 1);
    assert_eq!(thread["current_user_participated"], false);
    assert_eq!(thread["latest_event"]["event_id"], first.as_str());

    room.redact(&bob, &second).await;
    let thread = &relations(&room, &alice, &root)["m.thread"];
    assert_eq!(thread["count"], 1);
    assert_eq!(thread["latest_event"]["event_id"], first.as_str());
    room.redact(&alice, &root).await;
    assert_eq!(
        relations(&room, &alice, &root)["m.thread"]["count"],
        1,
        "a thread outlives its root"
    );
}

#[tokio::test]
async fn references_are_listed_and_reactions_are_not() {
    let node = Node::new();
    let alice = node.user("alice");
    let room = node.room(&alice, "shared").await;
    let said = room.say(&alice, "hello").await;
    room.relate(&alice, "m.annotation", &said, "+1").await;
    room.relate(&alice, "org.example.other", &said, "?").await;
    assert_eq!(relations(&room, &alice, &said), Value::Null);
    let one = room.relate(&alice, "m.reference", &said, "1").await;
    let two = room.relate(&alice, "m.reference", &said, "2").await;
    let expect = json!({ "m.reference": { "chunk": [{ "event_id": one }, { "event_id": two }] } });
    assert_eq!(relations(&room, &alice, &said), expect);
}
