//! A room as several made-up servers make it, and what each of its events is by the letter of the specification: states
//! are whole maps, resolved by ruma with whole auth chains.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use ruma::{
    CanonicalJsonObject, EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, RoomId,
    RoomVersionId, UInt, UserId,
    events::{StateEventType, TimelineEventType},
    room_version_rules::RoomVersionRules,
    state_res::{self, Event as _, StateMap},
};
use serde_json::{Value, json};

use super::Node;
use crate::{
    protocol::{
        auth,
        event::Event,
        graph::conflicted_subgraph,
        ids::EventNid,
        ingest::{self, Pdu, Verdict},
        integrity::ServerKey,
        template::{self, Draft},
        version,
    },
    service::rooms::{Before, Entered, Outcome, RoomGuard, RoomHead, Run},
    store::{Chain, StateMap as StateNumbers},
};

/// A state by names; the events by their place in the world.
pub(crate) type State = BTreeMap<(String, String), usize>;

/// One event of the room.
pub(crate) struct Made {
    pub(crate) pdu: Pdu,
    pub(crate) prev: Vec<usize>,
    pub(crate) auth: Vec<usize>,
    pub(crate) before: State,
    pub(crate) after: State,
    /// Whether the rules forbid it where it stands.
    pub(crate) rejected: bool,
}

impl Made {
    pub(crate) fn id(&self) -> &OwnedEventId {
        &self.pdu.event.header.id
    }
}

/// The room.
pub(crate) struct World {
    pub(crate) rules: &'static RoomVersionRules,
    pub(crate) version: RoomVersionId,
    pub(crate) id: OwnedRoomId,
    pub(crate) events: Vec<Made>,
    clock: u64,
}

impl World {
    /// A public room that `creator` has made and is in.
    pub(crate) fn new(version: &RoomVersionId, creator: &str) -> Self {
        let rules = version::rules(version).unwrap();
        let mut world = Self {
            rules,
            version: version.clone(),
            id: RoomId::parse("!room:a.example").unwrap(),
            events: Vec::new(),
            clock: 1_000_000,
        };
        let create = json!({ "creator": creator, "room_version": version });
        world.add(&[], creator, "m.room.create", Some(""), create);
        world
            .id
            .clone_from(&world.events[0].pdu.event.header.room_id);
        world.append(
            creator,
            "m.room.member",
            Some(creator),
            json!({ "membership": "join" }),
        );
        let levels = if rules.authorization.explicitly_privilege_room_creators {
            json!({ "users": {} })
        } else {
            json!({ "users": { creator: 100 } })
        };
        world.append(creator, "m.room.power_levels", Some(""), levels);
        world.append(
            creator,
            "m.room.join_rules",
            Some(""),
            json!({ "join_rule": "public" }),
        );
        world
    }

    /// Adds an event on top of all that nothing follows.
    pub(crate) fn append(
        &mut self,
        sender: &str,
        event_type: &str,
        state_key: Option<&str>,
        content: Value,
    ) -> usize {
        let prev = self.ends();
        self.add(&prev, sender, event_type, state_key, content)
    }

    pub(crate) fn join(&mut self, user: &str) -> usize {
        self.append(
            user,
            "m.room.member",
            Some(user),
            json!({ "membership": "join" }),
        )
    }

    pub(crate) fn say(&mut self, prev: &[usize], sender: &str, body: &str) -> usize {
        let content = json!({ "msgtype": "m.text", "body": body });
        self.add(prev, sender, "m.room.message", None, content)
    }

    pub(crate) fn ends(&self) -> Vec<usize> {
        let followed: HashSet<usize> = self
            .events
            .iter()
            .flat_map(|made| made.prev.clone())
            .collect();
        (0..self.events.len())
            .filter(|at| !followed.contains(at))
            .collect()
    }

    /// Adds an event that follows some others, whether the room allows it or not.
    pub(crate) fn add(
        &mut self,
        prev: &[usize],
        sender: &str,
        event_type: &str,
        state_key: Option<&str>,
        content: Value,
    ) -> usize {
        let before = self.resolved(prev);
        self.add_with(prev, before, sender, event_type, state_key, content, None)
    }

