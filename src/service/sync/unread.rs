//! How many unread events a room holds for a user, in all and by thread.
//!
//! Nothing is counted when an event is written: a room with thousands of members would pay for each of them. Instead
//! each user's counts are a fold over the timeline, which is carried on when they sync, and written down now and then
//! so that nobody's fold begins at the beginning again. A receipt makes only what lies behind it be counted anew.

use std::{cell::Cell, collections::HashSet, ops::Bound, sync::Arc};

use quick_cache::sync::Cache;
use ruma::OwnedEventId;
use serde::Deserialize;

use super::{Sync, json::Object, v3::RoomPart};
use crate::{
    error::Result,
    protocol::{
        ids::{EventNid, Position, RoomNid, UserNid},
        push::{self, Occasion, Rules},
    },
    service::rooms::Stored,
    store::{
        self,
        schema::{Counts, ReceiptRow, TIMELINE, UNREAD, UnreadRow},
    },
};

/// How many folds are kept in memory.
const REMEMBERED: usize = 50_000;

/// A fold is written down when it has gone this many events further.
const WRITE_AFTER: u64 = 100;

/// How many events are read at once.
const CHUNK: usize = 256;

/// Further back than this many events, what was redacted stays counted until the next receipt: who reads nothing for
/// years must not have it all counted again for every redaction.
const MAX_RECOUNT: u64 = 1000;

pub(super) struct Unread(Cache<(UserNid, RoomNid), Arc<Fold>>);

/// Counts, and how many events they have gone beyond what is stored.
#[derive(Clone, Default)]
struct Fold {
    row: UnreadRow,
    unwritten: u64,
}

/// Which counts begin anew, and from where in the timeline.
struct Anew {
    everything: bool,
    main: bool,
    threads: HashSet<OwnedEventId>,
    from: i64,
    /// With more events than this to look at, the counts stay as they are.
    at_most: u64,
}

/// How far the user has read.
pub(super) struct Read<'r> {
    pub(super) receipts: &'r [ReceiptRow],
    /// The place where they came in.
    pub(super) joined: i64,
}

#[derive(Deserialize)]
struct Named {
    displayname: Option<String>,
}

impl Unread {
    pub(super) fn new() -> Self {
        Self(Cache::new(REMEMBERED))
    }
}

impl Sync {
    /// Writes the counts of a room that the user has joined.
    pub(super) fn write_unread(&self, part: &RoomPart<'_>, object: &mut Object<'_>) -> Result<()> {
        let row = self.unread_counts(part)?;
        let by_thread = part
            .asking
            .request
            .filter
            .room
            .timeline
            .unread_thread_notifications;
        let total = if by_thread { row.main } else { total(&row) };
        object.json("unread_notifications", &json(total));
        if by_thread && !row.threads.is_empty() {
            let threads = row
                .threads
                .iter()
                .map(|(root, counts)| (root.to_string(), json(*counts)));
            object.object("unread_thread_notifications", &threads.collect::<Vec<_>>());
        }
        Ok(())
    }

    /// How much is unread in a room that the user has joined, in all.
    pub(super) fn unread(&self, part: &RoomPart<'_>) -> Result<Counts> {
        Ok(total(&self.unread_counts(part)?))
    }

    fn unread_counts(&self, part: &RoomPart<'_>) -> Result<UnreadRow> {
        let key = (part.asking.requester.nid, part.room);
        let view = part.asking.view;
        let known = match self.unread.0.get(&key) {
            Some(fold) => Some((*fold).clone()),
            None => UNREAD
                .get(view, &key)?
                .map(|row| Fold { row, unwritten: 0 }),
        };
        let joined = part.member.since.live_order();
        let mut fold = known
            .filter(|fold| fold.row.counted >= joined)
            .unwrap_or_else(|| Fold {
                row: UnreadRow {
                    counted: joined,
                    ..UnreadRow::default()
                },
                unwritten: WRITE_AFTER,
            });
        if fold.row.as_of >= view.position() {
            return Ok(fold.row);
        }

        let receipts = self
            .receipts
            .of(view, part.room, part.asking.requester.nid)?;
        let read = Read {
            receipts: &receipts,
            joined,
        };
        let row = &mut fold.row;
        self.begin_anew(part, &read, read.since(row.as_of), row)?;
        let from = row.counted;
        row.counted = view.position().live_order();
        let everything = Anew {
            everything: true,
            from,
            ..Anew::none()
        };
        let (looked_at, mut emptied) = self.count(part, &read, &everything, row)?;
        emptied.at_most = MAX_RECOUNT;
        self.begin_anew(part, &read, emptied, row)?;
        row.as_of = view.position();
        fold.unwritten += looked_at;
        if fold.unwritten >= WRITE_AFTER {
            let row = &fold.row;
            // It is derived from what is durable, so nobody needs to wait for it.
            let _not_awaited = self.store.commit(|batch| {
                UNREAD.put(batch, &key, row);
                Ok(())
            })?;
            fold.unwritten = 0;
        }
        let row = fold.row.clone();
        self.unread.0.insert(key, Arc::new(fold));
        Ok(row)
    }

