//! "API standards": what is true of every endpoint.

use futures_util::FutureExt as _;

use http::{Method, StatusCode, header};
use serde_json::json;

use crate::server::{TestServer, ok, refused};

const WHOAMI: &str = "/_matrix/client/v3/account/whoami";
const REGISTER: &str = "/_matrix/client/v3/register";

#[tokio::test]
async fn unknown_paths_and_methods_are_told_apart() {
    let server = TestServer::new();
    let client = server.anonymous();
    for path in [
        "/",
        "/_matrix/nothing",
        "/_matrix/client/nothing",
        "/_matrix/client/v3/nothing",
        "/_matrix/client/v3/account/nothing",
        "/_matrix/federation/nothing",
        "/_matrix/federation/v1/nothing",
        "/_matrix/key/nothing",
        "/_matrix/key/v2/nothing",
        "/_matrix/media/nothing",
        "/_matrix/media/v3/nothing",
        "/_synapse/admin/v1/nothing",
    ] {
        refused(client.get(path).await, 404, "M_UNRECOGNIZED");
        refused(client.delete(path).await, 404, "M_UNRECOGNIZED");
    }
    for path in [WHOAMI, "/_matrix/federation/v1/version"] {
        refused(client.delete(path).await, 405, "M_UNRECOGNIZED");
    }
}

#[tokio::test]
async fn web_apps_of_any_origin_are_let_in() {
    let server = TestServer::new();
    let client = server.anonymous();
    for (method, path, expect) in [
        (Method::OPTIONS, WHOAMI, StatusCode::NO_CONTENT),
        (Method::OPTIONS, "/nothing", StatusCode::NO_CONTENT),
        (Method::GET, WHOAMI, StatusCode::UNAUTHORIZED),
        (Method::GET, "/nothing", StatusCode::NOT_FOUND),
        (Method::DELETE, WHOAMI, StatusCode::METHOD_NOT_ALLOWED),
    ] {
        let (status, headers, _) = client.raw(method.clone(), path, &[], "").await;
        assert_eq!(status, expect, "{method} {path}");
        assert_eq!(headers[header::ACCESS_CONTROL_ALLOW_ORIGIN], "*");
        assert!(headers.contains_key(header::ACCESS_CONTROL_ALLOW_METHODS));
        assert!(headers.contains_key(header::ACCESS_CONTROL_ALLOW_HEADERS));
    }
}

#[tokio::test]
async fn a_token_is_taken_from_the_header_or_the_query() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let anonymous = server.anonymous();
    let token = alice.token.clone().unwrap();

    assert_eq!(ok(alice.get(WHOAMI).await)["user_id"], "@alice:localhost");
    let by_query = format!("{WHOAMI}?access_token={token}");
    assert_eq!(
        ok(anonymous.get(&by_query).await)["user_id"],
        "@alice:localhost"
    );

    refused(anonymous.get(WHOAMI).await, 401, "M_MISSING_TOKEN");
    let basic = [("authorization", "Basic YTpi")];
    let (status, _, body) = anonymous.raw(Method::GET, WHOAMI, &basic, "").await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert!(body.contains("M_MISSING_TOKEN"), "{body}");

    let mut stranger = anonymous;
    stranger.token = Some("made-up".to_owned());
    let answer = stranger.get(WHOAMI).await;
    assert_eq!(answer.1["soft_logout"], false);
    refused(answer, 401, "M_UNKNOWN_TOKEN");
}

#[tokio::test]
async fn what_a_client_has_begun_is_finished_without_it() {
    let server = TestServer::new();
    let registering = server.register("alice");
    // The request is begun and dropped: nothing else can run on this thread between the two.
    assert!(
        registering.now_or_never().is_none(),
        "a task of its own answers"
    );
    // What runs as long as the node does ends with it; what was begun is finished first.
    server.services.stop.cancel();
    server.services.tasks.close();
    server.services.tasks.wait().await;
    server.log_in("alice").await;
}

#[tokio::test]
async fn bad_bodies_and_parameters_are_named() {
    let server = TestServer::new();
    let client = server.anonymous();
    for (body, errcode) in [
        ("{", "M_NOT_JSON"),
        ("no", "M_NOT_JSON"),
        ("{} {}", "M_NOT_JSON"),
        (r#"{"username": 5}"#, "M_BAD_JSON"),
        ("5", "M_BAD_JSON"),
    ] {
        let (status, _, answer) = client.raw(Method::POST, REGISTER, &[], body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
        assert!(answer.contains(errcode), "{body}: {answer}");
    }
    let (status, _, answer) = client
        .raw(Method::POST, REGISTER, &[], vec![b'"', 0xFF, b'"'])
        .await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(answer.contains("M_NOT_JSON"), "{answer}");

    let large = json!({ "username": "x".repeat(1 << 20) });
    refused(client.post(REGISTER, large).await, 413, "M_TOO_LARGE");
    let deep = "[".repeat(100_000);
    let (status, _, answer) = client.raw(Method::POST, REGISTER, &[], deep).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
}

#[tokio::test]
async fn guests_may_do_only_what_is_listed_for_them() {
    let server = TestServer::with(|config| config.registration.guests = true);
    let path = format!("{REGISTER}?kind=guest");
    let guest = ok(server.anonymous().post(&path, json!({})).await);
    let guest = server.client(&guest);
    assert_eq!(ok(guest.get(WHOAMI).await)["is_guest"], true);
    let profile = format!("/_matrix/client/v3/profile/{}", guest.user_id);
    let name = json!({ "displayname": "Visitor", "m.tz": "UTC" });
    ok(guest
        .put(&format!("{profile}/displayname"), name.clone())
        .await);
    for forbidden in [
        guest.put(&format!("{profile}/m.tz"), name).await,
        guest.post("/_matrix/client/v3/createRoom", json!({})).await,
        guest.get("/_matrix/client/v3/pushrules/").await,
    ] {
        refused(forbidden, 403, "M_GUEST_ACCESS_FORBIDDEN");
    }
}
