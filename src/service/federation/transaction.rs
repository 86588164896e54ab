//! What is sent to another server at once. See "Transactions" in the server-server API.
//!
//! A transaction whose answer was lost is sent again under the same id and with the same content, so that the other side
//! recognises it. Its events are not kept in memory meanwhile: they are read again.

use std::{
    collections::{HashMap, HashSet},
    fmt::Write as _,
    sync::Arc,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ruma::{OwnedEventId, ServerName};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::{
    Parts,
    destination::{Item, What},
};
use crate::{
    error::{Error, Result},
    protocol::{
        format::{self, push_string},
        ids::{EventNid, RoomNid, ServerNid, UserNid},
    },
    service::rooms::Stored,
    store::{
        self, View,
        schema::{LASTING_EDUS, RECEIPTS, ROOM_SERVERS, ReceiptRow},
    },
};

/// The most events of a transaction, as the specification has it.
pub(super) const MAX_EVENTS: usize = 50;

/// The most EDUs.
pub(super) const MAX_EDUS: usize = 100;

/// A transaction on its way, until it has arrived.
pub(super) struct Flight {
    items: Vec<Item>,
    typing: Vec<(RoomNid, UserNid, bool)>,
    presence: Vec<Arc<str>>,
    hello: bool,
    made: Option<Made>,
}

/// What stays the same however often it is sent.
struct Made {
    id: String,
    ts: u64,
    events: Vec<EventNid>,
    edus: Vec<String>,
}

/// What the other side said about it.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Answer {
    pub(super) pdus: HashMap<OwnedEventId, Processed>,
}

/// What became of an event there.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Processed {
    pub(super) error: Option<String>,
}

impl Flight {
    pub(super) fn new(
        items: Vec<Item>,
        typing: Vec<(RoomNid, UserNid, bool)>,
        presence: Vec<Arc<str>>,
        hello: bool,
    ) -> Self {
        Self {
            items,
            typing,
            presence,
            hello,
            made: None,
        }
    }

    /// How many events it has, once it was made.
    pub(super) fn events(&self) -> usize {
        self.made.as_ref().map_or(0, |made| made.events.len())
    }

    /// The path and the body to send; none if the server needs nothing of all this.
    pub(super) fn request(
        &mut self,
        parts: &Parts,
        server: (ServerNid, &ServerName),
    ) -> Result<Option<(String, Vec<u8>)>> {
        let view = parts.store.view();
        if self.made.is_none() {
            self.made = Some(self.make(parts, &view, server)?);
        }
        let Some(made) = &self.made else {
            return Ok(None);
        };
        if made.events.is_empty() && made.edus.is_empty() && !self.hello {
            return Ok(None);
        }
        let mut body = String::from("{\"edus\":[");
        body.push_str(&made.edus.join(","));
        body.push_str("],\"origin\":");
        push_string(&mut body, parts.keyring.name().as_str());
        let _ = write!(body, ",\"origin_server_ts\":{},\"pdus\":[", made.ts);
        for (index, nid) in made.events.iter().enumerate() {
            if index > 0 {
                body.push(',');
            }
            let stored = parts.rooms.event(&view, *nid)?;
            body.push_str(&format::federation(&stored.event));
        }
        body.push_str("]}");
        let path = format!("/_matrix/federation/v1/send/{}", made.id);
        Ok(Some((path, body.into_bytes())))
    }

    fn make(
        &self,
        parts: &Parts,
        view: &View,
        (nid, server): (ServerNid, &ServerName),
    ) -> Result<Made> {
        let mut made = Made {
            id: String::from("k"),
            ts: parts.clock.now_ms(),
            events: Vec::new(),
            edus: Vec::new(),
        };
        let mut receipts = Receipts::default();
        let mut hash = Sha256::new();
        for item in &self.items {
            if item.what == What::Lasting {
                made.edus
                    .extend(LASTING_EDUS.get(view, &(nid, item.position))?);
                continue;
            }
            // It may have left since.
            let place = (item.room, nid);
            if item.what != What::Extra && !parts.rooms.tells_server(view, place, item.position)? {
                continue;
            }
            if item.what == What::Receipt {
                let row = RECEIPTS.get(view, &(item.room, item.position))?;
                receipts.add(item.room, row);
                continue;
            }
            let Some(stored) = readable(parts, view, item.event)? else {
                continue;
            };
            let header = &stored.event.header;
            // What was done on behalf of a server is known there.
            if header.sender.server_name() != server {
                hash.update(header.id.as_bytes());
                made.events.push(item.event);
            }
        }
        made.edus.extend(receipts.edus(parts)?);
        made.edus.extend(self.volatile(parts, view, nid)?);
        made.edus.truncate(MAX_EDUS);
        if !made.events.is_empty() {
            let hash = hash.finalize();
            let short: Vec<u8> = hash.iter().copied().take(15).collect();
            made.id.push_str(&URL_SAFE_NO_PAD.encode(short));
        }
        if made.events.is_empty() || !made.edus.is_empty() {
            // The same may have to be said twice: somebody types, stops, and types again.
            made.id.push('-');
            made.id.push_str(&parts.entropy.token(12));
        }
        Ok(made)
    }

