//! "Device management".

use std::time::Duration;

use serde_json::{Value, json};

use crate::server::{Client, PASSWORD, START, TestServer, ok, refused};

const DEVICES: &str = "/_matrix/client/v3/devices";
const WHOAMI: &str = "/_matrix/client/v3/account/whoami";

fn of(client: &Client) -> String {
    format!("{DEVICES}/{}", client.device_id)
}

fn auth() -> Value {
    json!({
        "type": "m.login.password",
        "identifier": { "type": "m.id.user", "user": "alice" },
        "password": PASSWORD,
    })
}

#[tokio::test]
async fn devices_are_listed_and_renamed() {
    let server = TestServer::new();
    let (one, two) = (server.register("alice").await, server.log_in("alice").await);
    ok(two.put(&of(&one), json!({ "display_name": "phone" })).await);
    // Without a name nothing changes.
    ok(two.put(&of(&one), json!({})).await);
    let device = ok(one.get(&of(&one)).await);
    assert_eq!(device["display_name"], "phone");
    assert_eq!(device["device_id"], one.device_id.as_str());
    let list = ok(one.get(DEVICES).await);
    let mut ids: Vec<_> = list["devices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|device| device["device_id"].as_str().unwrap())
        .collect();
    ids.sort_unstable();
    let mut expect = [one.device_id.as_str(), &two.device_id];
    expect.sort_unstable();
    assert_eq!(ids, expect);

    let long = json!({ "display_name": "x".repeat(101) });
    refused(one.put(&of(&one), long).await, 400, "M_TOO_LARGE");
    let bob = server.register("bob").await;
    refused(bob.get(&of(&one)).await, 404, "M_NOT_FOUND");
    let stolen = bob.put(&of(&one), json!({ "display_name": "mine" })).await;
    refused(stolen, 404, "M_NOT_FOUND");
}

#[tokio::test]
async fn the_last_use_is_noted_now_and_then() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let seen = async || ok(alice.get(&of(&alice)).await)["last_seen_ts"].clone();
    assert_eq!(seen().await, START);
    assert_eq!(
        ok(alice.get(&of(&alice)).await)["last_seen_ip"],
        "192.0.2.1"
    );
    server.clock.advance(Duration::from_secs(299));
    assert_eq!(seen().await, START);
    server.clock.advance(Duration::from_secs(1));
    assert_eq!(seen().await, START + 300_000);
}

#[tokio::test]
async fn deleting_a_device_ends_its_session() {
    let server = TestServer::new();
    let (one, two) = (server.register("alice").await, server.log_in("alice").await);
    let three = server.log_in("alice").await;
    let bob = server.register("bob").await;
    for client in [&two, &three] {
        ok(client.get(WHOAMI).await);
    }
    assert_eq!(one.delete(&of(&two)).await.0, 401);
    ok(two.get(WHOAMI).await);

    let body = Some(json!({ "auth": auth() }));
    ok(one.send(http::Method::DELETE, &of(&two), body).await);
    refused(two.get(WHOAMI).await, 401, "M_UNKNOWN_TOKEN");
    refused(one.get(&of(&two)).await, 404, "M_NOT_FOUND");

    let body = json!({ "devices": [three.device_id, bob.device_id, "none"], "auth": auth() });
    ok(one.post("/_matrix/client/v3/delete_devices", body).await);
    refused(three.get(WHOAMI).await, 401, "M_UNKNOWN_TOKEN");
    ok(bob.get(WHOAMI).await);
    ok(one.get(WHOAMI).await);
}
