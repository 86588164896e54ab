//! How far everybody has read.
//!
//! A user has one receipt of each kind in each thread of a room; a newer one takes its place. See "Receipts" and "Fully
//! read markers" in the client-server API.

use std::{
    collections::{BTreeMap, HashSet},
    fmt::Write as _,
    ops::Bound,
    sync::Arc,
};

use ruma::{
    OwnedEventId, RoomId, api::client::receipt::create_receipt::v3::ReceiptType,
    events::receipt::ReceiptThread,
};
use serde::Deserialize;

use crate::{
    clock::Clock,
    error::{Error, Result},
    protocol::{
        format::push_string,
        ids::{Position, RoomNid, UserNid},
    },
    service::{
        Requester,
        accounts::Writing,
        rooms::{Rooms, Stored, ignored},
    },
    store::{
        Batch, Members, Store, View,
        notify::Kinds,
        outgoing::Note,
        schema::{ACCOUNT_DATA, RECEIPTS, RECEIPTS_OF, ReceiptRow},
    },
};

const READ: &str = "m.read";
const PRIVATE: &str = "m.read.private";

/// How many receipts are looked at to find those for some events.
const MOST_LOOKED_AT: usize = 1000;
const FULLY_READ: &str = "m.fully_read";

/// How far everybody has read.
pub struct Receipts {
    store: Store,
    clock: Clock,
    rooms: Arc<Rooms>,
}

/// What a user says to have read.
#[derive(Clone, Debug)]
pub struct Mark {
    /// Whom it tells: everybody, nobody, or the user's own apps where to open the room.
    pub receipt_type: ReceiptType,
    /// Up to this event.
    pub event_id: OwnedEventId,
    /// In this thread.
    pub thread: ReceiptThread,
}

/// A mark that was found to be in order, and what it replaces.
enum Change {
    Receipt {
        new: ReceiptRow,
        old: Option<Position>,
    },
    FullyRead(Writing),
}

impl Receipts {
    /// Nothing is kept in memory.
    pub fn new(store: Store, clock: Clock, rooms: Arc<Rooms>) -> Self {
        Self {
            store,
            clock,
            rooms,
        }
    }

    /// Sets receipts and markers of a user. What would move backwards stays where it is.
    ///
    /// # Errors
    /// 403 when the user is not in the room, 404 when they see no such event in it, 400 when the event is not in the
    /// thread.
    pub async fn set(&self, requester: &Requester, room: &RoomId, marks: &[Mark]) -> Result<()> {
        // The lock keeps two receipts of one user from replacing the same third one.
        let mut guard = self.rooms.lock_for(requester, room).await?;
        let (nid, members) = (guard.head().nid, guard.head().members.clone());
        let view = self.store.latest();
        let sight = self.rooms.sight(&view, nid, requester)?;
        let mut changes = Vec::new();
        for mark in marks {
            let seen = sight.find(room, &mark.event_id)?;
            let seen = seen.ok_or_else(|| Error::not_found("The event"))?;
            let key = (requester.nid, nid);
            changes.extend(match &mark.receipt_type {
                ReceiptType::FullyRead => self.fully_read(&view, key, mark, &seen.stored)?,
                _ => self.receipt(&view, key, mark, &seen.stored)?,
            });
        }
        if changes.is_empty() {
            return Ok(());
        }
        let committed = self.store.commit(|batch| {
            for change in changes {
                if let Some(position) = write(batch, nid, &members, change) {
                    batch.tell_servers(position, Note::Receipt { room: nid });
                }
            }
            Ok(())
        })?;
        drop(guard);
        Ok(self.store.durable(committed.position).await?)
    }

    /// Another server says what a user of its has read; it was seen that the user is in the room. That server knows what it
    /// is that was read last: what it says last counts, also where the events stand in another order here, or where this one
    /// has not come yet.
    ///
    /// # Errors
    /// 404 when there is no such room.
    pub async fn set_of_other(
        &self,
        room: &RoomId,
        user: UserNid,
        mark: &Mark,
        ts: u64,
    ) -> Result<()> {
        let mut guard = self.rooms.lock(room).await?;
        let (nid, members) = (guard.head().nid, guard.head().members.clone());
        let view = self.store.latest();
        let found = self.rooms.find_event(&view, &mark.event_id)?;
        let is_elsewhere = |stored: &Arc<Stored>| stored.event.header.room_id != *room;
        if found.as_ref().is_some_and(is_elsewhere) {
            return Ok(());
        }
        let placed = found.filter(|stored| stored.facts.order.is_some());
        let thread = match &placed {
            Some(stored) => self.thread_read(&view, &mark.thread, stored),
            None => self.thread_of_unknown(&view, &mark.thread, room),
        };
        let thread = match thread {
            Err(error) if !error.is_internal() => return Ok(()),
            thread => thread?,
        };
        let old = RECEIPTS_OF.get(&view, &(nid, user, READ, thread))?;
        let new = ReceiptRow {
            user,
            receipt_type: READ.to_owned(),
            thread: thread.to_owned(),
            event_id: mark.event_id.clone(),
            order: placed.and_then(|stored| stored.facts.order).unwrap_or(0),
            ts: ts.min(self.clock.now_ms()),
            position: Position::default(),
        };
        if let Some(old) = &old
            && (&old.event_id, old.ts) == (&new.event_id, new.ts)
        {
            return Ok(());
        }
        let old = old.map(|old| old.position);
        // The other server does not wait for it.
        let _not_awaited = self.store.commit(|batch| {
            let _told_by_its_server = write(batch, nid, &members, Change::Receipt { new, old });
            Ok(())
        })?;
        Ok(())
    }

