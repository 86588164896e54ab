//! "Request Authentication" of the server-server API: who may ask what only servers may.

use http::{Method, StatusCode};
use kontor::{
    config::{FederationMode, Peer},
    protocol::{integrity::ServerKey, server_keys::OldKey, xmatrix::XMatrix},
};
use ruma::{owned_server_name, server_name};
use serde_json::json;
use std::time::Duration;

use crate::{
    neighbour::{Neighbour, VALIDITY, us},
    server::{START, TestServer, ok, refused},
};

const PATH: &str = "/_matrix/federation/v1/query/profile?user_id=@alice:localhost";

#[tokio::test]
async fn a_server_that_signs_is_let_in() {
    let server = TestServer::new();
    server.register("alice").await;
    let neighbour = Neighbour::new(&server.lan, "b.example:8448", 1);
    let expect = json!({ "displayname": "alice" });
    assert_eq!(ok(neighbour.get(&server, PATH).await), expect);
    assert_eq!(ok(neighbour.get(&server, PATH).await), expect);
    assert_eq!(neighbour.asked(), 1, "the key is asked for once");
    // Older servers do not say whom they ask.
    let mut header = neighbour.sign(&Method::GET, PATH, "");
    header.destination = None;
    let answer = neighbour
        .send(&server, Method::GET, PATH, &header, "")
        .await;
    assert_eq!(ok(answer), expect);
    // The key is kept over a restart, also when its server is gone.
    server.lan.detach(&neighbour.name);
    let server = server.restart();
    assert_eq!(ok(neighbour.get(&server, PATH).await), expect);
    assert_eq!(neighbour.asked(), 1);
}

#[tokio::test]
async fn a_body_is_part_of_what_is_signed() {
    let server = TestServer::new();
    server.register("alice").await;
    let neighbour = Neighbour::new(&server.lan, "b.example", 1);
    let header = neighbour.sign(&Method::GET, PATH, "{\"a\":1}");
    for (body, status) in [
        ("{\"a\":1}", 200),
        ("{ \"a\": 1 }", 200),
        ("{\"a\":2}", 401),
        ("", 401),
    ] {
        let answer = neighbour
            .send(&server, Method::GET, PATH, &header, body)
            .await;
        assert_eq!(answer.0.as_u16(), status, "{body}");
    }
    let large = format!("{{\"a\":\"{}\"}}", "x".repeat(2 << 20));
    let header = neighbour.sign(&Method::GET, PATH, &large);
    let answer = neighbour
        .send(&server, Method::GET, PATH, &header, &large)
        .await;
    refused(answer, 413, "M_TOO_LARGE");
    let header = neighbour.sign(&Method::GET, PATH, "no");
    let answer = neighbour
        .send(&server, Method::GET, PATH, &header, "no")
        .await;
    refused(answer, 400, "M_NOT_JSON");
}

#[tokio::test]
async fn what_proves_nothing_is_refused() {
    let server = TestServer::new();
    server.register("alice").await;
    let neighbour = Neighbour::new(&server.lan, "b.example", 1);
    let other = Neighbour::new(&server.lan, "c.example", 2);
    let good = neighbour.sign(&Method::GET, PATH, "");
    let client = server.anonymous();
    for headers in [
        vec![],
        vec![("authorization", "Bearer abc")],
        vec![("authorization", "X-Matrix")],
        vec![(
            "authorization",
            "X-Matrix origin=b.example,key=\"ed25519:k1\",sig=\"",
        )],
    ] {
        let (status, _, body) = client.raw(Method::GET, PATH, &headers, "").await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{headers:?}");
        assert!(body.contains("M_UNAUTHORIZED"), "{body}");
    }
    let several = [
        good.to_string(),
        other.sign(&Method::GET, PATH, "").to_string(),
    ];
    let several: Vec<_> = several
        .iter()
        .map(|value| ("authorization", &**value))
        .collect();
    let (status, ..) = client.raw(Method::GET, PATH, &several, "").await;
    assert_eq!(status, StatusCode::UNAUTHORIZED, "two servers at once");
    assert_eq!(
        (neighbour.asked(), other.asked()),
        (0, 0),
        "nobody is asked about nonsense"
    );

    let with = |change: fn(&mut XMatrix)| {
        let mut header = good.clone();
        change(&mut header);
        header
    };
    for (what, header) in [
        (
            "another's destination",
            with(|h| h.destination = Some(owned_server_name!("c.example"))),
        ),
        ("our own name", with(|h| h.origin = us())),
        (
            "another's name",
            with(|h| h.origin = owned_server_name!("c.example")),
        ),
        (
            "nobody's name",
            with(|h| h.origin = owned_server_name!("nobody.example")),
        ),
        (
            "an unknown key",
            with(|h| h.key = "ed25519:other".to_owned()),
        ),
        ("a forged signature", with(|h| h.signature = "A".repeat(86))),
        ("no signature", with(|h| h.signature = String::new())),
        (
            "another path",
            neighbour.sign(&Method::GET, "/_matrix/federation/v1/query/profile", ""),
        ),
        ("another method", neighbour.sign(&Method::PUT, PATH, "")),
    ] {
        let (status, body) = neighbour
            .send(&server, Method::GET, PATH, &header, "")
            .await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{what}: {body}");
        assert_eq!(body["errcode"], "M_UNAUTHORIZED", "{what}: {body}");
    }
    assert_eq!(
        ok(neighbour.get(&server, PATH).await)["displayname"],
        "alice"
    );
}