    #[expect(clippy::too_many_arguments, reason = "an event has that many parts")]
    pub(crate) fn add_with(
        &mut self,
        prev: &[usize],
        before: State,
        sender: &str,
        event_type: &str,
        state_key: Option<&str>,
        content: Value,
        redacts: Option<OwnedEventId>,
    ) -> usize {
        let pdu = self.make(
            prev, &before, sender, event_type, state_key, content, redacts,
        );
        let auth: Vec<usize> = pdu.event.auth_events().map(|id| self.place(id)).collect();
        let find = |id: &EventId| self.find(id);
        let by_auth = ingest::check_by_auth_events(self.rules, &pdu.event, &find);
        let by_state = auth::check_against(
            self.rules,
            &&pdu.event,
            |kind: &StateEventType, key: &str| {
                let at = before.get(&(kind.to_string(), key.to_owned()))?;
                Some(Arc::new(self.events[*at].pdu.event.clone()))
            },
        );
        let rejected = by_auth.is_err() || by_state.is_err();
        let mut after = before.clone();
        if let (Some(key), false) = (state_key, rejected) {
            let kind = pdu.event.header.event_type.to_string();
            after.insert((kind, key.to_owned()), self.events.len());
        }
        self.events.push(Made {
            pdu,
            prev: prev.to_vec(),
            auth,
            before,
            after,
            rejected,
        });
        self.events.len() - 1
    }

    #[expect(clippy::too_many_arguments, reason = "an event has that many parts")]
    fn make(
        &mut self,
        prev: &[usize],
        before: &State,
        sender: &str,
        event_type: &str,
        state_key: Option<&str>,
        content: Value,
        redacts: Option<OwnedEventId>,
    ) -> Pdu {
        self.clock += 1;
        let sender = UserId::parse(sender).unwrap();
        let event_type = TimelineEventType::from(event_type);
        let content: CanonicalJsonObject = serde_json::from_value(content).unwrap();
        let raw = serde_json::value::to_raw_value(&content).unwrap();
        let types = auth::auth_types(self.rules, &event_type, &sender, state_key, &raw);
        let auth: Vec<usize> = types
            .unwrap_or_default()
            .into_iter()
            .filter_map(|(kind, key)| before.get(&(kind.to_string(), key)).copied())
            .collect();
        let ids = |all: &[usize]| all.iter().map(|at| self.events[*at].id().clone()).collect();
        let depth = prev
            .iter()
            .map(|at| self.events[*at].pdu.event.header.depth)
            .max();
        let draft = Draft {
            room_id: Some(self.id.clone()),
            sender: sender.clone(),
            event_type,
            state_key: state_key.map(ToOwned::to_owned),
            content,
            redacts,
            origin_server_ts: MilliSecondsSinceUnixEpoch(UInt::new_saturating(self.clock)),
            prev_events: ids(prev),
            auth_events: ids(&auth),
            depth: depth.unwrap_or_default() + 1,
            legacy: None,
        };
        let key = ServerKey::from_seed(&[7; 32], "1").unwrap();
        let event = template::finish(draft, &key, sender.server_name(), self.rules).unwrap();
        // By the bytes, as it would come from outside.
        let text = crate::protocol::format::federation(&event);
        let pdu = ingest::receive(&text, self.rules).unwrap().signed();
        assert_eq!(pdu.event.header.id, event.header.id);
        pdu
    }

    /// Adds an event that is known to be allowed, without working out any state: for rooms of many events.
    pub(crate) fn add_quick(
        &mut self,
        prev: &[usize],
        before: &State,
        sender: &str,
        event_type: &str,
        state_key: &str,
        content: Value,
    ) -> usize {
        let pdu = self.make(
            prev,
            before,
            sender,
            event_type,
            Some(state_key),
            content,
            None,
        );
        self.events.push(Made {
            auth: Vec::new(),
            pdu,
            prev: prev.to_vec(),
            before: State::new(),
            after: State::new(),
            rejected: false,
        });
        self.events.len() - 1
    }

    fn find(&self, id: &EventId) -> Option<Arc<Event>> {
        let made = self.events.iter().find(|made| made.id() == id)?;
        let mut event = made.pdu.event.clone();
        event.header.flags.rejected = made.rejected;
        Some(Arc::new(event))
    }

    /// The state behind some events.
    pub(crate) fn resolved(&self, prev: &[usize]) -> State {
        let states: Vec<&State> = prev.iter().map(|at| &self.events[*at].after).collect();
        match &states[..] {
            [] => return State::new(),
            [first, others @ ..] if others.iter().all(|other| other == first) => {
                return (*first).clone();
            }
            _ => {}
        }
        let id = |at: &usize| self.events[*at].id().clone();
        let maps: Vec<StateMap<OwnedEventId>> = states
            .iter()
            .map(|state| {
                state
                    .iter()
                    .map(|((kind, key), at)| ((kind.as_str().into(), key.clone()), id(at)))
                    .collect()
            })
            .collect();
        let chains = states
            .iter()
            .map(|state| self.chain(state.values().copied()).iter().map(id).collect())
            .collect();
        let subgraph = |conflicts: &StateMap<Vec<OwnedEventId>>| {
            let nids: BTreeSet<EventNid> = conflicts
                .values()
                .flatten()
                .map(|id| nid(self.place(id)))
                .collect();
            let edges = |nid_: EventNid| {
                let at = usize::try_from(nid_.0).unwrap();
                Ok::<_, std::convert::Infallible>(
                    self.events[at]
                        .auth
                        .iter()
                        .copied()
                        .map(nid)
                        .collect::<Vec<_>>(),
                )
            };
            let found = conflicted_subgraph(&nids, edges).ok()?;
            Some(
                found
                    .into_iter()
                    .map(|nid| id(&usize::try_from(nid.0).unwrap()))
                    .collect(),
            )
        };
        let rules = self.rules.state_res.v2_rules().unwrap();
        let find = |id: &EventId| self.find(id);
        let resolved = state_res::resolve(
            &self.rules.authorization,
            rules,
            &maps,
            chains,
            find,
            subgraph,
        )
        .unwrap();
        resolved
            .into_iter()
            .map(|((kind, key), id)| ((kind.to_string(), key), self.place(&id)))
            .collect()
    }

