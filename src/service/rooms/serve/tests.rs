//! What servers get of a room, and what they do not get.

use ruma::{OwnedEventId, RoomVersionId, ServerName};
use serde_json::{Value, json};

use crate::service::rooms::{
    Guest,
    testing::{Node, world::World},
};

const ALICE: &str = "@alice:a.example";
const BOB: &str = "@bob:b.example";
const CAROL: &str = "@carol:c.example";

fn server(name: &str) -> &ServerName {
    name.try_into().unwrap()
}

async fn node(world: &World) -> Node {
    let node = Node::new();
    let mut guard = node.adopt(world).await;
    for at in 1..world.events.len() {
        node.receive(guard.head(), world, at);
    }
    drop(guard);
    node
}

fn places(world: &World, found: Vec<std::sync::Arc<crate::service::rooms::Stored>>) -> Vec<usize> {
    found
        .iter()
        .map(|stored| world.place(&stored.event.header.id))
        .collect()
}

fn ids(world: &World, places: &[usize]) -> Vec<OwnedEventId> {
    places
        .iter()
        .map(|at| world.events[*at].id().clone())
        .collect()
}

#[tokio::test]
async fn who_was_put_out_may_have_what_was_here_then() {
    let mut world = World::new(&RoomVersionId::V11, ALICE);
    world.join(CAROL);
    let ends = world.ends();
    let before = world.say(&ends, ALICE, "before");
    let kick = json!({ "membership": "leave" });
    world.append(ALICE, "m.room.member", Some(CAROL), kick);
    let kick = world.events.len() - 1;
    let after = world.say(&[kick], ALICE, "after");
    let node = node(&world).await;
    let rooms = &node.services.rooms;
    let view = node.view();
    let c = server("c.example");
    let guest = rooms.guest(&view, &world.id, c).unwrap();
    let join = ids(&world, &[before - 1]);
    let missing = guest.missing_events(&join, &ids(&world, &[kick]), 10, 0);
    assert_eq!(places(&world, missing.unwrap()), [before]);
    for (at, allowed) in [(before, true), (kick, true), (after, false)] {
        let id = world.events[at].id();
        assert_eq!(rooms.guest_at(&view, id, c).is_ok(), allowed, "{at}");
        assert_eq!(guest.state_before(id).is_ok(), allowed, "{at}");
        let walked = guest.backfill(std::slice::from_ref(id), 1).unwrap();
        assert_eq!(!walked.is_empty(), allowed, "{at}");
        let missing = guest.missing_events(&join, std::slice::from_ref(id), 10, 0);
        assert_eq!(missing.is_ok(), allowed, "{at}");
    }
    node.check();
}

#[tokio::test]
async fn only_servers_in_the_room_are_guests() {
    let mut world = World::new(&RoomVersionId::V11, ALICE);
    world.join(BOB);
    world.join(CAROL);
    world.append(
        CAROL,
        "m.room.member",
        Some(CAROL),
        json!({ "membership": "leave" }),
    );
    let acl = json!({ "allow": ["*"], "deny": ["b.example"] });
    world.append(ALICE, "m.room.server_acl", Some(""), acl);
    let node = node(&world).await;
    let rooms = &node.services.rooms;
    let view = node.view();
    for (name, allowed) in [
        ("a.example", true),
        ("b.example", false),
        ("c.example", false),
        ("d.example", false),
    ] {
        let guest = rooms.guest(&view, &world.id, server(name));
        assert_eq!(guest.is_ok(), allowed, "{name}");
    }
    let nid = node.services.store().find_room(&world.id).unwrap().unwrap();
    let mut servers: Vec<_> = rooms.servers_in(&view, nid).unwrap();
    servers.sort();
    assert_eq!(servers, ["a.example", "b.example"]);
    let elsewhere = "!elsewhere:a.example".try_into().unwrap();
    assert!(rooms.guest(&view, elsewhere, server("a.example")).is_err());
    assert_eq!(
        rooms.version_of(&view, &world.id).unwrap(),
        Some(RoomVersionId::V11)
    );
    let unknown = "$unknown".try_into().unwrap();
    assert!(rooms.guest_at(&view, unknown, server("a.example")).is_err());
}

