//! "Getting events for a room": `/messages`, `/context` and `/event`.

use serde_json::{Value, json};

use crate::{
    room::{Room, encoded, ids},
    server::{Client, TestServer, ok, refused, text},
};

/// Follows the pages of `/messages` to the end.
async fn pages(room: &Room, who: &Client, query: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut from = String::new();
    for _ in 0..50 {
        let page = ok(room.get(who, &format!("messages?{query}{from}")).await);
        found.extend(ids(&page["chunk"]));
        match page["end"].as_str() {
            Some(end) => from = format!("&from={end}"),
            None => return found,
        }
    }
    panic!("the pages have no end");
}

/// Those of the events that are messages, as their texts.
fn bodies(list: &Value) -> Vec<String> {
    let list = list.as_array().expect("a list");
    let bodies = list
        .iter()
        .filter_map(|event| event["content"]["body"].as_str());
    bodies.map(ToOwned::to_owned).collect()
}

#[tokio::test]
async fn pages_go_both_ways_and_meet() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let room = Room::new(&alice, "shared").await;
    let first = room.say(&alice, "one").await;
    let mut last = String::new();
    for body in ["two", "three", "four"] {
        last = room.say(&alice, body).await;
    }
    let back = pages(&room, &alice, "dir=b&limit=3").await;
    assert_eq!(back.first(), Some(&last));
    assert_eq!(back.get(3), Some(&first));
    let mut forth = pages(&room, &alice, "dir=f&limit=2").await;
    forth.reverse();
    assert_eq!(back, forth, "nothing is missing and nothing comes twice");
    assert_eq!(pages(&room, &alice, "dir=b&limit=100").await, back);

    // The end of one page is the beginning of the next, also the other way round.
    let page = ok(room.get(&alice, "messages?dir=b&limit=2").await);
    assert_eq!(bodies(&page["chunk"]), ["four", "three"]);
    let end = text(&page, "end");
    let forward = ok(room
        .get(&alice, &format!("messages?dir=f&from={end}"))
        .await);
    assert_eq!(bodies(&forward["chunk"]), ["three", "four"]);
    // Forward is where a page goes that is not told where.
    let untold = ok(room.get(&alice, &format!("messages?from={end}")).await);
    assert_eq!(untold, forward);
    let until = ok(room.get(&alice, &format!("messages?dir=b&to={end}")).await);
    assert_eq!(bodies(&until["chunk"]), ["four", "three"]);
    assert_eq!(until["end"], Value::Null);

    // A sync goes on where messages end, and messages go back from where a sync began.
    let sync = ok(alice.get("/_matrix/client/v3/sync").await);
    let since = text(&sync, "next_batch");
    room.say(&alice, "five").await;
    let page = ok(room
        .get(&alice, &format!("messages?dir=b&limit=1&from={since}"))
        .await);
    assert_eq!(bodies(&page["chunk"]), ["four"]);
    let page = ok(room
        .get(&alice, &format!("messages?dir=f&from={since}"))
        .await);
    assert_eq!(bodies(&page["chunk"]), ["five"]);

    for query in [
        "dir=b&from=x",
        "dir=b&to=t01",
        "dir=x",
        "dir=b&limit=-1",
        "dir=b&filter=x",
    ] {
        refused(
            room.get(&alice, &format!("messages?{query}")).await,
            400,
            "M_INVALID_PARAM",
        );
    }
}

