//! "Getting events for a room": `/state`, `/members`, `/joined_members` and `/joined_rooms`.

use serde_json::{Value, json};

use crate::{
    room::{Room, ids},
    server::{Client, TestServer, ok, refused, text},
};

/// The members in an answer, with their memberships.
fn members(answer: &Value) -> Vec<(String, String)> {
    let chunk = answer["chunk"].as_array().expect("a chunk");
    let mut members: Vec<_> = chunk
        .iter()
        .map(|event| {
            (
                text(event, "state_key"),
                text(&event["content"], "membership"),
            )
        })
        .collect();
    members.sort();
    members
}

fn member(client: &Client, membership: &str) -> (String, String) {
    (client.user_id.clone(), membership.to_owned())
}

#[tokio::test]
async fn the_state_is_read_whole_or_piece_by_piece() {
    let server = TestServer::new();
    let alice = server.register("alice").await;
    let room = Room::new(&alice, "shared").await;
    let topic = room
        .set(&alice, "m.room.topic", json!({ "topic": "a" }))
        .await;
    ok(alice
        .put(&room.path("state/org.example.thing/key"), json!({ "a": 1 }))
        .await);

    let state = ok(room.get(&alice, "state").await);
    assert!(ids(&state).contains(&topic));
    let mut keys: Vec<_> = state
        .as_array()
        .expect("a list")
        .iter()
        .map(|event| (text(event, "type"), text(event, "state_key")))
        .collect();
    let count = keys.len();
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), count, "each piece of state once");

    for path in ["state/m.room.topic", "state/m.room.topic/"] {
        assert_eq!(ok(room.get(&alice, path).await), json!({ "topic": "a" }));
        let event = ok(room.get(&alice, &format!("{path}?format=event")).await);
        assert_eq!(
            (&event["event_id"], &event["room_id"]),
            (&json!(topic), &json!(room.0))
        );
    }
    assert_eq!(
        ok(room.get(&alice, "state/org.example.thing/key").await),
        json!({ "a": 1 })
    );
    for path in [
        "state/org.example.thing",
        "state/org.example.thing/other",
        "state/m.room.name/",
    ] {
        refused(room.get(&alice, path).await, 404, "M_NOT_FOUND");
    }
}

#[tokio::test]
async fn who_may_read_the_state() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let eve = server.register("eve").await;
    let room = Room::new(&alice, "shared").await;
    room.set(&alice, "m.room.topic", json!({ "topic": "then" }))
        .await;
    room.does(&bob, "join").await;
    room.does(&bob, "leave").await;
    room.set(&alice, "m.room.topic", json!({ "topic": "now" }))
        .await;
    room.does(&eve, "join").await;
    room.does(&eve, "leave").await;
    room.does(&eve, "forget").await;

    // Who has left sees it as it was.
    assert_eq!(
        ok(room.get(&bob, "state/m.room.topic").await),
        json!({ "topic": "then" })
    );
    let state = ok(room.get(&bob, "state").await);
    let topics: Vec<_> = state.as_array().expect("a list").iter().collect();
    let topics: Vec<_> = topics
        .iter()
        .filter(|event| event["type"] == "m.room.topic")
        .collect();
    assert_eq!(topics.len(), 1);
    assert_eq!(topics[0]["content"]["topic"], "then");
    let then = members(&ok(room.get(&bob, "members").await));
    assert_eq!(then, [member(&alice, "join"), member(&bob, "leave")]);

    // Strangers, those who forgot, and rooms that there are not: all the same.
    let stranger = server.register("stranger").await;
    let unknown = Room("!unknown:localhost".to_owned());
    let mut messages = Vec::new();
    for (room, who) in [(&room, &stranger), (&room, &eve), (&unknown, &alice)] {
        for path in [
            "state",
            "state/m.room.topic",
            "state/m.room.none",
            "members",
            "joined_members",
        ] {
            let answer = room.get(who, path).await;
            messages.push(text(&answer.1, "error"));
            refused(answer, 403, "M_FORBIDDEN");
        }
    }
    messages.dedup();
    assert_eq!(messages.len(), 1, "{messages:?}");
    refused(room.get(&bob, "joined_members").await, 403, "M_FORBIDDEN");
    room.does_to(&alice, "invite", &stranger).await;
    refused(room.get(&stranger, "state").await, 403, "M_FORBIDDEN");

    let open = Room::new(&alice, "world_readable").await;
    for path in ["state", "state/m.room.history_visibility", "members"] {
        ok(open.get(&stranger, path).await);
    }
    refused(
        open.get(&stranger, "joined_members").await,
        403,
        "M_FORBIDDEN",
    );
}