fn body(guest: &Guest<'_>, world: &World, at: usize) -> Option<String> {
    let stored = guest.find(world.events[at].id()).unwrap().unwrap();
    let pdu: Value = serde_json::from_str(&guest.pdu(&stored).unwrap()).unwrap();
    assert!(
        pdu["hashes"]["sha256"].is_string(),
        "it can still be followed"
    );
    Some(pdu["content"].get("body")?.as_str().unwrap().to_owned())
}

#[tokio::test]
async fn what_was_said_before_a_server_came_goes_to_it_redacted_if_the_room_wants_so() {
    let mut world = World::new(&RoomVersionId::V11, ALICE);
    let ends = world.ends();
    let shared = world.say(&ends, ALICE, "for all who come");
    let joined = json!({ "history_visibility": "joined" });
    world.append(ALICE, "m.room.history_visibility", Some(""), joined);
    let ends = world.ends();
    let secret = world.say(&ends, ALICE, "among us");
    world.join(BOB);
    let ends = world.ends();
    let open = world.say(&ends, ALICE, "hello bob");
    let node = node(&world).await;
    let view = node.view();
    let guest = |name| {
        node.services
            .rooms
            .guest(&view, &world.id, server(name))
            .unwrap()
    };
    let (a, b) = (guest("a.example"), guest("b.example"));
    for (at, to_a, to_b) in [
        (shared, Some("for all who come"), Some("for all who come")),
        (secret, Some("among us"), None),
        (open, Some("hello bob"), Some("hello bob")),
    ] {
        assert_eq!(body(&a, &world, at).as_deref(), to_a);
        assert_eq!(body(&b, &world, at).as_deref(), to_b);
    }
}

#[tokio::test]
async fn walks_and_states() {
    let mut world = World::new(&RoomVersionId::V11, ALICE);
    world.join(BOB);
    let base = world.ends();
    let left = world.say(&base, ALICE, "left");
    let right = world.say(&base, BOB, "right");
    let both = world.say(&[left, right], ALICE, "both");
    let last = world.say(&[both], BOB, "last");
    let node = node(&world).await;
    let rooms = &node.services.rooms;
    let view = node.view();
    let guest = rooms.guest(&view, &world.id, server("b.example")).unwrap();
    let missing = |earliest: &[usize], latest: &[usize], limit, depth| {
        let (earliest, latest) = (ids(&world, earliest), ids(&world, latest));
        places(
            &world,
            guest
                .missing_events(&earliest, &latest, limit, depth)
                .unwrap(),
        )
    };
    assert_eq!(missing(&base, &[last], 10, 0), [left, right, both]);
    assert_eq!(missing(&base, &[last], 1, 0), [both]);
    assert_eq!(
        missing(&[left], &[last], 10, 0).first(),
        Some(&0),
        "the other side goes down to the beginning"
    );
    let depth = world.events[both].pdu.event.header.depth;
    assert_eq!(missing(&[], &[last], 10, depth), [both]);
    assert_eq!(missing(&[], &[], 10, 0), [0_usize; 0]);

    let backfill =
        |from: &[usize], limit| places(&world, guest.backfill(&ids(&world, from), limit).unwrap());
    let all: Vec<usize> = backfill(&[last], 1000);
    assert_eq!(all.len(), world.events.len());
    assert_eq!(all[..2], [last, both]);
    assert_eq!(backfill(&[both], 3).len(), 3);
    assert_eq!(all.last(), Some(&0));

    let before = guest.state_before(world.events[last].id()).unwrap();
    let named = |nids: &[crate::protocol::ids::EventNid]| {
        let stored = rooms.events(&view, nids).unwrap();
        let mut at: Vec<_> = places(&world, stored);
        at.sort_unstable();
        at
    };
    let mut state: Vec<usize> = world.events[last].before.values().copied().collect();
    state.sort_unstable();
    assert_eq!(named(&before.state), state);
    let chain: Vec<usize> = world.chain(state.into_iter()).into_iter().collect();
    assert_eq!(named(&before.auth_chain), chain);
}
