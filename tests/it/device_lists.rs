//! "Tracking the device list for a user", in one office and between offices.

use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    identity::identity,
    neighbour::Neighbour,
    server::{Client, TestServer, ok, refused},
    several::{named, network, node, sound},
};

const UPLOAD: &str = "/_matrix/client/v3/keys/upload";
const QUERY: &str = "/_matrix/client/v3/keys/query";

pub(crate) async fn upload(client: &Client, seed: u8) -> Value {
    let keys = identity(client, seed);
    ok(client.post(UPLOAD, json!({ "device_keys": keys })).await);
    keys
}

async fn query(client: &Client, user: &Client) -> Value {
    let body = json!({ "device_keys": { &user.user_id: [] } });
    let answer = ok(client.post(QUERY, body).await);
    assert_eq!(answer.get("failures"), None, "{answer}");
    answer["device_keys"][&user.user_id].clone()
}

/// A client and how far it has synced.
pub(crate) struct Follower(Client, String);

impl Follower {
    pub(crate) async fn new(client: &Client) -> Self {
        let mut follower = Self(client.clone(), String::new());
        follower.next().await;
        follower
    }

    /// Who has changed and who has left, which `/keys/changes` says as well.
    pub(crate) async fn next(&mut self) -> (Vec<String>, Vec<String>) {
        let path = format!("/_matrix/client/v3/keys/changes?from={0}&to={0}", self.1);
        let is_first = self.1.is_empty();
        let told = self.look().await;
        if !is_first {
            let changes = ok(self.0.get(&path).await);
            assert_eq!(changes, json!({ "changed": told.0, "left": told.1 }));
        }
        told
    }

    async fn look(&mut self) -> (Vec<String>, Vec<String>) {
        let since = match &*self.1 {
            "" => String::new(),
            since => format!("&since={since}"),
        };
        let path = format!("/_matrix/client/v3/sync?timeout=0{since}");
        let answer = ok(self.0.get(&path).await);
        let list = |name: &str| {
            let users = answer["device_lists"][name].as_array();
            let users = users.into_iter().flatten();
            let users = users.map(|user| user.as_str().expect("a name").to_owned());
            users.collect::<Vec<_>>()
        };
        let told = (list("changed"), list("left"));
        answer["next_batch"]
            .as_str()
            .expect("a token")
            .clone_into(&mut self.1);
        told
    }

    /// The same once it is told anything.
    pub(crate) async fn until(&mut self) -> (Vec<String>, Vec<String>) {
        for _ in 0..1_000 {
            let told = self.look().await;
            if told != (vec![], vec![]) {
                return told;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("nothing is told");
    }
}

pub(crate) fn one(user: &Client) -> (Vec<String>, Vec<String>) {
    (vec![user.user_id.clone()], vec![])
}

pub(crate) async fn room_of(client: &Client) -> String {
    let body = json!({ "preset": "public_chat" });
    let room = ok(client.post("/_matrix/client/v3/createRoom", body).await);
    room["room_id"].as_str().expect("a room").to_owned()
}

pub(crate) async fn enter(client: &Client, room: &str, via: &str) {
    let path = format!("/_matrix/client/v3/join/{room}?via={via}");
    ok(client.post(&path, json!({})).await);
}

pub(crate) async fn leave(client: &Client, room: &str) {
    let path = format!("/_matrix/client/v3/rooms/{room}/leave");
    ok(client.post(&path, json!({})).await);
}

#[tokio::test]
async fn who_shares_a_room_is_told_of_every_change_and_nobody_else() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let bob = server.register("bob").await;
    let eve = server.register("eve").await;
    let room = room_of(&alice).await;
    let mut a = Follower::new(&alice).await;
    let mut b = Follower::new(&bob).await;
    let mut e = Follower::new(&eve).await;
    enter(&bob, &room, "localhost").await;
    assert_eq!(a.next().await, one(&bob));
    let both = vec![alice.user_id.clone(), bob.user_id.clone()];
    assert_eq!(b.next().await, (both, vec![]));
    // New keys, another name, and the end of a device.
    let second = server.log_in("bob").await;
    upload(&second, 3).await;
    assert_eq!((a.next().await, b.next().await), (one(&bob), one(&bob)));
    upload(&second, 3).await;
    let nothing = (vec![], vec![]);
    assert_eq!(a.next().await, nothing, "the same keys once more");
    let path = format!("/_matrix/client/v3/devices/{}", second.device_id);
    ok(bob.put(&path, json!({ "display_name": "new" })).await);
    assert_eq!((a.next().await, b.next().await), (one(&bob), one(&bob)));
    ok(second.post("/_matrix/client/v3/logout", json!({})).await);
    assert_eq!((a.next().await, b.next().await), (one(&bob), one(&bob)));
    assert_eq!(query(&alice, &bob).await, json!({}));
    // Whoever goes is followed no more.
    leave(&bob, &room).await;
    let left = |user: &Client| (vec![], vec![user.user_id.clone()]);
    assert_eq!(a.next().await, left(&bob));
    assert_eq!(b.next().await, left(&alice));
    upload(&bob, 2).await;
    assert_eq!(a.next().await, nothing);
    assert_eq!(b.next().await, one(&bob));
    assert_eq!(e.next().await, nothing, "it is none of their business");
    sound(&[&server]);
}

#[tokio::test]
async fn whoever_was_away_long_is_told_of_all_who_came_and_went() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let bob = server.register("bob").await;
    let room = room_of(&alice).await;
    let other = room_of(&alice).await;
    let carol = server.register("carol").await;
    for room in [&room, &other] {
        enter(&carol, room, "localhost").await;
    }
    let mut a = Follower::new(&alice).await;
    enter(&bob, &room, "localhost").await;
    leave(&carol, &room).await;
    // So much that the answer does not hold it all; and the node does not know from memory what has changed.
    for n in 0..30 {
        let path = format!("/_matrix/client/v3/rooms/{room}/send/m.room.message/{n}");
        ok(alice
            .put(&path, json!({ "msgtype": "m.text", "body": "x" }))
            .await);
    }
    let server = server.restart();
    assert_eq!(
        a.next().await,
        one(&bob),
        "carol is still in the other room"
    );
    leave(&carol, &other).await;
    assert_eq!(a.next().await, (vec![], vec![carol.user_id.clone()]));
    let bad = alice
        .get("/_matrix/client/v3/keys/changes?from=x&to=s1")
        .await;
    refused(bad, 400, "M_INVALID_PARAM");
    // Whoever declines an invite is told of nobody.
    let dan = server.register("dan").await;
    let mut d = Follower::new(&dan).await;
    let path = format!("/_matrix/client/v3/rooms/{room}/invite");
    ok(alice.post(&path, json!({ "user_id": dan.user_id })).await);
    leave(&dan, &room).await;
    assert_eq!(d.next().await, (vec![], vec![]));
    sound(&[&server]);
}

