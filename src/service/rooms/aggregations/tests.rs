//! What is counted and listed is right in every order in which events come, also where some are undone.

use proptest::{prelude::*, sample::Index};
use ruma::RoomVersionId;
use serde_json::json;

use super::*;
use crate::{
    service::rooms::{
        Before,
        testing::{
            Node,
            chance::{ALICE, USERS, attempt, order, room, tries},
            world::World,
        },
    },
    store::schema::THREADS,
};

/// Something that is said about something said before, on any branch.
#[derive(Clone, Debug)]
struct Said {
    prev: Index,
    about: Index,
    sender: usize,
    kind: usize,
}

fn said() -> impl Strategy<Value = Vec<Said>> {
    let one = (any::<Index>(), any::<Index>(), 0..3_usize, 0..7_usize);
    let one = one.prop_map(|(prev, about, sender, kind)| Said {
        prev,
        about,
        sender,
        kind,
    });
    proptest::collection::vec(one, 4..24)
}

fn say(world: &mut World, said: &Said) {
    // What came with the room is followed by all.
    let prev = 6 + said.prev.index(world.events.len() - 6);
    let about = 6 + said.about.index(world.events.len() - 6);
    let (sender, about) = (USERS[said.sender], world.events[about].id().clone());
    let relates = |kind: &str| {
        json!({
            "msgtype": "m.text", "body": kind, "m.new_content": { "msgtype": "m.text", "body": kind },
            "m.relates_to": { "rel_type": kind, "event_id": about },
        })
    };
    let kind = match said.kind {
        0 | 1 => "m.thread",
        2 => "m.replace",
        3 => "m.reference",
        4 => "m.annotation",
        _ => {
            let before = world.resolved(&[prev]);
            let kind = "m.room.redaction";
            world.add_with(&[prev], before, sender, kind, None, json!({}), Some(about));
            return;
        }
    };
    world.add(&[prev], sender, "m.room.message", None, relates(kind));
}

/// How many rows there are: by the relations themselves, and by what is made from them.
fn rows(node: &Node) -> (usize, usize, usize, u64) {
    let view = node.view();
    let replies = THREAD_REPLIES.scan(&view, &());
    (
        RELATIONS.scan(&view, &()).count(),
        RELATIONS_BY.scan(&view, &()).count(),
        EDITS.scan(&view, &()).count(),
        replies.map(|row| row.unwrap().1.0).sum(),
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn in_every_order_of_arrival(
        tries in tries(),
        said in said(),
        priorities in proptest::collection::vec(proptest::collection::vec(any::<u32>(), 40), 2),
        version in prop_oneof![Just(RoomVersionId::V10), Just(RoomVersionId::V12)],
    ) {
        let mut world = room(&version);
        world.append(ALICE, "m.room.message", None, json!({ "body": "first", "msgtype": "m.text" }));
        for (at, said) in said.iter().enumerate() {
            say(&mut world, said);
            // Somebody may be banned meanwhile, on some branch.
            if let Some(tried) = tries.get(at / 2).filter(|_| at % 2 == 1) {
                attempt(&mut world, tried);
            }
        }
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for priorities in &priorities {
            let node = Node::new();
            let mut guard = runtime.block_on(node.adopt(&world));
            let head = guard.head();
            for at in order(&world, priorities) {
                let pdu = &world.events[at].pdu;
                node.services.rooms.receive(head, pdu, Before::Previous, |_| {}).unwrap();
                node.check();
            }
        }
    }
}

#[tokio::test]
async fn a_store_from_before_gets_the_rows() {
    let node = Node::new();
    let (alice, bob) = (node.user("alice"), node.user("bob"));
    let room = node.room(&alice, "shared").await;
    room.member(&bob, &bob, "join").await;
    for _ in 0..3 {
        let root = room.say(&alice, "root").await;
        for user in [&alice, &bob, &bob] {
            room.relate(user, "m.thread", &root, "reply").await;
        }
        room.relate(&alice, "m.replace", &root, "edit").await;
        room.relate(&bob, "m.replace", &root, "not theirs").await;
        room.relate(&bob, "m.reference", &root, "see").await;
    }
    node.check();
    let before = rows(&node);
    assert_eq!(before, (18, 18, 3, 9));

    let store = node.services.store();
    let view = store.latest();
    let made = store.commit(|batch| {
        for row in RELATIONS_BY.scan(&view, &()) {
            RELATIONS_BY.delete(batch, &row?.0);
        }
        for row in EDITS.scan(&view, &()) {
            EDITS.delete(batch, &row?.0);
        }
        for row in THREAD_REPLIES.scan(&view, &()) {
            THREAD_REPLIES.delete(batch, &row?.0);
        }
        for row in THREAD_REPLIES_OF.scan(&view, &()) {
            THREAD_REPLIES_OF.delete(batch, &row?.0);
        }
        META.delete(batch, &("aggregations",));
        Ok(())
    });
    store.durable(made.unwrap().position).await.unwrap();
    assert_eq!(rows(&node), (18, 0, 0, 0));
    let mut complaints = 0;
    store.check(|_| complaints += 1).unwrap();
    assert!(complaints >= 18 + 3 + 3, "{complaints}");

    // Twice, as when the node stops halfway.
    for _ in 0..2 {
        let again = store.commit(|batch| {
            META.delete(batch, &("aggregations",));
            Ok(())
        });
        let _not_awaited = again.unwrap();
        open(store).unwrap();
    }
    let done = store.commit(|_| Ok(())).unwrap();
    store.durable(done.position).await.unwrap();
    assert_eq!(rows(&node), before);
    node.check();
    assert!(THREADS.scan(&node.view(), &()).count() >= 3);
}
