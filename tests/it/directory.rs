//! "Listing rooms" in the client-server API, and "Public Room Directory" between servers.

use http::StatusCode;
use serde_json::{Value, json};

use crate::{
    neighbour::Neighbour,
    room::Room,
    server::{Answer, Client, TestServer, ok, refused, text},
    several::{network, node, sound},
};

const PUBLIC: &str = "/_matrix/client/v3/publicRooms";

async fn search(who: &Client, filter: Value) -> Value {
    ok(who.post(PUBLIC, json!({ "filter": filter })).await)
}

fn names(answer: &Value) -> Vec<String> {
    let rooms = answer["chunk"].as_array().expect("a list").iter();
    let mut names: Vec<_> = rooms
        .map(|room| room["name"].as_str().unwrap_or("-").to_owned())
        .collect();
    names.sort();
    names
}

async fn listed(creator: &Client, name: &str, more: Value) -> Room {
    let mut body = json!({ "visibility": "public", "name": name });
    for (key, value) in more.as_object().expect("an object") {
        body[key] = value.clone();
    }
    Room::create(creator, body).await
}

async fn list(who: &Client, room: &Room, visibility: &str) -> Answer {
    let path = format!("/_matrix/client/v3/directory/list/room/{}", room.0);
    who.put(&path, json!({ "visibility": visibility })).await
}

#[tokio::test]
async fn a_listed_room_tells_what_it_is() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    assert_eq!(names(&ok(alice.get(PUBLIC).await)), [""; 0]);
    let more = json!({ "topic": "Tea", "room_alias_name": "kitchen", "room_version": "11" });
    let room = listed(&alice, "Küche", more).await;
    let told = ok(server.anonymous().get(PUBLIC).await);
    assert_eq!(
        told,
        json!({ "total_room_count_estimate": 1, "chunk": [{
            "room_id": room.0, "name": "Küche", "topic": "Tea",
            "canonical_alias": "#kitchen:localhost", "num_joined_members": 1,
            "world_readable": false, "guest_can_join": false, "join_rule": "public",
        }] })
    );
    // It follows what happens in the room.
    let bob = server.register("bob").await;
    room.does(&bob, "join").await;
    let event = room
        .set(&alice, "m.room.name", json!({ "name": "Salon" }))
        .await;
    room.set(&alice, "m.room.join_rules", json!({ "join_rule": "knock" }))
        .await;
    let told = ok(bob.get(PUBLIC).await);
    assert_eq!(told["chunk"][0]["num_joined_members"], 2);
    assert_eq!(told["chunk"][0]["name"], "Salon");
    assert_eq!(told["chunk"][0]["join_rule"], "knock");
    let redact = format!("redact/{event}/1");
    ok(room.put(&alice, &redact, json!({})).await);
    assert_eq!(names(&ok(bob.get(PUBLIC).await)), ["-"]);
    let server = server.restart();
    assert_eq!(names(&ok(bob.get(PUBLIC).await)), ["-"]);
    // A room in which nobody is any more is not told.
    room.does(&alice, "leave").await;
    room.does(&bob, "leave").await;
    assert_eq!(names(&ok(bob.get(PUBLIC).await)), [""; 0]);
    sound(&[&server]);
}

#[tokio::test]
async fn who_may_name_a_room_may_list_it() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = Room::create(&alice, json!({ "name": "x", "preset": "public_chat" })).await;
    let path = format!("/_matrix/client/v3/directory/list/room/{}", room.0);
    let visibility = async || ok(server.anonymous().get(&path).await)["visibility"].clone();
    assert_eq!(visibility().await, "private");
    refused(list(&bob, &room, "public").await, 403, "M_FORBIDDEN");
    room.does(&bob, "join").await;
    refused(list(&bob, &room, "public").await, 403, "M_FORBIDDEN");
    refused(list(&alice, &room, "secret").await, 400, "M_INVALID_PARAM");
    let nowhere = Room("!nowhere:localhost".to_owned());
    refused(list(&alice, &nowhere, "public").await, 403, "M_FORBIDDEN");
    let unknown = path.replace(&room.0, "!nowhere:localhost");
    refused(bob.get(&unknown).await, 404, "M_NOT_FOUND");
    assert_eq!(names(&ok(bob.get(PUBLIC).await)), [""; 0]);
    ok(list(&alice, &room, "public").await);
    assert_eq!(visibility().await, "public");
    assert_eq!(names(&ok(bob.get(PUBLIC).await)), ["x"]);
    ok(list(&alice, &room, "private").await);
    assert_eq!(names(&ok(bob.get(PUBLIC).await)), [""; 0]);
}

