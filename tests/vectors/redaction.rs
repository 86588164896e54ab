//! "Redactions" of each room version: which keys stay.

use std::collections::BTreeSet;

use kontor::protocol::integrity::{parse_object, redact};
use ruma::CanonicalJsonValue;
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// From one room version up to another, both included.
type Versions = (u8, u8);

#[derive(Deserialize)]
struct Table {
    /// Top-level keys that a redaction leaves, and where.
    event: Vec<(String, Versions)>,
    /// Top-level keys that no version leaves.
    never: Vec<String>,
    content: Vec<Content>,
}

#[derive(Deserialize)]
struct Content {
    #[serde(rename = "type")]
    event_type: String,
    /// Keys of the content that a redaction leaves, and where.
    kept: Vec<(String, Versions)>,
    /// Keys of the content that no version leaves.
    never: Vec<String>,
    /// From this version on, all of them are left.
    all_from: Option<u8>,
}

fn at(versions: Versions, version: u8) -> bool {
    (versions.0..=versions.1).contains(&version)
}

fn table() -> Table {
    super::data(include_str!("redaction.json"))
}

fn keys(value: &CanonicalJsonValue) -> BTreeSet<String> {
    let object = value.as_object().expect("an object");
    object.keys().cloned().collect()
}

fn redacted(version: u8, event: &Value) -> CanonicalJsonValue {
    let (_, rules) = super::versions()
        .find(|(number, _)| *number == version)
        .expect("served");
    let object = parse_object(&event.to_string()).expect("canonical");
    redact(object, rules).expect("can be redacted").into()
}

#[test]
fn keys_of_the_event() {
    let table = table();
    let names = table.event.iter().map(|(name, _)| name).chain(&table.never);
    let mut event: Map<String, Value> = names.map(|name| (name.clone(), json!("x"))).collect();
    event.insert("content".to_owned(), json!({ "body": "x" }));
    event.insert("type".to_owned(), json!("m.room.message"));
    let event = Value::Object(event);
    for (version, _) in super::versions() {
        let expect = table
            .event
            .iter()
            .filter(|(_, versions)| at(*versions, version));
        let expect: BTreeSet<String> = expect.map(|(name, _)| name.clone()).collect();
        assert_eq!(
            keys(&redacted(version, &event)),
            expect,
            "room version {version}"
        );
    }
}

#[test]
fn keys_of_the_content() {
    for row in table().content {
        let names: BTreeSet<&String> = row
            .kept
            .iter()
            .map(|(name, _)| name)
            .chain(&row.never)
            .collect();
        let content: Map<String, Value> = names
            .iter()
            .map(|name| ((*name).clone(), json!("x")))
            .collect();
        let event = json!({ "type": row.event_type, "content": content });
        for (version, _) in super::versions() {
            let all = row.all_from.is_some_and(|from| version >= from);
            let stays = |name: &str| {
                all || row
                    .kept
                    .iter()
                    .any(|(kept, versions)| kept == name && at(*versions, version))
            };
            let expect: BTreeSet<String> = names
                .iter()
                .filter(|name| stays(name))
                .map(|name| (*name).clone())
                .collect();
            let CanonicalJsonValue::Object(object) = redacted(version, &event) else {
                panic!("a redacted event is an object");
            };
            let content = object.get("content").expect("content stays");
            assert_eq!(
                keys(content),
                expect,
                "{} in room version {version}",
                row.event_type
            );
        }
    }
}

#[test]
fn of_a_third_party_invite_only_what_was_signed_stays() {
    let signed = json!({ "mxid": "@a:b", "token": "t", "signatures": {} });
    let event = json!({ "type": "m.room.member", "content": {
        "membership": "invite", "third_party_invite": { "display_name": "x", "signed": signed },
    } });
    for (version, _) in super::versions() {
        let expect = if version >= 11 {
            json!({ "membership": "invite", "third_party_invite": { "signed": signed } })
        } else {
            json!({ "membership": "invite" })
        };
        let expect = json!({ "type": "m.room.member", "content": expect });
        assert_eq!(
            Value::from(redacted(version, &event)),
            expect,
            "room version {version}"
        );
    }
}
