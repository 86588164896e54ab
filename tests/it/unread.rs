//! "Receiving notifications": the unread counts of `/sync`.

use serde_json::{Value, json};

use crate::{
    room::{Room, encoded},
    server::{Client, TestServer, ok},
    stream::Stream,
};

/// The counts in a part of an answer: notifications and highlights.
fn counts(of: &Value) -> (u64, u64) {
    let count = |name: &str| of[name].as_u64().unwrap_or_default();
    (count("notification_count"), count("highlight_count"))
}

/// The unread counts of a room, asked for from the beginning.
async fn unread(room: &Room, who: &Client) -> (u64, u64) {
    let part = Stream::new(who).joined(room).await;
    counts(&part["unread_notifications"])
}

async fn read(room: &Room, who: &Client, event: &str, body: Value) {
    let path = format!("receipt/m.read/{}", encoded(event));
    ok(room.post(who, &path, body).await);
}

async fn mention(room: &Room, who: &Client, whom: &Client) -> String {
    let content = json!({
        "msgtype": "m.text", "body": "you",
        "m.mentions": { "user_ids": [whom.user_id] },
    });
    room.send(who, "m.room.message", content).await
}

#[tokio::test]
async fn a_name_in_a_text_is_a_highlight() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = Room::new(&alice, "shared").await;
    room.does(&bob, "join").await;
    room.say(&alice, "Bob, are you there?").await;
    assert_eq!(unread(&room, &bob).await, (1, 1));
    room.say(&alice, "he who bobs").await;
    assert_eq!(unread(&room, &bob).await, (2, 1));
    let profile = json!({ "membership": "join", "displayname": "Robert B." });
    let path = room.path(&format!("state/m.room.member/{}", bob.user_id));
    ok(bob.put(&path, profile).await);
    room.say(&alice, "ask robert b.!").await;
    assert_eq!(unread(&room, &bob).await, (3, 2));
    // Whoever says whom they mean means nobody else.
    let content = json!({ "msgtype": "m.text", "body": "bob", "m.mentions": {} });
    room.send(&alice, "m.room.message", content).await;
    assert_eq!(unread(&room, &bob).await, (4, 2));
    room.say(&alice, "@room").await;
    assert_eq!(unread(&room, &bob).await, (5, 3));
}

#[tokio::test]
async fn what_counts() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = Room::new(&alice, "shared").await;
    room.say(&alice, "before").await;
    room.does(&bob, "join").await;
    assert_eq!(
        unread(&room, &bob).await,
        (0, 0),
        "what was before counts not"
    );
    room.say(&alice, "one").await;
    assert_eq!(unread(&room, &bob).await, (1, 0));
    mention(&room, &alice, &bob).await;
    assert_eq!(unread(&room, &bob).await, (2, 1));
    let keyword = json!({ "actions": ["notify", { "set_tweak": "highlight" }], "pattern": "cake" });
    ok(bob
        .put("/_matrix/client/v3/pushrules/global/content/cake", keyword)
        .await);
    room.say(&alice, "there is Cake!").await;
    room.say(&alice, "pancakes").await;
    assert_eq!(unread(&room, &bob).await, (4, 2));
    let everybody = json!({ "body": "@room", "m.mentions": { "room": true } });
    room.send(&alice, "m.room.message", everybody).await;
    assert_eq!(unread(&room, &bob).await, (5, 3));
    let said = room.say(&bob, "mine").await;
    // Speaking is reading.
    assert_eq!(unread(&room, &bob).await, (0, 0));
    assert_eq!(
        unread(&room, &alice).await,
        (1, 0),
        "hers do not count for her"
    );
    // Those without power do not call everybody, reactions and edits are quiet.
    let everybody = json!({ "body": "@room", "m.mentions": { "room": true } });
    room.send(&bob, "m.room.message", everybody).await;
    assert_eq!(unread(&room, &alice).await, (2, 0));
    let reaction =
        json!({ "m.relates_to": { "rel_type": "m.annotation", "event_id": said, "key": "a" } });
    room.send(&bob, "m.reaction", reaction).await;
    let edit = json!({
        "body": "* edit", "m.new_content": { "body": "edit" },
        "m.relates_to": { "rel_type": "m.replace", "event_id": said },
    });
    room.send(&bob, "m.room.message", edit).await;
    room.set(&alice, "m.room.topic", json!({ "topic": "quiet" }))
        .await;
    assert_eq!(unread(&room, &alice).await, (2, 0));
}

