//! "Spaces" and "Room summaries" in the client-server API, and "Spaces" between servers.

use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};

use crate::{
    joining::join,
    neighbour::Neighbour,
    room::{Room, encoded},
    server::{Answer, Client, TestServer, ok, refused, text},
    several::{named, network, node, sound},
};

async fn space(creator: &Client, name: &str, preset: &str) -> Room {
    let body = json!({
        "name": name, "preset": preset, "creation_content": { "type": "m.space" },
    });
    Room::create(creator, body).await
}

async fn plain(creator: &Client, name: &str, preset: &str) -> Room {
    Room::create(creator, json!({ "name": name, "preset": preset })).await
}

/// A room that the members of a space may join.
async fn restricted(creator: &Client, name: &str, space: &Room) -> Room {
    let body = json!({ "name": name, "initial_state": [{
        "type": "m.room.join_rules",
        "content": { "join_rule": "restricted", "allow": [
            { "type": "m.room_membership", "room_id": space.0 },
        ] },
    }] });
    Room::create(creator, body).await
}

async fn child(who: &Client, space: &Room, room: &Room, content: Value) {
    let path = format!("state/m.space.child/{}", encoded(&room.0));
    ok(space.put(who, &path, content).await);
}

async fn add(who: &Client, space: &Room, room: &Room, via: &str) {
    child(who, space, room, json!({ "via": [via] })).await;
}

async fn page(who: &Client, space: &Room, query: &str) -> Answer {
    let path = format!("/_matrix/client/v1/rooms/{}/hierarchy?{query}", space.0);
    who.get(&path).await
}

fn names(tree: &Value) -> String {
    let rooms = tree["rooms"].as_array().expect("a list").iter();
    let names: Vec<_> = rooms.map(|room| text(room, "name")).collect();
    names.join(" ")
}

async fn tree(who: &Client, space: &Room, query: &str) -> String {
    names(&ok(page(who, space, query).await))
}

#[tokio::test]
async fn a_tree_is_told_from_its_root_down() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let root = space(&alice, "root", "public_chat").await;
    let (a, b) = (
        space(&alice, "a", "public_chat").await,
        plain(&alice, "b", "public_chat").await,
    );
    let (a1, a2) = (
        plain(&alice, "a1", "public_chat").await,
        plain(&alice, "a2", "private_chat").await,
    );
    let via = json!(["localhost"]);
    child(&alice, &root, &b, json!({ "via": via, "suggested": true })).await;
    child(&alice, &root, &a, json!({ "via": via, "order": "1" })).await;
    child(&alice, &a, &a2, json!({ "via": via, "order": "y" })).await;
    child(&alice, &a, &a1, json!({ "via": via, "order": "x" })).await;
    // A loop, a room to talk in that names another, a child without a server, and one that was taken away.
    add(&alice, &a, &root, "localhost").await;
    add(&alice, &b, &a, "localhost").await;
    let (c, d) = (
        plain(&alice, "c", "public_chat").await,
        plain(&alice, "d", "public_chat").await,
    );
    child(&alice, &root, &c, json!({ "via": [] })).await;
    add(&alice, &root, &d, "localhost").await;
    child(&alice, &root, &d, json!({})).await;

    assert_eq!(tree(&alice, &root, "").await, "root a a1 a2 b");
    // What is closed to somebody is not told to them.
    assert_eq!(tree(&bob, &root, "").await, "root a a1 b");
    a2.does_to(&alice, "invite", &bob).await;
    assert_eq!(tree(&bob, &root, "").await, "root a a1 a2 b");
    assert_eq!(tree(&alice, &root, "max_depth=1").await, "root a b");
    assert_eq!(tree(&alice, &root, "max_depth=0").await, "root");
    assert_eq!(tree(&alice, &root, "suggested_only=true").await, "root b");
    let whole = ok(page(&alice, &root, "").await);
    assert_eq!(whole["rooms"][0]["room_type"], "m.space");
    let states = whole["rooms"][0]["children_state"].as_array().unwrap();
    let keys: Vec<_> = states
        .iter()
        .map(|event| text(event, "state_key"))
        .collect();
    assert_eq!(keys, [&*a.0, &*b.0]);
    let members: Vec<_> = states[0].as_object().unwrap().keys().collect();
    assert_eq!(
        members,
        ["content", "origin_server_ts", "sender", "state_key", "type"]
    );
    assert_eq!(whole["rooms"][4]["children_state"], json!([]));

    for limit in 1..5 {
        let (mut told, mut from) = (Vec::new(), String::new());
        loop {
            let query = format!("limit={limit}&max_depth=5{from}");
            let part = ok(page(&alice, &root, &query).await);
            assert!(part["rooms"].as_array().unwrap().len() <= limit);
            told.push(names(&part));
            match part["next_batch"].as_str() {
                Some(next) => from = format!("&from={next}"),
                None => break,
            }
        }
        let told = told.join(" ");
        assert_eq!(told.trim(), "root a a1 a2 b", "{limit}");
    }
}

