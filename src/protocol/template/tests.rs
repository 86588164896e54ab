//! What is made is a valid PDU of its room version, within the limits.

use ruma::{
    event_id, owned_event_id, owned_room_id, owned_user_id, serde::Base64, server_name,
    state_res::Event as _, uint,
};
use serde_json::json;

use super::*;
use crate::protocol::{format, integrity, version};

fn key() -> ServerKey {
    ServerKey::from_seed(&[3; 32], "1").expect("a good version")
}

fn draft(event_type: &str, state_key: Option<&str>, content: &serde_json::Value) -> Draft {
    Draft {
        room_id: Some(owned_room_id!("!room:example.org")),
        sender: owned_user_id!("@a:example.org"),
        event_type: event_type.into(),
        state_key: state_key.map(ToOwned::to_owned),
        content: integrity::parse_object(&content.to_string()).expect("canonical"),
        redacts: None,
        origin_server_ts: MilliSecondsSinceUnixEpoch(uint!(1_700_000_000)),
        prev_events: vec![
            owned_event_id!("$p1:example.org"),
            owned_event_id!("$p2:example.org"),
        ],
        auth_events: vec![owned_event_id!("$a1:example.org")],
        depth: 17,
        legacy: Some(Legacy {
            event_id: owned_event_id!("$unique:example.org"),
            reference_hashes: BTreeMap::from([(
                owned_event_id!("$p1:example.org"),
                "hash".to_owned(),
            )]),
        }),
    }
}

fn drafts() -> Vec<Draft> {
    let mut all: Vec<_> = [
        ("m.room.message", None, json!({ "body": "\"quoted\"\n", "msgtype": "m.text" })),
        ("m.reaction", None, json!({ "m.relates_to": { "rel_type": "m.annotation", "event_id": "$x", "key": "👍" } })),
        ("m.room.create", Some(""), json!({ "creator": "@a:example.org", "room_version": "x", "other": 1 })),
        ("m.room.member", Some("@a:example.org"), json!({
            "membership": "invite", "displayname": "A", "join_authorised_via_users_server": "@b:example.org",
            "third_party_invite": { "display_name": "x", "signed": { "token": "t" } },
        })),
        ("m.room.power_levels", Some(""), json!({ "invite": 5, "notifications": { "room": 1 }, "users": {} })),
        ("m.room.join_rules", Some(""), json!({ "join_rule": "restricted", "allow": [], "x": 1 })),
        ("m.room.aliases", Some("example.org"), json!({ "aliases": ["#a:example.org"] })),
        ("m.room.history_visibility", Some(""), json!({ "history_visibility": "shared", "x": 1 })),
        ("strange \"type\"\u{1}", Some("strange \"key\"\u{7f}\u{0}"), json!({})),
    ]
    .into_iter()
    .map(|(event_type, state_key, content)| draft(event_type, state_key, &content))
    .collect();
    let mut redaction = draft("m.room.redaction", None, &json!({ "reason": "no" }));
    redaction.redacts = Some(owned_event_id!("$bad:example.org"));
    all.push(redaction);
    all
}

#[test]
fn every_kind_of_event_is_a_valid_pdu_in_every_version() {
    let (key, server) = (key(), server_name!("example.org"));
    let public = Base64::parse(key.public_base64()).expect("base64");
    let keys = BTreeMap::from([(
        server.to_string(),
        BTreeMap::from([(key.id().to_owned(), public)]),
    )]);
    for version in version::SUPPORTED {
        let rules = version::rules(&version).expect("served");
        for draft in drafts() {
            let event = finish(draft.clone(), &key, server, rules).expect("complete");
            let pdu = event.to_canonical().expect("JSON");
            assert_eq!(integrity::check_format(&pdu, rules), Ok(()), "{version}");
            assert_eq!(
                integrity::event_id(&pdu, rules).as_ref(),
                Ok(&event.header.id),
                "{version}"
            );
            assert_eq!(
                integrity::verify(&pdu, &keys, rules),
                Ok(true),
                "{version} {pdu:?}"
            );
            assert_eq!(
                event.prev_events().collect::<Vec<_>>(),
                draft.prev_events.iter().collect::<Vec<_>>()
            );
            assert_eq!(
                event.auth_events().collect::<Vec<_>>(),
                draft.auth_events.iter().collect::<Vec<_>>()
            );
            assert_eq!(event.header.event_type, draft.event_type);
            assert_eq!(event.header.state_key, draft.state_key);
            assert_eq!(event.header.depth, draft.depth);
            assert_eq!(event.header.redacts, draft.redacts);

            let again = Event::new(
                event.header.id.clone(),
                event.header.room_id.clone(),
                &pdu,
                rules,
            )
            .expect("an event");
            assert_eq!(
                (&event.client, &event.wire),
                (&again.client, &again.wire),
                "{version}"
            );
            assert_eq!(format!("{:?}", event.header), format!("{:?}", again.header));
        }
    }
}

