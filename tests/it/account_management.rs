//! "Account management": another password, and the end of an account.

use serde_json::{Value, json};

use crate::{
    room::Room,
    server::{PASSWORD, TestServer, ok, refused},
};

const PASSWORD_PATH: &str = "/_matrix/client/v3/account/password";
const DEACTIVATE: &str = "/_matrix/client/v3/account/deactivate";
const LOGIN: &str = "/_matrix/client/v3/login";
const WHOAMI: &str = "/_matrix/client/v3/account/whoami";

fn auth() -> Value {
    json!({
        "type": "m.login.password",
        "identifier": { "type": "m.id.user", "user": "alice" },
        "password": PASSWORD,
    })
}

fn login(password: &str) -> Value {
    json!({ "type": "m.login.password", "user": "alice", "password": password })
}

#[tokio::test]
async fn a_new_password_logs_the_other_devices_out_unless_told_otherwise() {
    let server = TestServer::new();
    let (one, two) = (server.register("alice").await, server.log_in("alice").await);
    let bob = server.register("bob").await;
    let mut body = json!({ "new_password": "battery staple", "logout_devices": false });
    assert_eq!(one.post(PASSWORD_PATH, body.clone()).await.0, 401);
    body["auth"] = auth();
    ok(one.post(PASSWORD_PATH, body).await);
    ok(two.get(WHOAMI).await);
    let anonymous = server.anonymous();
    refused(
        anonymous.post(LOGIN, login(PASSWORD)).await,
        403,
        "M_FORBIDDEN",
    );
    ok(anonymous.post(LOGIN, login("battery staple")).await);

    let mut body = json!({ "new_password": PASSWORD, "auth": auth() });
    body["auth"]["password"] = json!("battery staple");
    ok(one.post(PASSWORD_PATH, body).await);
    refused(two.get(WHOAMI).await, 401, "M_UNKNOWN_TOKEN");
    ok(one.get(WHOAMI).await);
    ok(bob.get(WHOAMI).await);

    let weak = json!({ "new_password": "short", "auth": auth() });
    refused(one.post(PASSWORD_PATH, weak).await, 400, "M_WEAK_PASSWORD");
    let no_token = json!({ "new_password": "battery staple", "auth": auth() });
    refused(
        anonymous.post(PASSWORD_PATH, no_token).await,
        401,
        "M_MISSING_TOKEN",
    );
}

#[tokio::test]
async fn a_deactivated_account_is_gone_for_good() {
    let server = TestServer::new();
    let (one, two) = (server.register("alice").await, server.log_in("alice").await);
    let bob = server.register("bob").await;
    let anonymous = server.anonymous();
    refused(
        anonymous.post(DEACTIVATE, json!({})).await,
        401,
        "M_MISSING_TOKEN",
    );
    assert_eq!(one.post(DEACTIVATE, json!({ "erase": true })).await.0, 401);
    ok(two.get(WHOAMI).await);

    let body = json!({ "auth": auth(), "erase": true });
    let body = ok(one.post(DEACTIVATE, body).await);
    assert_eq!(body, json!({ "id_server_unbind_result": "success" }));
    for client in [&one, &two] {
        refused(client.get(WHOAMI).await, 401, "M_UNKNOWN_TOKEN");
    }
    refused(
        anonymous.post(LOGIN, login(PASSWORD)).await,
        403,
        "M_USER_DEACTIVATED",
    );
    refused(
        anonymous
            .get("/_matrix/client/v3/profile/@alice:localhost")
            .await,
        404,
        "M_NOT_FOUND",
    );
    let again = json!({
        "username": "alice", "password": PASSWORD, "auth": { "type": "m.login.dummy" },
    });
    refused(
        anonymous.post("/_matrix/client/v3/register", again).await,
        400,
        "M_USER_IN_USE",
    );
    ok(bob.get(WHOAMI).await);
}

#[tokio::test]
async fn who_asks_to_be_erased_is_unknown_to_those_who_come_later() {
    let server = TestServer::new();
    let (alice, bob, carol) = (
        server.register("alice").await,
        server.register("bob").await,
        server.register("carol").await,
    );
    let room = Room::new(&bob, "shared").await;
    room.does(&alice, "join").await;
    room.say(&alice, "personal").await;
    ok(alice
        .post(DEACTIVATE, json!({ "auth": auth(), "erase": true }))
        .await);
    room.does(&carol, "join").await;
    for (who, sees) in [(&bob, true), (&carol, false)] {
        let page = ok(room.get(who, "messages?dir=b&limit=100").await);
        let chunk = page["chunk"].as_array().unwrap();
        assert_eq!(page.to_string().contains("personal"), sees, "{page}");
        assert!(chunk.iter().any(|event| event["type"] == "m.room.message"));
    }
}
