//! The table of the specification, asked at the point of each event.

use serde_json::json;

use super::*;
use crate::service::rooms::testing::{Node, Room};

/// What a user sees of the events, each as their membership at the time or nothing.
fn sees(room: &Room<'_>, user: &Requester, events: &[ruma::OwnedEventId]) -> Vec<String> {
    let view = room.node.view();
    let sight = room
        .node
        .services
        .rooms
        .sight(&view, room.nid, user)
        .unwrap();
    let seen = |id| sight.sees(&room.event(id)).unwrap();
    events
        .iter()
        .map(|id| seen(id).map_or_else(|| "-".to_owned(), |membership| membership.to_string()))
        .collect()
}

#[tokio::test]
async fn the_table_at_the_point_of_each_event() {
    let node = Node::new();
    let (alice, bob, eve) = (node.user("alice"), node.user("bob"), node.user("eve"));
    // visibility; seen before the invitation, as a guest in the house, after leaving, after coming back
    for (visibility, outside, inside, left, back) in [
        (
            "world_readable",
            "leave",
            ["leave", "invite", "join", "join"],
            ["leave", "invite", "join", "leave"],
            ["leave", "invite", "join", "leave"],
        ),
        (
            "shared",
            "-",
            ["leave", "invite", "join", "join"],
            ["leave", "invite", "join", "-"],
            ["leave", "invite", "join", "leave"],
        ),
        (
            "invited",
            "-",
            ["-", "invite", "join", "join"],
            ["-", "invite", "join", "-"],
            ["-", "invite", "join", "-"],
        ),
        (
            "joined",
            "-",
            ["-", "-", "join", "join"],
            ["-", "-", "join", "-"],
            ["-", "-", "join", "-"],
        ),
    ] {
        let room = node.room(&alice, visibility).await;
        let mut events = vec![room.say(&alice, "before").await];
        assert_eq!(
            sees(&room, &bob, &events),
            [outside],
            "{visibility} outside"
        );
        room.member(&alice, &bob, "invite").await;
        events.push(room.say(&alice, "invited").await);
        room.member(&bob, &bob, "join").await;
        events.push(room.say(&alice, "joined").await);
        let here = room.say(&alice, "still joined").await;
        let so_far = [&events[..], &[here]].concat();
        assert_eq!(sees(&room, &bob, &so_far), inside, "{visibility} inside");
        let leave = room.member(&bob, &bob, "leave").await;
        events.push(room.say(&alice, "left").await);
        assert_eq!(sees(&room, &bob, &events), left, "{visibility} left");
        assert_eq!(
            sees(&room, &bob, &[leave]),
            ["leave"],
            "{visibility}: one's own leave"
        );
        // What came after the leave stays hidden through later changes.
        room.member(&alice, &bob, "ban").await;
        assert_eq!(sees(&room, &bob, &events), left, "{visibility} banned");
        room.member(&alice, &bob, "leave").await;
        room.member(&alice, &bob, "invite").await;
        assert_eq!(
            sees(&room, &bob, &events),
            left,
            "{visibility} invited again"
        );
        room.member(&bob, &bob, "join").await;
        assert_eq!(sees(&room, &bob, &events), back, "{visibility} back");
        let stranger = sees(&room, &eve, &events[2..]);
        assert_eq!(stranger, [outside; 2], "{visibility} stranger");
    }
}

#[tokio::test]
async fn of_a_changed_visibility_the_more_open_side_counts() {
    let node = Node::new();
    let (alice, eve) = (node.user("alice"), node.user("eve"));
    let room = node.room(&alice, "joined").await;
    let set = async |visibility: &str| {
        let content = json!({ "history_visibility": visibility });
        room.state(&alice, "m.room.history_visibility", "", content)
            .await
    };
    let events = [
        room.say(&alice, "closed").await,
        set("world_readable").await,
        room.say(&alice, "open").await,
        set("joined").await,
        room.say(&alice, "closed again").await,
    ];
    assert_eq!(
        sees(&room, &eve, &events),
        ["-", "leave", "leave", "leave", "-"]
    );
    assert_eq!(sees(&room, &alice, &events), ["join"; 5]);
}

#[tokio::test]
async fn what_is_hidden_from_everybody() {
    let node = Node::new();
    let (alice, bob) = (node.user("alice"), node.user("bob"));
    let room = node.room(&alice, "world_readable").await;
    room.member(&bob, &bob, "join").await;
    let said = room.say(&bob, "noise").await;
    let topic = {
        let levels = json!({ "users": { "@alice:localhost": 100, "@bob:localhost": 100 } });
        room.state(&alice, "m.room.power_levels", "", levels).await;
        room.state(&bob, "m.room.topic", "", json!({ "topic": "noise" }))
            .await
    };
    let both = [said.clone(), topic];
    assert_eq!(sees(&room, &alice, &both), ["join", "join"]);

    let view = node.view();
    for (rejected, soft_failed) in [(true, false), (false, true)] {
        let stored = room.event(&said);
        let mut event = Event::from_parts(
            stored.event.header.clone(),
            stored.event.client.clone(),
            stored.event.wire.clone(),
            stored.event.content_len(),
        );
        event.header.flags.rejected = rejected;
        event.header.flags.soft_failed = soft_failed;
        let bad = Stored {
            nid: stored.nid,
            event: Arc::new(event),
            facts: stored.facts.clone(),
        };
        let sight = node.services.rooms.sight(&view, room.nid, &alice).unwrap();
        assert_eq!(sight.sees(&bad).unwrap(), None);
    }

    let ignore = crate::store::schema::AccountDataRow {
        position: view.position(),
        content: json!({ "ignored_users": { "@bob:localhost": {} } }).to_string(),
    };
    let key = (alice.nid, RoomNid::default(), "m.ignored_user_list");
    let _visible_at_once = node
        .services
        .store()
        .commit(|batch| {
            batch.position();
            ACCOUNT_DATA.put(batch, &key, &ignore);
            Ok(())
        })
        .unwrap();
    assert_eq!(
        sees(&room, &alice, &both),
        ["-", "join"],
        "state of ignored users is told"
    );
    assert_eq!(sees(&room, &bob, &both), ["join", "join"]);
}

#[tokio::test]
async fn how_far_the_state_may_be_read() {
    let node = Node::new();
    let (alice, bob, eve) = (node.user("alice"), node.user("bob"), node.user("eve"));
    let reach = |room: &Room<'_>, user: &Requester| {
        let view = room.node.view();
        match room
            .node
            .services
            .rooms
            .sight(&view, room.nid, user)
            .unwrap()
            .reach()
        {
            Ok(Reach::Now) => "now".to_owned(),
            Ok(Reach::Until(by)) => by.event.header.id.to_string(),
            Err(error) => error.answer().1.to_owned(),
        }
    };
    let room = node.room(&alice, "shared").await;
    assert_eq!(reach(&room, &alice), "now");
    room.member(&alice, &bob, "invite").await;
    assert_eq!(reach(&room, &bob), "M_FORBIDDEN");
    room.member(&bob, &bob, "join").await;
    let leave = room.member(&bob, &bob, "leave").await;
    room.member(&alice, &bob, "ban").await;
    assert_eq!(reach(&room, &bob), leave.as_str());
    assert_eq!(reach(&room, &eve), "M_FORBIDDEN");
    let open = node.room(&alice, "world_readable").await;
    assert_eq!(reach(&open, &eve), "now");
}