#[tokio::test]
async fn rooms_are_found_by_what_they_say_and_are() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    listed(&alice, "Kitchen", json!({ "topic": "Tee und Kekse" })).await;
    listed(&alice, "ПРОДАЖИ", json!({ "room_alias_name": "sales" })).await;
    let space = json!({ "creation_content": { "type": "m.space" } });
    listed(&alice, "Office", space).await;
    let other = json!({ "creation_content": { "type": "org.example.board" } });
    listed(&alice, "Board", other).await;
    Room::create(&alice, json!({ "name": "Kitchen 2" })).await;
    for (filter, expect) in [
        (json!({}), &["Board", "Kitchen", "Office", "ПРОДАЖИ"][..]),
        (json!({ "generic_search_term": "kITCH" }), &["Kitchen"]),
        (json!({ "generic_search_term": "kekse" }), &["Kitchen"]),
        (json!({ "generic_search_term": "прода" }), &["ПРОДАЖИ"]),
        (json!({ "generic_search_term": "#sales" }), &["ПРОДАЖИ"]),
        (json!({ "generic_search_term": "nothing" }), &[]),
        (json!({ "room_types": ["m.space"] }), &["Office"]),
        (json!({ "room_types": [null] }), &["Kitchen", "ПРОДАЖИ"]),
        (
            json!({ "room_types": ["org.example.board", null] }),
            &["Board", "Kitchen", "ПРОДАЖИ"],
        ),
        (
            json!({ "room_types": ["m.space"], "generic_search_term": "kitchen" }),
            &[],
        ),
    ] {
        assert_eq!(
            names(&search(&alice, filter.clone()).await),
            expect,
            "{filter}"
        );
    }
    let long = json!({ "filter": { "generic_search_term": "x".repeat(100_000) } });
    refused(alice.post(PUBLIC, long).await, 400, "M_INVALID_PARAM");
    let bridge = json!({ "third_party_instance_id": "irc" });
    assert_eq!(names(&ok(alice.post(PUBLIC, bridge).await)), [""; 0]);
    let all = json!({ "include_all_networks": true });
    assert_eq!(names(&ok(alice.post(PUBLIC, all).await)).len(), 4);
    refused(
        server.anonymous().post(PUBLIC, json!({})).await,
        401,
        "M_MISSING_TOKEN",
    );
}

#[tokio::test]
async fn a_directory_is_told_page_by_page() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    for n in 0..5 {
        listed(&alice, &n.to_string(), json!({})).await;
    }
    let mut told = Vec::new();
    let mut since = String::new();
    loop {
        let page = ok(alice.get(&format!("{PUBLIC}?limit=2{since}")).await);
        assert_eq!(page["total_room_count_estimate"], 5);
        told.extend(names(&page));
        let Some(next) = page["next_batch"].as_str() else {
            break;
        };
        since = format!("&since={next}");
    }
    told.sort();
    assert_eq!(told, ["0", "1", "2", "3", "4"]);
    for bad in ["limit=-1", "limit=x", "since=x"] {
        let answer = alice.get(&format!("{PUBLIC}?{bad}")).await;
        refused(answer, 400, "M_INVALID_PARAM");
    }
}

#[tokio::test]
async fn directories_are_told_across_servers() {
    let lan = network();
    let (a, b) = (node(&lan, "a.example"), node(&lan, "b.example"));
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let kitchen = listed(&alice, "Kitchen", json!({})).await;
    listed(
        &alice,
        "Office",
        json!({ "creation_content": { "type": "m.space" } }),
    )
    .await;
    listed(&bob, "Here", json!({})).await;
    let there = format!("{PUBLIC}?server=a.example");
    assert_eq!(names(&ok(bob.get(&there).await)), ["Kitchen", "Office"]);
    let page = ok(bob.get(&format!("{there}&limit=1")).await);
    let since = text(&page, "next_batch");
    let rest = ok(bob.get(&format!("{there}&limit=1&since={since}")).await);
    assert_ne!(names(&rest), names(&page));
    let body = json!({ "filter": { "generic_search_term": "KITCHEN", "room_types": [null] } });
    let found = ok(bob.post(&there, body).await);
    assert_eq!(found["chunk"][0]["room_id"], kitchen.0);
    assert_eq!(names(&found).len(), 1);
    let here = format!("{PUBLIC}?server=b.example");
    assert_eq!(names(&ok(bob.get(&here).await)), ["Here"]);
    let nowhere = format!("{PUBLIC}?server=c.example");
    refused(bob.get(&nowhere).await, 502, "M_UNKNOWN");
    refused(
        bob.get(&format!("{there}&since=x")).await,
        400,
        "M_INVALID_PARAM",
    );
}

#[tokio::test]
async fn what_another_server_lists_is_looked_at() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let other = Neighbour::new(&server.lan, "b.example", 1);
    let path = "/_matrix/federation/v1/publicRooms";
    let there = format!("{PUBLIC}?server=b.example&limit=2");
    let room = |id: &str| {
        json!({ "room_id": id, "name": id, "num_joined_members": 3, "room_version": "11",
            "encryption": "m.megolm.v1.aes-sha2", "allowed_room_ids": [] })
    };
    let all = json!({ "chunk": [
        room("!a:b.example"), 5, room("nonsense"), room("!b:b.example"), room("!c:b.example"),
    ], "next_batch": "x" });
    other.answers(path, StatusCode::OK, all);
    let told = ok(alice.get(&there).await);
    assert_eq!(names(&told), ["!a:b.example", "!b:b.example"]);
    // Only what the specification names: apps refuse an entry with more.
    assert_eq!(
        told["chunk"][0],
        json!({ "room_id": "!a:b.example", "name": "!a:b.example", "num_joined_members": 3,
            "world_readable": false, "guest_can_join": false, "join_rule": "public" })
    );
    assert_eq!(told["next_batch"], "x");
    for nonsense in ["[]", "{}", "{\"chunk\":5}", "no json"] {
        other.answers(path, StatusCode::OK, nonsense);
        refused(alice.get(&there).await, 502, "M_UNKNOWN");
    }
    let large = format!("{{\"chunk\":[],\"x\":\"{}\"}}", "x".repeat(5 << 20));
    other.answers(path, StatusCode::OK, large);
    refused(alice.get(&there).await, 502, "M_UNKNOWN");
}
