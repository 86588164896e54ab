//! "Syncing".

use serde_json::{Value, json};

use crate::{
    room::{Room, ids},
    server::{TestServer, ok, refused, text},
    stream::{Stream, bodies, events, members, types},
};

#[tokio::test]
async fn the_first_answer_tells_all_and_the_next_what_is_new() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = Room::new(&alice, "shared").await;
    room.does(&bob, "join").await;
    for number in 0..12 {
        room.say(&alice, &number.to_string()).await;
    }
    let mut stream = Stream::new(&bob);
    let first = stream.joined(&room).await;
    assert_eq!(events(&first, "timeline").len(), 10, "the usual limit");
    assert_eq!(first["timeline"]["limited"], true);
    let state = types(&first, "state");
    for kind in ["m.room.create", "m.room.power_levels", "m.room.join_rules"] {
        assert!(state.contains(&kind.to_owned()), "{kind}: {state:?}");
    }
    assert_eq!(members(&first, "state"), [&*alice.user_id, &*bob.user_id]);
    assert_eq!(stream.next().await["rooms"], Value::Null);

    room.set(&alice, "m.room.topic", json!({ "topic": "a" }))
        .await;
    room.say(&alice, "news").await;
    let part = stream.joined(&room).await;
    assert_eq!(types(&part, "timeline"), ["m.room.topic", "m.room.message"]);
    assert_eq!(part["timeline"]["limited"], false);
    assert_eq!(events(&part, "state").len(), 0, "the timeline tells it");
    assert!(text(&part["timeline"], "prev_batch").starts_with(|c: char| c.is_ascii_alphabetic()));
    let told = &events(&part, "timeline")[1];
    assert_eq!(told["room_id"], Value::Null, "it is said once, outside");
    assert_eq!(told["sender"], alice.user_id);
    assert!(told["origin_server_ts"].is_u64() && told["unsigned"]["age"].is_i64());
}

#[tokio::test]
async fn a_gap_is_filled_exactly() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = Room::new(&alice, "shared").await;
    room.does(&bob, "join").await;
    let filter = json!({ "room": { "timeline": { "limit": 3 } } });
    let mut stream = Stream::filtered(&bob, &filter);
    stream.next().await;
    let since = stream.since.clone().expect("a token");
    let mut said = Vec::new();
    for number in 0..8 {
        said.push(room.say(&alice, &number.to_string()).await);
    }
    let topic = json!({ "topic": "in the gap" });
    let topic = room.set(&alice, "m.room.topic", topic).await;
    said.push(topic.clone());
    for number in 8..11 {
        said.push(room.say(&alice, &number.to_string()).await);
    }
    let part = stream.joined(&room).await;
    assert_eq!(part["timeline"]["limited"], true);
    assert_eq!(bodies(&part, "timeline"), ["8", "9", "10"]);
    assert_eq!(
        ids(&part["state"]["events"]),
        [topic],
        "what changed in the gap"
    );
    let prev = text(&part["timeline"], "prev_batch");
    let path = format!("messages?dir=b&from={prev}&to={since}&limit=100");
    let page = ok(room.get(&bob, &path).await);
    let mut all = ids(&page["chunk"]);
    all.reverse();
    all.extend(ids(&part["timeline"]["events"]));
    assert_eq!(all, said);
    // As many as there are is no gap.
    for number in 11..14 {
        room.say(&alice, &number.to_string()).await;
    }
    let part = stream.joined(&room).await;
    assert_eq!(part["timeline"]["limited"], false);
    assert_eq!(bodies(&part, "timeline"), ["11", "12", "13"]);
}

#[tokio::test]
async fn a_timeline_without_events_has_a_place_too() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = Room::new(&alice, "shared").await;
    room.does(&bob, "join").await;
    let said = room.say(&alice, "hello").await;
    let filter = json!({ "room": { "timeline": { "limit": 0 } } });
    let part = Stream::filtered(&bob, &filter).joined(&room).await;
    assert_eq!(events(&part, "timeline").len(), 0);
    let prev = text(&part["timeline"], "prev_batch");
    let page = ok(room
        .get(&bob, &format!("messages?dir=b&limit=1&from={prev}"))
        .await);
    assert_eq!(ids(&page["chunk"]), [&*said]);
    assert_eq!(members(&part, "state"), [&*alice.user_id, &*bob.user_id]);
    let mut stream = Stream::filtered(&bob, &filter);
    stream.next().await;
    let said = room.say(&alice, "more").await;
    let part = stream.joined(&room).await;
    assert_eq!(part["timeline"]["limited"], true);
    let prev = text(&part["timeline"], "prev_batch");
    let page = ok(room
        .get(&bob, &format!("messages?dir=b&limit=1&from={prev}"))
        .await);
    assert_eq!(ids(&page["chunk"]), [&*said]);

    let mut stream = Stream::begun(&bob).await;
    let path = room
        .path("typing/")
        .replace("typing/", &format!("typing/{}", alice.user_id));
    ok(alice
        .put(&path, json!({ "typing": true, "timeout": 10_000 }))
        .await);
    let part = stream.joined(&room).await;
    assert_eq!(types(&part, "ephemeral"), ["m.typing"]);
    assert_eq!(part["timeline"]["limited"], false);
    let prev = text(&part["timeline"], "prev_batch");
    let page = ok(room
        .get(&bob, &format!("messages?dir=b&limit=1&from={prev}"))
        .await);
    assert_eq!(ids(&page["chunk"]), [&*said]);
}

