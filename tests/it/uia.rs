//! "User-Interactive Authentication".

use std::time::Duration;

use serde_json::{Value, json};

use crate::server::{PASSWORD, TestServer, ok, refused, text};

const DELETE: &str = "/_matrix/client/v3/delete_devices";

fn with_password(user: &str, password: &str, session: Option<&str>) -> Value {
    let mut auth = json!({
        "type": "m.login.password",
        "identifier": { "type": "m.id.user", "user": user },
        "password": password,
    });
    if let Some(session) = session {
        auth["session"] = json!(session);
    }
    auth
}

#[tokio::test]
async fn a_wrong_password_may_be_corrected_in_the_same_session() {
    let server = TestServer::new();
    let (alice, other) = (server.register("alice").await, server.log_in("alice").await);
    let mut body = json!({ "devices": [other.device_id] });
    let (status, asked) = alice.post(DELETE, body.clone()).await;
    assert_eq!(status, 401);
    assert_eq!(asked["flows"], json!([{ "stages": ["m.login.password"] }]));
    let session = text(&asked, "session");

    body["auth"] = with_password("alice", "wrong", Some(&session));
    let (status, asked) = alice.post(DELETE, body.clone()).await;
    assert_eq!(status, 401);
    assert_eq!(asked["errcode"], "M_FORBIDDEN", "{asked}");
    assert!(asked["error"].is_string(), "{asked}");
    assert_eq!(asked["session"], session.as_str());
    assert_eq!(asked["flows"], json!([{ "stages": ["m.login.password"] }]));

    body["auth"] = with_password("@alice:localhost", PASSWORD, Some(&session));
    ok(alice.post(DELETE, body.clone()).await);
    // Whoever has seen the session go by can not use it again.
    refused(alice.post(DELETE, body).await, 400, "M_INVALID_PARAM");
}

#[tokio::test]
async fn a_session_is_good_for_one_operation_of_one_device() {
    let server = TestServer::new();
    let (alice, other) = (server.register("alice").await, server.log_in("alice").await);
    let bob = server.register("bob").await;
    let asked = alice.post(DELETE, json!({ "devices": ["A"] })).await.1;
    let session = text(&asked, "session");
    for (client, user, path, device) in [
        (&alice, "alice", DELETE, "B"),
        (&other, "alice", DELETE, "A"),
        (&bob, "bob", DELETE, "A"),
        (
            &alice,
            "alice",
            "/_matrix/client/v3/account/deactivate",
            "A",
        ),
    ] {
        let auth = with_password(user, PASSWORD, Some(&session));
        let body = json!({ "devices": [device], "auth": auth });
        refused(client.post(path, body).await, 403, "M_FORBIDDEN");
    }
    let auth = with_password("alice", PASSWORD, Some(&session));
    let body = json!({ "devices": ["A"], "auth": auth });
    server.clock.advance(Duration::from_secs(15 * 60));
    refused(
        alice.post(DELETE, body.clone()).await,
        400,
        "M_INVALID_PARAM",
    );
}

#[tokio::test]
async fn only_the_own_password_counts() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    server.register("bob").await;
    // Right or wrong, known or unknown: the answer to another name is always the same.
    let asked = alice.post(DELETE, json!({ "devices": [] })).await.1;
    let session = text(&asked, "session");
    let mut answers = Vec::new();
    for (user, password, session) in [
        ("bob", PASSWORD, None),
        ("bob", "wrong", None),
        ("@bob:localhost", PASSWORD, Some(&*session)),
        ("@alice:example.org", PASSWORD, None),
        ("nobody", PASSWORD, None),
        ("not a name", PASSWORD, None),
    ] {
        let auth = with_password(user, password, session);
        let answer = alice
            .post(DELETE, json!({ "devices": [], "auth": auth }))
            .await;
        answers.push(answer.1.clone());
        refused(answer, 403, "M_FORBIDDEN");
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "{answers:?}");
    assert_eq!(answers[0]["session"], Value::Null);
    // The session is still good for the right one.
    let auth = with_password("alice", PASSWORD, Some(&session));
    ok(alice
        .post(DELETE, json!({ "devices": [], "auth": auth }))
        .await);

    let auth = json!({
        "type": "m.login.password",
        "identifier": { "type": "m.id.thirdparty", "medium": "email", "address": "a@b" },
        "password": PASSWORD,
    });
    let body = json!({ "devices": [], "auth": auth });
    refused(alice.post(DELETE, body).await, 401, "M_FORBIDDEN");
    for auth in [
        json!({ "type": "m.login.dummy" }),
        json!({ "type": "org.example.other" }),
    ] {
        let body = json!({ "devices": [], "auth": auth });
        refused(alice.post(DELETE, body).await, 401, "M_UNRECOGNIZED");
    }
}
