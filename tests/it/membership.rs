//! "Room membership".

use serde_json::{Value, json};

use crate::{
    room::{Room, encoded},
    server::{Client, TestServer, ok, refused, text},
    stream::Stream,
};

/// A room with these join rules.
async fn room_with(creator: &Client, rules: Value, version: &str) -> Room {
    let wish = json!({
        "room_version": version,
        "initial_state": [{ "type": "m.room.join_rules", "content": rules }],
    });
    Room::create(creator, wish).await
}

async fn knock(room: &Room, who: &Client) -> (http::StatusCode, Value) {
    let path = format!("/_matrix/client/v3/knock/{}", encoded(&room.0));
    who.post(&path, json!({ "reason": "let me in" })).await
}

#[tokio::test]
async fn joining_by_id_and_by_alias() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let wish = json!({ "preset": "public_chat", "room_alias_name": "open" });
    let room = Room::create(&alice, wish).await;
    let by_alias = format!("/_matrix/client/v3/join/{}", encoded("#open:localhost"));
    let by_id = format!("/_matrix/client/v3/join/{}", encoded(&room.0));
    let reason = json!({ "reason": "curious" });
    let joined = ok(bob.post(&by_alias, reason.clone()).await);
    assert_eq!(joined, json!({ "room_id": room.0 }));
    let path = format!("state/m.room.member/{}?format=event", bob.user_id);
    let event = ok(room.get(&alice, &path).await);
    assert_eq!(event["content"]["reason"], "curious");
    // What else is said at the door is kept, but who may come in is not for the guest to say.
    let carol = server.register("carol").await;
    let custom = json!({
        "org.example.a": 1, "membership": "ban", "join_authorised_via_users_server": alice.user_id,
    });
    ok(carol.post(&by_id, custom).await);
    let carols = format!("state/m.room.member/{}", carol.user_id);
    assert_eq!(
        ok(room.get(&alice, &carols).await),
        json!({ "membership": "join", "displayname": "carol", "org.example.a": 1 })
    );
    // Whoever is in already has nothing to do.
    for path in [&by_alias, &by_id, &room.path("join")] {
        ok(bob.post(path, json!({})).await);
    }
    let again = ok(room.get(&alice, &path).await);
    assert_eq!(again["event_id"], event["event_id"]);

    for (path, status, errcode) in [
        (
            "/_matrix/client/v3/join/%23none:localhost",
            404,
            "M_NOT_FOUND",
        ),
        (
            "/_matrix/client/v3/join/!none:localhost",
            404,
            "M_NOT_FOUND",
        ),
        (
            "/_matrix/client/v3/rooms/!none:localhost/join",
            404,
            "M_NOT_FOUND",
        ),
        ("/_matrix/client/v3/join/nothing", 400, "M_INVALID_PARAM"),
        (
            "/_matrix/client/v3/rooms/nothing/join",
            400,
            "M_INVALID_PARAM",
        ),
    ] {
        refused(bob.post(path, json!({})).await, status, errcode);
    }
    for path in [&by_alias, &by_id] {
        refused(
            server.anonymous().post(path, json!({})).await,
            401,
            "M_MISSING_TOKEN",
        );
    }
    refused(
        bob.post(&by_id, json!({ "reason": 5 })).await,
        400,
        "M_BAD_JSON",
    );
}

#[tokio::test]
async fn every_change_carries_its_reason() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = Room::create(&alice, json!({})).await;
    let path = format!("state/m.room.member/{}", bob.user_id);
    for (who, what, expect) in [
        (&alice, "invite", "invite"),
        (&bob, "join", "join"),
        (&alice, "kick", "leave"),
        (&alice, "ban", "ban"),
        (&alice, "unban", "leave"),
        (&alice, "invite", "invite"),
        (&bob, "leave", "leave"),
    ] {
        let mut body = json!({ "reason": what });
        if who.user_id == alice.user_id {
            body["user_id"] = json!(bob.user_id);
        }
        ok(room.post(who, what, body).await);
        let member = ok(room.get(&alice, &path).await);
        assert_eq!(member["membership"], expect, "{what}");
        assert_eq!(member["reason"], what);
    }
}

