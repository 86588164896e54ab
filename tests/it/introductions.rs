//! "Device Management" between servers: who is told of devices when users and servers meet, and what is made of it.

use std::time::Duration;

use http::StatusCode;
use kontor::store::schema::{INTRODUCTIONS, LASTING_EDUS};
use serde_json::{Value, json};

use crate::{
    device_lists::{Follower, enter, room_of},
    elsewhere::{Elsewhere, until},
    identity::identity,
    neighbour::Neighbour,
    room::Room,
    server::{Client, TestServer, ok},
    several::{named, network, node, sound},
};

const UPLOAD: &str = "/_matrix/client/v3/keys/upload";

/// The devices of which a neighbour was told so far, in the order in which it was.
fn told(neighbour: &Neighbour) -> Vec<Value> {
    let puts = neighbour.all_put().into_iter();
    let sends = puts.filter(|(path, _)| path.starts_with("/_matrix/federation/v1/send/"));
    let edus = sends.flat_map(|(_, body)| body["edus"].as_array().cloned().unwrap_or_default());
    edus.filter(|edu| edu["edu_type"] == "m.device_list_update")
        .map(|edu| edu["content"].clone())
        .collect()
}

fn whose(told: &[Value]) -> Vec<&str> {
    let users = told.iter().map(|content| content["device_id"].as_str());
    users.map(|device| device.expect("an id")).collect()
}

/// Waits until everything that was to be told was told: what is said after it comes after it.
async fn settled(server: &TestServer, who: &Client, room: &str, neighbour: &Neighbour) {
    until(async || is_done(server)).await;
    let last = format!("last {}", neighbour.put().len());
    let path = format!(
        "/_matrix/client/v3/rooms/{room}/send/m.room.message/{}",
        last.len()
    );
    let body = json!({ "msgtype": "m.text", "body": last });
    ok(who.put(&path, body).await);
    until(async || {
        let puts = neighbour.put();
        puts.iter()
            .any(|(_, body)| body["pdus"].to_string().contains(&last))
    })
    .await;
}

/// Whether it was found out who is new to whom.
fn is_done(server: &TestServer) -> bool {
    let view = server.services.store().view();
    INTRODUCTIONS.scan(&view, &()).next().is_none()
}

/// A server in a room of a user of ours.
async fn met(server: &TestServer, client: &Client, neighbour: &Neighbour, user: &str) -> String {
    neighbour.answers(
        "/_matrix/federation/v1/send/",
        StatusCode::OK,
        json!({ "pdus": {} }),
    );
    let room = room_of(client).await;
    Elsewhere::joined(server, &Room(room.clone()), neighbour, user).await;
    room
}

#[tokio::test]
async fn a_server_is_told_of_devices_once_when_it_meets_their_user() {
    let server = TestServer::new();
    let b = Neighbour::new(&server.lan, "b.example", 2);
    let (alice, carol) = (
        server.register("alice").await,
        server.register("carol").await,
    );
    let second = server.log_in("carol").await;
    let keys = identity(&second, 3);
    ok(second.post(UPLOAD, json!({ "device_keys": keys })).await);
    // The server comes to alice.
    let room = met(&server, &alice, &b, "@bob:b.example").await;
    until(async || whose(&told(&b)) == [&*alice.device_id]).await;
    // Carol comes to the server, with a device that has no keys yet.
    enter(&carol, &room, "localhost").await;
    until(async || told(&b).len() == 3).await;
    let of_carol = &told(&b)[1..];
    let mut devices = vec![&*carol.device_id, &*second.device_id];
    devices.sort_unstable();
    assert_eq!(whose(of_carol), devices);
    for content in of_carol {
        assert_eq!(content["user_id"], carol.user_id.as_str());
        assert_eq!(content["prev_id"], json!([]));
        let has_keys = content["device_id"] == second.device_id.as_str();
        assert_eq!(content.get("keys"), has_keys.then_some(&keys));
    }
    let path = format!("/_matrix/federation/v1/user/devices/{}", carol.user_id);
    let list = ok(b.get(&server, &path).await);
    assert_eq!(
        of_carol[0]["stream_id"], list["stream_id"],
        "nothing has changed by that"
    );
    // They know each other now.
    let other = met(&server, &alice, &b, "@bill:b.example").await;
    enter(&carol, &other, "localhost").await;
    let third = room_of(&alice).await;
    enter(&carol, &third, "localhost").await;
    settled(&server, &alice, &other, &b).await;
    assert_eq!(told(&b).len(), 3, "{:?}", told(&b));
    // The next change follows what was told.
    let path = format!("/_matrix/client/v3/devices/{}", second.device_id);
    ok(carol.put(&path, json!({ "display_name": "new" })).await);
    until(async || told(&b).len() == 4).await;
    assert_eq!(told(&b)[3]["prev_id"], json!([list["stream_id"]]));
    sound(&[&server]);
}

#[tokio::test]
async fn who_meets_in_two_rooms_at_once_is_introduced_all_the_same() {
    let server = TestServer::new();
    let b = Neighbour::new(&server.lan, "b.example", 2);
    let (alice, carol) = (
        server.register("alice").await,
        server.register("carol").await,
    );
    let known = alice.device_id.clone();
    let first = room_of(&alice).await;
    let second = met(&server, &alice, &b, "@bill:b.example").await;
    until(async || told(&b).len() == 1 && is_done(&server)).await;
    // Nobody tells of devices until the node starts again, and finds both rooms then.
    server.stop().await;
    Elsewhere::joined(&server, &Room(first.clone()), &b, "@bob:b.example").await;
    for room in [&first, &second] {
        enter(&carol, room, "localhost").await;
    }
    assert!(!is_done(&server));
    let server = server.restart();
    until(async || told(&b).len() == 2 && is_done(&server)).await;
    let alice = server.log_in("alice").await;
    settled(&server, &alice, &first, &b).await;
    let told = told(&b);
    let mut devices = vec![&*known, &*carol.device_id];
    devices.sort_unstable();
    let mut found = whose(&told);
    found.sort_unstable();
    assert_eq!(found, devices);
    sound(&[&server]);
}

