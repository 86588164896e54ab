//! What clients are told of rooms that other servers write too.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use proptest::prelude::*;
use ruma::{RoomVersionId, state_res::Event as _};
use serde_json::{Value, json};

use crate::{
    protocol::{
        filter::{Filter, RoomEventFilter},
        ingest::Verdict,
        token::SyncToken,
    },
    service::{
        Requester,
        rooms::{
            Before, Outcome, Page, RoomGuard, RoomHead,
            testing::{
                Node, Room,
                chance::{self, tries},
                world::World,
            },
        },
        sync::SyncRequest,
    },
    store::schema::{EXTRA_TARGETS, GAPS, LOCAL_EVENTS},
};

const ALICE: &str = "@alice:a.example";
const BOB: &str = "@bob:b.example";
const CAROL: &str = "@carol:c.example";
const LOCAL: &str = "@local:localhost";
const OTHER: &str = "@other:localhost";

async fn sync(node: &Node, user: &Requester, since: &mut Option<SyncToken>) -> Value {
    let request = SyncRequest {
        since: *since,
        filter: Filter::from_json("{}").unwrap().into(),
        full_state: false,
        timeout: Duration::ZERO,
        state_after: None,
    };
    let answer = node.services.sync.sync(user, request).await.unwrap();
    let answer: Value = serde_json::from_str(&answer).unwrap();
    *since = Some(answer["next_batch"].as_str().unwrap().parse().unwrap());
    answer
}

fn bodies(timeline: &Value) -> Vec<String> {
    let events = timeline["events"].as_array().unwrap();
    let texts = events.iter().map(|event| {
        let content = &event["content"];
        let text = content["body"].as_str().or(content["membership"].as_str());
        text.unwrap_or_default().to_owned()
    });
    texts.collect()
}

fn world(version: &RoomVersionId) -> World {
    let mut world = World::new(version, ALICE);
    world.join(BOB);
    world.append(ALICE, "m.room.topic", Some(""), json!({ "topic": "old" }));
    let ends = world.ends();
    world.say(&ends, BOB, "before you came");
    world
}

#[tokio::test]
async fn a_room_is_entered_spoken_in_left_and_entered_again() {
    for version in [RoomVersionId::V11, RoomVersionId::V12] {
        let mut world = world(&version);
        let node = Node::new();
        let user = node.user("local");
        let mut since = None;
        sync(&node, &user, &mut since).await;
        let join = world.join(LOCAL);
        let mut guard = node
            .services
            .rooms
            .lock_or_make(&world.id, &version)
            .await
            .unwrap();
        let head = guard.head();
        assert!(!node.services.rooms.takes_part(head));
        node.enter(head, &world, join);
        assert!(node.services.rooms.takes_part(head));
        node.check();
        assert_eq!(node.state_in(&world, head), world.events[join].after);
        assert_eq!((head.row.joined, head.servers.len()), (3, 3));

        let answer = sync(&node, &user, &mut since).await;
        let room = &answer["rooms"]["join"][world.id.as_str()];
        assert_eq!(bodies(&room["timeline"]), ["join"]);
        assert_eq!(room["timeline"]["limited"], true);
        assert_eq!(
            room["state"]["events"].as_array().unwrap().len(),
            world.events[join].before.len()
        );

        // What was said meanwhile comes through its place in the graph.
        let ends = world.ends();
        let said = world.say(&ends, BOB, "welcome");
        node.receive(head, &world, said);
        let answer = sync(&node, &user, &mut since).await;
        let room = &answer["rooms"]["join"][world.id.as_str()];
        assert_eq!(bodies(&room["timeline"]), ["welcome"]);
        assert_eq!(room["timeline"]["limited"], false);
        assert_eq!(room["state"]["events"], json!([]));

        let left = world.append(
            LOCAL,
            "m.room.member",
            Some(LOCAL),
            json!({ "membership": "leave" }),
        );
        node.receive(head, &world, left);
        assert!(!node.services.rooms.takes_part(head));
        sync(&node, &user, &mut since).await;
        // Much happens while nobody is there.
        for n in 0..3 {
            let ends = world.ends();
            world.say(&ends, BOB, &format!("unheard {n}"));
        }
        world.append(ALICE, "m.room.topic", Some(""), json!({ "topic": "new" }));
        world.append(
            BOB,
            "m.room.member",
            Some(BOB),
            json!({ "membership": "leave" }),
        );
        let again = world.join(LOCAL);
        node.enter(head, &world, again);
        node.check();
        assert_eq!(node.state_in(&world, head), world.events[again].after);
        assert_eq!((head.row.joined, head.servers.len()), (2, 2));
        let answer = sync(&node, &user, &mut since).await;
        let room = &answer["rooms"]["join"][world.id.as_str()];
        assert_eq!(
            bodies(&room["timeline"]),
            ["join"],
            "nothing from beyond the gap"
        );
        assert_eq!(room["timeline"]["limited"], true);
        let view = node.view();
        assert_eq!(GAPS.scan(&view, &(head.nid,)).count(), 2);
        // After a restart of the room everything is as it was.
        let state = head.state.clone();
        let (id, servers) = (head.id.clone(), head.servers.clone());
        drop(guard);
        let mut guard = node.services.rooms.lock(&id).await.unwrap();
        assert_eq!(guard.head().state, state);
        assert_eq!(guard.head().servers, servers);
    }
}

