//! History from before this node came: fetched piece by piece, in whatever pieces, it reads as if it had been here.

use std::collections::HashMap;

use ruma::{OwnedEventId, RoomVersionId, api::Direction};
use serde_json::{Value, json};

use super::{Filled, Gap};
use crate::{
    protocol::{filter::RoomEventFilter, ingest::Pdu, token::PageToken},
    service::{
        Requester,
        rooms::{
            Before, Page, RoomHead,
            testing::{Node, world::World},
        },
    },
};

const ALICE: &str = "@alice:a.example";
const BOB: &str = "@bob:b.example";
const LOCAL: &str = "@local:localhost";

/// What other servers tell of the state before an event.
fn state(world: &World, at: usize) -> Vec<OwnedEventId> {
    let state = world.events[at].before.values();
    state.map(|at| world.events[*at].id().clone()).collect()
}

/// Fills a gap with the events, and tells whatever state is asked for.
fn fill(node: &Node, head: &mut RoomHead, world: &World, gap: i64, which: &[usize]) -> Filled {
    let pdus: Vec<Pdu> = which
        .iter()
        .map(|at| world.events[*at].pdu.clone())
        .collect();
    let rooms = &node.services.rooms;
    let mut states = HashMap::new();
    for _ in 0..3 {
        match rooms.fill(head, gap, &pdus, &states).unwrap() {
            Filled::Needs {
                auth,
                states: lacking,
            } => {
                let auth = auth.iter().map(|id| world.place(id));
                let chain = world.chain(auth.clone()).into_iter().chain(auth);
                let mut pdus: Vec<Pdu> = chain.map(|at| world.events[at].pdu.clone()).collect();
                for id in lacking {
                    let at = world.place(&id);
                    let given = world.events[at].before.values().copied();
                    let chain = world.chain(given.clone()).into_iter().chain(given);
                    pdus.extend(chain.map(|at| world.events[at].pdu.clone()));
                    states.insert(id, state(world, at));
                }
                rooms.store_unplaced_events(head, pdus).unwrap();
            }
            done @ Filled::Done { .. } => return done,
        }
    }
    panic!("it always needs more");
}

/// The bodies that one page shows, newest first, and where the next one begins.
fn page(
    node: &Node,
    user: &Requester,
    world: &World,
    from: Option<PageToken>,
) -> (Vec<String>, Option<PageToken>) {
    let page = Page {
        from,
        to: None,
        dir: Direction::Backward,
        limit: 100,
    };
    let filter = RoomEventFilter::default();
    let answer = node
        .services
        .rooms
        .messages(user, &world.id, page, &filter)
        .unwrap();
    let answer: Value = serde_json::from_str(&answer).unwrap();
    let chunk = answer["chunk"].as_array().unwrap();
    let bodies = chunk.iter().map(|event| {
        let body = event["content"]["body"].as_str().map(ToOwned::to_owned);
        body.unwrap_or_else(|| event["type"].as_str().unwrap().replace("m.room.", ""))
    });
    (
        bodies.collect(),
        answer["end"].as_str().map(|end| end.parse().unwrap()),
    )
}

fn all_pages(node: &Node, user: &Requester, world: &World) -> Vec<Vec<String>> {
    let (mut pages, mut from) = (Vec::new(), None);
    for _ in 0..10 {
        let (bodies, end) = page(node, user, world, from);
        if !bodies.is_empty() {
            pages.push(bodies);
        }
        match end {
            Some(end) => from = Some(end),
            None => return pages,
        }
    }
    panic!("the pages never end: {pages:?}");
}

fn gaps(node: &Node, head: &RoomHead) -> Vec<Gap> {
    node.services.rooms.gaps(&node.view(), head.nid).unwrap()
}

