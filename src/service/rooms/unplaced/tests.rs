//! Rooms of other servers: entered, left, entered again, and known only by an invite.

use ruma::RoomVersionId;
use serde_json::json;

use crate::{
    error::Error,
    protocol::ingest::{Need, Pdu},
    service::rooms::{
        Entered,
        testing::{
            Node,
            world::{State, World},
        },
    },
};

const ALICE: &str = "@alice:a.example";
const BOB: &str = "@bob:b.example";
const LOCAL: &str = "@local:localhost";

fn world(version: &RoomVersionId) -> World {
    let mut world = World::new(version, ALICE);
    world.join(BOB);
    world.append(ALICE, "m.room.topic", Some(""), json!({ "topic": "old" }));
    let ends = world.ends();
    world.say(&ends, BOB, "before you came");
    world
}

#[tokio::test]
async fn a_join_that_is_not_allowed_or_not_whole_makes_no_room() {
    let mut world = world(&RoomVersionId::V11);
    world.append(
        ALICE,
        "m.room.member",
        Some(LOCAL),
        json!({ "membership": "ban" }),
    );
    let join = world.join(LOCAL);
    assert!(world.events[join].rejected);
    let node = Node::new();
    let rooms = &node.services.rooms;
    let mut guard = rooms.lock_or_make(&world.id, &world.version).await.unwrap();
    let head = guard.head();
    let (mut pdus, state) = world.told(join);
    let join = &world.events[join].pdu;
    assert!(matches!(
        rooms.enter(head, join, &state).unwrap(),
        Entered::Needs(Need::AuthEvents(_))
    ));
    let report = rooms.store_unplaced_events(head, pdus.clone()).unwrap();
    assert_eq!((report.stored, report.left_out), (pdus.len(), 0));
    assert!(matches!(
        rooms.enter(head, join, &state),
        Err(Error::Denied(_))
    ));
    // Again changes nothing.
    pdus.truncate(3);
    assert_eq!(rooms.store_unplaced_events(head, pdus).unwrap().stored, 0);
    drop(guard);
    assert!(
        rooms.lock(&world.id).await.is_err(),
        "there is no such room"
    );
    node.check();
}

#[tokio::test]
async fn what_hangs_on_nothing_is_left_out_and_what_hangs_on_rejected_is_rejected() {
    let mut world = World::new(&RoomVersionId::V11, ALICE);
    world.append(
        ALICE,
        "m.room.join_rules",
        Some(""),
        json!({ "join_rule": "invite" }),
    );
    let bad = world.join(BOB);
    assert!(world.events[bad].rejected);
    let mut before: State = world.events[bad].after.clone();
    before.insert(("m.room.member".to_owned(), BOB.to_owned()), bad);
    let worse = world.add_with(
        &[bad],
        before,
        BOB,
        "m.room.topic",
        Some(""),
        json!({ "topic": "bob's" }),
        None,
    );
    let node = Node::new();
    let mut guard = node
        .services
        .rooms
        .lock_or_make(&world.id, &world.version)
        .await
        .unwrap();
    let pdus = |which: &[usize]| {
        which
            .iter()
            .map(|at| world.events[*at].pdu.clone())
            .collect()
    };
    let rooms = &node.services.rooms;
    let alone = rooms
        .store_unplaced_events(guard.head(), pdus(&[worse]))
        .unwrap();
    assert_eq!((alone.stored, alone.left_out), (0, 1));
    let all: Vec<usize> = (0..world.events.len()).collect();
    let report = rooms
        .store_unplaced_events(guard.head(), pdus(&all))
        .unwrap();
    assert_eq!((report.stored, report.rejected), (all.len(), 2));
    node.check();
}

#[tokio::test]
#[ignore = "10,000 members and 100,000 state events take 46 s in a debug build, and a smaller room is always tested: cargo test --release --lib big_room -- --ignored --nocapture"]
async fn a_big_room_is_entered() {
    enter_big(10_000, 90_000).await;
}

#[tokio::test]
async fn a_middling_room_is_entered() {
    enter_big(300, 2_300).await;
}

/// A room with so many members, whose state was changed so often.
async fn enter_big(members: usize, others: usize) {
    let mut world = World::new(&RoomVersionId::V11, ALICE);
    let mut state = world.resolved(&world.ends());
    let mut last = world.ends();
    for n in 0..members + others {
        let user = format!("@user{n}:server{}.example", n % 50);
        let (sender, kind, key, content) = if n < members {
            (
                &*user,
                "m.room.member",
                &*user,
                json!({ "membership": "join" }),
            )
        } else {
            (ALICE, "org.example.state", &user[1..], json!({ "n": n }))
        };
        let at = world.add_quick(&last, &state, sender, kind, key, content);
        state.insert((kind.to_owned(), key.to_owned()), at);
        last = vec![at];
    }
    let join = world.add_quick(
        &last,
        &state,
        LOCAL,
        "m.room.member",
        LOCAL,
        json!({ "membership": "join" }),
    );
    let mut pdus: Vec<Pdu> = world.events.iter().map(|made| made.pdu.clone()).collect();
    pdus.pop();
    let ids: Vec<_> = state
        .values()
        .map(|at| world.events[*at].id().clone())
        .collect();
    let node = Node::new();
    let rooms = &node.services.rooms;
    let mut guard = rooms.lock_or_make(&world.id, &world.version).await.unwrap();
    let report = rooms.store_unplaced_events(guard.head(), pdus).unwrap();
    assert_eq!((report.rejected, report.left_out), (0, 0));
    let entered = rooms
        .enter(guard.head(), &world.events[join].pdu, &ids)
        .unwrap();
    assert!(matches!(entered, Entered::Done(_)));
    assert_eq!(guard.head().row.joined, u64::try_from(members).unwrap() + 2);
    assert_eq!(guard.head().servers.len(), 52);
    node.check();
}
