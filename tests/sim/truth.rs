//! What the state of a room is after each of its events, worked out anew from all that any node has: by ruma's own
//! resolution, over whole states and whole auth chains, without anything of how the nodes do it.
//!
//! Nodes may differ in what they show, as soft failure is each one's own judgement. But the state after an event follows
//! from the events before it alone, and what a node holds for the room's present state follows from the ends that it
//! sees. So whatever nodes differ in must come from different ends, and whatever one lacks nobody was to tell it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use kontor::{
    protocol::{
        event::Event,
        ids::{EventNid, SnapshotId},
        version,
    },
    service::rooms::Stored,
    store::schema::EVENTS,
};
use ruma::{
    EventId, OwnedEventId, RoomId,
    events::room::member::MembershipState,
    room_version_rules::RoomVersionRules,
    state_res::{self, Event as _, StateMap},
};

use crate::{room::Room, world::World};

type State = Arc<StateMap<OwnedEventId>>;
type Ids = Arc<HashSet<OwnedEventId>>;

/// All that a node knows of a room.
struct Sight {
    at: usize,
    /// The events whose place it knows, with the state after each.
    placed: BTreeMap<OwnedEventId, (Arc<Stored>, State)>,
    /// The ends that it sees, and the present state.
    ends: Vec<OwnedEventId>,
    state: State,
    /// Whether it knows that history is missing.
    has_gaps: bool,
}

/// What follows from the events.
struct Truth {
    rules: &'static RoomVersionRules,
    events: HashMap<OwnedEventId, Arc<Event>>,
    after: HashMap<OwnedEventId, State>,
    chains: HashMap<OwnedEventId, Ids>,
}

impl Truth {
    fn event(&self, id: &EventId) -> Option<Arc<Event>> {
        self.events.get(id).cloned()
    }

    /// All that authorises an event, directly or not.
    fn chain(&mut self, id: &OwnedEventId) -> Ids {
        if let Some(known) = self.chains.get(id) {
            return known.clone();
        }
        let event = self.event(id);
        let event = event.unwrap_or_else(|| panic!("nobody has {id}, which authorises others"));
        let mut chain = HashSet::new();
        for id in event.auth_events() {
            if chain.insert(id.clone()) {
                chain.extend(self.chain(id).iter().cloned());
            }
        }
        let chain = Arc::new(chain);
        self.chains.insert(id.clone(), chain.clone());
        chain
    }

    /// The state behind events after which these are the states.
    fn resolve(&mut self, mut states: Vec<State>) -> State {
        let mut seen: Vec<State> = Vec::new();
        states.retain(|state| {
            let is_new = !seen.contains(state);
            if is_new {
                seen.push(state.clone());
            }
            is_new
        });
        if states.len() < 2 {
            return states.pop().unwrap_or_default();
        }
        let mut chains = Vec::new();
        for state in &states {
            let mut chain = HashSet::new();
            for id in state.values() {
                chain.extend(self.chain(id).iter().cloned());
            }
            chains.push(chain.into_iter().collect());
        }
        let maps: Vec<StateMap<_>> = states.iter().map(|state| (**state).clone()).collect();
        // What lies on the way from one of the conflicting events to another.
        let between = |conflicts: &StateMap<Vec<OwnedEventId>>| {
            let conflicting: HashSet<_> = conflicts.values().flatten().cloned().collect();
            let chain = |id: &OwnedEventId| self.chains.get(id).cloned().unwrap_or_default();
            let leads = |id: &OwnedEventId| !chain(id).is_disjoint(&conflicting);
            let behind: HashSet<_> = conflicting
                .iter()
                .flat_map(|id| chain(id).iter().cloned().collect::<Vec<_>>())
                .collect();
            let between = behind.into_iter().filter(leads).chain(conflicting.clone());
            Some(between.collect())
        };
        let resolved = state_res::resolve(
            &self.rules.authorization,
            self.rules.state_res.v2_rules().expect("not version 1"),
            &maps,
            chains,
            |id| self.event(id),
            between,
        );
        Arc::new(resolved.expect("all events are there"))
    }

    /// Works out the state after each event.
    fn find(&mut self) {
        let mut all: Vec<_> = self.events.values().cloned().collect();
        // Each node makes its events deeper than all that they follow.
        all.sort_by_key(|event| event.header.depth);
        for event in &all {
            self.chain(&event.header.id);
        }
        for event in all {
            let before: Option<Vec<State>> = event
                .prev_events()
                .map(|id| self.after.get(id).cloned())
                .collect();
            // Nobody knows the place of one that is known as a part of some state alone.
            let Some(before) = before else { continue };
            let mut state = self.resolve(before);
            let header = &event.header;
            if let Some(key) = &header.state_key
                && !header.flags.rejected
            {
                let key = (header.event_type.to_string().into(), key.clone());
                Arc::make_mut(&mut state).insert(key, header.id.clone());
            }
            self.after.insert(header.id.clone(), state);
        }
    }

    /// Whether a server is in the room by a state.
    fn has_server(&self, state: &StateMap<OwnedEventId>, server: &str) -> bool {
        state.iter().any(|((kind, user), id)| {
            let of_server = user.split_once(':').is_some_and(|(_, of)| of == server);
            kind.to_string() == "m.room.member"
                && of_server
                && self
                    .event(id)
                    .is_some_and(|event| event.header.membership == Some(MembershipState::Join))
        })
    }
}