#[tokio::test]
async fn a_tree_is_told_only_to_those_who_may_know_it() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let root = space(&alice, "root", "private_chat").await;
    let nowhere = Room("!nowhere:localhost".to_owned());
    refused(page(&bob, &root, "").await, 403, "M_FORBIDDEN");
    refused(page(&bob, &nowhere, "").await, 403, "M_FORBIDDEN");
    for n in 0..3 {
        let room = plain(&alice, &n.to_string(), "public_chat").await;
        add(&alice, &root, &room, "localhost").await;
    }
    let token = text(&ok(page(&alice, &root, "limit=2").await), "next_batch");
    ok(page(&alice, &root, &format!("from={token}")).await);
    // Somebody else's, for another space, of another question, made up, from before a restart.
    let other = space(&alice, "other", "private_chat").await;
    root.does_to(&alice, "invite", &bob).await;
    let from = format!("from={token}");
    for answer in [
        page(&bob, &root, &from).await,
        page(&alice, &other, &from).await,
        page(&alice, &root, &format!("{from}&suggested_only=true")).await,
        page(&alice, &root, &format!("{from}&max_depth=2")).await,
        page(&alice, &root, "from=x").await,
        page(&alice, &root, "limit=0").await,
        page(&alice, &root, "limit=-1").await,
        page(&alice, &root, "max_depth=x").await,
    ] {
        refused(answer, 400, "M_INVALID_PARAM");
    }
    let _server = server.restart();
    refused(page(&alice, &root, &from).await, 400, "M_INVALID_PARAM");
}

#[tokio::test]
async fn a_room_for_the_members_of_a_space_is_told_to_them() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let root = space(&alice, "root", "public_chat").await;
    let room = restricted(&alice, "room", &root).await;
    add(&alice, &root, &room, "localhost").await;
    let path = format!("/_matrix/client/v1/room_summary/{}", room.0);
    assert_eq!(tree(&bob, &root, "").await, "root");
    refused(bob.get(&path).await, 404, "M_NOT_FOUND");
    root.does(&bob, "join").await;
    assert_eq!(tree(&bob, &root, "").await, "root room");
    let told = ok(bob.get(&path).await);
    assert_eq!(told["join_rule"], "restricted");
    assert_eq!(told["allowed_room_ids"], json!([root.0]));
    assert_eq!(told["membership"], "leave");
    root.does(&bob, "leave").await;
    assert_eq!(tree(&bob, &root, "").await, "root");
}

#[tokio::test]
async fn a_space_of_thousands_is_told_in_bounded_pages() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let children: Vec<_> = (0..5_000)
        .map(|n| {
            json!({ "type": "m.space.child", "state_key": format!("!c{n}:localhost"),
                "content": { "via": ["far.example"] } })
        })
        .collect();
    let body = json!({
        "name": "root", "creation_content": { "type": "m.space" }, "initial_state": children,
    });
    let root = Room::create(&alice, body).await;
    let first = ok(page(&alice, &root, "").await);
    assert_eq!(names(&first), "root");
    let next = text(&first, "next_batch");
    // A server that does not answer is waited for only a few times.
    let more = ok(page(&alice, &root, &format!("from={next}")).await);
    assert_eq!(more["rooms"], json!([]));
    assert!(more["next_batch"].is_string());
}

