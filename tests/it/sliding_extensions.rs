//! Simplified sliding sync, MSC4186: what is told besides the rooms.

use serde_json::{Value, json};

use crate::{
    device_lists::upload,
    room::{Room, encoded},
    server::{Client, TestServer, ok, text},
    sliding::Sliding,
};

/// A connection with an extension and a list of all rooms.
fn with(client: &Client, name: &str) -> Sliding {
    let mut sliding = Sliding::of_all(client, 2, json!([]));
    sliding.body["extensions"] = json!({ name: { "enabled": true } });
    sliding
}

async fn send(from: &Client, to: &Client, number: u64) {
    let content = json!({ &to.user_id: { &to.device_id: { "n": number } } });
    let path = format!("/_matrix/client/v3/sendToDevice/m.test/{number}");
    ok(from.put(&path, json!({ "messages": content })).await);
}

fn numbers(part: &Value) -> Vec<u64> {
    let events = part["events"].as_array().into_iter().flatten();
    events
        .filter_map(|event| event["content"]["n"].as_u64())
        .collect()
}

#[tokio::test]
async fn messages_wait_until_the_device_has_them() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let extension = json!({ "to_device": { "enabled": true, "limit": 2 } });
    let mut sliding = Sliding::new(
        &bob,
        json!({ "conn_id": "encryption", "extensions": extension }),
    );
    let start = sliding.next().await["extensions"]["to_device"].clone();
    assert_eq!(numbers(&start), [0_u64; 0]);
    for number in 0..5 {
        send(&alice, &bob, number).await;
    }
    // Without `since` nothing is acknowledged, whatever positions are.
    for _ in 0..2 {
        assert_eq!(
            numbers(&sliding.next().await["extensions"]["to_device"]),
            [0, 1]
        );
    }
    let mut since = text(&start, "next_batch");
    let mut told = Vec::new();
    for _ in 0..3 {
        sliding.body["extensions"]["to_device"]["since"] = json!(since);
        let lost = ok(sliding.ask().await)["extensions"]["to_device"].clone();
        let part = sliding.next().await["extensions"]["to_device"].clone();
        assert_eq!(part["events"], lost["events"], "the same again");
        told.extend(numbers(&part));
        since = text(&part, "next_batch");
    }
    assert_eq!(told, [0, 1, 2, 3, 4]);
    sliding.body["extensions"]["to_device"]["since"] = json!(since);
    assert_eq!(
        numbers(&sliding.next().await["extensions"]["to_device"]),
        [0_u64; 0]
    );
    // They are gone, for other connections too.
    let mut other = with(&bob, "to_device");
    assert_eq!(
        numbers(&other.next().await["extensions"]["to_device"]),
        [0_u64; 0]
    );
    // A message ends the wait.
    let sends = async {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        send(&alice, &bob, 9).await;
    };
    let (answer, ()) = tokio::join!(sliding.ask_waiting(60_000), sends);
    assert_eq!(numbers(&ok(answer)["extensions"]["to_device"]), [9]);
}

#[tokio::test]
async fn whose_devices_change_is_told_also_over_a_restart() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = Room::new(&alice, "shared").await;
    room.does(&bob, "join").await;
    let extensions = json!({ "e2ee": { "enabled": true }, "to_device": { "enabled": true } });
    let mut only = Sliding::new(
        &bob,
        json!({ "conn_id": "encryption", "extensions": extensions }),
    );
    let first = only.next().await["extensions"].clone();
    assert_eq!(first["e2ee"]["device_lists"], Value::Null);
    assert_eq!(
        first["e2ee"]["device_one_time_keys_count"],
        json!({ "signed_curve25519": 0 })
    );
    assert_eq!(first["e2ee"]["device_unused_fallback_key_types"], json!([]));
    let mut rooms = Sliding::of_all(&bob, 1, json!([]));
    rooms.body["extensions"] = extensions;
    rooms.next().await;

    let changes = async || {
        upload(&alice, 1).await;
        let path = format!("/_matrix/client/v3/devices/{}", alice.device_id);
        ok(alice.put(&path, json!({ "display_name": "new" })).await);
    };
    changes().await;
    let changed = |answer: &Value| answer["extensions"]["e2ee"]["device_lists"]["changed"].clone();
    let lost = ok(only.ask().await);
    assert_eq!(changed(&lost), json!([alice.user_id]));
    // The answer got lost, and the node is started again: it needs no memory of such a connection.
    let _server = server.restart();
    let again = only.next().await;
    assert_eq!(changed(&again), json!([alice.user_id]));
    assert_eq!(changed(&only.next().await), Value::Null);
    // Who has to begin anew says by its messages how far it was.
    rooms.pos = None;
    rooms.body["extensions"]["to_device"]["since"] = first["to_device"]["next_batch"].clone();
    assert_eq!(changed(&rooms.next().await), json!([alice.user_id]));
    assert_eq!(changed(&rooms.next().await), Value::Null);
    // It is switched off for a while.
    rooms.body["extensions"]["e2ee"]["enabled"] = json!(false);
    changes().await;
    assert_eq!(rooms.next().await["extensions"]["e2ee"], Value::Null);
    rooms.body["extensions"]["e2ee"]["enabled"] = json!(true);
    assert_eq!(changed(&rooms.next().await), json!([alice.user_id]));
}

