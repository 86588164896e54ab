//! Events of which only the event is known, not its place in the room: auth chains and states as other servers tell
//! them. They are kept to authorise others; nobody is shown them.
//!
//! The chain of a big room has a hundred thousand events, so they are checked on all cores and stored piece by piece. A
//! piece alone is visible to nobody: whoever stops halfway has lost nothing and left nothing.

use std::{
    collections::{BinaryHeap, HashMap},
    sync::Arc,
};

use ruma::{
    EventId, OwnedEventId, UserId,
    events::{TimelineEventType, room::member::MembershipState},
    state_res::Event as _,
};

use super::{
    RoomHead, Rooms,
    append::{
        Change,
        write::{put_event, put_member},
    },
};
use crate::{
    error::{Error, Result},
    protocol::{
        event::Event,
        ids::{EventNid, Position, UserNid},
        ingest::{self, Pdu},
        integrity::create_of_room_id,
    },
    store::{
        Batch,
        schema::{EVENT_NIDS, EVENTS, EventRow, Facts, ROOM_HEADS, STRIPPED},
    },
};

/// How many events are stored at once.
const CHUNK: usize = 1000;

/// Fewer than this are not worth another thread.
const MIN_SHARE: usize = 250;

/// After how many events the log is told.
const PROGRESS: usize = 10_000;

/// What became of a set of events without their surroundings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unplaced {
    /// How many were new and are stored.
    pub stored: usize,
    /// How many of these were rejected.
    pub rejected: usize,
    /// How many were of other rooms, or hang on events that were not among them.
    pub left_out: usize,
}

/// Events by their place in the set, each with those in the set that authorise it.
struct Set {
    events: Vec<Arc<Event>>,
    by_id: HashMap<OwnedEventId, usize>,
    known: HashMap<OwnedEventId, (EventNid, Arc<Event>)>,
}

impl Set {
    fn find(&self, id: &EventId) -> Option<Arc<Event>> {
        match self.by_id.get(id) {
            Some(at) => self.events.get(*at).cloned(),
            None => self.known.get(id).map(|(_, event)| event.clone()),
        }
    }
}

/// Those that authorise an event, and in room version 12 the room's beginning.
fn authorising(head: &RoomHead, event: &Event) -> Vec<OwnedEventId> {
    let mut ids: Vec<_> = event.auth_events().cloned().collect();
    let header = &event.header;
    if head.rules.authorization.room_create_event_id_as_room_id
        && header.event_type != TimelineEventType::RoomCreate
    {
        ids.extend(create_of_room_id(&header.room_id));
    }
    ids
}

impl Rooms {
    /// Stores events of which only their auth events say whether they are allowed. Those that are there stay as they are.
    ///
    /// The room's lock must be held; the room itself need not be known. This takes as long as it takes to check all of
    /// them, so it belongs on a thread that may block.
    ///
    /// # Errors
    /// When the store fails.
    pub fn store_unplaced_events(&self, head: &RoomHead, pdus: Vec<Pdu>) -> Result<Unplaced> {
        let mut report = Unplaced::default();
        let mut set = self.new_among(head, pdus, &mut report)?;
        let order = self.in_order(head, &mut set)?;
        report.left_out += set.events.len() - order.len();
        let mut rejected = check_all(head, &set);
        for at in &order {
            let ids = authorising(head, &set.events[*at]);
            rejected[*at] |= ids.iter().any(|id| match set.by_id.get(id) {
                Some(other) => rejected[*other],
                None => set
                    .known
                    .get(id)
                    .is_none_or(|(_, event)| event.header.flags.rejected),
            });
            Arc::make_mut(&mut set.events[*at]).header.flags.rejected = rejected[*at];
        }

        let mut nids: Vec<Option<EventNid>> = vec![None; set.events.len()];
        for chunk in order.chunks(CHUNK) {
            let mut rows = Vec::with_capacity(chunk.len());
            for at in chunk {
                let sender = self.store.user_nid(&set.events[*at].header.sender)?;
                rows.push((*at, sender));
            }
            self.store_chunk(head, &set, &rows, &mut nids)?;
            report.stored += rows.len();
            if report.stored.is_multiple_of(PROGRESS) {
                tracing::info!(room = %head.id, stored = report.stored, of = order.len(), "events of a room are coming in");
            }
        }
        report.rejected = order.iter().filter(|at| rejected[**at]).count();
        Ok(report)
    }

    fn store_chunk(
        &self,
        head: &RoomHead,
        set: &Set,
        rows: &[(usize, UserNid)],
        nids: &mut [Option<EventNid>],
    ) -> Result<()> {
        let _not_awaited = self.store.commit(|batch| {
            for (at, sender) in rows {
                let event = &set.events[*at];
                let number = |id: &OwnedEventId| match set.by_id.get(id) {
                    Some(other) => nids[*other],
                    None => set.known.get(id).map(|(nid, _)| *nid),
                };
                let auth = event.auth_events().filter_map(number).collect();
                let nid = EventNid(batch.position().0);
                put_event(batch, head, nid, (event, *sender), &Facts::default(), auth);
                nids[*at] = Some(nid);
            }
            Ok(())
        })?;
        Ok(())
    }

