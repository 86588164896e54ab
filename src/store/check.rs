//! Walks the whole store for broken invariants. Used by `kontor check` and by the crash tests.

mod delayed;
mod encryption;
mod federation;
mod people;
mod relations;

use std::fmt::{Debug, Display};

use ruma::{ServerName, events::room::member::MembershipState};
use serde::de::IgnoredAny;

use super::{
    Error, Result, Store, View,
    codec::{AsKey, Key, Part, Value},
    intern::StateKeyName,
    schema::{
        ACCESS_TOKENS, ACCOUNT_DATA, ACCOUNT_DATA_CHANGES, ACCOUNTS, ALIASES, AUTH_EDGES,
        CURRENT_STATE, DEVICES, EVENT_NIDS, EVENTS, FILTERS, HeadRow, KEY_DOCUMENTS, LOGIN_TOKENS,
        META, NODE, OPENID_TOKENS, PRESENCE, PROFILES, PUBLIC_ROOMS, RECEIPTS, RECEIPTS_OF,
        REFRESH_TOKENS, REGISTRATION_TOKENS, ROOM_ALIASES, ROOM_HEADS, ROOM_IDS, ROOM_MEMBERS,
        ROOM_NIDS, SERVER_KEYS, SERVER_NAMES, SERVER_NIDS, STATE, STATE_KEY_NIDS, STATE_KEYS,
        TIMELINE, TRANSACTIONS, UNREAD, USER_IDS, USER_NIDS, USER_ROOMS,
    },
    table::Table,
};
use crate::protocol::{
    ids::{EventNid, RoomNid, UserNid},
    server_keys::ServerKeys,
};

/// One broken invariant, as a line for people.
pub type Complaint = String;

impl Store {
    /// Tells `say` each broken invariant of this moment; goes on after each, and reads everything.
    ///
    /// # Errors
    /// When the engine itself can not read on.
    pub fn check(&self, mut say: impl FnMut(Complaint)) -> Result<()> {
        let check = Check {
            store: self,
            view: self.present(),
        };
        check.events(&mut say)?;
        check.timelines(&mut say)?;
        check.rooms(&mut say)?;
        check.memberships(&mut say)?;
        check.around_events(&mut say)?;
        check.accounts(&mut say)?;
        check.sessions(&mut say)?;
        check.directory(&mut say)?;
        check.people(&mut say)?;
        check.names(&mut say)?;
        check.federation(&mut say)?;
        check.encryption(&mut say)?;
        check.delayed(&mut say)?;
        check.thread_subscriptions(&mut say)?;
        check.server_keys(&mut say)?;
        // Any value will do in these two, as long as it can be read.
        check.rows(&META, &mut say, |_, _, _| Ok(()))?;
        check.rows(&NODE, &mut say, |_, _, _| Ok(()))
    }
}

pub(super) struct Check<'s> {
    pub(super) store: &'s Store,
    pub(super) view: View,
}