#[tokio::test]
async fn account_data_is_told_with_the_rooms_that_are_shown() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let (first, second) = (
        Room::new(&alice, "shared").await,
        Room::new(&alice, "shared").await,
    );
    let user = format!("/_matrix/client/v3/user/{}", alice.user_id);
    let set = async |room: Option<&Room>, number: u64| {
        let room = room.map_or_else(String::new, |room| format!("/rooms/{}", room.0));
        let path = format!("{user}{room}/account_data/org.example");
        ok(alice.put(&path, json!({ "n": number })).await);
    };
    set(Some(&first), 1).await;
    set(None, 2).await;
    let mut sliding = with(&alice, "account_data");
    sliding.body["lists"]["all"]["ranges"] = json!([[0, 0]]);
    let part = sliding.next().await["extensions"]["account_data"].clone();
    let global = part["global"].as_array().expect("events").clone();
    let types: Vec<_> = global.iter().map(|event| text(event, "type")).collect();
    assert!(
        types.contains(&"org.example".to_owned()) && types.contains(&"m.push_rules".to_owned())
    );
    assert_eq!(part["rooms"], Value::Null, "the other room is shown");
    set(None, 3).await;
    set(Some(&first), 4).await;
    let part = sliding.next().await["extensions"]["account_data"].clone();
    assert_eq!(
        part["global"],
        json!([{ "type": "org.example", "content": { "n": 3 } }])
    );
    assert_eq!(part["rooms"], Value::Null);
    sliding.body["lists"]["all"]["ranges"] = json!([[0, 9]]);
    let part = sliding.next().await["extensions"]["account_data"].clone();
    let events = json!([{ "type": "org.example", "content": { "n": 4 } }]);
    assert_eq!(part, json!({ "global": [], "rooms": { &first.0: events } }));
    // What changes while the room is not shown comes with it.
    sliding.body["lists"]["all"]["ranges"] = json!([[0, 0]]);
    sliding.next().await;
    set(Some(&first), 5).await;
    set(Some(&second), 6).await;
    let part = sliding.next().await["extensions"]["account_data"].clone();
    assert_eq!(part["rooms"][&second.0][0]["content"]["n"], 6);
    assert_eq!(part["rooms"][&first.0], Value::Null);
    sliding.body["lists"]["all"]["ranges"] = json!([[0, 9]]);
    let part = sliding.next().await["extensions"]["account_data"].clone();
    assert_eq!(part["rooms"][&first.0][0]["content"]["n"], 5);
    assert_eq!(part["rooms"][&second.0], Value::Null);
    // Only for the lists and rooms that it is asked for.
    let extension = json!({ "enabled": true, "lists": [], "rooms": [second.0] });
    sliding.body["extensions"]["account_data"] = extension;
    let wanted = json!({ "timeline_limit": 1, "required_state": [] });
    sliding.body["room_subscriptions"] = json!({ &second.0: wanted });
    set(Some(&first), 7).await;
    set(Some(&second), 8).await;
    let part = sliding.next().await["extensions"]["account_data"].clone();
    assert_eq!(part["rooms"][&second.0][0]["content"]["n"], 8);
    assert_eq!(part["rooms"][&first.0], Value::Null);
    sliding.body["extensions"]["account_data"] = json!({ "enabled": true });
    let part = sliding.next().await["extensions"]["account_data"].clone();
    assert_eq!(part["rooms"][&first.0][0]["content"]["n"], 7);
}

#[tokio::test]
async fn receipts_and_typing_are_told() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = Room::new(&alice, "shared").await;
    room.does(&bob, "join").await;
    let read = async |who: &Client, kind: &str, event: &str| {
        let path = format!("receipt/{kind}/{}", encoded(event));
        ok(room.post(who, &path, json!({})).await);
    };
    let types = async |who: &Client, typing: bool| {
        let path = format!("typing/{}", who.user_id);
        ok(room
            .put(who, &path, json!({ "typing": typing, "timeout": 30_000 }))
            .await);
    };
    let old = room.say(&alice, "old").await;
    let mine = room.say(&bob, "mine").await;
    read(&bob, "m.read", &old).await;
    room.say(&alice, "middle").await;
    let new = room.say(&alice, "new").await;
    read(&alice, "m.read", &new).await;
    types(&alice, true).await;
    let mut sliding = with(&bob, "receipts");
    sliding.body["extensions"]["typing"] = json!({ "enabled": true });
    let first = sliding.next().await["extensions"].clone();
    let content = &first["receipts"]["rooms"][&room.0]["content"];
    assert!(content[&new]["m.read"][&alice.user_id]["ts"].is_u64());
    assert!(
        content[&old]["m.read"][&bob.user_id].is_object(),
        "one's own always"
    );
    let typing = &first["typing"]["rooms"][&room.0];
    assert_eq!(
        typing,
        &json!({ "type": "m.typing", "content": { "user_ids": [alice.user_id] } })
    );
    let next = sliding.next().await["extensions"].clone();
    assert_eq!(next, json!({ "receipts": {}, "typing": {} }));

    types(&alice, false).await;
    read(&alice, "m.read.private", &mine).await;
    let next = sliding.next().await["extensions"].clone();
    assert_eq!(
        next["typing"]["rooms"][&room.0]["content"]["user_ids"],
        json!([])
    );
    assert_eq!(next["receipts"], json!({}), "it is private");
    // One's own changes what is unread, and so tells the room.
    read(&bob, "m.read", &new).await;
    let answer = sliding.next().await;
    let told = &answer["rooms"][&room.0];
    assert_eq!(
        (&told["notification_count"], &told["timeline"]),
        (&json!(0), &Value::Null)
    );
    let content = &answer["extensions"]["receipts"]["rooms"][&room.0]["content"];
    assert!(content[&new]["m.read"][&bob.user_id].is_object());
}
