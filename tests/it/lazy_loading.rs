//! "Lazy-loading room members".

use serde_json::{Value, json};

use crate::{
    room::Room,
    server::{TestServer, ok},
    stream::{Stream, events, members},
};

fn filter(more: &Value) -> Value {
    let mut state = json!({ "lazy_load_members": true });
    for (key, value) in more.as_object().into_iter().flatten() {
        state[key] = value.clone();
    }
    json!({ "room": { "state": state, "timeline": { "limit": 2 } } })
}

#[tokio::test]
async fn members_come_with_what_they_say() {
    let server = TestServer::new();
    let mut users = Vec::new();
    for name in ["alice", "bob", "carol", "dave"] {
        users.push(server.register(name).await);
    }
    let [alice, bob, carol, dave] = &users[..] else {
        panic!("there are four");
    };
    let room = Room::create(alice, json!({ "preset": "public_chat", "name": "Named" })).await;
    for who in [bob, carol, dave] {
        room.does(who, "join").await;
    }
    room.say(bob, "1").await;
    room.say(bob, "2").await;

    let mut stream = Stream::filtered(alice, &filter(&json!({})));
    let part = stream.joined(&room).await;
    // Those who speak, and oneself.
    assert_eq!(members(&part, "state"), [&*alice.user_id, &*bob.user_id]);
    assert_eq!(part["summary"]["m.joined_member_count"], 4);
    assert_eq!(
        part["summary"]["m.heroes"],
        Value::Null,
        "the room has a name"
    );
    let mut redundant = Stream::filtered(
        alice,
        &filter(&json!({ "include_redundant_members": true })),
    );
    redundant.since.clone_from(&stream.since);
    room.say(bob, "3").await;
    room.say(carol, "4").await;
    let part = stream.joined(&room).await;
    assert_eq!(members(&part, "state"), [&*carol.user_id], "bob is known");
    let part = redundant.joined(&room).await;
    assert_eq!(members(&part, "state"), [&*bob.user_id, &*carol.user_id]);
    // In a gap nobody is missed who matters, and who does not matter does not come.
    for number in 5..10 {
        room.say(alice, &number.to_string()).await;
    }
    let name = json!({ "membership": "join", "displayname": "D" });
    let path = format!("state/m.room.member/{}", dave.user_id);
    ok(room.put(dave, &path, name).await);
    room.say(alice, "10").await;
    room.say(alice, "11").await;
    let part = stream.joined(&room).await;
    assert_eq!(part["timeline"]["limited"], true);
    assert_eq!(
        members(&part, "state"),
        [&*dave.user_id],
        "a change is told"
    );
    room.say(dave, "12").await;
    let part = stream.joined(&room).await;
    assert_eq!(events(&part, "state").len(), 0);
}

#[tokio::test]
async fn heroes_come_with_the_room() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = Room::create(&alice, json!({ "invite": [bob.user_id] })).await;
    room.say(&alice, "1").await;
    room.say(&alice, "2").await;
    let part = Stream::filtered(&alice, &filter(&json!({})))
        .joined(&room)
        .await;
    assert_eq!(part["summary"]["m.heroes"], json!([bob.user_id]));
    assert_eq!(members(&part, "state"), [&*alice.user_id, &*bob.user_id]);
}

#[tokio::test]
async fn who_joins_is_told_who_is_there_to_speak() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let carol = server.register("carol").await;
    let room = Room::create(&alice, json!({ "preset": "public_chat", "name": "Named" })).await;
    room.does(&carol, "join").await;
    let mut stream = Stream::filtered(&bob, &filter(&json!({})));
    stream.next().await;
    room.say(&alice, "hello").await;
    room.does(&bob, "join").await;
    let part = stream.joined(&room).await;
    let mut known = members(&part, "state");
    known.extend(members(&part, "timeline"));
    known.sort();
    assert_eq!(known, [&*alice.user_id, &*bob.user_id]);
    assert!(
        events(&part, "state")
            .iter()
            .any(|event| event["type"] == "m.room.create")
    );
}

#[tokio::test]
async fn an_answer_that_was_lost_is_given_again() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = Room::create(&alice, json!({ "preset": "public_chat", "name": "Named" })).await;
    room.does(&bob, "join").await;
    room.say(&alice, "1").await;
    room.say(&alice, "2").await;
    let mut stream = Stream::filtered(&alice, &filter(&json!({})));
    stream.next().await;
    let since = stream.since.clone();
    room.say(&bob, "3").await;
    for _ in 0..2 {
        stream.since.clone_from(&since);
        let part = stream.joined(&room).await;
        assert_eq!(members(&part, "state"), [&*bob.user_id]);
    }
    room.say(&bob, "4").await;
    let part = stream.joined(&room).await;
    assert_eq!(events(&part, "state").len(), 0);
}
