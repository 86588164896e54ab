//! The laws of what is there because rooms are shared with other servers.

use std::collections::BTreeMap;

use ruma::{ServerName, events::room::member::MembershipState};
use serde::de::IgnoredAny;

use super::{Check, Complaint};
use crate::{
    protocol::ids::{EventNid, RoomNid, ServerNid},
    store::{
        Result,
        schema::{
            CURRENT_STATE, DESTINATIONS, EVENTS, EXTRA_TARGETS, GAPS, INBOX, INTRODUCTIONS,
            LEFT_SERVERS, LOCAL_EVENTS, PEER_INVITATIONS, PEERS, ROOM_HEADS, ROOM_IDS,
            ROOM_MEMBERS, ROOM_SERVERS, SERVER_NAMES, SERVER_ROOMS, STRIPPED, TIMELINE, USER_IDS,
            WAITING,
        },
    },
};

impl Check<'_> {
    pub(super) fn federation(&self, say: &mut dyn FnMut(Complaint)) -> Result<()> {
        self.servers(say)?;
        self.outgoing(say)?;
        self.destinations(say)?;
        self.left(say)?;
        self.peers(say)?;
        self.gaps(say)?;
        self.hidden(say)?;
        self.inbox(say)?;
        self.rows(&STRIPPED, say, |say, (room, user), json| {
            if serde_json::from_str::<Vec<IgnoredAny>>(&json).is_err() {
                say(format!(
                    "what user {user} was told of room {room} is no list"
                ));
            }
            if !ROOM_MEMBERS.contains(&self.view, &(room, user))? {
                say(format!(
                    "user {user} was told of room {room} but was not invited"
                ));
            }
            Ok(())
        })?;
        self.rows(&INTRODUCTIONS, say, |say, (position, room, user), ()| {
            let row = ROOM_MEMBERS.get(&self.view, &(room, user))?;
            if row.is_none_or(|row| row.since < position) {
                say(format!(
                    "user {user} is to be introduced in room {room}, where they have not come at {position}"
                ));
            }
            Ok(())
        })?;
        self.rows(&WAITING, say, |say, (room, id, nid), ()| {
            if !self.has_event(nid)? {
                say(format!(
                    "event {nid} of room {room} waits for {id}, but is missing"
                ));
            }
            Ok(())
        })
    }

    /// The counters of servers are what counting the members gives.
    fn servers(&self, say: &mut dyn FnMut(Complaint)) -> Result<()> {
        let mut counts: BTreeMap<(RoomNid, ServerNid), u64> = BTreeMap::new();
        for row in ROOM_MEMBERS.scan(&self.view, &()) {
            // What does not decode was said when the memberships were walked.
            let Ok(((room, user), row)) = row else {
                continue;
            };
            if row.membership != MembershipState::Join {
                continue;
            }
            if let Some(user) = USER_IDS.get(&self.view, &(user,))?
                && let Some(server) = self.store.find_server(user.server_name())?
            {
                *counts.entry((room, server)).or_default() += 1;
            }
        }
        self.rows(&ROOM_SERVERS, say, |say, (room, server), row| {
            let counted = counts.remove(&(room, server)).unwrap_or_default();
            if counted != row.joined {
                say(format!(
                    "server {server} counts {} users in room {room}, but has {counted}",
                    row.joined
                ));
            }
            if !SERVER_ROOMS.contains(&self.view, &(server, room))? {
                say(format!("server {server} does not know of room {room}"));
            }
            Ok(())
        })?;
        for ((room, server), counted) in counts {
            say(format!(
                "server {server} has {counted} users in room {room}, which are not counted"
            ));
        }
        self.rows(&SERVER_ROOMS, say, |say, (server, room), ()| {
            if !ROOM_SERVERS.contains(&self.view, &(room, server))? {
                say(format!("room {room} does not know of server {server}"));
            }
            Ok(())
        })
    }

    fn outgoing(&self, say: &mut dyn FnMut(Complaint)) -> Result<()> {
        self.rows(&LOCAL_EVENTS, say, |say, (room, position), named| {
            let nid = named.unwrap_or(EventNid(position.0));
            let row = EVENTS.get(&self.view, &(nid,))?;
            if row.is_none_or(|row| row.room != room) {
                say(format!(
                    "room {room} has no event of its own at position {position}"
                ));
            }
            Ok(())
        })?;
        self.rows(&EXTRA_TARGETS, say, |say, (server, position), (room, named)| {
            let nid = named.unwrap_or(EventNid(position.0));
            let row = EVENTS.get(&self.view, &(nid,))?;
            if row.is_none_or(|row| row.room != room) {
                say(format!(
                    "server {server} is to be told of event {position}, which is not in room {room}"
                ));
            }
            if !SERVER_NAMES.contains(&self.view, &(server,))? {
                say(format!("server {server} is to be told, but has no name"));
            }
            Ok(())
        })
    }

    fn left(&self, say: &mut dyn FnMut(Complaint)) -> Result<()> {
        self.rows(
            &LEFT_SERVERS,
            say,
            |say, (server, room, since), (until,)| {
                if until < since || until > self.view.position() {
                    say(format!(
                        "server {server} was in room {room} from {since} to {until}"
                    ));
                }
                if !SERVER_NAMES.contains(&self.view, &(server,))?
                    || !ROOM_IDS.contains(&self.view, &(room,))?
                {
                    say(format!(
                        "server {server} has left room {room}, one of which has no name"
                    ));
                }
                Ok(())
            },
        )
    }

    /// Nobody was told what has not happened yet.
    fn destinations(&self, say: &mut dyn FnMut(Complaint)) -> Result<()> {
        self.rows(&DESTINATIONS, say, |say, (server,), row| {
            let furthest = row.sent.map_or(row.cursor, |sent| sent.max(row.cursor));
            if furthest > self.view.position() {
                say(format!(
                    "server {server} was told of position {furthest}, which is not there yet"
                ));
            }
            if !SERVER_NAMES.contains(&self.view, &(server,))? {
                say(format!("server {server} was told, but has no name"));
            }
            Ok(())
        })
    }

    /// Peers have names of servers, and whoever has used a code became one.
    fn peers(&self, say: &mut dyn FnMut(Complaint)) -> Result<()> {
        self.rows(&PEERS, say, |say, (name,), _| {
            if ServerName::parse(name.as_str()).is_err() {
                say(format!("the peer {name} has no name of a server"));
            }
            Ok(())
        })?;
        self.rows(&PEER_INVITATIONS, say, |say, _, row| {
            if row.expires == 0 {
                say("a code for pairing never was good".to_owned());
            }
            Ok(())
        })
    }

    fn gaps(&self, say: &mut dyn FnMut(Complaint)) -> Result<()> {
        self.rows(&GAPS, say, |say, (room, order), row| {
            if TIMELINE.get(&self.view, &(room, order))?.is_none() || row.next >= order {
                say(format!(
                    "the gap of room {room} at {order} has no upper end"
                ));
            }
            if row.floor > row.next || row.missing.is_empty() {
                say(format!("the gap of room {room} at {order} is none"));
            }
            Ok(())
        })?;
        self.rows(&ROOM_HEADS, say, |say, (room,), head| {
            let newest = GAPS.last(&self.view, &(room,))?.map(|(_, row)| row.next);
            if newest != head.gap {
                say(format!(
                    "the newest gap of room {room} is {newest:?}, its head says {:?}",
                    head.gap
                ));
            }
            if !ROOM_IDS.contains(&self.view, &(room,))? {
                say(format!("room {room} has a head but no name"));
            }
            Ok(())
        })
    }

    /// What waits is JSON, is from a server with a name, and is in a room that is here.
    fn inbox(&self, say: &mut dyn FnMut(Complaint)) -> Result<()> {
        self.rows(&INBOX, say, |say, (room, position), row| {
            let id = &row.id;
            if !ROOM_HEADS.contains(&self.view, &(room,))? {
                say(format!(
                    "event {id} waits for room {room}, which is missing"
                ));
            }
            if !SERVER_NAMES.contains(&self.view, &(row.origin,))? {
                say(format!("event {id} was sent by nobody"));
            }
            if serde_json::from_str::<IgnoredAny>(&row.json).is_err() {
                say(format!("event {id}, which waits, is not JSON"));
            }
            if position > self.view.position() {
                say(format!(
                    "event {id} waits since {position}, which has not come yet"
                ));
            }
            Ok(())
        })
    }

    /// What was rejected is nowhere: not in a timeline, not in a state.
    fn hidden(&self, say: &mut dyn FnMut(Complaint)) -> Result<()> {
        self.rows(&TIMELINE, say, |say, (room, order), (nid,)| {
            let row = EVENTS.get(&self.view, &(nid,)).ok().flatten();
            if row.is_some_and(|row| row.flags().rejected || row.flags().soft_failed) {
                say(format!(
                    "event {nid} at {order} of room {room} must not be shown"
                ));
            }
            Ok(())
        })?;
        self.rows(&CURRENT_STATE, say, |say, (room, kind, key), (nid,)| {
            let row = EVENTS.get(&self.view, &(nid,)).ok().flatten();
            match row {
                None => say(format!(
                    "the current {kind} `{key}` of room {room} is missing"
                )),
                Some(row) if row.flags().rejected => say(format!(
                    "the current {kind} `{key}` of room {room} was rejected"
                )),
                Some(_) => {}
            }
            Ok(())
        })
    }
}
