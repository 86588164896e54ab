//! "Presence".

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    room::Room,
    server::{Client, TestServer, ok, refused, text},
};

fn path(whom: &Client) -> String {
    format!("/_matrix/client/v3/presence/{}/status", whom.user_id)
}

/// How one is, as another sees it.
async fn state(who: &Client, whom: &Client) -> String {
    text(&ok(who.get(&path(whom)).await), "presence")
}

/// A sync that neither waits nor counts as being there, and what it says of presence.
async fn sync(who: &Client, since: &mut String) -> Vec<(String, Value)> {
    let path = format!("/_matrix/client/v3/sync?set_presence=offline{since}");
    let answer = ok(who.get(&path).await);
    *since = format!("&since={}", text(&answer, "next_batch"));
    let events = answer["presence"]["events"].as_array().cloned();
    let events = events.unwrap_or_default().into_iter();
    events
        .map(|event| (text(&event, "sender"), event["content"].clone()))
        .collect()
}

/// Lets time pass for the node, and what runs beside the requests run.
async fn pass(server: &TestServer, time: Duration) {
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    server.clock.advance(time);
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn what_one_says_is_told_to_those_who_share_a_room() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let eve = server.register("eve").await;
    let room = Room::new(&alice, "world_readable").await;
    room.does(&bob, "join").await;
    let (mut bobs, mut eves) = (String::new(), String::new());
    sync(&bob, &mut bobs).await;
    sync(&eve, &mut eves).await;

    let said = json!({ "presence": "online", "status_msg": "at \"work\"" });
    ok(alice.put(&path(&alice), said.clone()).await);
    let seen = ok(bob.get(&path(&alice)).await);
    let expect = json!({
        "presence": "online", "status_msg": "at \"work\"", "currently_active": true, "last_active_ago": 0,
    });
    assert_eq!(seen, expect);
    pass(&server, Duration::from_secs(1)).await;
    let told = sync(&bob, &mut bobs).await;
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].0, alice.user_id);
    assert_eq!(told[0].1["status_msg"], "at \"work\"");
    assert_eq!(sync(&eve, &mut eves).await, []);
    assert_eq!(sync(&eve, &mut String::new()).await, []);
    assert_eq!(sync(&bob, &mut String::new()).await.len(), 1);

    // The same again is no news.
    ok(alice.put(&path(&alice), said).await);
    pass(&server, Duration::from_secs(1)).await;
    assert_eq!(sync(&bob, &mut bobs).await, []);
}

#[tokio::test]
async fn only_ones_own_and_only_of_those_one_knows() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = Room::new(&alice, "shared").await;
    let mut nobody = alice.clone();
    nobody.user_id = "@nobody:localhost".to_owned();
    refused(bob.get(&path(&alice)).await, 403, "M_FORBIDDEN");
    refused(bob.get(&path(&nobody)).await, 403, "M_FORBIDDEN");
    assert_eq!(state(&bob, &bob).await, "offline");
    let body = json!({ "presence": "online" });
    refused(bob.put(&path(&alice), body).await, 403, "M_FORBIDDEN");
    let body = json!({ "presence": "dancing" });
    refused(bob.put(&path(&bob), body).await, 400, "M_INVALID_PARAM");
    let body = json!({ "presence": "online", "status_msg": "x".repeat(3_000) });
    refused(bob.put(&path(&bob), body).await, 400, "M_INVALID_PARAM");

    room.does(&bob, "join").await;
    assert_eq!(state(&bob, &alice).await, "offline");
    room.does(&bob, "leave").await;
    refused(bob.get(&path(&alice)).await, 403, "M_FORBIDDEN");
}

#[tokio::test]
async fn syncing_is_being_there_and_silence_is_not() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = Room::new(&alice, "shared").await;
    room.does(&bob, "join").await;
    let mut since = String::new();
    sync(&bob, &mut since).await;

    // A sync that is going on.
    let first = ok(alice.get("/_matrix/client/v3/sync").await);
    assert_eq!(state(&bob, &alice).await, "online");
    let next = format!(
        "/_matrix/client/v3/sync?timeout=400000&since={}",
        text(&first, "next_batch")
    );
    pass(&server, Duration::from_secs(10)).await;
    let told = sync(&bob, &mut since).await;
    assert_eq!(told.len(), 1, "{told:?}");
    let first = ok(alice.get(&next.replace("400000", "0")).await);
    let next = format!(
        "/_matrix/client/v3/sync?timeout=400000&since={}",
        text(&first, "next_batch")
    );
    let ((), waited) = tokio::join!(
        async {
            // Who does nothing for a while is not at hand, but there.
            pass(&server, Duration::from_secs(299)).await;
            assert_eq!(state(&bob, &alice).await, "unavailable");
        },
        alice.get(&next)
    );
    ok(waited);
    ok(alice.get("/_matrix/client/v3/sync").await);
    assert_eq!(
        state(&bob, &alice).await,
        "unavailable",
        "syncing is not doing"
    );
    room.say(&alice, "hello").await;
    assert_eq!(state(&bob, &alice).await, "online");

    pass(&server, Duration::from_secs(29)).await;
    assert_eq!(state(&bob, &alice).await, "online");
    pass(&server, Duration::from_secs(10)).await;
    assert_eq!(state(&bob, &alice).await, "offline");
    sync(&bob, &mut since).await;

    // An app says that nobody sits before it.
    ok(alice
        .get("/_matrix/client/v3/sync?set_presence=unavailable")
        .await);
    assert_eq!(state(&bob, &alice).await, "unavailable");
    ok(alice.get("/_matrix/client/v3/sync").await);
    assert_eq!(state(&bob, &alice).await, "online");
    ok(alice
        .put(&path(&alice), json!({ "presence": "offline" }))
        .await);
    assert_eq!(state(&bob, &alice).await, "offline");
}

#[tokio::test]
async fn what_one_said_outlives_a_restart() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let said = json!({ "presence": "online", "status_msg": "away on Friday" });
    ok(alice.put(&path(&alice), said).await);
    let server = server.restart();
    server.clock.advance(Duration::from_secs(1));
    let expect = json!({
        "presence": "offline", "status_msg": "away on Friday", "currently_active": false, "last_active_ago": 1_000,
    });
    assert_eq!(ok(alice.get(&path(&alice)).await), expect);
}
