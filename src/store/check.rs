//! Walks the whole store for broken invariants. Used by `kontor check` and by the crash tests.

use ruma::events::room::member::MembershipState;

use super::{
    Error, Result, Store, View,
    codec::{Key, Value},
    schema::{
        ACCESS_TOKENS, ACCOUNT_DATA, ACCOUNT_DATA_CHANGES, ACCOUNTS, AUTH_EDGES, CURRENT_STATE,
        DEVICES, EVENT_NIDS, EVENTS, HeadRow, RECEIPTS, RECEIPTS_OF, RELATIONS, ROOM_HEADS,
        ROOM_IDS, ROOM_MEMBERS, ROOM_NIDS, STATE, TIMELINE, TRANSACTIONS, USER_IDS, USER_NIDS,
        USER_ROOMS,
    },
    table::Table,
};
use crate::protocol::ids::{EventNid, RoomNid};

/// One broken invariant, as a line for people.
pub type Complaint = String;

impl Store {
    /// Tells `say` each broken invariant; goes on after each, and reads everything.
    ///
    /// # Errors
    /// When the engine itself can not read on.
    pub fn check(&self, mut say: impl FnMut(Complaint)) -> Result<()> {
        let check = Check {
            store: self,
            view: self.latest(),
        };
        check.events(&mut say)?;
        check.timelines(&mut say)?;
        check.rooms(&mut say)?;
        check.memberships(&mut say)?;
        check.around_events(&mut say)?;
        check.accounts(&mut say)?;
        check.names(&mut say)
    }
}

struct Check<'s> {
    store: &'s Store,
    view: View,
}

