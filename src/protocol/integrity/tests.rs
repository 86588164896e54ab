//! Hashes, ids and signatures hold what they promise; the specification's own examples are in `tests/vectors.rs`.

use std::collections::BTreeMap;

use ruma::{serde::Base64, server_name};
use serde_json::json;

use super::*;
use crate::protocol::version;

fn key() -> ServerKey {
    ServerKey::from_seed(&[7; 32], "a_1").expect("a good version")
}

fn object(value: serde_json::Value) -> CanonicalJsonObject {
    parse_object(&value.to_string()).expect("a canonical object")
}

fn message() -> CanonicalJsonObject {
    object(json!({
        "auth_events": [], "content": { "body": "hello \u{7f}\u{1}\n\"\\", "msgtype": "m.text" }, "depth": 3,
        "event_id": "$one:example.org",
        "origin_server_ts": 1_000_000, "prev_events": [], "room_id": "!room:example.org", "sender": "@a:example.org",
        "type": "m.room.message", "unsigned": { "age": 5 },
    }))
}

fn keys(key: &ServerKey, server: &str) -> PublicKeyMap {
    let public = Base64::parse(key.public_base64()).expect("base64");
    BTreeMap::from([(
        server.to_owned(),
        BTreeMap::from([(key.id().to_owned(), public)]),
    )])
}

#[test]
fn texts_are_told_apart() {
    let deep = "[".repeat(10_000);
    let nested =
        |levels: usize| format!("{}{}", "{\"a\":".repeat(levels), "1") + &"}".repeat(levels);
    for (text, expect) in [
        ("{", "NotJson"),
        ("", "NotJson"),
        ("{\"a\":01}", "NotJson"),
        ("{\"a\":\"\\ud800\"}", "NotJson"),
        ("{} {}", "NotJson"),
        ("{\"a\":NaN}", "NotJson"),
        ("[]", "NotObject"),
        ("null", "NotObject"),
        ("{\"a\":1.5}", "NotCanonical"),
        ("{\"a\":1.0}", "NotCanonical"),
        ("{\"a\":1e3}", "NotCanonical"),
        ("{\"a\":-0}", "NotCanonical"),
        ("{\"a\":[{\"b\":9007199254740992}]}", "NotCanonical"),
        ("{\"a\":-9007199254740992}", "NotCanonical"),
        ("{\"a\":18446744073709551615}", "NotCanonical"),
        ("{\"a\":99999999999999999999}", "NotCanonical"),
        (&nested(10_000), "TooDeep"),
        (&nested(128), "TooDeep"),
        (&deep, "TooDeep"),
    ] {
        let error = parse_object(text).expect_err(expect);
        assert!(
            format!("{error:?}").starts_with(expect),
            "{error:?} is not {expect} for {text:.40}"
        );
    }
    for text in [
        "{\"a\":9007199254740991}",
        "{\"a\":-9007199254740991}",
        "{\"a\":0}",
        &nested(127),
    ] {
        assert_eq!(canonical(&parse_object(text).expect(text)), text);
    }
}

#[test]
fn old_rooms_take_integers_in_disguise() {
    let v5 = version::rules(&ruma::RoomVersionId::V5).expect("served");
    let v6 = version::rules(&ruma::RoomVersionId::V6).expect("served");
    let text = r#"{"a":-0,"b":1e10,"c":-3.0,"d":0.0}"#;
    assert_eq!(
        canonical(&parse_pdu(text, v5).expect("tolerant")),
        r#"{"a":0,"b":10000000000,"c":-3,"d":0}"#
    );
    assert!(matches!(parse_pdu(text, v6), Err(BadJson::NotCanonical(_))));
    for text in [
        r#"{"a":0.5}"#,
        r#"{"a":1e16}"#,
        r#"{"a":1e300}"#,
        r#"{"a":9007199254740992}"#,
    ] {
        assert!(
            matches!(parse_pdu(text, v5), Err(BadJson::NotCanonical(_))),
            "{text}"
        );
    }
}

#[test]
fn canonical_is_what_serde_writes() {
    let mut text = String::new();
    for code in 0..0x300_u32 {
        text.extend(char::from_u32(code));
    }
    let value = object(
        json!({ "z": text, "a": [null, true, false, -5, {}, [], { "\u{10000}": 1, "\u{ffff}": 2 }] }),
    );
    assert_eq!(
        canonical(&value),
        serde_json::to_string(&value).expect("JSON")
    );
}

