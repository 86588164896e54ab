//! State that belongs to a user, in room versions that have it: MSC3757.

use serde_json::{Value, json};

use crate::{
    elsewhere::until,
    joining::join,
    room::{Room, encoded},
    server::{Answer, Client, TestServer, ok, refused},
    several::{network, node, sound},
};

const KIND: &str = "org.example.location";

/// What follows a user's id, with all that could be taken for the end of one.
const REST: &str = "_key_rest:!@#$123";

async fn room(creator: &Client, version: &str) -> Room {
    let body = json!({
        "room_version": version, "preset": "public_chat",
        "power_level_content_override": { "events": { KIND: 0 } },
    });
    Room::create(creator, body).await
}

async fn set(who: &Client, room: &Room, key: &str, content: Value) -> Answer {
    let path = format!("state/{KIND}/{}", encoded(key));
    room.put(who, &path, content).await
}

#[tokio::test]
async fn a_user_has_state_of_their_own() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let (bob, carol) = (server.register("bob").await, server.register("carol").await);
    let (bobs, carols) = (&*bob.user_id, &*carol.user_id);
    for version in ["org.matrix.msc3757.10", "org.matrix.msc3757.11"] {
        let room = room(&alice, version).await;
        room.does(&bob, "join").await;
        room.does(&carol, "join").await;
        for (who, key) in [
            (&bob, bobs.to_owned()),
            (&bob, format!("{bobs}{REST}")),
            (&bob, format!("{bobs}_")),
            // Whoever has more power.
            (&alice, bobs.to_owned()),
            (&alice, format!("{bobs}{REST}")),
            (&alice, "@nobody:far.example_x".to_owned()),
            // Nobody's.
            (&bob, "x@".to_owned()),
        ] {
            let content = json!({ "by": who.user_id });
            ok(set(who, &room, &key, content.clone()).await);
            let path = format!("state/{KIND}/{}", encoded(&key));
            assert_eq!(ok(room.get(&carol, &path).await), content, "{key}");
        }
        for key in [
            carols.to_owned(),
            format!("{carols}{REST}"),
            format!("{bobs}{}", &REST[1..]),
            format!("@prefix_{bobs}{REST}"),
            alice.user_id.clone(),
        ] {
            let answer = set(&bob, &room, &key, json!({})).await;
            refused(answer, 403, "M_FORBIDDEN");
        }
        for key in ["@", "@oops", "@oops_x", &format!("{bobs}@{REST}")] {
            let answer = set(&alice, &room, key, json!({})).await;
            refused(answer, 400, "M_BAD_JSON");
        }
        // Memberships are what they always were.
        let path = format!("state/m.room.member/{carols}");
        let answer = room
            .put(&bob, &path, json!({ "membership": "leave" }))
            .await;
        refused(answer, 403, "M_FORBIDDEN");
        room.does_to(&alice, "ban", &carol).await;
        room.does_to(&alice, "unban", &carol).await;
    }
    let room = room(&alice, "11").await;
    room.does(&bob, "join").await;
    ok(set(&bob, &room, bobs, json!({})).await);
    for (who, key) in [
        (&bob, format!("{bobs}{REST}")),
        (&alice, bobs.to_owned()),
        (&alice, "@oops".to_owned()),
    ] {
        let answer = set(who, &room, &key, json!({})).await;
        refused(answer, 403, "M_FORBIDDEN");
    }
    sound(&[&server]);
}

#[tokio::test]
async fn other_servers_hold_to_it() {
    let lan = network();
    let (a, b) = (node(&lan, "a.example"), node(&lan, "b.example"));
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let room = room(&alice, "org.matrix.msc3757.11").await;
    ok(join(&bob, &room, &["a.example"]).await);
    let key = format!("{}_x", bob.user_id);
    ok(set(&bob, &room, &key, json!({ "n": 1 })).await);
    let path = format!("state/{KIND}/{}", encoded(&key));
    let says = async |who: &Client, n: u64| room.get(who, &path).await.1["n"] == n;
    until(async || says(&alice, 1).await).await;
    ok(set(&alice, &room, &key, json!({ "n": 2 })).await);
    until(async || says(&bob, 2).await).await;
    // What a and b do at once is the same for both in the end.
    let three = json!({ "n": 3 });
    let four = json!({ "n": 4 });
    let (bobs, alices) = tokio::join!(
        set(&bob, &room, &key, three),
        set(&alice, &room, &key, four)
    );
    ok(bobs);
    ok(alices);
    room.say(&alice, "a").await;
    room.say(&bob, "b").await;
    until(async || {
        let (one, other) = (room.get(&alice, &path).await, room.get(&bob, &path).await);
        one.1["n"].as_u64() > Some(2) && one == other
    })
    .await;
    sound(&[&a, &b]);
}
