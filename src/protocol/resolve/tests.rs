//! Random rooms that split and meet again: resolving the differences equals resolving whole states.

use std::{
    collections::{BTreeSet, HashMap},
    convert::Infallible,
};

use proptest::prelude::*;
use ruma::{OwnedRoomId, RoomId, RoomVersionId, events::TimelineEventType};
use serde_json::{Value, json};
use sha1::{Digest, Sha1};

use super::*;
use crate::protocol::{
    graph::{auth_difference, conflicted_subgraph},
    ids::EventNid,
    integrity, version,
};

const USERS: [&str; 4] = [
    "@a:example.org",
    "@b:example.org",
    "@c:example.org",
    "@d:example.org",
];

/// A room under construction: events by number, each with the state after it.
struct Room {
    rules: &'static RoomVersionRules,
    id: OwnedRoomId,
    events: Vec<Arc<Event>>,
    states: Vec<StateMap<usize>>,
}

/// What somebody tries to do.
#[derive(Clone, Debug)]
struct Try {
    /// After which event.
    at: prop::sample::Index,
    sender: usize,
    target: usize,
    kind: usize,
    level: i64,
    ts: u32,
}

impl Room {
    fn new(version: &RoomVersionId) -> Self {
        let rules = version::rules(version).expect("served");
        let id = if rules.authorization.room_create_event_id_as_room_id {
            "!e0"
        } else {
            "!room:example.org"
        };
        let id = RoomId::parse(id).expect("a room id");
        let mut room = Self {
            rules,
            id,
            events: vec![],
            states: vec![],
        };
        let create = json!({ "creator": USERS[0], "room_version": version });
        room.add(None, USERS[0], "m.room.create", "", &create, 1);
        room.add(
            Some(0),
            USERS[0],
            "m.room.member",
            USERS[0],
            &json!({ "membership": "join" }),
            1,
        );
        room.add(
            Some(1),
            USERS[0],
            "m.room.power_levels",
            "",
            &room.levels(&[(1, 50)]),
            1,
        );
        room.add(
            Some(2),
            USERS[0],
            "m.room.join_rules",
            "",
            &json!({ "join_rule": "public" }),
            1,
        );
        room.add(
            Some(3),
            USERS[1],
            "m.room.member",
            USERS[1],
            &json!({ "membership": "join" }),
            1,
        );
        room
    }

    fn levels(&self, users: &[(usize, i64)]) -> Value {
        let mut levels: HashMap<_, _> = users
            .iter()
            .map(|(user, level)| (USERS[*user], *level))
            .collect();
        if self.rules.authorization.explicitly_privilege_room_creators {
            levels.remove(USERS[0]);
        } else {
            levels.insert(USERS[0], 100);
        }
        json!({ "users": levels, "events": { "m.room.topic": 0 }, "state_default": 50 })
    }

    fn event(&self, id: &EventId) -> Option<Arc<Event>> {
        self.events
            .iter()
            .find(|event| event.header.id == id)
            .cloned()
    }

    /// Adds an event if it is allowed.
    fn add(
        &mut self,
        at: Option<usize>,
        sender: &str,
        event_type: &str,
        state_key: &str,
        content: &Value,
        ts: u32,
    ) {
        let number = self.events.len();
        let before = at.map(|at| self.states[at].clone()).unwrap_or_default();
        let event_type = TimelineEventType::from(event_type);
        let raw = serde_json::value::to_raw_value(content).expect("JSON");
        let sender_id = ruma::UserId::parse(sender).expect("a user id");
        let types = auth::auth_types(self.rules, &event_type, &sender_id, Some(state_key), &raw)
            .expect("well-formed");
        let auth: Vec<_> = types
            .iter()
            .filter_map(|key| before.get(key))
            .map(|number| format!("$e{number}"))
            .collect();
        let mut object = json!({
            "type": event_type, "sender": sender, "state_key": state_key, "content": content, "origin_server_ts": ts,
            "prev_events": at.map(|at| format!("$e{at}")).into_iter().collect::<Vec<_>>(), "auth_events": auth,
            "depth": at.map_or(1, |at| self.events[at].header.depth + 1), "room_id": self.id,
        });
        if event_type == TimelineEventType::RoomCreate
            && self.rules.authorization.room_create_event_id_as_room_id
        {
            object.as_object_mut().expect("an object").remove("room_id");
        }
        let object = integrity::parse_object(&object.to_string()).expect("canonical");
        let id = EventId::parse(format!("$e{number}")).expect("an event id");
        let event =
            Arc::new(Event::new(id, self.id.clone(), &object, self.rules).expect("an event"));
        let lookup = |event_type: &StateEventType, key: &str| {
            before
                .get(&(event_type.clone(), key.to_owned()))
                .map(|number| self.events[*number].clone())
        };
        if auth::check_against(self.rules, &event, lookup).is_err() {
            return;
        }
        let mut after = before;
        after.insert(
            (event_type.to_string().into(), state_key.to_owned()),
            number,
        );
        self.events.push(event);
        self.states.push(after);
    }

