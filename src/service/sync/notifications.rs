//! What a user has been notified of, the newest first. See "Listing Notifications" in the client-server API.
//!
//! Nothing is kept for this: the timelines of the user's rooms are read from their ends together, and their push rules say
//! what notifies.

use std::{collections::BinaryHeap, ops::Bound};

use ruma::events::room::member::MembershipState;

use super::{
    Sync, SyncRequest,
    json::{Object, push_item},
    unread::Read,
    v3::{Asking, RoomPart},
};
use crate::{
    error::{Error, Result},
    protocol::{
        format::Shape,
        ids::{EventNid, RoomNid},
        push::Rules,
    },
    service::{
        Requester,
        rooms::{Seen, Stored},
    },
    store::{
        self, View,
        schema::{MemberRow, ROOM_HEADS, TIMELINE, USER_ROOMS},
    },
};

/// How many are told if nothing is said, and at most.
const USUAL_LIMIT: u64 = 50;
const MAX_LIMIT: u64 = 500;

/// How many events are looked at for one answer, which may have less than was asked for.
const MOST_EVENTS: usize = 2_000;

/// Which notifications are asked for.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// Where to go on: a token of an earlier answer.
    pub from: Option<String>,
    /// The most to tell.
    pub limit: Option<u64>,
    /// Whether only those that notify loudly are wanted.
    pub highlights: bool,
}

/// A room of the user, and what is left of its timeline.
struct Lane<'a> {
    part: RoomPart<'a>,
    /// From the newest event back, since the user came.
    rows: Box<dyn Iterator<Item = store::Result<(i64, EventNid)>> + 'a>,
    /// How far the user has read.
    receipts: Vec<store::schema::ReceiptRow>,
}

/// The next event of a lane, or the end of a room that was not looked into yet.
type Next = (i64, Option<EventNid>, usize);

impl Sync {
    /// A part of the notifications of a user, as the answer of `/notifications`.
    ///
    /// # Errors
    /// 400 for a token that is none.
    pub fn notifications(&self, requester: &Requester, listing: &Listing) -> Result<String> {
        let from = listing.from.as_deref().map(str::parse::<i64>).transpose();
        let from = from.map_err(|_| Error::invalid_param("`from` is not a token of ours"))?;
        let before = from.unwrap_or(i64::MAX);
        let limit = listing.limit.unwrap_or(USUAL_LIMIT).clamp(1, MAX_LIMIT);
        let view = self.store.view();
        let request = SyncRequest::bare();
        let asking = Asking {
            view: &view,
            requester,
            request: &request,
            since: None,
        };
        let rules = self.accounts.push_rules(&requester.user_id)?;
        let rooms = joined(&view, requester)?;
        let mut lanes: Vec<Option<Lane<'_>>> = rooms.iter().map(|_| None).collect();
        let mut heap: BinaryHeap<Next> = BinaryHeap::new();
        for (index, (room, _)) in rooms.iter().enumerate() {
            if let Some(head) = ROOM_HEADS.get(&view, &(*room,))? {
                heap.push((head.last.live_order().min(before), None, index));
            }
        }
        let (mut list, mut told, mut looked_at) = (String::new(), 0, 0);
        let mut last = None;
        while let Some((order, event, index)) = heap.pop() {
            if told == limit || looked_at == MOST_EVENTS {
                break;
            }
            let (room, member) = &rooms[index];
            let lane = match &mut lanes[index] {
                Some(lane) => lane,
                none => none.insert(self.lane(&asking, (*room, member), before)?),
            };
            if let Some(event) = event {
                looked_at += 1;
                last = Some(order);
                let stored = self.rooms.event(&view, event)?;
                if let Some(item) = self.notification(lane, &rules, order, &stored, listing)? {
                    push_item(&mut list, &item);
                    told += 1;
                }
            }
            if let Some(row) = lane.rows.next() {
                let (order, event) = row?;
                heap.push((order, Some(event), index));
            }
        }
        let is_whole = told < limit && looked_at < MOST_EVENTS;
        let mut out = String::new();
        let mut answer = Object::new(&mut out);
        answer.json("notifications", &format!("[{list}]"));
        if let Some(last) = last.filter(|_| !is_whole) {
            answer.text("next_token", &last.to_string());
        }
        answer.finish();
        Ok(out)
    }

    fn lane<'a>(
        &'a self,
        asking: &'a Asking<'a>,
        (room, member): (RoomNid, &'a MemberRow),
        before: i64,
    ) -> Result<Lane<'a>> {
        let part = self.part(asking, room, member, None)?;
        let user = asking.requester.nid;
        let receipts = self.receipts.of(asking.view, room, user)?;
        let bounds = (
            Bound::Excluded((room, member.since.live_order())),
            Bound::Excluded((room, before)),
        );
        let rows = TIMELINE.range_back(asking.view, &(room,), bounds);
        let rows = rows.map(|row| row.map(|((_, order), (event,))| (order, event)));
        Ok(Lane {
            part,
            rows: Box::new(rows),
            receipts,
        })
    }

    /// What is told of an event, if it notifies the user.
    fn notification(
        &self,
        lane: &Lane<'_>,
        rules: &Rules,
        order: i64,
        stored: &std::sync::Arc<Stored>,
        listing: &Listing,
    ) -> Result<Option<String>> {
        let Some(membership) = lane.part.sight.sees(stored)? else {
            return Ok(None);
        };
        let Some(outcome) = self.outcome(&lane.part, rules, stored)? else {
            return Ok(None);
        };
        if !outcome.notify || (listing.highlights && !outcome.highlight) {
            return Ok(None);
        }
        let actions = serde_json::to_string(outcome.actions)
            .map_err(|e| Error::Internal(format!("actions can not be written: {e}")))?;
        let read = Read {
            receipts: &lane.receipts,
            joined: lane.part.member.since.live_order(),
        };
        let thread = stored.facts.thread.as_ref();
        let is_read = order <= read.upto(thread.map_or("main", |thread| thread.as_str()));
        let header = &stored.event.header;
        let mut out = String::new();
        let mut item = Object::new(&mut out);
        item.json("actions", &actions);
        let seen = Seen {
            stored: stored.clone(),
            membership,
        };
        lane.part
            .sight
            .show(item.member("event"), &seen, Shape::Sync)?;
        item.json("read", if is_read { "true" } else { "false" });
        item.text("room_id", header.room_id.as_str());
        item.json("ts", &header.origin_server_ts.0.to_string());
        item.finish();
        Ok(Some(out))
    }
}

fn joined(view: &View, requester: &Requester) -> Result<Vec<(RoomNid, MemberRow)>> {
    let mut rooms = Vec::new();
    for row in USER_ROOMS.scan(view, &(requester.nid,)) {
        let ((_, room), member) = row?;
        if member.membership == MembershipState::Join {
            rooms.push((room, member));
        }
    }
    Ok(rooms)
}