#[tokio::test]
async fn reading_resets() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = Room::new(&alice, "shared").await;
    room.does(&bob, "join").await;
    let mut stream = Stream::begun(&bob).await;
    let first = room.say(&alice, "one").await;
    let loud = mention(&room, &alice, &bob).await;
    let last = room.say(&alice, "three").await;
    let part = stream.joined(&room).await;
    assert_eq!(counts(&part["unread_notifications"]), (3, 1));
    for (event, expect) in [
        (&first, (2, 1)),
        (&loud, (1, 0)),
        (&last, (0, 0)),
        (&first, (0, 0)),
    ] {
        read(&room, &bob, event, json!({})).await;
        assert_eq!(unread(&room, &bob).await, expect);
    }
    let part = stream.joined(&room).await;
    assert_eq!(
        counts(&part["unread_notifications"]),
        (0, 0),
        "a receipt is told"
    );
    room.say(&alice, "four").await;
    let path = format!(
        "receipt/m.read.private/{}",
        encoded(&room.say(&alice, "five").await)
    );
    ok(room.post(&bob, &path, json!({})).await);
    assert_eq!(unread(&room, &bob).await, (0, 0), "so does a private one");
    // It outlives a restart, and who leaves and comes back begins anew.
    room.say(&alice, "six").await;
    let server = server.restart();
    assert_eq!(unread(&room, &bob).await, (1, 0));
    room.does(&bob, "leave").await;
    room.say(&alice, "seven").await;
    room.does(&bob, "join").await;
    assert_eq!(unread(&room, &bob).await, (0, 0));
    drop(server);
}

#[tokio::test]
async fn what_is_redacted_counts_no_more() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = Room::new(&alice, "shared").await;
    room.does(&bob, "join").await;
    let mut stream = Stream::begun(&bob).await;
    let root = room.say(&alice, "root").await;
    let loud = mention(&room, &alice, &bob).await;
    let reply = room.relate(&alice, "m.thread", &root).await;
    room.say(&alice, "stays").await;
    let part = stream.joined(&room).await;
    assert_eq!(counts(&part["unread_notifications"]), (4, 1));
    for (target, expect) in [(&loud, (3, 0)), (&reply, (2, 0)), (&root, (1, 0))] {
        ok(room
            .put(
                &alice,
                &format!("redact/{}/{}", encoded(target), target.len()),
                json!({}),
            )
            .await);
        let part = stream.joined(&room).await;
        assert_eq!(counts(&part["unread_notifications"]), expect);
    }
    let server = server.restart();
    assert_eq!(unread(&room, &bob).await, (1, 0));
    drop(server);
}

#[tokio::test]
async fn threads_are_counted_by_themselves() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = Room::new(&alice, "shared").await;
    room.does(&bob, "join").await;
    let filter = json!({ "room": { "timeline": { "unread_thread_notifications": true } } });
    let root = room.say(&alice, "root").await;
    let reply = room.relate(&alice, "m.thread", &root).await;
    room.relate(&alice, "m.thread", &root).await;
    let of = async |who: &Client| {
        let part = Stream::filtered(who, &filter).joined(&room).await;
        let threads = &part["unread_thread_notifications"];
        (
            counts(&part["unread_notifications"]),
            counts(&threads[&root]),
        )
    };
    assert_eq!(of(&bob).await, ((1, 0), (2, 0)));
    assert_eq!(
        unread(&room, &bob).await,
        (3, 0),
        "all, when not asked by thread"
    );
    read(&room, &bob, &root, json!({ "thread_id": "main" })).await;
    assert_eq!(of(&bob).await, ((0, 0), (2, 0)));
    read(&room, &bob, &reply, json!({ "thread_id": root })).await;
    assert_eq!(of(&bob).await, ((0, 0), (1, 0)));
    let last = room.say(&alice, "last").await;
    assert_eq!(of(&bob).await, ((1, 0), (1, 0)));
    read(&room, &bob, &last, json!({})).await;
    assert_eq!(
        of(&bob).await,
        ((0, 0), (0, 0)),
        "a receipt without a thread covers all"
    );
}

#[tokio::test]
async fn rooms_and_invites_of_different_kinds() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = Room::new(&alice, "shared").await;
    room.does(&bob, "join").await;
    let rule = format!(
        "/_matrix/client/v3/pushrules/global/room/{}",
        encoded(&room.0)
    );
    ok(bob.put(&rule, json!({ "actions": [] })).await);
    room.say(&alice, "muted").await;
    mention(&room, &alice, &bob).await;
    assert_eq!(
        unread(&room, &bob).await,
        (1, 1),
        "only what is loud comes through"
    );
    ok(bob.delete(&rule).await);
    room.say(&alice, "loud").await;
    assert_eq!(
        unread(&room, &bob).await,
        (2, 1),
        "the past is not counted anew"
    );
}

#[tokio::test]
async fn who_is_ignored_does_not_count() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let carol = server.register("carol").await;
    let room = Room::new(&alice, "shared").await;
    for who in [&bob, &carol] {
        room.does(who, "join").await;
    }
    let ignored = json!({ "ignored_users": { &*alice.user_id: {} } });
    let path = format!(
        "/_matrix/client/v3/user/{}/account_data/m.ignored_user_list",
        bob.user_id
    );
    ok(bob.put(&path, ignored).await);
    mention(&room, &alice, &bob).await;
    assert_eq!(unread(&room, &bob).await, (0, 0));
    room.say(&carol, "heard").await;
    assert_eq!(unread(&room, &bob).await, (1, 0));
}
