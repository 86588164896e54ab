//! "Joining Rooms" in the server-server API, from both sides.

use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};

use crate::{
    room::Room,
    server::{Answer, Client, ok, refused},
    several::{named, network, node, node_with, sound},
};

/// Joins a room by way of a server.
pub(crate) async fn join(who: &Client, room: &Room, via: &[&str]) -> Answer {
    let via: Vec<_> = via.iter().map(|via| format!("via={via}")).collect();
    let path = format!("/_matrix/client/v3/join/{}?{}", room.0, via.join("&"));
    who.post(&path, json!({})).await
}

/// A room of this version that anybody may join, with a topic.
async fn public(creator: &Client, version: &str) -> Room {
    let body = json!({
        "preset": "public_chat", "room_version": version, "topic": "tea", "name": "Kitchen",
    });
    Room::create(creator, body).await
}

fn state_of(answer: &Value, event_type: &str) -> Vec<Value> {
    let events = answer.as_array().expect("a list").iter();
    let events = events.filter(|event| event["type"] == event_type);
    events.map(|event| event["content"].clone()).collect()
}

#[tokio::test]
async fn rooms_of_other_servers_are_entered_whatever_their_version() {
    let lan = network();
    let (a, b) = (node(&lan, "a.example"), node(&lan, "b.example"));
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let carol = b.register("carol").await;
    for version in ["1", "2", "3", "5", "6", "8", "10", "11", "12"] {
        let room = public(&alice, version).await;
        room.say(&alice, "before").await;
        let joined = ok(join(&bob, &room, &["a.example"]).await);
        assert_eq!(joined["room_id"], room.0);
        // Both servers have the same state.
        let here = ok(room.get(&bob, "state").await);
        let there = ok(room.get(&alice, "state").await);
        assert_eq!(state_of(&here, "m.room.topic")[0]["topic"], "tea");
        assert_eq!(
            here.as_array().unwrap().len(),
            there.as_array().unwrap().len()
        );
        assert_eq!(room.membership(&alice, &bob).await, "join");
        assert_eq!(room.membership(&bob, &alice).await, "join");
        let sync = ok(bob.get("/_matrix/client/v3/sync").await);
        let shown = &sync["rooms"]["join"][&room.0];
        assert_eq!(shown["summary"]["m.joined_member_count"], 2, "{shown}");
        // The room is ours now, so nobody need be asked.
        lan.set_link(&named("a.example"), &named("b.example"), false);
        ok(join(&carol, &room, &[]).await);
        room.say(&bob, "hello").await;
        lan.set_link(&named("a.example"), &named("b.example"), true);
    }
    sound(&[&a, &b]);
}

#[tokio::test]
async fn an_alias_leads_to_its_server() {
    let lan = network();
    let (a, b) = (node(&lan, "a.example"), node(&lan, "b.example"));
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let body = json!({ "preset": "public_chat", "room_alias_name": "kitchen" });
    let room = Room::create(&alice, body).await;
    let path = |alias: &str| format!("/_matrix/client/v3/join/%23{alias}:a.example");
    let joined = ok(bob.post(&path("kitchen"), json!({})).await);
    assert_eq!(joined["room_id"], room.0);
    let missing = bob.post(&path("cellar"), json!({})).await;
    refused(missing, 404, "M_NOT_FOUND");
    lan.detach(&named("a.example"));
    let (status, body) = bob.post(&path("hall"), json!({})).await;
    assert_eq!(status, StatusCode::BAD_GATEWAY, "{body}");
}

