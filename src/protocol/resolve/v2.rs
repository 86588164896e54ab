//! The state resolution of room version 2 by our own authorisation rules, for room versions that ruma does not know.
//!
//! It gives what ruma's gives where both know the rules, as a test shows. See "State resolution" of room version 2.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use js_int::Int;
use ruma::{
    EventId, OwnedEventId,
    events::{
        StateEventType, TimelineEventType,
        room::{member::MembershipState, power_levels::UserPowerLevel},
    },
    room_version_rules::RoomVersionRules,
    state_res::{
        self, Event as _, StateMap,
        utils::{event_id_map::EventIdMap, event_id_set::EventIdSet},
    },
};

use super::Unresolvable;
use crate::protocol::{
    auth::{self, Power, PowerLevels},
    event::Event,
};

/// Resolves what is in conflict on top of what is agreed; the answer holds both.
pub(super) fn resolve(
    rules: &RoomVersionRules,
    agreed: &StateMap<OwnedEventId>,
    conflicted: &HashSet<OwnedEventId>,
    event: &dyn Fn(&EventId) -> Option<Arc<Event>>,
) -> Result<StateMap<OwnedEventId>, Unresolvable> {
    let resolving = Resolving {
        rules,
        conflicted,
        event,
    };
    let mut state = agreed.clone();
    let first = resolving.power_events()?;
    resolving.apply(&first, &mut state)?;
    let done: HashSet<&OwnedEventId> = first.iter().collect();
    let rest = conflicted.iter().filter(|id| !done.contains(id));
    let levels = state.get(&(StateEventType::RoomPowerLevels, String::new()));
    let rest = resolving.by_mainline(rest, levels)?;
    resolving.apply(&rest, &mut state)?;
    state.extend(agreed.iter().map(|(key, id)| (key.clone(), id.clone())));
    Ok(state)
}

struct Resolving<'a> {
    rules: &'a RoomVersionRules,
    /// The full conflicted set.
    conflicted: &'a HashSet<OwnedEventId>,
    event: &'a dyn Fn(&EventId) -> Option<Arc<Event>>,
}

