//! What other servers are told of the rooms that they are in: events, states, auth chains, history.
//!
//! A room that is not here and one that the asking server is not in are the same to it. See "Retrieving events" and
//! "Backfilling and retrieving missing events" in the server-server API.

use std::sync::Arc;

use ruma::{EventId, OwnedEventId, OwnedRoomId, RoomId, ServerName};
use serde_json::json;
use tokio::sync::Semaphore;

use super::{Federation, verify::beside};
use crate::{
    error::{Error, Result},
    protocol::{format, ids::EventNid},
    service::rooms::{Guest, Rooms, Stored},
    store::View,
};

/// How many whole states are put together at the same time; each may be large.
static WHOLE_STATES: Semaphore = Semaphore::const_new(4);

/// How many events are read at once.
const CHUNK: usize = 1000;

impl Federation {
    /// One event, as `GET /_matrix/federation/v1/event/{eventId}` answers it.
    ///
    /// # Errors
    /// 404 when it is not here or in a room that the server is not in, 403 when the server is kept out of that room.
    pub async fn event(&self, origin: &ServerName, id: &EventId) -> Result<String> {
        let (id, origin) = (id.to_owned(), origin.to_owned());
        let now = self.0.clock.now_ms();
        self.read(move |rooms, view| {
            let missing = || Error::not_found("The event");
            let stored = rooms.find_event(view, &id)?.ok_or_else(missing)?;
            let room = rooms
                .nid_of(&stored.event.header.room_id)?
                .ok_or_else(missing)?;
            if !rooms.has_server(view, room, &origin)? {
                return Err(missing());
            }
            let (guest, stored) = rooms.guest_at(view, &id, &origin)?;
            // Whoever is in the room may have its states, and so has their events.
            let pdu = if stored.event.is_state() {
                format::federation(&stored.event)
            } else {
                guest.pdu(&stored)?
            };
            Ok(transaction(rooms, now, &pdu))
        })
        .await
    }

    /// The state before an event, as `GET /_matrix/federation/v1/state/{roomId}` answers it.
    ///
    /// # Errors
    /// 403 when the server is not in the room or kept out, 404 when the event is not in the room.
    pub async fn state(
        &self,
        origin: &ServerName,
        room: OwnedRoomId,
        id: OwnedEventId,
    ) -> Result<String> {
        let _seat = WHOLE_STATES.acquire().await;
        self.read_as(origin, room, move |guest, rooms, view| {
            let told = guest.state_before(&id)?;
            let mut out = String::from("{\"auth_chain\":");
            push_events(&mut out, rooms, view, &told.auth_chain)?;
            out.push_str(",\"pdus\":");
            push_events(&mut out, rooms, view, &told.state)?;
            out.push('}');
            Ok(out)
        })
        .await
    }

    /// The ids of that, as `GET /_matrix/federation/v1/state_ids/{roomId}` answers it.
    ///
    /// # Errors
    /// As [`Self::state`].
    pub async fn state_ids(
        &self,
        origin: &ServerName,
        room: OwnedRoomId,
        id: OwnedEventId,
    ) -> Result<String> {
        let _seat = WHOLE_STATES.acquire().await;
        self.read_as(origin, room, move |guest, rooms, view| {
            let told = guest.state_before(&id)?;
            let auth_chain = ids(rooms, view, &told.auth_chain)?;
            let state = ids(rooms, view, &told.state)?;
            Ok(json!({ "auth_chain_ids": auth_chain, "pdu_ids": state }).to_string())
        })
        .await
    }

    /// All that authorises an event, as `GET /_matrix/federation/v1/event_auth/{roomId}/{eventId}` answers it.
    ///
    /// # Errors
    /// As [`Self::state`].
    pub async fn event_auth(
        &self,
        origin: &ServerName,
        room: OwnedRoomId,
        id: OwnedEventId,
    ) -> Result<String> {
        let _seat = WHOLE_STATES.acquire().await;
        self.read_as(origin, room, move |guest, rooms, view| {
            let stored = guest.find(&id)?;
            let stored = stored.ok_or_else(|| Error::not_found("The event"))?;
            guest.must_have_been_here(&stored)?;
            let chain = rooms.auth_chain(view, &[stored.nid])?;
            let mut out = String::from("{\"auth_chain\":");
            push_events(&mut out, rooms, view, &chain)?;
            out.push('}');
            Ok(out)
        })
        .await
    }

