//! The predefined rules by table, and every ruleset against ruma's own evaluation.

use std::{
    collections::BTreeMap,
    future::Future,
    pin::pin,
    task::{Context, Poll, Waker},
};

use proptest::prelude::*;
use ruma::{
    RoomId, RoomVersionId, event_id, int,
    power_levels::NotificationPowerLevels,
    push::{PushConditionPowerLevelsCtx, PushConditionRoomCtx},
    room_version_rules::RoomPowerLevelsRules,
    serde::Raw,
    user_id,
};
use serde_json::json;

use super::*;
use crate::protocol::{
    format::{self, Shape, Unsigned},
    integrity, version,
};

const ROOM: &str = "!room:example.org";

fn event(event_type: &str, state_key: Option<&str>, sender: &str, content: &Value) -> Event {
    let mut object =
        json!({ "type": event_type, "sender": sender, "content": content, "origin_server_ts": 1 });
    if let (Some(key), Some(object)) = (state_key, object.as_object_mut()) {
        object.insert("state_key".to_owned(), key.into());
    }
    let object = integrity::parse_object(&object.to_string()).expect("canonical");
    let rules = version::rules(&RoomVersionId::V11).expect("served");
    let room = RoomId::parse(ROOM).expect("a room id");
    Event::new(event_id!("$event").to_owned(), room, &object, rules).expect("an event")
}

/// ruma's evaluation, which never waits for anything.
fn by_ruma(
    ruleset: &Ruleset,
    event: &Event,
    members: u64,
    may_notify: bool,
    user: &UserId,
    name: &str,
) -> String {
    let users = BTreeMap::from([(
        event.header.sender.clone(),
        if may_notify { int!(50) } else { int!(0) },
    )]);
    let power = PushConditionPowerLevelsCtx::new(
        users,
        int!(0),
        NotificationPowerLevels::new(),
        RoomPowerLevelsRules::new(
            &version::rules(&RoomVersionId::V11)
                .expect("served")
                .authorization,
            [],
        ),
    );
    let context = PushConditionRoomCtx::new(
        event.header.room_id.clone(),
        members.try_into().expect("small"),
        user.to_owned(),
        name.to_owned(),
    )
    .with_power_levels(power);
    let json = format::client(event, Shape::Client, &Unsigned::default());
    let raw: Raw<Value> = serde_json::from_str(&json).expect("JSON");
    let mut task = Context::from_waker(Waker::noop());
    match pin!(ruleset.get_actions(&raw, &context)).poll(&mut task) {
        Poll::Ready(actions) => serde_json::to_string(actions).expect("JSON"),
        Poll::Pending => panic!("there is nothing to wait for"),
    }
}

fn by_us(
    ruleset: &Ruleset,
    event: &Event,
    members: u64,
    may_notify: bool,
    user: &UserId,
    name: &str,
) -> String {
    let occasion = Occasion::new(event, members, may_notify);
    let rules = Rules::new(ruleset, user);
    let outcome = occasion.evaluate(&rules, user, || name.to_owned());
    let slow = Rules {
        are_predefined: false,
        ..rules.clone()
    };
    let slow = occasion.evaluate(&slow, user, || name.to_owned());
    let actions = serde_json::to_string(outcome.actions).expect("JSON");
    assert_eq!(
        actions,
        serde_json::to_string(slow.actions).expect("JSON"),
        "the quick way and the plain way differ"
    );
    assert_eq!(outcome.notify, actions.contains("notify"));
    assert_eq!(outcome.highlight, actions.contains("highlight"));
    actions
}

