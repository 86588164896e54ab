//! Gives the events of a run their numbers and encodes them with everything derived from them.
//!
//! The pieces are shared with the events of other servers (`incoming`): each writes the rows of one kind.

use std::sync::Arc;

use ruma::events::{TimelineEventType, room::member::MembershipState};

use super::{Change, Context, Drafted, Member, Redacted, Ref, Transaction};
use crate::{
    protocol::{
        event::Event,
        ids::{EventNid, Position, UserNid},
        replacement::REPLACE,
        searchable,
        summary::Counts,
    },
    service::rooms::{RoomHead, Stored, servers, threads::THREAD},
    store::{
        Base, Batch,
        notify::Kinds,
        schema::{
            AUTH_EDGES, CURRENT_STATE, EVENT_NIDS, EVENTS, EXTRA_TARGETS, EventList, EventRow,
            Facts, INTRODUCTIONS, LOCAL_EVENTS, MEMBER_CHANGES, MemberRow, ROOM_MEMBERS,
            RelationRow, THREADS, TIMELINE, TRANSACTIONS, TransactionRow, USER_ROOMS, WAITING,
        },
    },
};

/// The new events, and the stored ones that they changed.
pub(super) type Outcome = (Vec<Stored>, Vec<Stored>);

/// Gives numbers and encodes. All that it needs was read before.
pub(super) fn write(
    head: &mut RoomHead,
    batch: &mut Batch<'_>,
    drafted: Vec<Drafted>,
    mut base: Base,
    now: u64,
) -> Outcome {
    let mut nids: Vec<EventNid> = Vec::with_capacity(drafted.len());
    let (mut written, mut changed) = (Vec::new(), Vec::new());
    for item in drafted {
        let position = batch.position();
        let nid = EventNid(position.0);
        let number = |found: Ref| match found {
            Ref::Known(nid) => nid,
            Ref::InRun(index) => nids[index],
        };
        let header = &item.event.header;
        let facts = Facts {
            before: head.row.chain.tip,
            order: Some(nid.live_order()),
            replaces: item
                .state
                .as_ref()
                .and_then(|state| state.replaces)
                .map(number),
            thread: item.context.thread.clone(),
            origin: item
                .transaction
                .as_ref()
                .map(|transaction| transaction.origin.clone()),
            ..Facts::default()
        };
        let auth = item.auth.iter().copied().map(number).collect();
        put_event(batch, head, nid, (&item.event, item.sender), &facts, auth);
        let place = (nid, nid.live_order());
        put_relations(batch, head, place, item.sender, &item.context);
        if let Some(transaction) = &item.transaction {
            put_transaction(batch, head, (nid, item.sender), transaction, now);
        }
        if let Some(redacted) = item.context.redacted {
            changed.push(put_redacted(batch, head, nid, redacted));
        }
        let mut kinds = Kinds::TIMELINE;
        let was_shared = is_shared(head);
        if let Some(state) = item.state {
            let change = state.change;
            head.state.insert(change.key, nid);
            let (chain, after) = (&mut head.row.chain, &head.state);
            let set = vec![(change.key, nid)];
            let id = nid.snapshot_after();
            chain.write(batch, id, after, (set, Vec::new()), &mut base);
            if header.event_type == TimelineEventType::RoomCreate {
                head.row.create = nid;
            }
            if change.member.is_some() {
                kinds = kinds.and(Kinds::MEMBERSHIP);
            }
            put_current(batch, head, position, &change, Some(nid));
            put_told_apart(batch, head, (position, None), &change);
        }
        if was_shared || is_shared(head) {
            LOCAL_EVENTS.put(batch, &(head.nid, position), &None);
        }
        head.row.extremities = vec![(header.id.clone(), nid)];
        head.row.last = position;
        batch.touch_users(position, head.members.clone(), head.nid, kinds);
        nids.push(nid);
        written.push(Stored {
            nid,
            event: Arc::new(item.event),
            facts,
        });
    }
    (written, changed)
}

/// Whether other servers are in the room.
fn is_shared(head: &RoomHead) -> bool {
    // This node has a local user there who sends, or the first of them is about to join.
    head.servers.len() > 1 || (head.servers.len() == 1 && head.members.is_empty())
}

/// Whether the server of a member must be told although it is not in the room any more: it still thinks that its user
/// is there, or invited, or waiting at the door.
fn is_told_apart(head: &RoomHead, member: &Member) -> bool {
    let before = member.before.as_ref().map(|row| &row.membership);
    !member.is_local
        && !head.servers.contains_key(&member.server)
        && matches!(member.after, MembershipState::Leave | MembershipState::Ban)
        && matches!(
            before,
            Some(MembershipState::Join | MembershipState::Invite | MembershipState::Knock)
        )
}

/// Remembers a transaction of a device, and the event that it has made.
pub(in crate::service::rooms) fn put_transaction(
    batch: &mut Batch<'_>,
    head: &RoomHead,
    (event, sender): (EventNid, UserNid),
    transaction: &Transaction,
    ts: u64,
) {
    let row = TransactionRow { event, ts };
    let device = transaction.origin.device_id.as_str();
    let key = (sender, device, head.nid, transaction.key());
    TRANSACTIONS.put(batch, &key, &row);
}

/// Sees to it that a server hears of a change of membership that has put it out of the room: at this position, by the event
/// of that number if no other is named.
pub(in crate::service::rooms) fn put_told_apart(
    batch: &mut Batch<'_>,
    head: &RoomHead,
    (position, named): (Position, Option<EventNid>),
    change: &Change,
) {
    if let Some(member) = &change.member
        && is_told_apart(head, member)
    {
        EXTRA_TARGETS.put(batch, &(member.server, position), &(head.nid, named));
    }
}

