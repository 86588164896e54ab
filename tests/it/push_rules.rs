//! "Push rules".

use std::sync::Arc;

use ruma::user_id;
use serde_json::{Value, json};

use crate::server::{TestServer, ok, refused, text};

const RULES: &str = "/_matrix/client/v3/pushrules/";
const GLOBAL: &str = "/_matrix/client/v3/pushrules/global/";

fn ids(rules: &Value) -> Vec<String> {
    let rules = rules.as_array().into_iter().flatten();
    rules.map(|rule| text(rule, "rule_id")).collect()
}

#[tokio::test]
async fn everybody_begins_with_the_predefined_rules() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let all = ok(alice.get(RULES).await);
    assert_eq!(ids(&all["global"]["override"])[0], ".m.rule.master");
    assert_eq!(ok(alice.get(GLOBAL).await), all["global"]);
    let data = "/_matrix/client/v3/user/@alice:localhost/account_data/m.push_rules";
    assert_eq!(ok(alice.get(data).await), all);
    let master = ok(alice.get(&format!("{GLOBAL}override/.m.rule.master")).await);
    assert_eq!(master["enabled"], false);
    assert_eq!(master["default"], true);
}

#[tokio::test]
async fn polls_have_rules_that_can_be_changed() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let all = ok(alice.get(GLOBAL).await);
    let named = |list: &Value| {
        let mut ids = ids(list);
        ids.retain(|id| id.starts_with(".org.matrix.msc3930."));
        ids
    };
    assert_eq!(
        named(&all["override"]),
        [".org.matrix.msc3930.rule.poll_response"]
    );
    // What is for rooms of two comes before what is for all rooms.
    let start = ".org.matrix.msc3930.rule.poll_start";
    assert_eq!(
        named(&all["underride"]),
        [
            ".org.matrix.msc3930.rule.poll_start_one_to_one",
            start,
            ".org.matrix.msc3930.rule.poll_end_one_to_one",
            ".org.matrix.msc3930.rule.poll_end",
        ]
    );
    let path = format!("{GLOBAL}underride/{start}");
    let mut rule = json!({
        "rule_id": start, "default": true, "enabled": true, "actions": ["notify"],
        "conditions": [
            { "kind": "event_match", "key": "type", "pattern": "org.matrix.msc3381.poll.start" },
        ],
    });
    assert_eq!(ok(alice.get(&path).await), rule);
    let off = json!({ "enabled": false });
    ok(alice.put(&format!("{path}/enabled"), off).await);
    rule["enabled"] = json!(false);
    assert_eq!(ok(alice.get(&path).await), rule);
    refused(alice.delete(&path).await, 400, "M_INVALID_PARAM");
}

#[tokio::test]
async fn rules_are_added_in_order_changed_and_removed() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let path = |rest: &str| format!("{GLOBAL}content/{rest}");
    let rule = |pattern: &str| json!({ "pattern": pattern, "actions": ["notify"] });
    ok(alice.put(&path("one"), rule("1")).await);
    ok(alice.put(&path("two"), rule("2")).await);
    ok(alice.put(&path("three?after=two"), rule("3")).await);
    ok(alice.put(&path("four?before=two"), rule("4")).await);
    let content = |all: &Value| {
        let mut ids = ids(&all["content"]);
        ids.retain(|id| !id.starts_with('.'));
        ids
    };
    let all = ok(alice.get(GLOBAL).await);
    assert_eq!(content(&all), ["four", "two", "three", "one"]);

    ok(alice.put(&path("one"), rule("uno")).await);
    let one = ok(alice.get(&path("one")).await);
    assert_eq!(
        one,
        json!({
            "rule_id": "one", "pattern": "uno", "actions": ["notify"],
            "default": false, "enabled": true,
        })
    );
    ok(alice
        .put(&path("one/enabled"), json!({ "enabled": false }))
        .await);
    assert_eq!(
        ok(alice.get(&path("one/enabled")).await),
        json!({ "enabled": false })
    );
    let actions = json!({ "actions": [{ "set_tweak": "highlight" }] });
    ok(alice.put(&path("one/actions"), actions.clone()).await);
    assert_eq!(ok(alice.get(&path("one/actions")).await), actions);

    ok(alice.delete(&path("one")).await);
    for suffix in ["", "/enabled", "/actions"] {
        refused(
            alice.get(&path(&format!("one{suffix}"))).await,
            404,
            "M_NOT_FOUND",
        );
    }
}

#[tokio::test]
async fn what_a_rule_can_not_be_is_refused() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let rule = json!({ "pattern": "x", "actions": ["notify"] });
    for (path, errcode) in [
        ("content/.m.mine", "M_INVALID_PARAM"),
        ("content/a?after=none", "M_INVALID_PARAM"),
        (
            "content/a?before=.m.rule.contains_user_name",
            "M_INVALID_PARAM",
        ),
        ("room/notaroom", "M_INVALID_PARAM"),
        ("unknown/a", "M_INVALID_PARAM"),
        ("override/a", "M_BAD_JSON"),
    ] {
        let mut rule = rule.clone();
        if path.starts_with("override") {
            rule["conditions"] = json!(5);
        }
        refused(
            alice.put(&format!("{GLOBAL}{path}"), rule).await,
            400,
            errcode,
        );
    }
    let master = format!("{GLOBAL}override/.m.rule.master");
    refused(alice.delete(&master).await, 400, "M_INVALID_PARAM");
    let none = format!("{GLOBAL}content/none");
    refused(alice.delete(&none).await, 404, "M_NOT_FOUND");
    refused(alice.get(&none).await, 404, "M_NOT_FOUND");
    let enabled = json!({ "enabled": true });
    refused(
        alice.put(&format!("{none}/enabled"), enabled).await,
        404,
        "M_NOT_FOUND",
    );
    let actions = json!({ "actions": [] });
    refused(
        alice.put(&format!("{none}/actions"), actions).await,
        404,
        "M_NOT_FOUND",
    );
    refused(server.anonymous().get(RULES).await, 401, "M_MISSING_TOKEN");
}

#[tokio::test]
async fn compiled_rules_are_kept_until_they_change() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let user = user_id!("@alice:localhost");
    let accounts = &server.services.accounts;
    let first = accounts.push_rules(user).unwrap();
    assert!(Arc::ptr_eq(&first, &accounts.push_rules(user).unwrap()));
    let master = format!("{GLOBAL}override/.m.rule.master/enabled");
    ok(alice.put(&master, json!({ "enabled": true })).await);
    let second = accounts.push_rules(user).unwrap();
    assert!(!Arc::ptr_eq(&first, &second));
    assert_ne!(format!("{first:?}"), format!("{second:?}"));
    // Somebody who has none is given the predefined ones.
    accounts.push_rules(user_id!("@nobody:localhost")).unwrap();
}