#[tokio::test]
async fn older_events_come_before_what_is_known() {
    for version in [RoomVersionId::V11, RoomVersionId::V12] {
        let mut world = World::new(&version, ALICE);
        world.join(BOB);
        let ends = world.ends();
        let left = world.say(&ends, ALICE, "left");
        let right = world.say(&ends, BOB, "right");
        world.append(ALICE, "m.room.topic", Some(""), json!({ "topic": "both" }));
        let ends = world.ends();
        let last = world.say(&ends, BOB, "last");
        let join = world.join(LOCAL);
        let edit = {
            let ends = world.ends();
            let content = json!({
                "body": "edit", "msgtype": "m.text", "m.new_content": { "body": "rewritten", "msgtype": "m.text" },
                "m.relates_to": { "rel_type": "m.replace", "event_id": world.events[last].id() },
            });
            world.add(&ends, BOB, "m.room.message", None, content)
        };
        let redaction = {
            let before = world.events[edit].after.clone();
            let target = world.events[left].id().clone();
            world.add_with(
                &[edit],
                before,
                ALICE,
                "m.room.redaction",
                None,
                json!({}),
                Some(target),
            )
        };

        let node = Node::new();
        let user = node.user("local");
        let rooms = &node.services.rooms;
        let mut guard = rooms.lock_or_make(&world.id, &version).await.unwrap();
        let head = guard.head();
        node.enter(head, &world, join);
        node.receive(head, &world, edit);
        node.receive(head, &world, redaction);
        node.check();
        let known = ["redaction", "edit", "member"];
        assert_eq!(all_pages(&node, &user, &world), [known]);
        let (_, end) = page(&node, &user, &world, None);
        let gap = rooms
            .gap_at(&node.view(), head.nid, end.unwrap().0)
            .unwrap()
            .unwrap();
        assert_eq!(gap.row.missing, [world.events[last].id().clone()]);

        // A piece from the middle leads nowhere.
        let Filled::Done { placed, rest, .. } = fill(&node, head, &world, gap.below, &[left])
        else {
            panic!("it is done");
        };
        assert_eq!((placed, rest), (0, Some(gap.clone())));
        // The newest piece first, in the wrong order.
        let state_before = head.state.clone();
        let Filled::Done { placed, rest, .. } = fill(
            &node,
            head,
            &world,
            gap.below,
            &[right, last, last - 1, left],
        ) else {
            panic!("it is done");
        };
        assert_eq!(placed, 4);
        assert!(rest.is_some());
        node.check();
        let pages = all_pages(&node, &user, &world);
        assert_eq!(pages.len(), 1, "down to where the gap begins now");
        assert_eq!(
            pages[0][..5],
            ["redaction", "edit", "member", "last", "topic"]
        );
        let mut sides = pages[0][5..].to_vec();
        sides.sort();
        assert_eq!(
            sides,
            ["message", "right"],
            "what was said on the left is redacted"
        );
        let view = node.view();
        let last_seen = rooms
            .single_event(&user, &world.id, world.events[last].id())
            .unwrap();
        assert!(
            last_seen.contains("rewritten"),
            "the edit has waited for it: {last_seen}"
        );
        let left_seen = rooms
            .find_event(&view, world.events[left].id())
            .unwrap()
            .unwrap();
        assert_eq!(
            left_seen.event.content_json(),
            "{}",
            "the redaction has waited for it"
        );

        // And the rest, down to the beginning.
        let older: Vec<usize> = (0..left).collect();
        let Filled::Done { placed, rest, .. } = fill(&node, head, &world, gap.below, &older) else {
            panic!("it is done");
        };
        assert_eq!((placed, rest), (older.len(), None));
        assert_eq!(gaps(&node, head), []);
        assert_eq!(head.row.gap, None);
        assert_eq!(head.state, state_before, "nothing of it is current");
        node.check();
        let pages = all_pages(&node, &user, &world);
        assert_eq!(pages.len(), 1);
        assert_eq!(pages[0].len(), world.events.len());
        assert_eq!(pages[0].last().unwrap(), "create");
    }
}

#[tokio::test]
async fn a_gap_in_the_middle_is_filled() {
    let mut world = World::new(&RoomVersionId::V11, ALICE);
    world.join(BOB);
    let join = world.join(LOCAL);
    let ends = world.ends();
    let heard = world.say(&ends, BOB, "heard");
    let left = world.append(
        LOCAL,
        "m.room.member",
        Some(LOCAL),
        json!({ "membership": "leave" }),
    );
    let unheard: Vec<usize> = (0..5)
        .map(|n| {
            let ends = world.ends();
            world.say(&ends, BOB, &format!("unheard {n}"))
        })
        .collect();
    let again = world.join(LOCAL);
    let node = Node::new();
    let user = node.user("local");
    let rooms = &node.services.rooms;
    let mut guard = rooms.lock_or_make(&world.id, &world.version).await.unwrap();
    let head = guard.head();
    node.enter(head, &world, join);
    node.receive(head, &world, heard);
    node.receive(head, &world, left);
    node.enter(head, &world, again);
    let pages = all_pages(&node, &user, &world);
    assert_eq!(pages, [vec!["member"], vec!["member", "heard", "member"]]);
    let gap = gaps(&node, head).pop().unwrap();
    let Filled::Done { placed, rest, .. } = fill(&node, head, &world, gap.below, &unheard) else {
        panic!("it is done");
    };
    assert_eq!((placed, rest), (5, None));
    assert_eq!(
        gaps(&node, head).len(),
        1,
        "that of the first time is still there"
    );
    assert_eq!(head.row.gap, Some(-1));
    node.check();
    let pages = all_pages(&node, &user, &world);
    assert_eq!(
        pages,
        [[
            "member",
            "unheard 4",
            "unheard 3",
            "unheard 2",
            "unheard 1",
            "unheard 0",
            "member",
            "heard",
            "member"
        ]]
    );
}