    fn attempt(&mut self, attempt: &Try) {
        let Try {
            at,
            sender,
            target,
            kind,
            level,
            ts,
        } = attempt;
        let (at, sender, target) = (at.index(self.events.len()), USERS[*sender], USERS[*target]);
        let member =
            |membership: &str| ("m.room.member", target, json!({ "membership": membership }));
        let (event_type, state_key, content) = match kind {
            0 | 1 => ("m.room.topic", "", json!({ "topic": ts })),
            2 | 3 => ("m.room.member", sender, json!({ "membership": "join" })),
            4 => ("m.room.member", sender, json!({ "membership": "leave" })),
            5 => member("invite"),
            6 => member("leave"),
            7 => member("ban"),
            8 => (
                "m.room.join_rules",
                "",
                json!({ "join_rule": if *level > 0 { "public" } else { "invite" } }),
            ),
            9 => ("org.example.own", sender, json!({})),
            10 => ("org.example.own", target, json!({ "by": sender })),
            _ => (
                "m.room.power_levels",
                "",
                self.levels(&[
                    (1, 50),
                    (
                        USERS.iter().position(|u| *u == target).expect("there"),
                        *level,
                    ),
                ]),
            ),
        };
        self.add(Some(at), sender, event_type, state_key, &content, *ts);
    }

    fn id(&self, number: usize) -> OwnedEventId {
        self.events[number].header.id.clone()
    }

    fn edges(&self, number: usize) -> Vec<usize> {
        self.events[number]
            .auth_events()
            .map(|id| id.as_str()[2..].parse().expect("a number"))
            .collect()
    }

    fn nid_edges(&self, nid: EventNid) -> Vec<EventNid> {
        let number = usize::try_from(nid.0).expect("small");
        self.edges(number).into_iter().map(nid_of).collect()
    }

    fn chain(&self, state: &StateMap<usize>) -> BTreeSet<usize> {
        let mut todo: Vec<_> = state
            .values()
            .flat_map(|number| self.edges(*number))
            .collect();
        let mut seen = BTreeSet::new();
        while let Some(number) = todo.pop() {
            if seen.insert(number) {
                todo.extend(self.edges(number));
            }
        }
        seen
    }

    /// The states as the specification has them, whole and by whole auth chains.
    fn by_ruma(&self, states: &[StateMap<usize>]) -> StateMap<OwnedEventId> {
        let maps: Vec<StateMap<_>> = states.iter().map(|state| self.ids(state)).collect();
        let chains = states
            .iter()
            .map(|state| self.chain(state).into_iter().map(|n| self.id(n)).collect())
            .collect();
        let v2_rules = self.rules.state_res.v2_rules().expect("not version 1");
        let subgraph = |conflicts: &StateMap<Vec<OwnedEventId>>| {
            let conflicted: BTreeSet<_> = conflicts
                .values()
                .flatten()
                .map(|id| self.number(id))
                .map(nid_of)
                .collect();
            let found =
                conflicted_subgraph(&conflicted, |nid| Ok::<_, Infallible>(self.nid_edges(nid)))
                    .ok()?;
            Some(found.into_iter().map(|nid| self.id_of(nid)).collect())
        };
        state_res::resolve(
            &self.rules.authorization,
            v2_rules,
            &maps,
            chains,
            |id| self.event(id),
            subgraph,
        )
        .expect("resolvable")
    }

