//! "Room aliases" in the client-server API, and "Querying for information" about them between servers.

use http::StatusCode;
use serde_json::{Value, json};

use crate::{
    joining::join,
    neighbour::Neighbour,
    room::{Room, encoded},
    server::{Answer, Client, TestServer, ok, refused, text},
    several::{named, network, node, sound},
};

const ODD: &str = "#老虎Â£я🤨👉ඞ/?%:localhost";

async fn put(who: &Client, alias: &str, room: &Room) -> Answer {
    let path = format!("/_matrix/client/v3/directory/room/{}", encoded(alias));
    who.put(&path, json!({ "room_id": room.0 })).await
}

async fn get(who: &Client, alias: &str) -> Answer {
    let path = format!("/_matrix/client/v3/directory/room/{}", encoded(alias));
    who.get(&path).await
}

async fn delete(who: &Client, alias: &str) -> Answer {
    let path = format!("/_matrix/client/v3/directory/room/{}", encoded(alias));
    who.delete(&path).await
}

async fn name(who: &Client, room: &Room, content: Value) -> Answer {
    room.put(who, "state/m.room.canonical_alias", content).await
}

#[tokio::test]
async fn a_room_is_found_by_any_of_its_names() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let room = Room::new(&alice, "shared").await;
    let none: [&str; 0] = [];
    let list = ok(room.get(&alice, "aliases").await);
    assert_eq!(list, json!({ "aliases": none }));
    for alias in ["#kitchen:localhost", ODD] {
        ok(put(&alice, alias, &room).await);
        // Nobody need be logged in to find it.
        let found = ok(get(&server.anonymous(), alias).await);
        assert_eq!(
            found,
            json!({ "room_id": room.0, "servers": ["localhost"] })
        );
    }
    let list = ok(room.get(&alice, "aliases").await);
    assert_eq!(list, json!({ "aliases": ["#kitchen:localhost", ODD] }));
    let server = server.restart();
    let bob = server.register("bob").await;
    let joined = format!("/_matrix/client/v3/join/{}", encoded(ODD));
    assert_eq!(ok(bob.post(&joined, json!({})).await)["room_id"], room.0);
    sound(&[&server]);
}

#[tokio::test]
async fn what_can_not_be_a_name_or_is_taken_is_refused() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let (room, other) = (
        Room::new(&alice, "shared").await,
        Room::new(&bob, "shared").await,
    );
    for bad in [
        "#x:other.example",
        "#:localhost",
        "#a b:localhost",
        "#a\u{7}:localhost",
        "#a\u{0}:localhost",
        "x:localhost",
        "!x:localhost",
        "#x",
        &format!("#{}:localhost", "x".repeat(300)),
    ] {
        refused(put(&alice, bad, &room).await, 400, "M_INVALID_PARAM");
    }
    // Somebody else's room, and none.
    refused(put(&bob, "#x:localhost", &room).await, 403, "M_FORBIDDEN");
    let nowhere = Room("!nowhere:localhost".to_owned());
    refused(
        put(&bob, "#x:localhost", &nowhere).await,
        403,
        "M_FORBIDDEN",
    );
    ok(put(&alice, "#x:localhost", &room).await);
    refused(put(&bob, "#x:localhost", &other).await, 409, "M_UNKNOWN");
    refused(get(&bob, "#y:localhost").await, 404, "M_NOT_FOUND");
    refused(get(&bob, "#y:far.example").await, 502, "M_UNKNOWN");
    // The names of a room are for those who may read it.
    refused(room.get(&bob, "aliases").await, 403, "M_FORBIDDEN");
    refused(nowhere.get(&bob, "aliases").await, 403, "M_FORBIDDEN");
    room.does(&bob, "join").await;
    ok(room.get(&bob, "aliases").await);
    room.does(&bob, "leave").await;
    refused(room.get(&bob, "aliases").await, 403, "M_FORBIDDEN");
    let open = Room::new(&alice, "world_readable").await;
    ok(open.get(&bob, "aliases").await);
}

#[tokio::test]
async fn every_odd_character_is_a_part_of_a_name_or_refused() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let room = Room::new(&alice, "shared").await;
    let ascii = (0..=127_u8).map(char::from);
    let others = "äßЖ語🦀\u{200B}\u{200D}\u{202E}\u{FEFF}\u{FFFD}\u{E000}\u{85}\u{A0}\u{10FFFF}";
    let mut names = Vec::new();
    for odd in ascii.chain(others.chars()) {
        let alias = format!("#a{odd}b:localhost");
        let answer = put(&alice, &alias, &room).await;
        // Nobody can see what a name with these would be.
        let is_refused = odd.is_control() || odd.is_whitespace() || odd == ':';
        if is_refused {
            refused(answer, 400, "M_INVALID_PARAM");
            assert!(!get(&alice, &alias).await.0.is_success(), "{alias:?}");
            continue;
        }
        ok(answer);
        assert_eq!(
            ok(get(&alice, &alias).await)["room_id"],
            room.0,
            "{alias:?}"
        );
        ok(name(&alice, &room, json!({ "alias": alias })).await);
        names.push(alias);
    }
    names.sort();
    let listed = ok(room.get(&alice, "aliases").await);
    assert_eq!(listed["aliases"], json!(names));
    let server = server.restart();
    for alias in &names {
        ok(delete(&alice, alias).await);
        refused(get(&alice, alias).await, 404, "M_NOT_FOUND");
    }
    sound(&[&server]);
}

