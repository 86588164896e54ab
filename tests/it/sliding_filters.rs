//! Simplified sliding sync, MSC4186: which rooms are in a list, and requests that ask for too much.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::{
    room::Room,
    server::{Client, TestServer, ok, refused},
    sliding::Sliding,
};

/// The rooms in a list with these filters, and how many there are said to be.
async fn listed(client: &Client, filters: Value) -> BTreeSet<String> {
    let list = json!({ "timeline_limit": 0, "required_state": [], "filters": filters });
    let mut sliding = Sliding::new(client, json!({ "lists": { "l": list } }));
    let answer = sliding.next().await;
    let rooms = answer["rooms"].as_object().cloned().unwrap_or_default();
    assert_eq!(answer["lists"]["l"]["count"], rooms.len(), "{filters}");
    rooms.into_iter().map(|(room, _)| room).collect()
}

async fn data(client: &Client, path: &str, content: Value) {
    let path = format!("/_matrix/client/v3/user/{}/{path}", client.user_id);
    ok(client.put(&path, content).await);
}

fn set<const N: usize>(rooms: [&Room; N]) -> BTreeSet<String> {
    rooms.into_iter().map(|room| room.0.clone()).collect()
}

#[tokio::test]
async fn filters_say_which_rooms_are_in_a_list() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let plain = Room::new(&alice, "shared").await;
    let encryption = json!([{ "type": "m.room.encryption", "content": { "algorithm": "m.megolm.v1.aes-sha2" } }]);
    let secret = Room::create(&alice, json!({ "initial_state": encryption })).await;
    let space = Room::create(&alice, json!({ "creation_content": { "type": "m.space" } })).await;
    let party = Room::create(
        &bob,
        json!({ "initial_state": encryption, "creation_content": { "type": "party" } }),
    )
    .await;
    party.does_to(&bob, "invite", &alice).await;
    data(
        &alice,
        "account_data/m.direct",
        json!({ &bob.user_id: [secret.0, party.0] }),
    )
    .await;
    data(
        &alice,
        &format!("rooms/{}/tags/m.favourite", plain.0),
        json!({ "order": 0.5 }),
    )
    .await;
    data(&alice, &format!("rooms/{}/tags/u.work", plain.0), json!({})).await;
    data(
        &alice,
        &format!("rooms/{}/tags/u.work", secret.0),
        json!({}),
    )
    .await;
    let child = format!("state/m.space.child/{}", plain.0);
    ok(space
        .put(&alice, &child, json!({ "via": ["localhost"] }))
        .await);
    let child = format!("state/m.space.child/{}", party.0);
    ok(space
        .put(&alice, &child, json!({ "via": ["localhost"] }))
        .await);

    for (filters, expect) in [
        (json!({}), set([&plain, &secret, &space, &party])),
        (json!({ "is_dm": true }), set([&secret, &party])),
        (json!({ "is_dm": false }), set([&plain, &space])),
        (json!({ "is_encrypted": true }), set([&secret, &party])),
        (json!({ "is_encrypted": false }), set([&plain, &space])),
        (json!({ "is_invite": true }), set([&party])),
        (
            json!({ "is_invite": false }),
            set([&plain, &secret, &space]),
        ),
        (json!({ "room_types": ["m.space"] }), set([&space])),
        (
            json!({ "room_types": [null, "party"] }),
            set([&plain, &secret, &party]),
        ),
        (
            json!({ "not_room_types": ["m.space"] }),
            set([&plain, &secret, &party]),
        ),
        (
            json!({ "room_types": ["m.space", null], "not_room_types": ["m.space"] }),
            set([&plain, &secret]),
        ),
        (json!({ "tags": ["u.work"] }), set([&plain, &secret])),
        (
            json!({ "tags": ["u.work"], "not_tags": ["m.favourite"] }),
            set([&secret]),
        ),
        (
            json!({ "not_tags": ["m.favourite"] }),
            set([&secret, &space, &party]),
        ),
        (json!({ "spaces": [space.0] }), set([&plain, &party])),
        (
            json!({ "spaces": [plain.0, "!nowhere:localhost"] }),
            set([]),
        ),
        (
            json!({ "spaces": [space.0], "is_invite": false, "tags": ["u.work"] }),
            set([&plain]),
        ),
    ] {
        assert_eq!(listed(&alice, filters.clone()).await, expect, "{filters}");
    }
}