#[tokio::test]
async fn a_filter_chooses_events() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = Room::new(&alice, "shared").await;
    room.does(&bob, "join").await;
    let said = room.say(&alice, "text").await;
    let file = json!({ "msgtype": "m.file", "body": "file", "url": "mxc://localhost/a" });
    room.send(&bob, "m.room.message", file).await;
    room.relate(&bob, "m.thread", &said).await;
    for (filter, expect) in [
        (
            json!({ "types": ["m.room.message"] }),
            vec!["m.thread", "file", "text"],
        ),
        (
            json!({ "types": ["m.room.mes*"], "not_senders": [alice.user_id] }),
            vec!["m.thread", "file"],
        ),
        (json!({ "contains_url": true }), vec!["file"]),
        (
            json!({ "contains_url": false, "senders": [bob.user_id] }),
            vec!["m.thread"],
        ),
        (
            json!({ "related_by_rel_types": ["m.thread"] }),
            vec!["text"],
        ),
        (json!({ "related_by_senders": [alice.user_id] }), vec![]),
        (
            json!({ "org.matrix.msc3874.rel_types": ["m.thread", "m.reference"] }),
            vec!["m.thread"],
        ),
        (
            json!({ "org.matrix.msc3874.rel_types": ["m.reference"] }),
            vec![],
        ),
        (
            json!({ "org.matrix.msc3874.not_rel_types": ["m.thread"], "types": ["m.room.message"] }),
            vec!["file", "text"],
        ),
        (json!({ "related_by_senders": [bob.user_id] }), vec!["text"]),
        (json!({ "not_rooms": [room.0] }), vec![]),
    ] {
        let query = format!(
            "messages?dir=b&limit=50&filter={}",
            encoded(&filter.to_string())
        );
        let page = ok(room.get(&alice, &query).await);
        assert_eq!(bodies(&page["chunk"]), expect, "{filter}");
        assert_eq!(page["state"], Value::Null);
    }
    let filter = json!({ "lazy_load_members": true, "types": ["m.room.message"] });
    for (limit, members) in [(2, vec![&bob]), (3, vec![&alice, &bob])] {
        let filter = encoded(&filter.to_string());
        let query = format!("messages?dir=b&limit={limit}&filter={filter}");
        let page = ok(room.get(&alice, &query).await);
        let state = page["state"].as_array().expect("members");
        let known: Vec<_> = state
            .iter()
            .map(|member| text(member, "state_key"))
            .collect();
        let members: Vec<_> = members
            .iter()
            .map(|client| client.user_id.clone())
            .collect();
        assert_eq!(known, members);
        assert!(state.iter().all(|member| member["type"] == "m.room.member"));
    }
}

#[tokio::test]
async fn hidden_stretches_are_passed_over() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = Room::new(&alice, "world_readable").await;
    room.say(&alice, "open").await;
    let visibility = json!({ "history_visibility": "joined" });
    room.set(&alice, "m.room.history_visibility", visibility)
        .await;
    for number in 0..40 {
        room.say(&alice, &format!("hidden {number}")).await;
    }
    room.does(&bob, "join").await;
    room.say(&alice, "seen").await;
    for query in ["dir=b&limit=100", "dir=b&limit=3"] {
        let found = pages(&room, &bob, query).await;
        let mut told = Vec::new();
        for id in &found {
            told.push(ok(room.get(&bob, &format!("event/{id}")).await));
        }
        assert_eq!(bodies(&Value::Array(told)), ["seen", "open"]);
    }
    let forward = ok(room.get(&bob, "messages?dir=f&limit=100").await);
    assert_eq!(bodies(&forward["chunk"]), ["open", "seen"]);
}

#[tokio::test]
async fn who_has_left_sees_the_past_and_nothing_later() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = Room::new(&alice, "shared").await;
    let before = room.say(&alice, "before").await;
    room.does(&bob, "join").await;
    room.does(&bob, "leave").await;
    let after = room.say(&alice, "after").await;
    for dir in ["b", "f"] {
        let found = pages(&room, &bob, &format!("dir={dir}&limit=4")).await;
        assert!(found.contains(&before) && !found.contains(&after), "{dir}");
    }
    let context = ok(room.get(&bob, &format!("context/{before}?limit=20")).await);
    assert!(!ids(&context["events_after"]).contains(&after));
    refused(
        room.get(&bob, &format!("event/{after}")).await,
        404,
        "M_NOT_FOUND",
    );
    refused(
        room.get(&bob, &format!("context/{after}")).await,
        404,
        "M_NOT_FOUND",
    );

    room.does(&bob, "forget").await;
    for path in ["messages?dir=b", "messages?dir=f", "messages"] {
        refused(room.get(&bob, path).await, 403, "M_FORBIDDEN");
    }
    refused(
        room.get(&bob, &format!("event/{before}")).await,
        404,
        "M_NOT_FOUND",
    );
}