impl World {
    async fn sight(&self, at: usize, room: &Room) -> Option<Sight> {
        let services = &self.offices[at].node().services;
        let (rooms, store) = (&services.rooms, services.store());
        let id = RoomId::parse(&*room.0).expect("it is an id");
        let mut guard = rooms.lock(&id).await.ok()?;
        let (head, view) = (guard.head(), store.latest());
        let mut ids: HashMap<EventNid, OwnedEventId> = HashMap::new();
        let mut all = Vec::new();
        for row in EVENTS.scan(&view, &()) {
            let ((nid,), row) = row.expect("it is readable");
            if row.room == head.nid {
                let stored = rooms.event(&view, nid).expect("it is there");
                ids.insert(nid, stored.event.header.id.clone());
                all.push(stored);
            }
        }
        let find = |nid: &EventNid| {
            let stored = rooms.event(&view, *nid).expect("it is there");
            let header = &stored.event.header;
            let key = header.state_key.clone().expect("it is a state event");
            (
                (header.event_type.to_string().into(), key),
                header.id.clone(),
            )
        };
        let mut snapshots: HashMap<SnapshotId, State> = HashMap::new();
        let mut placed = BTreeMap::new();
        for stored in all.into_iter().filter(|stored| stored.has_state()) {
            let after = snapshots.entry(stored.after()).or_insert_with(|| {
                let state = store.state(stored.after()).expect("it is there");
                Arc::new(state.values().map(find).collect())
            });
            let after = after.clone();
            placed.insert(stored.event.header.id.clone(), (stored, after));
        }
        let ends = head.row.extremities.iter().map(|(id, _)| id.clone());
        let gaps = rooms.gaps(&view, head.nid).expect("it is readable");
        Some(Sight {
            at,
            placed,
            ends: ends.collect(),
            state: Arc::new(head.state.values().map(find).collect()),
            has_gaps: !gaps.is_empty(),
        })
    }

    /// Whatever nodes know of the state of a room follows from its events, and whoever lacks one was not to be told of it.
    pub(crate) async fn all_is_explained(&mut self, room: &Room, held: &[usize]) {
        let mut sights = Vec::new();
        for at in 0..self.offices.len() {
            sights.extend(self.sight(at, room).await);
        }
        let Some(mut truth) = self.truth(room, &sights) else {
            return;
        };
        truth.find();
        sights.retain(|sight| held.contains(&sight.at));
        for sight in &sights {
            let name = &self.offices[sight.at].name;
            for (id, (stored, after)) in &sight.placed {
                let Some(expect) = truth.after.get(id) else {
                    panic!(
                        "{name} knows the place of {id} in {}, nobody else does",
                        room.0
                    );
                };
                assert!(
                    after == expect,
                    "the state after {id} in {} as {name} has it: {:?}; {:?}",
                    room.0,
                    different(after, expect),
                    stored.facts
                );
            }
            let ends = sight.ends.iter().map(|id| truth.after[id].clone());
            let expect = truth.resolve(ends.collect());
            assert!(
                sight.state == expect,
                "the state of {} as {name} has it: {:?}",
                room.0,
                different(&sight.state, &expect)
            );
        }
        self.all_are_told(room, &sights, &truth);
    }

    /// Everything that any node knows of a room.
    fn truth(&self, room: &Room, sights: &[Sight]) -> Option<Truth> {
        let mut events: HashMap<OwnedEventId, Arc<Event>> = HashMap::new();
        let mut rejected: HashMap<OwnedEventId, (bool, usize)> = HashMap::new();
        let first = sights.first()?;
        for sight in sights {
            for (id, (stored, _)) in &sight.placed {
                let flags = stored.event.header.flags;
                let (is_rejected, by) = rejected
                    .entry(id.clone())
                    .or_insert((flags.rejected, sight.at));
                assert_eq!(
                    flags.rejected, *is_rejected,
                    "{} and {} differ in whether {id} in {} is rejected",
                    self.offices[sight.at].name, self.offices[*by].name, room.0
                );
                let event = stored.event.clone();
                events.entry(id.clone()).or_insert(event);
            }
        }
        let services = &self.offices[first.at].node().services;
        let id = RoomId::parse(&*room.0).expect("it is an id");
        let version = services.rooms.version_of(&services.store().latest(), &id);
        let version = version.expect("it is readable")?;
        Some(Truth {
            rules: version::rules(&version).expect("it is served"),
            events,
            after: HashMap::new(),
            chains: HashMap::new(),
        })
    }

    fn all_are_told(&self, room: &Room, sights: &[Sight], truth: &Truth) {
        let all: BTreeSet<_> = sights
            .iter()
            .flat_map(|sight| sight.placed.keys())
            .collect();
        for id in all {
            let event = truth.event(id).expect("it is there");
            let (after, flags) = (&truth.after[id], event.header.flags);
            for sight in sights {
                let name = &self.offices[sight.at].name;
                let is_to_be_told = !flags.rejected && truth.has_server(after, name.as_str());
                assert!(
                    !is_to_be_told || sight.has_gaps || sight.placed.contains_key(id),
                    "{name} was in {} and was not told of {id}",
                    room.0
                );
            }
        }
    }
}

/// In what two states differ.
fn different(one: &State, other: &State) -> Vec<String> {
    let keys: BTreeSet<_> = one.keys().chain(other.keys()).cloned().collect();
    keys.into_iter()
        .filter(|key| one.get(key) != other.get(key))
        .map(|key| format!("{key:?}: {:?}, not {:?}", one.get(&key), other.get(&key)))
        .collect()
}