#[test]
fn the_predefined_rules() {
    let user = user_id!("@me:example.org");
    let sound = r#"["notify",{"set_tweak":"sound","value":"default"}]"#;
    let highlight = r#"["notify",{"set_tweak":"highlight"}]"#;
    let both = r#"["notify",{"set_tweak":"sound","value":"default"},{"set_tweak":"highlight"}]"#;
    let me = "@me:example.org";
    for (event_type, state_key, content, members, expect) in [
        (
            "m.room.message",
            None,
            json!({ "body": "x" }),
            3,
            r#"["notify"]"#,
        ),
        ("m.room.message", None, json!({ "body": "x" }), 2, sound),
        (
            "m.room.message",
            None,
            json!({ "body": "x" }),
            1,
            r#"["notify"]"#,
        ),
        ("m.room.encrypted", None, json!({}), 2, sound),
        ("m.room.encrypted", None, json!({}), 9, r#"["notify"]"#),
        (
            "m.room.message",
            None,
            json!({ "msgtype": "m.notice" }),
            2,
            "[]",
        ),
        (
            "m.room.message",
            None,
            json!({ "msgtype": "M.Notice" }),
            2,
            "[]",
        ),
        (
            "m.room.message",
            None,
            json!({ "m.mentions": { "user_ids": [me] } }),
            3,
            both,
        ),
        (
            "m.room.message",
            None,
            json!({ "m.mentions": { "user_ids": ["@you:example.org"] } }),
            3,
            r#"["notify"]"#,
        ),
        (
            "m.room.message",
            None,
            json!({ "m.mentions": { "user_ids": me } }),
            3,
            r#"["notify"]"#,
        ),
        (
            "m.room.message",
            None,
            json!({ "m.mentions": { "room": true } }),
            3,
            highlight,
        ),
        (
            "m.room.message",
            None,
            json!({ "m.mentions": { "room": "true" } }),
            3,
            r#"["notify"]"#,
        ),
        (
            "m.room.message",
            None,
            json!({ "m.relates_to": { "rel_type": "m.replace" } }),
            3,
            "[]",
        ),
        (
            "m.room.message",
            None,
            json!({ "m.relates_to": { "rel_type": "m.replace" }, "m.mentions": { "user_ids": [me] } }),
            3,
            both,
        ),
        (
            "m.room.message",
            None,
            json!({ "m.relates_to": { "rel_type": "m.thread" } }),
            3,
            r#"["notify"]"#,
        ),
        ("m.reaction", None, json!({}), 2, "[]"),
        (POLL_START, None, json!({}), 2, sound),
        (POLL_START, None, json!({}), 3, r#"["notify"]"#),
        (POLL_RESPONSE, None, json!({}), 2, "[]"),
        (POLL_END, None, json!({}), 2, sound),
        (POLL_END, None, json!({}), 3, r#"["notify"]"#),
        (
            POLL_RESPONSE,
            None,
            json!({ "m.mentions": { "user_ids": [me] } }),
            3,
            both,
        ),
        (
            "m.room.member",
            Some(me),
            json!({ "membership": "invite" }),
            3,
            sound,
        ),
        (
            "m.room.member",
            Some("@you:example.org"),
            json!({ "membership": "invite" }),
            3,
            "[]",
        ),
        (
            "m.room.member",
            Some(me),
            json!({ "membership": "join", "m.mentions": { "user_ids": [me] } }),
            3,
            "[]",
        ),
        ("m.room.tombstone", Some(""), json!({}), 3, highlight),
        ("m.room.tombstone", Some("x"), json!({}), 3, "[]"),
        ("m.room.server_acl", Some(""), json!({}), 3, "[]"),
        ("m.room.topic", Some(""), json!({ "topic": "x" }), 2, "[]"),
        (
            "m.call.invite",
            None,
            json!({}),
            2,
            r#"["notify",{"set_tweak":"sound","value":"ring"}]"#,
        ),
    ] {
        let event = event(event_type, state_key, "@you:example.org", &content);
        let actions = by_us(&predefined(user), &event, members, true, user, "me");
        assert_eq!(actions, expect, "{event_type} {content}");
        let own = self::event(event_type, state_key, me, &content);
        assert_eq!(
            by_us(&predefined(user), &own, members, true, user, "me"),
            "[]",
            "own events"
        );
    }
}

#[test]
fn a_text_mentions_whom_it_names() {
    let user = user_id!("@me:example.org");
    let highlight = r#"["notify",{"set_tweak":"highlight"}]"#;
    let both = r#"["notify",{"set_tweak":"sound","value":"default"},{"set_tweak":"highlight"}]"#;
    let plain = r#"["notify"]"#;
    let edit = json!({ "rel_type": "m.replace" });
    for (content, may_notify, expect) in [
        (json!({ "body": "hello Me!" }), false, both),
        (json!({ "body": "ask @me:example.org" }), false, both),
        (json!({ "body": "more tea?" }), false, both),
        (json!({ "body": "some teapots" }), false, plain),
        (json!({ "body": 5 }), false, plain),
        (
            json!({ "body": "hello me", "m.mentions": {} }),
            false,
            plain,
        ),
        (json!({ "body": "hello @room" }), true, highlight),
        (json!({ "body": "hello @room" }), false, plain),
        (
            json!({ "body": "hello @room", "m.mentions": {} }),
            true,
            plain,
        ),
        (json!({ "body": "me and the @room" }), true, highlight),
        (json!({ "body": "tea for the @room" }), true, both),
        (json!({ "body": "me", "m.relates_to": edit }), false, "[]"),
        (json!({ "body": "tea", "m.relates_to": edit }), false, both),
        (json!({ "body": "me", "msgtype": "m.notice" }), true, "[]"),
    ] {
        let event = event("m.room.message", None, "@you:example.org", &content);
        let actions = by_us(&predefined(user), &event, 3, may_notify, user, "Tea");
        assert_eq!(actions, expect, "{content}");
    }
}

#[test]
fn the_room_is_notified_only_by_those_who_may() {
    let user = user_id!("@me:example.org");
    let event = event(
        "m.room.message",
        None,
        "@you:example.org",
        &json!({ "m.mentions": { "room": true } }),
    );
    assert_eq!(
        by_us(&predefined(user), &event, 3, false, user, "me"),
        r#"["notify"]"#
    );
}

/// Rules of every kind that a user may have made, some of them switched off.
fn own_rules(choice: u32) -> Ruleset {
    let user = user_id!("@me:example.org");
    let rule = |id: &str, enabled: bool, conditions: Value, actions: Value| json!({ "rule_id": id, "default": id.starts_with('.'), "enabled": enabled, "conditions": conditions, "actions": actions });
    let on = |bit: u32| choice & (1 << bit) != 0;
    let extra = json!({
        "override": [
            rule("mute words", on(0), json!([{ "kind": "event_match", "key": "content.body", "pattern": "sp?m*" }]), json!([])),
            rule("few", on(1), json!([{ "kind": "room_member_count", "is": "<4" }]), json!(["notify"])),
            rule("flag", on(2), json!([{ "kind": "event_property_is", "key": r"content.a\.b.flag", "value": true }]), json!([])),
            rule("null", on(3), json!([{ "kind": "event_property_is", "key": "content.nothing", "value": null }]), json!([])),
            rule("number", on(4), json!([{ "kind": "event_property_is", "key": "content.n", "value": 5 }]), json!([])),
            rule("type", on(5), json!([{ "kind": "event_property_is", "key": "type", "value": "m.room.topic" }]), json!(["notify"])),
            rule("list", on(6), json!([{ "kind": "event_property_contains", "key": "content.list", "value": "x" }]), json!(["notify"])),
            rule("strange", on(7), json!([{ "kind": "org.example.strange" }]), json!(["notify"])),
            rule("other power", on(8), json!([{ "kind": "sender_notification_permission", "key": "other" }]), json!([])),
            rule("whole content", on(9), json!([{ "kind": "event_match", "key": "content", "pattern": "*" }]), json!([])),
            rule(".m.rule.contains_display_name", on(10), json!([{ "kind": "contains_display_name" }]), json!(["notify", { "set_tweak": "highlight" }])),
            rule(".m.rule.roomnotif", on(11), json!([{ "kind": "event_match", "key": "content.body", "pattern": "@room" }]), json!(["notify"])),
            rule("key", on(12), json!([{ "kind": "event_match", "key": "state_key", "pattern": "*" }]), json!(["notify"])),
        ],
        "content": [{ "rule_id": "word", "default": false, "enabled": on(13), "pattern": "Tea*", "actions": ["notify"] },
            { "rule_id": ".m.rule.contains_user_name", "default": true, "enabled": on(14), "pattern": "me", "actions": ["notify"] }],
        "room": [{ "rule_id": ROOM, "default": false, "enabled": on(15), "actions": [] }],
        "sender": [{ "rule_id": "@you:example.org", "default": false, "enabled": on(16), "actions": [] }],
        "underride": [rule("last", on(17), json!([]), json!(["notify"]))],
    });
    let mut ruleset: Ruleset = serde_json::from_value(extra).expect("rules");
    if on(18) {
        let defaults = predefined(user);
        ruleset.override_.extend(defaults.override_);
        ruleset.underride.extend(defaults.underride);
    }
    if on(19) { predefined(user) } else { ruleset }
}

fn content() -> impl Strategy<Value = Value> {
    let body = "(spam|sp m|tea|teapot|steam|me|Me|@room|a|\u{e4}|!|_| ){0,6}";
    let relation = prop_oneof![Just("m.replace"), Just("m.thread"), Just("m.annotation")];
    let mentions = prop_oneof![
        Just(json!({})),
        Just(json!({ "room": true })),
        Just(json!({ "room": false, "user_ids": ["@me:example.org", 5, "garbage"] })),
        Just(json!({ "room": true, "user_ids": ["@you:example.org"] })),
        Just(json!("odd")),
    ];
    let msgtype = prop_oneof![Just("m.text"), Just("m.notice"), Just("M.NOTICE")];
    let membership = prop_oneof![Just("invite"), Just("join"), Just("INVITE")];
    let optional = proptest::option::of::<BoxedStrategy<Value>>;
    let of = |strategy: BoxedStrategy<Value>| optional(strategy);
    let fields: [(&str, BoxedStrategy<Value>); 9] = [
        ("body", body.prop_map(Value::from).boxed()),
        (
            "m.relates_to",
            relation
                .prop_map(|kind| json!({ "rel_type": kind, "event_id": "$x" }))
                .boxed(),
        ),
        ("m.mentions", mentions.boxed()),
        ("msgtype", msgtype.prop_map(Value::from).boxed()),
        ("membership", membership.prop_map(Value::from).boxed()),
        ("a.b", Just(json!({ "flag": true })).boxed()),
        ("nothing", Just(Value::Null).boxed()),
        ("n", (4..6).prop_map(Value::from).boxed()),
        ("list", Just(json!(["x", 1, null, {}])).boxed()),
    ];
    fields
        .map(|(name, strategy)| {
            of(strategy).prop_map(move |value| value.map(|value| (name.to_owned(), value)))
        })
        .prop_map(|fields| Value::Object(fields.into_iter().flatten().collect()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn ruma_says_the_same(
        event_type in prop_oneof![
            Just("m.room.message"), Just("m.room.encrypted"), Just("m.reaction"), Just("m.room.member"),
            Just("m.room.tombstone"), Just("m.room.server_acl"), Just("m.call.invite"), Just("m.room.topic"),
            Just("M.Room.Message"), Just(POLL_START), Just(POLL_RESPONSE), Just(POLL_END),
        ],
        state_key in proptest::option::of(prop_oneof![Just(""), Just("x"), Just("@me:example.org"), Just("@ME:example.org")]),
        sender in prop_oneof![Just("@me:example.org"), Just("@you:example.org"), Just("@she:example.org")],
        content in content(),
        members in 1..6_u64,
        may_notify: bool,
        choice: u32,
        name in prop_oneof![Just("me"), Just("Tea"), Just("a"), Just("")],
    ) {
        let user = user_id!("@me:example.org");
        let event = event(event_type, state_key, sender, &content);
        let ruleset = own_rules(choice);
        let theirs = by_ruma(&ruleset, &event, members, may_notify, user, name);
        prop_assert_eq!(by_us(&ruleset, &event, members, may_notify, user, name), theirs, "{} {}", event_type, content);
    }
}

#[test]
fn only_untouched_rules_are_predefined() {
    let user = user_id!("@me:example.org");
    assert!(Rules::new(&predefined(user), user).are_predefined);
    assert!(!Rules::new(&predefined(user), user_id!("@you:example.org")).are_predefined);
    let strange = <&UserId>::try_from("@m*:example.org").expect("a historical id");
    assert!(!Rules::new(&predefined(strange), strange).are_predefined);
    let mut muted = predefined(user);
    muted
        .set_enabled(ruma::push::RuleKind::Override, ".m.rule.master", true)
        .expect("there");
    assert!(!Rules::new(&muted, user).are_predefined);
    let event = event(
        "m.room.message",
        None,
        "@you:example.org",
        &json!({ "m.mentions": { "user_ids": [user] } }),
    );
    assert_eq!(by_us(&muted, &event, 2, true, user, "me"), "[]");
}