#[tokio::test]
async fn what_is_older_than_the_join_is_read_below_it_though_something_newer_follows_it() {
    let mut world = World::new(&RoomVersionId::V11, ALICE);
    world.join(BOB);
    let mut old = Vec::new();
    for n in 0..4 {
        let ends = world.ends();
        old.push(world.say(&ends, BOB, &format!("old {n}")));
    }
    let beside = world.say(&[old[1]], BOB, "beside");
    let content = json!({ "membership": "join" });
    let join = world.add(&[old[3]], LOCAL, "m.room.member", Some(LOCAL), content);
    let new = world.say(&[join, beside], BOB, "new");
    let node = Node::new();
    let user = node.user("local");
    let rooms = &node.services.rooms;
    let mut guard = rooms.lock_or_make(&world.id, &world.version).await.unwrap();
    let head = guard.head();
    node.enter(head, &world, join);
    let told = state(&world, new);
    let pdu = &world.events[new].pdu;
    rooms
        .receive(head, pdu, Before::Given(&told), |_| {})
        .unwrap();
    assert_eq!(gaps(&node, head).len(), 2);
    let upper = gaps(&node, head).pop().unwrap();
    let all: Vec<usize> = (0..join).collect();
    let Filled::Done { placed, rest, .. } = fill(&node, head, &world, upper.below, &all) else {
        panic!("it is done");
    };
    assert_eq!((placed, rest), (0, None));
    let lower = gaps(&node, head).pop().unwrap();
    assert!(lower.row.missing.contains(world.events[beside].id()));
    fill(&node, head, &world, lower.below, &all);
    assert_eq!(gaps(&node, head), []);
    node.check();
    let pages = all_pages(&node, &user, &world).concat();
    assert_eq!(pages[..3], ["new", "member", "old 3"]);
    assert_eq!(pages.len(), world.events.len());
    let mut once = pages.clone();
    once.sort();
    once.dedup();
    assert_eq!(
        once.iter().filter(|body| body.starts_with("old")).count(),
        4
    );
    assert_eq!(pages.iter().filter(|body| *body == "beside").count(), 1);
}

#[tokio::test]
async fn what_was_said_about_an_event_in_a_gap_is_counted_when_it_comes() {
    for is_redacted_there in [false, true] {
        let mut world = World::new(&RoomVersionId::V11, ALICE);
        let bob = world.join(BOB);
        let root = world.say(&[bob], ALICE, "root");
        let about = |kind: &str, of: &OwnedEventId| {
            json!({
                "body": "about", "msgtype": "m.text",
                "m.new_content": { "body": "about", "msgtype": "m.text" },
                "m.relates_to": { "rel_type": kind, "event_id": of },
            })
        };
        let id = world.events[root].id().clone();
        let thread = about("m.thread", &id);
        // This one lies beside what was said before the join, and is redacted there.
        let beside = world.add(&[root], BOB, "m.room.message", None, thread.clone());
        let older = world.add(&[root], BOB, "m.room.message", None, thread.clone());
        let mut last = older;
        if is_redacted_there {
            let before = world.events[older].after.clone();
            let target = world.events[beside].id().clone();
            for _ in 0..2 {
                last = world.add_with(
                    &[last],
                    before.clone(),
                    ALICE,
                    "m.room.redaction",
                    None,
                    json!({}),
                    Some(target.clone()),
                );
            }
        }
        let content = json!({ "membership": "join" });
        let join = world.add(&[last], LOCAL, "m.room.member", Some(LOCAL), content);
        let reply = world.add(&[join], BOB, "m.room.message", None, thread);
        let edit = about("m.replace", &id);
        let edit = world.add(&[reply], ALICE, "m.room.message", None, edit);

        let node = Node::new();
        let user = node.user("local");
        let rooms = &node.services.rooms;
        let mut guard = rooms.lock_or_make(&world.id, &world.version).await.unwrap();
        let head = guard.head();
        node.enter(head, &world, join);
        node.receive(head, &world, reply);
        node.receive(head, &world, edit);
        let told = state(&world, beside);
        let pdu = &world.events[beside].pdu;
        rooms
            .receive(head, pdu, Before::Given(&told), |_| {})
            .unwrap();
        node.check();
        let all: Vec<usize> = (0..join).filter(|at| *at != beside).collect();
        for _ in 0..3 {
            for gap in gaps(&node, head) {
                fill(&node, head, &world, gap.below, &all);
                node.check();
            }
        }
        assert_eq!(gaps(&node, head), []);
        let shown = rooms.single_event(&user, &world.id, &id).unwrap();
        let shown: Value = serde_json::from_str(&shown).unwrap();
        let bundle = &shown["unsigned"]["m.relations"];
        assert_eq!(
            bundle["m.replace"]["event_id"],
            world.events[edit].id().as_str()
        );
        let thread = &bundle["m.thread"];
        assert_eq!(thread["count"], if is_redacted_there { 2 } else { 3 });
        let newest = if is_redacted_there { reply } else { beside };
        assert_eq!(
            thread["latest_event"]["event_id"],
            world.events[newest].id().as_str()
        );
    }
}
