//! "Client config" (account data) and "Room tagging".

use serde_json::{Value, json};

use crate::server::{TestServer, ok, refused, text};

const ROOM: &str = "!room:localhost";

fn global(data_type: &str) -> String {
    format!("/_matrix/client/v3/user/@alice:localhost/account_data/{data_type}")
}

fn of_room(data_type: &str) -> String {
    format!("/_matrix/client/v3/user/@alice:localhost/rooms/{ROOM}/account_data/{data_type}")
}

fn tags(tag: &str) -> String {
    format!("/_matrix/client/v3/user/@alice:localhost/rooms/{ROOM}/tags{tag}")
}

#[tokio::test]
async fn account_data_is_kept_by_type_globally_and_by_room() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    for path in [global("org.example"), of_room("org.example")] {
        refused(alice.get(&path).await, 404, "M_NOT_FOUND");
    }
    ok(alice.put(&global("org.example"), json!({ "a": 1 })).await);
    ok(alice.put(&of_room("org.example"), json!({ "b": [] })).await);
    ok(alice.put(&of_room("empty"), json!({})).await);
    let server = server.restart();
    assert_eq!(
        ok(alice.get(&global("org.example")).await),
        json!({ "a": 1 })
    );
    assert_eq!(
        ok(alice.get(&of_room("org.example")).await),
        json!({ "b": [] })
    );
    // What has no members is as good as deleted.
    refused(alice.get(&of_room("empty")).await, 404, "M_NOT_FOUND");
    refused(alice.get(&global("empty")).await, 404, "M_NOT_FOUND");
    drop(server);
}

#[tokio::test]
async fn what_account_data_can_not_be_is_refused() {
    let server = TestServer::with(|config| config.registration.guests = true);
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    for path in [global("t"), of_room("t"), tags("/t")] {
        refused(bob.put(&path, json!({})).await, 403, "M_FORBIDDEN");
        refused(alice.put(&path, json!([1])).await, 400, "M_BAD_JSON");
        refused(alice.put(&path, json!("x")).await, 400, "M_BAD_JSON");
    }
    for path in [global("t"), of_room("t"), tags("")] {
        refused(bob.get(&path).await, 403, "M_FORBIDDEN");
    }
    refused(bob.delete(&tags("/t")).await, 403, "M_FORBIDDEN");
    for path in [global("m.push_rules"), of_room("m.fully_read")] {
        refused(alice.put(&path, json!({})).await, 405, "M_BAD_JSON");
    }
    let long = "x".repeat(256);
    refused(
        alice.put(&global(&long), json!({})).await,
        400,
        "M_INVALID_PARAM",
    );
    refused(
        alice.put(&tags(&format!("/{long}")), json!({})).await,
        400,
        "M_INVALID_PARAM",
    );
    let bad_room = of_room("t").replace(ROOM, "room");
    refused(
        alice.put(&bad_room, json!({})).await,
        400,
        "M_INVALID_PARAM",
    );
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(500), "]".repeat(500));
    let (status, _, body) = alice.raw(http::Method::PUT, &global("t"), &[], deep).await;
    assert_eq!(status, 400, "{body}");

    let guest = "/_matrix/client/v3/register?kind=guest";
    let guest = ok(server.anonymous().post(guest, json!({})).await);
    let guest = server.client(&guest);
    let path = global("t").replace("@alice:localhost", &guest.user_id);
    refused(
        guest.put(&path, json!({})).await,
        403,
        "M_GUEST_ACCESS_FORBIDDEN",
    );
}

#[tokio::test]
async fn tags_are_added_and_taken_one_by_one() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    assert_eq!(ok(alice.get(&tags("")).await), json!({ "tags": {} }));
    ok(alice.delete(&tags("/u.none")).await);
    let order = json!({ "order": 0.25, "org.example": true });
    ok(alice.put(&tags("/m.favourite"), order.clone()).await);
    ok(alice.put(&tags("/u.work"), json!({})).await);
    let both = json!({ "tags": { "m.favourite": order, "u.work": {} } });
    assert_eq!(ok(alice.get(&tags("")).await), both);
    assert_eq!(ok(alice.get(&of_room("m.tag")).await), both);
    ok(alice.delete(&tags("/m.favourite")).await);
    assert_eq!(
        ok(alice.get(&tags("")).await),
        json!({ "tags": { "u.work": {} } })
    );
    refused(
        alice
            .put(&tags("/u.work"), json!({ "order": "high" }))
            .await,
        400,
        "M_BAD_JSON",
    );
}