#[tokio::test]
async fn what_a_server_tells_at_first_is_taken_cheaply() {
    let server = TestServer::new();
    let b = Neighbour::new(&server.lan, "b.example", 2);
    let alice = server.register("alice").await;
    let room = room_of(&alice).await;
    let bob = "@bob:b.example";
    Elsewhere::joined(&server, &Room(room), &b, bob).await;
    let mut a = Follower::new(&alice).await;
    let update = |edu_type: &str, stream: u64| {
        let content =
            json!({ "user_id": bob, "device_id": "X", "stream_id": stream, "prev_id": [] });
        json!({ "edu_type": edu_type, "content": content })
    };
    let edu = "m.device_list_update";
    ok(b.murmur(&server, "1", &[update(edu, 0), update(edu, 0)])
        .await);
    assert_eq!(a.next().await, (vec![], vec![]), "there are no keys at all");
    let before = server.services.store().view().position();
    let many: Vec<_> = (1..=50).map(|stream| update(edu, stream)).collect();
    ok(b.murmur(&server, "2", &many).await);
    assert_eq!(a.next().await, (vec![bob.to_owned()], vec![]));
    let after = server.services.store().view().position();
    assert!(
        after.0 - before.0 < 5,
        "one transaction is one piece of news"
    );
    for (n, edu_type) in ["m.signing_key_update", "org.matrix.signing_key_update"]
        .iter()
        .enumerate()
    {
        ok(b.murmur(&server, &format!("s{n}"), &[update(edu_type, 1)])
            .await);
        assert_eq!(a.next().await, (vec![bob.to_owned()], vec![]));
    }
    // Of others it may say nothing.
    let of =
        |user: &str| json!({ "edu_type": "m.signing_key_update", "content": { "user_id": user } });
    let edus = [
        of(&alice.user_id),
        of("@eve:c.example"),
        of("@nobody:b.example"),
        json!({ "content": 5 }),
    ];
    ok(b.murmur(&server, "4", &edus).await);
    assert_eq!(a.next().await, (vec![], vec![]));
    sound(&[&server]);
}

#[tokio::test]
async fn what_changed_unsaid_is_found_when_a_server_is_back() {
    let lan = network();
    let (a, b) = (node(&lan, "a.example"), node(&lan, "b.example"));
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    ok(alice
        .post(UPLOAD, json!({ "device_keys": identity(&alice, 1) }))
        .await);
    let room = room_of(&alice).await;
    let mut follower = Follower::new(&bob).await;
    enter(&bob, &room, "a.example").await;
    follower.until().await;
    // They are introduced to each other before it begins.
    until(async || is_done(&a) && is_done(&b)).await;
    until(async || {
        let status = [&a, &b].map(|node| node.services.federation.destinations());
        let mut status = status
            .into_iter()
            .flat_map(|all| all.expect("it can be read"));
        status.all(|one| one.waiting == 0)
    })
    .await;
    follower.next().await;
    let body = json!({ "device_keys": { &alice.user_id: [] } });
    let query = async || {
        ok(bob
            .post("/_matrix/client/v3/keys/query", body.clone())
            .await)
    };
    assert!(query().await["device_keys"][&alice.user_id][&alice.device_id].is_object());
    let names = (named("a.example"), named("b.example"));
    for (is_lost, is_told) in [(false, false), (true, true)] {
        lan.set_link(&names.0, &names.1, false);
        let path = format!("/_matrix/client/v3/rooms/{room}/send/m.room.message/{is_lost}");
        ok(bob
            .put(&path, json!({ "msgtype": "m.text", "body": "x" }))
            .await);
        if is_lost {
            // Other servers forget what they could not tell for long.
            let second = a.log_in("alice").await;
            ok(second
                .post(UPLOAD, json!({ "device_keys": identity(&second, 2) }))
                .await);
            let store = a.services.store();
            let view = store.latest();
            let rows = LASTING_EDUS.scan(&view, &());
            let keys: Vec<_> = rows.map(|row| row.expect("a row").0).collect();
            assert!(!keys.is_empty());
            let _not_awaited = store.commit(|batch| {
                for key in &keys {
                    LASTING_EDUS.delete(batch, key);
                }
                Ok(())
            });
        }
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            b.clock.advance(Duration::from_hours(1));
            a.clock.advance(Duration::from_hours(1));
        }
        lan.set_link(&names.0, &names.1, true);
        b.clock.advance(Duration::from_hours(24));
        if is_told {
            assert_eq!(
                follower.until().await,
                (vec![alice.user_id.clone()], vec![])
            );
            let keys = query().await["device_keys"][&alice.user_id].clone();
            assert_eq!(
                keys.as_object().map(serde_json::Map::len),
                Some(2),
                "{keys}"
            );
        } else {
            let path = "/_matrix/client/v3/sync?timeout=0";
            until(async || ok(alice.get(path).await).to_string().contains("\"x\"")).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert_eq!(follower.next().await, (vec![], vec![]));
        }
    }
    sound(&[&a, &b]);
}
