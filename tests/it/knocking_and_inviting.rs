//! "Inviting to a room", "Knocking upon a room" and "Leaving Rooms (Rejecting Invites)" in the server-server API, and
//! restricted rooms, between nodes.

use http::StatusCode;
use serde_json::{Value, json};

use crate::{
    joining::join,
    room::Room,
    server::{Client, ok, refused},
    several::{named, network, node, sound},
};

async fn sync(who: &Client) -> Value {
    ok(who.get("/_matrix/client/v3/sync").await)
}

/// What a user is told of a room that they are invited to, by type.
fn told(sync: &Value, section: &str, state: &str, room: &Room) -> Vec<(String, Value)> {
    let events = sync["rooms"][section][&room.0][state]["events"].as_array();
    let events = events.into_iter().flatten();
    let pair = |event: &Value| {
        let kind = event["type"].as_str().expect("events have a type");
        (kind.to_owned(), event["content"].clone())
    };
    events.map(pair).collect()
}

#[tokio::test]
async fn invites_reach_other_servers_and_are_accepted_there() {
    let lan = network();
    let (a, b) = (node(&lan, "a.example"), node(&lan, "b.example"));
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    for version in ["1", "3", "10", "11", "12"] {
        let body = json!({ "preset": "private_chat", "room_version": version, "name": "Kitchen" });
        let room = Room::create(&alice, body).await;
        let invite = json!({ "user_id": bob.user_id, "reason": "tea" });
        ok(room.post(&alice, "invite", invite).await);
        assert_eq!(room.membership(&alice, &bob).await, "invite");
        let seen = sync(&bob).await;
        let events = told(&seen, "invite", "invite_state", &room);
        let find = |kind: &str| {
            let found = events.iter().find(|(found, _)| found == kind);
            found
                .unwrap_or_else(|| panic!("no {kind}: {seen}"))
                .1
                .clone()
        };
        assert_eq!(find("m.room.name")["name"], "Kitchen");
        assert_eq!(
            find("m.room.create")["room_version"]
                .as_str()
                .unwrap_or("1"),
            version
        );
        assert_eq!(events.last().unwrap().1["reason"], "tea");
        // Only the invite says who knows the room.
        ok(join(&bob, &room, &[]).await);
        assert_eq!(room.membership(&alice, &bob).await, "join");
        assert_eq!(room.membership(&bob, &alice).await, "join");
        assert!(told(&sync(&bob).await, "invite", "invite_state", &room).is_empty());
    }
    sound(&[&a, &b]);
}

#[tokio::test]
async fn an_invite_is_declined_whether_anybody_hears_of_it_or_not() {
    let lan = network();
    let (a, b) = (node(&lan, "a.example"), node(&lan, "b.example"));
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    for (version, up) in [
        ("1", true),
        ("11", true),
        ("12", true),
        ("11", false),
        ("12", false),
    ] {
        let body = json!({
            "preset": "private_chat", "room_version": version, "is_direct": true,
            "invite": [bob.user_id],
        });
        let room = Room::create(&alice, body).await;
        let seen = sync(&bob).await;
        let invite = told(&seen, "invite", "invite_state", &room);
        let (_, own) = invite.last().expect("the invite is there");
        assert_eq!(own["is_direct"], true);
        lan.set_link(&named("a.example"), &named("b.example"), up);
        room.does(&bob, "leave").await;
        room.does(&bob, "leave").await;
        let seen = sync(&bob).await;
        assert!(
            told(&seen, "invite", "invite_state", &room).is_empty(),
            "{seen}"
        );
        room.does(&bob, "forget").await;
        let expected = if up { "leave" } else { "invite" };
        assert_eq!(room.membership(&alice, &bob).await, expected);
        lan.set_link(&named("a.example"), &named("b.example"), true);
        // They may be asked again.
        if up {
            room.does_to(&alice, "invite", &bob).await;
            ok(join(&bob, &room, &[]).await);
        }
    }
    sound(&[&a, &b]);
}

