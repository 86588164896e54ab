//! "OpenID" in both APIs.

use std::time::Duration;

use kontor::config::FederationMode;
use serde_json::{Value, json};

use crate::{
    server::{Answer, Client, PASSWORD, TestServer, ok, refused, text},
    several::sound,
};

const INFO: &str = "/_matrix/federation/v1/openid/userinfo";

async fn issue(who: &Client, user: &str) -> Answer {
    let path = format!("/_matrix/client/v3/user/{user}/openid/request_token");
    who.post(&path, json!({})).await
}

async fn whose(server: &TestServer, issued: &Value) -> Answer {
    let token = text(issued, "access_token");
    let path = format!("{INFO}?access_token={token}");
    server.anonymous().get(&path).await
}

#[tokio::test]
async fn a_token_tells_others_who_somebody_is_for_an_hour() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let issued = ok(issue(&alice, &alice.user_id).await);
    assert_eq!(issued["token_type"], "Bearer");
    assert_eq!(issued["matrix_server_name"], "localhost");
    assert_eq!(issued["expires_in"], 3600);
    let server = server.restart();
    assert_eq!(
        ok(whose(&server, &issued).await),
        json!({ "sub": alice.user_id })
    );
    // It opens nothing, and an access token is none.
    let mut thief = alice.clone();
    thief.token = Some(text(&issued, "access_token"));
    let answer = thief.get("/_matrix/client/v3/account/whoami").await;
    refused(answer, 401, "M_UNKNOWN_TOKEN");
    let own = json!({ "access_token": alice.token });
    refused(whose(&server, &own).await, 401, "M_UNKNOWN_TOKEN");
    refused(server.anonymous().get(INFO).await, 401, "M_MISSING_TOKEN");
    refused(issue(&bob, &alice.user_id).await, 403, "M_FORBIDDEN");
    refused(issue(&bob, "bob").await, 400, "M_INVALID_PARAM");
    server.clock.advance(Duration::from_secs(3599));
    ok(whose(&server, &issued).await);
    assert_eq!(
        server.services.accounts.forget_openid_tokens().ok(),
        Some(0)
    );
    server.clock.advance(Duration::from_secs(1));
    refused(whose(&server, &issued).await, 401, "M_UNKNOWN_TOKEN");
    assert_eq!(
        server.services.accounts.forget_openid_tokens().ok(),
        Some(1)
    );

    let issued = ok(issue(&alice, &alice.user_id).await);
    let auth = json!({
        "type": "m.login.password", "password": PASSWORD,
        "identifier": { "type": "m.id.user", "user": "alice" },
    });
    let path = "/_matrix/client/v3/account/deactivate";
    ok(alice.post(path, json!({ "auth": auth })).await);
    refused(whose(&server, &issued).await, 401, "M_UNKNOWN_TOKEN");
    sound(&[&server]);
}

#[tokio::test]
async fn a_node_without_federation_tells_nobody() {
    let server = TestServer::with(|config| config.federation.mode = FederationMode::Off);
    let alice = server.register("alice").await;
    let issued = ok(issue(&alice, &alice.user_id).await);
    refused(whose(&server, &issued).await, 403, "M_FORBIDDEN");
}