impl Check<'_> {
    /// Every row of a table; one that does not decode is a complaint, not the end.
    pub(super) fn rows<K: Key, V: Value>(
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

    pub(super) fn has_event(&self, nid: EventNid) -> Result<bool> {
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
            let found = EVENT_NIDS.get(&self.view, &(id.as_str(),))?;
            if found != Some((nid,)) && !row.facts.aside {
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
        self.relations(say)?;
        self.rows(&RECEIPTS_OF, say, |say, (room, user, kind, thread), row| {
            let listed = RECEIPTS.get(&self.view, &(room, row.position))?;
            if listed.as_ref() != Some(&row) {
                say(format!(
                    "the receipt {kind} `{thread}` of user {user} in room {room} is not in the order of receipts"
                ));
            }
            Ok(())
        })?;
        self.rows(&RECEIPTS, say, |say, (room, position), row| {
            let key = (
                room,
                row.user,
                row.receipt_type.as_str(),
                row.thread.as_str(),
            );
            if RECEIPTS_OF.get(&self.view, &key)? != Some(row) {
                say(format!(
                    "the receipt of room {room} at {position} is not its user's newest"
                ));
            }
            Ok(())
        })
    }

    fn sessions(&self, say: &mut dyn FnMut(Complaint)) -> Result<()> {
        self.rows(&ACCESS_TOKENS, say, |say, (hash,), row| {
            let device = DEVICES.get(&self.view, &(row.user, row.device_id.as_str()))?;
            if device.is_none_or(|device| device.access_token != Some(hash)) {
                say(format!(
                    "an access token of user {} is for the device {}, which does not have it",
                    row.user, row.device_id
                ));
            }
            Ok(())
        })?;
        self.rows(&REFRESH_TOKENS, say, |say, (hash,), row| {
            let device = DEVICES.get(&self.view, &(row.user, row.device_id.as_str()))?;
            if device.is_none_or(|device| {
                ![device.refresh_token, device.previous_refresh_token].contains(&Some(hash))
            }) {
                say(format!(
                    "a refresh token of user {} is for the device {}, which does not have it",
                    row.user, row.device_id
                ));
            }
            Ok(())
        })?;
        self.rows(&LOGIN_TOKENS, say, |say, (_,), row| {
            self.account(say, row.user, "a login token")
        })?;
        self.rows(&OPENID_TOKENS, say, |say, (_,), row| {
            self.account(say, row.user, "an OpenID token")
        })?;
        self.rows(&DEVICES, say, |say, (user, device), row| {
            if let Some(hash) = row.access_token
                && !ACCESS_TOKENS.contains(&self.view, &(hash,))?
            {
                say(format!(
                    "the access token of user {user} for the device {device} is not known"
                ));
            }
            self.account(say, user, &format!("the device {device}"))
        })
    }

    /// Complains if nobody owns `what`.
    fn account(&self, say: &mut dyn FnMut(Complaint), user: UserNid, what: &str) -> Result<()> {
        if !ACCOUNTS.contains(&self.view, &(user,))? {
            say(format!("{what} belongs to user {user}, who has no account"));
        }
        Ok(())
    }

    fn accounts(&self, say: &mut dyn FnMut(Complaint)) -> Result<()> {
        self.rows(&ACCOUNTS, say, |say, (user,), _| {
            if !USER_IDS.contains(&self.view, &(user,))? {
                say(format!("user {user} has an account but no name"));
            }
            Ok(())
        })?;
        self.rows(&PROFILES, say, |say, (user, field), json| {
            if serde_json::from_str::<IgnoredAny>(&json).is_err() {
                say(format!(
                    "the profile field {field} of user {user} is not JSON"
                ));
            }
            self.account(say, user, &format!("the profile field {field}"))
        })?;
        self.rows(&FILTERS, say, |say, (user, number), json| {
            if serde_json::from_str::<IgnoredAny>(&json).is_err() {
                say(format!("the filter {number} of user {user} is not JSON"));
            }
            let account = ACCOUNTS.get(&self.view, &(user,))?;
            if account.is_none_or(|account| account.last_filter < number) {
                say(format!(
                    "the filter {number} of user {user} was never given out"
                ));
            }
            Ok(())
        })?;
        self.rows(&PRESENCE, say, |say, (user,), _| {
            self.account(say, user, "the presence")
        })?;
        self.rows(&UNREAD, say, |say, (user, room), row| {
            if row.as_of > self.view.position() {
                say(format!(
                    "the unread counts of user {user} in room {room} are of {}, which has not come yet",
                    row.as_of
                ));
            }
            self.account(say, user, &format!("the unread count of room {room}"))
        })?;
        self.rows(&REGISTRATION_TOKENS, say, |say, (_,), row| {
            if row
                .uses_allowed
                .is_some_and(|allowed| row.completed > allowed)
            {
                say(format!(
                    "a registration token was used {} times, which is too often",
                    row.completed
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
        })?;
        self.rows(&ACCOUNT_DATA_CHANGES, say, |say, (user, position), key| {
            let key = (user, key.room, key.data_type.as_str());
            let row = ACCOUNT_DATA.get(&self.view, &key)?;
            if row.is_none_or(|row| row.position != position) {
                say(format!("the account data of user {user} changed at {position}, but was not written then"));
            }
            Ok(())
        })
    }

    fn directory(&self, say: &mut dyn FnMut(Complaint)) -> Result<()> {
        self.rows(&ALIASES, say, |say, (alias,), row| {
            if !ROOM_ALIASES.contains(&self.view, &(row.room, alias.as_str()))? {
                say(format!(
                    "room {} does not know of its alias {alias}",
                    row.room
                ));
            }
            Ok(())
        })?;
        self.rows(&ROOM_ALIASES, say, |say, (room, alias), ()| {
            let row = ALIASES.get(&self.view, &(alias.as_str(),))?;
            if row.is_none_or(|row| row.room != room) {
                say(format!("the alias {alias} does not lead to room {room}"));
            }
            Ok(())
        })?;
        self.rows(&PUBLIC_ROOMS, say, |say, (room,), ()| {
            if !ROOM_HEADS.contains(&self.view, &(room,))? {
                say(format!("room {room} is in the directory but is missing"));
            }
            Ok(())
        })
    }

    /// Every document names its server, and every key in it is known; every key came with a document.
    fn server_keys(&self, say: &mut dyn FnMut(Complaint)) -> Result<()> {
        self.rows(&KEY_DOCUMENTS, say, |say, (server,), row| {
            let name = server.as_str();
            let parsed = ServerName::parse(name)
                .ok()
                .and_then(|name| ServerKeys::parse(&row.json, &name).ok());
            let Some(document) = parsed else {
                say(format!("the document with the keys of {name} is damaged"));
                return Ok(());
            };
            for id in document.keys.keys() {
                if !SERVER_KEYS.contains(&self.view, &(name, id.as_str()))? {
                    say(format!("the key {id} of {name} is published but not known"));
                }
            }
            Ok(())
        })?;
        self.rows(&SERVER_KEYS, say, |say, (server, id), _| {
            if !KEY_DOCUMENTS.contains(&self.view, &(server.as_str(),))? {
                say(format!("the key {id} of {server} came without a document"));
            }
            Ok(())
        })
    }

    fn names(&self, say: &mut dyn FnMut(Complaint)) -> Result<()> {
        self.pair(say, &ROOM_NIDS, &ROOM_IDS, |id| (id.to_string(),))?;
        self.pair(say, &USER_NIDS, &USER_IDS, |id| (id.to_string(),))?;
        self.pair(say, &SERVER_NIDS, &SERVER_NAMES, |name| (name.to_string(),))?;
        self.pair(
            say,
            &STATE_KEY_NIDS,
            &STATE_KEYS,
            |StateKeyName(event_type, state_key)| (event_type.clone(), state_key.clone()),
        )
    }

    /// Numbers and names must say the same about each other.
    fn pair<K, N, V>(
        &self,
        say: &mut dyn FnMut(Complaint),
        numbers: &Table<K, (N,)>,
        names: &Table<(N,), V>,
        name: impl Fn(&V) -> K,
    ) -> Result<()>
    where
        K: Key + AsKey<K> + PartialEq + Debug,
        N: Part + Copy + PartialEq + Display,
        V: Value,
    {
        self.rows(numbers, say, |say, key, (number,)| {
            let named = names.get(&self.view, &(number,))?;
            if named.is_none_or(|value| name(&value) != key) {
                say(format!(
                    "{}: {key:?} is {number}, which is another",
                    numbers.name
                ));
            }
            Ok(())
        })?;
        self.rows(names, say, |say, (number,), value| {
            let key = name(&value);
            if numbers.get(&self.view, &key)? != Some((number,)) {
                say(format!(
                    "{}: {number} is {key:?}, which has another number",
                    names.name
                ));
            }
            Ok(())
        })
    }
}