impl Check<'_> {
    /// Every row of a table; one that does not decode is a complaint, not the end.
    fn rows<K: Key, V: Value>(
        &self,
        table: &Table<K, V>,
        say: &mut dyn FnMut(Complaint),
        mut each: impl FnMut(&mut dyn FnMut(Complaint), K, V) -> Result<()>,
    ) -> Result<()> {
        for row in table.scan(&self.view, &()) {
            match row {
                Ok((key, value)) => each(say, key, value)?,
                Err(error @ Error::Corrupt { .. }) => say(error.to_string()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn has_event(&self, nid: EventNid) -> Result<bool> {
        EVENTS.contains(&self.view, &(nid,))
    }

    fn events(&self, say: &mut dyn FnMut(Complaint)) -> Result<()> {
        let last = self.view.position().0;
        self.rows(&EVENTS, say, |say, (nid,), row| {
            let id = &row.id;
            if nid.0 > last {
                say(format!(
                    "event {nid} is newer than the last position {last}"
                ));
            }
            if EVENT_NIDS.get(&self.view, &(id.as_str(),))? != Some((nid,)) {
                say(format!("event {nid} is not found by its id {id}"));
            }
            if let Some(order) = row.facts.order {
                let placed = TIMELINE.get(&self.view, &(row.room, order))?;
                if placed != Some((nid,)) {
                    say(format!(
                        "event {nid} is not at its place {order} of its timeline"
                    ));
                }
            }
            Ok(())
        })?;
        self.rows(&EVENT_NIDS, say, |say, (id,), (nid,)| {
            if !self.has_event(nid)? {
                say(format!("event {id} is number {nid}, which is missing"));
            }
            Ok(())
        })?;
        self.rows(&AUTH_EDGES, say, |say, (nid,), edges| {
            for auth in edges.0 {
                if auth >= nid {
                    say(format!(
                        "event {nid} is authorised by {auth}, which is not older"
                    ));
                }
                if !self.has_event(auth)? {
                    say(format!(
                        "event {nid} is authorised by {auth}, which is missing"
                    ));
                }
            }
            Ok(())
        })?;
        self.rows(&TRANSACTIONS, say, |say, (user, device, _, txn), row| {
            if !self.has_event(row.event)? {
                say(format!(
                    "transaction {txn} of user {user} on {device} names the missing event {}",
                    row.event
                ));
            }
            Ok(())
        })
    }

    fn timelines(&self, say: &mut dyn FnMut(Complaint)) -> Result<()> {
        self.rows(&TIMELINE, say, |say, (room, order), (nid,)| {
            match EVENTS.get(&self.view, &(nid,)) {
                Ok(Some(row)) if row.facts.order == Some(order) => {}
                Ok(Some(_)) => say(format!(
                    "place {order} of room {room} holds event {nid}, which is elsewhere"
                )),
                Ok(None) => say(format!(
                    "place {order} of room {room} holds event {nid}, which is missing"
                )),
                // Said already, when the events were walked.
                Err(Error::Corrupt { .. }) => {}
                Err(error) => return Err(error),
            }
            Ok(())
        })
    }

    fn rooms(&self, say: &mut dyn FnMut(Complaint)) -> Result<()> {
        self.rows(&STATE, say, |say, (id,), row| {
            if let Some(parent) = row.parent
                && (parent >= id || !STATE.contains(&self.view, &(parent,))?)
            {
                say(format!(
                    "state {id} differs from {parent}, which is missing or not older"
                ));
            }
            Ok(())
        })?;
        self.rows(&ROOM_HEADS, say, |say, (room,), head| {
            self.counts(say, room, &head)?;
            for (id, nid) in &head.extremities {
                if !self.has_event(*nid)? {
                    say(format!("room {room} ends in {id}, which is missing"));
                }
            }
            match self.store.state(head.chain.tip) {
                Ok(state) => self.current_state(say, room, &state),
                Err(error @ (Error::Missing(_) | Error::Corrupt { .. })) => {
                    say(format!("the state of room {room} can not be read: {error}"));
                    Ok(())
                }
                Err(error) => Err(error),
            }
        })
    }

    fn counts(&self, say: &mut dyn FnMut(Complaint), room: RoomNid, head: &HeadRow) -> Result<()> {
        let (mut joined, mut invited) = (0, 0);
        for row in ROOM_MEMBERS.scan(&self.view, &(room,)) {
            match row {
                Ok((_, row)) => {
                    joined += u64::from(row.membership == MembershipState::Join);
                    invited += u64::from(row.membership == MembershipState::Invite);
                }
                // Said when the memberships are walked.
                Err(Error::Corrupt { .. }) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        if (joined, invited) != (head.joined, head.invited) {
            say(format!(
                "room {room} counts {} joined and {} invited users, but has {joined} and {invited}",
                head.joined, head.invited
            ));
        }
        Ok(())
    }

    fn current_state(
        &self,
        say: &mut dyn FnMut(Complaint),
        room: RoomNid,
        state: &super::StateMap,
    ) -> Result<()> {
        let mut rows = 0;
        for row in CURRENT_STATE.scan(&self.view, &(room,)) {
            let ((_, event_type, state_key), (nid,)) = match row {
                Ok(row) => row,
                Err(error @ Error::Corrupt { .. }) => {
                    say(error.to_string());
                    continue;
                }
                Err(error) => return Err(error),
            };
            rows += 1;
            let key = self.store.find_state_key(&event_type, &state_key)?;
            if key.and_then(|key| state.get(&key)) != Some(&nid) {
                say(format!(
                    "the current {event_type} `{state_key}` of room {room} is not the one of its state"
                ));
            }
        }
        if rows != state.len() {
            say(format!(
                "room {room} has {rows} current state events, its state has {}",
                state.len()
            ));
        }
        Ok(())
    }

    fn memberships(&self, say: &mut dyn FnMut(Complaint)) -> Result<()> {
        self.rows(&ROOM_MEMBERS, say, |say, (room, user), row| {
            if USER_ROOMS
                .get(&self.view, &(user, room))?
                .is_none_or(|other| other.event != row.event)
            {
                say(format!(
                    "user {user} does not know of their membership in room {room}"
                ));
            }
            if !self.has_event(row.event)? {
                say(format!(
                    "the membership of user {user} in room {room} is event {}, which is missing",
                    row.event
                ));
            }
            Ok(())
        })?;
        self.rows(&USER_ROOMS, say, |say, (user, room), _| {
            if !ROOM_MEMBERS.contains(&self.view, &(room, user))? {
                say(format!(
                    "room {room} does not know of the membership of user {user}"
                ));
            }
            Ok(())
        })
    }

    fn around_events(&self, say: &mut dyn FnMut(Complaint)) -> Result<()> {
        self.rows(&RELATIONS, say, |say, (parent, kind, order), row| {
            if !self.has_event(parent)? || !self.has_event(row.event)? {
                say(format!(
                    "the relation {kind} of event {parent} to {} at {order} has an end that is missing",
                    row.event
                ));
            }
            Ok(())
        })?;
        self.rows(&RECEIPTS_OF, say, |say, (room, user, kind, thread), row| {
            let listed = RECEIPTS.get(&self.view, &(room, row.position))?;
            if listed.as_ref() != Some(&row) {
                say(format!(
                    "the receipt {kind} `{thread}` of user {user} in room {room} is not in the order of receipts"
                ));
            }
            Ok(())
        })
    }

    fn accounts(&self, say: &mut dyn FnMut(Complaint)) -> Result<()> {
        self.rows(&ACCESS_TOKENS, say, |say, (_,), row| {
            if !DEVICES.contains(&self.view, &(row.user, row.device_id.as_str()))? {
                say(format!(
                    "an access token of user {} is for the device {}, which is missing",
                    row.user, row.device_id
                ));
            }
            Ok(())
        })?;
        self.rows(&DEVICES, say, |say, (user, device), _| {
            if !ACCOUNTS.contains(&self.view, &(user,))? {
                say(format!(
                    "the device {device} belongs to user {user}, who has no account"
                ));
            }
            Ok(())
        })?;
        self.rows(&ACCOUNT_DATA, say, |say, (user, room, kind), row| {
            let change = ACCOUNT_DATA_CHANGES.get(&self.view, &(user, row.position))?;
            if change.is_none_or(|change| change.room != room || change.data_type != kind) {
                say(format!(
                    "the account data {kind} of user {user} in room {room} is not in the order of changes"
                ));
            }
            Ok(())
        })
    }

    fn names(&self, say: &mut dyn FnMut(Complaint)) -> Result<()> {
        self.rows(&ROOM_NIDS, say, |say, (id,), (nid,)| {
            if ROOM_IDS
                .get(&self.view, &(nid,))?
                .is_none_or(|name| name.as_str() != id)
            {
                say(format!("room {id} has number {nid}, which names another"));
            }
            Ok(())
        })?;
        self.rows(&USER_NIDS, say, |say, (id,), (nid,)| {
            if USER_IDS
                .get(&self.view, &(nid,))?
                .is_none_or(|name| name.as_str() != id)
            {
                say(format!("user {id} has number {nid}, which names another"));
            }
            Ok(())
        })
    }
}