    /// All that authorises the events, and what authorises that.
    pub(crate) fn chain(&self, events: impl Iterator<Item = usize>) -> BTreeSet<usize> {
        let mut todo: Vec<usize> = events.flat_map(|at| self.events[at].auth.clone()).collect();
        let mut chain = BTreeSet::new();
        while let Some(at) = todo.pop() {
            if chain.insert(at) {
                todo.extend(&self.events[at].auth);
            }
        }
        chain
    }

    /// What the answer to a join holds besides the event.
    pub(crate) fn told(&self, join: usize) -> (Vec<Pdu>, Vec<OwnedEventId>) {
        let state = &self.events[join].before;
        let mut all = self.chain([join].into_iter().chain(state.values().copied()));
        all.extend(state.values());
        // In the worst order.
        let pdus = all.iter().rev().map(|at| self.events[*at].pdu.clone());
        let ids = state.values().map(|at| self.events[*at].id().clone());
        (pdus.collect(), ids.collect())
    }

    pub(crate) fn place(&self, id: &EventId) -> usize {
        self.events.iter().position(|made| made.id() == id).unwrap()
    }
}

fn nid(at: usize) -> EventNid {
    EventNid(u64::try_from(at).unwrap())
}

impl Node {
    /// The room with nothing but its beginning, so that all else can come from outside.
    pub(crate) async fn adopt(&self, world: &World) -> RoomGuard {
        let rooms = &self.services.rooms;
        let create = world.events[0].pdu.event.clone();
        let mut guard = rooms.lock_or_make(&world.id, &world.version).await.unwrap();
        let mut run = Run::new(rooms, guard.head());
        run.add_create(create).unwrap();
        run.commit(|_| {}).unwrap();
        assert_ne!(guard.head().row.chain.tip, Chain::default().tip);
        guard
    }

    /// Enters the room by a join that the other servers have accepted.
    pub(crate) fn enter(&self, head: &mut RoomHead, world: &World, join: usize) {
        let rooms = &self.services.rooms;
        let (pdus, state) = world.told(join);
        rooms.store_unplaced_events(head, pdus).unwrap();
        let entered = rooms.enter(head, &world.events[join].pdu, &state).unwrap();
        assert!(matches!(entered, Entered::Done(_)), "{entered:?}");
    }

    /// Takes an event that must be accepted.
    pub(crate) fn receive(&self, head: &mut RoomHead, world: &World, at: usize) {
        let rooms = &self.services.rooms;
        let pdu = &world.events[at].pdu;
        let outcome = rooms.receive(head, pdu, Before::Previous, |_| {}).unwrap();
        let accepted = matches!(
            outcome,
            Outcome::Written {
                verdict: Verdict::Accepted,
                ..
            }
        );
        assert!(accepted, "event {at}: {outcome:?}");
    }

    /// The current state by the names of the world.
    pub(crate) fn state_in(&self, world: &World, head: &RoomHead) -> State {
        self.named(world, &head.state)
    }

    /// A state by the names of the world.
    pub(crate) fn named(&self, world: &World, state: &StateNumbers) -> State {
        let store = self.services.store();
        let view = store.latest();
        let entries = state.iter().map(|(key, nid)| {
            let stored = self.services.rooms.event(&view, *nid).unwrap();
            let at = world.place(&stored.event.header.id);
            ((*store.state_key(*key).unwrap()).clone(), at)
        });
        entries.collect()
    }

    /// Complains about everything in the store that is not as it should be.
    pub(crate) fn check(&self) {
        let mut complaints = Vec::new();
        let say = |complaint: String| {
            // The users of these tests need none.
            if !complaint.ends_with("who has no account") {
                complaints.push(complaint);
            }
        };
        self.services.store().check(say).unwrap();
        assert!(complaints.is_empty(), "{complaints:#?}");
    }
}