    /// The content of `m.receipt` with what was given after `since`, if there is any: without `since`, with all.
    ///
    /// # Errors
    /// When the store fails.
    pub fn since(
        &self,
        view: &View,
        room: RoomNid,
        since: Option<Position>,
        asker: &Requester,
    ) -> Result<Option<String>> {
        let from = since.map_or(Bound::Unbounded, |since| Bound::Excluded((room, since)));
        let rows = RECEIPTS.range(view, &(room,), (from, Bound::Unbounded));
        let rows = rows.map(|row| Ok(row?.1));
        self.content(view, rows, asker)
    }

    /// The content of `m.receipt` with the asker's own receipts, and with those of others for these events, as far as they
    /// are among the newest of the room.
    ///
    /// # Errors
    /// When the store fails.
    pub fn of_events(
        &self,
        view: &View,
        room: RoomNid,
        events: &HashSet<OwnedEventId>,
        asker: &Requester,
    ) -> Result<Option<String>> {
        let mut rows = self.of(view, room, asker.nid)?;
        let newest = RECEIPTS.range_back::<(RoomNid, Position)>(
            view,
            &(room,),
            (Bound::Unbounded, Bound::Unbounded),
        );
        for row in newest.take(MOST_LOOKED_AT) {
            let (_, row) = row?;
            if row.user != asker.nid && events.contains(&row.event_id) {
                rows.push(row);
            }
        }
        self.content(view, rows.into_iter().map(Ok), asker)
    }

    fn content(
        &self,
        view: &View,
        rows: impl Iterator<Item = Result<ReceiptRow>>,
        asker: &Requester,
    ) -> Result<Option<String>> {
        let mut content = Content::new();
        let mut unwanted = None;
        for row in rows {
            let row = row?;
            if row.receipt_type == PRIVATE && row.user != asker.nid {
                continue;
            }
            let user = self.store.user_id(row.user)?;
            let unwanted = match &unwanted {
                Some(unwanted) => unwanted,
                None => unwanted.insert(ignored(view, asker.nid)?),
            };
            if unwanted.contains(&*user) {
                continue;
            }
            let user = user.as_str().to_owned();
            let by_type = content.entry(row.event_id).or_default();
            let by_user = by_type.entry(row.receipt_type).or_default();
            // There is only one place for both; the one outside of threads says more. See MSC4102.
            let place = by_user.entry(user).or_insert((row.ts, row.thread.clone()));
            if row.thread.is_empty() || !place.1.is_empty() {
                *place = (row.ts, row.thread);
            }
        }
        Ok((!content.is_empty()).then(|| json(&content)))
    }

    /// All receipts of a user in a room.
    ///
    /// # Errors
    /// When the store fails.
    pub fn of(&self, view: &View, room: RoomNid, user: UserNid) -> Result<Vec<ReceiptRow>> {
        let rows = RECEIPTS_OF.scan(view, &(room, user));
        rows.map(|row| Ok(row?.1)).collect()
    }

    fn receipt(
        &self,
        view: &View,
        (user, room): (UserNid, RoomNid),
        mark: &Mark,
        stored: &Stored,
    ) -> Result<Option<Change>> {
        let receipt_type = match &mark.receipt_type {
            ReceiptType::Read => READ,
            ReceiptType::ReadPrivate => PRIVATE,
            _ => return Err(Error::invalid_param("There is no such type of receipt")),
        };
        let thread = self.thread_read(view, &mark.thread, stored)?;
        let order = order(stored)?;
        let old = RECEIPTS_OF.get(view, &(room, user, receipt_type, thread))?;
        if old.as_ref().is_some_and(|old| old.order >= order) {
            return Ok(None);
        }
        Ok(Some(Change::Receipt {
            new: ReceiptRow {
                user,
                receipt_type: receipt_type.to_owned(),
                thread: thread.to_owned(),
                event_id: mark.event_id.clone(),
                order,
                ts: self.clock.now_ms(),
                position: Position::default(),
            },
            old: old.map(|old| old.position),
        }))
    }

