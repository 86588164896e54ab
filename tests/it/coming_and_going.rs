//! "Syncing" of rooms that one is invited to, knocks at, leaves and comes back to.

use serde_json::{Value, json};

use crate::{
    room::Room,
    server::{TestServer, ok, refused, text},
    stream::{Stream, events, members, types},
};

/// One's own membership comes last, with its id and time: apps say when one was invited, and sort by it. Of the rest
/// only the create event has both.
fn told_when(room: &Value, name: &str) {
    let events = events(room, name);
    let (own, others) = events.split_last().expect("events");
    assert_eq!(own["type"], "m.room.member");
    assert!(text(own, "event_id").starts_with('$'), "{own}");
    assert!(own["origin_server_ts"].is_u64(), "{own}");
    for event in others {
        let is_create = event["type"] == "m.room.create";
        assert_eq!(event["origin_server_ts"].is_u64(), is_create, "{event}");
        assert_eq!(event["event_id"].is_string(), is_create, "{event}");
    }
}

#[tokio::test]
async fn an_invite_shows_little() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let carol = server.register("carol").await;
    let mut stream = Stream::begun(&bob).await;
    let wish = json!({
        "name": "Name", "topic": "Topic", "room_alias_name": "alias",
        "initial_state": [
            { "type": "m.room.avatar", "content": { "url": "mxc://localhost/a" } },
            { "type": "org.example.secret", "content": { "secret": 1 } },
        ],
        "invite": [carol.user_id, bob.user_id],
    });
    let room = Room::create(&alice, wish).await;
    let answer = stream.next().await;
    let invite = &answer["rooms"]["invite"][&room.0];
    let state = types(invite, "invite_state");
    for kind in [
        "m.room.create",
        "m.room.name",
        "m.room.topic",
        "m.room.avatar",
        "m.room.canonical_alias",
        "m.room.join_rules",
    ] {
        assert!(state.contains(&kind.to_owned()), "{kind}: {state:?}");
    }
    assert!(!answer.to_string().contains("secret"));
    assert_eq!(
        members(invite, "invite_state"),
        [&*alice.user_id, &*bob.user_id]
    );
    for event in events(invite, "invite_state") {
        let mut names: Vec<_> = event.as_object().expect("an event").keys().collect();
        names.sort();
        names.retain(|name| *name != "origin_server_ts" && *name != "event_id");
        assert_eq!(names, ["content", "sender", "state_key", "type"]);
    }
    told_when(invite, "invite_state");
    assert_eq!(answer["rooms"]["join"], Value::Null);
    assert_eq!(stream.next().await["rooms"], Value::Null, "told once");
    let again = Stream::new(&bob).next().await;
    assert!(again["rooms"]["invite"][&room.0].is_object());
    refused(room.get(&bob, "messages?dir=b").await, 403, "M_FORBIDDEN");

    // Declined, it is gone; and what else is in the room stays unknown.
    room.does(&bob, "leave").await;
    let left = stream.left(&room).await;
    assert_eq!(types(&left, "timeline"), ["m.room.member"]);
    assert_eq!(events(&left, "state").len(), 0, "{left}");
    assert_eq!(Stream::new(&bob).next().await["rooms"], Value::Null);
}

#[tokio::test]
async fn who_was_never_in_the_room_learns_nothing_by_leaving_it() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let wish = json!({
        "room_version": "11",
        "name": "Name",
        "topic": "secret",
        "initial_state": [{ "type": "m.room.join_rules", "content": { "join_rule": "knock" } }],
    });
    let room = Room::create(&alice, wish).await;
    let knock = format!("/_matrix/client/v3/knock/{}", room.0);
    for (parameter, state) in [("a=b", "state"), ("use_state_after=true", "state_after")] {
        for denied in [false, true] {
            let mut stream = Stream::begun(&bob).await;
            stream.also(parameter);
            ok(bob.post(&knock, json!({})).await);
            let answer = stream.next().await;
            let knocked = &answer["rooms"]["knock"][&room.0];
            assert_eq!(members(knocked, "knock_state"), [&*bob.user_id]);
            told_when(knocked, "knock_state");
            room.say(&alice, "secret").await;
            if denied {
                room.does_to(&alice, "ban", &bob).await;
            } else {
                room.does(&bob, "leave").await;
            }
            let left = stream.left(&room).await;
            assert_eq!(types(&left, "timeline"), ["m.room.member"]);
            // Who takes state from this section alone finds their own there too, and nobody else's.
            let own: &[&str] = if state == "state_after" {
                &[&bob.user_id]
            } else {
                &[]
            };
            assert_eq!(events(&left, state).len(), own.len(), "{left}");
            assert_eq!(members(&left, state), own);
            assert!(!left.to_string().contains("secret"), "{left}");
            if denied {
                room.does_to(&alice, "unban", &bob).await;
            }
            let prev = text(&left["timeline"], "prev_batch");
            let path = format!("messages?dir=b&from={prev}");
            refused(room.get(&bob, &path).await, 403, "M_FORBIDDEN");
        }
    }
    let mut stream = Stream::filtered(&bob, &json!({ "room": { "include_leave": true } }));
    let left = stream.left(&room).await;
    assert!(!left.to_string().contains("secret"), "{left}");
}