#[tokio::test]
async fn who_can_not_be_invited_is_not() {
    let lan = network();
    let (a, b) = (node(&lan, "a.example"), node(&lan, "b.example"));
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let room = Room::create(&alice, json!({ "preset": "private_chat" })).await;
    let invite = async |user: &str| {
        let body = json!({ "user_id": user });
        room.post(&alice, "invite", body).await
    };
    refused(invite("@nobody:b.example").await, 403, "M_FORBIDDEN");
    let (status, _) = invite("@nobody:nowhere.example").await;
    assert_eq!(status, StatusCode::BAD_GATEWAY);
    room.does_to(&alice, "ban", &bob).await;
    refused(invite(&bob.user_id).await, 403, "M_FORBIDDEN");
    // A room is made even if some of those who are to be in it can not be reached.
    let body = json!({ "invite": ["@x:nowhere.example", "@y:nowhere.example", "@bob:b.example"] });
    let other = Room::create(&alice, body).await;
    assert_eq!(other.membership(&alice, &bob).await, "invite");
    sound(&[&a, &b]);
}

#[tokio::test]
async fn who_knocks_is_let_in_or_goes_away() {
    let lan = network();
    let (a, b) = (node(&lan, "a.example"), node(&lan, "b.example"));
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let knock = async |room: &Room| {
        let path = format!("/_matrix/client/v3/knock/{}?via=a.example", room.0);
        bob.post(&path, json!({ "reason": "let me in" })).await
    };
    for version in ["7", "10", "12"] {
        let rule =
            |rule: &str| json!([{ "type": "m.room.join_rules", "content": { "join_rule": rule } }]);
        let body = json!({
            "room_version": version, "name": "Kitchen", "initial_state": rule("knock"),
        });
        let room = Room::create(&alice, body).await;
        ok(knock(&room).await);
        assert_eq!(room.membership(&alice, &bob).await, "knock");
        let seen = sync(&bob).await;
        let events = told(&seen, "knock", "knock_state", &room);
        assert!(
            events
                .iter()
                .any(|(_, content)| content["name"] == "Kitchen"),
            "{seen}"
        );
        assert!(
            events.iter().any(|(kind, _)| kind == "m.room.create"),
            "{seen}"
        );
        // Takes it back, knocks again, and is let in.
        room.does(&bob, "leave").await;
        assert_eq!(room.membership(&alice, &bob).await, "leave");
        assert!(told(&sync(&bob).await, "knock", "knock_state", &room).is_empty());
        ok(knock(&room).await);
        room.does_to(&alice, "invite", &bob).await;
        assert!(!told(&sync(&bob).await, "invite", "invite_state", &room).is_empty());
        ok(join(&bob, &room, &[]).await);
        assert_eq!(room.membership(&alice, &bob).await, "join");
        let body = json!({ "room_version": version, "initial_state": rule("invite") });
        let closed = Room::create(&alice, body).await;
        refused(knock(&closed).await, 403, "M_FORBIDDEN");
    }
    sound(&[&a, &b]);
}

#[tokio::test]
async fn members_of_another_room_are_let_in() {
    let lan = network();
    let (a, b) = (node(&lan, "a.example"), node(&lan, "b.example"));
    let c = node(&lan, "c.example");
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let carol = c.register("carol").await;
    for version in ["8", "10", "12"] {
        let body = json!({ "preset": "public_chat", "room_version": version });
        let hall = Room::create(&alice, body).await;
        let rule = json!({
            "join_rule": "restricted",
            "allow": [{ "type": "m.room_membership", "room_id": hall.0 }],
        });
        let body = json!({
            "room_version": version,
            "initial_state": [{ "type": "m.room.join_rules", "content": rule }],
        });
        let room = Room::create(&alice, body).await;
        refused(join(&bob, &room, &["a.example"]).await, 403, "M_FORBIDDEN");
        ok(join(&bob, &hall, &["a.example"]).await);
        ok(join(&bob, &room, &["a.example"]).await);
        let member = format!("state/m.room.member/{}", bob.user_id);
        let by = ok(room.get(&alice, &member).await);
        assert_eq!(by["join_authorised_via_users_server"], alice.user_id);
        // Nobody on this server has the power to let somebody in, so the other one does.
        let dora = b.register(&format!("dora{version}")).await;
        ok(join(&dora, &hall, &[]).await);
        ok(join(&dora, &room, &[]).await);
        assert_eq!(room.membership(&bob, &dora).await, "join");
        // One that can not helps nothing; the next one does.
        ok(join(&carol, &hall, &["a.example"]).await);
        ok(join(&carol, &room, &["b.example", "a.example"]).await);
        assert_eq!(room.membership(&carol, &alice).await, "join");
    }
    sound(&[&a, &b, &c]);
}