    /// Counts again what is not as it was when it was counted.
    fn begin_anew(
        &self,
        part: &RoomPart<'_>,
        read: &Read<'_>,
        mut anew: Anew,
        row: &mut UnreadRow,
    ) -> Result<()> {
        // Receipts and redactions only take away, so what is nothing stays nothing and is not looked at.
        let has_main = row.main != Counts::default();
        anew.main = (anew.main || anew.everything) && has_main;
        let counted = row.threads.iter().map(|(thread, _)| thread);
        anew.threads = counted
            .filter(|thread| anew.has(Some(thread)))
            .cloned()
            .collect();
        anew.everything = false;
        if !anew.main && anew.threads.is_empty() {
            return Ok(());
        }
        let before = row.clone();
        if anew.main {
            row.main = Counts::default();
        }
        row.threads.retain(|(thread, _)| !anew.has(Some(thread)));
        if anew.from < row.counted {
            let (looked_at, _) = self.count(part, read, &anew, row)?;
            if looked_at > anew.at_most {
                *row = before;
            }
        }
        Ok(())
    }

    /// Adds the events of the timeline to the counts that begin anew. Says how many it has looked at, and which earlier
    /// counts hold events that were redacted since.
    fn count(
        &self,
        part: &RoomPart<'_>,
        read: &Read<'_>,
        anew: &Anew,
        row: &mut UnreadRow,
    ) -> Result<(u64, Anew)> {
        let view = part.asking.view;
        let main_read = read.upto("main");
        let rules = self.accounts.push_rules(&part.asking.requester.user_id)?;
        let bounds = (
            Bound::Excluded((part.room, anew.from)),
            Bound::Included((part.room, row.counted)),
        );
        let mut rows = TIMELINE.range(view, &(part.room,), bounds);
        let (mut looked_at, mut emptied) = (0, Anew::none());
        loop {
            let chunk: Vec<_> = rows.by_ref().take(CHUNK).collect::<store::Result<_>>()?;
            if chunk.is_empty() {
                return Ok((looked_at, emptied));
            }
            let nids: Vec<EventNid> = chunk.iter().map(|(_, (nid,))| *nid).collect();
            for (((_, order), _), stored) in chunk.iter().zip(self.rooms.events(view, &nids)?) {
                looked_at += 1;
                if looked_at > anew.at_most {
                    return Ok((looked_at, emptied));
                }
                if let Some(target) = &stored.event.header.redacts
                    && let Some(target) = self.rooms.find_event(view, target)?
                    && let Some(at) = target.facts.order.filter(|at| *at <= anew.from)
                {
                    emptied.add(read, target.facts.thread.as_ref(), at);
                }
                let thread = stored.facts.thread.as_ref();
                if !anew.has(thread) {
                    continue;
                }
                if stored.event.header.sender == part.asking.requester.user_id {
                    // Whoever speaks has read what was said before. See "Receiving notifications".
                    if !stored.event.is_state() {
                        reset(row, thread);
                    }
                } else if *order > thread.map_or(main_read, |thread| read.upto(thread.as_str()))
                    && part.sight.sees(&stored)?.is_some()
                {
                    self.add(part, &rules, &stored, row)?;
                }
            }
        }
    }

    fn add(
        &self,
        part: &RoomPart<'_>,
        rules: &Rules,
        stored: &Stored,
        row: &mut UnreadRow,
    ) -> Result<()> {
        let outcome = self.outcome(part, rules, stored)?;
        let Some(outcome) = outcome.filter(|outcome| outcome.notify) else {
            return Ok(());
        };
        let counts = match &stored.facts.thread {
            None => &mut row.main,
            Some(thread) => {
                let index = row.threads.iter().position(|(root, _)| root == thread);
                let index = index.unwrap_or_else(|| {
                    row.threads.push((thread.clone(), Counts::default()));
                    row.threads.len() - 1
                });
                &mut row.threads[index].1
            }
        };
        counts.notifications += 1;
        counts.highlights += u64::from(outcome.highlight);
        Ok(())
    }

