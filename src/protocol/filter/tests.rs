//! Filters as clients write them, good and bad, and what they let through.

use ruma::{MilliSecondsSinceUnixEpoch, owned_event_id, room_id, uint, user_id};

use super::*;
use crate::protocol::event::{Flags, Relation};

fn header(event_type: &str, sender: &str, room: &str) -> Header {
    Header {
        id: owned_event_id!("$x"),
        room_id: RoomId::parse(room).expect("a room id"),
        sender: UserId::parse(sender).expect("a user id"),
        event_type: event_type.into(),
        state_key: None,
        origin_server_ts: MilliSecondsSinceUnixEpoch(uint!(1)),
        depth: 1,
        redacts: None,
        relation: None,
        membership: None,
        flags: Flags::default(),
    }
}

#[test]
fn nothing_is_filtered_by_default() {
    for json in [
        "{}",
        r#"{"room":{"timeline":{}},"unknown":5}"#,
        r#"{"room":{"rooms":null,"include_leave":null}}"#,
    ] {
        let filter = Filter::from_json(json).expect(json);
        assert!(
            filter.room.timeline.allows_all() && filter.presence.allows_all(),
            "{json}"
        );
        assert!(
            filter.event_fields.is_all() && filter.event_format == EventFormat::Client,
            "{json}"
        );
        assert!(
            filter.room.allows_room(room_id!("!a:example.org")) && !filter.room.include_leave,
            "{json}"
        );
    }
}

#[test]
fn every_member_is_read() {
    let filter = Filter::from_json(
        r#"{
            "event_fields": ["content.body"], "event_format": "federation",
            "presence": { "limit": 1, "senders": ["@a:example.org"], "types": ["m.presence"] },
            "account_data": { "not_types": ["m.*"], "not_senders": ["@a:example.org"] },
            "room": {
                "rooms": ["!a:example.org"], "not_rooms": ["!b:example.org"], "include_leave": true,
                "account_data": { "limit": 2 }, "ephemeral": { "limit": 3 },
                "state": { "lazy_load_members": true, "include_redundant_members": true, "limit": 4 },
                "timeline": {
                    "limit": 5, "contains_url": true, "unread_thread_notifications": true,
                    "rooms": ["!c"], "not_rooms": ["!d"], "senders": [], "types": [],
                    "related_by_senders": ["@a:example.org"], "related_by_rel_types": ["m.thread"]
                }
            }
        }"#,
    )
    .expect("a good filter");
    assert_eq!(filter.event_format, EventFormat::Federation);
    assert!(!filter.event_fields.is_all());
    let limits = [
        &filter.room.account_data,
        &filter.room.ephemeral,
        &filter.room.state,
        &filter.room.timeline,
    ];
    assert_eq!(
        limits.map(|section| section.event.limit),
        [Some(2), Some(3), Some(4), Some(5)]
    );
    assert_eq!(filter.presence.limit, Some(1));
    assert!(
        filter
            .presence
            .allows(user_id!("@a:example.org"), "m.presence")
    );
    assert!(
        !filter
            .presence
            .allows(user_id!("@b:example.org"), "m.presence")
    );
    assert!(
        !filter.account_data.allows_type("m.tag") && filter.account_data.allows_type("org.tag")
    );
    assert!(filter.room.include_leave && filter.room.state.lazy_load_members);
    assert!(
        filter.room.state.include_redundant_members
            && filter.room.timeline.unread_thread_notifications
    );
    assert!(filter.room.allows_room(room_id!("!a:example.org")));
    assert!(!filter.room.allows_room(room_id!("!b:example.org")));
    assert!(filter.room.timeline.asks_for_relations() && !filter.room.timeline.allows_all());
}

