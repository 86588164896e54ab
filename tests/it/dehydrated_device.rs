//! Devices that nobody is logged in with: MSC3814.

use serde_json::{Value, json};

use crate::{
    identity::identity,
    server::{Client, TestServer, ok, refused, text},
    several::sound,
};

const PATH: &str = "/_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device";

/// A device of the user that does not exist yet.
fn body(client: &Client, device: &str, seed: u8) -> Value {
    let mut asleep = client.clone();
    device.clone_into(&mut asleep.device_id);
    json!({
        "device_id": device,
        "initial_device_display_name": "asleep",
        "device_data": { "algorithm": "org.matrix.msc3814.v2", "device_pickle": device, "nonce": "n" },
        "device_keys": identity(&asleep, seed),
        "one_time_keys": { "signed_curve25519:1": { "key": device } },
        "fallback_keys": { "signed_curve25519:f": { "key": "f", "fallback": true } },
    })
}

async fn keys_of(asker: &Client, user: &Client) -> Value {
    let body = json!({ "device_keys": { &user.user_id: [] } });
    let answer = ok(asker.post("/_matrix/client/v3/keys/query", body).await);
    answer["device_keys"][&user.user_id].clone()
}

async fn write_to(sender: &Client, to: &Client, device: &str, n: usize) {
    let path = format!("/_matrix/client/v3/sendToDevice/m.x/{device}{n}");
    let body = json!({ "messages": { &to.user_id: { device: { "n": n } } } });
    ok(sender.put(&path, body).await);
}

fn numbers(answer: &Value) -> Vec<u64> {
    let events = answer["events"].as_array().expect("a list").iter();
    events
        .map(|event| event["content"]["n"].as_u64().expect("a number"))
        .collect()
}

#[tokio::test]
async fn messages_wait_until_another_device_takes_its_place() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let bob = server.register("bob").await;
    refused(alice.get(PATH).await, 404, "M_NOT_FOUND");
    refused(alice.delete(PATH).await, 404, "M_NOT_FOUND");
    let first = body(&alice, "ASLEEP", 9);
    assert_eq!(
        ok(alice.put(PATH, first.clone()).await),
        json!({ "device_id": "ASLEEP" })
    );
    // Once more, because the answer was lost.
    ok(alice.put(PATH, first.clone()).await);
    let expected = json!({ "device_id": "ASLEEP", "device_data": first["device_data"] });
    assert_eq!(ok(alice.get(PATH).await), expected);
    assert_eq!(
        keys_of(&bob, &alice).await["ASLEEP"]["keys"],
        first["device_keys"]["keys"]
    );
    let claim = json!({ "one_time_keys": { &alice.user_id: { "ASLEEP": "signed_curve25519" } } });
    let claimed = ok(bob.post("/_matrix/client/v3/keys/claim", claim).await);
    let given = &claimed["one_time_keys"][&alice.user_id]["ASLEEP"];
    assert_eq!(
        *given,
        json!({ "signed_curve25519:1": { "key": "ASLEEP" } })
    );
    for n in 0..150 {
        write_to(&bob, &alice, "ASLEEP", n).await;
    }
    let server = server.restart();
    let events = format!("{PATH}/ASLEEP/events");
    let page = ok(alice.get(&format!("{events}?limit=3")).await);
    assert_eq!(numbers(&page), [0, 1, 2]);
    let next = text(&page, "next_batch");
    let page = ok(alice.get(&format!("{events}?from={next}")).await);
    assert_eq!(numbers(&page), (3..103).collect::<Vec<_>>());
    let next = text(&page, "next_batch");
    let page = ok(alice.get(&format!("{events}?from={next}")).await);
    assert_eq!(numbers(&page), (103..150).collect::<Vec<_>>());
    assert_eq!(page.get("next_batch"), None);
    // Older clients go on until nothing comes.
    let (mut all, mut from) = (Vec::new(), json!({}));
    loop {
        let page = ok(alice.post(&events, from).await);
        if numbers(&page).is_empty() {
            break;
        }
        all.extend(numbers(&page));
        from = json!({ "next_batch": page["next_batch"] });
    }
    assert_eq!(all, (0..150).collect::<Vec<_>>());
    // The next one takes its place, and what was for the first is gone.
    ok(alice.put(PATH, body(&alice, "OTHER", 10)).await);
    refused(alice.get(&events).await, 403, "M_FORBIDDEN");
    let keys = keys_of(&bob, &alice).await;
    assert_eq!(keys.get("ASLEEP"), None);
    assert!(keys["OTHER"].is_object(), "{keys}");
    sound(&[&server]);
    assert_eq!(
        ok(alice.delete(PATH).await),
        json!({ "device_id": "OTHER" })
    );
    refused(alice.get(PATH).await, 404, "M_NOT_FOUND");
    assert_eq!(keys_of(&bob, &alice).await, json!({}));
    // It is a device like others, and goes with them.
    ok(alice.put(PATH, body(&alice, "THIRD", 11)).await);
    let devices = ok(alice.get("/_matrix/client/v3/devices/THIRD").await);
    assert_eq!(devices["display_name"], "asleep");
    ok(alice.post("/_matrix/client/v3/logout/all", json!({})).await);
    let alice = server.log_in("alice").await;
    refused(alice.get(PATH).await, 404, "M_NOT_FOUND");
    sound(&[&server]);
}