#[tokio::test]
async fn only_the_sending_device_knows_its_transaction() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let (phone, bob) = (server.log_in("alice").await, server.register("bob").await);
    let room = Room::new(&alice, "shared").await;
    room.does(&bob, "join").await;
    let mut streams = Vec::new();
    for who in [&alice, &phone, &bob] {
        streams.push(Stream::begun(who).await);
    }
    ok(room
        .put(&alice, "send/m.room.message/mine", json!({ "body": "a" }))
        .await);
    let mut told = Vec::new();
    for stream in &mut streams {
        let part = stream.joined(&room).await;
        told.push(events(&part, "timeline")[0]["unsigned"]["transaction_id"].clone());
    }
    assert_eq!(told, [json!("mine"), Value::Null, Value::Null]);
}

#[tokio::test]
async fn state_tells_what_it_replaces() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let room = Room::new(&alice, "shared").await;
    let mut stream = Stream::begun(&alice).await;
    let first = room
        .set(&alice, "m.room.topic", json!({ "topic": "a" }))
        .await;
    room.set(&alice, "m.room.topic", json!({ "topic": "b" }))
        .await;
    let part = stream.joined(&room).await;
    let told = events(&part, "timeline");
    assert_eq!(told[0]["unsigned"]["replaces_state"], Value::Null);
    assert_eq!(told[0]["unsigned"]["prev_content"], Value::Null);
    assert_eq!(told[1]["unsigned"]["replaces_state"], first);
    assert_eq!(told[1]["unsigned"]["prev_content"], json!({ "topic": "a" }));
    assert_eq!(told[1]["unsigned"]["prev_sender"], alice.user_id);
}

#[tokio::test]
async fn state_after_the_timeline() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let room = Room::new(&alice, "shared").await;
    for (parameter, name) in [
        ("use_state_after=true", "state_after"),
        (
            "org.matrix.msc4222.use_state_after=true",
            "org.matrix.msc4222.state_after",
        ),
    ] {
        let mut stream = Stream::new(&alice);
        stream.also(parameter);
        let part = stream.joined(&room).await;
        assert_eq!(part["state"], Value::Null);
        assert!(types(&part, name).contains(&"m.room.create".to_owned()));
        let topic = room
            .set(&alice, "m.room.topic", json!({ "topic": parameter }))
            .await;
        let part = stream.joined(&room).await;
        assert_eq!(ids(&part[name]["events"]), [&*topic]);
        assert_eq!(ids(&part["timeline"]["events"]), [&*topic]);
        room.say(&alice, "hello").await;
        let part = stream.joined(&room).await;
        assert_eq!(events(&part, name).len(), 0);
    }
}

/// By its own membership an app sees that the invite it has accepted was to a direct chat.
#[tokio::test]
async fn an_accepted_invite_says_that_it_was_direct() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let body = json!({ "is_direct": true, "invite": [bob.user_id] });
    let room = Room::create(&alice, body).await;
    let filter = json!({ "room": { "state": { "lazy_load_members": true } } });
    let mut stream = Stream::filtered(&bob, &filter);
    stream.also("use_state_after=true");
    stream.next().await;
    room.does(&bob, "join").await;
    let part = stream.joined(&room).await;
    let members: Vec<_> = events(&part, "state_after")
        .iter()
        .filter(|event| event["type"] == "m.room.member")
        .cloned()
        .collect();
    let own = members.iter().find(|e| e["state_key"] == bob.user_id);
    let told = &own.expect("one's own membership")["unsigned"];
    assert_eq!(told["prev_content"]["membership"], "invite");
    assert_eq!(told["prev_content"]["is_direct"], true);
    assert_eq!(told["prev_sender"], alice.user_id);
    // What became of others is told by the timeline.
    for other in members.iter().filter(|e| e["state_key"] != bob.user_id) {
        assert_eq!(other["unsigned"]["prev_content"], Value::Null, "{other}");
    }
}