#[tokio::test]
async fn who_may_do_what_to_whom() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let (carol, eve) = (server.register("carol").await, server.register("eve").await);
    let wish = json!({ "preset": "public_chat", "room_version": "11" });
    let room = Room::create(&alice, wish).await;
    for who in [&bob, &carol] {
        room.does(who, "join").await;
    }
    let levels = json!({ "users": { &*alice.user_id: 100, &*carol.user_id: 50 }, "invite": 50 });
    room.set(&alice, "m.room.power_levels", levels).await;
    let elsewhere = Room("!elsewhere:localhost".to_owned());
    for (room, who, what, whom) in [
        (&room, &bob, "invite", &eve.user_id),
        (&room, &bob, "kick", &carol.user_id),
        (&room, &bob, "ban", &eve.user_id),
        (&room, &bob, "unban", &eve.user_id),
        (&room, &carol, "kick", &alice.user_id),
        (&room, &carol, "ban", &alice.user_id),
        (&room, &carol, "ban", &carol.user_id),
        (&room, &alice, "ban", &alice.user_id),
        // Already there, never there, not banned.
        (&room, &alice, "invite", &bob.user_id),
        (&room, &alice, "invite", &alice.user_id),
        (&room, &alice, "kick", &eve.user_id),
        (&room, &alice, "unban", &bob.user_id),
        (&room, &alice, "unban", &eve.user_id),
        // Those who are not in the room, and rooms that are not there: one can not tell one from the other.
        (&room, &eve, "invite", &eve.user_id),
        (&room, &eve, "kick", &bob.user_id),
        (&room, &eve, "ban", &bob.user_id),
        (&room, &eve, "unban", &bob.user_id),
        (&elsewhere, &eve, "invite", &eve.user_id),
        (&elsewhere, &eve, "kick", &bob.user_id),
        (&elsewhere, &eve, "ban", &bob.user_id),
        (&elsewhere, &eve, "unban", &bob.user_id),
    ] {
        let (status, body) = room.post(who, what, json!({ "user_id": whom })).await;
        assert_eq!(
            (status.as_u16(), &body["errcode"]),
            (403, &json!("M_FORBIDDEN")),
            "{} {what} {whom}: {body}",
            who.user_id
        );
    }
    for what in ["invite", "kick", "ban", "unban"] {
        for bad in [
            json!({ "user_id": "bob" }),
            json!({ "user_id": 5 }),
            json!({}),
        ] {
            let (status, body) = room.post(&alice, what, bad.clone()).await;
            assert_eq!(status, 400, "{what} {bad}: {body}");
        }
    }
    let (one, other) = (
        room.post(&eve, "leave", json!({})).await,
        elsewhere.post(&eve, "leave", json!({})).await,
    );
    assert_eq!(one, other, "a stranger learns nothing");
    assert_eq!(one.0, 403);
    let (one, other) = (
        room.post(&eve, "forget", json!({})).await,
        elsewhere.post(&eve, "forget", json!({})).await,
    );
    assert_eq!(one, other, "a stranger learns nothing");
}

#[tokio::test]
async fn who_is_banned_stays_out() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = room_with(&alice, json!({ "join_rule": "public" }), "11").await;
    room.does(&bob, "join").await;
    room.does_to(&alice, "ban", &bob).await;
    refused(room.post(&bob, "join", json!({})).await, 403, "M_FORBIDDEN");
    refused(
        room.post(&bob, "leave", json!({})).await,
        403,
        "M_FORBIDDEN",
    );
    let invite = json!({ "user_id": bob.user_id });
    refused(
        room.post(&alice, "invite", invite.clone()).await,
        403,
        "M_FORBIDDEN",
    );
    refused(
        room.post(&alice, "kick", invite.clone()).await,
        403,
        "M_FORBIDDEN",
    );
    assert_eq!(room.membership(&alice, &bob).await, "ban");
    // To forget it is all that is left.
    ok(room.post(&bob, "forget", json!({})).await);
    room.does_to(&alice, "unban", &bob).await;
    assert_eq!(room.membership(&alice, &bob).await, "leave");
    room.does(&bob, "join").await;
    ok(room.get(&bob, "messages?dir=b").await);
}

