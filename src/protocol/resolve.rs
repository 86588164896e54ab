//! State resolution: one state out of several that a room's history has led to.
//!
//! Only what the states disagree about is given and answered. The algorithm of room versions 2 to 12 is ruma's; beside
//! the conflicts it is handed just those agreed events that the authorisation rules can ask for, which gives the same
//! result as handing it the whole states, as a test shows. That of room version 1 is in [`v1`], and [`v2`] has the one of
//! version 2 once more for the versions whose rules ruma does not know. See "State resolution" of room versions 1, 2 and 12.

use std::{collections::HashSet, sync::Arc};

use ruma::{
    EventId, OwnedEventId,
    events::StateEventType,
    room_version_rules::{RoomVersionRules, StateResolutionVersion},
    state_res::{self, Event as _, StateMap, utils::event_id_set::EventIdSet},
};

use super::{auth, event::Event, version};

mod v1;
mod v2;

/// Why states can not be resolved.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unresolvable {
    /// An event that is needed for it could not be had.
    #[error("event {0} is missing")]
    Missing(OwnedEventId),
    /// An event that is needed for it is not what it should be.
    #[error("{0}")]
    Malformed(String),
}

/// Where state resolution takes what it needs beside the conflicting states.
pub struct Sources<'a> {
    /// The event that all states have for a key. It must not answer for keys that the states disagree about.
    pub agreed: &'a dyn Fn(&StateEventType, &str) -> Option<OwnedEventId>,
    /// Any event of the room. An answer of `None` ends the resolution with [`Unresolvable::Missing`].
    pub event: &'a dyn Fn(&EventId) -> Option<Arc<Event>>,
    /// The events that are in the auth chains of some, but not of all of the states.
    pub auth_difference: HashSet<OwnedEventId>,
    /// From room version 12, the events between the conflicting ones.
    pub subgraph: HashSet<OwnedEventId>,
}

/// Resolves the states of a room.
///
/// `forks` has for each state what is its own: the keys about which not all states agree. The answer has the resolved
/// event for each of these keys, or no entry where none was allowed to stand; very rarely it has a key that no state
/// had, from the history of the auth events.
///
/// # Errors
/// When an event is missing, or malformed in a way that its acceptance should have ruled out.
pub fn resolve(
    rules: &RoomVersionRules,
    forks: &[StateMap<OwnedEventId>],
    sources: Sources<'_>,
) -> Result<StateMap<OwnedEventId>, Unresolvable> {
    match rules.state_res {
        StateResolutionVersion::V2(_) => resolve_v2(rules, forks, sources),
        _ => v1::resolve(rules, forks, &sources),
    }
}

fn resolve_v2(
    rules: &RoomVersionRules,
    forks: &[StateMap<OwnedEventId>],
    sources: Sources<'_>,
) -> Result<StateMap<OwnedEventId>, Unresolvable> {
    let Sources {
        agreed,
        event,
        auth_difference,
        subgraph,
    } = sources;
    let conflicted = forks.iter().flat_map(|fork| fork.values());
    let full_conflicted: HashSet<OwnedEventId> = conflicted
        .chain(&auth_difference)
        .chain(&subgraph)
        .cloned()
        .collect();
    let mut needed = HashSet::from([
        (StateEventType::RoomCreate, String::new()),
        (StateEventType::RoomPowerLevels, String::new()),
        (StateEventType::RoomJoinRules, String::new()),
    ]);
    for id in &full_conflicted {
        let event = event(id).ok_or_else(|| Unresolvable::Missing(id.clone()))?;
        let header = &event.header;
        // What is agreed about an event's own key takes its place in the end.
        if let Some(state_key) = &header.state_key {
            needed.insert((header.event_type.to_string().into(), state_key.clone()));
        }
        // An event that leaves open what it needs is passed over by the algorithm as well.
        let state_key = event.state_key();
        let types = auth::auth_types(
            rules,
            &header.event_type,
            &header.sender,
            state_key,
            event.content(),
        );
        needed.extend(types.unwrap_or_default());
    }

    let common: StateMap<OwnedEventId> = needed
        .into_iter()
        .filter_map(|key| agreed(&key.0, &key.1).map(|id| (key, id)))
        .collect();
    if version::has_owned_state(rules) {
        // Who may write what is judged by rules that ruma's algorithm does not have.
        let resolved = v2::resolve(rules, &common, &full_conflicted, event)?;
        return Ok(resolved
            .into_iter()
            .filter(|(key, _)| !common.contains_key(key))
            .collect());
    }
    let Some(v2_rules) = rules.state_res.v2_rules() else {
        return Err(Unresolvable::Malformed(
            "the room version does not use this algorithm".to_owned(),
        ));
    };
    let states: Vec<StateMap<OwnedEventId>> = forks
        .iter()
        .map(|fork| {
            fork.iter()
                .chain(&common)
                .map(|(key, id)| (key.clone(), id.clone()))
                .collect()
        })
        .collect();
    // Of the auth chains only their difference is looked at; one chain with all of it and one with nothing have it.
    let chains = vec![auth_difference.into_iter().collect(), EventIdSet::new()];
    let resolved = state_res::resolve(
        &rules.authorization,
        v2_rules,
        &states,
        chains,
        event,
        |_| Some(subgraph.iter().cloned().collect()),
    )
    .map_err(|error| match error {
        state_res::Error::NotFound(id) => Unresolvable::Missing(id),
        other => Unresolvable::Malformed(other.to_string()),
    })?;
    Ok(resolved
        .into_iter()
        .filter(|(key, _)| !common.contains_key(key))
        .collect())
}

#[cfg(test)]
mod tests;