/// Writes the rows by which an event is found.
pub(in crate::service::rooms) fn put_event(
    batch: &mut Batch<'_>,
    head: &RoomHead,
    nid: EventNid,
    (event, sender): (&Event, UserNid),
    facts: &Facts,
    auth: Vec<EventNid>,
) {
    EVENT_NIDS.put(batch, &(event.header.id.as_str(),), &(nid,));
    if let Some(order) = facts.order {
        TIMELINE.put(batch, &(head.nid, order), &(nid,));
    }
    AUTH_EDGES.put(batch, &(nid,), &EventList(auth));
    let row = EventRow::new(event, facts.clone(), head.nid, sender);
    EVENTS.put(batch, &(nid,), &row);
    if facts.order.is_some() && searchable::Key::of_event(&event.header).is_some() {
        batch.note_text(nid);
    }
}

/// Writes what an event that clients see has to do with others.
pub(in crate::service::rooms) fn put_relations(
    batch: &mut Batch<'_>,
    head: &RoomHead,
    (nid, order): (EventNid, i64),
    sender: UserNid,
    context: &Context,
) {
    if let Some((parent, tie)) = &context.relation {
        tie.put(batch, *parent, order, &RelationRow { event: nid, sender });
        if tie.kind == THREAD && context.last_reply.is_none_or(|last| last < order) {
            if let Some(last) = context.last_reply {
                THREADS.delete(batch, &(head.nid, last, *parent));
            }
            THREADS.put(batch, &(head.nid, order, *parent), &());
        }
    }
    for awaited in &context.awaited {
        WAITING.put(batch, &(head.nid, awaited.as_str(), nid), &());
    }
}

/// Empties the event that the event `by` redacts.
pub(in crate::service::rooms) fn put_redacted(
    batch: &mut Batch<'_>,
    head: &RoomHead,
    by: EventNid,
    redacted: Redacted,
) -> Stored {
    if redacted.target.event.is_state() {
        batch.note_changed(head.nid);
    }
    if searchable::Key::of_event(&redacted.target.event.header).is_some() {
        batch.note_text(redacted.target.nid);
        // What was edited says again what it said before.
        if let Some((parent, tie)) = &redacted.relation
            && tie.kind == REPLACE
        {
            batch.note_text(*parent);
        }
    }
    let mut facts = redacted.target.facts.clone();
    facts.redacted_by = Some(by);
    if let (Some((parent, tie)), Some(order)) = (redacted.relation, facts.order) {
        if tie.kind == THREAD {
            THREADS.delete(batch, &(head.nid, order, parent));
            if let Some(last) = redacted.last_reply {
                THREADS.put(batch, &(head.nid, last, parent), &());
            }
        }
        tie.delete(batch, parent, order, redacted.sender);
    }
    let nid = redacted.target.nid;
    let row = EventRow::new(&redacted.emptied, facts.clone(), head.nid, redacted.sender);
    EVENTS.put(batch, &(nid,), &row);
    Stored {
        nid,
        event: Arc::new(redacted.emptied),
        facts,
    }
}

/// Writes one entry of the current state, or takes it away, with all that is counted by it.
///
/// The snapshot that holds it is written by others.
pub(in crate::service::rooms) fn put_current(
    batch: &mut Batch<'_>,
    head: &mut RoomHead,
    position: Position,
    change: &Change,
    event: Option<EventNid>,
) {
    let key = (
        head.nid,
        change.event_type.as_str(),
        change.state_key.as_str(),
    );
    match event {
        Some(nid) => CURRENT_STATE.put(batch, &key, &(nid,)),
        None => CURRENT_STATE.delete(batch, &key),
    }
    if let Some(member) = &change.member {
        put_member(head, batch, position, event, member);
    }
}

/// Writes a membership and what is counted by it.
pub(in crate::service::rooms) fn put_member(
    head: &mut RoomHead,
    batch: &mut Batch<'_>,
    position: Position,
    event: Option<EventNid>,
    member: &Member,
) {
    let before = member
        .before
        .as_ref()
        .map_or(MembershipState::Leave, |row| row.membership.clone());
    let same = member
        .before
        .as_ref()
        .filter(|row| row.membership == member.after);
    let Some(event) = event.or_else(|| Some(member.before.as_ref()?.event)) else {
        return;
    };
    let row = MemberRow {
        membership: member.after.clone(),
        event,
        since: same.map_or(position, |row| row.since),
        // Whoever comes back remembers the room again.
        forgotten: same.is_some_and(|row| row.forgotten),
    };
    ROOM_MEMBERS.put(batch, &(head.nid, member.user), &row);
    MEMBER_CHANGES.put(batch, &(head.nid, row.since, member.user), &());
    USER_ROOMS.put(batch, &(member.user, head.nid), &row);
    let counts = Counts {
        joined: head.row.joined,
        invited: head.row.invited,
    }
    .after(&before, &member.after);
    (head.row.joined, head.row.invited) = (counts.joined, counts.invited);
    let knew_server = head.servers.contains_key(&member.server);
    servers::count(&mut head.servers, batch, position, head.nid, member);
    let is_meeting = if member.is_local {
        head.servers.len() > 1
    } else {
        !knew_server && !head.members.is_empty()
    };
    if is_meeting && row.membership == MembershipState::Join && row.since == position {
        INTRODUCTIONS.put(batch, &(position, head.nid, member.user), &());
    }
    if member.is_local {
        batch.touch_user(
            position,
            member.user,
            Some(head.nid),
            Kinds::TIMELINE.and(Kinds::MEMBERSHIP),
        );
        if member.after == MembershipState::Join {
            head.members.insert(member.user);
        } else {
            head.members.remove(&member.user);
        }
    } else {
        // What users elsewhere are called is known from their memberships.
        batch.note_user(member.user);
    }
}