#[tokio::test]
async fn a_name_is_taken_away_by_those_who_may() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = Room::new(&alice, "shared").await;
    room.does(&bob, "join").await;
    for alias in ["#a:localhost", "#b:localhost", "#c:localhost"] {
        ok(put(&alice, alias, &room).await);
    }
    ok(put(&bob, "#bob:localhost", &room).await);
    refused(delete(&bob, "#a:localhost").await, 403, "M_FORBIDDEN");
    refused(delete(&bob, "#none:localhost").await, 404, "M_NOT_FOUND");
    refused(delete(&bob, "#a:far.example").await, 400, "M_INVALID_PARAM");
    let content = json!({
        "alias": "#a:localhost", "alt_aliases": ["#b:localhost", "#bob:localhost"], "x": 1,
    });
    ok(name(&alice, &room, content).await);
    let named = async || ok(room.get(&alice, "state/m.room.canonical_alias").await);
    // Its maker may, though the room goes on calling itself so.
    ok(delete(&bob, "#bob:localhost").await);
    assert_eq!(named().await["alt_aliases"][1], "#bob:localhost");
    ok(delete(&alice, "#a:localhost").await);
    assert_eq!(
        named().await,
        json!({ "alt_aliases": ["#b:localhost", "#bob:localhost"], "x": 1 })
    );
    refused(get(&alice, "#a:localhost").await, 404, "M_NOT_FOUND");
    ok(delete(&alice, "#b:localhost").await);
    // Who has left has no power, but what is theirs stays theirs.
    room.does(&alice, "leave").await;
    ok(delete(&alice, "#c:localhost").await);
    sound(&[&server]);
}

#[tokio::test]
async fn a_room_calls_itself_only_by_what_leads_to_it() {
    let lan = network();
    let (a, b) = (node(&lan, "a.example"), node(&lan, "b.example"));
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let (room, other) = (
        Room::new(&alice, "shared").await,
        Room::new(&alice, "shared").await,
    );
    ok(put(&alice, "#here:a.example", &room).await);
    ok(put(&alice, "#there:a.example", &other).await);
    ok(join(&bob, &room, &["a.example"]).await);
    ok(put(&bob, "#far:b.example", &room).await);
    for (content, errcode) in [
        (json!({ "alias": "#none:a.example" }), "M_BAD_ALIAS"),
        (json!({ "alias": "#there:a.example" }), "M_BAD_ALIAS"),
        (
            json!({ "alt_aliases": ["#there:a.example"] }),
            "M_BAD_ALIAS",
        ),
        (json!({ "alt_aliases": ["#none:b.example"] }), "M_BAD_ALIAS"),
        (json!({ "alias": "#far:c.example" }), "M_BAD_ALIAS"),
        (json!({ "alias": "%far" }), "M_INVALID_PARAM"),
        (json!({ "alt_aliases": ["far"] }), "M_INVALID_PARAM"),
        (
            json!({ "alt_aliases": "#here:a.example" }),
            "M_INVALID_PARAM",
        ),
        (json!({ "alt_aliases": [5] }), "M_INVALID_PARAM"),
    ] {
        refused(name(&alice, &room, content).await, 400, errcode);
    }
    let content = json!({ "alias": "#here:a.example", "alt_aliases": ["#far:b.example"] });
    ok(name(&alice, &room, content).await);
    // What the room calls itself already is not asked for again.
    lan.set_link(&named("a.example"), &named("b.example"), false);
    let content = json!({ "alias": "#far:b.example" });
    ok(name(&alice, &room, content).await);
    // Who is not in the room has nobody asked.
    let carol = a.register("carol").await;
    let content = json!({ "alias": "#what:b.example" });
    refused(name(&carol, &room, content).await, 403, "M_FORBIDDEN");
}

#[tokio::test]
async fn names_lead_across_servers() {
    let lan = network();
    let (a, b) = (node(&lan, "a.example"), node(&lan, "b.example"));
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let room = Room::new(&alice, "shared").await;
    let odd = ODD.replace("localhost", "a.example");
    ok(put(&alice, &odd, &room).await);
    let found = ok(get(&bob, &odd).await);
    assert_eq!(found["room_id"], room.0);
    assert_eq!(found["servers"][0], "a.example");
    let joined = format!("/_matrix/client/v3/join/{}", encoded(&odd));
    assert_eq!(ok(bob.post(&joined, json!({})).await)["room_id"], room.0);
    let found = ok(get(&bob, &odd).await);
    assert_eq!(found["servers"][1], "b.example", "{found}");
    refused(get(&bob, "#none:a.example").await, 404, "M_NOT_FOUND");
    sound(&[&a, &b]);
}

#[tokio::test]
async fn servers_are_told_only_of_our_own_names() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let room = Room::new(&alice, "shared").await;
    ok(put(&alice, "#x:localhost", &room).await);
    let other = Neighbour::new(&server.lan, "b.example", 1);
    let ask = async |alias: &str| {
        let path = "/_matrix/federation/v1/query/directory?room_alias=";
        other
            .get(&server, &format!("{path}{}", encoded(alias)))
            .await
    };
    assert_eq!(text(&ok(ask("#x:localhost").await), "room_id"), room.0);
    refused(ask("#y:localhost").await, 404, "M_NOT_FOUND");
    refused(ask("#x:b.example").await, 404, "M_NOT_FOUND");
    refused(ask("x").await, 400, "M_INVALID_PARAM");
    // One that answers nonsense.
    let path = "/_matrix/federation/v1/query/directory";
    other.answers(path, StatusCode::OK, "{\"room_id\":\"nowhere\"}");
    refused(get(&alice, "#y:b.example").await, 502, "M_UNKNOWN");
}
