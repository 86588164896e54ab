//! Gives the events of a run their numbers and encodes them with everything derived from them.

use ruma::events::{TimelineEventType, room::member::MembershipState};

use super::{Drafted, MemberDelta, Ref};
use crate::{
    protocol::{
        ids::{EventNid, Position},
        summary::Counts,
    },
    service::rooms::{RoomHead, Stored},
    store::{
        Base, Batch,
        notify::Kinds,
        schema::{
            AUTH_EDGES, CURRENT_STATE, EVENT_NIDS, EVENTS, EventList, EventRow, Facts, MemberRow,
            RELATIONS, ROOM_MEMBERS, RelationRow, TIMELINE, TRANSACTIONS, TransactionRow,
            USER_ROOMS,
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
            redacted_by: None,
            thread: item.thread,
            origin: item
                .transaction
                .as_ref()
                .map(|transaction| transaction.origin.clone()),
        };
        EVENT_NIDS.put(batch, &(header.id.as_str(),), &(nid,));
        TIMELINE.put(batch, &(head.nid, nid.live_order()), &(nid,));
        AUTH_EDGES.put(
            batch,
            &(nid,),
            &EventList(item.auth.iter().copied().map(number).collect()),
        );
        if let Some((parent, kind)) = &item.relation {
            let row = RelationRow {
                event: nid,
                sender: item.sender,
            };
            RELATIONS.put(batch, &(*parent, kind.as_str(), nid.live_order()), &row);
        }
        if let Some(transaction) = &item.transaction {
            let row = TransactionRow {
                event: nid,
                ts: now,
            };
            let device = transaction.origin.device_id.as_str();
            let key = (item.sender, device, head.nid, transaction.key());
            TRANSACTIONS.put(batch, &key, &row);
        }
        if let Some(redacted) = item.redacted {
            let mut facts = redacted.target.facts.clone();
            facts.redacted_by = Some(nid);
            if let (Some((parent, kind)), Some(order)) = (redacted.relation, facts.order) {
                RELATIONS.delete(batch, &(parent, kind, order));
            }
            let target = redacted.target.nid;
            let row = EventRow::new(&redacted.emptied, facts.clone(), head.nid, redacted.sender);
            EVENTS.put(batch, &(target,), &row);
            changed.push(Stored {
                nid: target,
                event: redacted.emptied,
                facts,
            });
        }
        let mut kinds = Kinds::TIMELINE;
        if let Some(state) = item.state {
            head.state.insert(state.key, nid);
            let (chain, after) = (&mut head.row.chain, &head.state);
            let set = vec![(state.key, nid)];
            let id = nid.snapshot_after();
            chain.write(batch, id, after, (set, Vec::new()), &mut base);
            let key = (
                head.nid,
                header.event_type.to_string(),
                header.state_key.clone().unwrap_or_default(),
            );
            CURRENT_STATE.put(batch, &key, &(nid,));
            if header.event_type == TimelineEventType::RoomCreate {
                head.row.create = nid;
            }
            if let Some(member) = state.member {
                kinds = kinds.and(Kinds::MEMBERSHIP);
                write_member(head, batch, position, nid, &member);
            }
        }
        let row = EventRow::new(&item.event, facts.clone(), head.nid, item.sender);
        EVENTS.put(batch, &(nid,), &row);
        head.row.extremities = vec![(header.id.clone(), nid)];
        head.row.last = position;
        batch.touch_users(position, head.members.clone(), head.nid, kinds);
        nids.push(nid);
        written.push(Stored {
            nid,
            event: item.event,
            facts,
        });
    }
    (written, changed)
}

fn write_member(
    head: &mut RoomHead,
    batch: &mut Batch<'_>,
    position: Position,
    nid: EventNid,
    member: &MemberDelta,
) {
    let before = member
        .before
        .as_ref()
        .map_or(MembershipState::Leave, |row| row.membership.clone());
    let same = member
        .before
        .as_ref()
        .filter(|row| row.membership == member.after);
    let row = MemberRow {
        membership: member.after.clone(),
        event: nid,
        since: same.map_or(position, |row| row.since),
        // Whoever comes back remembers the room again.
        forgotten: same.is_some_and(|row| row.forgotten),
    };
    ROOM_MEMBERS.put(batch, &(head.nid, member.user), &row);
    USER_ROOMS.put(batch, &(member.user, head.nid), &row);
    let counts = Counts {
        joined: head.row.joined,
        invited: head.row.invited,
    }
    .after(&before, &member.after);
    (head.row.joined, head.row.invited) = (counts.joined, counts.invited);
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
    }
}