#[test]
fn redactions_name_their_target_where_the_version_wants_it() {
    for (name, inside) in [("1", false), ("10", false), ("11", true), ("12", true)] {
        let rules = version::rules(&name.try_into().expect("a version")).expect("served");
        let draft = drafts().pop().expect("the redaction is last");
        let event = finish(draft, &key(), server_name!("example.org"), rules).expect("complete");
        assert_eq!(
            event.content_json().contains("$bad"),
            inside,
            "version {name}"
        );
        assert_eq!(
            event.header.redacts.as_deref(),
            Some(event_id!("$bad:example.org"))
        );
        let object = event.to_canonical().expect("JSON");
        assert_eq!(object.contains_key("redacts"), !inside, "version {name}");
    }
}

#[test]
fn the_create_event_of_version_12_names_the_room_and_no_other_does() {
    let (key, server) = (key(), server_name!("example.org"));
    let v12 = version::rules(&version::DEFAULT).expect("served");
    let mut create = draft("m.room.create", Some(""), &json!({ "room_version": "12" }));
    create.room_id = None;
    let event = finish(create.clone(), &key, server, v12).expect("complete");
    assert_eq!(
        event.header.room_id.strip_sigil(),
        event.header.id.as_str().trim_start_matches('$')
    );
    assert!(!event.wire.contains("room_id"));
    assert_eq!(
        event.room_id(),
        None,
        "the authorisation rules see that it has none"
    );
    assert!(
        format::client(&event, format::Shape::Client, &format::Unsigned::default())
            .contains("\"room_id\":\"!")
    );

    let v11 = version::rules(&ruma::RoomVersionId::V11).expect("served");
    assert!(finish(create.clone(), &key, server, v11).is_err());
    let mut message = draft("m.room.message", None, &json!({}));
    message.room_id = None;
    assert!(finish(message, &key, server, v12).is_err());
    create.room_id = Some(owned_room_id!("!given:example.org"));
    let named = finish(create, &key, server, v12).expect("the room id is ignored");
    assert_eq!(named.header.id, event.header.id);
    assert_eq!(named.header.room_id, event.header.room_id);
}

#[test]
fn versions_1_and_2_need_an_id_of_their_own() {
    for (name, needed) in [("1", true), ("2", true), ("3", false), ("12", false)] {
        let rules = version::rules(&name.try_into().expect("a version")).expect("served");
        let mut draft = draft("m.room.message", None, &json!({}));
        let with =
            finish(draft.clone(), &key(), server_name!("example.org"), rules).expect("complete");
        assert_eq!(
            with.header.id == "$unique:example.org",
            needed,
            "version {name}"
        );
        let ids: Vec<_> = with.prev_events().map(ToString::to_string).collect();
        assert_eq!(
            ids,
            ["$p1:example.org", "$p2:example.org"],
            "version {name}"
        );
        assert_eq!(
            with.wire
                .contains("[\"$p1:example.org\",{\"sha256\":\"hash\"}]"),
            needed
        );
        draft.legacy = None;
        assert_eq!(
            finish(draft, &key(), server_name!("example.org"), rules).is_err(),
            needed,
            "version {name}"
        );
    }
}

#[test]
fn limits_hold() {
    let rules = version::rules(&version::DEFAULT).expect("served");
    let try_draft =
        |draft: Draft| finish(draft, &key(), server_name!("example.org"), rules).map(|_| ());
    let content = |size: usize| json!({ "body": "x".repeat(size) });
    assert_eq!(
        try_draft(draft("m.room.message", None, &content(64_000))),
        Ok(())
    );
    let too_large = try_draft(draft("m.room.message", None, &content(66_000)));
    assert!(
        matches!(
            too_large,
            Err(BadEvent::TooLarge {
                what: "the event",
                ..
            })
        ),
        "{too_large:?}"
    );
    for (event_type, state_key) in [
        ("x".repeat(256), String::new()),
        ("x".to_owned(), "x".repeat(256)),
    ] {
        let result = try_draft(draft(&event_type, Some(&state_key), &json!({})));
        assert!(
            matches!(result, Err(BadEvent::TooLarge { limit: 255, .. })),
            "{result:?}"
        );
    }
    assert_eq!(
        try_draft(draft(&"x".repeat(255), Some(&"x".repeat(255)), &json!({}))),
        Ok(())
    );
    let mut wide = draft("m.room.message", None, &json!({}));
    wide.prev_events = vec![owned_event_id!("$x"); 21];
    assert!(matches!(try_draft(wide), Err(BadEvent::Malformed(_))));
}
