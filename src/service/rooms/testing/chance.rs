//! Random things that happen in a room, by its members and on any of its branches.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use ruma::RoomVersionId;
use serde_json::json;

use super::world::World;

pub(crate) const ALICE: &str = "@alice:a.example";
pub(crate) const USERS: [&str; 4] = [
    ALICE,
    "@bob:b.example",
    "@carol:c.example",
    "@local:localhost",
];

/// A room with everybody in it.
pub(crate) fn room(version: &RoomVersionId) -> World {
    let mut world = World::new(version, ALICE);
    for user in &USERS[1..] {
        world.join(user);
    }
    world
}

/// The orders that are possible: an event comes after those that it follows.
pub(crate) fn order(world: &World, priorities: &[u32]) -> Vec<usize> {
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
pub(crate) struct Try {
    prev: Vec<prop::sample::Index>,
    recent: bool,
    sender: usize,
    target: usize,
    kind: usize,
    level: i64,
}

pub(crate) fn tries() -> impl Strategy<Value = Vec<Try>> {
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

pub(crate) fn attempt(world: &mut World, tried: &Try) {
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
