//! "Filtering", as `/sync` obeys it.

use serde_json::{Value, json};

use crate::{
    room::{Room, ids},
    server::{TestServer, ok, text},
    stream::{Stream, bodies, events, types},
};

#[tokio::test]
async fn rooms_are_chosen() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let (one, two) = (
        Room::new(&alice, "shared").await,
        Room::new(&alice, "shared").await,
    );
    for (filter, expect) in [
        (json!({ "rooms": [one.0] }), vec![&one]),
        (json!({ "not_rooms": [one.0] }), vec![&two]),
        (json!({ "rooms": [one.0], "not_rooms": [one.0] }), vec![]),
        (json!({ "rooms": [] }), vec![]),
        (json!({}), vec![&one, &two]),
    ] {
        let mut stream = Stream::filtered(&alice, &json!({ "room": filter }));
        for _ in 0..2 {
            let answer = stream.next().await;
            let joined = answer["rooms"]["join"].as_object();
            let mut told: Vec<_> = joined
                .into_iter()
                .flatten()
                .map(|(id, _)| id.clone())
                .collect();
            let mut expect: Vec<_> = expect.iter().map(|room| room.0.clone()).collect();
            told.sort();
            expect.sort();
            assert_eq!(told, expect, "{filter}");
            for room in [&one, &two] {
                room.say(&alice, "more").await;
            }
        }
    }
    // Also only in one section.
    let filter = json!({ "room": { "timeline": { "not_rooms": [one.0] } } });
    let answer = Stream::filtered(&alice, &filter).next().await;
    let of = |room: &Room| answer["rooms"]["join"][&room.0].clone();
    assert_eq!(events(&of(&one), "timeline").len(), 0);
    assert_ne!(events(&of(&two), "timeline").len(), 0);
    assert_ne!(
        events(&of(&one), "state").len(),
        0,
        "the state is told all the same"
    );
}

#[tokio::test]
async fn events_are_chosen() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = Room::new(&alice, "shared").await;
    room.does(&bob, "join").await;
    let begin = Stream::begun(&alice).await.since;
    room.say(&alice, "hers").await;
    let url = json!({ "body": "file", "url": "mxc://localhost/a" });
    room.send(&bob, "m.room.message", url).await;
    room.send(&bob, "org.example.a", json!({ "body": "other" }))
        .await;
    for (filter, expect) in [
        (json!({ "types": ["m.room.*"] }), vec!["hers", "file"]),
        (json!({ "not_types": ["org.*"] }), vec!["hers", "file"]),
        (
            json!({ "types": ["*"], "not_types": ["m.*"] }),
            vec!["other"],
        ),
        (json!({ "types": [] }), vec![]),
        (json!({ "senders": [alice.user_id] }), vec!["hers"]),
        (
            json!({ "not_senders": [alice.user_id] }),
            vec!["file", "other"],
        ),
        (json!({ "contains_url": true }), vec!["file"]),
        (json!({ "contains_url": false }), vec!["hers", "other"]),
    ] {
        let mut stream = Stream::filtered(&alice, &json!({ "room": { "timeline": filter } }));
        stream.since.clone_from(&begin);
        let answer = stream.next().await;
        let part = &answer["rooms"]["join"][&room.0];
        let told = match part {
            Value::Null => Vec::new(),
            part => bodies(part, "timeline"),
        };
        assert_eq!(told, expect, "{filter}");
        assert_ne!(
            part["timeline"]["limited"], true,
            "nothing wanted is missing: {filter}"
        );
    }
}