impl Resolving<'_> {
    fn find(&self, id: &EventId) -> Result<Arc<Event>, Unresolvable> {
        (self.event)(id).ok_or_else(|| Unresolvable::Missing(id.to_owned()))
    }

    /// Those that can take somebody's power away, with what authorises them as far as that is in conflict, in reverse
    /// topological power ordering.
    fn power_events(&self) -> Result<Vec<OwnedEventId>, Unresolvable> {
        let mut todo = Vec::new();
        for id in self.conflicted {
            if is_power_event(&*self.find(id)?) {
                todo.push(id.clone());
            }
        }
        let mut graph: EventIdMap<OwnedEventId, EventIdSet<OwnedEventId>> = EventIdMap::new();
        let mut ranks = HashMap::new();
        while let Some(id) = todo.pop() {
            if ranks.contains_key(&id) {
                continue;
            }
            let event = self.find(&id)?;
            let cited = event
                .auth_events()
                .filter(|cited| self.conflicted.contains(*cited));
            let cited: Vec<OwnedEventId> = cited.cloned().collect();
            todo.extend(cited.iter().cloned());
            ranks.insert(id.clone(), (self.rank(&event)?, event.origin_server_ts()));
            graph.insert(id, cited.into_iter().collect());
        }
        let sorted = state_res::reverse_topological_power_sort(&graph, |id| {
            let found = ranks.get(id).copied();
            found.ok_or_else(|| state_res::Error::NotFound(id.to_owned()))
        });
        sorted.map_err(|error| Unresolvable::Malformed(error.to_string()))
    }

    /// The power of an event's sender by what the event cites.
    fn rank(&self, event: &Event) -> Result<UserPowerLevel, Unresolvable> {
        let (mut create, mut levels) = (None, None);
        for id in event.auth_events() {
            let cited = self.find(id)?;
            match (&cited.header.event_type, cited.state_key()) {
                (TimelineEventType::RoomCreate, Some("")) => create = Some(cited),
                (TimelineEventType::RoomPowerLevels, Some("")) => levels = Some(cited),
                _ => {}
            }
        }
        let Some(create) = create else {
            return Ok(UserPowerLevel::Int(Int::default()));
        };
        let power = PowerLevels::new(self.rules, &create, levels.as_ref())
            .map_err(|denied| Unresolvable::Malformed(denied.rule))?;
        Ok(match power.user(&event.header.sender) {
            Power::Level(level) => UserPowerLevel::Int(Int::new_saturating(level)),
            Power::Infinite => UserPowerLevel::Infinite,
        })
    }

    /// The iterative authorisation checks: each event that the state allows becomes a part of it.
    fn apply(
        &self,
        events: &[OwnedEventId],
        state: &mut StateMap<OwnedEventId>,
    ) -> Result<(), Unresolvable> {
        for id in events {
            let event = self.find(id)?;
            let Some(state_key) = event.state_key() else {
                let what = format!("event {id} is no state event");
                return Err(Unresolvable::Malformed(what));
            };
            let types = auth::auth_types(
                self.rules,
                &event.header.event_type,
                &event.header.sender,
                Some(state_key),
                event.content(),
            );
            // It leaves open what it needs, so nothing allows it.
            let Ok(types) = types else { continue };
            let mut by = HashMap::new();
            for cited in event.auth_events() {
                let cited = self.find(cited)?;
                if let (false, Some(key)) = (cited.rejected(), cited.state_key()) {
                    let kind: StateEventType = cited.header.event_type.to_string().into();
                    by.insert((kind, key.to_owned()), cited.clone());
                }
            }
            for key in types {
                if let Some(present) = state.get(&key) {
                    let present = self.find(present)?;
                    if !present.rejected() {
                        by.insert(key, present);
                    }
                }
            }
            let lookup =
                |kind: &StateEventType, key: &str| by.get(&(kind.clone(), key.to_owned())).cloned();
            if auth::check_against(self.rules, &event, lookup).is_ok() {
                let kind = event.header.event_type.to_string().into();
                state.insert((kind, state_key.to_owned()), id.clone());
            }
        }
        Ok(())
    }

    /// Mainline ordering based on a power levels event: first what hangs on none of its forerunners, then on the oldest.
    fn by_mainline<'i>(
        &self,
        events: impl Iterator<Item = &'i OwnedEventId>,
        levels: Option<&OwnedEventId>,
    ) -> Result<Vec<OwnedEventId>, Unresolvable> {
        let mut mainline = Vec::new();
        let mut next = levels.cloned();
        while let Some(id) = next {
            next = self.levels_of(&*self.find(&id)?)?;
            mainline.push(id);
        }
        let place = |id: &OwnedEventId| {
            let from_newest = mainline.iter().position(|other| other == id)?;
            Some(mainline.len() - from_newest)
        };
        let mut sorted = Vec::new();
        for id in events {
            let event = self.find(id)?;
            let (mut at, mut found) = (Some(id.clone()), None);
            while let (Some(id), None) = (at, found) {
                found = place(&id);
                at = self.levels_of(&*self.find(&id)?)?;
            }
            sorted.push((found, event.origin_server_ts(), id.clone()));
        }
        sorted.sort();
        Ok(sorted.into_iter().map(|(_, _, id)| id).collect())
    }

    /// The power levels event that an event cites.
    fn levels_of(&self, event: &Event) -> Result<Option<OwnedEventId>, Unresolvable> {
        for id in event.auth_events() {
            let cited = self.find(id)?;
            if cited.header.event_type == TimelineEventType::RoomPowerLevels
                && cited.state_key() == Some("")
            {
                return Ok(Some(id.clone()));
            }
        }
        Ok(None)
    }
}

/// Whether an event can take away somebody's ability to do something.
fn is_power_event(event: &Event) -> bool {
    let header = &event.header;
    match header.event_type {
        TimelineEventType::RoomPowerLevels
        | TimelineEventType::RoomJoinRules
        | TimelineEventType::RoomCreate => header.state_key.as_deref() == Some(""),
        TimelineEventType::RoomMember => {
            matches!(
                header.membership,
                Some(MembershipState::Leave | MembershipState::Ban)
            ) && header.state_key.as_deref() != Some(header.sender.as_str())
        }
        _ => false,
    }
}
