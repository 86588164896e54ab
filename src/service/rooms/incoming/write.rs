//! Encodes an event of another server with everything derived from it.

use std::sync::Arc;

use super::{
    super::append::write::{
        put_current, put_event, put_redacted, put_relations, put_told_apart, put_transaction,
    },
    arrivals::Arrivals,
    plan::{Current, Own, Plan, Target},
};
use crate::{
    protocol::{
        event::Event,
        ids::{EventNid, SnapshotId},
        ingest::Verdict,
    },
    service::rooms::{RoomHead, Rooms, Stored, enter::FREE_PLACES, threads::THREAD},
    store::{
        Batch, StateMap,
        notify::Kinds,
        schema::{Facts, GAPS, GapRow, LOCAL_EVENTS, THREADS, WAITING},
    },
};

/// What was written, for the caches.
pub(super) struct Written {
    pub(super) stored: Stored,
    pub(super) changed: Vec<Stored>,
    pub(super) states: Vec<(SnapshotId, StateMap)>,
    pub(super) promoted: bool,
}

pub(super) fn write(head: &mut RoomHead, batch: &mut Batch<'_>, plan: Plan) -> Written {
    let Plan {
        event,
        sender,
        promoted,
        auth,
        mut ground,
        verdict,
        sets,
        mut context,
        mut arrivals,
        others,
        current,
        changes,
        is_straight,
        is_live,
        lacks,
        own,
        is_answered_for,
    } = plan;
    let mut states = Vec::new();
    if let Some(delta) = ground.fresh {
        let id = SnapshotId(batch.position().0);
        ground
            .chain
            .write(batch, id, &ground.state, delta, &mut ground.base);
        states.push((id, ground.state.clone()));
    }
    let before = ground.chain.tip;

    let floor = head.row.last.live_order();
    if !lacks.is_empty() {
        batch.skip(FREE_PLACES);
    }
    let position = batch.position();
    let is_promoted = promoted.is_some();
    let nid = promoted
        .as_ref()
        .map_or(EventNid(position.0), |stored| stored.nid);
    let order = position.live_order();
    let is_shown = is_live && verdict == Verdict::Accepted;
    let after = SnapshotId(position.0);
    if let Some((key, _)) = sets {
        ground.state.insert(key, nid);
        let delta = (vec![(key, nid)], Vec::new());
        ground
            .chain
            .write(batch, after, &ground.state, delta, &mut ground.base);
        states.push((after, ground.state.clone()));
    }
    let resolved = match current {
        Current::Same => None,
        Current::After => {
            head.row.chain = ground.chain;
            head.state = ground.state;
            None
        }
        Current::Resolved {
            state,
            delta,
            mut base,
        } => {
            let id = SnapshotId(batch.position().0);
            let chain = &mut head.row.chain;
            chain.write(batch, id, &state, delta, &mut base);
            states.push((id, state.clone()));
            head.state = state;
            Some(id)
        }
    };
    let mut facts = Facts {
        before,
        order: is_shown.then_some(order),
        replaces: sets.and_then(|(_, replaces)| replaces),
        redacted_by: promoted.and_then(|stored| stored.facts.redacted_by),
        thread: context.thread.clone(),
        origin: own.as_ref().and_then(|own| {
            let transaction = own.transaction.as_ref()?;
            Some(transaction.origin.clone())
        }),
        aside: false,
        after: (is_promoted && sets.is_some()).then_some(after),
        current: (is_shown && !is_straight).then_some(resolved.unwrap_or(head.row.chain.tip)),
    };

    if let Some(redacted) = &context.redacted {
        arrivals.without(redacted.target.nid);
    }
    let event = put_arrivals(batch, head, nid, event, &mut facts, &mut arrivals);
    if facts.redacted_by.is_some() {
        context.relation = None;
    }
    put_event(batch, head, nid, (&event, sender), &facts, auth);
    if is_shown {
        put_relations(batch, head, (nid, order), sender, &context);
    } else {
        // It relates to nothing that is shown; only its predecessors may still come.
        context.relation = None;
        put_relations(batch, head, (nid, order), sender, &context);
    }
    // Others may have been told already of what is newer than its number.
    let named = is_promoted.then_some(nid);
    if is_answered_for && verdict == Verdict::Accepted {
        LOCAL_EVENTS.put(batch, &(head.nid, position), &named);
    }
    let mut changed = Vec::new();
    if let Some(redacted) = context.redacted {
        changed.push(put_redacted(batch, head, nid, redacted));
    }
    if is_shown {
        let mut kinds = Kinds::TIMELINE;
        for (change, target) in &changes {
            if change.member.is_some() {
                kinds = kinds.and(Kinds::MEMBERSHIP);
            }
            let target = match target {
                Target::This => Some(nid),
                Target::Other(nid) => Some(*nid),
                Target::Nothing => None,
            };
            put_current(batch, head, position, change, target);
            if own.is_some() {
                put_told_apart(batch, head, (position, named), change);
            }
        }
        if let Some(Own { transaction, at }) = own
            && let Some(transaction) = transaction
        {
            put_transaction(batch, head, (nid, sender), &transaction, at);
        }
        if !is_straight {
            head.row.straight_from = order;
        }
        head.row.extremities = others;
        if !arrivals.is_followed {
            head.row.extremities.push((event.header.id.clone(), nid));
            head.row.depth = head.row.depth.max(event.header.depth);
        }
        head.row.last = position;
        if !lacks.is_empty() {
            let gap = GapRow {
                next: order - 1,
                floor,
                missing: lacks,
            };
            head.row.gap = Some(gap.next);
            GAPS.put(batch, &(head.nid, order), &gap);
        }
        batch.touch_users(position, head.members.clone(), head.nid, kinds);
    }
    Written {
        stored: Stored {
            nid,
            event: Arc::new(event),
            facts,
        },
        changed,
        states,
        promoted: is_promoted,
    }
}