#[tokio::test]
async fn what_is_filtered_out_makes_no_gap() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let room = Room::new(&alice, "shared").await;
    let timeline = json!({ "types": ["m.room.message"], "limit": 2 });
    let mut stream = Stream::filtered(&alice, &json!({ "room": { "timeline": timeline } }));
    stream.next().await;
    for kind in [
        "org.example.a",
        "m.room.message",
        "org.example.a",
        "m.room.message",
    ] {
        room.send(&alice, kind, json!({ "body": kind })).await;
    }
    let part = stream.joined(&room).await;
    assert_eq!(
        types(&part, "timeline"),
        ["m.room.message", "m.room.message"]
    );
    assert_eq!(part["timeline"]["limited"], false);
    for kind in [
        "m.room.message",
        "org.example.a",
        "m.room.message",
        "m.room.message",
    ] {
        room.send(&alice, kind, json!({ "body": kind })).await;
    }
    let part = stream.joined(&room).await;
    assert_eq!(types(&part, "timeline").len(), 2);
    assert_eq!(part["timeline"]["limited"], true);
    // What was kept out of the timeline and is state must come as state.
    let topic = room
        .set(&alice, "m.room.topic", json!({ "topic": "a" }))
        .await;
    let part = stream.joined(&room).await;
    assert_eq!(ids(&part["state"]["events"]), [topic]);
    assert_eq!(events(&part, "timeline").len(), 0);
}

#[tokio::test]
async fn the_beginning_of_a_room_is_no_gap() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let room = Room::new(&alice, "shared").await;
    room.say(&alice, "one").await;
    room.say(&alice, "two").await;
    let timeline = json!({ "types": ["m.room.message"], "limit": 2 });
    let mut stream = Stream::filtered(&alice, &json!({ "room": { "timeline": timeline } }));
    let part = stream.joined(&room).await;
    assert_eq!(bodies(&part, "timeline"), ["one", "two"]);
    assert_eq!(part["timeline"]["limited"], false);
}

#[tokio::test]
async fn each_section_has_its_own() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = Room::new(&alice, "shared").await;
    room.does(&bob, "join").await;
    let filter = json!({
        "presence": { "not_types": ["*"] },
        "account_data": { "types": ["org.example.a"] },
        "room": {
            "state": { "types": ["m.room.create"] },
            "timeline": { "limit": 1 },
            "ephemeral": { "types": [] },
            "account_data": { "not_types": ["org.example.*"] },
        },
    });
    let user = format!("/_matrix/client/v3/user/{}", alice.user_id);
    for data in ["org.example.a", "org.example.b"] {
        ok(alice
            .put(&format!("{user}/account_data/{data}"), json!({ "a": 1 }))
            .await);
        let path = format!("{user}/rooms/{}/account_data/{data}", room.0);
        ok(alice.put(&path, json!({ "a": 1 })).await);
    }
    ok(alice
        .put(
            &room.path(&format!("typing/{}", alice.user_id)),
            json!({ "typing": true, "timeout": 9999 }),
        )
        .await);
    let stored = ok(alice.post(&format!("{user}/filter"), filter.clone()).await);
    let mut by_id = Stream::new(&alice);
    by_id.also(&format!("filter={}", text(&stored, "filter_id")));
    for stream in [&mut by_id, &mut Stream::filtered(&alice, &filter)] {
        let answer = stream.next().await;
        assert_eq!(types(&answer, "account_data"), ["org.example.a"]);
        assert_eq!(answer["presence"], Value::Null);
        let part = &answer["rooms"]["join"][&room.0];
        assert_eq!(types(part, "state"), ["m.room.create"]);
        assert_eq!(events(part, "timeline").len(), 1);
        assert_eq!(events(part, "ephemeral").len(), 0);
        assert_eq!(events(part, "account_data").len(), 0);
    }
}

#[tokio::test]
async fn fields_are_chosen() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let room = Room::new(&alice, "shared").await;
    let filter = json!({
        "event_fields": ["type", "content.body", "content.dotted\\.name", "unsigned.none"],
        "room": { "timeline": { "limit": 1 } },
    });
    let mut stream = Stream::filtered(&alice, &filter);
    let message = json!({ "body": "text", "msgtype": "m.text", "dotted.name": 1 });
    room.send(&alice, "m.room.message", message).await;
    let part = stream.joined(&room).await;
    assert_eq!(
        events(&part, "timeline")[0],
        json!({ "type": "m.room.message", "content": { "body": "text", "dotted.name": 1 } })
    );
    let state = events(&part, "state");
    assert!(state.iter().all(|event| event["sender"].is_null()));
}
