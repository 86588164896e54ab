//! "Typing Notifications".

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    room::Room,
    server::{Client, TestServer, ok, refused, text},
};

async fn types(room: &Room, who: &Client, typing: bool) {
    let body = json!({ "typing": typing, "timeout": 5_000 });
    let path = room.path(&format!("typing/{}", who.user_id));
    ok(who.put(&path, body).await);
}

/// The next sync, and who types in the room if it says so.
async fn sync(who: &Client, room: &Room, since: &mut String) -> Option<Value> {
    let path = format!("/_matrix/client/v3/sync?set_presence=offline&timeout=10000{since}");
    let answer = ok(who.get(&path).await);
    *since = format!("&since={}", text(&answer, "next_batch"));
    let events = answer["rooms"]["join"][&*room.0]["ephemeral"]["events"].as_array()?;
    let typing = events.iter().find(|event| event["type"] == "m.typing")?;
    Some(typing["content"]["user_ids"].clone())
}

#[tokio::test]
async fn others_are_woken_when_somebody_begins_and_stops() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = Room::new(&alice, "shared").await;
    room.does(&bob, "join").await;
    let mut since = String::new();
    assert_eq!(sync(&bob, &room, &mut since).await, None);

    let (told, ()) = tokio::join!(sync(&bob, &room, &mut since), types(&room, &alice, true));
    assert_eq!(told, Some(json!([alice.user_id])));
    assert_eq!(
        sync(&bob, &room, &mut String::new()).await,
        Some(json!([alice.user_id]))
    );
    let (told, ()) = tokio::join!(sync(&bob, &room, &mut since), types(&room, &alice, false));
    assert_eq!(told, Some(json!([])));
    assert_eq!(sync(&bob, &room, &mut String::new()).await, None);
}

#[tokio::test]
async fn nobody_types_after_a_restart_and_apps_are_told_so() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let (room, other) = (
        Room::new(&alice, "shared").await,
        Room::new(&alice, "shared").await,
    );
    for room in [&room, &other] {
        room.does(&bob, "join").await;
    }
    let mut since = String::new();
    sync(&bob, &room, &mut since).await;
    types(&other, &alice, true).await;
    types(&other, &alice, false).await;
    types(&room, &alice, true).await;
    let told = sync(&bob, &room, &mut since).await;
    assert_eq!(told, Some(json!([alice.user_id])));
    let server = server.restart();
    let quiet = since.clone();
    assert_eq!(sync(&bob, &room, &mut since).await, Some(json!([])));
    // Where nobody has typed there is nothing to tell, nor for those who begin.
    assert_eq!(sync(&bob, &other, &mut quiet.clone()).await, None);
    assert_eq!(sync(&bob, &room, &mut String::new()).await, None);
    types(&room, &alice, true).await;
    let told = sync(&bob, &room, &mut since).await;
    assert_eq!(told, Some(json!([alice.user_id])));
    crate::elsewhere::check(&server);
}

#[tokio::test]
async fn who_says_nothing_more_has_stopped() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = Room::new(&alice, "shared").await;
    room.does(&bob, "join").await;
    let mut since = String::new();
    sync(&bob, &room, &mut since).await;
    types(&room, &alice, true).await;
    assert_eq!(
        sync(&bob, &room, &mut since).await,
        Some(json!([alice.user_id]))
    );

    // Saying it again is no news, but lasts longer.
    server.clock.advance(Duration::from_secs(3));
    let position = server.services.store().view().position();
    types(&room, &alice, true).await;
    assert_eq!(server.services.store().view().position(), position);
    server.clock.advance(Duration::from_secs(3));
    let (told, ()) = tokio::join!(sync(&bob, &room, &mut since), async {
        tokio::task::yield_now().await;
        assert_eq!(server.services.store().view().position(), position);
        server.clock.advance(Duration::from_secs(2));
    });
    assert_eq!(told, Some(json!([])));
}

#[tokio::test]
async fn how_long_need_not_be_said() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let room = Room::new(&alice, "shared").await;
    let path = room.path(&format!("typing/{}", alice.user_id));
    ok(alice.put(&path, json!({ "typing": true })).await);
    assert!(sync(&alice, &room, &mut String::new()).await.is_some());
    refused(alice.put(&path, json!({})).await, 400, "M_BAD_JSON");
    refused(
        alice.put(&path, json!({ "typing": 1 })).await,
        400,
        "M_BAD_JSON",
    );
}

#[tokio::test]
async fn nobody_types_for_others_or_elsewhere() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let eve = server.register("eve").await;
    let room = Room::new(&alice, "world_readable").await;
    let unknown = Room("!unknown:localhost".to_owned());
    room.does(&bob, "join").await;
    room.does(&bob, "leave").await;
    let body = json!({ "typing": true, "timeout": 5_000 });
    for (room, who, whom) in [
        (&room, &alice, &bob),
        (&room, &bob, &bob),
        (&room, &eve, &eve),
        (&unknown, &alice, &alice),
    ] {
        let path = room.path(&format!("typing/{}", whom.user_id));
        refused(who.put(&path, body.clone()).await, 403, "M_FORBIDDEN");
    }
    assert_eq!(sync(&alice, &room, &mut String::new()).await, None);
}

#[tokio::test]
async fn nobody_sees_those_type_and_read_whom_they_ignore() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let carol = server.register("carol").await;
    let room = Room::new(&alice, "shared").await;
    for user in [&bob, &carol] {
        room.does(user, "join").await;
    }
    let said = room.say(&alice, "hello").await;
    let path = format!("/_matrix/client/v3/user/{}/account_data", bob.user_id);
    let ignored = json!({ "ignored_users": { (&*alice.user_id): {} } });
    ok(bob
        .put(&format!("{path}/m.ignored_user_list"), ignored)
        .await);
    let mut since = String::new();
    sync(&bob, &room, &mut since).await;
    types(&room, &alice, true).await;
    assert_eq!(sync(&bob, &room, &mut String::new()).await, None);
    types(&room, &carol, true).await;
    assert_eq!(
        sync(&bob, &room, &mut since).await,
        Some(json!([carol.user_id]))
    );
    for user in [&alice, &carol] {
        let path = room.path(&format!("receipt/m.read/{said}"));
        ok(user.post(&path, json!({})).await);
    }
    for since in [String::new(), since] {
        let path = format!("/_matrix/client/v3/sync?timeout=0{since}");
        let answer = ok(bob.get(&path).await);
        let events = &answer["rooms"]["join"][&*room.0]["ephemeral"]["events"];
        let events = events.as_array().expect("there are some").clone();
        let receipts = events
            .into_iter()
            .find(|event| event["type"] == "m.receipt");
        let readers = receipts.expect("there are receipts")["content"][&*said]["m.read"].clone();
        let readers: Vec<_> = readers
            .as_object()
            .expect("there are some")
            .keys()
            .cloned()
            .collect();
        assert_eq!(readers, std::slice::from_ref(&carol.user_id));
    }
}