#[tokio::test]
async fn only_keys_that_are_valid_now_are_accepted() {
    let server = TestServer::new();
    server.register("alice").await;
    let neighbour = Neighbour::new(&server.lan, "b.example", 1);
    ok(neighbour.get(&server, PATH).await);
    // Past its time it is asked for anew, and what is published by then counts.
    server.clock.advance(Duration::from_millis(VALIDITY + 1));
    refused(neighbour.get(&server, PATH).await, 401, "M_UNAUTHORIZED");
    assert_eq!(neighbour.asked(), 2);
    neighbour.publish(&[], START + 3 * VALIDITY);
    refused(neighbour.get(&server, PATH).await, 401, "M_UNAUTHORIZED");
    assert_eq!(neighbour.asked(), 2, "it was asked just before");
    server.clock.advance(Duration::from_secs(11));
    ok(neighbour.get(&server, PATH).await);
    assert_eq!(neighbour.asked(), 3);

    // A key that was replaced signs no requests any more.
    let newer = Neighbour::new(&server.lan, "b.example", 3);
    let old = OldKey {
        id: neighbour.key.id().to_owned(),
        key: neighbour.key.public_base64().to_owned(),
        expired_ts: START + VALIDITY,
    };
    newer.publish(&[old], START + 3 * VALIDITY);
    server.clock.advance(Duration::from_secs(11));
    ok(newer.get(&server, PATH).await);
    refused(neighbour.get(&server, PATH).await, 401, "M_UNAUTHORIZED");
    // No document is believed for longer than a week.
    newer.publish(&[], START + 1_000 * VALIDITY);
    server.clock.advance(Duration::from_hours(24 * 8));
    ok(newer.get(&server, PATH).await);
    server.clock.advance(Duration::from_hours(24 * 8));
    server.lan.detach(&newer.name);
    refused(newer.get(&server, PATH).await, 401, "M_UNAUTHORIZED");
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_not_asked_again_at_once() {
    let server = TestServer::new();
    server.register("alice").await;
    let neighbour = Neighbour::new(&server.lan, "b.example", 1);
    neighbour.answers("/_matrix/key/v2/server", StatusCode::BAD_GATEWAY, "no");
    for _ in 0..5 {
        let (_, body) = neighbour.get(&server, PATH).await;
        assert_eq!(body["errcode"], "M_UNAUTHORIZED");
    }
    assert_eq!(neighbour.asked(), 1);
    server.clock.advance(Duration::from_secs(1));
    neighbour.publish(&[], START + VALIDITY);
    ok(neighbour.get(&server, PATH).await);
    assert_eq!(neighbour.asked(), 2);
}

#[tokio::test]
async fn many_requests_at_once_ask_for_the_key_once() {
    let server = TestServer::new();
    server.register("alice").await;
    let neighbour = Neighbour::new(&server.lan, "b.example", 1);
    let requests = (0..20).map(|_| neighbour.get(&server, PATH));
    for answer in futures_util::future::join_all(requests).await {
        ok(answer);
    }
    assert_eq!(neighbour.asked(), 1);
}

#[tokio::test]
async fn keys_that_are_not_in_order_are_not_believed() {
    let server = TestServer::new();
    server.register("alice").await;
    let wrong = ServerKey::from_seed(&[9; 32], "k1").unwrap();
    for (name, body) in [
        ("a1.example", "not json".to_owned()),
        ("a2.example", "{}".to_owned()),
        (
            "a3.example",
            format!("{{\"x\":\"{}\"}}", "x".repeat(1 << 20)),
        ),
        ("a4.example", {
            // Signed by the key, but about another server.
            let document = kontor::protocol::server_keys::publish(
                server_name!("z.example"),
                &wrong,
                &[],
                START + VALIDITY,
            );
            kontor::protocol::integrity::canonical(&document)
        }),
    ] {
        let neighbour = Neighbour::new(&server.lan, name, 1);
        neighbour.answers("/_matrix/key/v2/server", StatusCode::OK, body);
        refused(neighbour.get(&server, PATH).await, 401, "M_UNAUTHORIZED");
    }
}

#[tokio::test]
async fn closed_and_off_are_said_before_anything_is_done() {
    for (mode, peer) in [(FederationMode::Closed, 200), (FederationMode::Off, 403)] {
        let server = TestServer::with(|config| {
            config.federation.mode = mode;
            let peers = &mut config.federation.peers;
            peers.insert(owned_server_name!("b.example"), Peer::default());
        });
        server.register("alice").await;
        let known = Neighbour::new(&server.lan, "b.example", 1);
        let stranger = Neighbour::new(&server.lan, "c.example", 2);
        assert_eq!(known.get(&server, PATH).await.0.as_u16(), peer);
        refused(stranger.get(&server, PATH).await, 403, "M_FORBIDDEN");
        assert_eq!(stranger.asked(), 0);
    }
}