#[tokio::test]
async fn leaving_and_forgetting() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = Room::new(&alice, "shared").await;
    room.does(&bob, "join").await;
    refused(room.post(&bob, "forget", json!({})).await, 400, "M_UNKNOWN");
    let mut away = Stream::begun(&bob).await;
    room.does(&bob, "leave").await;
    room.does(&bob, "leave").await;
    refused(
        room.put(&bob, "send/m.room.message/1", json!({ "body": "late" }))
            .await,
        403,
        "M_FORBIDDEN",
    );
    ok(room.get(&bob, "messages?dir=b").await);
    room.does(&bob, "forget").await;
    room.does(&bob, "forget").await;
    for path in ["messages?dir=b", "state", "members", "state/m.room.create"] {
        refused(room.get(&bob, path).await, 403, "M_FORBIDDEN");
    }
    // A device that was away hears that the room was left; a new one hears nothing.
    let left = away.left(&room).await;
    assert_eq!(
        left["timeline"]["events"][0]["content"]["membership"],
        "leave"
    );
    assert_eq!(left["state"]["events"], json!([]));
    assert_eq!(away.next().await["rooms"], Value::Null);
    let mut stream = Stream::filtered(&bob, &json!({ "room": { "include_leave": true } }));
    assert_eq!(stream.next().await["rooms"], Value::Null);
    // An invite brings it back.
    room.does_to(&alice, "invite", &bob).await;
    let invited = stream.next().await;
    assert!(invited["rooms"]["invite"][&room.0].is_object(), "{invited}");
    room.does(&bob, "join").await;
    assert!(stream.joined(&room).await.is_object());
}

#[tokio::test]
async fn knocking() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = room_with(&alice, json!({ "join_rule": "knock" }), "12").await;
    refused(room.post(&bob, "join", json!({})).await, 403, "M_FORBIDDEN");
    assert_eq!(ok(knock(&room, &bob).await), json!({ "room_id": room.0 }));
    assert_eq!(room.membership(&alice, &bob).await, "knock");
    refused(room.get(&bob, "state").await, 403, "M_FORBIDDEN");
    room.does(&bob, "leave").await;
    ok(knock(&room, &bob).await);
    room.does_to(&alice, "kick", &bob).await;
    ok(knock(&room, &bob).await);
    room.does_to(&alice, "invite", &bob).await;
    refused(knock(&room, &bob).await, 403, "M_FORBIDDEN");
    room.does(&bob, "join").await;
    refused(knock(&room, &bob).await, 403, "M_FORBIDDEN");
    room.does_to(&alice, "ban", &bob).await;
    refused(knock(&room, &bob).await, 403, "M_FORBIDDEN");

    let unknown = Room("!unknown:localhost".to_owned());
    refused(knock(&unknown, &bob).await, 404, "M_NOT_FOUND");
    for (rule, version) in [("invite", "12"), ("public", "12"), ("knock", "6")] {
        let room = room_with(&alice, json!({ "join_rule": rule }), version).await;
        refused(knock(&room, &bob).await, 403, "M_FORBIDDEN");
    }
}

#[tokio::test]
async fn members_of_one_room_may_enter_another() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let (carol, eve) = (server.register("carol").await, server.register("eve").await);
    let club = Room::new(&alice, "shared").await;
    club.does(&bob, "join").await;
    club.does(&carol, "join").await;
    club.does(&carol, "leave").await;
    let allow = json!([
        { "type": "m.room_membership", "room_id": club.0 },
        { "type": "org.example.other", "room_id": club.0 },
        { "type": "m.room_membership", "room_id": "!unknown:localhost" },
    ]);
    for (rule, version) in [
        ("restricted", "8"),
        ("restricted", "12"),
        ("knock_restricted", "10"),
    ] {
        let rules = json!({ "join_rule": rule, "allow": allow });
        let room = room_with(&alice, rules, version).await;
        ok(room.post(&bob, "join", json!({})).await);
        let path = format!("state/m.room.member/{}", bob.user_id);
        let member = ok(room.get(&alice, &path).await);
        assert_eq!(member["join_authorised_via_users_server"], alice.user_id);
        // A new name needs nobody's leave.
        let name = json!({ "membership": "join", "displayname": "Bobby" });
        ok(room.put(&bob, &path, name).await);
        for stranger in [&carol, &eve] {
            refused(
                room.post(stranger, "join", json!({})).await,
                403,
                "M_FORBIDDEN",
            );
        }
        room.does_to(&alice, "invite", &eve).await;
        room.does(&eve, "join").await;
        let knocks = if rule == "knock_restricted" { 200 } else { 403 };
        assert_eq!(knock(&room, &carol).await.0, knocks, "{rule}");
    }
    // Old versions know no such rule.
    let rules = json!({ "join_rule": "restricted", "allow": allow });
    let old = room_with(&alice, rules, "7").await;
    refused(old.post(&bob, "join", json!({})).await, 403, "M_FORBIDDEN");
}