#[test]
fn what_is_signed_verifies_in_every_version_and_as_ruma_sees_it() {
    let (key, server) = (key(), server_name!("example.org"));
    for version in version::SUPPORTED {
        let rules = version::rules(&version).expect("served");
        let mut event = message();
        let mut theirs = event.clone();
        let id = hash_and_sign(&mut event, &key, server, rules).expect("signable");
        ruma::signatures::hash_and_sign_event(
            server.as_str(),
            key.pair(),
            &mut theirs,
            &rules.redaction,
        )
        .expect("signable");
        assert_eq!(event, theirs, "{version}");
        assert_eq!(event_id(&event, rules).as_ref(), Ok(&id));
        match rules.event_id_format {
            EventIdFormatVersion::V1 => assert_eq!(id, "$one:example.org"),
            _ => assert_eq!(
                id.as_str().strip_prefix('$'),
                ruma::signatures::reference_hash(&event, rules)
                    .ok()
                    .as_deref()
            ),
        }

        let keys = keys(&key, "example.org");
        assert_eq!(verify(&event, &keys, rules), Ok(true), "{version}");
        assert_eq!(
            verify(&redact(event.clone(), rules).expect("typed"), &keys, rules),
            Ok(false),
            "{version}"
        );

        let mut tampered = event.clone();
        tampered.insert(
            "content".to_owned(),
            object(json!({ "body": "bye" })).into(),
        );
        assert_eq!(
            verify(&tampered, &keys, rules),
            Ok(false),
            "{version}: only the hash covers a message's content"
        );
        let mut tampered = event.clone();
        tampered.insert("depth".to_owned(), Int::from(4_u8).into());
        assert!(verify(&tampered, &keys, rules).is_err(), "{version}");
        let mut unsigned = event.clone();
        unsigned.remove("signatures");
        assert!(verify(&unsigned, &keys, rules).is_err(), "{version}");
        assert!(
            verify(&event, &PublicKeyMap::new(), rules).is_err(),
            "{version}"
        );
    }
}

#[test]
fn other_signatures_survive_ours() {
    let rules = version::rules(&version::DEFAULT).expect("served");
    let mut event = message();
    hash_and_sign(&mut event, &key(), server_name!("example.org"), rules).expect("signable");
    let other = ServerKey::from_seed(&[9; 32], "b").expect("a good version");
    sign_event(&mut event, &other, server_name!("other.example"), rules).expect("signable");
    let signatures = event
        .get("signatures")
        .and_then(CanonicalJsonValue::as_object)
        .expect("there");
    assert_eq!(
        signatures.keys().collect::<Vec<_>>(),
        ["example.org", "other.example"]
    );
    let mut both = keys(&key(), "example.org");
    both.extend(keys(&other, "other.example"));
    assert_eq!(verify(&event, &both, rules), Ok(true));
}

#[test]
fn objects_are_signed_as_well() {
    let mut thing = object(json!({ "a": 1, "unsigned": { "b": 2 } }));
    sign_json(&mut thing, &key(), server_name!("example.org")).expect("signable");
    verify_json(&thing, &keys(&key(), "example.org")).expect("signed");
    thing.insert("a".to_owned(), Int::from(2_u8).into());
    verify_json(&thing, &keys(&key(), "example.org")).expect_err("changed");
}

#[test]
fn malformed_events_are_not_signed() {
    let rules = version::rules(&version::DEFAULT).expect("served");
    for (name, value) in [
        ("type", json!(1)),
        ("hashes", json!([])),
        ("signatures", json!({ "example.org": 3 })),
    ] {
        let mut event = message();
        event.insert(
            name.to_owned(),
            parse_value(&value.to_string()).expect("canonical"),
        );
        let result = hash_and_sign(&mut event, &key(), server_name!("example.org"), rules);
        assert!(
            matches!(result, Err(BadEvent::Malformed(_))),
            "{name}: {result:?}"
        );
    }
}

#[test]
fn rooms_and_their_create_events_name_each_other() {
    let id = EventId::parse("$YfGCVUpiCqPMMqqwMRWqTcvsYGfEdFVnF0QlxwzNaZs").expect("an id");
    let room = room_id_of_create(&id).expect("a room");
    assert_eq!(room, "!YfGCVUpiCqPMMqqwMRWqTcvsYGfEdFVnF0QlxwzNaZs");
    assert_eq!(create_of_room_id(&room), Some(id));
    let old = EventId::parse("$1:example.org").expect("an id");
    assert!(room_id_of_create(&old).is_err());
    assert_eq!(create_of_room_id(ruma::room_id!("!x:example.org")), None);
}