    /// Who types and who is there, as far as the server may know.
    fn volatile(&self, parts: &Parts, view: &View, server: ServerNid) -> Result<Vec<String>> {
        let mut edus = Vec::new();
        for (room, user, is_typing) in &self.typing {
            if !ROOM_SERVERS.contains(view, &(*room, server))? {
                continue;
            }
            let mut edu = String::from("{\"edu_type\":\"m.typing\",\"content\":{\"room_id\":");
            push_string(&mut edu, parts.store.room_id(*room)?.as_str());
            edu.push_str(",\"user_id\":");
            push_string(&mut edu, parts.store.user_id(*user)?.as_str());
            let _ = write!(edu, ",\"typing\":{is_typing}}}}}");
            edus.push(edu);
        }
        if !self.presence.is_empty() {
            let push: Vec<&str> = self.presence.iter().map(|json| &**json).collect();
            edus.push(format!(
                "{{\"edu_type\":\"m.presence\",\"content\":{{\"push\":[{}]}}}}",
                push.join(",")
            ));
        }
        Ok(edus)
    }
}

/// An event, unless its row is damaged: then it cannot be sent to anybody, and nothing may wait for it.
fn readable(parts: &Parts, view: &View, nid: EventNid) -> Result<Option<Arc<Stored>>> {
    match parts.rooms.event(view, nid) {
        Ok(stored) => Ok(Some(stored)),
        Err(Error::Store(error @ (store::Error::Missing(_) | store::Error::Corrupt { .. }))) => {
            tracing::error!(%error, "an event cannot be sent to other servers");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Receipts, put together: in one EDU a user has one receipt in a room. See "Receipts".
#[derive(Default)]
struct Receipts {
    edus: Vec<Vec<(RoomNid, ReceiptRow)>>,
    said: Vec<HashSet<(RoomNid, UserNid)>>,
}

impl Receipts {
    fn add(&mut self, room: RoomNid, row: Option<ReceiptRow>) {
        // A newer one has taken its place, and comes later.
        let Some(row) = row.filter(|row| row.receipt_type == "m.read") else {
            return;
        };
        let user = (room, row.user);
        let free = self.said.iter_mut().position(|said| said.insert(user));
        match free.and_then(|at| self.edus.get_mut(at)) {
            Some(edu) => edu.push((room, row)),
            None => {
                self.edus.push(vec![(room, row)]);
                self.said.push(HashSet::from([user]));
            }
        }
    }

    fn edus(self, parts: &Parts) -> Result<Vec<String>> {
        let own = parts.keyring.name();
        let mut out = Vec::new();
        for mut rows in self.edus {
            rows.sort_by_key(|(room, row)| (*room, row.user));
            let mut edu = String::from("{\"edu_type\":\"m.receipt\",\"content\":{");
            let mut last = None;
            for (room, row) in rows {
                let user = parts.store.user_id(row.user)?;
                if user.server_name() != own {
                    continue;
                }
                if last == Some(room) {
                    edu.push(',');
                } else {
                    if last.replace(room).is_some() {
                        edu.push_str("}},");
                    }
                    push_string(&mut edu, parts.store.room_id(room)?.as_str());
                    edu.push_str(":{\"m.read\":{");
                }
                push_string(&mut edu, user.as_str());
                let _ = write!(edu, ":{{\"data\":{{\"ts\":{}", row.ts);
                if !row.thread.is_empty() {
                    edu.push_str(",\"thread_id\":");
                    push_string(&mut edu, &row.thread);
                }
                edu.push_str("},\"event_ids\":[");
                push_string(&mut edu, row.event_id.as_str());
                edu.push_str("]}");
            }
            if last.is_some() {
                edu.push_str("}}}}");
                out.push(edu);
            }
        }
        Ok(out)
    }
}