#[tokio::test]
async fn a_tree_that_goes_round_in_circles_ends() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let mut spaces = Vec::new();
    for n in 0..6 {
        spaces.push(space(&alice, &n.to_string(), "public_chat").await);
    }
    // Everything is in everything, and in itself.
    for one in &spaces {
        for other in &spaces {
            add(&alice, one, other, "localhost").await;
        }
    }
    for limit in [1, 2, 50] {
        let (mut told, mut from) = (Vec::new(), String::new());
        for pages in 0.. {
            assert!(pages < 40, "{told:?}");
            let part = ok(page(&alice, &spaces[0], &format!("limit={limit}{from}")).await);
            told.extend(
                names(&part)
                    .split(' ')
                    .filter(|n| !n.is_empty())
                    .map(str::to_owned),
            );
            match part["next_batch"].as_str() {
                Some(next) => from = format!("&from={next}"),
                None => break,
            }
        }
        assert_eq!(told[0], "0");
        told.sort();
        assert_eq!(told, ["0", "1", "2", "3", "4", "5"], "each once");
    }
}

#[tokio::test]
async fn trees_go_across_servers() {
    let lan = network();
    let (a, b) = (node(&lan, "a.example"), node(&lan, "b.example"));
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let root = space(&alice, "root", "public_chat").await;
    let far = space(&bob, "far", "public_chat").await;
    let (deep, hidden) = (
        plain(&bob, "deep", "public_chat").await,
        plain(&bob, "hidden", "private_chat").await,
    );
    let members = restricted(&bob, "members", &root).await;
    add(&alice, &root, &far, "b.example").await;
    add(&alice, &root, &members, "b.example").await;
    add(&bob, &far, &deep, "b.example").await;
    // Of the same moment the one with the lesser id would come first.
    b.clock.advance(Duration::from_millis(1));
    add(&bob, &far, &hidden, "b.example").await;
    // b does not know that alice is in the space.
    assert_eq!(tree(&alice, &root, "").await, "root far deep");
    ok(join(&bob, &root, &["a.example"]).await);
    assert_eq!(tree(&alice, &root, "").await, "root far deep members");
    assert_eq!(tree(&bob, &root, "").await, "root far deep hidden members");
    let carol = a.register("carol").await;
    assert_eq!(tree(&carol, &root, "").await, "root far deep");
    // For a while nobody is asked again.
    lan.set_link(&named("a.example"), &named("b.example"), false);
    assert_eq!(tree(&carol, &root, "").await, "root far deep");
    a.clock.advance(Duration::from_secs(301));
    assert_eq!(tree(&carol, &root, "").await, "root");
    sound(&[&a, &b]);
}

#[tokio::test]
async fn a_room_is_told_of_before_one_joins_it() {
    let lan = network();
    let (a, b) = (node(&lan, "a.example"), node(&lan, "b.example"));
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let body = json!({ "name": "kitchen", "preset": "public_chat", "topic": "tea",
        "room_alias_name": "kitchen", "room_version": "11" });
    let room = Room::create(&alice, body).await;
    let closed = plain(&alice, "closed", "private_chat").await;
    let path = |room: &str| format!("/_matrix/client/v1/room_summary/{}", encoded(room));
    let expect = json!({
        "room_id": room.0, "name": "kitchen", "topic": "tea", "num_joined_members": 1,
        "canonical_alias": "#kitchen:a.example", "join_rule": "public", "room_version": "11",
        "guest_can_join": false, "world_readable": false,
    });
    let mut joined = expect.clone();
    joined["membership"] = "join".into();
    assert_eq!(ok(alice.get(&path(&room.0)).await), joined);
    assert_eq!(ok(alice.get(&path("#kitchen:a.example")).await), joined);
    assert_eq!(ok(a.anonymous().get(&path(&room.0)).await), expect);
    for unstable in ["summary/{}", "rooms/{}/summary"] {
        let path = unstable.replace("{}", &encoded(&room.0));
        let path = format!("/_matrix/client/unstable/im.nheko.summary/{path}");
        assert_eq!(ok(alice.get(&path).await), joined);
    }
    let mut outside = expect.clone();
    outside["membership"] = "leave".into();
    let via = format!("{}?via=a.example", path(&room.0));
    assert_eq!(ok(bob.get(&via).await), outside);
    assert_eq!(ok(bob.get(&path("#kitchen:a.example")).await), outside);
    // Strangers have nobody asked.
    let asked = b.anonymous().get(&via).await;
    refused(asked, 404, "M_NOT_FOUND");
    let dave = a.register("dave").await;
    for who in [&dave, &a.anonymous(), &bob] {
        let answer = who.get(&format!("{}?via=a.example", path(&closed.0))).await;
        refused(answer, 404, "M_NOT_FOUND");
        refused(
            who.get(&path("!nowhere:a.example")).await,
            404,
            "M_NOT_FOUND",
        );
    }
    assert_eq!(ok(alice.get(&path(&closed.0)).await)["name"], "closed");
    refused(dave.get(&path("x")).await, 400, "M_INVALID_PARAM");
}