    /// Some events and those before them, as `GET /_matrix/federation/v1/backfill/{roomId}` answers it.
    ///
    /// # Errors
    /// 403 when the server is not in the room or kept out.
    pub async fn backfill(
        &self,
        origin: &ServerName,
        room: OwnedRoomId,
        from: Vec<OwnedEventId>,
        limit: usize,
    ) -> Result<String> {
        let now = self.0.clock.now_ms();
        self.read_as(origin, room, move |guest, rooms, _| {
            let events = pdus(guest, &guest.backfill(&from, limit)?)?;
            Ok(transaction(rooms, now, &events))
        })
        .await
    }

    /// What lies between some events, as `POST /_matrix/federation/v1/get_missing_events/{roomId}` answers it.
    ///
    /// # Errors
    /// 403 when the server is not in the room or kept out.
    pub async fn missing_events(
        &self,
        origin: &ServerName,
        room: OwnedRoomId,
        (earliest, latest): (Vec<OwnedEventId>, Vec<OwnedEventId>),
        limit: usize,
        min_depth: u64,
    ) -> Result<String> {
        self.read_as(origin, room, move |guest, _, _| {
            let events = guest.missing_events(&earliest, &latest, limit, min_depth)?;
            let events = pdus(guest, &events)?;
            Ok(format!("{{\"events\":[{events}]}}"))
        })
        .await
    }

    /// Reads what the server may have of the room.
    async fn read_as(
        &self,
        origin: &ServerName,
        room: OwnedRoomId,
        read: impl FnOnce(&Guest<'_>, &Rooms, &View) -> Result<String> + Send + 'static,
    ) -> Result<String> {
        let origin = origin.to_owned();
        self.read(move |rooms, view| read(&guest(rooms, view, &room, &origin)?, rooms, view))
            .await
    }

    /// Reads on a thread for that.
    pub(super) async fn read(
        &self,
        read: impl FnOnce(&Rooms, &View) -> Result<String> + Send + 'static,
    ) -> Result<String> {
        let (rooms, view) = (self.0.rooms.clone(), self.0.store.view());
        beside(move || read(&rooms, &view)).await?
    }
}

/// What the server may have of the room.
pub(super) fn guest<'r>(
    rooms: &'r Rooms,
    view: &'r View,
    room: &RoomId,
    origin: &ServerName,
) -> Result<Guest<'r>> {
    let refused = || Error::forbidden(format!("{origin} is not in this room"));
    if rooms.version_of(view, room)?.is_none() {
        return Err(refused());
    }
    rooms.guest(view, room, origin)
}

/// Events as they are answered in the form of a transaction.
fn transaction(rooms: &Rooms, now: u64, pdus: &str) -> String {
    let own = rooms.server_name();
    format!("{{\"origin\":\"{own}\",\"origin_server_ts\":{now},\"pdus\":[{pdus}]}}")
}

/// Events as the server may see them, with commas between.
fn pdus(guest: &Guest<'_>, events: &[Arc<Stored>]) -> Result<String> {
    let pdus: Vec<String> = events
        .iter()
        .map(|stored| guest.pdu(stored))
        .collect::<Result<_>>()?;
    Ok(pdus.join(","))
}

/// Adds a list of events of states and auth chains, which whoever is in the room needs whole.
pub(super) fn push_events(
    out: &mut String,
    rooms: &Rooms,
    view: &View,
    nids: &[EventNid],
) -> Result<()> {
    out.push('[');
    let mut is_first = true;
    for chunk in nids.chunks(CHUNK) {
        for stored in rooms.events(view, chunk)? {
            if !std::mem::replace(&mut is_first, false) {
                out.push(',');
            }
            out.push_str(&format::federation(&stored.event));
        }
    }
    out.push(']');
    Ok(())
}

fn ids(rooms: &Rooms, view: &View, nids: &[EventNid]) -> Result<Vec<OwnedEventId>> {
    let mut ids = Vec::with_capacity(nids.len());
    for chunk in nids.chunks(CHUNK) {
        let events = rooms.events(view, chunk)?;
        ids.extend(events.iter().map(|stored| stored.event.header.id.clone()));
    }
    Ok(ids)
}
