//! A policy server is who the room says it is, and its signature is by that key, whatever else the event carries.

use ruma::{RoomVersionId, owned_server_name};
use serde_json::json;

use super::*;
use crate::protocol::{
    integrity::{ServerKey, parse_object, redact, sign_event},
    version,
};

fn rules() -> &'static RoomVersionRules {
    version::rules(&RoomVersionId::V12).unwrap()
}

fn key(seed: u8) -> ServerKey {
    ServerKey::from_seed(&[seed; 32], "policy_server").unwrap()
}

fn named(key: &str) -> PolicyServer {
    let content = json!({ "via": "p.example", "public_keys": { "ed25519": key, "x": {} } });
    PolicyServer::named(&content.to_string()).unwrap()
}

fn event() -> CanonicalJsonObject {
    let event = json!({
        "type": "m.room.message", "sender": "@a:p.example", "content": { "body": "x" },
        "hashes": { "sha256": "x" }, "signatures": { "p.example": { "ed25519:a": "x" } },
    });
    parse_object(&event.to_string()).unwrap()
}

#[test]
fn its_signature_is_added_and_nothing_else() {
    let (key, mut object) = (key(1), event());
    let server = named(key.public_base64());
    assert!(!server.has_signed(&object, rules()));
    let mut theirs = object.clone();
    sign_event(&mut theirs, &key, server.name(), rules()).unwrap();
    let mut answer = serde_json::to_value(&theirs["signatures"]).unwrap();
    answer["q.example"] = json!({ "ed25519:a": "x" });
    answer["p.example"]["ed25519:a"] = json!("y");
    server.sign(&mut object, &answer, rules()).unwrap();
    assert_eq!(object, theirs);
    assert!(server.has_signed(&redact(object, rules()).unwrap(), rules()));
}

#[test]
fn another_signature_is_none() {
    let server = named(key(1).public_base64());
    let mut forged = event();
    sign_event(&mut forged, &key(2), server.name(), rules()).unwrap();
    let mut elsewhere = event();
    let other = owned_server_name!("q.example");
    sign_event(&mut elsewhere, &key(1), &other, rules()).unwrap();
    let mut own = event();
    let published = ServerKey::from_seed(&[1; 32], "a").unwrap();
    sign_event(&mut own, &published, server.name(), rules()).unwrap();
    for object in [forged, elsewhere, own] {
        assert!(!server.has_signed(&object, rules()));
        let answer = serde_json::to_value(&object["signatures"]).unwrap();
        assert!(server.sign(&mut event(), &answer, rules()).is_err());
    }
    for answer in [json!({}), json!([]), json!({ "p.example": 1 })] {
        assert!(server.sign(&mut event(), &answer, rules()).is_err());
    }
}

#[test]
fn keys_are_read_in_both_alphabets_and_what_is_no_key_fits_nothing() {
    // With a seed whose public half has letters in which the alphabets differ.
    let differ = |key: &ServerKey| key.public_base64().contains(['+', '/']);
    let key = (0..=255).map(key).find(differ).unwrap();
    let mut object = event();
    let url_safe = key.public_base64().replace('+', "-").replace('/', "_");
    let servers = [named(key.public_base64()), named(&url_safe)];
    sign_event(&mut object, &key, servers[0].name(), rules()).unwrap();
    for server in servers {
        assert!(server.has_signed(&object, rules()));
    }
    for text in ["", "?", "AAAA"] {
        assert!(!named(text).has_signed(&object, rules()));
    }
}

#[test]
fn what_is_not_valid_names_nobody() {
    for content in [
        json!({}),
        json!({ "via": "p.example", "public_keys": {} }),
        json!({ "via": "p.example", "public_keys": { "ed25519": 1 } }),
        json!({ "via": "p.example", "public_keys": [] }),
        json!({ "via": "p example", "public_keys": { "ed25519": "x" } }),
        json!({ "public_keys": { "ed25519": "x" } }),
    ] {
        assert_eq!(PolicyServer::named(&content.to_string()), None, "{content}");
    }
}

#[test]
fn only_what_names_one_goes_without() {
    assert!(!is_asked_about(&STATE.into(), Some("")));
    assert!(is_asked_about(&STATE.into(), Some("x")));
    assert!(is_asked_about(&STATE.into(), None));
    assert!(is_asked_about(&TimelineEventType::RoomMember, Some("")));
}