#[tokio::test]
async fn other_offices_are_told_and_keep_the_keys_until_then() {
    let lan = network();
    let (a, b) = (node(&lan, "a.example"), node(&lan, "b.example"));
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let first = upload(&alice, 1).await;
    let room = room_of(&alice).await;
    let mut follower = Follower::new(&bob).await;
    enter(&bob, &room, "a.example").await;
    let both = vec![alice.user_id.clone(), bob.user_id.clone()];
    assert_eq!(follower.until().await, (both, vec![]));
    let keys = json!({ &alice.device_id: first });
    assert_eq!(query(&bob, &alice).await, keys);
    // What is known needs no link, and what has changed meanwhile waits for it.
    let names = (named("a.example"), named("b.example"));
    lan.set_link(&names.0, &names.1, false);
    assert_eq!(query(&bob, &alice).await, keys);
    let second = a.log_in("alice").await;
    let new = upload(&second, 2).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(query(&bob, &alice).await, keys);
    lan.set_link(&names.0, &names.1, true);
    a.clock.advance(Duration::from_hours(24));
    assert_eq!(follower.until().await, one(&alice));
    let keys = json!({ &alice.device_id: first, &second.device_id: new });
    assert_eq!(query(&bob, &alice).await, keys);
    ok(second.post("/_matrix/client/v3/logout", json!({})).await);
    assert_eq!(follower.until().await, one(&alice));
    assert_eq!(
        query(&bob, &alice).await,
        json!({ &alice.device_id: first })
    );
    // Whoever shares no room keeps nothing: nobody would tell of a change.
    leave(&bob, &room).await;
    assert_eq!(
        follower.until().await,
        (vec![], vec![alice.user_id.clone()])
    );
    lan.set_link(&names.0, &names.1, false);
    let body = json!({ "device_keys": { &alice.user_id: [] } });
    let answer = ok(bob.post(QUERY, body).await);
    assert!(answer["failures"]["a.example"].is_object(), "{answer}");
    sound(&[&a, &b]);
}

#[tokio::test]
async fn servers_tell_of_their_own_users_only_and_are_told_of_ours() {
    let server = TestServer::new();
    let b = Neighbour::new(&server.lan, "b.example", 2);
    let alice = server.register("alice").await;
    let keys = upload(&alice, 1).await;
    let room = room_of(&alice).await;
    let mut a = Follower::new(&alice).await;
    let update = |user: &str| {
        let content = json!({ "user_id": user, "device_id": "X", "stream_id": 1, "prev_id": [] });
        json!({ "edu_type": "m.device_list_update", "content": content })
    };
    let body = json!({ "origin": b.name, "origin_server_ts": 1, "pdus": [], "edus": [
        update(&alice.user_id), update("@bob:b.example"), update("@eve:c.example"),
        { "edu_type": "m.device_list_update", "content": { "user_id": 5 } },
    ] });
    let (path, body) = ("/_matrix/federation/v1/send/1", body.to_string());
    let header = b.sign(&Method::PUT, path, &body);
    let (status, answer) = b.send(&server, Method::PUT, path, &header, &body).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    assert_eq!(a.next().await, (vec![], vec![]), "in {room} is nobody else");
    let devices = "/_matrix/federation/v1/user/devices";
    let told = ok(b
        .get(&server, &format!("{devices}/{}", alice.user_id))
        .await);
    assert!(
        told["stream_id"].as_u64().is_some_and(|id| id > 0),
        "{told}"
    );
    let device = json!({ "device_id": alice.device_id, "keys": keys });
    assert_eq!(told["devices"], json!([device]));
    for user in ["@nobody:localhost", "@bob:b.example"] {
        refused(
            b.get(&server, &format!("{devices}/{user}")).await,
            404,
            "M_NOT_FOUND",
        );
    }
    sound(&[&server]);
}
