//! Rooms that several servers write at once, delivered in every order: what they become does not depend on it.

use std::collections::BTreeSet;

use proptest::prelude::*;
use ruma::RoomVersionId;
use serde_json::json;

use super::*;
use crate::{
    protocol::ingest::{Dropped, receive},
    service::rooms::testing::{
        Node,
        chance::{ALICE, USERS, attempt, order, room, tries},
        world::{State, World},
    },
    store::schema::{LOCAL_EVENTS, TIMELINE},
};

fn deliver(node: &Node, head: &mut RoomHead, world: &World, at: usize) -> Outcome {
    let made = &world.events[at];
    let rooms = &node.services.rooms;
    rooms
        .receive(head, &made.pdu, Before::Previous, |_| {})
        .unwrap()
}

fn verdict(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Known => "known",
        Outcome::Needs(_) => "needs",
        Outcome::Written {
            verdict: Verdict::Accepted,
            ..
        } => "accepted",
        Outcome::Written {
            verdict: Verdict::SoftFailed(_),
            ..
        } => "soft-failed",
        Outcome::Written {
            verdict: Verdict::Rejected(_),
            ..
        } => "rejected",
    }
}

/// The states that are stored around an event.
fn around(node: &Node, world: &World, at: usize) -> (State, State) {
    let (rooms, store) = (&node.services.rooms, node.services.store());
    let stored = rooms.find_event(&store.latest(), world.events[at].id());
    let stored = stored.unwrap().unwrap();
    let named = |id| node.named(world, &store.state(id).unwrap());
    (named(stored.facts.before), named(stored.after()))
}

/// The state that the room's own ends resolve to, on whole maps.
fn expected(world: &World, head: &RoomHead) -> State {
    let ends: Vec<usize> = head
        .row
        .extremities
        .iter()
        .map(|(id, _)| world.place(id))
        .collect();
    world.resolved(&ends)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_order_gives_the_same_room(
        tries in tries(),
        priorities in proptest::collection::vec(proptest::collection::vec(any::<u32>(), 40), 3),
        version in prop_oneof![Just(RoomVersionId::V3), Just(RoomVersionId::V11), Just(RoomVersionId::V12)],
    ) {
        let mut world = room(&version);
        for tried in &tries {
            attempt(&mut world, tried);
        }
        let ends: Vec<_> = world.ends().into_iter().rev().take(20).collect();
        world.say(&ends, ALICE, "all together");
        let last = world.events.len() - 1;
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut rejected: Option<BTreeSet<usize>> = None;
        for priorities in &priorities {
            let node = Node::new();
            let mut guard = runtime.block_on(node.adopt(&world));
            let head = guard.head();
            let mut refused = BTreeSet::new();
            for at in order(&world, priorities) {
                let outcome = deliver(&node, head, &world, at);
                let name = verdict(&outcome);
                prop_assert_eq!(name == "rejected", world.events[at].rejected, "event {} is {}", at, name);
                if name == "rejected" {
                    refused.insert(at);
                }
                prop_assert_eq!(verdict(&deliver(&node, head, &world, at)), "known");
                let (before, after) = around(&node, &world, at);
                prop_assert_eq!(&before, &world.events[at].before, "before {}", at);
                prop_assert_eq!(&after, &world.events[at].after, "after {}", at);
                prop_assert_eq!(node.state_in(&world, head), expected(&world, head));
            }
            prop_assert_eq!(&node.state_in(&world, head), &world.events[last].after);
            let same = rejected.get_or_insert_with(|| refused.clone());
            prop_assert_eq!(&refused, &*same);
            node.check();
        }
    }
}

#[tokio::test]
async fn a_straight_line_costs_one_row_of_state_and_no_resolution() {
    let mut world = room(&RoomVersionId::V11);
    let said: Vec<_> = (0..5)
        .map(|n| {
            let ends = world.ends();
            world.say(&ends, USERS[1], &format!("message {n}"))
        })
        .collect();
    let node = Node::new();
    let mut guard = node.adopt(&world).await;
    let head = guard.head();
    for at in 1..world.events.len() {
        assert_eq!(verdict(&deliver(&node, head, &world, at)), "accepted");
    }
    let view = node.view();
    for at in said {
        let id = world.events[at].id();
        let stored = node.services.rooms.find_event(&view, id).unwrap().unwrap();
        assert_eq!(
            (stored.facts.before, stored.facts.current),
            (head.row.chain.tip, None)
        );
    }
    let shown = TIMELINE.scan(&view, &(head.nid,)).count();
    assert_eq!(shown, world.events.len());
    assert_eq!(head.servers.len(), 4);
    node.check();
}