#[tokio::test]
async fn leaving_is_the_last_that_one_hears() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    for what in ["leave", "kick", "ban"] {
        let room = Room::new(&alice, "shared").await;
        room.does(&bob, "join").await;
        let mut stream = Stream::begun(&bob).await;
        room.say(&alice, "before").await;
        room.set(&alice, "m.room.topic", json!({ "topic": "before" }))
            .await;
        match what {
            "leave" => room.does(&bob, what).await,
            _ => room.does_to(&alice, what, &bob).await,
        }
        room.say(&alice, "after").await;
        room.set(&alice, "m.room.topic", json!({ "topic": "after" }))
            .await;
        let answer = stream.next().await;
        assert_eq!(answer["rooms"]["join"], Value::Null);
        let left = &answer["rooms"]["leave"][&room.0];
        assert_eq!(
            types(left, "timeline"),
            ["m.room.message", "m.room.topic", "m.room.member"]
        );
        assert!(!left.to_string().contains("\"after\""), "{what}: {left}");
        assert_eq!(stream.next().await["rooms"], Value::Null, "told once");
        assert_eq!(
            Stream::new(&bob).next().await["rooms"]["leave"],
            Value::Null
        );
        let filter = json!({ "room": { "include_leave": true, "timeline": { "limit": 1 } } });
        for parameter in ["a=b", "use_state_after=true"] {
            let mut archive = Stream::filtered(&bob, &filter);
            archive.also(parameter);
            let left = archive.left(&room).await;
            assert_eq!(types(&left, "timeline"), ["m.room.member"]);
            assert!(left.to_string().contains("before"), "{what}: {left}");
            assert!(!left.to_string().contains("\"after\""), "{what}: {left}");
        }
        room.does_to(&alice, if what == "ban" { "unban" } else { "invite" }, &bob)
            .await;
        // Declining later does not show what has changed since.
        if what != "ban" {
            room.does(&bob, "leave").await;
            for parameter in ["a=b", "use_state_after=true", "full_state=true"] {
                let mut again = Stream::filtered(&bob, &filter);
                again.also(parameter);
                let left = again.left(&room).await;
                assert!(
                    !left.to_string().contains("\"after\""),
                    "{parameter}: {left}"
                );
            }
            let left = stream.left(&room).await;
            assert!(!left.to_string().contains("\"after\""), "{left}");
        }
    }
}

#[tokio::test]
async fn who_comes_back_is_told_the_room_anew() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = Room::new(&alice, "shared").await;
    room.does(&bob, "join").await;
    let mut stream = Stream::begun(&bob).await;
    let data = format!(
        "/_matrix/client/v3/user/{}/rooms/{}/account_data/a",
        bob.user_id, room.0
    );
    ok(bob.put(&data, json!({ "b": 1 })).await);
    room.does(&bob, "leave").await;
    stream.next().await;
    room.set(&alice, "m.room.topic", json!({ "topic": "new" }))
        .await;
    for number in 0..20 {
        room.say(&alice, &number.to_string()).await;
    }
    room.does(&bob, "join").await;
    let part = stream.joined(&room).await;
    assert_eq!(events(&part, "timeline").len(), 10);
    assert_eq!(part["timeline"]["limited"], true);
    assert!(types(&part, "state").contains(&"m.room.topic".to_owned()));
    assert_eq!(types(&part, "account_data"), ["a"]);
    // Out and in again between two syncs.
    room.does(&bob, "leave").await;
    room.does(&bob, "join").await;
    let answer = stream.next().await;
    assert!(answer["rooms"]["join"][&room.0].is_object());
    assert_eq!(answer["rooms"]["leave"], Value::Null);
    // In and out again.
    room.does(&bob, "leave").await;
    stream.next().await;
    room.does(&bob, "join").await;
    room.does(&bob, "leave").await;
    let answer = stream.next().await;
    assert_eq!(answer["rooms"]["join"], Value::Null);
    assert!(answer["rooms"]["leave"][&room.0].is_object());
}