#[test]
fn formats_are_checked() {
    let rules = version::rules(&ruma::RoomVersionId::V11).expect("served");
    let good = {
        let mut event = message();
        hash_and_sign(&mut event, &key(), server_name!("example.org"), rules).expect("signable");
        event
    };
    assert_eq!(check_format(&good, rules), Ok(()));
    let ids = |n: usize| serde_json::Value::from(vec!["$x"; n]);
    for (name, value, large) in [
        ("type", json!(5), false),
        ("type", json!("x".repeat(256)), true),
        ("sender", json!(null), false),
        (
            "sender",
            json!(format!("@{}:example.org", "ü".repeat(130))),
            true,
        ),
        ("state_key", json!(1), false),
        ("state_key", json!("x".repeat(256)), true),
        ("room_id", json!(["!x"]), false),
        ("prev_events", json!("$x"), false),
        ("prev_events", ids(21), false),
        ("auth_events", ids(11), false),
        ("auth_events", json!({}), false),
        ("depth", json!(-1), false),
        ("depth", json!("1"), false),
        ("origin_server_ts", json!(-1), false),
        ("content", json!([]), false),
        ("hashes", json!([]), false),
        ("signatures", json!(""), false),
        ("content", json!({ "a": "x".repeat(66_000) }), true),
    ] {
        let mut event = good.clone();
        event.insert(
            name.to_owned(),
            parse_value(&value.to_string()).expect("canonical"),
        );
        match check_format(&event, rules) {
            Err(BadEvent::TooLarge { .. }) => assert!(large, "{name} {value:.60}"),
            Err(BadEvent::Malformed(_)) => assert!(!large, "{name} {value:.60}"),
            Ok(()) => panic!("{name} {value:.60} was let through"),
        }
    }
    for name in [
        "type",
        "sender",
        "room_id",
        "prev_events",
        "auth_events",
        "depth",
        "content",
        "origin_server_ts",
    ] {
        let mut event = good.clone();
        event.remove(name);
        assert!(check_format(&event, rules).is_err(), "{name}");
    }
    for (name, value) in [
        ("prev_events", ids(20)),
        ("auth_events", ids(10)),
        ("state_key", json!("x".repeat(255))),
        ("unsigned", json!({ "a": "x".repeat(66_000) })),
    ] {
        let mut event = good.clone();
        event.insert(
            name.to_owned(),
            parse_value(&value.to_string()).expect("canonical"),
        );
        assert_eq!(check_format(&event, rules), Ok(()), "{name}");
    }
}

#[test]
fn old_rooms_count_characters() {
    use ruma::RoomVersionId::{V10, V11};
    for (version, text, is_good) in [
        (V10, "\u{1f4a5}".repeat(255), true),
        (V10, "\u{1f4a5}".repeat(256), false),
        (V11, "\u{1f4a5}".repeat(63), true),
        (V11, "\u{1f4a5}".repeat(64), false),
    ] {
        let rules = version::rules(&version).expect("served");
        for name in ["type", "state_key"] {
            let mut event = message();
            event.insert(name.to_owned(), text.clone().into());
            hash_and_sign(&mut event, &key(), server_name!("example.org"), rules)
                .expect("signable");
            assert_eq!(
                check_format(&event, rules).is_ok(),
                is_good,
                "{name} {version}"
            );
        }
    }
}

#[test]
fn an_event_may_be_exactly_as_large_as_the_limit() {
    let rules = version::rules(&ruma::RoomVersionId::V11).expect("served");
    let sized = |padding: usize| {
        let mut event = message();
        event.insert(
            "content".to_owned(),
            object(json!({ "a": "x".repeat(padding) })).into(),
        );
        event.remove("unsigned");
        hash_and_sign(&mut event, &key(), server_name!("example.org"), rules).expect("signable");
        event
    };
    let room = MAX_EVENT_BYTES - canonical(&sized(0)).len();
    assert_eq!(check_format(&sized(room), rules), Ok(()));
    assert!(matches!(
        check_format(&sized(room + 1), rules),
        Err(BadEvent::TooLarge { bytes: 65_537, .. })
    ));
}

#[test]
fn keys_are_named_and_kept_secret() {
    let key = key();
    assert_eq!(key.id(), "ed25519:a_1");
    assert_eq!(key.pair().version(), "a_1");
    let shown = format!("{key:?}");
    assert!(
        !shown.contains("7, 7") && !shown.contains("BwcH") && !shown.contains("0707"),
        "{shown}"
    );
    for version in ["", "a:b", "a b", "ä", "a-b"] {
        assert!(
            ServerKey::from_seed(&[7; 32], version).is_err(),
            "{version}"
        );
    }
}
