//! Which servers are in a room: counted with each change of a membership, never by looking at all members.

use ruma::{OwnedServerName, ServerName, events::room::member::MembershipState};

use super::{Rooms, append::Member};
use crate::{
    error::Result,
    protocol::ids::{EventNid, Position, RoomNid, ServerNid},
    store::{
        Batch, View,
        schema::{EVENTS, LEFT_SERVERS, ROOM_SERVERS, SERVER_ROOMS, ServerRow},
    },
};

/// The servers of a room; copies share their nodes.
pub(super) type Servers = imbl::HashMap<ServerNid, ServerRow>;

/// Counts one change of a membership.
pub(super) fn count(
    servers: &mut Servers,
    batch: &mut Batch<'_>,
    position: Position,
    room: RoomNid,
    member: &Member,
) {
    let was_joined = member
        .before
        .as_ref()
        .is_some_and(|row| row.membership == MembershipState::Join);
    let is_joined = member.after == MembershipState::Join;
    if was_joined == is_joined {
        return;
    }
    let known = servers.get(&member.server).copied();
    let joined = known.map_or(0, |row| row.joined);
    let row = ServerRow {
        joined: if is_joined {
            joined + 1
        } else {
            joined.saturating_sub(1)
        },
        since: known.map_or(position, |row| row.since),
    };
    if row.joined == 0 && !member.is_local {
        // What was said until now it has a right to, and may not have got yet.
        LEFT_SERVERS.put(batch, &(member.server, room, row.since), &(position,));
    }
    set(servers, batch, room, member.server, row);
}

/// Writes the count of a server.
pub(super) fn set(
    servers: &mut Servers,
    batch: &mut Batch<'_>,
    room: RoomNid,
    server: ServerNid,
    row: ServerRow,
) {
    if row.joined == 0 {
        servers.remove(&server);
        ROOM_SERVERS.delete(batch, &(room, server));
        SERVER_ROOMS.delete(batch, &(server, room));
        return;
    }
    if servers.insert(server, row).is_none() {
        SERVER_ROOMS.put(batch, &(server, room), &());
    }
    ROOM_SERVERS.put(batch, &(room, server), &row);
}

/// The servers of a room as they are stored.
pub(super) fn load(view: &View, room: RoomNid) -> Result<Servers> {
    let mut servers = Servers::new();
    for row in ROOM_SERVERS.scan(view, &(room,)) {
        let ((_, server), row) = row?;
        servers.insert(server, row);
    }
    Ok(servers)
}

impl Rooms {
    /// The number of this node among the servers.
    pub fn own_server(&self) -> ServerNid {
        self.server
    }

    /// The servers that have joined users in a room, this one among them.
    ///
    /// # Errors
    /// When the store fails.
    pub fn servers_in(&self, view: &View, room: RoomNid) -> Result<Vec<OwnedServerName>> {
        let servers = load(view, room)?;
        servers
            .keys()
            .map(|server| Ok((*self.store.server_name(*server)?).clone()))
            .collect()
    }

    /// Whether a server has joined users in a room.
    ///
    /// # Errors
    /// When the store fails.
    pub fn has_server(&self, view: &View, room: RoomNid, server: &ServerName) -> Result<bool> {
        Ok(match self.store.find_server(server)? {
            Some(server) => ROOM_SERVERS.contains(view, &(room, server))?,
            None => false,
        })
    }

    /// Whether a server has been told, or is to be told, what was said in a room at a position: it has joined users there,
    /// or had some then and was not told everything yet.
    ///
    /// # Errors
    /// When the store fails.
    pub fn tells_server(
        &self,
        view: &View,
        (room, server): (RoomNid, ServerNid),
        at: Position,
    ) -> Result<bool> {
        if let Some(row) = ROOM_SERVERS.get(view, &(room, server))?
            && at >= row.since
        {
            return Ok(true);
        }
        for row in LEFT_SERVERS.scan(view, &(server, room)) {
            let ((_, _, since), (until,)) = row?;
            if (since..=until).contains(&at) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// When a server was put out of a room of which it may not have been told everything yet that was said before. Who has
    /// left by itself knows that.
    pub(super) fn left_at(
        &self,
        view: &View,
        room: RoomNid,
        server: &ServerName,
    ) -> Result<Option<Position>> {
        let Some(nid) = self.store.find_server(server)? else {
            return Ok(None);
        };
        let Some((_, (until,))) = LEFT_SERVERS.last(view, &(nid, room))? else {
            return Ok(None);
        };
        let last = EventNid(until.0);
        // What was known before it had its place has another number; nobody leaves by such an event but through others.
        let has_gone = EVENTS.contains(view, &(last,))?
            && self.event(view, last)?.event.header.sender.server_name() == server;
        Ok((!has_gone).then_some(until))
    }

    /// The rooms in which a server has joined users.
    ///
    /// # Errors
    /// When the store fails.
    pub fn rooms_of_server(&self, view: &View, server: ServerNid) -> Result<Vec<RoomNid>> {
        let rows = SERVER_ROOMS.scan(view, &(server,));
        rows.map(|row| Ok(row?.0.1)).collect()
    }
}