#[tokio::test]
async fn memberships_are_state_that_can_be_set() {
    let server = TestServer::new();
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = Room::create(&alice, json!({ "preset": "public_chat" })).await;
    let of = |who: &str| format!("state/m.room.member/{who}");
    let bobs = of(&bob.user_id);
    let name = json!({ "displayname": "Bob" });
    let path = format!("/_matrix/client/v3/profile/{}/displayname", bob.user_id);
    ok(bob.put(&path, name).await);

    // Whoever sets their own joins; what they do not say is taken from their profile.
    let joined = ok(room
        .put(
            &bob,
            &bobs,
            json!({ "membership": "join", "org.example.a": 1 }),
        )
        .await);
    let member = ok(room.get(&bob, &format!("{bobs}?format=event")).await);
    assert_eq!(member["event_id"], joined["event_id"]);
    assert_eq!(
        member["content"],
        json!({ "membership": "join", "displayname": "Bob", "org.example.a": 1 })
    );
    // A name for this room only.
    ok(room
        .put(
            &bob,
            &bobs,
            json!({ "membership": "join", "displayname": "Robert" }),
        )
        .await);
    let member = ok(room.get(&bob, &bobs).await);
    assert_eq!(
        member,
        json!({ "membership": "join", "displayname": "Robert" })
    );
    let again = json!({ "membership": "join", "displayname": "Robert" });
    let (one, two) = (
        ok(room.put(&bob, &bobs, again.clone()).await),
        ok(room.put(&bob, &bobs, again).await),
    );
    assert_eq!(text(&one, "event_id"), text(&two, "event_id"));
    ok(room
        .put(&bob, &bobs, json!({ "membership": "leave" }))
        .await);
    assert_eq!(room.membership(&alice, &bob).await, "leave");
    ok(room
        .put(&alice, &bobs, json!({ "membership": "ban" }))
        .await);
    refused(
        room.put(&bob, &bobs, json!({ "membership": "join" })).await,
        403,
        "M_FORBIDDEN",
    );
    ok(room
        .put(&alice, &bobs, json!({ "membership": "leave" }))
        .await);
    ok(room
        .put(&alice, &bobs, json!({ "membership": "invite" }))
        .await);
    assert_eq!(ok(room.get(&alice, &bobs).await)["displayname"], "Bob");

    // What the other endpoints refuse is refused here too.
    for (content, key) in [
        (json!({}), &*bob.user_id),
        (json!({ "membership": 5 }), &*bob.user_id),
        (json!({ "membership": "org.example.other" }), &*bob.user_id),
        (json!({ "membership": "join" }), "bob"),
        (json!({ "membership": "join" }), ""),
    ] {
        let (status, body) = room.put(&alice, &of(key), content.clone()).await;
        assert_eq!(status, 400, "{content} {key}: {body}");
    }
    refused(
        room.put(&alice, &bobs, json!({ "membership": "join" }))
            .await,
        403,
        "M_FORBIDDEN",
    );
}

#[tokio::test]
async fn guests_come_in_where_they_may() {
    let server = TestServer::with(|config| config.registration.guests = true);
    let alice = server.register("alice").await;
    let guest = ok(server
        .anonymous()
        .post("/_matrix/client/v3/register?kind=guest", json!({}))
        .await);
    let guest = server.client(&guest);
    let closed = Room::create(&alice, json!({ "preset": "public_chat" })).await;
    refused(
        closed.post(&guest, "join", json!({})).await,
        403,
        "M_GUEST_ACCESS_FORBIDDEN",
    );
    let path = format!("state/m.room.member/{}", guest.user_id);
    refused(
        closed
            .put(&guest, &path, json!({ "membership": "join" }))
            .await,
        403,
        "M_GUEST_ACCESS_FORBIDDEN",
    );
    let open = json!({ "guest_access": "can_join" });
    closed.set(&alice, "m.room.guest_access", open).await;
    closed.does(&guest, "join").await;
    closed.say(&guest, "hello").await;
    refused(
        closed
            .post(&guest, "invite", json!({ "user_id": alice.user_id }))
            .await,
        403,
        "M_GUEST_ACCESS_FORBIDDEN",
    );
}
