//! What is kept of the events that relate to another one, so that showing that one costs the same however many they are:
//! the replies of a thread are counted, the edits stand in the order of their age.
//!
//! See "Aggregations of child events" in the client-server API.

use std::{collections::BTreeMap, sync::Arc};

use ruma::OwnedEventId;

use super::{Rooms, Stored, threads::THREAD};
use crate::{
    error::Result,
    protocol::{
        event::Event,
        ids::{EventNid, UserNid},
        replacement::{REPLACE, replaces},
    },
    store::{
        self, Batch, Store, View,
        schema::{
            EDITS, EVENTS, META, RELATIONS, RELATIONS_BY, RelationRow, THREAD_REPLIES,
            THREAD_REPLIES_OF,
        },
    },
};

/// How these rows are made from the relations. Another number makes them anew.
const FORM: u64 = 1;

/// How many relations are looked at for one commit when they are.
const CHUNK: usize = 1000;

/// What says which of two edits is newer.
type Age = (u64, OwnedEventId);

/// How one event relates to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tie {
    /// The type of the relation.
    pub(super) kind: String,
    /// For a valid edit.
    edit: Option<Age>,
}

impl Tie {
    /// How `event` relates to `parent`, which is the event of the same room that it names; none if it relates to nothing.
    pub(super) fn of(event: &Event, parent: &Event) -> Option<Self> {
        let kind = &event.header.relation.as_ref()?.rel_type;
        Some(Self {
            kind: kind.clone(),
            edit: (kind == REPLACE && replaces(event, parent)).then(|| age(event)),
        })
    }

    /// Writes that an event at some place relates to `parent`, which was not written before.
    pub(super) fn put(
        &self,
        batch: &mut Batch<'_>,
        parent: EventNid,
        order: i64,
        row: &RelationRow,
    ) {
        let kind = self.kind.as_str();
        RELATIONS.put(batch, &(parent, kind, order), row);
        RELATIONS_BY.put(batch, &(parent, row.sender, kind, order), &(row.event,));
        self.count(batch, parent, row.sender, 1);
        if let Some((ts, id)) = &self.edit {
            EDITS.put(batch, &(parent, *ts, id.as_str()), &(row.event,));
        }
    }

    /// The same when it was written, and holds no longer.
    pub(super) fn delete(
        &self,
        batch: &mut Batch<'_>,
        parent: EventNid,
        order: i64,
        sender: UserNid,
    ) {
        let kind = self.kind.as_str();
        RELATIONS.delete(batch, &(parent, kind, order));
        RELATIONS_BY.delete(batch, &(parent, sender, kind, order));
        self.count(batch, parent, sender, -1);
        if let Some((ts, id)) = &self.edit {
            EDITS.delete(batch, &(parent, *ts, id.as_str()));
        }
    }

    fn count(&self, batch: &mut Batch<'_>, root: EventNid, sender: UserNid, difference: i64) {
        if self.kind == THREAD {
            THREAD_REPLIES.add(batch, &(root,), difference);
            THREAD_REPLIES_OF.add(batch, &(root, sender), difference);
        }
    }
}

fn age(edit: &Event) -> Age {
    let header = &edit.header;
    (header.origin_server_ts.0.into(), header.id.clone())
}

impl Rooms {
    /// The newest valid edit of an event, as whoever sees all of the room is shown it.
    pub fn newest_edit(&self, view: &View, of: EventNid) -> Result<Option<Arc<Stored>>> {
        let newest = EDITS.last(view, &(of,))?;
        newest
            .map(|(_, (edit,))| self.event(view, edit))
            .transpose()
    }
}

/// Makes these rows in a store that was written when there were none of them.
pub(super) fn open(store: &Store) -> Result<()> {
    let view = store.latest();
    if META.get(&view, &("aggregations",))? == Some((FORM,)) {
        return Ok(());
    }
    let mut rows = RELATIONS.scan(&view, &()).peekable();
    if rows.peek().is_some() {
        tracing::info!("counting what relates to what; this is done once");
    }
    // A thread may go on in the next piece.
    let mut thread = Thread::default();
    loop {
        let mut chunk = Vec::new();
        for row in rows.by_ref().take(CHUNK) {
            let ((parent, kind, order), row) = row?;
            let edit = match kind.as_str() {
                REPLACE => edit_of(store, &view, row.event, parent)?,
                _ => None,
            };
            chunk.push((parent, Tie { kind, edit }, order, row));
        }
        let is_last = chunk.is_empty();
        let _not_awaited = store.commit(|batch| {
            for (parent, tie, order, row) in chunk {
                let by = (parent, row.sender, tie.kind.as_str(), order);
                RELATIONS_BY.put(batch, &by, &(row.event,));
                if let Some((ts, id)) = &tie.edit {
                    EDITS.put(batch, &(parent, *ts, id.as_str()), &(row.event,));
                }
                if tie.kind == THREAD {
                    thread.count(batch, parent, row.sender);
                }
            }
            if is_last {
                thread.end(batch);
                META.put(batch, &("aggregations",), &(FORM,));
            }
            Ok(())
        })?;
        if is_last {
            return Ok(());
        }
    }
}

/// The replies of one thread, which follow each other among the relations. They are written and not added, as this may be
/// done again from the beginning when the node stops halfway.
#[derive(Default)]
struct Thread {
    root: EventNid,
    replies: BTreeMap<UserNid, u64>,
}

impl Thread {
    fn count(&mut self, batch: &mut Batch<'_>, root: EventNid, sender: UserNid) {
        if self.root != root {
            self.end(batch);
            self.root = root;
        }
        *self.replies.entry(sender).or_default() += 1;
    }

    fn end(&mut self, batch: &mut Batch<'_>) {
        let replies = std::mem::take(&mut self.replies);
        if replies.is_empty() {
            return;
        }
        THREAD_REPLIES.put(batch, &(self.root,), &(replies.values().sum(),));
        for (sender, count) in replies {
            THREAD_REPLIES_OF.put(batch, &(self.root, sender), &(count,));
        }
    }
}

fn edit_of(
    store: &Store,
    view: &View,
    edit: EventNid,
    original: EventNid,
) -> store::Result<Option<Age>> {
    let event = |nid: EventNid| {
        let row = EVENTS.get(view, &(nid,))?;
        let row = row.ok_or_else(|| store::Error::Missing(format!("event {nid}")))?;
        row.into_parts(store).map(|(event, _)| event)
    };
    let edit = event(edit)?;
    Ok(replaces(&edit, &event(original)?).then(|| age(&edit)))
}

#[cfg(test)]
mod tests;
