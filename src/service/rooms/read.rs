//! Events as they are stored, parsed once and shared.

use std::sync::Arc;

use quick_cache::Weighter;
use ruma::{EventId, events::StateEventType, room_version_rules::RoomVersionRules};

use super::Rooms;
use crate::{
    error::{Error, Result},
    protocol::{
        auth::PowerLevels,
        event::Event,
        ids::{EventNid, RoomNid, SnapshotId},
    },
    store::{
        self, StateMap, View,
        schema::{CURRENT_STATE, EVENT_NIDS, EVENTS, Facts},
    },
};

/// An event, its number and what the node knows about it.
#[derive(Debug)]
pub struct Stored {
    /// Its number.
    pub nid: EventNid,
    /// The event.
    pub event: Event,
    /// What else is known.
    pub facts: Facts,
}

impl Stored {
    /// The state right after the event.
    pub fn after(&self) -> SnapshotId {
        self.event.snapshot_after(self.nid, self.facts.before)
    }
}

#[derive(Clone)]
pub(super) struct Weigh;

impl Weighter<EventNid, Arc<Stored>> for Weigh {
    fn weight(&self, _: &EventNid, stored: &Arc<Stored>) -> u64 {
        let text = stored.event.client.len() + stored.event.wire.len();
        u64::try_from(text + 600).unwrap_or(u64::MAX)
    }
}

impl Rooms {
    /// The event with this number, which must exist.
    pub fn event(&self, view: &View, nid: EventNid) -> Result<Arc<Stored>> {
        if let Some(stored) = self.events.get(&nid) {
            return Ok(stored);
        }
        let row = EVENTS
            .get(view, &(nid,))?
            .ok_or_else(|| store::Error::Missing(format!("event {nid}")))?;
        let (event, facts) = row.into_parts();
        let stored = Arc::new(Stored { nid, event, facts });
        self.events.insert(nid, stored.clone());
        Ok(stored)
    }

    /// Many events, in the order asked for.
    pub fn events(&self, view: &View, nids: &[EventNid]) -> Result<Vec<Arc<Stored>>> {
        let mut found: Vec<_> = nids.iter().map(|nid| self.events.get(nid)).collect();
        let missing: Vec<_> = nids
            .iter()
            .zip(&found)
            .filter(|(_, found)| found.is_none())
            .map(|(nid, _)| (*nid,))
            .collect();
        let mut rows = EVENTS.multi_get(view, &missing)?.into_iter().zip(missing);
        for slot in found.iter_mut().filter(|slot| slot.is_none()) {
            if let Some((row, (nid,))) = rows.next() {
                let row = row.ok_or_else(|| store::Error::Missing(format!("event {nid}")))?;
                let (event, facts) = row.into_parts();
                let stored = Arc::new(Stored { nid, event, facts });
                self.events.insert(nid, stored.clone());
                *slot = Some(stored);
            }
        }
        Ok(found.into_iter().flatten().collect())
    }

    /// The event with this id, if this node has it.
    pub fn find_event(&self, view: &View, id: &EventId) -> Result<Option<Arc<Stored>>> {
        match EVENT_NIDS.get(view, &(id.as_str(),))? {
            Some((nid,)) => self.event(view, nid).map(Some),
            None => Ok(None),
        }
    }

    /// The room's current state event of this type and key.
    pub fn current(
        &self,
        view: &View,
        room: RoomNid,
        event_type: &StateEventType,
        state_key: &str,
    ) -> Result<Option<Arc<Stored>>> {
        let key = (room, event_type.to_string(), state_key);
        match CURRENT_STATE.get(view, &key)? {
            Some((nid,)) => self.event(view, nid).map(Some),
            None => Ok(None),
        }
    }

    /// One entry of a state in memory.
    pub fn entry(
        &self,
        view: &View,
        state: &StateMap,
        event_type: &str,
        state_key: &str,
    ) -> Result<Option<Arc<Stored>>> {
        let Some(key) = self.store.find_state_key(event_type, state_key)? else {
            return Ok(None);
        };
        state
            .get(&key)
            .map(|nid| self.event(view, *nid))
            .transpose()
    }

    /// Who may do what in a room whose current state is `state`.
    pub fn power_levels(
        &self,
        view: &View,
        state: &StateMap,
        rules: &RoomVersionRules,
    ) -> Result<PowerLevels> {
        let create = self.entry(view, state, "m.room.create", "")?;
        let create =
            create.ok_or_else(|| Error::Internal("a room has no create event".to_owned()))?;
        let levels = self.entry(view, state, "m.room.power_levels", "")?;
        let levels = levels.as_ref().map(|levels| &levels.event);
        Ok(PowerLevels::new(rules, &create.event, levels)?)
    }

    pub(super) fn remember(&self, stored: Stored) {
        self.events.insert(stored.nid, Arc::new(stored));
    }
}