#[tokio::test]
async fn an_invite_to_a_room_that_nobody_knows() {
    let mut world = world(&RoomVersionId::V11);
    let invite = world.append(
        ALICE,
        "m.room.member",
        Some(LOCAL),
        json!({ "membership": "invite" }),
    );
    let node = Node::new();
    let user = node.user("local");
    let rooms = &node.services.rooms;
    let mut since = None;
    sync(&node, &user, &mut since).await;
    let mut guard = rooms.lock_or_make(&world.id, &world.version).await.unwrap();
    let stripped = json!([{ "type": "m.room.name", "state_key": "", "content": { "name": "Elsewhere" }, "sender": ALICE }]);
    rooms
        .set_aside(
            guard.head(),
            &world.events[invite].pdu,
            Some(&stripped.to_string()),
            |_| {},
        )
        .unwrap();
    drop(guard);
    node.check();
    let answer = sync(&node, &user, &mut since).await;
    let told = &answer["rooms"]["invite"][world.id.as_str()]["invite_state"]["events"];
    assert_eq!(told[0]["content"]["name"], "Elsewhere");
    assert_eq!(told[1]["content"]["membership"], "invite");
    assert!(told[1]["origin_server_ts"].is_u64());
    assert_eq!(told.as_array().unwrap().len(), 2);

    // It is taken back, and comes again.
    let back = world.append(
        ALICE,
        "m.room.member",
        Some(LOCAL),
        json!({ "membership": "leave" }),
    );
    let mut guard = rooms.lock_or_make(&world.id, &world.version).await.unwrap();
    rooms
        .set_aside(guard.head(), &world.events[back].pdu, None, |_| {})
        .unwrap();
    let answer = sync(&node, &user, &mut since).await;
    assert_eq!(
        bodies(&answer["rooms"]["leave"][world.id.as_str()]["timeline"]),
        ["leave"]
    );
    let again = world.append(
        ALICE,
        "m.room.member",
        Some(LOCAL),
        json!({ "membership": "invite" }),
    );
    rooms
        .set_aside(guard.head(), &world.events[again].pdu, Some("[]"), |_| {})
        .unwrap();
    sync(&node, &user, &mut since).await;

    // And is followed.
    let join = world.join(LOCAL);
    node.enter(guard.head(), &world, join);
    assert_eq!(guard.head().row.invited, 0);
    let answer = sync(&node, &user, &mut since).await;
    assert!(answer["rooms"]["join"][world.id.as_str()].is_object());
    node.check();
}

/// A room in which everybody may set the topic; Alice and Bob may do more.
fn forked() -> (World, Vec<usize>) {
    let mut world = World::new(&RoomVersionId::V11, ALICE);
    let levels = json!({ "users": { ALICE: 100, BOB: 50 }, "events": { "m.room.topic": 0 } });
    world.append(ALICE, "m.room.power_levels", Some(""), levels);
    for user in [BOB, CAROL, LOCAL, OTHER] {
        world.join(user);
    }
    world.append(ALICE, "m.room.topic", Some(""), json!({ "topic": "first" }));
    let base = world.ends();
    (world, base)
}

async fn deliver_all(node: &Node, world: &World) -> RoomGuard {
    let mut guard = node.adopt(world).await;
    for at in 1..world.events.len() {
        node.receive(guard.head(), world, at);
    }
    guard
}

