//! One state out of several snapshots: reads what state resolution needs, and remembers what came out.
//!
//! What is done grows with what the snapshots disagree about, not with what they hold, but for one pass over the numbers
//! of the agreed events. See "Room State Resolution" in the server-server API.

use std::{
    cell::RefCell,
    collections::{BTreeSet, BinaryHeap, HashMap, HashSet},
    sync::Arc,
};

use quick_cache::sync::Cache;
use ruma::{
    EventId, OwnedEventId,
    events::StateEventType,
    room_version_rules::{RoomVersionRules, StateResolutionVersion},
    state_res::StateMap as NamedState,
};

use super::Rooms;
use crate::{
    error::{Error, Result},
    protocol::{
        event::Event,
        graph::{auth_difference, conflicted_subgraph},
        ids::{EventNid, SnapshotId, StateKeyNid},
        resolve::{self, Sources, Unresolvable},
    },
    store::{
        self, StateMap, View, difference,
        schema::{AUTH_EDGES, EventList},
    },
};

/// How many results are kept. Both sides of a fork see several events before somebody brings them together.
const REMEMBERED: usize = 256;

/// Results by what was resolved. Snapshots never change, so a result is true for ever.
pub(super) struct Resolutions(Cache<Vec<SnapshotId>, StateMap>);

impl Default for Resolutions {
    fn default() -> Self {
        Self(Cache::new(REMEMBERED))
    }
}

impl Rooms {
    /// Resolves the snapshots, which must be sorted and no two the same.
    pub(super) fn resolve(
        &self,
        view: &View,
        rules: &RoomVersionRules,
        snapshots: &[SnapshotId],
    ) -> Result<StateMap> {
        if let [only] = snapshots {
            return Ok(self.store.state(*only)?);
        }
        if let Some(known) = self.resolutions.0.get(snapshots) {
            return Ok(known);
        }
        let states: Vec<StateMap> = snapshots
            .iter()
            .map(|id| self.store.state(*id))
            .collect::<store::Result<_>>()?;
        let resolved = self.resolve_states(view, rules, &states)?;
        self.resolutions
            .0
            .insert(snapshots.to_vec(), resolved.clone());
        Ok(resolved)
    }

    pub(super) fn resolve_states(
        &self,
        view: &View,
        rules: &RoomVersionRules,
        states: &[StateMap],
    ) -> Result<StateMap> {
        let Some((first, others)) = states.split_first() else {
            return Ok(StateMap::new());
        };
        let mut disputed: BTreeSet<StateKeyNid> = BTreeSet::new();
        for other in others {
            let (set, removed) = difference(first, other);
            disputed.extend(set.into_iter().map(|(key, _)| key).chain(removed));
        }
        if disputed.is_empty() {
            return Ok(first.clone());
        }
        let mut agreed = first.clone();
        for key in &disputed {
            agreed.remove(key);
        }

        let (mut forks, mut conflicts) = (Vec::new(), Vec::new());
        for state in states {
            let entries = disputed
                .iter()
                .filter_map(|key| Some((*key, *state.get(key)?)));
            let (keys, nids): (Vec<StateKeyNid>, Vec<EventNid>) = entries.unzip();
            let mut fork = NamedState::new();
            for (key, stored) in keys.iter().zip(self.events(view, &nids)?) {
                let name = self.store.state_key(*key)?;
                fork.insert(
                    (name.0.as_str().into(), name.1.clone()),
                    stored.event.header.id.clone(),
                );
            }
            forks.push(fork);
            conflicts.push(nids);
        }

        let edges = |nid: EventNid| -> Result<Vec<EventNid>> {
            let row = AUTH_EDGES.get(view, &(nid,))?;
            Ok(row.unwrap_or_else(|| EventList(Vec::new())).0)
        };
        let mut heap: BinaryHeap<EventNid> = agreed.values().copied().collect();
        let from_the_newest = std::iter::from_fn(|| heap.pop());
        let difference = auth_difference(&conflicts, from_the_newest, edges)?;
        let with_subgraph = matches!(
            rules.state_res,
            StateResolutionVersion::V2(rules) if rules.consider_conflicted_state_subgraph
        );
        let subgraph = if with_subgraph {
            conflicted_subgraph(&conflicts.into_iter().flatten().collect(), edges)?
        } else {
            BTreeSet::new()
        };

        let resolved = self.run(view, rules, &forks, &agreed, difference, subgraph)?;
        let mut state = agreed;
        for ((event_type, state_key), id) in resolved {
            let key = self
                .store
                .state_key_nid(&event_type.to_string(), &state_key)?;
            let stored = self.find_event(view, &id)?;
            let stored =
                stored.ok_or_else(|| store::Error::Missing(format!("event {id} of a state")))?;
            state.insert(key, stored.nid);
        }
        Ok(state)
    }

    fn run(
        &self,
        view: &View,
        rules: &RoomVersionRules,
        forks: &[NamedState<OwnedEventId>],
        agreed: &StateMap,
        difference: BTreeSet<EventNid>,
        subgraph: BTreeSet<EventNid>,
    ) -> Result<NamedState<OwnedEventId>> {
        let loaded: RefCell<HashMap<OwnedEventId, Arc<Event>>> = RefCell::default();
        let ids = |nids: BTreeSet<EventNid>| -> Result<HashSet<OwnedEventId>> {
            let nids: Vec<_> = nids.into_iter().collect();
            let mut ids = HashSet::with_capacity(nids.len());
            for stored in self.events(view, &nids)? {
                let id = stored.event.header.id.clone();
                loaded.borrow_mut().insert(id.clone(), stored.event.clone());
                ids.insert(id);
            }
            Ok(ids)
        };
        let (auth_difference, subgraph) = (ids(difference)?, ids(subgraph)?);
        // The algorithm asks by closures that can not fail, so a failure of the store is kept aside.
        let failure = RefCell::new(None);
        let kept = |found: Result<Option<Arc<Event>>>| {
            found.unwrap_or_else(|error| {
                failure.borrow_mut().replace(error);
                None
            })
        };
        let event = |id: &EventId| {
            if let Some(event) = loaded.borrow().get(id) {
                return Some(event.clone());
            }
            let found = self.find_event(view, id);
            let event = kept(found.map(|found| found.map(|stored| stored.event.clone())))?;
            loaded.borrow_mut().insert(id.to_owned(), event.clone());
            Some(event)
        };
        let by_key = |event_type: &StateEventType, state_key: &str| {
            let found = self.entry(view, agreed, &event_type.to_string(), state_key);
            let event = kept(found.map(|found| found.map(|stored| stored.event.clone())))?;
            Some(event.header.id.clone())
        };
        let resolved = resolve::resolve(
            rules,
            forks,
            Sources {
                agreed: &by_key,
                event: &event,
                auth_difference,
                subgraph,
            },
        );
        if let Some(error) = failure.into_inner() {
            return Err(error);
        }
        resolved.map_err(|error: Unresolvable| {
            Error::Internal(format!("a room's states can not be resolved: {error}"))
        })
    }
}
