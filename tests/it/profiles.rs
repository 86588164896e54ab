//! "Profiles".

use serde_json::{Value, json};

use crate::server::{Client, TestServer, ok, refused};

fn path(field: &str) -> String {
    format!("/_matrix/client/v3/profile/@alice:localhost/{field}")
}

async fn set(client: &Client, field: &str, value: Value) -> crate::server::Answer {
    client.put(&path(field), json!({ field: value })).await
}

#[tokio::test]
async fn a_profile_is_set_by_its_owner_and_read_by_everybody() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let anonymous = server.anonymous();
    let whole = "/_matrix/client/v3/profile/@alice:localhost";
    assert_eq!(
        ok(anonymous.get(whole).await),
        json!({ "displayname": "alice" })
    );
    refused(anonymous.get(&path("avatar_url")).await, 404, "M_NOT_FOUND");

    ok(set(&alice, "displayname", json!("Alice \"A\"")).await);
    ok(set(&alice, "avatar_url", json!("mxc://localhost/a")).await);
    ok(set(&alice, "m.tz", json!("Europe/Berlin")).await);
    ok(set(&alice, "org.example.pets", json!(["cat", { "n": 1 }])).await);
    let expect = json!({
        "displayname": "Alice \"A\"",
        "avatar_url": "mxc://localhost/a",
        "m.tz": "Europe/Berlin",
        "org.example.pets": ["cat", { "n": 1 }],
    });
    assert_eq!(ok(anonymous.get(whole).await), expect);
    assert_eq!(
        ok(anonymous.get(&path("org.example.pets")).await),
        json!({ "org.example.pets": ["cat", { "n": 1 }] })
    );

    ok(alice.delete(&path("m.tz")).await);
    ok(alice.delete(&path("m.tz")).await);
    // How older clients take them away.
    ok(set(&alice, "displayname", json!(null)).await);
    ok(set(&alice, "avatar_url", json!("")).await);
    assert_eq!(
        ok(anonymous.get(whole).await),
        json!({ "org.example.pets": ["cat", { "n": 1 }] })
    );
    // Any text is an address.
    ok(set(&alice, "avatar_url", json!("no address")).await);
    assert_eq!(
        ok(anonymous.get(&path("avatar_url")).await),
        json!({ "avatar_url": "no address" })
    );
    ok(alice.delete(&path("avatar_url")).await);
    let server = server.restart();
    assert_eq!(
        ok(server.anonymous().get(whole).await),
        json!({ "org.example.pets": ["cat", { "n": 1 }] })
    );
}

#[tokio::test]
async fn what_a_profile_can_not_be_is_refused() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    refused(
        set(&bob, "displayname", json!("Eve")).await,
        403,
        "M_FORBIDDEN",
    );
    refused(bob.delete(&path("displayname")).await, 403, "M_FORBIDDEN");
    let other = "/_matrix/client/v3/profile/@nobody:localhost";
    refused(bob.get(other).await, 404, "M_NOT_FOUND");
    let bad = "/_matrix/client/v3/profile/nobody";
    refused(bob.get(bad).await, 400, "M_INVALID_PARAM");

    for (field, value, errcode) in [
        ("displayname", json!(5), "M_BAD_JSON"),
        ("displayname", json!("x".repeat(257)), "M_INVALID_PARAM"),
        ("avatar_url", json!({}), "M_BAD_JSON"),
        ("avatar_url", json!("x".repeat(1_001)), "M_INVALID_PARAM"),
        ("Upper", json!(1), "M_INVALID_PARAM"),
        ("1st", json!(1), "M_INVALID_PARAM"),
        (&"x".repeat(256), json!(1), "M_KEY_TOO_LARGE"),
    ] {
        refused(set(&alice, field, value).await, 400, errcode);
    }
    let missing = alice.put(&path("m.tz"), json!({ "other": 1 })).await;
    refused(missing, 400, "M_MISSING_PARAM");
    refused(alice.put(&path("m.tz"), json!([])).await, 400, "M_BAD_JSON");
}

#[tokio::test]
async fn a_profile_has_at_most_64_kib() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    // {"displayname":"alice","a":"…"} is 31 bytes and the text.
    let most = (64 << 10) - 29;
    refused(
        set(&alice, "a", json!("x".repeat(most + 1))).await,
        400,
        "M_PROFILE_TOO_LARGE",
    );
    ok(set(&alice, "a", json!("x".repeat(most - 10))).await);
    ok(set(&alice, "a", json!("y".repeat(most - 10))).await);
    refused(
        set(&alice, "b", json!("x".repeat(10))).await,
        400,
        "M_PROFILE_TOO_LARGE",
    );
}