#[tokio::test]
async fn the_newest_account_data_is_synced_once() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let types = |body: &Value| -> Vec<String> {
        let events = body["account_data"]["events"].as_array();
        let events = events.into_iter().flatten();
        events.map(|event| text(event, "type")).collect()
    };
    let first = ok(alice.get("/_matrix/client/v3/sync").await);
    assert_eq!(types(&first), ["m.push_rules"]);
    let since = text(&first, "next_batch");
    let path = format!("/_matrix/client/v3/sync?since={since}");

    for n in [1, 2] {
        ok(alice.put(&global("org.example"), json!({ "n": n })).await);
    }
    ok(alice.put(&global("org.other"), json!({ "a": 1 })).await);
    let second = ok(alice.get(&path).await);
    assert_eq!(types(&second), ["org.example", "org.other"]);
    assert_eq!(
        second["account_data"]["events"][0]["content"],
        json!({ "n": 2 })
    );
}

/// The account data in a sync, global and of a room, as type and content.
async fn synced(alice: &crate::server::Client, room: &str, since: &str) -> (Value, Value, String) {
    let path = format!("/_matrix/client/v3/sync?timeout=0{since}");
    let sync = ok(alice.get(&path).await);
    let of = |list: &Value| {
        let events = list["account_data"]["events"].as_array().cloned();
        let kept = events.into_iter().flatten();
        Value::Array(kept.filter(|event| event["type"] == "t").collect())
    };
    let in_room = of(&sync["rooms"]["join"][room]);
    (of(&sync), in_room, text(&sync, "next_batch"))
}

#[tokio::test]
async fn account_data_is_deleted_and_those_who_knew_it_are_told() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = crate::room::Room::new(&alice, "shared").await.0;
    let user = "user/@alice:localhost";
    let paths = [
        format!("{user}/account_data/t"),
        format!("{user}/rooms/{room}/account_data/t"),
    ];
    let put = |path: &str| format!("/_matrix/client/v3/{path}");
    let delete = |path: &str| format!("/_matrix/client/unstable/org.matrix.msc3391/{path}");
    for by_put in [true, false] {
        for path in &paths {
            ok(alice.put(&put(path), json!({ "a": 1 })).await);
        }
        let known = json!([{ "type": "t", "content": { "a": 1 } }]);
        let (global, in_room, since) = synced(&alice, &room, "").await;
        assert_eq!((global, in_room), (known.clone(), known));
        for path in &paths {
            refused(bob.delete(&delete(path)).await, 403, "M_FORBIDDEN");
            if by_put {
                ok(alice.put(&put(path), json!({})).await);
            } else {
                ok(alice.delete(&delete(path)).await);
            }
            refused(alice.get(&put(path)).await, 404, "M_NOT_FOUND");
        }
        let told = json!([{ "type": "t", "content": {} }]);
        let (global, in_room, since) = synced(&alice, &room, &format!("&since={since}")).await;
        assert_eq!((global, in_room), (told.clone(), told));
        let (global, in_room, _) = synced(&alice, &room, "").await;
        assert_eq!((global, in_room), (json!([]), json!([])));
        // What is not there may be deleted, and nobody is told of it.
        ok(alice.delete(&delete(&paths[0])).await);
        let (global, _, _) = synced(&alice, &room, &format!("&since={since}")).await;
        assert_eq!(global, json!([]));
    }
    let rules = delete(&format!("{user}/account_data/m.push_rules"));
    refused(alice.delete(&rules).await, 405, "M_BAD_JSON");
}

#[tokio::test]
async fn what_was_set_for_one_device_goes_with_it() {
    let server = TestServer::new();
    let (alice, second) = (server.register("alice").await, server.log_in("alice").await);
    let settings = |device: &str| {
        let name = format!("org.matrix.msc3890.local_notification_settings.{device}");
        global(&name)
    };
    let stable = global(&format!(
        "m.local_notification_settings.{}",
        second.device_id
    ));
    let (own, gone) = (settings(&alice.device_id), settings(&second.device_id));
    for path in [&own, &gone, &stable] {
        ok(alice.put(path, json!({ "is_silenced": true })).await);
    }
    ok(second.post("/_matrix/client/v3/logout", json!({})).await);
    ok(alice.get(&own).await);
    for path in [&gone, &stable] {
        refused(alice.get(path).await, 404, "M_NOT_FOUND");
    }
}