#[tokio::test]
async fn an_event_is_found_in_its_room_only() {
    let server = TestServer::new();
    let (alice, eve) = (server.register("alice").await, server.register("eve").await);
    let room = Room::new(&alice, "shared").await;
    let other = Room::new(&alice, "shared").await;
    let unknown = Room("!unknown:localhost".to_owned());
    let said = room.say(&alice, "hello").await;
    let event = ok(room.get(&alice, &format!("event/{said}")).await);
    assert_eq!(event["content"]["body"], "hello");
    assert_eq!(event["room_id"], room.0);
    assert!(event["unsigned"]["transaction_id"].is_string());

    for (room, who) in [(&other, &alice), (&unknown, &alice), (&room, &eve)] {
        let path = format!("event/{said}");
        refused(room.get(who, &path).await, 404, "M_NOT_FOUND");
    }
    refused(room.get(&alice, "event/$unknown").await, 404, "M_NOT_FOUND");
    refused(
        other.get(&alice, &format!("context/{said}")).await,
        404,
        "M_NOT_FOUND",
    );
    for (room, who) in [(&unknown, &alice), (&room, &eve)] {
        for path in [format!("context/{said}"), "messages?dir=b".to_owned()] {
            refused(room.get(who, &path).await, 403, "M_FORBIDDEN");
        }
    }
    refused(
        room.get(&server.anonymous(), "messages?dir=b").await,
        401,
        "M_MISSING_TOKEN",
    );

    let open = Room::new(&alice, "world_readable").await;
    let said = open.say(&alice, "hello").await;
    ok(open.get(&eve, &format!("event/{said}")).await);
    let page = ok(open.get(&eve, "messages?dir=b").await);
    assert_eq!(bodies(&page["chunk"]), ["hello"]);
}

#[tokio::test]
async fn what_surrounds_an_event() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = Room::new(&alice, "shared").await;
    room.does(&bob, "join").await;
    let mut said = Vec::new();
    for body in ["1", "2", "3", "4", "5", "6", "7"] {
        said.push(room.say(&alice, body).await);
    }
    let context = ok(room
        .get(&alice, &format!("context/{}?limit=3", said[3]))
        .await);
    assert_eq!(context["event"]["event_id"], said[3]);
    assert_eq!(bodies(&context["events_before"]), ["3"]);
    assert_eq!(bodies(&context["events_after"]), ["5", "6"]);
    let (start, end) = (text(&context, "start"), text(&context, "end"));
    let page = ok(room
        .get(&alice, &format!("messages?dir=b&limit=1&from={start}"))
        .await);
    assert_eq!(bodies(&page["chunk"]), ["2"]);
    let page = ok(room
        .get(&alice, &format!("messages?dir=f&limit=1&from={end}"))
        .await);
    assert_eq!(bodies(&page["chunk"]), ["7"]);

    let members = |context: &Value| {
        let state = context["state"].as_array().expect("state");
        let members = state
            .iter()
            .filter(|event| event["type"] == "m.room.member");
        let mut members: Vec<_> = members.map(|event| text(event, "state_key")).collect();
        members.sort();
        members
    };
    assert_eq!(members(&context), [&*alice.user_id, &*bob.user_id]);
    let filter = encoded("{\"lazy_load_members\":true}");
    let path = format!("context/{}?limit=0&filter={filter}", said[3]);
    let context = ok(room.get(&alice, &path).await);
    assert_eq!(members(&context), [&*alice.user_id]);
    assert_eq!(
        (
            ids(&context["events_before"]),
            ids(&context["events_after"])
        ),
        (vec![], vec![])
    );
}