#[tokio::test]
async fn what_is_missing_is_asked_for() {
    let mut world = room(&RoomVersionId::V11);
    let ends = world.ends();
    let first = world.say(&ends, USERS[1], "first");
    let second = world.say(&[first], USERS[1], "second");
    let node = Node::new();
    let mut guard = node.adopt(&world).await;
    let head = guard.head();
    assert!(matches!(
        deliver(&node, head, &world, 2),
        Outcome::Needs(Need::AuthEvents(_))
    ));
    for at in 1..first {
        deliver(&node, head, &world, at);
    }
    let missing = Need::PrevEvents(vec![world.events[first].id().clone()]);
    assert_eq!(
        deliver(&node, head, &world, second),
        Outcome::Needs(missing)
    );
    assert_eq!(verdict(&deliver(&node, head, &world, first)), "accepted");
    assert_eq!(verdict(&deliver(&node, head, &world, second)), "accepted");
}

#[tokio::test]
async fn what_is_followed_already_ends_that_what_it_follows_is_an_end() {
    let mut world = room(&RoomVersionId::V11);
    let known = world.events.len();
    let ends = world.ends();
    let topic = json!({ "topic": "old" });
    let first = world.add(&ends, ALICE, "m.room.topic", Some(""), topic);
    let topic = json!({ "topic": "new" });
    let second = world.add(&[first], ALICE, "m.room.topic", Some(""), topic);
    let third = world.say(&[second], ALICE, "third");
    let node = Node::new();
    let mut guard = node.adopt(&world).await;
    let head = guard.head();
    for at in 1..known {
        deliver(&node, head, &world, at);
    }
    // The last comes first, with the state before it as somebody tells that.
    let told = world.events[third].before.values();
    let told: Vec<_> = told.map(|at| world.events[*at].id().clone()).collect();
    let rooms = &node.services.rooms;
    let state = vec![world.events[second].pdu.clone()];
    rooms.store_unplaced_events(head, state).unwrap();
    let pdu = &world.events[third].pdu;
    let outcome = rooms.receive(head, pdu, Before::Given(&told), |_| {});
    assert_eq!(verdict(&outcome.unwrap()), "accepted");
    assert_eq!(verdict(&deliver(&node, head, &world, first)), "accepted");
    assert_eq!(node.state_in(&world, head), expected(&world, head));
    assert_eq!(verdict(&deliver(&node, head, &world, second)), "accepted");
    let ends = head.row.extremities.iter().map(|(id, _)| world.place(id));
    assert_eq!(
        ends.collect::<BTreeSet<_>>(),
        world.ends().into_iter().collect()
    );
    assert_eq!(node.state_in(&world, head), world.events[third].after);
    node.check();
}

#[test]
fn bytes_that_are_no_event_are_dropped() {
    let world = room(&RoomVersionId::V11);
    let good = crate::protocol::format::federation(&world.events[1].pdu.event);
    assert!(receive(&good, world.rules).unwrap().intact);
    let edited = good.replace("\"join\"", "\"join\",\"extra\":1");
    let received = receive(&edited, world.rules).unwrap();
    assert!(!received.intact);
    assert_eq!(received.event().content_json(), "{\"membership\":\"join\"}");
    assert_eq!(received.event().header.id, *world.events[1].id());
    for (bad, json) in [
        ("{", true),
        ("[]", true),
        ("{}", false),
        ("{\"type\":1}", false),
    ] {
        let dropped = receive(bad, world.rules).unwrap_err();
        assert_eq!(
            matches!(dropped, Dropped::Json(_)),
            json,
            "{bad}: {dropped}"
        );
    }
}

#[tokio::test]
async fn what_is_accepted_for_others_is_told_behind_what_is_newer_than_its_number() {
    let mut world = room(&RoomVersionId::V11);
    let known = world.events.len();
    let ends = world.ends();
    let beside = world.say(&ends, ALICE, "beside");
    let topic = json!({ "topic": "tea" });
    let state = world.add(&ends, ALICE, "m.room.topic", Some(""), topic);
    let node = Node::new();
    let mut guard = node.adopt(&world).await;
    let head = guard.head();
    for at in 1..known {
        deliver(&node, head, &world, at);
    }
    let (rooms, store) = (&node.services.rooms, node.services.store());
    let pdu = &world.events[state].pdu;
    rooms
        .store_unplaced_events(head, vec![pdu.clone()])
        .unwrap();
    // Others have been told of all this.
    deliver(&node, head, &world, beside);
    let told = store.latest().position();
    let accepted = rooms.accept(head, pdu, Before::Previous).unwrap();
    assert_eq!(verdict(&accepted), "accepted");
    let view = store.latest();
    let stored = rooms.find_event(&view, &pdu.event.header.id);
    let nid = stored.unwrap().unwrap().nid;
    assert!(nid.0 < told.0);
    let rows: Vec<_> = LOCAL_EVENTS
        .scan(&view, &(head.nid,))
        .map(Result::unwrap)
        .collect();
    assert_eq!(rows.len(), 1);
    let ((_, position), named) = rows[0];
    assert!(position > told, "{position} {told}");
    assert_eq!(named, Some(nid));
    node.check();
}
