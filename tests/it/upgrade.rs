//! "Room Upgrades" in the client-server API.

use serde_json::{Value, json};

use crate::{
    joining::join,
    room::{Room, encoded},
    server::{Answer, Client, TestServer, ok, refused, text},
    several::{network, node, sound},
};

async fn try_upgrade(who: &Client, room: &Room, body: Value) -> Answer {
    room.post(who, "upgrade", body).await
}

async fn upgrade(who: &Client, room: &Room, version: &str) -> Room {
    let body = json!({ "new_version": version });
    Room(text(
        &ok(try_upgrade(who, room, body).await),
        "replacement_room",
    ))
}

async fn state(who: &Client, room: &Room, what: &str) -> Value {
    ok(room.get(who, &format!("state/{what}")).await)
}

#[tokio::test]
async fn a_room_goes_on_in_another_version() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let eve = server.register("eve").await;
    for (from, to) in [
        ("1", "6"),
        ("6", "11"),
        ("11", "12"),
        ("12", "12"),
        ("12", "10"),
    ] {
        let alias = format!("#kitchen-{from}-{to}:localhost");
        let old = Room::create(
            &alice,
            json!({
                "room_version": from, "preset": "public_chat", "visibility": "public",
                "name": "Kitchen", "topic": "tea",
                "room_alias_name": format!("kitchen-{from}-{to}"),
                "initial_state": [
                    { "type": "m.room.avatar", "content": { "url": "mxc://localhost/a" } },
                    { "type": "m.room.history_visibility",
                      "content": { "history_visibility": "joined" } },
                    { "type": "org.example.board", "content": { "of": "somebody" } },
                ],
            }),
        )
        .await;
        old.does(&bob, "join").await;
        old.does_to(&alice, "ban", &eve).await;
        let new = upgrade(&alice, &old, to).await;

        let create = state(&alice, &new, "m.room.create").await;
        assert_eq!(create["room_version"], to);
        assert_eq!(create["predecessor"]["room_id"], old.0);
        assert_eq!(create["predecessor"]["event_id"].is_string(), to != "12");
        assert_eq!(state(&alice, &new, "m.room.name").await["name"], "Kitchen");
        assert_eq!(state(&alice, &new, "m.room.topic").await["topic"], "tea");
        let avatar = state(&alice, &new, "m.room.avatar").await;
        assert_eq!(avatar["url"], "mxc://localhost/a");
        let rule = state(&alice, &new, "m.room.join_rules").await;
        assert_eq!(rule["join_rule"], "public");
        let visibility = state(&alice, &new, "m.room.history_visibility").await;
        assert_eq!(visibility["history_visibility"], "joined");
        let named = state(&alice, &new, "m.room.canonical_alias").await;
        assert_eq!(named["alias"], alias);
        assert_eq!(new.membership(&alice, &eve).await, "ban");
        let foreign = new.get(&alice, "state/org.example.board").await;
        refused(foreign, 404, "M_NOT_FOUND");
        let members = ok(new.get(&alice, "joined_members").await);
        assert_eq!(members["joined"].as_object().unwrap().len(), 1);

        // The old room leads there, and nobody talks in it any more.
        let end = state(&bob, &old, "m.room.tombstone").await;
        assert_eq!(end["replacement_room"], new.0);
        let named = state(&bob, &old, "m.room.canonical_alias").await;
        assert_eq!(named, json!({}));
        let message = json!({ "msgtype": "m.text", "body": "?" });
        let said = old.put(&bob, "send/m.room.message/1", message).await;
        refused(said, 403, "M_FORBIDDEN");
        ok(old.get(&alice, "state").await);
        // Its name and its place in the directory are the new one's.
        let path = format!("/_matrix/client/v3/directory/room/{}", encoded(&alias));
        assert_eq!(ok(bob.get(&path).await)["room_id"], new.0);
        let listed = ok(bob.get("/_matrix/client/v3/publicRooms").await);
        let listed: Vec<_> = listed["chunk"].as_array().unwrap().iter().collect();
        assert!(listed.iter().any(|room| room["room_id"] == new.0));
        assert!(listed.iter().all(|room| room["room_id"] != old.0));
        new.does(&bob, "join").await;
        new.say(&bob, "here").await;
        new.say(&alice, "here").await;
    }
    sound(&[&server]);
}

