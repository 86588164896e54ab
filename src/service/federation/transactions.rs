//! "Transactions": what another server sends by itself, answered when it is safe.
//!
//! An event that follows what is here is written before the answer. All else is staged in one commit and worked off
//! beside the requests, so that no sender waits for what a third server does not give.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ruma::{
    OwnedEventId, OwnedRoomId, RoomVersionId, ServerName, room_version_rules::RoomVersionRules,
};
use serde_json::{Value, json, value::RawValue};
use tokio::time::timeout;

use super::{
    Federation,
    inbox::MOST_OF_SERVER,
    verify::{beside, parse},
};
use crate::{
    error::{Error, Result},
    protocol::{
        ids::{Position, RoomNid},
        ingest::{self, Dropped, Pdu, Received},
        integrity, version,
    },
    service::rooms::{Before, Outcome},
};

/// The most events of a transaction.
const MOST_PDUS: usize = 50;

/// The most short-lived messages of a transaction.
const MOST_EDUS: usize = 100;

/// The longest id of a transaction, in bytes.
const LONGEST_ID: usize = 255;

/// How long an answer waits for keys. Nearly always they are those of the sender, which its request has needed already.
const FOR_KEYS: Duration = Duration::from_secs(5);

/// How long a transaction waits for the end of a join. Who sends it gives up later than that, and tries again.
const FOR_ENTERING: Duration = Duration::from_secs(20);

/// How long an answer waits for a room that is being written by others.
const FOR_ROOM: Duration = Duration::from_millis(500);

/// When a server comes back of which too much waits.
const COME_BACK: Duration = Duration::from_secs(5);

/// A transaction as it came.
#[derive(Debug, Default)]
pub struct Transaction {
    /// Events.
    pub pdus: Vec<Box<RawValue>>,
    /// Short-lived messages.
    pub edus: Vec<Box<RawValue>>,
}

/// What became of each event: nothing, or why it was refused.
type Results = BTreeMap<OwnedEventId, Option<String>>;

/// A room as far as a transaction needs it.
struct Place {
    id: OwnedRoomId,
    nid: RoomNid,
    rules: &'static RoomVersionRules,
}

impl Federation {
    /// Takes in a transaction, or says again what became of it. The answer is that of
    /// `PUT /_matrix/federation/v1/send/{txnId}`.
    ///
    /// # Errors
    /// 400 when it holds more than it may, 429 when too much of this server waits already.
    pub async fn receive_transaction(
        &self,
        origin: &ServerName,
        id: &str,
        transaction: Transaction,
    ) -> Result<String> {
        if transaction.pdus.len() > MOST_PDUS || transaction.edus.len() > MOST_EDUS {
            return Err(Error::invalid_param(format!(
                "A transaction holds at most {MOST_PDUS} PDUs and {MOST_EDUS} EDUs"
            )));
        }
        if id.len() > LONGEST_ID {
            return Err(Error::invalid_param("The transaction id is too long"));
        }
        let server = self.0.store.server_nid(origin)?;
        if self.0.inbox.of_server(server) + transaction.pdus.len() > MOST_OF_SERVER {
            return Err(Error::limit_exceeded(COME_BACK));
        }
        let key = format!("{origin} {id}");
        let answers = &self.0.inbox.answers;
        let slot = answers.get_or_insert_with(&key, || Ok::<_, ()>(Arc::default()));
        let slot = slot.unwrap_or_default();
        let mut slot = slot.lock().await;
        if let Some(answer) = &*slot {
            return Ok(answer.clone());
        }
        let results = self.receive_pdus(origin, transaction.pdus).await?;
        let safe = self.receive_lasting(origin, &transaction.edus)?;
        self.receive_edus(origin, transaction.edus).await;
        if let Some(position) = safe {
            self.0.store.durable(position).await?;
        }
        let results: BTreeMap<&str, Value> = results
            .iter()
            .map(|(id, error)| {
                let result = error.as_ref().map(|error| json!({ "error": error }));
                (id.as_str(), result.unwrap_or_else(|| json!({})))
            })
            .collect();
        let answer = json!({ "pdus": results }).to_string();
        *slot = Some(answer.clone());
        Ok(answer)
    }

    async fn receive_pdus(&self, origin: &ServerName, pdus: Vec<Box<RawValue>>) -> Result<Results> {
        let mut rooms: Vec<(OwnedRoomId, Vec<String>)> = Vec::new();
        for pdu in pdus {
            // Only the beginning of a room of version 12 names no room, and nobody sends that.
            let Some(room) = ingest::room_named(pdu.get()) else {
                continue;
            };
            let text = String::from(Box::<str>::from(pdu));
            match rooms.iter_mut().find(|(id, _)| *id == room) {
                Some((_, texts)) => texts.push(text),
                None => rooms.push((room, vec![text])),
            }
        }
        let mut results = Results::new();
        let mut safe = None;
        for (room, texts) in rooms {
            // Who has let us in tells at once what happens next, while we still read what the room is.
            let _entered_or_late = timeout(FOR_ENTERING, self.until_entered(&room)).await;
            match self.place(origin, room.clone())? {
                Ok(place) => {
                    safe = safe.max(self.receive_in(origin, &place, texts, &mut results).await?);
                }
                Err((rules, reason)) => {
                    for text in texts {
                        let taken = self.take_from_outside(&room, &text).await?;
                        if let Some(id) = id_of(&text, rules) {
                            results.insert(id, (!taken).then(|| reason.to_owned()));
                        }
                    }
                }
            }
        }
        if let Some(position) = safe {
            self.0.store.durable(position).await?;
        }
        Ok(results)
    }

