//! "Refreshing access tokens" and login tokens.

use std::time::Duration;

use serde_json::{Value, json};

use crate::server::{Client, PASSWORD, TestServer, ok, refused, text};

const REFRESH: &str = "/_matrix/client/v3/refresh";
const WHOAMI: &str = "/_matrix/client/v3/account/whoami";

/// A client that can refresh, and its refresh token.
async fn refreshable(server: &TestServer) -> (Client, String) {
    let body = json!({
        "username": "alice",
        "password": PASSWORD,
        "refresh_token": true,
        "auth": { "type": "m.login.dummy" },
    });
    let register = "/_matrix/client/v3/register";
    let body = ok(server.anonymous().post(register, body).await);
    assert_eq!(body["expires_in_ms"], 3_600_000);
    (server.client(&body), text(&body, "refresh_token"))
}

async fn refresh(client: &Client, token: &str) -> (Client, Value) {
    let mut anonymous = client.clone();
    anonymous.token = None;
    let body = json!({ "refresh_token": token });
    let body = ok(anonymous.post(REFRESH, body).await);
    let mut client = client.clone();
    client.token = Some(text(&body, "access_token"));
    (client, body)
}

#[tokio::test]
async fn an_expired_token_is_a_soft_logout() {
    let server = TestServer::new();
    let (alice, token) = refreshable(&server).await;
    ok(alice.get(WHOAMI).await);
    server.clock.advance(Duration::from_secs(3_599));
    ok(alice.get(WHOAMI).await);
    server.clock.advance(Duration::from_secs(1));
    let answer = alice.get(WHOAMI).await;
    assert_eq!(answer.1["soft_logout"], true);
    refused(answer, 401, "M_UNKNOWN_TOKEN");

    let (alice, body) = refresh(&alice, &token).await;
    assert_eq!(body["expires_in_ms"], 3_600_000);
    let whoami = ok(alice.get(WHOAMI).await);
    assert_eq!(whoami["device_id"], alice.device_id.as_str());
}

#[tokio::test]
async fn a_refresh_token_is_good_until_what_it_gave_is_used() {
    let server = TestServer::new();
    let (first, one) = refreshable(&server).await;
    ok(first.get(WHOAMI).await);

    // The answer is lost; the client asks again.
    let (lost, body) = refresh(&first, &one).await;
    let two = text(&body, "refresh_token");
    refused(first.get(WHOAMI).await, 401, "M_UNKNOWN_TOKEN");
    let (second, body) = refresh(&first, &one).await;
    let three = text(&body, "refresh_token");
    refused(lost.get(WHOAMI).await, 401, "M_UNKNOWN_TOKEN");
    let gone = json!({ "refresh_token": two });
    refused(lost.post(REFRESH, gone).await, 401, "M_UNKNOWN_TOKEN");

    // Using the new access token ends the old refresh token.
    ok(second.get(WHOAMI).await);
    let used = json!({ "refresh_token": one });
    refused(second.post(REFRESH, used).await, 401, "M_UNKNOWN_TOKEN");

    // So does using the new refresh token.
    let (third, body) = refresh(&second, &three).await;
    let four = text(&body, "refresh_token");
    let (fourth, _) = refresh(&third, &four).await;
    let used = json!({ "refresh_token": three });
    refused(fourth.post(REFRESH, used).await, 401, "M_UNKNOWN_TOKEN");
    ok(fourth.get(WHOAMI).await);

    ok(fourth.post("/_matrix/client/v3/logout", json!({})).await);
    let used = json!({ "refresh_token": four });
    refused(fourth.post(REFRESH, used).await, 401, "M_UNKNOWN_TOKEN");
    let made_up = json!({ "refresh_token": "made up" });
    refused(fourth.post(REFRESH, made_up).await, 401, "M_UNKNOWN_TOKEN");
}

#[tokio::test]
async fn a_login_token_lets_another_device_in_once_and_soon() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let path = "/_matrix/client/v1/login/get_token";
    assert_eq!(alice.post(path, json!({})).await.0, 401);
    let auth = json!({
        "type": "m.login.password",
        "identifier": { "type": "m.id.user", "user": "alice" },
        "password": PASSWORD,
    });
    let issue = async || ok(alice.post(path, json!({ "auth": auth.clone() })).await);
    let log_in = async |token: &Value| {
        let body = json!({ "type": "m.login.token", "token": token });
        let login = "/_matrix/client/v3/login";
        server.anonymous().post(login, body).await
    };

    let issued = issue().await;
    assert_eq!(issued["expires_in_ms"], 120_000);
    let session = ok(log_in(&issued["login_token"]).await);
    assert_eq!(session["user_id"], "@alice:localhost");
    assert_ne!(session["device_id"], alice.device_id.as_str());
    refused(log_in(&issued["login_token"]).await, 403, "M_FORBIDDEN");

    let issued = issue().await;
    server.clock.advance(Duration::from_secs(120));
    refused(log_in(&issued["login_token"]).await, 403, "M_FORBIDDEN");
    refused(log_in(&json!("made up")).await, 403, "M_FORBIDDEN");
}
