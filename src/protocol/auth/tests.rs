//! The power levels, read once, say what the full checks say. The rules themselves are in `tests/vectors/`.

use std::collections::BTreeMap;

use proptest::prelude::*;
use ruma::{RoomId, user_id};
use serde_json::{Value, json};

use super::*;
use crate::protocol::{event::Event, integrity};

const USERS: [&str; 4] = ["@creator:a.org", "@second:a.org", "@b:a.org", "@c:b.org"];

type State = BTreeMap<(String, String), Event>;

fn event(
    rules: &RoomVersionRules,
    event_type: &str,
    sender: &str,
    key: Option<&str>,
    content: &Value,
) -> Event {
    let mut object =
        json!({ "type": event_type, "sender": sender, "content": content, "origin_server_ts": 1 });
    if let Some(key) = key {
        object["state_key"] = json!(key);
    }
    object["prev_events"] = json!(["$before"]);
    let object = integrity::parse_object(&object.to_string()).expect("canonical");
    let id = EventId::parse("$e").expect("an id");
    Event::new(id, RoomId::parse("!r").expect("an id"), &object, rules).expect("an event")
}

fn state(
    rules: &RoomVersionRules,
    federate: bool,
    levels: Option<&Value>,
    members: [&str; 4],
) -> State {
    let create =
        json!({ "creator": USERS[0], "additional_creators": [USERS[1]], "m.federate": federate });
    let mut state = State::new();
    let mut set = |event_type: &str, sender: &str, key: &str, content: &Value| {
        let event = event(rules, event_type, sender, Some(key), content);
        state.insert((event_type.to_owned(), key.to_owned()), event);
    };
    set("m.room.create", USERS[0], "", &create);
    for (user, membership) in USERS.iter().zip(members) {
        set(
            "m.room.member",
            user,
            user,
            &json!({ "membership": membership }),
        );
    }
    if let Some(levels) = levels {
        set("m.room.power_levels", USERS[0], "", levels);
    }
    state
}

fn verdict(rules: &RoomVersionRules, state: &State, event: &Event) -> bool {
    let lookup = |kind: &StateEventType, key: &str| state.get(&(kind.to_string(), key.to_owned()));
    check_against(rules, &event, lookup).is_ok()
}

fn read(rules: &RoomVersionRules, state: &State) -> PowerLevels {
    let get = |kind: &str| state.get(&(kind.to_owned(), String::new()));
    PowerLevels::new(
        rules,
        &get("m.room.create").expect("there"),
        get("m.room.power_levels").as_ref(),
    )
    .expect("well-formed")
}

fn levels() -> impl Strategy<Value = Option<Value>> {
    let level = || {
        prop_oneof![
            Just(-1),
            Just(0),
            Just(1),
            Just(49),
            Just(50),
            Just(51),
            Just(100)
        ]
    };
    let keys = [
        "users_default",
        "events_default",
        "state_default",
        "ban",
        "kick",
        "invite",
    ];
    let fields = keys.map(|key| proptest::option::of(level()).prop_map(move |level| (key, level)));
    let users =
        proptest::collection::btree_map(proptest::sample::select(&USERS[..]), level(), 0..4);
    let events = proptest::option::of(level());
    proptest::option::of((fields, users, events).prop_map(|(fields, users, events)| {
        let mut content: BTreeMap<&str, Value> = fields
            .into_iter()
            .filter_map(|(key, level)| Some((key, json!(level?))))
            .collect();
        content.insert("users", json!(users));
        content.insert(
            "events",
            json!(
                events
                    .map(|level| ("m.room.message", level))
                    .into_iter()
                    .collect::<BTreeMap<_, _>>()
            ),
        );
        json!(content)
    }))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn the_levels_say_what_the_checks_say(
        version in prop_oneof![Just("1"), Just("6"), Just("10"), Just("12")],
        levels in levels(),
        federate: bool,
        sender in 0..4_usize,
        target in 0..4_usize,
        membership in prop_oneof![Just("join"), Just("invite"), Just("leave"), Just("ban")],
    ) {
        let rules = version::rules(&version.try_into().expect("a version")).expect("served");
        let (sender, target) = (USERS[sender], USERS[target]);
        let ids = (UserId::parse(sender).expect("an id"), UserId::parse(target).expect("an id"));

        // A message of someone who may or may not have joined.
        let members = USERS.map(|user| if user == sender { membership } else { "join" });
        let room = state(rules, federate, levels.as_ref(), members);
        let powers = read(rules, &room);
        for kind in ["m.room.message", "org.example.other"] {
            let message = event(rules, kind, sender, None, &json!({}));
            let quick = powers.check_message(&rules.authorization, &ids.0, membership == "join", &kind.into());
            prop_assert_eq!(quick.map(|quick| quick.is_ok()), Some(verdict(rules, &room, &message)));
        }

        // What members do to each other, in a room that is open to other servers.
        prop_assume!(sender != target);
        let change = |to: &str, from: &str| {
            let members = USERS.map(|user| if user == target { from } else { "join" });
            let room = state(rules, true, levels.as_ref(), members);
            let change = event(rules, "m.room.member", sender, Some(target), &json!({ "membership": to }));
            verdict(rules, &room, &change)
        };
        prop_assert_eq!(powers.may_invite(&ids.0), change("invite", "leave"));
        prop_assert_eq!(powers.may_kick(&ids.0, &ids.1), change("leave", "join"));
        prop_assert_eq!(powers.may_ban(&ids.0, &ids.1), change("ban", "join"));
    }
}

#[test]
fn some_events_need_more_than_power() {
    let v1 = version::rules(&ruma::RoomVersionId::V1).expect("served");
    let powers = read(v1, &state(v1, true, None, ["join"; 4]));
    let user = user_id!("@b:a.org");
    for kind in [
        "m.room.create",
        "m.room.member",
        "m.room.power_levels",
        "m.room.redaction",
        "m.room.aliases",
    ] {
        assert_eq!(
            powers.check_message(&v1.authorization, user, true, &kind.into()),
            None,
            "{kind}"
        );
    }
}

#[test]
fn creators_have_infinite_power_from_version_12() {
    for (version, power) in [("11", Power::Level(0)), ("12", Power::Infinite)] {
        let rules = version::rules(&version.try_into().expect("a version")).expect("served");
        let powers = read(rules, &state(rules, true, Some(&json!({})), ["join"; 4]));
        assert_eq!(powers.user(user_id!("@creator:a.org")), power, "{version}");
        assert!(power == Power::Level(0) || power.reaches(i64::MAX));
    }
}

#[test]
fn redactions_apply_within_a_server_or_by_power() {
    let rules = version::rules(&ruma::RoomVersionId::V11).expect("served");
    let levels = json!({ "users": { "@b:a.org": 50 } });
    let powers = read(rules, &state(rules, true, Some(&levels), ["join"; 4]));
    for (user, author, may, applies) in [
        ("@c:b.org", "@c:b.org", true, true),
        ("@c:b.org", "@d:b.org", false, true),
        ("@c:b.org", "@b:a.org", false, false),
        ("@b:a.org", "@c:b.org", true, true),
    ] {
        let (user, author) = (
            UserId::parse(user).expect("an id"),
            UserId::parse(author).expect("an id"),
        );
        assert_eq!(powers.may_redact(&user, &author), may, "{user} {author}");
        assert_eq!(
            powers.redaction_applies(&user, &author),
            applies,
            "{user} {author}"
        );
    }
}