#[test]
fn wrong_types_and_ids_are_refused() {
    for json in [
        "",
        "[]",
        "5",
        "{} {}",
        "{",
        "\"{}\"",
        "[[]]",
        r#"{"event_fields":"a"}"#,
        r#"{"event_fields":[1]}"#,
        r#"{"event_fields":[""]}"#,
        r#"{"event_format":"other"}"#,
        r#"{"event_format":1}"#,
        r#"{"presence":[]}"#,
        r#"{"presence":{"senders":"@a:b"}}"#,
        r#"{"presence":{"senders":["a"]}}"#,
        r#"{"presence":{"not_senders":["@a"]}}"#,
        r#"{"presence":{"limit":-1}}"#,
        r#"{"presence":{"limit":"1"}}"#,
        r#"{"presence":{"limit":1.5}}"#,
        r#"{"presence":{"limit":1e30}}"#,
        r#"{"account_data":{"types":{}}}"#,
        r#"{"account_data":{"not_types":[null]}}"#,
        r#"{"room":[]}"#,
        r#"{"room":{"rooms":["a"]}}"#,
        r#"{"room":{"not_rooms":["@a:b"]}}"#,
        r#"{"room":{"include_leave":"yes"}}"#,
        r#"{"room":{"timeline":{"contains_url":1}}}"#,
        r#"{"room":{"timeline":{"limit":"x"}}}"#,
        r#"{"room":{"timeline":{"rooms":["x"]}}}"#,
        r#"{"room":{"timeline":{"not_rooms":[5]}}}"#,
        r#"{"room":{"state":{"lazy_load_members":1}}}"#,
        r#"{"room":{"state":{"include_redundant_members":"true"}}}"#,
        r#"{"room":{"timeline":{"unread_thread_notifications":[]}}}"#,
        r#"{"room":{"timeline":{"related_by_senders":["x"]}}}"#,
        r#"{"room":{"timeline":{"related_by_rel_types":"m.thread"}}}"#,
    ] {
        assert!(Filter::from_json(json).is_err(), "{json}");
    }
    assert!(RoomEventFilter::from_json("[]").is_err());
    assert!(RoomEventFilter::from_json(r#"{"senders":["x"]}"#).is_err());
}

#[test]
fn events_pass_or_not() {
    let event = header("m.room.message", "@a:example.org", "!a:example.org");
    for (json, expect) in [
        ("{}", true),
        (r#"{"types":["m.room.message"]}"#, true),
        (r#"{"types":["m.room.*"]}"#, true),
        (r#"{"types":["*.message"]}"#, true),
        (r#"{"types":["m.room.messag?"]}"#, false),
        (r#"{"types":["M.room.message"]}"#, false),
        (r#"{"types":[]}"#, false),
        (r#"{"types":["m.room.message"],"not_types":["m.*"]}"#, false),
        (r#"{"not_types":["m.room.member"]}"#, true),
        (r#"{"not_types":["*"]}"#, false),
        (r#"{"senders":["@a:example.org"]}"#, true),
        (r#"{"senders":["@b:example.org"]}"#, false),
        (r#"{"senders":[]}"#, false),
        (
            r#"{"senders":["@a:example.org"],"not_senders":["@a:example.org"]}"#,
            false,
        ),
        (r#"{"rooms":["!a:example.org"]}"#, true),
        (r#"{"rooms":["!b:example.org"]}"#, false),
        (r#"{"not_rooms":["!a:example.org"]}"#, false),
        (r#"{"contains_url":false}"#, true),
        (r#"{"contains_url":true}"#, false),
    ] {
        let filter = RoomEventFilter::from_json(json).expect(json);
        assert_eq!(filter.allows_event(&event, || false), expect, "{json}");
        let with_url = filter.allows_event(&event, || true);
        assert_eq!(
            with_url,
            if json.contains("url") {
                !expect
            } else {
                expect
            },
            "{json}"
        );
    }
}

#[test]
fn how_an_event_relates_decides() {
    let alone = header("m.room.message", "@a:example.org", "!a:example.org");
    let mut threaded = header("m.room.message", "@a:example.org", "!a:example.org");
    threaded.relation = Some(Relation {
        rel_type: "m.thread".to_owned(),
        event_id: owned_event_id!("$root"),
    });
    for (json, allows_alone, allows_threaded) in [
        (
            r#"{"org.matrix.msc3874.rel_types":["m.thread"]}"#,
            false,
            true,
        ),
        (
            r#"{"org.matrix.msc3874.rel_types":["m.replace"]}"#,
            false,
            false,
        ),
        (r#"{"org.matrix.msc3874.rel_types":[]}"#, false, false),
        (r#"{"org.matrix.msc3874.rel_types":null}"#, true, true),
        (
            r#"{"org.matrix.msc3874.not_rel_types":["m.thread"]}"#,
            true,
            false,
        ),
        (
            r#"{"org.matrix.msc3874.not_rel_types":["m.replace"]}"#,
            true,
            true,
        ),
        (
            r#"{"org.matrix.msc3874.rel_types":["m.thread"],"org.matrix.msc3874.not_rel_types":["m.thread"]}"#,
            false,
            false,
        ),
    ] {
        let filter = RoomEventFilter::from_json(json).expect(json);
        assert_eq!(
            filter.allows_event(&alone, || false),
            allows_alone,
            "{json}"
        );
        assert_eq!(
            filter.allows_event(&threaded, || false),
            allows_threaded,
            "{json}"
        );
        assert_eq!(
            filter.allows_all(),
            allows_alone && allows_threaded && !json.contains("m.replace"),
            "{json}"
        );
    }
}

#[test]
fn relations_decide_together() {
    let (a, b) = (user_id!("@a:example.org"), user_id!("@b:example.org"));
    for (json, relations, expect) in [
        ("{}", vec![], true),
        (r#"{"related_by_rel_types":["m.thread"]}"#, vec![], false),
        (
            r#"{"related_by_rel_types":["m.thread"]}"#,
            vec![(b, "m.replace"), (b, "m.thread")],
            true,
        ),
        (
            r#"{"related_by_senders":["@a:example.org"]}"#,
            vec![(b, "m.thread")],
            false,
        ),
        (
            r#"{"related_by_senders":["@a:example.org"]}"#,
            vec![(a, "m.thread")],
            true,
        ),
        (
            r#"{"related_by_senders":["@a:example.org"],"related_by_rel_types":["m.thread"]}"#,
            vec![(a, "m.replace"), (b, "m.thread")],
            false,
        ),
    ] {
        let filter = RoomEventFilter::from_json(json).expect(json);
        assert_eq!(
            filter.allows_related_by(relations.into_iter()),
            expect,
            "{json}"
        );
    }
}

#[test]
fn thousands_of_entries_are_one_lookup() {
    let users: Vec<_> = (0..5_000)
        .map(|n| format!("\"@u{n}:example.org\""))
        .collect();
    let types: Vec<_> = (0..5_000)
        .map(|n| format!("\"org.example.t{n}\""))
        .collect();
    let json = format!(
        "{{\"senders\":[{}],\"not_types\":[{}]}}",
        users.join(","),
        types.join(",")
    );
    let filter = RoomEventFilter::from_json(&json).expect("a long filter");
    assert!(filter.allows_event(
        &header("m.room.message", "@u4999:example.org", "!a"),
        || false
    ));
    assert!(!filter.allows_event(
        &header("org.example.t77", "@u4999:example.org", "!a"),
        || false
    ));
    assert!(!filter.allows_event(&header("m.room.message", "@x:example.org", "!a"), || false));
}

#[test]
fn fields_are_cut_out_of_events() {
    let event = r#"{"type":"t","content":{"body":"b","m.x":{"y":1}},"sender":"s"}"#;
    for (json, expect) in [
        ("{}", event),
        (r#"{"event_fields":[]}"#, event),
        (r#"{"event_fields":["type"]}"#, r#"{"type":"t"}"#),
        (
            r#"{"event_fields":["content.body","type"]}"#,
            r#"{"content":{"body":"b"},"type":"t"}"#,
        ),
        (
            r#"{"event_fields":["content.m\\.x.y"]}"#,
            r#"{"content":{"m.x":{"y":1}}}"#,
        ),
        (r#"{"event_fields":["none"]}"#, "{}"),
    ] {
        let filter = Filter::from_json(json).expect(json);
        assert_eq!(
            filter.event_fields.apply(event.to_owned()).expect("JSON"),
            expect,
            "{json}"
        );
    }
    let filter = Filter::from_json(r#"{"event_fields":["type"]}"#).expect("good");
    assert!(filter.event_fields.apply("{".to_owned()).is_err());
}