#[tokio::test]
async fn servers_are_told_what_their_users_may_know() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let other = Neighbour::new(&server.lan, "b.example", 1);
    let root = space(&alice, "root", "public_chat").await;
    let (open, closed) = (
        plain(&alice, "open", "public_chat").await,
        plain(&alice, "closed", "private_chat").await,
    );
    let (suggested, unknown) = (
        json!({ "via": ["localhost"], "suggested": true }),
        "!u:b.example",
    );
    child(&alice, &root, &open, suggested).await;
    add(&alice, &root, &closed, "localhost").await;
    add(&alice, &root, &Room(unknown.to_owned()), "b.example").await;
    let ask = async |room: &str, query: &str| {
        let path = format!("/_matrix/federation/v1/hierarchy/{}{query}", encoded(room));
        other.get(&server, &path).await
    };
    let told = ok(ask(&root.0, "").await);
    assert_eq!(told["room"]["name"], "root");
    assert_eq!(told["room"]["children_state"].as_array().unwrap().len(), 3);
    assert_eq!(told["children"].as_array().unwrap().len(), 1);
    assert_eq!(told["children"][0]["room_id"], open.0);
    assert_eq!(told["inaccessible_children"], json!([closed.0]));
    let told = ok(ask(&root.0, "?suggested_only=true").await);
    assert_eq!(told["room"]["children_state"].as_array().unwrap().len(), 1);
    refused(ask(&closed.0, "").await, 404, "M_NOT_FOUND");
    refused(ask("!nowhere:localhost", "").await, 404, "M_NOT_FOUND");
    refused(ask("nowhere", "").await, 400, "M_INVALID_PARAM");
    // A room that we have left is not ours to tell of.
    open.does(&alice, "leave").await;
    refused(ask(&open.0, "").await, 404, "M_NOT_FOUND");
}

#[tokio::test]
async fn what_another_server_tells_of_its_rooms_is_looked_at() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let other = Neighbour::new(&server.lan, "b.example", 1);
    let root = space(&alice, "root", "public_chat").await;
    let far = Room("!far:b.example".to_owned());
    add(&alice, &root, &far, "b.example").await;
    let path = "/_matrix/federation/v1/hierarchy/";
    let room = |id: &str, rule: &str| {
        json!({ "room_id": id, "name": id, "join_rule": rule, "room_type": "m.space",
            "num_joined_members": 1, "world_readable": false, "guest_can_join": false,
            "children_state": [] })
    };
    let about = |room: Value| json!({ "room": room, "children": [], "inaccessible_children": [] });
    for nonsense in [
        json!([]),
        json!({}),
        json!({ "room": 5 }),
        // Another room than asked for; one that the user may not know of, whatever the server says.
        about(room("!other:b.example", "public")),
        about(room("!far:b.example", "invite")),
        about(room("!far:b.example", "restricted")),
    ] {
        other.answers(path, StatusCode::OK, &nonsense);
        assert_eq!(tree(&alice, &root, "").await, "root", "{nonsense}");
        server.clock.advance(Duration::from_secs(301));
    }
    let mut good = about(room("!far:b.example", "public"));
    let event = |id: &str, via: Value| {
        json!({ "type": "m.space.child", "state_key": id, "sender": "@x:b.example",
            "origin_server_ts": 1, "content": { "via": via } })
    };
    good["room"]["children_state"] = json!([
        5,
        {},
        event("nonsense", json!(["b.example"])),
        event("!x:b.example", json!(5)),
        event("!leaf:b.example", json!(["b.example"])),
        event("!shut:b.example", json!(["b.example"])),
    ]);
    let mut leaf = room("!leaf:b.example", "knock");
    leaf["room_type"] = Value::Null;
    good["children"] = json!([leaf, 7, room("!unnamed:b.example", "public")]);
    good["inaccessible_children"] = json!(["!shut:b.example", "nonsense"]);
    other.answers(path, StatusCode::OK, &good);
    let asked = other.asked();
    let told = tree(&alice, &root, "").await;
    assert_eq!(told, "root !far:b.example !leaf:b.example");
    // Nothing was asked for what was told already.
    assert_eq!(other.asked(), asked + 1);
}