/// Ends the waiting for an event, which may come out of it redacted.
pub(in crate::service::rooms) fn put_arrivals(
    batch: &mut Batch<'_>,
    head: &RoomHead,
    nid: EventNid,
    event: Event,
    facts: &mut Facts,
    arrivals: &mut Arrivals,
) -> Event {
    for done in arrivals.done.drain(..) {
        WAITING.delete(batch, &(head.nid, event.header.id.as_str(), done));
    }
    let mut last_reply = None;
    for (tie, order, row) in arrivals.relations.drain(..) {
        tie.put(batch, nid, order, &row);
        if tie.kind == THREAD {
            last_reply = last_reply.max(Some(order));
        }
    }
    if let Some(order) = last_reply {
        THREADS.put(batch, &(head.nid, order, nid), &());
    }
    match arrivals.redaction.take() {
        Some((by, emptied)) if facts.redacted_by.is_none() => {
            facts.redacted_by = Some(by);
            emptied
        }
        _ => event,
    }
}

impl Rooms {
    /// Stores an event that is judged, but not yet placed in its room.
    pub(super) fn store_unplaced(
        &self,
        head: &RoomHead,
        plan: &Plan,
    ) -> crate::error::Result<Arc<Stored>> {
        let facts = Facts::default();
        let committed = self.store.commit(|batch| {
            let nid = EventNid(batch.position().0);
            let event = (&plan.event, plan.sender);
            put_event(batch, head, nid, event, &facts, plan.auth.clone());
            Ok(nid)
        })?;
        let nid = committed.value;
        let event = Arc::new(plan.event.clone());
        let stored = Stored { nid, event, facts };
        self.events.add(Stored {
            nid,
            event: stored.event.clone(),
            facts: Facts::default(),
        });
        Ok(Arc::new(stored))
    }
}
