//! Places in a timeline where events are missing, and the older events that fill them.
//!
//! Whoever enters a room knows nothing of what was before. What is fetched of it later takes places below the known
//! ones, downwards; until then a page of the timeline ends at the gap, so that whoever asks for the next one can have it
//! filled first. See "Backfilling and retrieving missing events" in the server-server API.

use std::{
    collections::{BTreeSet, BinaryHeap, HashMap, HashSet},
    ops::Bound,
    sync::Arc,
};

use ruma::{OwnedEventId, state_res::Event as _};

use super::{
    RoomHead, Rooms, Stored,
    append::{
        Context,
        write::{put_event, put_redacted, put_relations},
    },
    incoming::{Before, Settled, put_arrivals},
};
use crate::{
    error::{Error, Result},
    protocol::{
        ids::{EventNid, Position, RoomNid, UserNid},
        ingest::Pdu,
    },
    store::{
        View,
        schema::{AUTH_EDGES, GAPS, GapRow, ROOM_HEADS, TIMELINE},
    },
};

/// The most ends that are remembered of what is missing.
const MAX_MISSING: usize = 100;

/// A place in a room's timeline where events are missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Where the event stood that lay right above it when it came to be; this names the gap.
    pub below: i64,
    /// What is known of it.
    pub row: GapRow,
}

/// How filling a gap went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filled {
    /// Not yet.
    Needs {
        /// These events authorise some of those given and must be stored first.
        auth: Vec<OwnedEventId>,
        /// The state before these events must be told, with all of its events stored.
        states: Vec<OwnedEventId>,
    },
    /// It was done.
    Done {
        /// How many events have their place now.
        placed: usize,
        /// What is left of the gap.
        rest: Option<Gap>,
        /// The position of the commit.
        position: Position,
    },
}

impl Rooms {
    /// The gap that a reader of the timeline comes to next who goes backwards from a place, if no event lies between.
    ///
    /// # Errors
    /// When the store fails.
    pub fn gap_at(&self, view: &View, room: RoomNid, from: i64) -> Result<Option<Gap>> {
        let Some(gap) = gap_below(view, room, from)? else {
            return Ok(None);
        };
        let between = super::timeline::first_back(view, room, gap.row.next, from)?;
        Ok(between.is_none().then_some(gap))
    }

    /// All gaps of a room, oldest first.
    ///
    /// # Errors
    /// When the store fails.
    pub fn gaps(&self, view: &View, room: RoomNid) -> Result<Vec<Gap>> {
        GAPS.scan(view, &(room,))
            .map(|row| {
                let ((_, below), row) = row?;
                Ok(Gap { below, row })
            })
            .collect()
    }

    /// Puts older events into a gap. `states` says what other servers told of the state before some of them; it is needed
    /// for those of which not all previous events are here.
    ///
    /// Events that nothing at the gap leads to are not looked at. Nothing is shown to clients as new, and nothing becomes
    /// current.
    ///
    /// # Errors
    /// When there is no such gap, or the store fails.
    pub fn fill(
        &self,
        head: &mut RoomHead,
        gap: i64,
        pdus: &[Pdu],
        states: &HashMap<OwnedEventId, Vec<OwnedEventId>>,
    ) -> Result<Filled> {
        let view = self.store.latest();
        let row = GAPS
            .get(&view, &(head.nid, gap))?
            .ok_or_else(|| Error::not_found("The gap"))?;
        let order = connected(&row.missing, pdus);
        let (mut auth, mut lacking) = (BTreeSet::new(), Vec::new());
        let mut settled: Vec<Arc<Stored>> = Vec::new();
        let mut given: HashSet<&OwnedEventId> = HashSet::new();
        for at in order {
            let Some(pdu) = pdus.get(at) else { continue };
            let id = &pdu.event.header.id;
            let before = match states.get(id) {
                Some(ids) => Before::Given(ids),
                None => Before::Previous,
            };
            match self.settle(head, pdu, before)? {
                Settled::There(stored) => {
                    given.insert(id);
                    settled.push(stored);
                }
                Settled::Lacks { auth: more, prev } => {
                    auth.extend(more);
                    // One that follows another of these needs only wait for that one.
                    if prev.iter().any(|prev| !given.contains(prev)) {
                        lacking.push(id.clone());
                    }
                    given.insert(id);
                }
            }
        }
        if !auth.is_empty() || !lacking.is_empty() {
            return Ok(Filled::Needs {
                auth: auth.into_iter().collect(),
                states: lacking,
            });
        }
        self.place(head, Gap { below: gap, row }, settled)
    }

