//! "Login" and "Using access tokens".

use std::time::Duration;

use serde_json::{Value, json};

use crate::server::{PASSWORD, TestServer, ok, refused};

const LOGIN: &str = "/_matrix/client/v3/login";
const LOGOUT: &str = "/_matrix/client/v3/logout";
const WHOAMI: &str = "/_matrix/client/v3/account/whoami";

fn password_of(user: &str, password: &str) -> Value {
    json!({
        "type": "m.login.password",
        "identifier": { "type": "m.id.user", "user": user },
        "password": password,
    })
}

#[tokio::test]
async fn the_ways_to_log_in_are_listed() {
    let flows = ok(TestServer::new().anonymous().get(LOGIN).await);
    assert_eq!(
        flows["flows"],
        json!([
            { "type": "m.login.password" },
            { "type": "m.login.token", "get_login_token": true },
        ])
    );
}

#[tokio::test]
async fn a_user_is_named_by_id_or_localpart() {
    let server = TestServer::new();
    server.register("alice").await;
    let anonymous = server.anonymous();
    let old_fashioned =
        json!({ "type": "m.login.password", "user": "alice", "password": PASSWORD });
    for body in [
        password_of("alice", PASSWORD),
        password_of("Alice", PASSWORD),
        password_of("@alice:localhost", PASSWORD),
        old_fashioned,
    ] {
        let session = ok(anonymous.post(LOGIN, body).await);
        assert_eq!(session["user_id"], "@alice:localhost");
    }
    for user in ["@alice:example.org", "bob", "", "@"] {
        refused(
            anonymous.post(LOGIN, password_of(user, PASSWORD)).await,
            403,
            "M_FORBIDDEN",
        );
    }
    refused(
        anonymous.post(LOGIN, password_of("alice", "wrong")).await,
        403,
        "M_FORBIDDEN",
    );
}

#[tokio::test]
async fn malformed_logins_are_refused() {
    let server = TestServer::new();
    let anonymous = server.anonymous();
    for (body, errcode) in [
        (json!({}), "M_BAD_JSON"),
        (json!({ "type": 5 }), "M_BAD_JSON"),
        (json!({ "type": "m.login.password" }), "M_BAD_JSON"),
        (
            json!({ "type": "m.login.password", "user": "a" }),
            "M_BAD_JSON",
        ),
        (json!({ "type": "m.login.token" }), "M_BAD_JSON"),
        (json!({ "type": "m.login.sso" }), "M_UNKNOWN"),
    ] {
        refused(anonymous.post(LOGIN, body).await, 400, errcode);
    }
}

#[tokio::test]
async fn a_device_that_logs_in_again_loses_its_old_token() {
    let server = TestServer::new();
    let first = server.register("alice").await;
    ok(first.get(WHOAMI).await);
    let mut body = password_of("alice", PASSWORD);
    body["device_id"] = json!(first.device_id);
    let second = server.client(&ok(server.anonymous().post(LOGIN, body).await));
    assert_eq!(second.device_id, first.device_id);
    refused(first.get(WHOAMI).await, 401, "M_UNKNOWN_TOKEN");
    ok(second.get(WHOAMI).await);

    let mut body = password_of("alice", PASSWORD);
    body["device_id"] = json!("x".repeat(256));
    refused(
        server.anonymous().post(LOGIN, body).await,
        400,
        "M_INVALID_PARAM",
    );
}

#[tokio::test]
async fn logging_out_ends_one_session_or_all() {
    let server = TestServer::new();
    let (one, two) = (server.register("alice").await, server.log_in("alice").await);
    let bob = server.register("bob").await;
    for client in [&one, &two, &bob] {
        ok(client.get(WHOAMI).await);
    }
    assert_eq!(ok(one.post(LOGOUT, json!({})).await), json!({}));
    refused(one.get(WHOAMI).await, 401, "M_UNKNOWN_TOKEN");
    ok(two.get(WHOAMI).await);

    let three = server.log_in("alice").await;
    ok(three.post("/_matrix/client/v3/logout/all", json!({})).await);
    for gone in [&two, &three] {
        refused(gone.get(WHOAMI).await, 401, "M_UNKNOWN_TOKEN");
    }
    ok(bob.get(WHOAMI).await);
    let _server = server.restart();
    ok(bob.get(WHOAMI).await);
    refused(one.get(WHOAMI).await, 401, "M_UNKNOWN_TOKEN");
}

#[tokio::test]
async fn guessing_passwords_is_limited_by_account() {
    let server = TestServer::with(|config| config.limits.enabled = true);
    server.register("alice").await;
    server.register("bob").await;
    let anonymous = server.anonymous();
    for _ in 0..5 {
        let wrong = anonymous.post(LOGIN, password_of("alice", "wrong")).await;
        refused(wrong, 403, "M_FORBIDDEN");
    }
    let right = anonymous.post(LOGIN, password_of("alice", PASSWORD)).await;
    refused(right, 429, "M_LIMIT_EXCEEDED");
    ok(anonymous.post(LOGIN, password_of("bob", PASSWORD)).await);
    server.clock.advance(Duration::from_secs(6));
    ok(anonymous.post(LOGIN, password_of("alice", PASSWORD)).await);
}