fn deliver(node: &Node, head: &mut RoomHead, world: &World, at: usize) -> Verdict {
    let rooms = &node.services.rooms;
    let pdu = &world.events[at].pdu;
    match rooms.receive(head, pdu, Before::Previous, |_| {}).unwrap() {
        Outcome::Written { verdict, .. } => verdict,
        other => panic!("event {at}: {other:?}"),
    }
}

fn joined<'a>(answer: &'a Value, world: &World) -> &'a Value {
    &answer["rooms"]["join"][world.id.as_str()]
}

#[tokio::test]
async fn what_another_branch_undoes_is_told_once_and_what_is_hidden_is_not_told() {
    let (mut world, base) = forked();
    let node = Node::new();
    let user = node.user("local");
    let rooms = &node.services.rooms;
    let mut guard = deliver_all(&node, &world).await;
    let head = guard.head();
    let mut since = None;
    sync(&node, &user, &mut since).await;

    let topic = json!({ "topic": "carol's" });
    let topic = world.add(&base, CAROL, "m.room.topic", Some(""), topic);
    assert_eq!(deliver(&node, head, &world, topic), Verdict::Accepted);
    let answer = sync(&node, &user, &mut since).await;
    assert_eq!(
        joined(&answer, &world)["timeline"]["events"][0]["content"]["topic"],
        "carol's"
    );
    assert_eq!(joined(&answer, &world)["state"]["events"], json!([]));

    // Alice has banned Carol without knowing of it.
    let ban = world.add(
        &base,
        ALICE,
        "m.room.member",
        Some(CAROL),
        json!({ "membership": "ban" }),
    );
    assert_eq!(deliver(&node, head, &world, ban), Verdict::Accepted);
    assert_eq!(node.state_in(&world, head), world.resolved(&[topic, ban]));
    let answer = sync(&node, &user, &mut since).await;
    let room = joined(&answer, &world);
    assert_eq!(bodies(&room["timeline"]), ["ban"]);
    assert_eq!(room["timeline"]["limited"], false);
    let state = room["state"]["events"].as_array().unwrap();
    assert_eq!(state.len(), 1, "{state:?}");
    assert_eq!(state[0]["content"]["topic"], "first");
    assert_eq!(room["summary"]["m.joined_member_count"], 4);

    // Carol speaks on, as if nothing had happened, and as if it had.
    let evading = world.say(&[topic], CAROL, "evading");
    let verdict = deliver(&node, head, &world, evading);
    assert!(matches!(verdict, Verdict::SoftFailed(_)));
    let refused = world.say(&[ban], CAROL, "refused");
    let verdict = deliver(&node, head, &world, refused);
    assert!(matches!(verdict, Verdict::Rejected(_)));
    let answer = sync(&node, &user, &mut since).await;
    assert!(joined(&answer, &world).is_null(), "{answer}");
    for hidden in [evading, refused] {
        let id = world.events[hidden].id();
        let filter = RoomEventFilter::default();
        assert!(rooms.single_event(&user, &world.id, id).is_err());
        assert!(rooms.context(&user, &world.id, id, 10, &filter).is_err());
    }
    let page = Page {
        from: None,
        to: None,
        dir: ruma::api::Direction::Backward,
        limit: 100,
    };
    let messages = rooms
        .messages(&user, &world.id, page, &RoomEventFilter::default())
        .unwrap();
    assert!(!messages.contains("evading") && !messages.contains("refused"));
    let ends: Vec<usize> = head
        .row
        .extremities
        .iter()
        .map(|(id, _)| world.place(id))
        .collect();
    assert_eq!(ends, [topic, ban]);
    node.check();

    // A local event brings the branches together.
    let nid = head.nid;
    drop(guard);
    let room = Room {
        node: &node,
        id: world.id.clone(),
        nid,
    };
    let healed = room.say(&user, "healed").await;
    let event = room.event(&healed);
    let mut prev: Vec<_> = event
        .event
        .prev_events()
        .map(|id| world.place(id))
        .collect();
    prev.sort_unstable();
    assert_eq!(prev, [topic, ban]);
    let mut guard = rooms.lock(&world.id).await.unwrap();
    assert_eq!(guard.head().row.extremities.len(), 1);
    let answer = sync(&node, &user, &mut since).await;
    assert_eq!(bodies(&joined(&answer, &world)["timeline"]), ["healed"]);
    assert_eq!(joined(&answer, &world)["state"]["events"], json!([]));
    let view = node.view();
    let told: Vec<_> = LOCAL_EVENTS
        .scan(&view, &(nid,))
        .map(|row| row.unwrap().0.1)
        .collect();
    assert_eq!(told.len(), 1, "the others are no events of this node");
    assert_eq!(told[0].0, event.nid.0);
    node.check();
}