    /// The same by our own algorithm.
    fn by_v2(&self, states: &[StateMap<usize>]) -> StateMap<OwnedEventId> {
        let is_agreed = |key: &(StateEventType, String)| {
            states
                .iter()
                .all(|state| state.get(key) == states[0].get(key))
        };
        let agreed: StateMap<usize> = states[0]
            .iter()
            .filter(|(key, _)| is_agreed(key))
            .map(|(key, number)| (key.clone(), *number))
            .collect();
        let conflicts = states.iter().flatten();
        let conflicts = conflicts.filter(|(key, _)| !is_agreed(key));
        let mut conflicted: HashSet<_> = conflicts.map(|(_, number)| *number).collect();
        let chains: Vec<_> = states.iter().map(|state| self.chain(state)).collect();
        if !conflicted.is_empty() {
            let all: BTreeSet<usize> = chains.iter().flatten().copied().collect();
            let differs = |number: &usize| !chains.iter().all(|chain| chain.contains(number));
            conflicted.extend(all.into_iter().filter(differs));
        }
        let conflicted = conflicted
            .into_iter()
            .map(|number| self.id(number))
            .collect();
        let find = |id: &EventId| self.event(id);
        v2::resolve(self.rules, &self.ids(&agreed), &conflicted, &find).expect("resolvable")
    }

    /// The same by differences only.
    fn by_us(&self, states: &[StateMap<usize>]) -> StateMap<OwnedEventId> {
        let agreed: StateMap<usize> = states[0]
            .iter()
            .filter(|(key, number)| states.iter().all(|state| state.get(key) == Some(number)))
            .map(|(key, number)| (key.clone(), *number))
            .collect();
        let forks: Vec<StateMap<usize>> = states
            .iter()
            .map(|state| {
                state
                    .iter()
                    .filter(|(key, _)| !agreed.contains_key(key))
                    .map(|(k, n)| (k.clone(), *n))
                    .collect()
            })
            .collect();
        let conflicts: Vec<Vec<_>> = forks
            .iter()
            .map(|fork| fork.values().copied().map(nid_of).collect())
            .collect();
        let mut agreed_nids: Vec<_> = agreed.values().copied().map(nid_of).collect();
        agreed_nids.sort_by(|a, b| b.cmp(a));
        let edges = |nid| Ok::<_, Infallible>(self.nid_edges(nid));
        let difference = auth_difference(&conflicts, agreed_nids, edges).expect("infallible");
        let conflicted = conflicts.into_iter().flatten().collect();
        let subgraph = conflicted_subgraph(&conflicted, edges).expect("infallible");
        let forks: Vec<_> = forks.iter().map(|fork| self.ids(fork)).collect();
        let resolved = resolve(
            self.rules,
            &forks,
            Sources {
                agreed: &|event_type, key| {
                    Some(self.id(*agreed.get(&(event_type.clone(), key.to_owned()))?))
                },
                event: &|id| self.event(id),
                auth_difference: difference.into_iter().map(|nid| self.id_of(nid)).collect(),
                subgraph: subgraph.into_iter().map(|nid| self.id_of(nid)).collect(),
            },
        )
        .expect("resolvable");
        assert!(resolved.keys().all(|key| !agreed.contains_key(key)));
        self.ids(&agreed).into_iter().chain(resolved).collect()
    }

    fn ids(&self, state: &StateMap<usize>) -> StateMap<OwnedEventId> {
        state
            .iter()
            .map(|(key, number)| (key.clone(), self.id(*number)))
            .collect()
    }

    fn number(&self, id: &EventId) -> usize {
        self.events
            .iter()
            .position(|event| event.header.id == id)
            .expect("in the room")
    }

    fn id_of(&self, nid: EventNid) -> OwnedEventId {
        self.id(usize::try_from(nid.0).expect("small"))
    }
}

fn nid_of(number: usize) -> EventNid {
    EventNid(u64::try_from(number).expect("small"))
}

