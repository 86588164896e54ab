//! What waits for other servers, as the tables have it: nothing of this is on the way of a message.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Bound,
    sync::Arc,
};

use ruma::OwnedServerName;

use super::{
    Federation,
    destination::{Item, MAX_QUEUE, What},
    outbox::Outbox,
};
use crate::{
    error::Result,
    protocol::ids::{EventNid, Position, RoomNid, ServerNid},
    store::{
        View,
        schema::{
            DESTINATIONS, DestinationRow, EXTRA_TARGETS, LASTING_EDUS, LEFT_SERVERS, LOCAL_EVENTS,
            RECEIPTS, ROOM_SERVERS, SERVER_ROOMS,
        },
    },
};

/// How many rows are removed in one commit.
const CHUNK: usize = 1000;

/// How it stands with a server that is told what happens here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DestinationStatus {
    /// The server.
    pub server: OwnedServerName,
    /// Whether it is in the peer table.
    pub is_peer: bool,
    /// Since when it cannot be reached, in milliseconds since the epoch.
    pub down_since: Option<u64>,
    /// How many events, receipts and messages for devices wait.
    pub waiting: usize,
    /// Whether more wait than were counted.
    pub more: bool,
    /// When the oldest event that waits was sent, in milliseconds since the epoch.
    pub oldest: Option<u64>,
    /// When it was reached the last time, in milliseconds since the epoch.
    pub last_success: Option<u64>,
    /// When it could not be reached the last time, in milliseconds since the epoch.
    pub last_failure: Option<u64>,
    /// Why not.
    pub last_error: Option<String>,
}

impl Federation {
    /// How it stands with all servers that were ever told anything, in the order of their names.
    ///
    /// # Errors
    /// When the store fails.
    pub fn destinations(&self) -> Result<Vec<DestinationStatus>> {
        let outbox = &self.1;
        let view = outbox.parts.store.view();
        let mut rows: BTreeMap<ServerNid, DestinationRow> = BTreeMap::new();
        for row in DESTINATIONS.scan(&view, &()) {
            let ((nid,), row) = row?;
            rows.insert(nid, row);
        }
        let known: Vec<_> = outbox.all.lock().values().cloned().collect();
        for destination in known {
            let row = destination.with(|state| state.row.clone());
            rows.insert(destination.nid, row);
        }
        let mut all = Vec::new();
        for (nid, row) in rows {
            let (mut found, is_all) = Outbox::find(&view, nid, row.cursor)?;
            let mut failed = Ok(());
            found.retain(|item| {
                outbox.is_told(&view, item).unwrap_or_else(|error| {
                    failed = Err(error);
                    true
                })
            });
            failed?;
            let is_event = |item: &&Item| matches!(item.what, What::Event | What::Extra);
            let first = found.iter().find(is_event);
            let oldest = match first {
                Some(item) => {
                    let stored = outbox.parts.rooms.event(&view, item.event)?;
                    Some(u64::from(stored.event.header.origin_server_ts.0))
                }
                None => None,
            };
            let server = (*outbox.parts.store.server_name(nid)?).clone();
            let some = |time: u64| (time > 0).then_some(time);
            all.push(DestinationStatus {
                is_peer: outbox.parts.remote.is_peer(&server),
                server,
                down_since: some(row.down_since),
                waiting: found.len(),
                more: !is_all,
                oldest,
                last_success: some(row.last_success),
                last_failure: some(row.last_failure),
                last_error: row.last_error,
            });
        }
        all.sort_by(|a, b| a.server.cmp(&b.server));
        Ok(all)
    }

    /// Removes the rows of events that every server of their room has got; says how many. What a server that is gone has
    /// not got is kept: a row has twenty bytes, and the server may come back.
    ///
    /// # Errors
    /// When the store fails.
    pub fn forget_delivered(&self) -> Result<usize> {
        self.1.sweep()
    }
}