#[tokio::test]
async fn what_was_undone_before_it_is_told_is_put_right_with_the_next_sync() {
    let (mut world, base) = forked();
    let node = Node::new();
    let user = node.user("local");
    let mut guard = deliver_all(&node, &world).await;
    let head = guard.head();
    let mut since = None;
    sync(&node, &user, &mut since).await;
    let topic = json!({ "topic": "carol's" });
    let topic = world.add(&base, CAROL, "m.room.topic", Some(""), topic);
    deliver(&node, head, &world, topic);
    let ban = json!({ "membership": "ban" });
    let ban = world.add(&base, ALICE, "m.room.member", Some(CAROL), ban);
    deliver(&node, head, &world, ban);
    drop(guard);

    for began in [since, None] {
        let mut since = began;
        let answer = sync(&node, &user, &mut since).await;
        let timeline = &joined(&answer, &world)["timeline"];
        let events = timeline["events"].as_array().unwrap();
        let [.., topic, ban] = events.as_slice() else {
            panic!("{events:?}");
        };
        assert_eq!(topic["content"]["topic"], "carol's", "it was said");
        assert_eq!(ban["content"]["membership"], "ban");
        assert_eq!(timeline["limited"], began.is_none());

        let owing = since;
        for _lost in 0..2 {
            since = owing;
            // It does not wait for something else to happen.
            let request = SyncRequest {
                since,
                filter: Filter::from_json("{}").unwrap().into(),
                full_state: false,
                timeout: Duration::from_secs(3600),
                state_after: None,
            };
            let answer = node.services.sync.sync(&user, request).await.unwrap();
            let answer: Value = serde_json::from_str(&answer).unwrap();
            let room = joined(&answer, &world);
            let state = room["state"]["events"].as_array().unwrap();
            assert_eq!(state.len(), 1, "{state:?}");
            assert_eq!(state[0]["content"]["topic"], "first");
            assert_eq!(room["timeline"]["events"], json!([]));
            since = Some(answer["next_batch"].as_str().unwrap().parse().unwrap());
            assert_eq!(since.unwrap().unsettled, None);
        }
        let answer = sync(&node, &user, &mut since).await;
        assert!(joined(&answer, &world).is_null(), "{answer}");
    }
}

#[tokio::test]
async fn a_user_whom_another_branch_brings_back_is_back() {
    let (mut world, base) = forked();
    let node = Node::new();
    let user = node.user("local");
    let mut guard = deliver_all(&node, &world).await;
    let head = guard.head();
    let mut since = None;
    sync(&node, &user, &mut since).await;
    let kick = world.add(
        &base,
        BOB,
        "m.room.member",
        Some(LOCAL),
        json!({ "membership": "leave" }),
    );
    assert_eq!(deliver(&node, head, &world, kick), Verdict::Accepted);
    let answer = sync(&node, &user, &mut since).await;
    let left = &answer["rooms"]["leave"][world.id.as_str()];
    assert_eq!(bodies(&left["timeline"]), ["leave"]);
    assert_eq!(head.members.len(), 1);

    let levels = json!({ "users": { ALICE: 100 }, "events": { "m.room.topic": 0 } });
    let demoted = world.add(&base, ALICE, "m.room.power_levels", Some(""), levels);
    assert_eq!(deliver(&node, head, &world, demoted), Verdict::Accepted);
    assert_eq!(
        node.state_in(&world, head),
        world.resolved(&[kick, demoted])
    );
    assert_eq!((head.members.len(), head.row.joined), (2, 5));
    let answer = sync(&node, &user, &mut since).await;
    let room = joined(&answer, &world);
    let state = room["state"]["events"].as_array().unwrap();
    let own = |event: &&Value| event["state_key"] == LOCAL;
    assert_eq!(
        state.iter().find(own).unwrap()["content"]["membership"],
        "join"
    );
    node.check();
    // And it lasts.
    let answer = sync(&node, &user, &mut since).await;
    assert!(answer["rooms"].is_null());
}

