//! Rooms that several servers write at once, delivered in every order: what they become does not depend on it.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use ruma::RoomVersionId;
use serde_json::json;

use super::*;
use crate::{
    protocol::ingest::{Dropped, receive},
    service::rooms::testing::{
        Node,
        world::{State, World},
    },
    store::schema::TIMELINE,
};

const ALICE: &str = "@alice:a.example";
const USERS: [&str; 4] = [
    ALICE,
    "@bob:b.example",
    "@carol:c.example",
    "@local:localhost",
];

/// A room with everybody in it.
fn room(version: &RoomVersionId) -> World {
    let mut world = World::new(version, ALICE);
    for user in &USERS[1..] {
        world.join(user);
    }
    world
}

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

/// The orders that are possible: an event comes after those that it follows.
fn order(world: &World, priorities: &[u32]) -> Vec<usize> {
    let mut done = BTreeSet::from([0]);
    let mut order = Vec::new();
    while done.len() < world.events.len() {
        let ready = (1..world.events.len()).filter(|at| !done.contains(at));
        let ready = ready.filter(|at| {
            world.events[*at]
                .prev
                .iter()
                .all(|prev| done.contains(prev))
        });
        let next = ready
            .min_by_key(|at| (priorities[at % priorities.len()], *at))
            .unwrap();
        done.insert(next);
        order.push(next);
    }
    order
}

#[derive(Clone, Debug)]
struct Try {
    prev: Vec<prop::sample::Index>,
    recent: bool,
    sender: usize,
    target: usize,
    kind: usize,
    level: i64,
}

fn tries() -> impl Strategy<Value = Vec<Try>> {
    let one = (
        proptest::collection::vec(any::<prop::sample::Index>(), 1..4),
        any::<bool>(),
        0..3_usize,
        0..3_usize,
        0..10_usize,
        -1..101_i64,
    );
    let one = one.prop_map(|(prev, recent, sender, target, kind, level)| Try {
        prev,
        recent,
        sender,
        target,
        kind,
        level,
    });
    proptest::collection::vec(one, 3..22)
}

fn attempt(world: &mut World, tried: &Try) {
    let ends = world.ends();
    let count = world.events.len();
    let mut prev: BTreeSet<usize> = BTreeSet::new();
    for pick in &tried.prev {
        prev.insert(if tried.recent {
            ends[pick.index(ends.len())]
        } else {
            // What came with the room is followed by all.
            6 + pick.index(count - 6)
        });
    }
    let prev: Vec<_> = prev.into_iter().collect();
    let (sender, target) = (USERS[tried.sender], USERS[tried.target]);
    let member = |membership: &str| json!({ "membership": membership });
    // The one who made the room stays in it.
    let gone = if target == ALICE { "join" } else { "leave" };
    let banned = if target == ALICE { "join" } else { "ban" };
    let (kind, key, content) = match tried.kind {
        0 | 1 => (
            "m.room.message",
            None,
            json!({ "body": "said", "msgtype": "m.text" }),
        ),
        2 | 3 => (
            "m.room.topic",
            Some(""),
            json!({ "topic": tried.level.to_string() }),
        ),
        4 => (
            "m.room.name",
            Some(""),
            json!({ "name": tried.level.to_string() }),
        ),
        5 => ("m.room.member", Some(target), member(banned)),
        6 => ("m.room.member", Some(target), member(gone)),
        7 => ("m.room.member", Some(target), member("join")),
        8 => (
            "m.room.join_rules",
            Some(""),
            json!({ "join_rule": if tried.level < 50 { "invite" } else { "public" } }),
        ),
        _ => {
            let mut users = BTreeMap::from([(target, tried.level)]);
            users.remove(ALICE);
            if !world.rules.authorization.explicitly_privilege_room_creators {
                users.insert(ALICE, 100);
            }
            (
                "m.room.power_levels",
                Some(""),
                json!({ "users": users, "events": { "m.room.topic": 0 } }),
            )
        }
    };
    world.add(&prev, sender, kind, key, content);
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