    /// Gives places to events whose state is known, oldest first.
    fn place(&self, head: &mut RoomHead, gap: Gap, events: Vec<Arc<Stored>>) -> Result<Filled> {
        let view = self.store.latest();
        // What is older than that on which the gap stands belongs into the gap under it, even if something newer follows it.
        let lower = gap_below(&view, head.nid, gap.row.floor)?;
        let horizon = match &lower {
            Some(_) => self.depth_under(&view, head.nid, gap.row.floor)?,
            None => None,
        };
        let is_older = |stored: &Arc<Stored>| Some(stored.event.header.depth) < horizon;
        let (older, events): (Vec<_>, Vec<_>) = events.into_iter().partition(is_older);
        let left = self.ends(&view, &gap.row.missing, &events)?;
        let older: Vec<OwnedEventId> = older
            .iter()
            .map(|stored| stored.event.header.id.clone())
            .collect();
        let (sunken, rest) = left.into_iter().partition(|id| older.contains(id));
        let lower = lower.map(|mut lower| {
            lower.row.missing = merged(lower.row.missing, sunken);
            lower
        });

        let room_left = gap.row.next.saturating_sub(gap.row.floor);
        let mut shown: Vec<_> = events
            .into_iter()
            .filter(|stored| {
                let flags = stored.event.header.flags;
                let is_accepted = !flags.rejected && !flags.soft_failed;
                stored.facts.order.is_none() && stored.has_state() && is_accepted
            })
            .collect();
        let most = usize::try_from(room_left).unwrap_or(usize::MAX);
        if shown.len() > most {
            shown.drain(..shown.len() - most);
        }
        let count = i64::try_from(shown.len()).unwrap_or(i64::MAX);
        let lowest = gap.row.next - count;
        let rest = (!rest.is_empty() && lowest > gap.row.floor).then_some(Gap {
            below: gap.below,
            row: GapRow {
                next: lowest,
                floor: gap.row.floor,
                missing: rest,
            },
        });

        let mut rows: Vec<(Arc<Stored>, Vec<EventNid>, UserNid, Context)> = Vec::new();
        let mut redacted = HashSet::new();
        for stored in shown {
            let mut context = self.context_of(&view, &stored.event)?;
            let header = &stored.event.header;
            if let Some(id) = &header.redacts {
                match self.target_of(&view, &stored.event)? {
                    Some(target) if target.facts.redacted_by.is_none() => {
                        let state = self.store.state(stored.facts.before)?;
                        let power = self.power_levels(&view, &state, head.rules)?;
                        let is_allowed =
                            power.redaction_applies(&header.sender, &target.event.header.sender);
                        if is_allowed && target.facts.order.is_some() && redacted.insert(target.nid)
                        {
                            context.redacted = Some(self.redaction(&view, target, head.rules)?);
                        }
                    }
                    Some(_) => {}
                    None => context.awaited.push(id.clone()),
                }
            }
            let auth = AUTH_EDGES.get(&view, &(stored.nid,))?;
            let sender = self.store.user_nid(&header.sender)?;
            rows.push((
                stored,
                auth.map(|list| list.0).unwrap_or_default(),
                sender,
                context,
            ));
        }
        let mut arrivals = Vec::new();
        for (stored, ..) in &rows {
            let mut arrived = self.arrivals(&view, head, &stored.event)?;
            for target in &redacted {
                arrived.without(*target);
            }
            arrivals.push(arrived);
        }
        // A redaction that comes together with its target.
        for (by, ..) in &rows {
            let target = by.event.header.redacts.as_ref();
            let at = rows
                .iter()
                .position(|(stored, ..)| Some(&stored.event.header.id) == target);
            let Some((at, (stored, ..))) = at.and_then(|at| Some((at, rows.get(at)?))) else {
                continue;
            };
            let state = self.store.state(by.facts.before)?;
            let power = self.power_levels(&view, &state, head.rules)?;
            if power.redaction_applies(&by.event.header.sender, &stored.event.header.sender) {
                arrivals[at].redaction = Some((by.nid, stored.emptied(head.rules)?));
            }
        }
        let others = self.gaps(&view, head.nid)?;
        let others = others.into_iter().filter(|other| other.below != gap.below);
        let newest = others.chain(rest.clone()).max_by_key(|gap| gap.below);

        let mut next = head.clone();
        next.row.gap = newest.map(|gap| gap.row.next);
        let placed = rows.len();
        let committed = self.store.commit(|batch| {
            let mut changed = Vec::new();
            let mut order = lowest;
            for ((stored, auth, sender, mut context), mut arrived) in rows.into_iter().zip(arrivals)
            {
                order += 1;
                let mut facts = stored.facts.clone();
                facts.order = Some(order);
                facts.thread = context.thread.take();
                let event = (*stored.event).clone();
                let event = put_arrivals(batch, &next, stored.nid, event, &mut facts, &mut arrived);
                if facts.redacted_by.is_some() {
                    context.relation = None;
                }
                put_event(batch, &next, stored.nid, (&event, sender), &facts, auth);
                put_relations(batch, &next, (stored.nid, order), sender, &context);
                changed.push(Stored {
                    nid: stored.nid,
                    event: Arc::new(event),
                    facts,
                });
                if let Some(redacted) = context.redacted {
                    changed.push(put_redacted(batch, &next, stored.nid, redacted));
                }
            }
            match &rest {
                Some(gap) => GAPS.put(batch, &(next.nid, gap.below), &gap.row),
                None => GAPS.delete(batch, &(next.nid, gap.below)),
            }
            if let Some(lower) = &lower {
                GAPS.put(batch, &(next.nid, lower.below), &lower.row);
            }
            ROOM_HEADS.put(batch, &(next.nid,), &next.row);
            Ok(changed)
        })?;
        *head = next;
        let position = committed.position;
        self.events.replace(position, committed.value);
        Ok(Filled::Done {
            placed,
            rest,
            position,
        })
    }