#[tokio::test]
async fn a_timeline_does_not_go_on_over_an_absence() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let (carol, dave) = (
        server.register("carol").await,
        server.register("dave").await,
    );
    let room = Room::new(&alice, "shared").await;
    room.does(&bob, "join").await;
    // Enough for the whole room.
    let filter = json!({ "room": { "timeline": { "limit": 100 } } });
    let mut streams = Vec::new();
    for who in [&bob, &carol, &dave] {
        streams.push(Stream::filtered(who, &filter));
    }
    let first = streams[0].joined(&room).await;
    assert_eq!(first["timeline"]["limited"], false, "it has no earlier one");
    for stream in &mut streams {
        stream.next().await;
    }
    room.does(&bob, "leave").await;
    assert_eq!(streams[0].left(&room).await["timeline"]["limited"], false);
    room.say(&alice, "meanwhile").await;
    for who in [&bob, &carol, &dave] {
        room.does(who, "join").await;
    }
    room.does(&dave, "leave").await;
    for part in [
        streams[0].joined(&room).await,
        streams[1].joined(&room).await,
        streams[2].left(&room).await,
    ] {
        assert_eq!(types(&part, "timeline")[0], "m.room.create");
        assert_eq!(part["timeline"]["limited"], true);
        // Whoever wants to fill the gap finds that there is nothing in it.
        let prev = text(&part["timeline"], "prev_batch");
        let path = format!("messages?dir=b&from={prev}");
        let page = ok(room.get(&bob, &path).await);
        assert_eq!((&page["chunk"], &page["end"]), (&json!([]), &Value::Null));
    }
    room.say(&alice, "welcome").await;
    let part = streams[0].joined(&room).await;
    assert_eq!(part["timeline"]["limited"], false);
}

#[tokio::test]
async fn an_ignored_user_invites_nobody() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let mut stream = Stream::begun(&bob).await;
    let ignored = json!({ "ignored_users": { &*alice.user_id: {} } });
    let path = format!(
        "/_matrix/client/v3/user/{}/account_data/m.ignored_user_list",
        bob.user_id
    );
    ok(bob.put(&path, ignored).await);
    let room = Room::create(&alice, json!({ "invite": [bob.user_id] })).await;
    assert_eq!(stream.next().await["rooms"], Value::Null);
    assert_eq!(Stream::new(&bob).next().await["rooms"], Value::Null);
    // Who is ignored no more is heard again.
    ok(bob.put(&path, json!({ "ignored_users": {} })).await);
    let answer = Stream::new(&bob).next().await;
    assert!(answer["rooms"]["invite"][&room.0].is_object());
}

#[tokio::test]
async fn ones_own_leaving_is_always_seen() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    for visibility in ["joined", "invited", "shared", "world_readable"] {
        for limit in [0, 1, 10] {
            let room = Room::new(&alice, visibility).await;
            room.does(&bob, "join").await;
            let timeline = json!({ "limit": limit });
            let filter = json!({ "room": { "timeline": timeline, "include_leave": true } });
            let mut stream = Stream::filtered(&bob, &filter);
            stream.next().await;
            room.say(&alice, "before").await;
            room.does(&bob, "leave").await;
            let of = |part: &Value| {
                let mut told = members(part, "state");
                told.extend(members(part, "timeline"));
                let told = told.iter().filter(|user| **user == bob.user_id);
                told.count()
            };
            let part = stream.left(&room).await;
            assert_eq!(of(&part), 1, "{visibility} {limit}: {part}");
            let part = Stream::filtered(&bob, &filter).left(&room).await;
            assert!(
                part.to_string().contains("\"leave\""),
                "{visibility} {limit}"
            );
        }
    }
}

#[tokio::test]
async fn presence_comes_with_people() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = Room::new(&alice, "shared").await;
    for who in [&alice, &bob] {
        let path = format!("/_matrix/client/v3/presence/{}/status", who.user_id);
        let here = json!({ "presence": "online", "status_msg": "here" });
        ok(who.put(&path, here).await);
    }
    server.clock.advance(std::time::Duration::from_secs(5));
    let (mut hers, mut his) = (Stream::begun(&alice).await, Stream::begun(&bob).await);
    room.does(&bob, "join").await;
    for (stream, other) in [(&mut hers, &bob), (&mut his, &alice)] {
        let answer = stream.next().await;
        assert!(answer["rooms"]["join"][&room.0].is_object());
        let told = answer["presence"]["events"].as_array().cloned();
        let told = told.unwrap_or_default();
        assert!(
            told.iter().any(|event| event["sender"] == other.user_id),
            "{answer}"
        );
    }
}