#[tokio::test]
async fn what_refers_to_an_event_may_come_before_it() {
    let (mut world, base) = forked();
    let node = Node::new();
    let user = node.user("local");
    let rooms = &node.services.rooms;
    let mut guard = deliver_all(&node, &world).await;
    let head = guard.head();
    let said = world.say(&base, BOB, "said");
    let doomed = world.say(&base, BOB, "doomed");
    let state = world.events[base[0]].after.clone();
    let edit = json!({
        "body": "edit", "msgtype": "m.text", "m.new_content": { "body": "rewritten", "msgtype": "m.text" },
        "m.relates_to": { "rel_type": "m.replace", "event_id": world.events[said].id() },
    });
    let edit = world.add(&base, BOB, "m.room.message", None, edit);
    let mut redact = |sender: &str| {
        let target = world.events[doomed].id().clone();
        world.add_with(
            &base,
            state.clone(),
            sender,
            "m.room.redaction",
            None,
            json!({}),
            Some(target),
        )
    };
    let (vain, redaction) = (redact(CAROL), redact(ALICE));
    for at in [edit, vain, redaction, said, doomed] {
        assert_eq!(deliver(&node, head, &world, at), Verdict::Accepted);
    }
    let seen = rooms
        .single_event(&user, &world.id, world.events[said].id())
        .unwrap();
    assert!(seen.contains("rewritten"), "{seen}");
    let seen = rooms
        .single_event(&user, &world.id, world.events[doomed].id())
        .unwrap();
    let seen: Value = serde_json::from_str(&seen).unwrap();
    assert_eq!(seen["content"], json!({}));
    assert_eq!(seen["unsigned"]["redacted_because"]["sender"], ALICE);
    node.check();
    // The other way round it is the same.
    let late = world.say(&[doomed], BOB, "late");
    assert_eq!(deliver(&node, head, &world, late), Verdict::Accepted);
    let target = world.events[late].id().clone();
    let state = world.events[late].after.clone();
    let gone = world.add_with(
        &[late],
        state,
        BOB,
        "m.room.redaction",
        None,
        json!({}),
        Some(target),
    );
    assert_eq!(deliver(&node, head, &world, gone), Verdict::Accepted);
    let stored = rooms
        .find_event(&node.view(), world.events[late].id())
        .unwrap()
        .unwrap();
    assert_eq!(stored.event.content_json(), "{}");
    let unread = sync(&node, &user, &mut None).await;
    let unread = &joined(&unread, &world)["unread_notifications"]["notification_count"];
    assert_eq!(*unread, 1, "what was said, and not what was emptied");
    node.check();
}

#[tokio::test]
async fn who_is_sent_away_is_told_although_their_server_is_gone() {
    let (world, _) = forked();
    let node = Node::new();
    let mut world = world;
    // The local user gets the power to do it.
    let levels = json!({ "users": { ALICE: 100, LOCAL: 90 } });
    world.append(ALICE, "m.room.power_levels", Some(""), levels);
    let mut guard = deliver_all(&node, &world).await;
    let nid = guard.head().nid;
    drop(guard);
    let room = Room {
        node: &node,
        id: world.id.clone(),
        nid,
    };
    let user = node.user("local");
    let ban = json!({ "membership": "ban" });
    room.state(&user, "m.room.member", CAROL, ban.clone()).await;
    room.state(&user, "m.room.member", "@never:d.example", ban)
        .await;
    let view = node.view();
    let store = node.services.store();
    let rows: Vec<_> = EXTRA_TARGETS.scan(&view, &()).map(Result::unwrap).collect();
    assert_eq!(rows.len(), 1, "who never was there need not be told");
    let ((server, position), (of, _)) = rows[0];
    assert_eq!(store.server_name(server).unwrap().as_str(), "c.example");
    assert_eq!(of, nid);
    assert!(LOCAL_EVENTS.contains(&view, &(nid, position)).unwrap());
    node.check();
}

/// What a client takes the state of the room to be.
#[derive(Default)]
struct Client {
    since: Option<SyncToken>,
    state_after: bool,
    filter: &'static str,
    state: BTreeMap<(String, String), String>,
    seen: BTreeSet<String>,
    /// Whether it was ever told of a gap.
    has_gap: bool,
}