    /// What is still missing once these events have their place: of what was missing, and of what they follow.
    fn ends(
        &self,
        view: &View,
        missing: &[OwnedEventId],
        events: &[Arc<Stored>],
    ) -> Result<Vec<OwnedEventId>> {
        let prev = events.iter().flat_map(|stored| stored.event.prev_events());
        let mut missing: BTreeSet<&OwnedEventId> = missing.iter().chain(prev).collect();
        for stored in events {
            missing.remove(&stored.event.header.id);
        }
        let mut left = Vec::new();
        for id in missing {
            // What was not accepted has no place, but it is no gap.
            let is_missing = self.find_event(view, id)?.is_none_or(|stored| {
                let flags = stored.event.header.flags;
                let is_accepted = !flags.rejected && !flags.soft_failed;
                !stored.has_state() || (is_accepted && stored.facts.order.is_none())
            });
            if is_missing {
                left.push(id.clone());
            }
        }
        left.truncate(MAX_MISSING);
        Ok(left)
    }

    /// How deep in the room's graph the newest event lies that is at or below a place.
    fn depth_under(&self, view: &View, room: RoomNid, place: i64) -> Result<Option<u64>> {
        let bounds = (Bound::Unbounded, Bound::Included((room, place)));
        let Some(row) = TIMELINE.range_back(view, &(room,), bounds).next() else {
            return Ok(None);
        };
        let (_, (event,)) = row?;
        Ok(Some(self.event(view, event)?.event.header.depth))
    }
}

/// The ends of two gaps that become one.
fn merged(mut ends: Vec<OwnedEventId>, more: Vec<OwnedEventId>) -> Vec<OwnedEventId> {
    for id in more {
        if !ends.contains(&id) {
            ends.push(id);
        }
    }
    ends.truncate(MAX_MISSING);
    ends
}

/// The newest gap that lies at or below a place.
pub(super) fn gap_below(view: &View, room: RoomNid, from: i64) -> Result<Option<Gap>> {
    let mut found = None;
    // A room has as many gaps as it was left and entered again.
    for row in GAPS.scan(view, &(room,)) {
        let ((_, below), row) = row?;
        if row.next <= from {
            found = Some(Gap { below, row });
        }
    }
    Ok(found)
}

/// Those of the events to which the missing ones lead, each after those that it follows.
#[must_use]
pub fn connected(missing: &[OwnedEventId], pdus: &[Pdu]) -> Vec<usize> {
    let by_id: HashMap<&OwnedEventId, usize> = pdus
        .iter()
        .enumerate()
        .map(|(at, pdu)| (&pdu.event.header.id, at))
        .collect();
    let mut todo: Vec<usize> = missing
        .iter()
        .filter_map(|id| by_id.get(id))
        .copied()
        .collect();
    let mut reached: BTreeSet<usize> = BTreeSet::new();
    let mut follows: HashMap<usize, usize> = HashMap::new();
    let mut followers: HashMap<usize, Vec<usize>> = HashMap::new();
    while let Some(at) = todo.pop() {
        if !reached.insert(at) {
            continue;
        }
        for prev in pdus
            .get(at)
            .into_iter()
            .flat_map(|pdu| pdu.event.prev_events())
        {
            if let Some(prev) = by_id.get(prev) {
                *follows.entry(at).or_default() += 1;
                followers.entry(*prev).or_default().push(at);
                todo.push(*prev);
            }
        }
    }
    // Of those that do not follow each other the deeper one is the newer one.
    let key = |at: usize| {
        let header = pdus.get(at).map(|pdu| &pdu.event.header);
        let age = header.map(|header| (header.depth, header.origin_server_ts, header.id.clone()));
        std::cmp::Reverse((age, at))
    };
    let ready = reached.iter().filter(|at| !follows.contains_key(at));
    let mut ready: BinaryHeap<_> = ready.map(|at| key(*at)).collect();
    let mut order = Vec::new();
    while let Some(std::cmp::Reverse((_, at))) = ready.pop() {
        order.push(at);
        for next in followers.remove(&at).unwrap_or_default() {
            if let Some(left) = follows.get_mut(&next) {
                *left -= 1;
                if *left == 0 {
                    ready.push(key(next));
                }
            }
        }
    }
    order
}

#[cfg(test)]
mod tests;
