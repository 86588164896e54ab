//! "Retrieving server keys": our own, and those of others that we vouch for.

use std::time::Duration;

use http::StatusCode;
use kontor::{
    config::{FederationMode, Peer},
    protocol::{server_keys::ServerKeys, xmatrix::verify_text},
};
use ruma::{ServerName, owned_server_name, server_name};
use serde_json::{Value, json};

use crate::{
    neighbour::{Neighbour, VALIDITY, us},
    server::{START, TestServer, ok, refused},
};

const SERVER: &str = "/_matrix/key/v2/server";
const QUERY: &str = "/_matrix/key/v2/query";

fn parsed(document: &Value, server: &ServerName) -> ServerKeys {
    ServerKeys::parse(&document.to_string(), server).expect("it is signed by its own keys")
}

/// Whether the node has signed a document of another.
fn is_vouched_for(document: &Value, ours: &ServerKeys) -> bool {
    let (id, key) = ours.keys.first_key_value().expect("we have a key");
    let mut object = kontor::protocol::integrity::parse_object(&document.to_string())
        .expect("an answer is canonical JSON");
    let signature = document["signatures"]["localhost"][id].as_str();
    object.remove("signatures");
    let text = kontor::protocol::integrity::canonical(&object);
    signature.is_some_and(|signature| verify_text(&text, signature, &key.key).is_ok())
}

#[tokio::test]
async fn our_own_are_signed_and_valid() {
    let server = TestServer::new();
    let client = server.anonymous();
    let document = ok(client.get(SERVER).await);
    let keys = parsed(&document, &us());
    assert!(keys.valid_until > START);
    assert_eq!(keys.keys.len(), 1);
    assert_eq!(document["old_verify_keys"], json!({}));
    assert_eq!(
        ok(client.get(&format!("{SERVER}/ed25519:any")).await),
        document
    );
    let restarted = server.restart();
    assert_eq!(ok(restarted.anonymous().get(SERVER).await), document);
    assert_eq!(
        ok(restarted
            .anonymous()
            .get("/_matrix/federation/v1/version")
            .await)["server"]["name"],
        "Kontor"
    );
}

#[tokio::test]
async fn those_of_others_are_fetched_kept_and_signed_by_us() {
    let server = TestServer::new();
    let client = server.anonymous();
    let ours = parsed(&ok(client.get(SERVER).await), &us());
    let neighbour = Neighbour::new(&server.lan, "b.example", 1);
    let path = format!("{QUERY}/b.example");
    let listed = ok(client.get(&path).await);
    let documents = listed["server_keys"].as_array().unwrap();
    assert_eq!(documents.len(), 1);
    parsed(&documents[0], server_name!("b.example"));
    assert!(is_vouched_for(&documents[0], &ours));

    // What is known is told without asking, also by id.
    for path in [&path, &format!("{path}/ed25519:k1")] {
        assert_eq!(ok(client.get(path).await), listed);
    }
    assert_eq!(neighbour.asked(), 1);
    // What must be valid for longer is asked for, and told as it is if there is nothing better.
    let longer = format!("{path}?minimum_valid_until_ts={}", START + 2 * VALIDITY);
    server.clock.advance(Duration::from_secs(11));
    assert_eq!(ok(client.get(&longer).await), listed);
    assert_eq!(neighbour.asked(), 2);
    // So it is when the server is gone.
    server.lan.detach(&neighbour.name);
    server.clock.advance(Duration::from_millis(2 * VALIDITY));
    assert_eq!(ok(client.get(&path).await), listed);
    let gone = ok(client.get(&format!("{QUERY}/gone.example")).await);
    assert_eq!(gone, json!({ "server_keys": [] }));
    refused(
        client.get(&format!("{QUERY}/not%20a%20name")).await,
        400,
        "M_INVALID_PARAM",
    );
}

#[tokio::test]
async fn many_are_asked_about_at_once_but_not_too_many() {
    let server = TestServer::new();
    let client = server.anonymous();
    let neighbours: Vec<_> = (1..=5)
        .map(|n| Neighbour::new(&server.lan, &format!("b{n}.example"), n))
        .collect();
    let mut asked = serde_json::Map::new();
    for neighbour in &neighbours {
        asked.insert(
            neighbour.name.to_string(),
            json!({ neighbour.key.id(): {} }),
        );
    }
    asked.insert("gone.example".to_owned(), json!({}));
    asked.insert("localhost".to_owned(), json!({}));
    let listed = ok(client.post(QUERY, json!({ "server_keys": asked })).await);
    let names: Vec<_> = listed["server_keys"]
        .as_array()
        .unwrap()
        .iter()
        .map(|document| document["server_name"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "b1.example",
            "b2.example",
            "b3.example",
            "b4.example",
            "b5.example",
            "localhost"
        ]
    );
    let many: serde_json::Map<_, _> = (0..101)
        .map(|n| (format!("c{n}.example"), json!({})))
        .collect();
    let many = client.post(QUERY, json!({ "server_keys": many })).await;
    refused(many, 400, "M_TOO_LARGE");
    refused(client.post(QUERY, json!({})).await, 400, "M_BAD_JSON");
}