impl Outbox {
    /// Finds all to whom something is still to be told, and has them told.
    pub(super) fn look_again(self: &Arc<Self>) -> Result<()> {
        let view = self.parts.store.view();
        let mut behind: BTreeSet<ServerNid> = BTreeSet::new();
        let mut newest: (RoomNid, Position) = Default::default();
        let mut cursors: HashMap<ServerNid, Position> = HashMap::new();
        for row in ROOM_SERVERS.scan(&view, &()) {
            let ((room, server), row) = row?;
            if newest.0 != room {
                let event = LOCAL_EVENTS.last(&view, &(room,))?;
                let receipt = RECEIPTS.last(&view, &(room,))?;
                let event = event.map(|((_, position), _)| position);
                let receipt = receipt.map(|((_, position), _)| position);
                newest = (room, event.max(receipt).unwrap_or_default());
            }
            let cursor = match cursors.get(&server) {
                Some(cursor) => *cursor,
                None => {
                    let row = DESTINATIONS.get(&view, &(server,))?;
                    let cursor = row.map(|row| row.cursor).unwrap_or_default();
                    *cursors.entry(server).or_insert(cursor)
                }
            };
            if newest.1 > cursor && newest.1 >= row.since {
                behind.insert(server);
            }
        }
        for row in EXTRA_TARGETS.scan(&view, &()) {
            behind.insert(row?.0.0);
        }
        for row in LEFT_SERVERS.scan(&view, &()) {
            behind.insert(row?.0.0);
        }
        let mut server = ServerNid::default();
        loop {
            let from = Bound::Included((server, Position::default()));
            let mut rest = LASTING_EDUS.range(&view, &(), (from, Bound::Unbounded));
            let Some(row) = rest.next() else { break };
            server = row?.0.0;
            behind.insert(server);
            server.0 += 1;
        }
        for server in behind {
            if let Some(destination) = self.destination(server)?
                && destination.look_again()
            {
                self.run(destination);
            }
        }
        Ok(())
    }

    /// Whether something that was found is told at all: of the receipts of others their own servers tell, and of private
    /// ones nobody.
    fn is_told(&self, view: &View, item: &Item) -> Result<bool> {
        if item.what != What::Receipt {
            return Ok(true);
        }
        let Some(row) = RECEIPTS.get(view, &(item.room, item.position))? else {
            return Ok(false);
        };
        let user = self.parts.store.user_id(row.user)?;
        Ok(row.receipt_type == "m.read" && user.server_name() == self.parts.keyring.name())
    }

    /// What a server has not got yet, oldest first, and whether that is all.
    pub(super) fn find(
        view: &View,
        server: ServerNid,
        cursor: Position,
    ) -> Result<(Vec<Item>, bool)> {
        let mut found: BTreeMap<Position, Item> = BTreeMap::new();
        let mut is_all = true;
        let mut add = |item: Item| {
            // Another row with the same position is about the same event.
            found.entry(item.position).or_insert(item);
            if found.len() > MAX_QUEUE {
                is_all = false;
                found.pop_last();
            }
            // Whether a later one still may have a place.
            is_all
                || found
                    .last_key_value()
                    .is_none_or(|(last, _)| item.position < *last)
        };
        let after = Bound::Excluded((server, cursor));
        for row in EXTRA_TARGETS.range(view, &(server,), (after, Bound::Unbounded)) {
            let ((_, position), (room, named)) = row?;
            if !add(Item {
                position,
                room,
                event: named.unwrap_or(EventNid(position.0)),
                what: What::Extra,
            }) {
                break;
            }
        }
        for row in LASTING_EDUS.range(view, &(server,), (after, Bound::Unbounded)) {
            let ((_, position), _) = row?;
            let (room, what) = (RoomNid::default(), What::Lasting);
            if !add(Item {
                position,
                room,
                event: EventNid::default(),
                what,
            }) {
                break;
            }
        }
        for row in LEFT_SERVERS.scan(view, &(server,)) {
            let ((_, room, since), (until,)) = row?;
            let from = Position(since.0.max(cursor.0 + 1));
            if from > until {
                continue;
            }
            let bounds = (
                Bound::Included((room, from)),
                Bound::Included((room, until)),
            );
            for row in LOCAL_EVENTS.range(view, &(room,), bounds) {
                let ((_, position), named) = row?;
                let what = What::Event;
                if !add(Item {
                    position,
                    room,
                    event: named.unwrap_or(EventNid(position.0)),
                    what,
                }) {
                    break;
                }
            }
        }
        for row in SERVER_ROOMS.scan(view, &(server,)) {
            let ((_, room), ()) = row?;
            let Some(row) = ROOM_SERVERS.get(view, &(room, server))? else {
                continue;
            };
            let from = Position(row.since.0.max(cursor.0 + 1));
            let bounds = (Bound::Included((room, from)), Bound::Unbounded);
            for row in LOCAL_EVENTS.range(view, &(room,), bounds) {
                let ((_, position), named) = row?;
                let what = What::Event;
                if !add(Item {
                    position,
                    room,
                    event: named.unwrap_or(EventNid(position.0)),
                    what,
                }) {
                    break;
                }
            }
            for row in RECEIPTS.range(view, &(room,), bounds) {
                let ((_, position), _) = row?;
                let what = What::Receipt;
                if !add(Item {
                    position,
                    room,
                    event: EventNid::default(),
                    what,
                }) {
                    break;
                }
            }
        }
        Ok((found.into_values().collect(), is_all))
    }

