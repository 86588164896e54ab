//! "Querying for information": profiles of users of other servers, and of ours for other servers.

use std::time::Duration;

use http::StatusCode;
use kontor::config::FederationMode;
use serde_json::json;

use crate::{
    neighbour::Neighbour,
    server::{TestServer, ok, refused},
};

const QUERY: &str = "/_matrix/federation/v1/query/profile";
const BOB: &str = "/_matrix/client/v3/profile/@bob:b.example";

#[tokio::test]
async fn servers_are_told_what_everybody_may_know() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let path = "/_matrix/client/v3/profile/@alice:localhost/avatar_url";
    ok(alice
        .put(path, json!({ "avatar_url": "mxc://localhost/a" }))
        .await);
    let neighbour = Neighbour::new(&server.lan, "b.example", 1);
    let ask = async |query: &str| neighbour.get(&server, &format!("{QUERY}?{query}")).await;
    assert_eq!(
        ok(ask("user_id=@alice:localhost").await),
        json!({ "displayname": "alice", "avatar_url": "mxc://localhost/a" })
    );
    assert_eq!(
        ok(ask("user_id=@alice:localhost&field=displayname").await),
        json!({ "displayname": "alice" })
    );
    assert_eq!(
        ok(ask("user_id=@alice:localhost&field=m.tz").await),
        json!({})
    );
    refused(ask("user_id=@nobody:localhost").await, 404, "M_NOT_FOUND");
    refused(ask("user_id=@bob:b.example").await, 404, "M_NOT_FOUND");
    refused(
        ask("user_id=@user1:localhost:http").await,
        400,
        "M_INVALID_PARAM",
    );
    refused(ask("field=displayname").await, 400, "M_MISSING_PARAM");
    ok(alice
        .post(
            "/_matrix/client/v3/account/deactivate",
            json!({ "auth": {
                "type": "m.login.password", "password": crate::server::PASSWORD,
                "identifier": { "type": "m.id.user", "user": "alice" },
            } }),
        )
        .await);
    refused(ask("user_id=@alice:localhost").await, 404, "M_NOT_FOUND");
}

#[tokio::test]
async fn a_profile_is_got_from_its_server() {
    let server = TestServer::new();
    let neighbour = Neighbour::new(&server.lan, "b.example", 1);
    let client = server.anonymous();
    let profile = json!({ "displayname": "Bob", "avatar_url": null, "m.tz": "UTC" });
    neighbour.answers(
        &format!("{QUERY}?user_id=%40bob%3Ab.example"),
        StatusCode::OK,
        &profile,
    );
    assert_eq!(
        ok(client.get(BOB).await),
        json!({ "displayname": "Bob", "m.tz": "UTC" })
    );
    let field = ok(client.get(&format!("{BOB}/displayname")).await);
    assert_eq!(field, json!({ "displayname": "Bob" }));
    refused(
        client.get(&format!("{BOB}/avatar_url")).await,
        404,
        "M_NOT_FOUND",
    );
}

#[tokio::test]
async fn what_goes_wrong_there_is_told() {
    let server = TestServer::new();
    let neighbour = Neighbour::new(&server.lan, "b.example", 1);
    let client = server.anonymous();
    let status = |status: u16| StatusCode::from_u16(status).unwrap();
    for (answered, body, expect, errcode) in [
        (
            404,
            "{\"errcode\":\"M_NOT_FOUND\",\"error\":\"x\"}",
            404,
            "M_NOT_FOUND",
        ),
        (
            403,
            "{\"errcode\":\"M_FORBIDDEN\",\"error\":\"x\"}",
            403,
            "M_FORBIDDEN",
        ),
        (
            401,
            "{\"errcode\":\"M_UNAUTHORIZED\",\"error\":\"x\"}",
            502,
            "M_UNKNOWN",
        ),
        (404, "<html>", 502, "M_UNKNOWN"),
        (500, "", 502, "M_UNKNOWN"),
        (302, "", 502, "M_UNKNOWN"),
        (200, "no json", 502, "M_UNKNOWN"),
        (200, "[]", 502, "M_UNKNOWN"),
    ] {
        neighbour.answers(QUERY, status(answered), body);
        refused(client.get(BOB).await, expect, errcode);
    }
    let large = format!("{{\"displayname\":\"{}\"}}", "x".repeat(1 << 20));
    neighbour.answers(QUERY, StatusCode::OK, large);
    refused(client.get(BOB).await, 502, "M_UNKNOWN");

    neighbour.answers(QUERY, StatusCode::IM_A_TEAPOT, "");
    let (answer, ()) = tokio::join!(client.get(BOB), async {
        tokio::task::yield_now().await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        server.clock.advance(Duration::from_secs(11));
    });
    assert!(
        answer.1["error"]
            .as_str()
            .unwrap()
            .contains("b.example did not answer")
    );
    refused(answer, 504, "M_UNKNOWN");

    server.lan.detach(&neighbour.name);
    refused(client.get(BOB).await, 502, "M_UNKNOWN");
}

#[tokio::test]
async fn nobody_is_asked_whom_the_node_does_not_talk_to() {
    let server = TestServer::with(|config| config.federation.mode = FederationMode::Closed);
    let neighbour = Neighbour::new(&server.lan, "b.example", 1);
    refused(server.anonymous().get(BOB).await, 403, "M_FORBIDDEN");
    assert_eq!(neighbour.asked(), 0);
}