#[tokio::test]
async fn the_powers_of_users_go_with_them() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let levels = |users: Value| json!({ "users": users, "state_default": 60, "users_default": 10 });
    // The one who upgrades needs more power for a moment than they have in the end.
    let old = Room::create(
        &alice,
        json!({ "room_version": "10", "preset": "public_chat" }),
    )
    .await;
    old.does(&bob, "join").await;
    let users = json!({ &alice.user_id: 100, &bob.user_id: 70, "@c:far.example": 20 });
    let mut content = levels(users);
    content["events"] = json!({
        "m.room.tombstone": 70, "m.room.name": 90, "m.room.power_levels": 100,
    });
    old.set(&alice, "m.room.power_levels", content.clone())
        .await;
    let new = upgrade(&bob, &old, "11").await;
    assert_eq!(state(&bob, &new, "m.room.power_levels").await, content);
    let locked = state(&alice, &old, "m.room.power_levels").await;
    // bob may not change the levels of the old room.
    assert_eq!(locked, content);

    // Creators of version 12 have no number; when they lose their rank they get the highest.
    let old = Room::create(
        &alice,
        json!({ "room_version": "11", "preset": "public_chat" }),
    )
    .await;
    old.does(&bob, "join").await;
    let users = json!({ &alice.user_id: 100, &bob.user_id: 100, "@c:far.example": 50 });
    old.set(&alice, "m.room.power_levels", levels(users)).await;
    let body = json!({ "new_version": "12", "additional_creators": [bob.user_id] });
    let answer = ok(try_upgrade(&alice, &old, body).await);
    let twelve = Room(text(&answer, "replacement_room"));
    let users = &state(&alice, &twelve, "m.room.power_levels").await["users"];
    assert_eq!(*users, json!({ "@c:far.example": 50 }));
    let create = state(&alice, &twelve, "m.room.create").await;
    assert_eq!(create["additional_creators"], json!([bob.user_id]));
    let locked = state(&alice, &old, "m.room.power_levels").await;
    assert_eq!(locked["events_default"], 50);
    assert_eq!(locked["invite"], 50);
    let eleven = upgrade(&alice, &twelve, "11").await;
    let users = &state(&alice, &eleven, "m.room.power_levels").await["users"];
    let expect = json!({ &alice.user_id: 100, &bob.user_id: 100, "@c:far.example": 50 });
    assert_eq!(*users, expect);
    sound(&[&server]);
}

#[tokio::test]
async fn only_those_who_may_replace_a_room() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = Room::create(
        &alice,
        json!({ "room_version": "10", "preset": "public_chat" }),
    )
    .await;
    let body = json!({ "new_version": "11" });
    refused(
        try_upgrade(&bob, &room, body.clone()).await,
        403,
        "M_FORBIDDEN",
    );
    room.does(&bob, "join").await;
    refused(
        try_upgrade(&bob, &room, body.clone()).await,
        403,
        "M_FORBIDDEN",
    );
    let nowhere = Room("!nowhere:localhost".to_owned());
    refused(try_upgrade(&bob, &nowhere, body).await, 403, "M_FORBIDDEN");
    for (body, errcode) in [
        (json!({ "new_version": "99" }), "M_UNSUPPORTED_ROOM_VERSION"),
        (json!({ "new_version": "" }), "M_BAD_JSON"),
        (json!({}), "M_BAD_JSON"),
        (
            json!({ "new_version": "12", "additional_creators": ["x"] }),
            "M_BAD_JSON",
        ),
    ] {
        refused(try_upgrade(&alice, &room, body).await, 400, errcode);
    }
    // Nothing of that has come to be.
    let rooms = ok(alice.get("/_matrix/client/v3/joined_rooms").await);
    assert_eq!(rooms["joined_rooms"], json!([room.0]));
    let end = room.get(&alice, "state/m.room.tombstone").await;
    refused(end, 404, "M_NOT_FOUND");
}