#[tokio::test]
async fn an_invite_is_taken_back_by_whoever_has_sent_it() {
    let lan = network();
    let (a, b) = (node(&lan, "a.example"), node(&lan, "b.example"));
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let carol = a.register("carol").await;
    let body = json!({
        "room_version": "11", "invite": [bob.user_id, carol.user_id],
        "power_level_content_override": { "users": { alice.user_id.as_str(): 100, carol.user_id.as_str(): 100 } },
    });
    let room = Room::create(&alice, body).await;
    ok(join(&carol, &room, &[]).await);
    let id = ruma::RoomId::parse(&room.0).unwrap();
    let federation = &b.services.federation;
    let pdu = async |who: &Client| {
        room.does_to(who, "kick", &bob).await;
        let services = &a.services;
        let view = services.store().latest();
        let nid = services.store().find_room(&id).unwrap().unwrap();
        let kind = "m.room.member".into();
        let event = services.rooms.current(&view, nid, &kind, &bob.user_id);
        kontor::protocol::format::federation(&event.unwrap().unwrap().event)
    };
    // What is done while the link is down does not come by itself.
    let link = |up| lan.set_link(&named("a.example"), &named("b.example"), up);
    link(false);
    let by_another = pdu(&carol).await;
    assert!(
        !federation
            .take_from_outside(&id, &by_another)
            .await
            .unwrap()
    );
    link(true);
    room.does_to(&alice, "invite", &bob).await;
    link(false);
    let end = pdu(&alice).await;
    let forged = end.replace("\"leave\"", "\"ban\"");
    assert!(!federation.take_from_outside(&id, &forged).await.unwrap());
    assert!(!told(&sync(&bob).await, "invite", "invite_state", &room).is_empty());
    assert!(federation.take_from_outside(&id, &end).await.unwrap());
    assert!(told(&sync(&bob).await, "invite", "invite_state", &room).is_empty());
    assert!(!federation.take_from_outside(&id, &end).await.unwrap());
    sound(&[&a, &b]);
}

#[tokio::test]
async fn who_was_turned_down_and_knocks_again_has_knocked() {
    let lan = network();
    let (a, b) = (node(&lan, "a.example"), node(&lan, "b.example"));
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let rule = json!([{ "type": "m.room.join_rules", "content": { "join_rule": "knock" } }]);
    let body = json!({ "room_version": "11", "initial_state": rule });
    let room = Room::create(&alice, body).await;
    let path = format!("/_matrix/client/v3/knock/{}?via=a.example", room.0);
    ok(bob.post(&path, json!({})).await);
    // What their server hears of it comes late.
    let link = |up| lan.set_link(&named("a.example"), &named("b.example"), up);
    link(false);
    room.does_to(&alice, "kick", &bob).await;
    let services = &a.services;
    let id = ruma::RoomId::parse(&room.0).unwrap();
    let nid = services.store().find_room(&id).unwrap().unwrap();
    let view = services.store().latest();
    let kind = "m.room.member".into();
    let kick = services.rooms.current(&view, nid, &kind, &bob.user_id);
    let kick = kontor::protocol::format::federation(&kick.unwrap().unwrap().event);
    link(true);
    ok(bob.post(&path, json!({})).await);
    let federation = &b.services.federation;
    assert!(federation.take_from_outside(&id, &kick).await.unwrap());
    assert!(!told(&sync(&bob).await, "knock", "knock_state", &room).is_empty());
    assert_eq!(room.membership(&alice, &bob).await, "knock");
    sound(&[&a, &b]);
}
