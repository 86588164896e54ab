//! Tells servers of the devices of users whom they meet for the first time, when a user here comes into a room with them, or
//! they into a room with users here. See "Device Management" in the server-server API.
//!
//! Who comes leaves a row, written with the membership; whoever is new to whom is found out from it later, beside all else.
//! The node's own kind asks for keys when it needs them, and so does any server that comes into a room with many users
//! here; so these are told only when they come themselves.

use std::sync::{Arc, Weak};

use ruma::events::room::member::MembershipState;

use super::{courier::STORE_PAUSE, outbox::Outbox};
use crate::{
    error::Result,
    protocol::ids::{Position, RoomNid, ServerNid, UserNid},
    service::device_lists::introduction,
    store::{
        self, View,
        schema::{
            INTRODUCTIONS, LASTING_EDUS, ROOM_MEMBERS, ROOM_SERVERS, SERVER_ROOMS, USER_ROOMS,
        },
    },
};

/// To how many users here a server is introduced when it comes.
const MOST_USERS: u64 = 100;

/// How many rows are read at once, and how many servers are told with one commit.
const CHUNK: usize = 100;

/// When somebody came, where, and who.
type Arrival = (Position, RoomNid, UserNid);

/// Introduces users to servers until the node stops.
pub(super) async fn introduce(outbox: Weak<Outbox>) {
    loop {
        let Some(outbox_now) = outbox.upgrade() else {
            return;
        };
        let parts = &outbox_now.parts;
        let (clock, stop) = (parts.clock.clone(), parts.stop.clone());
        let met = outbox_now.met.clone();
        let done = tokio::task::spawn_blocking(move || outbox_now.introduce_all()).await;
        let pause = match done {
            Ok(Ok(())) => None,
            Ok(Err(error)) => {
                tracing::error!(%error, "servers could not be told of devices; they will be later");
                Some(STORE_PAUSE)
            }
            Err(_) => return,
        };
        let again = async {
            match pause {
                Some(pause) => clock.sleep(pause).await,
                None => met.notified().await,
            }
        };
        tokio::select! {
            () = again => {}
            () = stop.cancelled() => return,
        }
    }
}

impl Outbox {
    fn introduce_all(self: Arc<Self>) -> Result<()> {
        loop {
            let view = self.parts.store.view();
            let rows = INTRODUCTIONS.scan(&view, &()).take(CHUNK);
            let rows: Vec<_> = rows.collect::<store::Result<_>>()?;
            if rows.is_empty() {
                return Ok(());
            }
            for (arrival, ()) in rows {
                if self.parts.stop.is_cancelled() {
                    return Ok(());
                }
                let strangers = self.strangers(&view, arrival)?;
                for some in strangers.chunks(CHUNK) {
                    self.tell_devices(some)?;
                }
                // Only now: after a crash all are told again, which does no harm.
                let _not_awaited = self.parts.store.commit(|batch| {
                    INTRODUCTIONS.delete(batch, &arrival);
                    Ok(())
                })?;
            }
        }
    }

    fn tell_devices(&self, strangers: &[(ServerNid, UserNid)]) -> Result<()> {
        let _still = self.parts.accounts.still();
        let view = self.parts.store.latest();
        let mut told = Vec::new();
        for (server, user) in strangers {
            told.push((*server, introduction(&view, *user)?));
        }
        let _not_awaited = self.parts.store.commit(|batch| {
            for (server, edus) in &told {
                for edu in edus {
                    let position = batch.position();
                    LASTING_EDUS.put(batch, &(*server, position), edu);
                }
            }
            Ok(())
        })?;
        Ok(())
    }

    /// The servers and the users here who have met by an arrival and were together nowhere else before.
    fn strangers(&self, view: &View, arrival: Arrival) -> Result<Vec<(ServerNid, UserNid)>> {
        let (_, room, user) = arrival;
        let member = ROOM_MEMBERS.get(view, &(room, user))?;
        if member.is_none_or(|member| member.membership != MembershipState::Join) {
            return Ok(Vec::new());
        }
        let store = &self.parts.store;
        let server = store.server_nid(store.user_id(user)?.server_name())?;
        if server == self.parts.rooms.own_server() {
            self.new_servers(view, arrival)
        } else {
            self.new_users(view, arrival, server)
        }
    }

    fn new_servers(
        &self,
        view: &View,
        (at, room, user): Arrival,
    ) -> Result<Vec<(ServerNid, UserNid)>> {
        let mut servers = Vec::new();
        for row in ROOM_SERVERS.scan(view, &(room,)) {
            let ((_, server), _) = row?;
            if self.destination(server)?.is_some() {
                servers.push(server);
            }
        }
        for row in USER_ROOMS.scan(view, &(user,)) {
            let ((_, other), member) = row?;
            if servers.is_empty() {
                break;
            }
            if other == room || member.membership != MembershipState::Join || member.since >= at {
                continue;
            }
            let mut new = Vec::new();
            for server in servers {
                let there = ROOM_SERVERS.get(view, &(other, server))?;
                if there.is_none_or(|there| there.since >= at) {
                    new.push(server);
                }
            }
            servers = new;
        }
        let servers = servers.into_iter();
        Ok(servers.map(|server| (server, user)).collect())
    }

    fn new_users(
        &self,
        view: &View,
        (at, room, _): Arrival,
        server: ServerNid,
    ) -> Result<Vec<(ServerNid, UserNid)>> {
        let rooms = &self.parts.rooms;
        let ours = ROOM_SERVERS.get(view, &(room, rooms.own_server()))?;
        let mut count = ours.map_or(0, |ours| ours.joined);
        if count > MOST_USERS || self.destination(server)?.is_none() {
            return Ok(Vec::new());
        }
        let mut known = Vec::new();
        for row in SERVER_ROOMS.scan(view, &(server,)) {
            let ((_, other), ()) = row?;
            let there = ROOM_SERVERS.get(view, &(other, server))?;
            if other != room && there.is_some_and(|there| there.since < at) {
                known.push(other);
            }
        }
        let before = |member: &store::schema::MemberRow| {
            member.membership == MembershipState::Join && member.since < at
        };
        let mut users = Vec::new();
        for row in ROOM_MEMBERS.scan(view, &(room,)) {
            if count == 0 {
                break;
            }
            let ((_, user), member) = row?;
            let name = self.parts.store.user_id(user)?;
            if member.membership != MembershipState::Join
                || name.server_name() != rooms.server_name()
            {
                continue;
            }
            count -= 1;
            let mut is_known = !before(&member);
            for other in &known {
                let there = ROOM_MEMBERS.get(view, &(*other, user))?;
                is_known |= there.is_some_and(|there| before(&there));
                if is_known {
                    break;
                }
            }
            if !is_known {
                users.push((server, user));
            }
        }
        Ok(users)
    }
}