#[tokio::test]
async fn members_by_membership_and_time() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let carol = server.register("carol").await;
    let room = Room::new(&alice, "shared").await;
    let early = text(
        &ok(alice.get("/_matrix/client/v3/sync").await),
        "next_batch",
    );
    room.does(&bob, "join").await;
    room.does(&bob, "leave").await;
    room.does_to(&alice, "invite", &carol).await;

    for (query, expect) in [
        (
            "",
            vec![
                member(&alice, "join"),
                member(&bob, "leave"),
                member(&carol, "invite"),
            ],
        ),
        ("?membership=join", vec![member(&alice, "join")]),
        (
            "?not_membership=leave",
            vec![member(&alice, "join"), member(&carol, "invite")],
        ),
        (
            "?membership=leave&not_membership=invite",
            vec![member(&alice, "join"), member(&bob, "leave")],
        ),
    ] {
        let answer = ok(room.get(&alice, &format!("members{query}")).await);
        assert_eq!(members(&answer), expect, "{query}");
    }
    let then = ok(room.get(&alice, &format!("members?at={early}")).await);
    assert_eq!(members(&then), [member(&alice, "join")]);
    refused(
        room.get(&alice, "members?at=x").await,
        400,
        "M_INVALID_PARAM",
    );
    // Whoever spoke last does not matter.
    let ignored = json!({ "ignored_users": { &*bob.user_id: {} } });
    let path = format!(
        "/_matrix/client/v3/user/{}/account_data/m.ignored_user_list",
        alice.user_id
    );
    ok(alice.put(&path, ignored).await);
    room.does(&bob, "join").await;
    room.say(&bob, "noise").await;
    let now = text(
        &ok(alice.get("/_matrix/client/v3/sync").await),
        "next_batch",
    );
    let now = ok(room
        .get(&alice, &format!("members?at={now}&membership=join"))
        .await);
    assert_eq!(
        members(&now),
        [member(&alice, "join"), member(&bob, "join")]
    );
    room.does(&bob, "leave").await;
    room.say(&alice, "later").await;
    // Who has left can not look at a time after that.
    let late = text(
        &ok(alice.get("/_matrix/client/v3/sync").await),
        "next_batch",
    );
    let late = room.get(&bob, &format!("members?at={late}")).await;
    refused(late, 403, "M_FORBIDDEN");
}

#[tokio::test]
async fn the_members_at_the_beginning_are_the_creator() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let stranger = server.register("stranger").await;
    let room = Room::new(&alice, "shared").await;
    room.does(&bob, "join").await;
    let sync = ok(alice.get("/_matrix/client/v3/sync").await);
    let timeline = &sync["rooms"]["join"][&room.0]["timeline"];
    assert_eq!(timeline["limited"], false, "it has all of the room");
    let page = ok(room.get(&alice, "messages?dir=f&limit=2").await);
    let (created, joined) = (&page["chunk"][0], &page["chunk"][1]);
    assert_eq!(created["type"], "m.room.create");
    assert_eq!(joined["type"], "m.room.member");
    let creation = ok(room.get(&alice, "messages?dir=f&limit=1").await);
    let points = [
        "s0".to_owned(),
        text(timeline, "prev_batch"),
        text(&creation, "end"),
        text(&page, "end"),
    ];
    for at in &points {
        let path = format!("members?at={at}");
        // Who came later sees the beginning as well, as far as the room shows it to them.
        for who in [&alice, &bob] {
            let answer = ok(room.get(who, &path).await);
            assert_eq!(members(&answer), [member(&alice, "join")], "{at}");
        }
        refused(room.get(&stranger, &path).await, 403, "M_FORBIDDEN");
    }
    let open = Room::new(&alice, "world_readable").await;
    ok(open.get(&stranger, "members").await);
    // It was not open yet when it began.
    refused(
        open.get(&stranger, "members?at=s0").await,
        403,
        "M_FORBIDDEN",
    );
    room.does(&bob, "leave").await;
    let answer = ok(room.get(&bob, "members?at=s0").await);
    assert_eq!(members(&answer), [member(&alice, "join")]);
    room.does(&bob, "forget").await;
    refused(room.get(&bob, "members?at=s0").await, 403, "M_FORBIDDEN");
}

#[tokio::test]
async fn joined_members_have_names_and_pictures() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = Room::new(&alice, "shared").await;
    room.does_to(&alice, "invite", &bob).await;
    let profile = json!({
        "membership": "join", "displayname": "A \"quoted\" name", "avatar_url": "mxc://localhost/a",
    });
    let path = room.path(&format!("state/m.room.member/{}", alice.user_id));
    ok(alice.put(&path, profile).await);
    let joined = ok(room.get(&alice, "joined_members").await);
    let expect = json!({
        "display_name": "A \"quoted\" name", "avatar_url": "mxc://localhost/a",
    });
    assert_eq!(joined["joined"], json!({ &*alice.user_id: expect }));

    room.does(&bob, "join").await;
    let odd = json!({ "membership": "join", "displayname": null, "avatar_url": 5 });
    let path = room.path(&format!("state/m.room.member/{}", bob.user_id));
    ok(bob.put(&path, odd).await);
    let joined = ok(room.get(&alice, "joined_members").await);
    let nothing = json!({ "display_name": null, "avatar_url": null });
    assert_eq!(joined["joined"][&*bob.user_id], nothing);
}

#[tokio::test]
async fn joined_rooms_are_those_that_one_is_in() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let (stays, leaves) = (
        Room::new(&alice, "shared").await,
        Room::new(&alice, "shared").await,
    );
    for room in [&stays, &leaves] {
        room.does(&bob, "join").await;
    }
    leaves.does(&bob, "leave").await;
    let answer = ok(bob.get("/_matrix/client/v3/joined_rooms").await);
    assert_eq!(answer, json!({ "joined_rooms": [stays.0] }));
}