#[tokio::test]
async fn the_tree_of_a_space_stays_whole() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let space = |name: &str| json!({ "name": name, "creation_content": { "type": "m.space" } });
    let parent = Room::create(&alice, space("parent")).await;
    let old = Room::create(&alice, space("old")).await;
    let leaf = Room::create(&alice, json!({})).await;
    let link = async |of: &Room, kind: &str, to: &Room| {
        let path = format!("state/{kind}/{}", encoded(&to.0));
        let content = json!({ "via": ["localhost"], "order": "x" });
        ok(of.put(&alice, &path, content).await);
    };
    link(&parent, "m.space.child", &old).await;
    link(&old, "m.space.parent", &parent).await;
    link(&old, "m.space.child", &leaf).await;
    let new = upgrade(&alice, &old, "11").await;
    assert_eq!(
        state(&alice, &new, "m.room.create").await["type"],
        "m.space"
    );
    let child = format!("m.space.child/{}", encoded(&leaf.0));
    assert_eq!(state(&alice, &new, &child).await["order"], "x");
    let child = format!("m.space.child/{}", encoded(&new.0));
    assert_eq!(state(&alice, &parent, &child).await["order"], "x");
    let child = format!("m.space.child/{}", encoded(&old.0));
    assert_eq!(state(&alice, &parent, &child).await, json!({}));
}

async fn mute(who: &Client, room: &Room) {
    let path = format!(
        "/_matrix/client/v3/pushrules/global/room/{}",
        encoded(&room.0)
    );
    ok(who.put(&path, json!({ "actions": [] })).await);
    let path = format!("/_matrix/client/v3/user/{}/rooms/{}", who.user_id, room.0);
    ok(who
        .put(&format!("{path}/tags/u.work"), json!({ "order": 0.5 }))
        .await);
}

async fn is_muted(who: &Client, room: &Room) -> bool {
    let path = format!(
        "/_matrix/client/v3/pushrules/global/room/{}",
        encoded(&room.0)
    );
    let rule = who.get(&path).await.0.is_success();
    let path = format!("/_matrix/client/v3/user/{}/rooms/{}", who.user_id, room.0);
    let tags = ok(who.get(&format!("{path}/tags")).await);
    assert_eq!(tags["tags"]["u.work"].is_object(), rule, "{tags}");
    rule
}

#[tokio::test]
async fn what_users_have_set_goes_with_them() {
    let lan = network();
    let (a, b) = (node(&lan, "a.example"), node(&lan, "b.example"));
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let (carol, dave) = (a.register("carol").await, b.register("dave").await);
    for by_hand in [false, true] {
        let body = json!({ "room_version": "10", "preset": "public_chat" });
        let old = Room::create(&alice, body).await;
        old.does(&carol, "join").await;
        ok(join(&bob, &old, &["a.example"]).await);
        ok(join(&dave, &old, &["a.example"]).await);
        for who in [&alice, &bob, &carol] {
            mute(who, &old).await;
        }
        let direct = format!(
            "/_matrix/client/v3/user/{}/account_data/m.direct",
            alice.user_id
        );
        ok(alice.put(&direct, json!({ &carol.user_id: [old.0] })).await);
        let new = if by_hand {
            let new = Room::create(
                &alice,
                json!({ "preset": "public_chat", "creation_content": {
                    "predecessor": { "room_id": old.0 },
                } }),
            )
            .await;
            old.set(
                &alice,
                "m.room.tombstone",
                json!({ "replacement_room": new.0 }),
            )
            .await;
            new
        } else {
            upgrade(&alice, &old, "11").await
        };
        // Whoever is here has it at once, those elsewhere when they come.
        assert!(is_muted(&alice, &new).await && is_muted(&carol, &new).await);
        let told = ok(alice.get(&direct).await);
        assert_eq!(told[&*carol.user_id], json!([old.0, new.0]));
        ok(join(&bob, &new, &["a.example"]).await);
        ok(join(&dave, &new, &["a.example"]).await);
        assert!(is_muted(&bob, &new).await && !is_muted(&dave, &new).await);
    }
    // A room that only says that it is replaced moves nothing.
    let (old, new) = (
        Room::new(&alice, "shared").await,
        Room::new(&alice, "shared").await,
    );
    mute(&alice, &old).await;
    old.set(
        &alice,
        "m.room.tombstone",
        json!({ "replacement_room": new.0 }),
    )
    .await;
    assert!(!is_muted(&alice, &new).await);
    sound(&[&a, &b]);
}
