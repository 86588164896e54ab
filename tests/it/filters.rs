//! "Filtering".

use std::sync::Arc;

use ruma::user_id;
use serde_json::json;

use crate::{
    room::{Room, encoded, ids},
    server::{TestServer, ok, refused, text},
};

const FILTER: &str = "/_matrix/client/v3/user/@alice:localhost/filter";

#[tokio::test]
async fn a_filter_is_given_back_as_it_was_stored() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let filter = json!({ "room": { "timeline": { "limit": 10 } }, "org.example": [1] });
    let id = text(&ok(alice.post(FILTER, filter.clone()).await), "filter_id");
    let server = server.restart();
    assert_eq!(ok(alice.get(&format!("{FILTER}/{id}")).await), filter);
    let same = ok(alice.post(FILTER, filter).await);
    assert_eq!(same["filter_id"], id.as_str());
    let other = ok(alice.post(FILTER, json!({})).await);
    assert_ne!(other["filter_id"], id.as_str());

    let user = user_id!("@alice:localhost");
    let accounts = &server.services.accounts;
    let one = accounts.filter(user, &id).unwrap().unwrap();
    let again = accounts.filter(user, &id).unwrap().unwrap();
    assert!(Arc::ptr_eq(&one, &again));
    assert!(accounts.filter(user, "99").unwrap().is_none());
    assert!(accounts.filter(user, "x").unwrap().is_none());
    let sync = format!("/_matrix/client/v3/sync?filter={id}");
    ok(alice.get(&sync).await);
}

#[tokio::test]
async fn what_a_filter_can_not_be_is_refused() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let id = text(&ok(alice.post(FILTER, json!({})).await), "filter_id");
    refused(bob.get(&format!("{FILTER}/{id}")).await, 403, "M_FORBIDDEN");
    refused(bob.post(FILTER, json!({})).await, 403, "M_FORBIDDEN");
    for unknown in ["99", "none"] {
        let path = format!("{FILTER}/{unknown}");
        refused(alice.get(&path).await, 404, "M_NOT_FOUND");
    }
    for bad in [
        json!([]),
        json!({ "room": 5 }),
        json!({ "room": { "rooms": ["not a room"] } }),
    ] {
        refused(alice.post(FILTER, bad).await, 400, "M_BAD_JSON");
    }
    let large = json!({ "event_fields": ["x".repeat(64 << 10)] });
    refused(alice.post(FILTER, large).await, 413, "M_TOO_LARGE");
}

#[tokio::test]
async fn a_filter_names_as_many_rooms_as_fit() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let room = Room::new(&alice, "shared").await;
    let other = Room::new(&alice, "shared").await;
    let said = room.say(&alice, "hello").await;
    let filter = |count: usize| {
        let mut rooms: Vec<String> = (0..count).map(|n| format!("!{n}:x.example")).collect();
        rooms.push(room.0.clone());
        json!({ "room": { "rooms": rooms, "timeline": { "rooms": rooms } } })
    };
    // In the address of a request there can not even be that many.
    let many = filter(10_000);
    refused(alice.post(FILTER, many).await, 413, "M_TOO_LARGE");
    let id = text(&ok(alice.post(FILTER, filter(1_500)).await), "filter_id");
    let answer = ok(alice
        .get(&format!("/_matrix/client/v3/sync?filter={id}"))
        .await);
    let joined = answer["rooms"]["join"].as_object().unwrap();
    assert!(joined.contains_key(&room.0) && !joined.contains_key(&other.0));
    let few = encoded(&filter(500)["room"].to_string());
    let page = ok(room
        .get(&alice, &format!("messages?dir=b&filter={few}"))
        .await);
    assert!(ids(&page["chunk"]).contains(&said));
    let page = ok(other
        .get(&alice, &format!("messages?dir=b&filter={few}"))
        .await);
    assert_eq!(page["chunk"], json!([]));
}

#[tokio::test]
async fn the_oldest_of_too_many_filters_goes() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    for limit in 0..101 {
        let filter = json!({ "room": { "timeline": { "limit": limit } } });
        ok(alice.post(FILTER, filter).await);
    }
    refused(alice.get(&format!("{FILTER}/1")).await, 404, "M_NOT_FOUND");
    for id in [2, 101] {
        ok(alice.get(&format!("{FILTER}/{id}")).await);
    }
}