#[tokio::test]
async fn one_server_after_the_other_is_asked() {
    let lan = network();
    let (a, b) = (node(&lan, "a.example"), node(&lan, "b.example"));
    let c = node(&lan, "c.example");
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let carol = c.register("carol").await;
    let room = public(&alice, "11").await;
    ok(join(&bob, &room, &["a.example"]).await);
    // Events of a server that is away are believed only if its keys are known.
    ok(c.anonymous().get("/_matrix/key/v2/query/a.example").await);
    lan.detach(&named("a.example"));
    // Nobody is there; one that does not know the room; one that does.
    let via = ["nowhere.example", "a.example", "c.example", "b.example"];
    ok(join(&carol, &room, &via).await);
    assert_eq!(room.membership(&bob, &carol).await, "join");
    let dave = c.register("dave").await;
    let other = Room("!nowhere:a.example".to_owned());
    let (status, _) = join(&dave, &other, &["a.example"]).await;
    assert_eq!(status, StatusCode::BAD_GATEWAY);
    refused(
        join(&dave, &other, &["b.example"]).await,
        404,
        "M_NOT_FOUND",
    );
    let unnamed = Room("!nowhere:c.example".to_owned());
    refused(join(&dave, &unnamed, &[]).await, 404, "M_NOT_FOUND");
    sound(&[&b, &c]);
}

#[tokio::test]
async fn whoever_is_not_wanted_is_refused_in_the_rooms_words() {
    let lan = network();
    let (a, b) = (node(&lan, "a.example"), node(&lan, "b.example"));
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let closed = Room::create(&alice, json!({ "preset": "private_chat" })).await;
    refused(
        join(&bob, &closed, &["a.example"]).await,
        403,
        "M_FORBIDDEN",
    );
    let room = public(&alice, "11").await;
    room.does_to(&alice, "ban", &bob).await;
    refused(join(&bob, &room, &["a.example"]).await, 403, "M_FORBIDDEN");
    room.does_to(&alice, "unban", &bob).await;
    ok(join(&bob, &room, &["a.example"]).await);
    let kept_out = public(&alice, "11").await;
    let acl = json!({ "allow": ["*"], "deny": ["b.example"] });
    kept_out.set(&alice, "m.room.server_acl", acl).await;
    refused(
        join(&bob, &kept_out, &["a.example"]).await,
        403,
        "M_FORBIDDEN",
    );
    sound(&[&a, &b]);
}

#[tokio::test]
async fn a_node_that_talks_to_nobody_enters_nothing() {
    use kontor::config::FederationMode;
    let lan = network();
    let a = node(&lan, "a.example");
    let alice = a.register("alice").await;
    let room = public(&alice, "11").await;
    for mode in [FederationMode::Off, FederationMode::Closed] {
        let b = node_with(&lan, "b.example", |config| config.federation.mode = mode);
        let bob = b.register("bob").await;
        refused(join(&bob, &room, &["a.example"]).await, 403, "M_FORBIDDEN");
        let invite = json!({ "user_id": "@alice:a.example" });
        let own = public(&bob, "11").await;
        refused(own.post(&bob, "invite", invite).await, 403, "M_FORBIDDEN");
    }
}

#[tokio::test]
async fn many_who_join_at_once_enter_the_room_once() {
    let lan = network();
    let (a, b) = (node(&lan, "a.example"), node(&lan, "b.example"));
    let alice = a.register("alice").await;
    let room = public(&alice, "11").await;
    let mut joins = Vec::new();
    for number in 0..5 {
        let user = b.register(&format!("user{number}")).await;
        let room = Room(room.0.clone());
        joins.push(async move {
            ok(join(&user, &room, &["a.example"]).await);
            ok(room.get(&user, "state").await);
        });
    }
    futures_util::future::join_all(joins).await;
    // One has come by a handshake; of the others their own node tells.
    for _ in 0..500 {
        let members = ok(room.get(&alice, "joined_members").await);
        if members["joined"].as_object().unwrap().len() == 6 {
            sound(&[&a, &b]);
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("not all who have joined are known on the other node");
}

#[tokio::test]
async fn a_room_that_all_had_left_is_entered_again() {
    let lan = network();
    let (a, b) = (node(&lan, "a.example"), node(&lan, "b.example"));
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let room = public(&alice, "11").await;
    ok(join(&bob, &room, &["a.example"]).await);
    // The other server hears of it when events are sent; here it still thinks that the user is there.
    room.does(&bob, "leave").await;
    room.set(&alice, "m.room.topic", json!({ "topic": "coffee" }))
        .await;
    ok(join(&bob, &room, &["a.example"]).await);
    let topic = ok(room.get(&bob, "state/m.room.topic").await);
    assert_eq!(topic["topic"], "coffee");
    sound(&[&a, &b]);
}
