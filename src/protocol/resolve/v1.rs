//! The state resolution of room version 1, which no later version uses and ruma does not have.
//!
//! See "State resolution" of room version 1.

use std::{cmp::Reverse, collections::HashMap, sync::Arc};

use ruma::{
    OwnedEventId, events::StateEventType, room_version_rules::RoomVersionRules, state_res::StateMap,
};
use sha1::{Digest, Sha1};

use super::{Sources, Unresolvable};
use crate::protocol::{auth, event::Event};

type Key = (StateEventType, String);

/// Resolves the conflicts pass by pass: power levels, join rules, members, and then all others.
pub(super) fn resolve(
    rules: &RoomVersionRules,
    forks: &[StateMap<OwnedEventId>],
    sources: &Sources<'_>,
) -> Result<StateMap<OwnedEventId>, Unresolvable> {
    let mut conflicts: HashMap<Key, Vec<Arc<Event>>> = HashMap::new();
    for (key, id) in forks.iter().flatten() {
        let events = conflicts.entry(key.clone()).or_default();
        if !events.iter().any(|event| event.header.id == *id) {
            events.push((sources.event)(id).ok_or_else(|| Unresolvable::Missing(id.clone()))?);
        }
    }

    // A key that only some of the states have is no conflict, as long as these have the same event for it.
    let mut state = HashMap::new();
    conflicts.retain(|key, events| match &**events {
        [event] => {
            state.insert(key.clone(), event.clone());
            false
        }
        _ => true,
    });
    let mut resolved = Resolved {
        rules,
        sources,
        state,
    };
    let passes = [
        StateEventType::RoomPowerLevels,
        StateEventType::RoomJoinRules,
        StateEventType::RoomMember,
    ];
    for pass in &passes {
        // What one member's conflict becomes can decide another's, so that their order matters.
        let mut keys: Vec<_> = conflicts
            .keys()
            .filter(|(event_type, _)| event_type == pass)
            .cloned()
            .collect();
        keys.sort();
        for key in keys {
            let events = conflicts.remove(&key).unwrap_or_default();
            resolved.apply_while_allowed(key, events);
        }
    }
    // None of these has a say in what is allowed, so all are judged by the same state.
    let others: Vec<_> = conflicts
        .into_iter()
        .filter_map(|(key, events)| resolved.best_allowed(events).map(|event| (key, event)))
        .collect();
    resolved.state.extend(others);
    Ok(resolved
        .state
        .into_iter()
        .map(|(key, event)| (key, event.header.id.clone()))
        .collect())
}

struct Resolved<'a> {
    rules: &'a RoomVersionRules,
    sources: &'a Sources<'a>,
    state: HashMap<Key, Arc<Event>>,
}

impl Resolved<'_> {
    /// From the oldest event on, each replaces the one before, until one is not allowed to.
    fn apply_while_allowed(&mut self, key: Key, mut events: Vec<Arc<Event>>) {
        events.sort_by_cached_key(|event| (event.header.depth, Reverse(hash(event))));
        let mut events = events.into_iter();
        let Some(first) = events.next() else { return };
        self.state.insert(key.clone(), first);
        for event in events {
            if !self.allows(&event) {
                return;
            }
            self.state.insert(key.clone(), event);
        }
    }

    /// The newest event that is allowed.
    fn best_allowed(&self, mut events: Vec<Arc<Event>>) -> Option<Arc<Event>> {
        events.sort_by_cached_key(|event| (Reverse(event.header.depth), hash(event)));
        events.into_iter().find(|event| self.allows(event))
    }

    fn allows(&self, event: &Event) -> bool {
        let lookup = |event_type: &StateEventType, state_key: &str| match self
            .state
            .get(&(event_type.clone(), state_key.to_owned()))
        {
            Some(event) => Some(event.clone()),
            None => (self.sources.event)(&(self.sources.agreed)(event_type, state_key)?),
        };
        auth::check_against(self.rules, &event, lookup).is_ok()
    }
}

fn hash(event: &Event) -> impl Ord + use<> {
    Sha1::digest(event.header.id.as_bytes())
}