fn tries() -> impl Strategy<Value = Vec<Try>> {
    let one = (
        any::<prop::sample::Index>(),
        0..4_usize,
        0..4_usize,
        0..13_usize,
        -1..101_i64,
        2..6_u32,
    );
    proptest::collection::vec(one, 5..40).prop_map(|all| {
        all.into_iter()
            .map(|(at, sender, target, kind, level, ts)| Try {
                at,
                sender,
                target,
                kind,
                level,
                ts,
            })
            .collect()
    })
}

fn build(version: &RoomVersionId, tries: &[Try]) -> Room {
    let mut room = Room::new(version);
    assert_eq!(room.events.len(), 5, "the room can be set up");
    for attempt in tries {
        room.attempt(attempt);
    }
    room
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn differences_resolve_like_whole_states(
        tries in tries(),
        tips in proptest::collection::vec(any::<prop::sample::Index>(), 2..4),
        version in prop_oneof![Just(RoomVersionId::V2), Just(RoomVersionId::V6), Just(RoomVersionId::V11), Just(RoomVersionId::V12)],
    ) {
        let room = build(&version, &tries);
        let states: Vec<_> = tips.iter().map(|tip| room.states[tip.index(room.states.len())].clone()).collect();
        prop_assert_eq!(room.by_us(&states), room.by_ruma(&states));
    }

    #[test]
    fn our_own_algorithm_gives_what_rumas_gives(
        tries in tries(),
        tips in proptest::collection::vec(any::<prop::sample::Index>(), 2..4),
        version in prop_oneof![Just(RoomVersionId::V2), Just(RoomVersionId::V6), Just(RoomVersionId::V11)],
    ) {
        let room = build(&version, &tries);
        let states: Vec<_> = tips.iter().map(|tip| room.states[tip.index(room.states.len())].clone()).collect();
        prop_assert_eq!(room.by_v2(&states), room.by_ruma(&states));
    }

    #[test]
    fn differences_with_owned_state_resolve_like_whole_states(
        tries in tries(),
        tips in proptest::collection::vec(any::<prop::sample::Index>(), 2..4),
        eleven in any::<bool>(),
    ) {
        let room = build(&owned(eleven), &tries);
        let states: Vec<_> = tips.iter().map(|tip| room.states[tip.index(room.states.len())].clone()).collect();
        let resolved = room.by_us(&states);
        prop_assert_eq!(&resolved, &room.by_v2(&states));
        // Where nobody has touched what is another's, the rules are those of the version that it was made from.
        let is_foreign = |event: &Arc<Event>| {
            let header = &event.header;
            let key = header.state_key.as_deref().unwrap_or_default();
            auth::owned::is_owned(&header.event_type, key) && key != header.sender.as_str()
        };
        if !room.events.iter().any(is_foreign) {
            prop_assert_eq!(resolved, room.by_ruma(&states));
        }
    }

    #[test]
    fn version_1_resolves_the_same_in_any_order(
        tries in tries(),
        tips in proptest::collection::vec(any::<prop::sample::Index>(), 2..4),
    ) {
        let room = build(&RoomVersionId::V1, &tries);
        let mut states: Vec<_> = tips.iter().map(|tip| room.states[tip.index(room.states.len())].clone()).collect();
        let resolved = room.by_us(&states);
        states.reverse();
        prop_assert_eq!(&resolved, &room.by_us(&states));
        // Every event comes from one of the states.
        for (key, id) in &resolved {
            prop_assert!(states.iter().any(|state| state.get(key).is_some_and(|number| room.id(*number) == *id)));
        }
    }
}

/// A room version in which state can belong to users.
fn owned(eleven: bool) -> RoomVersionId {
    let number = if eleven { "11" } else { "10" };
    RoomVersionId::try_from(format!("org.matrix.msc3757.{number}")).expect("a version")
}

