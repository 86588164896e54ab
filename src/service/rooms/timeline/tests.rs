//! Pages, put together, are just what may be seen: in random rooms, both ways, whatever their size.

use ruma::OwnedEventId;
use serde_json::json;

use super::*;
use crate::service::rooms::testing::{Node, Room};

/// Something happens in the room; what the room does not allow does not.
async fn happen(
    room: &Room<'_>,
    dice: u64,
    (alice, bob): (&Requester, &Requester),
) -> Option<OwnedEventId> {
    let visibility = |visibility: &str| {
        let content = json!({ "history_visibility": visibility });
        room.attempt(alice, "m.room.history_visibility", "", content)
    };
    let member = |sender, membership: &str| {
        let content = json!({ "membership": membership });
        room.attempt(sender, "m.room.member", bob.user_id.as_str(), content)
    };
    match dice % 14 {
        0 => visibility("joined").await,
        1 => visibility("invited").await,
        2 => visibility("shared").await,
        3 => visibility("world_readable").await,
        4 => member(bob, "join").await,
        5 => member(bob, "leave").await,
        6 => member(alice, "invite").await,
        7 => member(alice, "ban").await,
        8 => member(alice, "leave").await,
        _ => Some(room.say(alice, "something").await),
    }
}

/// All pages, in the order in which they were read.
fn pages(sight: &Sight<'_>, dir: Direction, limit: usize) -> Vec<i64> {
    let (mut found, mut from) = (Vec::new(), None);
    loop {
        let page = Page {
            from,
            to: None,
            dir,
            limit,
        };
        let slice = sight.slice(page, &RoomEventFilter::default()).unwrap();
        found.extend(
            slice
                .events
                .iter()
                .filter_map(|seen| seen.stored.facts.order),
        );
        if slice.exhausted {
            return found;
        }
        assert!(from != Some(slice.end), "a page leads somewhere");
        from = Some(slice.end);
    }
}

#[tokio::test]
async fn pages_are_just_what_may_be_seen() {
    let node = Node::new();
    let (alice, bob, eve) = (node.user("alice"), node.user("bob"), node.user("eve"));
    for _ in 0..25 {
        let room = node.room(&alice, "shared").await;
        for _ in 0..40 {
            happen(&room, node.services.entropy.number(), (&alice, &bob)).await;
        }
        let view = node.view();
        for user in [&alice, &bob, &eve] {
            let sight = node.services.rooms.sight(&view, room.nid, user).unwrap();
            let mut expect = Vec::new();
            for row in TIMELINE.scan(&view, &(room.nid,)) {
                let ((_, order), (nid,)) = row.unwrap();
                let stored = sight.rooms.event(&view, nid).unwrap();
                if sight.sees(&stored).unwrap().is_some() {
                    expect.push(order);
                }
            }
            for limit in [1, 2, 7, 100] {
                let mut back = pages(&sight, Direction::Backward, limit);
                back.reverse();
                for found in [pages(&sight, Direction::Forward, limit), back] {
                    assert_eq!(found, expect, "{} by {limit}", user.user_id);
                }
            }
        }
    }
}
