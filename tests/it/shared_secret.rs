//! Registration with the shared secret, as Synapse has it.

use std::{fmt::Write as _, time::Duration};

use hmac::{Hmac, KeyInit as _, Mac as _};
use kontor::config::Secret;
use serde_json::{Value, json};
use sha1::Sha1;

use crate::server::{PASSWORD, TestServer, ok, refused, text};

const REGISTER: &str = "/_synapse/admin/v1/register";

fn mac(secret: &str, parts: &[&str]) -> String {
    let mut mac = Hmac::<Sha1>::new_from_slice(secret.as_bytes()).expect("any key will do");
    mac.update(parts.join("\0").as_bytes());
    let bytes = mac.finalize().into_bytes();
    bytes.iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").expect("a text takes text");
        hex
    })
}

async fn nonce(server: &TestServer) -> String {
    text(&ok(server.anonymous().get(REGISTER).await), "nonce")
}

fn server() -> TestServer {
    TestServer::with(|config| config.registration.shared_secret = Secret::new("s3cret"))
}

#[tokio::test]
async fn whoever_knows_the_secret_can_register_admins_and_others() {
    let server = server();
    let nonce_1 = nonce(&server).await;
    let body = json!({
        "nonce": nonce_1,
        "username": "boss",
        "displayname": "The Boss",
        "password": PASSWORD,
        "admin": true,
        "mac": mac("s3cret", &[&nonce_1, "boss", PASSWORD, "admin"]),
    });
    let made = ok(server.anonymous().post(REGISTER, body.clone()).await);
    assert_eq!(made["user_id"], "@boss:localhost");
    assert_eq!(made["home_server"], "localhost");
    let boss = server.client(&made);
    assert!(server.requester(&boss).admin);
    let name = "/_matrix/client/v3/profile/@boss:localhost/displayname";
    assert_eq!(ok(boss.get(name).await)["displayname"], "The Boss");

    // A nonce works once.
    refused(
        server.anonymous().post(REGISTER, body).await,
        400,
        "M_UNKNOWN",
    );

    let nonce_2 = nonce(&server).await;
    let body = json!({
        "nonce": nonce_2,
        "username": "bot",
        "password": PASSWORD,
        "user_type": "bot",
        "mac": mac("s3cret", &[&nonce_2, "bot", PASSWORD, "notadmin", "bot"]),
    });
    let made = ok(server.anonymous().post(REGISTER, body).await);
    assert!(!server.requester(&server.client(&made)).admin);
}

#[tokio::test]
async fn what_is_not_proven_is_refused() {
    let server = server();
    let anonymous = server.anonymous();
    for (change, status, errcode) in [
        (json!({ "mac": "00" }), 403, "M_UNKNOWN"),
        (json!({ "mac": "no hex" }), 403, "M_UNKNOWN"),
        (json!({ "mac": "é" }), 403, "M_UNKNOWN"),
        (json!({ "admin": true }), 403, "M_UNKNOWN"),
        (json!({ "username": "eve" }), 403, "M_UNKNOWN"),
        (json!({ "nonce": "made up" }), 400, "M_UNKNOWN"),
        (json!({ "user_type": "other" }), 400, "M_UNKNOWN"),
        (json!({ "password": "" }), 400, "M_UNKNOWN"),
        (json!({ "username": null }), 400, "M_BAD_JSON"),
    ] {
        let nonce = nonce(&server).await;
        let mut body = json!({
            "nonce": nonce,
            "username": "alice",
            "password": PASSWORD,
            "mac": mac("s3cret", &[&nonce, "alice", PASSWORD, "notadmin"]),
        });
        let changes: Value = change;
        for (name, value) in changes.as_object().unwrap() {
            body[name] = value.clone();
        }
        refused(anonymous.post(REGISTER, body).await, status, errcode);
    }
    let nonce = nonce(&server).await;
    let body = json!({
        "nonce": nonce,
        "username": "alice",
        "password": PASSWORD,
        "mac": mac("s3cret", &[&nonce, "alice", PASSWORD, "notadmin"]),
    });
    server.clock.advance(Duration::from_secs(60));
    refused(anonymous.post(REGISTER, body).await, 400, "M_UNKNOWN");
}

#[tokio::test]
async fn without_a_secret_nobody_can() {
    let server = TestServer::new();
    let anonymous = server.anonymous();
    refused(anonymous.get(REGISTER).await, 400, "M_UNKNOWN");
    let body = json!({
        "nonce": "n", "username": "a", "password": PASSWORD,
        "mac": mac("", &["n", "a", PASSWORD, "notadmin"]),
    });
    refused(anonymous.post(REGISTER, body).await, 400, "M_UNKNOWN");
}
