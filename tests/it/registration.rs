//! "Account registration".

use kontor::config::RegistrationMode;
use serde_json::{Value, json};

use crate::server::{PASSWORD, TestServer, ok, refused, text};

const REGISTER: &str = "/_matrix/client/v3/register";
const WHOAMI: &str = "/_matrix/client/v3/account/whoami";

fn wish(username: &str) -> Value {
    json!({ "username": username, "password": PASSWORD, "auth": { "type": "m.login.dummy" } })
}

#[tokio::test]
async fn registering_asks_for_a_stage_and_then_logs_in() {
    let server = TestServer::new();
    let anonymous = server.anonymous();
    let mut body = json!({ "username": "alice", "password": PASSWORD, "device_id": "D1" });
    let (status, asked) = anonymous.post(REGISTER, body.clone()).await;
    assert_eq!(status, 401);
    assert_eq!(
        asked["flows"],
        json!([{ "stages": ["m.login.dummy"] }]),
        "{asked}"
    );
    assert!(asked["params"].is_object() && asked.get("errcode").is_none());

    body["auth"] = json!({ "type": "m.login.dummy", "session": asked["session"] });
    let alice = ok(anonymous.post(REGISTER, body.clone()).await);
    assert_eq!(alice["user_id"], "@alice:localhost");
    assert_eq!(alice["device_id"], "D1");
    assert!(alice.get("refresh_token").is_none() && alice.get("expires_in_ms").is_none());
    let whoami = ok(server.client(&alice).get(WHOAMI).await);
    assert_eq!(
        whoami,
        json!({ "user_id": "@alice:localhost", "device_id": "D1" })
    );

    // The session is used up, and the name is taken.
    refused(anonymous.post(REGISTER, body).await, 400, "M_USER_IN_USE");
    let again = json!({
        "username": "bob",
        "auth": { "type": "m.login.dummy", "session": asked["session"] },
    });
    refused(
        anonymous.post(REGISTER, again).await,
        400,
        "M_INVALID_PARAM",
    );
}

#[tokio::test]
async fn user_names_follow_the_rules() {
    let server = TestServer::new();
    let anonymous = server.anonymous();
    for (username, errcode) in [
        ("", "M_INVALID_USERNAME"),
        ("Al ice", "M_INVALID_USERNAME"),
        ("al:ice", "M_INVALID_USERNAME"),
        ("älice", "M_INVALID_USERNAME"),
        ("@alice", "M_INVALID_USERNAME"),
        ("_alice", "M_INVALID_USERNAME"),
        (&"x".repeat(250), "M_INVALID_USERNAME"),
    ] {
        refused(anonymous.post(REGISTER, wish(username)).await, 400, errcode);
    }
    for username in ["a.b_c=d-e/f+g", "7", "Upper"] {
        let made = ok(anonymous.post(REGISTER, wish(username)).await);
        let expect = format!("@{}:localhost", username.to_lowercase());
        assert_eq!(made["user_id"], expect);
    }
    refused(
        anonymous.post(REGISTER, wish("upper")).await,
        400,
        "M_USER_IN_USE",
    );
    let nameless = json!({ "auth": { "type": "m.login.dummy" } });
    let one = ok(anonymous.post(REGISTER, nameless.clone()).await);
    let other = ok(anonymous.post(REGISTER, nameless).await);
    assert_ne!(text(&one, "user_id"), text(&other, "user_id"));
}

#[tokio::test]
async fn passwords_must_not_be_too_short() {
    for (shortest, password) in [(8_u8, "1234567"), (3, "\u{442}\u{442}")] {
        let server = TestServer::with(|config| {
            config.registration.shortest_password = shortest.try_into().unwrap();
        });
        let anonymous = server.anonymous();
        let mut body = wish("alice");
        body["password"] = json!(password);
        refused(
            anonymous.post(REGISTER, body.clone()).await,
            400,
            "M_WEAK_PASSWORD",
        );
        body["password"] = json!(format!("{password}x"));
        ok(anonymous.post(REGISTER, body).await);
    }
}