impl Client {
    /// Syncs, and once more where the answer owes something.
    async fn sync(&mut self, node: &Node, user: &Requester, world: &World) {
        self.ask(node, user, world).await;
        if self.since.unwrap().unsettled.is_some() {
            self.ask(node, user, world).await;
        }
        assert_eq!(self.since.unwrap().unsettled, None, "nothing came between");
    }

    async fn ask(&mut self, node: &Node, user: &Requester, world: &World) {
        let section = if self.state_after {
            "state_after"
        } else {
            "state"
        };
        let request = SyncRequest {
            since: self.since,
            filter: Filter::from_json(self.filter).unwrap().into(),
            full_state: false,
            timeout: Duration::ZERO,
            state_after: self.state_after.then_some("state_after"),
        };
        let answer = node.services.sync.sync(user, request).await.unwrap();
        let answer: Value = serde_json::from_str(&answer).unwrap();
        self.since = Some(answer["next_batch"].as_str().unwrap().parse().unwrap());
        let room = joined(&answer, world);
        self.has_gap |= room["timeline"]["limited"] == true;
        let none = Vec::new();
        let of = |list: &'_ Value| list["events"].as_array().unwrap_or(&none).clone();
        if !self.state_after {
            for event in of(&room[section]) {
                self.learn(&event);
            }
        }
        for event in of(&room["timeline"]) {
            let id = event["event_id"].as_str().unwrap().to_owned();
            assert!(self.seen.insert(id.clone()), "{id} came twice");
            if !self.state_after {
                self.learn(&event);
            }
        }
        if self.state_after {
            for event in of(&room[section]) {
                self.learn(&event);
            }
        }
    }

    fn learn(&mut self, event: &Value) {
        if let Some(key) = event["state_key"].as_str() {
            let key = (event["type"].as_str().unwrap().to_owned(), key.to_owned());
            self.state
                .insert(key, event["event_id"].as_str().unwrap().to_owned());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn clients_know_the_state_of_a_room_with_many_branches(
        tries in tries(),
        priorities in proptest::collection::vec(any::<u32>(), 40),
        rests in proptest::collection::vec(0..4_usize, 40),
        version in prop_oneof![Just(RoomVersionId::V10), Just(RoomVersionId::V12)],
    ) {
        let mut world = chance::room(&version);
        for tried in &tries {
            chance::attempt(&mut world, tried);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let node = Node::new();
        let user = node.user("local");
        let mut clients: Vec<Client> = [
            (false, "{}"),
            (true, "{}"),
            (false, r#"{"room":{"timeline":{"limit":2}}}"#),
            (true, r#"{"room":{"timeline":{"limit":1}}}"#),
        ].into_iter().map(|(state_after, filter)| Client { state_after, filter, ..Client::default() }).collect();
        let mut guard = runtime.block_on(node.adopt(&world));
        let head = guard.head();
        let order = chance::order(&world, &priorities);
        let mut accepted = BTreeSet::new();
        for (step, at) in order.iter().enumerate() {
            if deliver(&node, head, &world, *at) == Verdict::Accepted {
                accepted.insert(world.events[*at].id().to_string());
            }
            let is_in = head.members.len() == 1;
            let is_last = step + 1 == order.len();
            for (index, client) in clients.iter_mut().enumerate() {
                if !is_in || (!is_last && rests[(step + index * 7) % rests.len()] != 0) {
                    continue;
                }
                runtime.block_on(client.sync(&node, &user, &world));
                for (key, at) in node.state_in(&world, head) {
                    let known = client.state.get(&key).map(String::as_str);
                    prop_assert_eq!(known, Some(world.events[at].id().as_str()), "client {} at {}: {:?}", index, step, key);
                }
                if !client.has_gap && client.since.is_some() {
                    let unseen: Vec<_> = accepted.difference(&client.seen).collect();
                    prop_assert!(unseen.is_empty(), "client {index} has not seen {unseen:?}");
                }
                for id in &client.seen {
                    let at = world.place(id.as_str().try_into().unwrap());
                    prop_assert!(at == 0 || accepted.contains(id), "client {} has seen {}", index, at);
                }
            }
        }
    }
}