    /// How a receipt's thread is stored, if the event can be read in it. See "Threaded read receipts".
    fn thread_read<'m>(
        &self,
        view: &View,
        thread: &'m ReceiptThread,
        stored: &Stored,
    ) -> Result<&'m str> {
        let of_event = stored.facts.thread.as_deref();
        let is_read_in_it = match thread {
            ReceiptThread::Unthreaded => return Ok(""),
            ReceiptThread::Main => of_event.is_none(),
            ReceiptThread::Thread(root) => match of_event {
                Some(of_event) => of_event == root,
                // The root is read in its thread as well as outside, and so is what is shown with it: it may be the
                // last thing that a client has in the thread.
                None => {
                    *root == stored.event.header.id || self.rooms.leads_to(view, stored, root)?
                }
            },
            _ => false,
        };
        if !is_read_in_it {
            return Err(Error::invalid_param("The event is not in this thread"));
        }
        Ok(thread.as_str().unwrap_or_default())
    }

    /// The same for an event that is not here yet. The thread must be known, or else there could be any number of them.
    fn thread_of_unknown<'m>(
        &self,
        view: &View,
        thread: &'m ReceiptThread,
        room: &RoomId,
    ) -> Result<&'m str> {
        let is_known = match thread {
            ReceiptThread::Unthreaded | ReceiptThread::Main => true,
            ReceiptThread::Thread(root) => {
                let root = self.rooms.find_event(view, root)?;
                root.is_some_and(|root| root.event.header.room_id == *room)
            }
            _ => false,
        };
        if !is_known {
            return Err(Error::not_found("The thread"));
        }
        Ok(thread.as_str().unwrap_or_default())
    }

    fn fully_read(
        &self,
        view: &View,
        (user, room): (UserNid, RoomNid),
        mark: &Mark,
        stored: &Stored,
    ) -> Result<Option<Change>> {
        #[derive(Deserialize)]
        struct Marker {
            event_id: OwnedEventId,
        }
        if mark.thread != ReceiptThread::Unthreaded {
            return Err(Error::invalid_param("A fully read marker has no thread"));
        }
        let old = ACCOUNT_DATA.get(view, &(user, room, FULLY_READ))?;
        let order = order(stored)?;
        if let Some(old) = old
            && let Ok(marker) = serde_json::from_str::<Marker>(&old.content)
            && let Some(there) = self.rooms.find_event(view, &marker.event_id)?
            && there.facts.order >= Some(order)
        {
            return Ok(None);
        }
        let writing = Writing::prepare(view, user, room, FULLY_READ, |_| {
            let mut content = String::from("{\"event_id\":");
            push_string(&mut content, mark.event_id.as_str());
            content.push('}');
            Ok(content)
        })?;
        Ok(Some(Change::FullyRead(writing)))
    }
}

/// The position of what everybody may know of.
fn write(
    batch: &mut Batch<'_>,
    room: RoomNid,
    members: &Members,
    change: Change,
) -> Option<Position> {
    let (new, old) = match change {
        Change::Receipt { new, old } => (new, old),
        Change::FullyRead(writing) => {
            writing.write(batch);
            return None;
        }
    };
    if let Some(old) = old {
        RECEIPTS.delete(batch, &(room, old));
    }
    let position = batch.position();
    let row = ReceiptRow { position, ..new };
    let key = (
        room,
        row.user,
        row.receipt_type.as_str(),
        row.thread.as_str(),
    );
    RECEIPTS_OF.put(batch, &key, &row);
    RECEIPTS.put(batch, &(room, position), &row);
    if row.receipt_type == PRIVATE {
        batch.touch_user(position, row.user, Some(room), Kinds::RECEIPTS);
        return None;
    }
    batch.touch_users(position, members.clone(), room, Kinds::RECEIPTS);
    Some(position)
}

fn order(stored: &Stored) -> Result<i64> {
    let order = stored.facts.order;
    order.ok_or_else(|| Error::not_found("The event"))
}

/// By event, then type, then user: when and in which thread.
type Content = BTreeMap<OwnedEventId, BTreeMap<String, BTreeMap<String, (u64, String)>>>;

fn json(content: &Content) -> String {
    /// A JSON object whose values are written by `value`.
    fn object<K: AsRef<str>, V>(
        out: &mut String,
        members: impl IntoIterator<Item = (K, V)>,
        value: impl Fn(&mut String, V),
    ) {
        out.push('{');
        for (index, (key, member)) in members.into_iter().enumerate() {
            if index > 0 {
                out.push(',');
            }
            push_string(out, key.as_ref());
            out.push(':');
            value(out, member);
        }
        out.push('}');
    }
    let mut out = String::new();
    object(&mut out, content, |out, by_type| {
        object(out, by_type, |out, by_user| {
            object(out, by_user, |out, (ts, thread)| {
                let _ = write!(out, "{{\"ts\":{ts}");
                if !thread.is_empty() {
                    out.push_str(",\"thread_id\":");
                    push_string(out, thread);
                }
                out.push('}');
            });
        });
    });
    out
}