    /// Those of the events that are of the room and not there yet, each once.
    fn new_among(&self, head: &RoomHead, pdus: Vec<Pdu>, report: &mut Unplaced) -> Result<Set> {
        let view = self.store.latest();
        let mut set = Set {
            events: Vec::with_capacity(pdus.len()),
            by_id: HashMap::with_capacity(pdus.len()),
            known: HashMap::new(),
        };
        let mut pdus = pdus.into_iter();
        loop {
            let chunk: Vec<Pdu> = pdus.by_ref().take(CHUNK).collect();
            if chunk.is_empty() {
                return Ok(set);
            }
            let keys: Vec<_> = chunk
                .iter()
                .map(|pdu| (pdu.event.header.id.as_str(),))
                .collect();
            let known = EVENT_NIDS.multi_get(&view, &keys)?;
            for (pdu, known) in chunk.into_iter().zip(known) {
                if pdu.event.header.room_id != head.id {
                    report.left_out += 1;
                } else if known.is_none() && !set.by_id.contains_key(&pdu.event.header.id) {
                    let id = pdu.event.header.id.clone();
                    set.by_id.insert(id, set.events.len());
                    set.events.push(Arc::new(pdu.event));
                }
            }
        }
    }

    /// The events so that each comes after those that authorise it; without those for which that can not be.
    fn in_order(&self, head: &RoomHead, set: &mut Set) -> Result<Vec<usize>> {
        let view = self.store.latest();
        let mut open = vec![0_usize; set.events.len()];
        let mut authorised: Vec<Vec<usize>> = vec![Vec::new(); set.events.len()];
        for (at, event) in set.events.iter().enumerate() {
            for id in authorising(head, event) {
                if let Some(other) = set.by_id.get(&id) {
                    open[at] += 1;
                    authorised[*other].push(at);
                    continue;
                }
                if set.known.contains_key(&id) {
                    continue;
                }
                match self.find_event(&view, &id)? {
                    Some(stored) => {
                        let known = (stored.nid, stored.event.clone());
                        set.known.insert(id, known);
                    }
                    // Never ready.
                    None => open[at] += 1,
                }
            }
        }
        let mut ready: BinaryHeap<std::cmp::Reverse<usize>> = (0..open.len())
            .filter(|at| open[*at] == 0)
            .map(std::cmp::Reverse)
            .collect();
        let mut order = Vec::with_capacity(set.events.len());
        while let Some(std::cmp::Reverse(at)) = ready.pop() {
            order.push(at);
            for next in &authorised[at] {
                open[*next] -= 1;
                if open[*next] == 0 {
                    ready.push(std::cmp::Reverse(*next));
                }
            }
        }
        Ok(order)
    }

    /// Notes the membership of a local user in a room that this node is not in: an invite, a knock, or the end of
    /// either. `stripped` is what the user is told of the room, a list of events in JSON.
    ///
    /// # Errors
    /// 400 when the event is no membership of a local user that can be had outside of a room.
    pub fn set_aside(
        &self,
        head: &mut RoomHead,
        pdu: &Pdu,
        stripped: Option<&str>,
        more: impl FnOnce(&mut Batch<'_>),
    ) -> Result<Position> {
        let header = &pdu.event.header;
        let target = header.state_key.as_deref().unwrap_or_default();
        let target =
            UserId::parse(target).map_err(|e| Error::bad_json(format!("{target}: {e}")))?;
        let membership = match &header.membership {
            Some(membership) if *membership != MembershipState::Join => membership.clone(),
            _ => return Err(Error::bad_json("Nobody is joined to a room from outside")),
        };
        if target.server_name() != self.server_name || header.room_id != head.id {
            return Err(Error::bad_json(format!(
                "{target} is not a user of this server"
            )));
        }
        let view = self.store.latest();
        let sender = self.store.user_nid(&header.sender)?;
        let key = self.store.state_key_nid("m.room.member", target.as_str())?;
        let change = Change {
            key,
            event_type: "m.room.member".to_owned(),
            state_key: target.to_string(),
            member: Some(self.member_of(&view, head.nid, &target, membership)?),
        };
        let is_known = !head.row.extremities.is_empty();
        let mut next = head.clone();
        let committed = self.store.commit(|batch| {
            let position = batch.position();
            let nid = EventNid(position.0);
            let facts = Facts {
                aside: true,
                ..Facts::default()
            };
            let row = EventRow::new(&pdu.event, facts, next.nid, sender);
            EVENTS.put(batch, &(nid,), &row);
            if let Some(member) = &change.member {
                put_member(&mut next, batch, position, Some(nid), member);
                let key = (next.nid, member.user);
                match stripped {
                    Some(json) => STRIPPED.put(batch, &key, &json.to_owned()),
                    None => STRIPPED.delete(batch, &key),
                }
            }
            if is_known {
                ROOM_HEADS.put(batch, &(next.nid,), &next.row);
            }
            more(batch);
            Ok(())
        })?;
        *head = next;
        Ok(committed.position)
    }
}

/// Which events their auth events do not allow, whatever is to be said of those.
fn check_all(head: &RoomHead, set: &Set) -> Vec<bool> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = set.events.len().div_ceil(threads).max(MIN_SHARE);
    let check = |events: &[Arc<Event>]| -> Vec<bool> {
        let find = |id: &EventId| set.find(id);
        let denied = |event: &Arc<Event>| {
            ingest::check_by_auth_events(head.rules, event, &find)
                .inspect_err(|denied| {
                    tracing::debug!(event = %event.header.id, rule = %denied, "an event without its place is rejected");
                })
                .is_err()
        };
        events.iter().map(denied).collect()
    };
    if set.events.len() <= share {
        return check(&set.events);
    }
    std::thread::scope(|scope| {
        let check = &check;
        let parts: Vec<_> = set
            .events
            .chunks(share)
            .map(|events| scope.spawn(move || check(events)))
            .collect();
        parts
            .into_iter()
            .flat_map(|part| part.join().expect("the rules do not panic"))
            .collect()
    })
}

#[cfg(test)]
mod tests;