    /// What an event means to the user by their push rules; nothing, if it is not to be looked at.
    pub(super) fn outcome<'r>(
        &self,
        part: &RoomPart<'_>,
        rules: &'r Rules,
        stored: &Stored,
    ) -> Result<Option<push::Outcome<'r>>> {
        let flags = stored.event.header.flags;
        if flags.rejected || flags.soft_failed || stored.facts.redacted_by.is_some() {
            return Ok(None);
        }
        let occasion = Occasion::new(
            &stored.event,
            part.head.joined,
            self.may_notify_room(part, stored)?,
        );
        // The rules ask by a closure that can not fail, so a failure of the store is kept aside.
        let failure = Cell::new(None);
        let name = || match self.display_name(part) {
            Ok(name) => name.unwrap_or_default(),
            Err(error) => {
                failure.set(Some(error));
                String::new()
            }
        };
        let outcome = occasion.evaluate(rules, &part.asking.requester.user_id, name);
        if let Some(error) = failure.into_inner() {
            return Err(error);
        }
        Ok(Some(outcome))
    }

    /// Whether the sender may notify everybody; looked up only for events that try to.
    fn may_notify_room(&self, part: &RoomPart<'_>, stored: &Stored) -> Result<bool> {
        let content = stored.event.content_json();
        if !content.contains("@room") && !content.contains("\"room\"") {
            return Ok(false);
        }
        let Some(rules) = crate::protocol::version::rules(&part.head.version) else {
            return Ok(false);
        };
        let state = self.store.state(part.head.chain.tip)?;
        let power = self.rooms.power_levels(part.asking.view, &state, rules)?;
        Ok(power.may_notify_room(&stored.event.header.sender))
    }

    fn display_name(&self, part: &RoomPart<'_>) -> Result<Option<String>> {
        let member = self.rooms.event(part.asking.view, part.member.event)?;
        Ok(member
            .event
            .content_as::<Named>()
            .ok()
            .and_then(|named| named.displayname))
    }
}

impl Anew {
    fn none() -> Self {
        Self {
            everything: false,
            main: false,
            threads: HashSet::new(),
            from: i64::MAX,
            at_most: u64::MAX,
        }
    }

    fn has(&self, thread: Option<&OwnedEventId>) -> bool {
        self.everything || thread.map_or(self.main, |thread| self.threads.contains(thread))
    }

    /// Adds the thread of an event that counts no more, unless it was read before.
    fn add(&mut self, read: &Read<'_>, thread: Option<&OwnedEventId>, at: i64) {
        let upto = read.upto(thread.map_or("main", |thread| thread.as_str()));
        if at <= upto {
            return;
        }
        self.from = self.from.min(upto);
        match thread {
            None => self.main = true,
            Some(thread) => drop(self.threads.insert(thread.clone())),
        }
    }
}

impl Read<'_> {
    /// The place up to which the events of a thread are read; `main` is what is outside of threads.
    pub(super) fn upto(&self, thread: &str) -> i64 {
        let covering = self
            .receipts
            .iter()
            .filter(|receipt| receipt.thread.is_empty() || receipt.thread == thread);
        let newest = covering.map(|receipt| receipt.order).max();
        newest.map_or(self.joined, |order| order.max(self.joined))
    }

    /// What the receipts after this position touch.
    fn since(&self, as_of: Position) -> Anew {
        let mut anew = Anew::none();
        for receipt in self
            .receipts
            .iter()
            .filter(|receipt| receipt.position > as_of)
        {
            anew.from = anew.from.min(receipt.order);
            match (&*receipt.thread, OwnedEventId::try_from(&*receipt.thread)) {
                ("", _) => anew.everything = true,
                ("main", _) => anew.main = true,
                (_, Ok(thread)) => drop(anew.threads.insert(thread)),
                _ => {}
            }
        }
        anew
    }
}

/// Nothing in this thread, or outside of threads, is unread any more.
fn reset(row: &mut UnreadRow, thread: Option<&OwnedEventId>) {
    match thread {
        None => row.main = Counts::default(),
        Some(thread) => row.threads.retain(|(root, _)| root != thread),
    }
}

/// In and outside of threads.
fn total(row: &UnreadRow) -> Counts {
    let mut total = row.main;
    for (_, counts) in &row.threads {
        total.notifications += counts.notifications;
        total.highlights += counts.highlights;
    }
    total
}

fn json(counts: Counts) -> String {
    let mut out = String::new();
    let mut object = Object::new(&mut out);
    object.json("highlight_count", &counts.highlights.to_string());
    object.json("notification_count", &counts.notifications.to_string());
    object.finish();
    out
}
