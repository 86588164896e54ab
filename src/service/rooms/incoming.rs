//! Events of other servers: each is judged, and written with all that follows from it.
//!
//! In the ordinary case an event follows the newest one of the room. Then the state before it is the current one, and it
//! costs what a local event costs. Only where the room's history has split are states resolved. See "Checks performed on
//! receipt of a PDU" in the server-server API.

mod arrivals;
mod current;
mod plan;
mod write;

use std::sync::Arc;

use ruma::OwnedEventId;

use self::plan::{Own, Plan, Planned};
pub(super) use self::write::put_arrivals;
use super::{RoomHead, Rooms, Stored, Transaction};
use crate::{
    error::{Error, Result},
    protocol::{
        ids::{EventNid, Position},
        ingest::{Need, Pdu, Verdict},
    },
    store::{Batch, schema::ROOM_HEADS},
};

/// How the state before an event is found.
#[derive(Clone, Copy, Debug)]
pub enum Before<'a> {
    /// From the events that it follows, all of which must be here.
    Previous,
    /// It was told by another server, and consists of these events, all of which must be here. Where some of the events
    /// that it follows are here, the state after these counts as well.
    Given(&'a [OwnedEventId]),
}

/// What became of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was there already.
    Known,
    /// Nothing yet: these events must be there first.
    Needs(Need),
    /// It was written.
    Written {
        /// Its number.
        nid: EventNid,
        /// The position of the commit; an answer that speaks of it must wait until that is durable.
        position: Position,
        /// Whether it counts.
        verdict: Verdict,
    },
}

/// An event from before the known history, on its way to its place.
pub(super) enum Settled {
    /// It is stored, with the state around it.
    There(Arc<Stored>),
    /// Nothing was done yet.
    Lacks {
        /// These events must be stored first.
        auth: Vec<OwnedEventId>,
        /// These are not here, so the state before the event must be told.
        prev: Vec<OwnedEventId>,
    },
}

impl Rooms {
    /// Takes an event of another server into a room. `more` adds to the same commit, and only if the event is written.
    ///
    /// # Errors
    /// When the event is of another room, or the store fails.
    pub fn receive(
        &self,
        head: &mut RoomHead,
        pdu: &Pdu,
        before: Before<'_>,
        more: impl FnOnce(&mut Batch<'_>),
    ) -> Result<Outcome> {
        self.receive_as(head, pdu, before, |_| {}, more)
    }

    /// Takes an event of a user of ours into a room, which somebody else has signed as well since it was made. The room
    /// may have gone on meanwhile.
    ///
    /// # Errors
    /// As [`receive`](Self::receive).
    pub fn accept_own(
        &self,
        head: &mut RoomHead,
        pdu: &Pdu,
        transaction: Option<Transaction>,
    ) -> Result<Outcome> {
        let at = self.clock.now_ms();
        let own = |plan: &mut Plan| {
            plan.own = Some(Own { transaction, at });
            plan.is_answered_for = true;
        };
        self.receive_as(head, pdu, Before::Previous, own, |_| {})
    }

    /// Takes an event into a room that this node has accepted on behalf of the room, and tells the other servers in it:
    /// it is in `LOCAL_EVENTS` like an event of a user of ours. See "Joining Rooms" in the server-server API.
    ///
    /// # Errors
    /// As [`receive`](Self::receive).
    pub fn accept(&self, head: &mut RoomHead, pdu: &Pdu, before: Before<'_>) -> Result<Outcome> {
        let own = |plan: &mut Plan| plan.is_answered_for = true;
        self.receive_as(head, pdu, before, own, |_| {})
    }

    fn receive_as(
        &self,
        head: &mut RoomHead,
        pdu: &Pdu,
        before: Before<'_>,
        regard: impl FnOnce(&mut Plan),
        more: impl FnOnce(&mut Batch<'_>),
    ) -> Result<Outcome> {
        if pdu.event.header.room_id != head.id {
            return Err(Error::invalid_param(format!(
                "event {} is not in room {}",
                pdu.event.header.id, head.id
            )));
        }
        let mut plan = match self.plan(head, pdu, before, true)? {
            Planned::Known => return Ok(Outcome::Known),
            Planned::Needs(need) => return Ok(Outcome::Needs(need)),
            Planned::Ready(plan) => *plan,
        };
        if let Verdict::Rejected(denied) | Verdict::SoftFailed(denied) = &plan.verdict {
            // Any peer can send as many of these as it likes, so the log is told only if it wants to know.
            tracing::debug!(
                event = %pdu.event.header.id, room = %head.id, server = %pdu.event.header.sender.server_name(),
                rule = %denied, kind = plan.verdict_name(), "an event of another server is not shown"
            );
        }
        regard(&mut plan);
        let verdict = plan.verdict.clone();
        let (stored, position) = self.write_planned(head, plan, more)?;
        Ok(Outcome::Written {
            nid: stored.nid,
            position,
            verdict,
        })
    }

    /// Finds out the state around an event from before the known history, and stores it without giving it a place.
    pub(super) fn settle(
        &self,
        head: &mut RoomHead,
        pdu: &Pdu,
        before: Before<'_>,
    ) -> Result<Settled> {
        let plan = match self.plan(head, pdu, before, false)? {
            Planned::Known => {
                let found = self.find_event(&self.store.latest(), &pdu.event.header.id)?;
                let found = found
                    .ok_or_else(|| Error::Internal("an event that was known is gone".to_owned()))?;
                return Ok(Settled::There(found));
            }
            Planned::Needs(Need::AuthEvents(auth)) => {
                let prev = Vec::new();
                return Ok(Settled::Lacks { auth, prev });
            }
            Planned::Needs(Need::PrevEvents(missing)) => {
                return Ok(match before {
                    Before::Previous => Settled::Lacks {
                        auth: Vec::new(),
                        prev: missing,
                    },
                    // What is missing are events of the state.
                    Before::Given(_) => Settled::Lacks {
                        auth: missing,
                        prev: Vec::new(),
                    },
                });
            }
            Planned::Needs(Need::StateBefore | Need::Recommendation(_)) => {
                return Err(Error::Internal("a state was not worked out".to_owned()));
            }
            Planned::Ready(plan) => *plan,
        };
        let (stored, _) = self.write_planned(head, plan, |_| {})?;
        Ok(Settled::There(stored))
    }

    fn write_planned(
        &self,
        head: &mut RoomHead,
        plan: Plan,
        more: impl FnOnce(&mut Batch<'_>),
    ) -> Result<(Arc<Stored>, Position)> {
        let mut next = head.clone();
        let committed = self.store.commit(|batch| {
            let written = write::write(&mut next, batch, plan);
            ROOM_HEADS.put(batch, &(next.nid,), &next.row);
            more(batch);
            Ok(written)
        })?;
        let write::Written {
            stored,
            mut changed,
            states,
            promoted,
        } = committed.value;
        for (id, state) in states {
            self.store.cache_state(id, &state);
        }
        *head = next;
        let kept = Arc::new(Stored {
            nid: stored.nid,
            event: stored.event.clone(),
            facts: stored.facts.clone(),
        });
        if promoted {
            changed.push(stored);
        } else {
            self.events.add(stored);
        }
        self.events.replace(committed.position, changed);
        Ok((kept, committed.position))
    }
}

#[cfg(test)]
mod tests;
