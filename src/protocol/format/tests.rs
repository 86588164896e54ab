//! Every shape is the JSON that the specification shows, whatever the room version and the content.

use ruma::{EventId, RoomId, RoomVersionId};
use serde_json::{Value, json};

use super::*;
use crate::protocol::{integrity, version};

fn event(version: &RoomVersionId, object: &Value) -> Event {
    let object = integrity::parse_object(&object.to_string()).expect("canonical");
    let id = EventId::parse("$one").expect("an id");
    let room = RoomId::parse("!room:example.org").expect("an id");
    Event::new(id, room, &object, version::rules(version).expect("served")).expect("an event")
}

fn json_of(text: &str) -> Value {
    serde_json::from_str(text).expect(text)
}

fn topic() -> Value {
    json!({
        "type": "m.room.topic", "sender": "@a:example.org", "state_key": "", "origin_server_ts": 5,
        "content": { "topic": "a \"quoted\" \\ \u{e4}\n\u{1}" }, "room_id": "!room:example.org", "depth": 2,
        "prev_events": ["$zero"], "auth_events": [], "hashes": { "sha256": "x" }, "signatures": { "a": { "b": "c" } },
    })
}

#[test]
fn a_state_event_in_every_shape() {
    let event = event(&RoomVersionId::V11, &topic());
    let seen = json!({
        "type": "m.room.topic", "sender": "@a:example.org", "state_key": "", "origin_server_ts": 5,
        "content": topic()["content"], "event_id": "$one",
    });
    assert_eq!(
        json_of(&client(&event, Shape::Sync, &Unsigned::default())),
        seen
    );
    let mut with_room = seen.clone();
    with_room["room_id"] = json!("!room:example.org");
    assert_eq!(
        json_of(&client(&event, Shape::Client, &Unsigned::default())),
        with_room
    );
    assert_eq!(json_of(&federation(&event)), topic());
    let expect = json!({
        "type": "m.room.topic", "sender": "@a:example.org", "state_key": "", "content": topic()["content"],
    });
    assert_eq!(json_of(&stripped(&event)), expect);
}

#[test]
fn unsigned_has_what_is_known() {
    let event = event(&RoomVersionId::V11, &topic());
    let unsigned =
        |unsigned: &Unsigned| json_of(&client(&event, Shape::Sync, unsigned))["unsigned"].clone();
    assert_eq!(unsigned(&Unsigned::default()), Value::Null);
    let age = Unsigned {
        age: Some(-3),
        ..Unsigned::default()
    };
    assert_eq!(unsigned(&age), json!({ "age": -3 }));
    let all = Unsigned {
        age: Some(7),
        transaction_id: Some("a\"b".to_owned()),
        delay_id: Some("later".to_owned()),
        membership: Some("join".to_owned()),
        prev_content: Some("{\"topic\":\"old\"}".to_owned()),
        prev_sender: Some("@b:example.org".to_owned()),
        replaces_state: Some(EventId::parse("$zero").expect("an id")),
        redacted_because: Some("{\"x\":1}".to_owned()),
        relations: Some("{}".to_owned()),
    };
    let expect = json!({
        "age": 7, "transaction_id": "a\"b", "org.matrix.msc4140.delay_id": "later", "membership": "join", "prev_content": { "topic": "old" },
        "prev_sender": "@b:example.org", "replaces_state": "$zero", "redacted_because": { "x": 1 }, "m.relations": {},
    });
    assert_eq!(unsigned(&all), expect);
}

#[test]
fn clients_find_what_is_redacted_in_both_places() {
    let old = json!({ "type": "m.room.redaction", "sender": "@a:example.org", "origin_server_ts": 5,
        "redacts": "$gone", "content": { "reason": "spam" } });
    let bare = json!({ "type": "m.room.redaction", "sender": "@a:example.org", "origin_server_ts": 5,
        "redacts": "$gone", "content": {} });
    let new = json!({ "type": "m.room.redaction", "sender": "@a:example.org", "origin_server_ts": 5,
        "content": { "reason": "spam", "redacts": "$gone" } });
    for (version, object) in [
        (RoomVersionId::V10, old),
        (RoomVersionId::V10, bare),
        (RoomVersionId::V11, new),
    ] {
        let event = event(&version, &object);
        let seen = json_of(&client(&event, Shape::Sync, &Unsigned::default()));
        assert_eq!(seen["redacts"], "$gone", "{object}");
        assert_eq!(seen["content"]["redacts"], "$gone", "{object}");
        assert_eq!(
            seen["content"]["reason"], object["content"]["reason"],
            "{object}"
        );
        assert_eq!(
            json_of(&federation(&event)),
            object,
            "servers see what was signed"
        );
    }
}

#[test]
fn texts_are_written_as_serde_writes_them() {
    for text in [
        "",
        "plain",
        "\u{e4}\u{1f600}",
        "\"",
        "\\",
        "\n\t\u{0}\u{1f}\u{7f}",
    ] {
        let mut out = String::new();
        push_string(&mut out, text);
        assert_eq!(out, serde_json::to_string(text).expect("a text"));
    }
}
