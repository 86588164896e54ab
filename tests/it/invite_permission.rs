//! "Invite permission", and its rules by user and server (MSC4155).

use serde_json::{Value, json};

use crate::{
    room::Room,
    server::{Client, TestServer, ok, refused, text},
    several::{network, node},
};

const RULES: &str = "org.matrix.msc4155.invite_permission_config";
const BLOCKED_BY_RULE: &str = "ORG.MATRIX.MSC4155.INVITE_BLOCKED";

async fn set(client: &Client, data_type: &str, content: Value) {
    let user = &client.user_id;
    let path = format!("/_matrix/client/v3/user/{user}/account_data/{data_type}");
    ok(client.put(&path, content).await);
}

async fn invites(client: &Client) -> Vec<String> {
    let sync = ok(client.get("/_matrix/client/v3/sync?timeout=0").await);
    let invites = sync["rooms"]["invite"].as_object();
    invites.map_or_else(Vec::new, |rooms| rooms.keys().cloned().collect())
}

async fn invite(room: &Room, who: &Client, whom: &Client) -> crate::server::Answer {
    let body = json!({ "user_id": whom.user_id });
    room.post(who, "invite", body).await
}

fn private() -> Value {
    json!({ "preset": "private_chat" })
}

#[tokio::test]
async fn who_wants_no_invites_gets_none_and_sees_none_that_came_before() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let before = Room::create(&bob, private()).await;
    ok(invite(&before, &bob, &alice).await);
    assert_eq!(invites(&alice).await, std::slice::from_ref(&before.0));
    for (data_type, errcode) in [
        ("m.invite_permission_config", "M_INVITE_BLOCKED"),
        (
            "org.matrix.msc4380.invite_permission_config",
            BLOCKED_BY_RULE,
        ),
    ] {
        set(&alice, data_type, json!({ "default_action": "block" })).await;
        assert!(invites(&alice).await.is_empty());
        let room = Room::create(&bob, private()).await;
        refused(invite(&room, &bob, &alice).await, 403, errcode);
        let path = format!("state/m.room.member/{}", alice.user_id);
        let member = json!({ "membership": "invite" });
        refused(room.put(&bob, &path, member).await, 403, errcode);
        // The room is made all the same.
        let with = json!({ "preset": "private_chat", "invite": [alice.user_id] });
        let room = Room::create(&bob, with).await;
        refused(room.get(&bob, &path).await, 404, "M_NOT_FOUND");
        set(
            &alice,
            data_type,
            json!({ "default_action": "something else" }),
        )
        .await;
        assert_eq!(invites(&alice).await, std::slice::from_ref(&before.0));
        ok(invite(&room, &bob, &alice).await);
        room.does(&alice, "leave").await;
    }
}

#[tokio::test]
async fn rules_hold_for_users_of_other_servers_too() {
    let lan = network();
    let (a, b) = (node(&lan, "a.example"), node(&lan, "b.example"));
    let alice = a.register("alice").await;
    let (bob, eve) = (b.register("bob").await, b.register("eve").await);
    let (by_bob, by_eve) = (
        Room::create(&bob, private()).await,
        Room::create(&eve, private()).await,
    );
    let rules = json!({ "blocked_servers": ["b.*"], "ignored_users": ["@bob:*"] });
    set(&alice, RULES, rules).await;
    refused(invite(&by_eve, &eve, &alice).await, 403, BLOCKED_BY_RULE);
    // Bob does not notice anything.
    ok(invite(&by_bob, &bob, &alice).await);
    assert!(invites(&alice).await.is_empty());
    set(&alice, RULES, json!({})).await;
    assert_eq!(invites(&alice).await, std::slice::from_ref(&by_bob.0));
    set(
        &alice,
        "m.invite_permission_config",
        json!({ "default_action": "block" }),
    )
    .await;
    refused(invite(&by_eve, &eve, &alice).await, 403, "M_INVITE_BLOCKED");
    // A new room is there, though one of those who were to be in it is not.
    let with = json!({ "invite": [alice.user_id] });
    let made = ok(eve.post("/_matrix/client/v3/createRoom", with).await);
    let path = format!("state/m.room.member/{}", alice.user_id);
    let room = Room(text(&made, "room_id"));
    refused(room.get(&eve, &path).await, 404, "M_NOT_FOUND");
}