#[test]
fn who_has_lost_power_writes_no_state_of_others_in_the_meantime() {
    for (level, stands) in [(70, true), (0, false)] {
        let mut room = Room::new(&owned(true));
        // b has 50, and c and d none.
        for user in &USERS[2..] {
            let joined = json!({ "membership": "join" });
            let at = room.events.len() - 1;
            room.add(Some(at), user, "m.room.member", user, &joined, 2);
        }
        let base = room.events.len() - 1;
        let key = format!("{}_x", USERS[2]);
        // Everybody may write it, but for owners.
        let own = "m.room.topic";
        let before = room.events.len();
        room.add(Some(base), USERS[3], own, &key, &json!({}), 3);
        assert_eq!(room.events.len(), before, "d may not");
        let levels = room.levels(&[(1, level)]);
        room.add(Some(base), USERS[0], "m.room.power_levels", "", &levels, 4);
        room.add(Some(base), USERS[1], own, &key, &json!({}), 5);
        assert_eq!(room.events.len(), before + 2, "b may");
        let resolved = room.by_us(&room.states[before..]);
        let found = resolved.get(&(StateEventType::from(own), key));
        assert_eq!(found, stands.then(|| room.id(before + 1)).as_ref());
    }
}

/// Two events that do not know of each other, and what becomes of them.
fn fork(
    version: &RoomVersionId,
    sides: [(&str, &str, &str, Value, u32); 2],
) -> (Room, StateMap<OwnedEventId>) {
    let mut room = Room::new(version);
    for (sender, event_type, state_key, content, ts) in sides {
        let before = room.events.len();
        room.add(Some(4), sender, event_type, state_key, &content, ts);
        assert_eq!(room.events.len(), before + 1, "it is allowed on its side");
    }
    let resolved = room.by_us(&room.states[5..]);
    (room, resolved)
}

#[test]
fn who_was_banned_does_not_change_the_topic_in_the_meantime() {
    for version in [RoomVersionId::V1, RoomVersionId::V2, RoomVersionId::V12] {
        let (room, resolved) = fork(
            &version,
            [
                (
                    USERS[0],
                    "m.room.member",
                    USERS[1],
                    json!({ "membership": "ban" }),
                    5,
                ),
                (USERS[1], "m.room.topic", "", json!({ "topic": "x" }), 9),
            ],
        );
        let ban = resolved.get(&(StateEventType::RoomMember, USERS[1].to_owned()));
        assert_eq!(ban, Some(&room.id(5)), "{version}: the ban stands");
        // In version 1 only what differs is judged, and one side has no topic to differ in.
        let topic = resolved.get(&(StateEventType::RoomTopic, String::new()));
        let expect = (version == RoomVersionId::V1).then(|| room.id(6));
        assert_eq!(topic, expect.as_ref(), "{version}: the topic does not");
    }
}

#[test]
fn of_two_topics_the_later_one_stands() {
    let sides = || {
        [
            (USERS[0], "m.room.topic", "", json!({ "topic": "late" }), 9),
            (USERS[1], "m.room.topic", "", json!({ "topic": "early" }), 5),
        ]
    };
    let topic = (StateEventType::RoomTopic, String::new());
    let (room, resolved) = fork(&RoomVersionId::V2, sides());
    assert_eq!(resolved.get(&topic), Some(&room.id(5)), "by time");

    let (room, resolved) = fork(&RoomVersionId::V1, sides());
    let hashes = [5, 6].map(|number| Sha1::digest(room.id(number).as_bytes()));
    let lower = if hashes[0] < hashes[1] { 5 } else { 6 };
    assert_eq!(
        resolved.get(&topic),
        Some(&room.id(lower)),
        "in version 1 by hash, the depths being equal"
    );
}

#[test]
fn a_missing_event_is_an_error() {
    let room = build(&RoomVersionId::V11, &[]);
    let lost = EventId::parse("$lost").expect("an event id");
    let side = |id: &OwnedEventId| {
        StateMap::from([((StateEventType::RoomTopic, String::new()), id.clone())])
    };
    for version in [RoomVersionId::V1, RoomVersionId::V11] {
        let rules = version::rules(&version).expect("served");
        let sources = Sources {
            agreed: &|_, _| None,
            event: &|id| room.event(id),
            auth_difference: HashSet::new(),
            subgraph: HashSet::new(),
        };
        let result = resolve(rules, &[side(&room.id(3)), side(&lost)], sources);
        assert_eq!(
            result,
            Err(Unresolvable::Missing(lost.clone())),
            "{version}"
        );
    }
}