#[tokio::test]
async fn a_notary_is_asked_when_the_server_is_gone() {
    let server = TestServer::with(|config| {
        config.federation.notaries = vec![owned_server_name!("n.example")];
    });
    server.register("alice").await;
    let gone = Neighbour::new(&server.lan, "b.example", 1);
    let notary = Neighbour::new(&server.lan, "n.example", 2);
    gone.answers(SERVER, StatusCode::BAD_GATEWAY, "");
    let mut document =
        kontor::protocol::server_keys::publish(&gone.name, &gone.key, &[], START + VALIDITY);
    let path = "/_matrix/federation/v1/query/profile?user_id=@alice:localhost";
    let say = |document: &ruma::CanonicalJsonObject| {
        let document = kontor::protocol::integrity::canonical(document);
        let body = format!("{{\"server_keys\":[{document}]}}");
        notary.answers(&format!("{QUERY}/b.example"), StatusCode::OK, body);
    };
    // Not signed by the notary: anybody can make up keys.
    say(&document);
    refused(gone.get(&server, path).await, 401, "M_UNAUTHORIZED");
    kontor::protocol::integrity::sign_json(&mut document, &notary.key, &notary.name).unwrap();
    say(&document);
    server.clock.advance(Duration::from_mins(5));
    ok(gone.get(&server, path).await);
}

#[tokio::test]
async fn peers_vouch_for_peers_and_nobody_else() {
    let server = TestServer::with(|config| {
        for name in ["b.example", "n.example"] {
            let name = ServerName::parse(name).unwrap();
            config.federation.peers.insert(name, Peer::default());
        }
    });
    server.register("alice").await;
    let peer = Neighbour::new(&server.lan, "n.example", 1);
    let path = "/_matrix/federation/v1/query/profile?user_id=@alice:localhost";
    for (name, is_believed) in [("b.example", true), ("c.example", false)] {
        let gone = Neighbour::new(&server.lan, name, 2);
        gone.answers(SERVER, StatusCode::BAD_GATEWAY, "");
        let mut document =
            kontor::protocol::server_keys::publish(&gone.name, &gone.key, &[], START + VALIDITY);
        kontor::protocol::integrity::sign_json(&mut document, &peer.key, &peer.name).unwrap();
        let document = kontor::protocol::integrity::canonical(&document);
        let body = format!("{{\"server_keys\":[{document}]}}");
        peer.answers(&format!("{QUERY}/{name}"), StatusCode::OK, body);
        let answer = gone.get(&server, path).await;
        if is_believed {
            ok(answer);
        } else {
            refused(answer, 401, "M_UNAUTHORIZED");
        }
    }
    // Whom another peer asks about, of that we do not ask it again.
    // It is also greeted now and then.
    let asked = || peer.asked() - peer.put().len();
    let before = asked();
    let gone = Neighbour::new(&server.lan, "b.example", 3);
    gone.answers(SERVER, StatusCode::BAD_GATEWAY, "");
    server.clock.advance(Duration::from_hours(2));
    ok(server.anonymous().get(&format!("{QUERY}/b.example")).await);
    assert_eq!(asked(), before);
}

#[tokio::test]
async fn without_federation_nothing_is_told() {
    let server = TestServer::with(|config| config.federation.mode = FederationMode::Off);
    let client = server.anonymous();
    for path in [
        SERVER,
        "/_matrix/key/v2/query/b.example",
        "/_matrix/federation/v1/version",
    ] {
        refused(client.get(path).await, 403, "M_FORBIDDEN");
    }
    let closed = TestServer::with(|config| config.federation.mode = FederationMode::Closed);
    let neighbour = Neighbour::new(&closed.lan, "b.example", 1);
    let client = closed.anonymous();
    ok(client.get(SERVER).await);
    let listed = ok(client.get(&format!("{QUERY}/b.example")).await);
    assert_eq!(listed, json!({ "server_keys": [] }));
    assert_eq!(neighbour.asked(), 0);
}