    pub(super) fn sweep(&self) -> Result<usize> {
        self.save()?;
        let left = self.forget_left()?;
        let view = self.parts.store.view();
        let (mut removed, mut room) = (0, RoomNid::default());
        loop {
            let from = Bound::Included((room, Position::default()));
            let mut rest = LOCAL_EVENTS.range(&view, &(), (from, Bound::Unbounded));
            let Some(row) = rest.next() else {
                return Ok(removed);
            };
            room = row?.0.0;
            let mut until = self.got_by_all(&view, room)?;
            if let Some(cursor) = left.get(&room) {
                until = until.min(*cursor);
            }
            let bounds = (Bound::Unbounded, Bound::Included((room, until)));
            let mut done = LOCAL_EVENTS.range(&view, &(room,), bounds);
            loop {
                let chunk = done.by_ref().take(CHUNK);
                let keys: Vec<_> = chunk.map(|row| Ok(row?.0)).collect::<Result<_>>()?;
                if keys.is_empty() {
                    break;
                }
                let _not_awaited = self.parts.store.commit(|batch| {
                    for key in &keys {
                        LOCAL_EVENTS.delete(batch, key);
                    }
                    Ok(())
                })?;
                removed += keys.len();
            }
            room.0 += 1;
        }
    }

    /// Removes what says that servers that left are still to be told something, where they have been; gives for each room
    /// of the others how far they are.
    fn forget_left(&self) -> Result<HashMap<RoomNid, Position>> {
        let view = self.parts.store.view();
        let mut left: HashMap<RoomNid, Position> = HashMap::new();
        let mut done = Vec::new();
        for row in LEFT_SERVERS.scan(&view, &()) {
            let ((server, room, since), (until,)) = row?;
            let row = DESTINATIONS.get(&view, &(server,))?;
            let cursor = row.map(|row| row.cursor).unwrap_or_default();
            if cursor >= until {
                done.push((server, room, since));
            } else {
                let known = left.entry(room).or_insert(cursor);
                *known = cursor.min(*known);
            }
        }
        for chunk in done.chunks(CHUNK) {
            let _not_awaited = self.parts.store.commit(|batch| {
                for key in chunk {
                    LEFT_SERVERS.delete(batch, key);
                }
                Ok(())
            })?;
        }
        Ok(left)
    }

    /// Up to where every server of a room has got everything.
    fn got_by_all(&self, view: &View, room: RoomNid) -> Result<Position> {
        let mut until = view.position();
        for row in ROOM_SERVERS.scan(view, &(room,)) {
            let ((_, server), _) = row?;
            if server != self.parts.rooms.own_server() {
                let row = DESTINATIONS.get(view, &(server,))?;
                until = until.min(row.map(|row| row.cursor).unwrap_or_default());
            }
        }
        Ok(until)
    }
}
