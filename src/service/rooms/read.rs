//! Events as they are stored, parsed once and shared.

use std::sync::Arc;

use parking_lot::Mutex;
use quick_cache::{Weighter, sync::Cache};
use ruma::{EventId, events::StateEventType, room_version_rules::RoomVersionRules};

use super::Rooms;
use crate::{
    error::{Error, Result},
    protocol::{
        auth::PowerLevels,
        event::Event,
        ids::{EventNid, Position, RoomNid, SnapshotId},
        integrity,
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
    pub event: Arc<Event>,
    /// What else is known.
    pub facts: Facts,
}

impl Stored {
    /// Whether the event's place in the room is known, and with it the state around it. Of an auth or state event that
    /// came without its surroundings nothing is known but the event.
    pub fn has_state(&self) -> bool {
        self.facts.order.is_some()
            || self.facts.before != SnapshotId(0)
            || self.facts.after.is_some()
    }

    /// The state right after the event.
    pub fn after(&self) -> SnapshotId {
        match self.facts.after {
            Some(after) => after,
            None if self.has_state() => self.event.snapshot_after(self.nid, self.facts.before),
            None => SnapshotId(0),
        }
    }

    /// The room's current state when the event was its newest.
    pub fn current(&self) -> SnapshotId {
        self.facts.current.unwrap_or_else(|| self.after())
    }

    /// The event with only what a redaction leaves of it.
    pub(super) fn emptied(&self, rules: &RoomVersionRules) -> Result<Event> {
        emptied(&self.event, rules)
    }
}

/// An event with only what a redaction leaves of it.
pub(super) fn emptied(event: &Event, rules: &RoomVersionRules) -> Result<Event> {
    let header = &event.header;
    let damaged =
        |e: &dyn std::fmt::Display| Error::Internal(format!("event {} is damaged: {e}", header.id));
    let object = event.to_canonical().map_err(|e| damaged(&e))?;
    let emptied = integrity::redact(object, rules).map_err(|e| damaged(&e))?;
    let mut emptied = Event::new(header.id.clone(), header.room_id.clone(), &emptied, rules)
        .map_err(|e| damaged(&e))?;
    emptied.header.flags = header.flags;
    Ok(emptied)
}

/// Events in memory.
///
/// A stored event changes only when it is redacted. Whoever still looks at the moment before that must not bring its
/// old content back into memory, where later readers would find it.
pub(super) struct Events {
    cache: Cache<EventNid, Arc<Stored>, Weigh>,
    /// When an event was redacted the last time.
    redacted: Mutex<Position>,
}

#[derive(Clone)]
struct Weigh;

impl Weighter<EventNid, Arc<Stored>> for Weigh {
    fn weight(&self, _: &EventNid, stored: &Arc<Stored>) -> u64 {
        // Content and ids are kept once more when somebody has asked for them; every piece is rounded up.
        let text = stored.event.client.len() * 2 + stored.event.wire.len();
        u64::try_from(text + 1500).unwrap_or(u64::MAX)
    }
}

impl Events {
    pub(super) fn new(budget: u64) -> Self {
        Self {
            cache: Cache::with_weighter(4096, budget, Weigh),
            redacted: Mutex::default(),
        }
    }

    fn get(&self, nid: EventNid) -> Option<Arc<Stored>> {
        self.cache.get(&nid)
    }

    /// Keeps what was read at `view`.
    fn keep(&self, view: &View, stored: Stored) -> Arc<Stored> {
        let stored = Arc::new(stored);
        let redacted = self.redacted.lock();
        if view.position() >= *redacted {
            self.cache.insert(stored.nid, stored.clone());
        }
        stored
    }

    /// Keeps what was just written.
    pub(super) fn add(&self, stored: Stored) {
        self.cache.insert(stored.nid, Arc::new(stored));
    }

    /// Replaces events that were redacted by the commit at `position`.
    pub(super) fn replace(&self, position: Position, changed: Vec<Stored>) {
        if changed.is_empty() {
            return;
        }
        let mut redacted = self.redacted.lock();
        *redacted = position.max(*redacted);
        for stored in changed {
            self.cache.insert(stored.nid, Arc::new(stored));
        }
    }
}

impl Rooms {
    /// The event with this number, which must exist.
    pub fn event(&self, view: &View, nid: EventNid) -> Result<Arc<Stored>> {
        if let Some(stored) = self.events.get(nid) {
            return Ok(stored);
        }
        let row = EVENTS
            .get(view, &(nid,))?
            .ok_or_else(|| store::Error::Missing(format!("event {nid}")))?;
        let (event, facts) = row.into_parts(&self.store)?;
        let event = Arc::new(event);
        Ok(self.events.keep(view, Stored { nid, event, facts }))
    }

    /// The event with this number, if there is one.
    pub fn event_if_there(&self, view: &View, nid: EventNid) -> Result<Option<Arc<Stored>>> {
        match self.event(view, nid) {
            Ok(stored) => Ok(Some(stored)),
            Err(Error::Store(store::Error::Missing(_))) if !EVENTS.contains(view, &(nid,))? => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Many events, in the order asked for.
    pub fn events(&self, view: &View, nids: &[EventNid]) -> Result<Vec<Arc<Stored>>> {
        let mut found: Vec<_> = nids.iter().map(|nid| self.events.get(*nid)).collect();
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
                let (event, facts) = row.into_parts(&self.store)?;
                let event = Arc::new(event);
                *slot = Some(self.events.keep(view, Stored { nid, event, facts }));
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
}

#[cfg(test)]
mod tests {
    use ruma::OwnedEventId;

    use crate::service::rooms::testing::Node;

    #[tokio::test]
    async fn a_late_reader_does_not_bring_back_what_was_redacted() {
        let node = Node::new();
        let alice = node.user("alice");
        let room = node.room(&alice, "shared").await;
        let said: OwnedEventId = room.say(&alice, "secret").await;
        let nid = room.event(&said).nid;
        let rooms = &node.services.rooms;
        let before = node.view();
        room.redact(&alice, &said).await;
        // Memory is short.
        rooms.events.cache.remove(&nid);
        for late in [
            rooms.event(&before, nid),
            rooms.events(&before, &[nid]).map(|mut all| all.remove(0)),
        ] {
            assert!(late.unwrap().event.content_json().contains("secret"));
            assert_eq!(room.event(&said).event.content_json(), "{}");
            rooms.events.cache.remove(&nid);
        }
    }
}
