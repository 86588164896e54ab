//! Laws of what relates to what: both orders of it agree, and what is counted and listed by it is right.

use std::collections::{BTreeMap, BTreeSet};

use super::{Check, Complaint};
use crate::{
    protocol::{
        event::Event,
        ids::{EventNid, UserNid},
        replacement::replaces,
    },
    store::{
        Error, Result,
        schema::{
            EDITS, EVENTS, RELATIONS, RELATIONS_BY, THREAD_REPLIES, THREAD_REPLIES_OF, THREADS,
        },
    },
};

/// What the relations say that there must be.
#[derive(Default)]
struct Expected {
    /// The place of the newest reply of each thread.
    newest: BTreeMap<EventNid, i64>,
    replies: BTreeMap<(EventNid, UserNid), u64>,
    edits: BTreeSet<(EventNid, u64, String)>,
}

impl Check<'_> {
    pub(super) fn relations(&self, say: &mut dyn FnMut(Complaint)) -> Result<()> {
        let mut expected = Expected::default();
        self.rows(&RELATIONS, say, |say, (parent, kind, order), row| {
            if !self.has_event(parent)? || !self.has_event(row.event)? {
                say(format!(
                    "the relation {kind} of event {parent} to {} at {order} has an end that is missing",
                    row.event
                ));
                return Ok(());
            }
            let by = (parent, row.sender, kind.as_str(), order);
            if RELATIONS_BY.get(&self.view, &by)? != Some((row.event,)) {
                say(format!(
                    "the relation {kind} of event {parent} to {} is not found by its sender",
                    row.event
                ));
            }
            if kind == "m.thread" {
                expected.newest.insert(parent, order);
                *expected.replies.entry((parent, row.sender)).or_default() += 1;
            } else if kind == "m.replace" {
                expected.edits.extend(self.edit(parent, row.event)?);
            }
            Ok(())
        })?;
        self.rows(&RELATIONS_BY, say, |say, (parent, sender, kind, order), (event,)| {
            let row = RELATIONS.get(&self.view, &(parent, kind.as_str(), order))?;
            if row.is_none_or(|row| row.event != event || row.sender != sender) {
                say(format!(
                    "user {sender} is said to relate {event} to event {parent} by {kind}, which they do not"
                ));
            }
            Ok(())
        })?;
        self.edits(say, expected.edits)?;
        self.threads(say, &expected.newest)?;
        self.replies(say, expected.replies)
    }

    /// The row of an edit, if it is valid.
    fn edit(&self, original: EventNid, edit: EventNid) -> Result<Option<(EventNid, u64, String)>> {
        let (Some(edit), Some(of)) = (self.event(edit)?, self.event(original)?) else {
            return Ok(None);
        };
        let header = &edit.header;
        Ok(replaces(&edit, &of).then(|| {
            let ts = header.origin_server_ts.0.into();
            (original, ts, header.id.to_string())
        }))
    }

    fn event(&self, nid: EventNid) -> Result<Option<Event>> {
        match EVENTS.get(&self.view, &(nid,)) {
            Ok(Some(row)) => row.into_parts(self.store).map(|(event, _)| Some(event)),
            // Said when the events were walked.
            Ok(None) | Err(Error::Corrupt { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn edits(
        &self,
        say: &mut dyn FnMut(Complaint),
        mut expected: BTreeSet<(EventNid, u64, String)>,
    ) -> Result<()> {
        self.rows(&EDITS, say, |say, key, (nid,)| {
            let row = EVENTS.get(&self.view, &(nid,))?;
            if !expected.remove(&key) || row.is_none_or(|row| *row.id != *key.2) {
                say(format!("{} is no valid edit of event {}", key.2, key.0));
            }
            Ok(())
        })?;
        for (original, _, id) in expected {
            say(format!("the edit {id} of event {original} is not listed"));
        }
        Ok(())
    }

    fn threads(
        &self,
        say: &mut dyn FnMut(Complaint),
        newest: &BTreeMap<EventNid, i64>,
    ) -> Result<()> {
        self.rows(&THREADS, say, |say, (room, order, root), ()| {
            if EVENTS.get(&self.view, &(root,))?.map(|row| row.room) != Some(room) {
                say(format!(
                    "thread {root} is listed at {order} in room {room}, which is not its own"
                ));
            }
            Ok(())
        })?;
        for (root, order) in newest {
            let row = EVENTS.get(&self.view, &(*root,))?;
            let Some(room) = row.map(|row| row.room) else {
                continue;
            };
            if !THREADS.contains(&self.view, &(room, *order, *root))? {
                say(format!("thread {root} of room {room} is not listed"));
            }
        }
        Ok(())
    }

    /// A number that has become zero may be left.
    fn replies(
        &self,
        say: &mut dyn FnMut(Complaint),
        mut expected: BTreeMap<(EventNid, UserNid), u64>,
    ) -> Result<()> {
        let mut totals: BTreeMap<EventNid, u64> = BTreeMap::new();
        for ((root, _), count) in &expected {
            *totals.entry(*root).or_default() += count;
        }
        self.rows(&THREAD_REPLIES, say, |say, (root,), (count,)| {
            let real = totals.remove(&root).unwrap_or_default();
            if count != real {
                say(format!(
                    "thread {root} counts {count} replies, but has {real}"
                ));
            }
            Ok(())
        })?;
        for root in totals.keys() {
            say(format!("the replies of thread {root} are not counted"));
        }
        self.rows(&THREAD_REPLIES_OF, say, |say, (root, user), (count,)| {
            let real = expected.remove(&(root, user)).unwrap_or_default();
            if count != real {
                say(format!(
                    "thread {root} counts {count} replies by user {user}, but has {real}"
                ));
            }
            Ok(())
        })?;
        for (root, user) in expected.keys() {
            say(format!(
                "the replies of user {user} in thread {root} are not counted"
            ));
        }
        Ok(())
    }
}