#[tokio::test]
async fn a_list_follows_what_its_filter_asks_about() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let space = Room::create(&alice, json!({ "creation_content": { "type": "m.space" } })).await;
    let room = Room::new(&alice, "shared").await;
    let list =
        |filters: Value| json!({ "timeline_limit": 1, "required_state": [], "filters": filters });
    let mut sliding = Sliding::new(
        &alice,
        json!({ "lists": {
        "dm": list(json!({ "is_dm": true })),
        "encrypted": list(json!({ "is_encrypted": true })),
        "tagged": list(json!({ "tags": ["t"] })),
        "space": list(json!({ "spaces": [space.0] })),
    } }),
    );
    let counts = |answer: &Value| -> Vec<u64> {
        let names = ["dm", "encrypted", "tagged", "space"];
        names
            .map(|name| answer["lists"][name]["count"].as_u64().expect("a number"))
            .into()
    };
    assert_eq!(counts(&sliding.next().await), [0, 0, 0, 0]);
    data(
        &alice,
        "account_data/m.direct",
        json!({ &bob.user_id: [room.0] }),
    )
    .await;
    let answer = sliding.next().await;
    assert_eq!(counts(&answer), [1, 0, 0, 0]);
    assert_eq!(answer["rooms"][&room.0]["is_dm"], true);
    room.set(
        &alice,
        "m.room.encryption",
        json!({ "algorithm": "m.megolm.v1.aes-sha2" }),
    )
    .await;
    assert_eq!(counts(&sliding.next().await), [1, 1, 0, 0]);
    data(&alice, &format!("rooms/{}/tags/t", room.0), json!({})).await;
    assert_eq!(counts(&sliding.next().await), [1, 1, 1, 0]);
    let child = format!("state/m.space.child/{}", room.0);
    ok(space
        .put(&alice, &child, json!({ "via": ["localhost"] }))
        .await);
    assert_eq!(counts(&sliding.next().await), [1, 1, 1, 1]);
    data(&alice, "account_data/m.direct", json!({})).await;
    let answer = sliding.next().await;
    assert_eq!(counts(&answer), [0, 1, 1, 1]);
    assert_eq!(answer["rooms"][&room.0]["is_dm"], false);
    // A room that the space names before the user has heard of it.
    let other = Room::create(&bob, json!({})).await;
    let child = format!("state/m.space.child/{}", other.0);
    ok(space
        .put(&alice, &child, json!({ "via": ["localhost"] }))
        .await);
    assert_eq!(counts(&sliding.next().await), [0, 1, 1, 1]);
    other.does_to(&bob, "invite", &alice).await;
    let answer = sliding.next().await;
    assert_eq!(counts(&answer), [0, 1, 1, 2]);
    assert!(answer["rooms"][&other.0]["invite_state"].is_array());
}

#[tokio::test]
async fn what_asks_for_too_much_is_refused() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let room = Room::new(&alice, "shared").await;
    let list = json!({ "ranges": [[0, 9]], "timeline_limit": 1, "required_state": [] });
    let many = |count: usize, value: &Value| -> Value {
        let all = (0..count).map(|number| (number.to_string(), value.clone()));
        Value::Object(all.collect::<Map<_, _>>())
    };
    let one = |name: &str, value: Value| {
        let mut list = list.clone();
        list[name] = value;
        json!({ "lists": { "l": list } })
    };
    let state = |count: usize| json!(vec![json!(["t", ""]); count]);
    let rooms = |count: usize| -> Value {
        let wanted = json!({ "timeline_limit": 1, "required_state": [] });
        let all = (0..count).map(|number| (format!("!r{number}:a"), wanted.clone()));
        Value::Object(all.collect::<Map<_, _>>())
    };
    for (body, errcode) in [
        (json!({ "lists": many(10_000, &list) }), "M_INVALID_PARAM"),
        (json!({ "lists": many(101, &list) }), "M_INVALID_PARAM"),
        (
            one("ranges", json!(vec![[0, 1]; 10_000])),
            "M_INVALID_PARAM",
        ),
        (one("ranges", json!([[5, 4]])), "M_INVALID_PARAM"),
        (one("ranges", json!([[-1, 4]])), "M_BAD_JSON"),
        (one("ranges", json!([[0, "4"]])), "M_BAD_JSON"),
        (one("ranges", json!([[0, 1, 2]])), "M_BAD_JSON"),
        (one("required_state", state(100_000)), "M_INVALID_PARAM"),
        (one("timeline_limit", json!("many")), "M_BAD_JSON"),
        (one("filters", json!({ "is_dm": 1 })), "M_BAD_JSON"),
        (json!({ "lists": { "l": {} } }), "M_BAD_JSON"),
        (
            json!({ "lists": { "x".repeat(300): list } }),
            "M_INVALID_PARAM",
        ),
        (json!({ "conn_id": "x".repeat(300) }), "M_INVALID_PARAM"),
        (json!({ "txn_id": "x".repeat(300) }), "M_INVALID_PARAM"),
        (
            json!({ "room_subscriptions": rooms(1001) }),
            "M_INVALID_PARAM",
        ),
        (
            json!({ "room_subscriptions": { "no room": {} } }),
            "M_BAD_JSON",
        ),
        (
            json!({ "extensions": { "to_device": { "enabled": true, "since": "x" } } }),
            "M_INVALID_PARAM",
        ),
        (json!([]), "M_BAD_JSON"),
    ] {
        let text = body.to_string().chars().take(100).collect::<String>();
        let (status, answer) = Sliding::new(&alice, body).ask().await;
        assert_eq!(
            (status.as_u16(), answer["errcode"].as_str()),
            (400, Some(errcode)),
            "{text}"
        );
    }
    // As much as may be, and more than there is.
    for body in [
        json!({ "lists": many(100, &list) }),
        one("ranges", json!([[0, u64::MAX]])),
        one("ranges", json!([[u64::MAX, u64::MAX], [0, 0]])),
        one("timeline_limit", json!(u64::MAX)),
        one("required_state", state(1000)),
    ] {
        let answer = Sliding::new(&alice, body).next().await;
        assert!(answer["rooms"][&room.0].is_object());
    }
    let answer = Sliding::new(&alice, one("ranges", json!([[1, u64::MAX]])))
        .next()
        .await;
    assert_eq!(
        (&answer["rooms"], &answer["lists"]["l"]["count"]),
        (&Value::Null, &json!(1))
    );
}

#[tokio::test]
async fn a_device_has_no_more_than_a_few_connections() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    Room::new(&alice, "shared").await;
    let connection = |number: usize| {
        let mut sliding = Sliding::of_all(&alice, 1, json!([]));
        sliding.body["conn_id"] = json!(number.to_string());
        sliding
    };
    let mut all: Vec<_> = (0..30).map(connection).collect();
    for sliding in &mut all {
        sliding.next().await;
    }
    refused(all[0].ask().await, 400, "M_UNKNOWN_POS");
    all[29].next().await;
}