#[tokio::test]
async fn others_are_told_when_it_comes_and_goes() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let bob = server.register("bob").await;
    let create = json!({ "preset": "public_chat" });
    let room = text(
        &ok(alice.post("/_matrix/client/v3/createRoom", create).await),
        "room_id",
    );
    ok(bob
        .post(&format!("/_matrix/client/v3/join/{room}"), json!({}))
        .await);
    let sync = async |since: &str| {
        let path = format!("/_matrix/client/v3/sync?timeout=0&since={since}");
        ok(bob.get(&path).await)
    };
    let first = ok(bob.get("/_matrix/client/v3/sync").await);
    let mut since = text(&first, "next_batch");
    for step in 0..3_u8 {
        let device = format!("ASLEEP{step}");
        if step < 2 {
            ok(alice.put(PATH, body(&alice, &device, step + 1)).await);
        } else {
            ok(alice.delete(PATH).await);
        }
        let told = sync(&since).await;
        assert_eq!(
            told["device_lists"]["changed"],
            json!([alice.user_id]),
            "{told}"
        );
        since = text(&told, "next_batch");
    }
    sound(&[&server]);
}

#[tokio::test]
async fn what_is_not_ones_own_is_refused() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let bob = server.register("bob").await;
    ok(alice.put(PATH, body(&alice, "ASLEEP", 9)).await);
    let events = format!("{PATH}/ASLEEP/events");
    refused(bob.get(&events).await, 403, "M_FORBIDDEN");
    refused(bob.post(&events, json!({})).await, 403, "M_FORBIDDEN");
    refused(bob.get(PATH).await, 404, "M_NOT_FOUND");
    // Nor the messages of a device that somebody is logged in with.
    let own = format!("{PATH}/{}/events", alice.device_id);
    refused(alice.get(&own).await, 403, "M_FORBIDDEN");
    for from in ["5", "d", "dx", "s1"] {
        let path = format!("{events}?from={from}");
        refused(alice.get(&path).await, 400, "M_INVALID_PARAM");
    }
    refused(
        alice.get(&format!("{events}?limit=0")).await,
        400,
        "M_INVALID_PARAM",
    );
    refused(
        alice.get(&format!("{events}?limit=x")).await,
        400,
        "M_INVALID_PARAM",
    );
    // A device that is there is not put to sleep, and keys of others are not taken.
    let awake = alice.device_id.clone();
    refused(
        alice.put(PATH, body(&alice, &awake, 3)).await,
        400,
        "M_INVALID_PARAM",
    );
    let mut changed = body(&alice, "ASLEEP", 9);
    changed["device_data"]["nonce"] = json!("other");
    refused(alice.put(PATH, changed).await, 400, "M_INVALID_PARAM");
    refused(
        alice.put(PATH, body(&alice, "ASLEEP", 8)).await,
        400,
        "M_INVALID_PARAM",
    );
    let mut forged = body(&alice, "NEW", 4);
    forged["device_keys"]["algorithms"] = json!(["x"]);
    refused(alice.put(PATH, forged).await, 400, "M_INVALID_SIGNATURE");
    refused(
        alice.put(PATH, body(&bob, "NEW", 4)).await,
        400,
        "M_INVALID_PARAM",
    );
    let mut bare = body(&alice, "NEW", 4);
    bare.as_object_mut()
        .expect("an object")
        .remove("device_keys");
    refused(alice.put(PATH, bare).await, 400, "M_BAD_JSON");
    let mut long = body(&alice, "NEW", 4);
    long["device_data"]["device_pickle"] = json!("x".repeat(65 << 10));
    refused(alice.put(PATH, long).await, 413, "M_TOO_LARGE");
    let id = "X".repeat(256);
    refused(
        alice.put(PATH, body(&alice, &id, 4)).await,
        413,
        "M_TOO_LARGE",
    );
    assert_eq!(ok(alice.get(PATH).await)["device_id"], "ASLEEP");
    sound(&[&server]);
}