#[tokio::test]
async fn full_state_tells_it_all_again() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = Room::new(&alice, "shared").await;
    let invited = Room::create(&bob, json!({ "invite": [alice.user_id] })).await;
    let mut stream = Stream::begun(&alice).await;
    stream.also("full_state=true");
    for _ in 0..2 {
        let answer = stream.next().await;
        let part = &answer["rooms"]["join"][&room.0];
        assert_eq!(events(part, "timeline").len(), 0);
        assert!(types(part, "state").contains(&"m.room.create".to_owned()));
        assert!(answer["rooms"]["invite"][&invited.0].is_object());
    }
}

#[tokio::test]
async fn tokens_are_checked() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let room = Room::new(&alice, "shared").await;
    let messages = ok(room.get(&alice, "messages?dir=b").await);
    for since in [
        "x",
        "s",
        "s1x",
        "s-1",
        &text(&messages, "start"),
        "s99999999999999999999999",
    ] {
        let path = format!("/_matrix/client/v3/sync?since={since}");
        refused(alice.get(&path).await, 400, "M_INVALID_PARAM");
    }
    // A token from a time that has not come begins anew.
    let future = "s9999999999";
    let again = ok(alice
        .get(&format!(
            "/_matrix/client/v3/sync?since={future}&timeout=30000"
        ))
        .await);
    assert!(again["rooms"]["join"][&room.0].is_object());
    for query in [
        "timeout=-1",
        "timeout=x",
        "full_state=maybe",
        "filter=7",
        "filter=%7B",
        "filter=%7B%22room%22:5%7D",
    ] {
        let (status, body) = alice.get(&format!("/_matrix/client/v3/sync?{query}")).await;
        assert_eq!(status, 400, "{query}: {body}");
    }
    refused(
        server.anonymous().get("/_matrix/client/v3/sync").await,
        401,
        "M_MISSING_TOKEN",
    );
}

#[tokio::test]
async fn what_is_always_told() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let mut stream = Stream::new(&alice);
    for _ in 0..2 {
        let answer = stream.next().await;
        assert!(answer["device_one_time_keys_count"].is_object(), "{answer}");
        assert!(answer["device_unused_fallback_key_types"].is_array());
    }
}

#[tokio::test]
async fn account_data_comes_along() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let room = Room::new(&alice, "shared").await;
    let mut stream = Stream::new(&alice);
    let first = stream.next().await;
    assert!(
        types(&first, "account_data").contains(&"m.push_rules".to_owned()),
        "{first}"
    );
    let user = format!("/_matrix/client/v3/user/{}", alice.user_id);
    ok(alice
        .put(
            &format!("{user}/account_data/org.example.a"),
            json!({ "a": 1 }),
        )
        .await);
    ok(alice
        .put(
            &format!("{user}/rooms/{}/account_data/org.example.b", room.0),
            json!({ "b": 1 }),
        )
        .await);
    let answer = stream.next().await;
    assert_eq!(types(&answer, "account_data"), ["org.example.a"]);
    let part = &answer["rooms"]["join"][&room.0];
    assert_eq!(types(part, "account_data"), ["org.example.b"]);
}

#[tokio::test]
async fn a_summary_names_the_nameless() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let carol = server.register("carol").await;
    let wish = json!({ "preset": "public_chat", "invite": [carol.user_id] });
    let room = Room::create(&alice, wish).await;
    let mut stream = Stream::begun(&alice).await;
    room.does(&bob, "join").await;
    let summary = stream.joined(&room).await["summary"].clone();
    assert_eq!(
        summary,
        json!({
            "m.heroes": [bob.user_id, carol.user_id],
            "m.joined_member_count": 2,
            "m.invited_member_count": 1,
        })
    );
    room.say(&alice, "nothing new").await;
    assert_eq!(stream.joined(&room).await["summary"], Value::Null);
    room.set(&alice, "m.room.name", json!({ "name": "Name" }))
        .await;
    room.does(&carol, "join").await;
    let summary = stream.joined(&room).await["summary"].clone();
    assert_eq!(
        summary,
        json!({ "m.joined_member_count": 3, "m.invited_member_count": 0 })
    );
    // Without its name the room is called by its members again.
    room.set(&alice, "m.room.name", json!({})).await;
    let summary = stream.joined(&room).await["summary"].clone();
    assert_eq!(summary["m.heroes"], json!([bob.user_id, carol.user_id]));
}