#[tokio::test]
async fn logging_in_can_be_left_out() {
    let server = TestServer::new();
    let mut body = wish("alice");
    body["inhibit_login"] = json!(true);
    let made = ok(server.anonymous().post(REGISTER, body).await);
    assert_eq!(made, json!({ "user_id": "@alice:localhost" }));
    server.log_in("alice").await;
}

#[tokio::test]
async fn the_first_token_makes_one_admin_even_where_registration_is_closed() {
    for mode in [
        RegistrationMode::Closed,
        RegistrationMode::Token,
        RegistrationMode::Open,
    ] {
        let server = TestServer::with(|config| config.registration.mode = mode);
        let token = server.services.accounts.first_token().await.unwrap();
        let token = token.expect("there are no accounts");
        // It survives a restart, but is shown only once.
        let server = server.restart();
        assert_eq!(server.services.accounts.first_token().await.unwrap(), None);
        let anonymous = server.anonymous();

        let with = |token: &str, username: &str| {
            let auth = json!({ "type": "m.login.registration_token", "token": token });
            json!({ "username": username, "password": PASSWORD, "auth": auth })
        };
        let (status, wrong) = anonymous.post(REGISTER, with("wrong", "alice")).await;
        assert_eq!(status, 401, "{wrong}");
        assert_eq!(wrong["errcode"], "M_UNAUTHORIZED", "{wrong}");
        assert!(wrong["session"].is_string(), "{wrong}");

        let alice = ok(anonymous.post(REGISTER, with(&token, "alice")).await);
        assert!(server.requester(&server.client(&alice)).admin);

        let again = anonymous.post(REGISTER, with(&token, "bob")).await;
        match mode {
            RegistrationMode::Closed => refused(again, 403, "M_FORBIDDEN"),
            RegistrationMode::Token => refused(again, 401, "M_UNAUTHORIZED"),
            RegistrationMode::Open => refused(again, 401, "M_UNRECOGNIZED"),
        }
    }
}

#[tokio::test]
async fn guests_are_let_in_only_where_they_are_welcome() {
    let server = TestServer::new();
    let path = format!("{REGISTER}?kind=guest");
    refused(
        server.anonymous().post(&path, json!({})).await,
        403,
        "M_GUEST_ACCESS_FORBIDDEN",
    );
}

#[tokio::test]
async fn registrations_are_limited_by_address() {
    let server = TestServer::with(|config| config.limits.enabled = true);
    let anonymous = server.anonymous();
    let mut made = 0;
    let refusal = loop {
        let answer = anonymous.post(REGISTER, wish(&format!("user{made}"))).await;
        if answer.0 != 200 {
            break answer;
        }
        made += 1;
    };
    assert_eq!(made, 20);
    assert!(refusal.1["retry_after_ms"].is_u64());
    refused(refusal, 429, "M_LIMIT_EXCEEDED");
}

#[tokio::test]
async fn a_name_can_be_tried_first() {
    let server = TestServer::new();
    server.register("alice").await;
    let available = "/_matrix/client/v3/register/available";
    let anonymous = server.anonymous();
    let ask = async |query: &str| anonymous.get(&format!("{available}{query}")).await;
    assert_eq!(ok(ask("?username=bob").await), json!({ "available": true }));
    refused(ask("?username=alice").await, 400, "M_USER_IN_USE");
    refused(ask("?username=A%20b").await, 400, "M_INVALID_USERNAME");
    refused(ask("").await, 400, "M_MISSING_PARAM");
}

#[tokio::test]
async fn a_registration_token_can_be_tried_first() {
    let server = TestServer::with(|config| config.limits.enabled = true);
    let token = server.services.accounts.first_token().await.unwrap();
    let path = "/_matrix/client/v1/register/m.login.registration_token/validity?token=";
    let anonymous = server.anonymous();
    let ask = async |token: &str| anonymous.get(&format!("{path}{token}")).await;
    assert_eq!(ok(ask(&token.unwrap()).await), json!({ "valid": true }));
    for _ in 0..19 {
        assert_eq!(ok(ask("guess").await), json!({ "valid": false }));
    }
    refused(ask("guess").await, 429, "M_LIMIT_EXCEEDED");
}