    /// The room, if events of it are taken from this server; otherwise why not.
    fn place(
        &self,
        origin: &ServerName,
        id: OwnedRoomId,
    ) -> Result<Result<Place, (&'static RoomVersionRules, &'static str)>> {
        let view = self.0.store.latest();
        let rooms = &self.0.rooms;
        let known = rooms.version_of(&view, &id)?;
        let version = known.clone().unwrap_or(RoomVersionId::V11);
        let rules = version::rules(&version)
            .ok_or_else(|| Error::Internal("a room has no version".to_owned()))?;
        let nid = self.0.store.find_room(&id)?.filter(|_| known.is_some());
        let Some(nid) = nid else {
            return Ok(Err((rules, "This server is not in the room")));
        };
        if !rooms.has_server(&view, nid, rooms.server_name())? {
            return Ok(Err((rules, "This server is not in the room")));
        }
        if !rooms.acl_allows(&view, nid, origin)? {
            return Ok(Err((rules, "Your server is kept out of the room")));
        }
        Ok(Ok(Place { id, nid, rules }))
    }

    /// Takes in events of one room; says from when on they are safe.
    async fn receive_in(
        &self,
        origin: &ServerName,
        place: &Place,
        texts: Vec<String>,
        results: &mut Results,
    ) -> Result<Option<Position>> {
        let rules = place.rules;
        let mut events: Vec<(OwnedEventId, String)> = Vec::new();
        let mut received: Vec<Result<Received, Dropped>> = Vec::new();
        for (event, text) in parse(rules, texts.clone()).await?.into_iter().zip(texts) {
            match event {
                Ok(event) => {
                    let id = event.event().header.id.clone();
                    if events.iter().all(|(other, _)| *other != id) {
                        events.push((id, text));
                        received.push(Ok(event));
                    }
                }
                Err(dropped) => {
                    tracing::debug!(%origin, room = %place.id, %dropped, "an event is dropped");
                    if let Some(id) = id_of(&text, rules) {
                        results.insert(id, Some(dropped.to_string()));
                    }
                }
            }
        }
        let mut pdus = Vec::new();
        // Without the keys whoever works it off looks for them again.
        if let Ok(checked) = timeout(FOR_KEYS, self.check(rules, received)).await {
            let mut genuine = Vec::new();
            for (event, pdu) in events.into_iter().zip(checked?) {
                match pdu {
                    Ok(pdu) => {
                        genuine.push(event);
                        pdus.push(pdu);
                    }
                    Err(dropped) => {
                        tracing::debug!(%origin, room = %place.id, id = %event.0, %dropped, "an event is dropped");
                        results.insert(event.0, Some(dropped.to_string()));
                    }
                }
            }
            events = genuine;
        }
        results.extend(events.iter().map(|(id, _)| (id.clone(), None)));
        let mut safe = None;
        // Also where others wait: what they lack may never come.
        if !pdus.is_empty() {
            let (written, position) = self.at_once(place, pdus).await?;
            events.drain(..written);
            safe = position;
            if written > 0 {
                self.0.inbox.written(place.nid);
            }
        }
        if !events.is_empty() {
            let server = self.0.store.server_nid(origin)?;
            let (position, refused) = self.stage(place.nid, server, events)?;
            safe = safe.max(position);
            let reason = "Too many events of this room are waiting";
            results.extend(refused.into_iter().map(|id| (id, Some(reason.to_owned()))));
        }
        Ok(safe)
    }

    /// Writes events up to the first one for which something is missing; says how many.
    async fn at_once(&self, place: &Place, pdus: Vec<Pdu>) -> Result<(usize, Option<Position>)> {
        let Ok(guard) = timeout(FOR_ROOM, self.0.rooms.lock(&place.id)).await else {
            return Ok((0, None));
        };
        let (rooms, mut guard) = (self.0.rooms.clone(), guard?);
        let write = move || {
            let mut safe = None;
            for (written, pdu) in pdus.iter().enumerate() {
                match rooms.receive(guard.head(), pdu, Before::Previous, |_| {})? {
                    Outcome::Known => {}
                    Outcome::Written { position, .. } => safe = Some(position),
                    Outcome::Needs(_) => return Ok((written, safe)),
                }
            }
            Ok((pdus.len(), safe))
        };
        beside(write).await?
    }
}

/// The id of an event that may be of any kind.
fn id_of(text: &str, rules: &RoomVersionRules) -> Option<OwnedEventId> {
    let object = integrity::parse_pdu(text, rules).ok()?;
    integrity::event_id(&object, rules).ok()
}
