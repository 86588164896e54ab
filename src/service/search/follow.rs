//! Brings the index up to date, in the background: a round takes what has come since the last one.
//!
//! A round follows about a second after a text has come, or at once if somebody searches. It is never longer ago than ten times
//! what the last one took, so that little of the machine goes into it; while nothing comes, nothing is done.

use std::{
    collections::BTreeSet,
    ops::Bound,
    sync::{Arc, Weak, atomic::Ordering},
    time::{Duration, Instant},
};

use ruma::OwnedEventId;

use super::{
    Search,
    index::{self, Broken, Entry, Index, Mark},
};
use crate::{
    error::{Error, Result},
    protocol::{
        ids::{EventNid, Position},
        searchable::{self, Key},
    },
    service::rooms::Stored,
    store::{
        self, View,
        schema::{EVENTS, SEARCH_AGAIN},
    },
};

/// How long what has come waits for more.
const PAUSE: Duration = Duration::from_secs(1);

/// The longest pause, however long a round took.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How many events of a long way are looked at in one step, after which it looks whether the node stops.
const STEP: usize = 1_000;

/// After how many steps the index is committed.
const STEPS: usize = 50;

/// How often a long way tells how far it is, and a busy node how it stands.
const REPORT: Duration = Duration::from_secs(10);
const REPORT_BUSY: Duration = Duration::from_secs(15 * 60);

/// How many rows of what was looked at again may be left to be removed.
const LEFT_ROWS: usize = 256;

/// How many rows are removed with one commit.
const REMOVED_ROWS: usize = 1_000;

/// From how many passed events on it is written down that there was nothing to be found.
const PASSED: usize = 1_000;

/// How often and how long whoever wrote the index before is waited for.
const TRIES: usize = 40;
const TRY: Duration = Duration::from_millis(50);

/// How far the follower has come.
#[derive(Default)]
pub(super) struct Progress {
    /// Up to here everything was looked at; none if that has to be found out.
    until: Option<Position>,
    /// Whether something may have come after that which was not noted.
    is_behind: bool,
    /// The newest event in the index.
    witness: Option<(EventNid, OwnedEventId)>,
    /// Rows of `SEARCH_AGAIN` that are done with.
    rows: usize,
    /// Entries since the last report.
    entries: u64,
    reported: Option<Instant>,
}

/// Follows until the node stops.
pub(super) async fn follow(search: Weak<Search>) {
    let Some(first) = search.upgrade() else {
        return;
    };
    let (clock, stop) = (first.parts.clock.clone(), first.parts.stop.clone());
    let (texts, asked) = (first.parts.store.texts().clone(), first.asked.clone());
    drop(first);
    let mut failures = 0_u32;
    loop {
        // Not held while it waits: the node may stop.
        let Some(now) = search.upgrade() else {
            return;
        };
        let began = clock.instant();
        let outcome = tokio::task::spawn_blocking(move || now.round()).await;
        let outcome = outcome.unwrap_or_else(|error| {
            if let Some(now) = search.upgrade() {
                // The engine takes files for granted.
                now.is_doubtful.store(true, Ordering::Release);
            }
            Err(Error::Internal(format!("the index broke off: {error}")))
        });
        let took = clock.instant().saturating_duration_since(began);
        let mut pause = (took * 10).clamp(PAUSE, LONGEST_PAUSE);
        match outcome {
            Ok(()) => {
                failures = 0;
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = texts.wait() => {}
                    () = asked.notified() => pause = Duration::ZERO,
                }
            }
            Err(error) => {
                failures += 1;
                if failures == 1 {
                    tracing::error!(%error, "the index of messages could not be brought up to date; it is tried again");
                }
                pause = LONGEST_PAUSE.min(PAUSE * failures);
            }
        }
        if !pause.is_zero() {
            tokio::select! {
                () = stop.cancelled() => return,
                () = clock.sleep(pause) => {}
                () = asked.notified() => {}
            }
        }
    }
}

impl Search {
    /// Brings the index up to date with what is visible now.
    pub(super) fn round(&self) -> Result<()> {
        let mut progress = self.progress.lock();
        if self.anew.swap(false, Ordering::AcqRel) {
            self.forget(&mut progress, "as it was asked for")?;
        }
        if self.is_doubtful.swap(false, Ordering::AcqRel) {
            self.close(&mut progress);
        }
        let outcome = self.advance(&mut progress);
        outcome.map_err(|failure| {
            // What was taken is found again by walking.
            progress.is_behind = true;
            match failure {
                Failure::Index(broken) => {
                    // It is opened again, and so looked through.
                    self.close(&mut progress);
                    Error::Internal(format!("the index of messages: {broken}"))
                }
                Failure::Node(error) => error,
            }
        })
    }

    fn advance(&self, progress: &mut Progress) -> Result<(), Failure> {
        let start = match progress.until {
            Some(until) => until,
            None => self.open(progress)?,
        };
        let texts = self.parts.store.texts().take();
        progress.is_behind |= texts.incomplete;
        let view = self.parts.store.view();
        if progress.is_behind {
            self.walk(progress, start, view.position())?;
        } else if !texts.events.is_empty() {
            let mut round = Round::new(self, &view, start);
            round.look_at(&texts.events, Position(u64::MAX), progress)?;
            self.commit(progress, texts.until.max(start))?;
        }
        let until = progress.until.unwrap_or_default();
        self.seen.store(until.0, Ordering::Release);
        self.done.send_replace(until);
        if progress.rows > LEFT_ROWS {
            self.remove_rows(until)?;
            progress.rows = 0;
        }
        self.report(progress, false);
        Ok(())
    }

    /// Finds out where to go on: the position up to which the index is complete.
    fn open(&self, progress: &mut Progress) -> Result<Position, Failure> {
        let mut found = Index::open(&self.directory);
        for _ in 0..TRIES {
            if !matches!(found, Err(Broken::Busy)) || self.parts.stop.is_cancelled() {
                break;
            }
            // The one before in this process is just ending.
            std::thread::sleep(TRY);
            found = Index::open(&self.directory);
        }
        let why = match found {
            Ok(None) => None,
            Ok(Some((index, mark))) => {
                if self.is_of_this_store(&mark)? {
                    progress.witness = mark.witness;
                    progress.until = Some(mark.until);
                    progress.is_behind = true;
                    *self.index.write() = Some(Arc::new(index));
                    return Ok(mark.until);
                }
                Some("it belongs to another store, or to another time of it".to_owned())
            }
            Err(Broken::Busy) => return Err(Broken::Busy.into()),
            Err(broken) => Some(broken.to_string()),
        };
        if let Some(why) = why {
            self.forget(progress, &why)?;
        }
        progress.until = Some(Position(0));
        progress.is_behind = true;
        Ok(Position(0))
    }

    /// Lets the index go; the next step opens it again.
    fn close(&self, progress: &mut Progress) {
        *self.index.write() = None;
        *progress = Progress::default();
    }

    fn is_of_this_store(&self, mark: &Mark) -> Result<bool> {
        let view = self.parts.store.view();
        if mark.until > view.position() {
            return Ok(false);
        }
        let Some((event, id)) = &mark.witness else {
            return Ok(true);
        };
        let row = EVENTS.get(&view, &(*event,))?;
        Ok(row.is_some_and(|row| row.id == *id))
    }

    /// Removes the index; the next step begins anew.
    fn forget(&self, progress: &mut Progress, why: &str) -> Result<()> {
        tracing::warn!("the index of messages is made anew: {why}");
        self.close(progress);
        let removed = index::remove(&self.directory);
        let path = self.directory.display();
        removed.map_err(|e| Error::Internal(format!("{path} could not be removed: {e}")))?;
        self.seen.store(0, Ordering::Release);
        self.done.send_replace(Position(0));
        let mut goal = self.goal.lock();
        *goal = goal.max(self.parts.store.view().position());
        Ok(())
    }

    /// Goes through all events after a position, up to another one.
    fn walk(&self, progress: &mut Progress, start: Position, end: Position) -> Result<(), Failure> {
        let mut reported = self.parts.clock.instant();
        // Whatever is read from here on is read as it is then, or later.
        let first = self.parts.store.view().position();
        let (mut seen, mut passed) = (start, 0);
        while seen < end {
            // A new one for each chunk: one that is kept for long keeps the store from tidying up.
            let view = self.parts.store.view();
            let mut round = Round::new(self, &view, seen);
            round.edits_known = (start, first);
            let bounds = (
                Bound::Excluded((EventNid(seen.0),)),
                Bound::Included((EventNid(end.0),)),
            );
            let mut rows = EVENTS.range(&view, &(), bounds);
            for _ in 0..STEPS {
                let (mut texts, mut step) = (Vec::new(), 0);
                for row in rows.by_ref().take(STEP) {
                    let ((event,), row) = row?;
                    step += 1;
                    seen = Position(event.0);
                    let (event_type, state_key) = row.kind();
                    if row.facts.order.is_some() && Key::of(event_type, state_key).is_some() {
                        texts.push(event);
                    }
                }
                passed += step;
                if step < STEP {
                    seen = end;
                }
                round.look_at(&texts, seen, progress)?;
                self.seen.store(seen.0, Ordering::Release);
                if self.parts.stop.is_cancelled() {
                    return Ok(());
                }
                if seen == end {
                    break;
                }
            }
            if seen == end {
                self.look_again(&view, end, progress)?;
            }
            if passed >= PASSED {
                // So that it is not passed again.
                self.index()?;
            }
            self.commit(progress, seen)?;
            let now = self.parts.clock.instant();
            if seen < end && now.saturating_duration_since(reported) >= REPORT {
                reported = now;
                let percent = (seen.0 - start.0) * 100 / (end.0 - start.0).max(1);
                tracing::info!(percent, "the index of messages is being made");
            }
        }
        progress.until = Some(end);
        progress.is_behind = false;
        if progress.rows > 0 {
            self.remove_rows(end)?;
            progress.rows = 0;
        }
        if passed >= PASSED {
            self.report(progress, true);
        }
        Ok(())
    }

    /// Looks at the events that have changed after they were stored.
    fn look_again(
        &self,
        view: &View,
        end: Position,
        progress: &mut Progress,
    ) -> Result<(), Failure> {
        let mut round = Round::new(self, view, end);
        let mut rows = SEARCH_AGAIN.scan(view, &());
        loop {
            let mut events = Vec::new();
            for row in rows.by_ref().take(STEP) {
                let ((position, event), ()) = row?;
                if position <= end {
                    events.push(event);
                }
            }
            if events.is_empty() {
                return Ok(());
            }
            round.look_at(&events, end, progress)?;
        }
    }

    /// Makes found what was looked at, up to this position.
    fn commit(&self, progress: &mut Progress, until: Position) -> Result<(), Failure> {
        let index = self.index.read().clone();
        if let Some(index) = index {
            index.commit(&Mark::new(until, progress.witness.clone()))?;
        }
        progress.until = Some(until);
        Ok(())
    }

    /// The index, made if there is none yet.
    fn index(&self) -> Result<Arc<Index>, Failure> {
        if let Some(index) = &*self.index.read() {
            return Ok(index.clone());
        }
        let index = Arc::new(Index::create(&self.directory)?);
        *self.index.write() = Some(index.clone());
        Ok(index)
    }

    /// Removes the rows of what was looked at again up to a position.
    fn remove_rows(&self, until: Position) -> Result<()> {
        let view = self.parts.store.view();
        let mut rows = SEARCH_AGAIN.scan(&view, &());
        loop {
            let mut keys = Vec::new();
            for row in rows.by_ref().take(REMOVED_ROWS) {
                let (key, ()) = row?;
                if key.0 <= until {
                    keys.push(key);
                }
            }
            if keys.is_empty() {
                return Ok(());
            }
            let _not_awaited = self.parts.store.commit(|batch| {
                for key in &keys {
                    SEARCH_AGAIN.delete(batch, key);
                }
                Ok(())
            })?;
        }
    }

    /// Tells how it stands, now and then.
    fn report(&self, progress: &mut Progress, at_once: bool) {
        let now = self.parts.clock.instant();
        let is_due = progress
            .reported
            .is_none_or(|last| now.saturating_duration_since(last) >= REPORT_BUSY);
        if progress.entries == 0 || !(is_due || at_once) {
            return;
        }
        let Some(index) = self.index.read().clone() else {
            return;
        };
        let until = progress.until.unwrap_or_default();
        let behind = self.wanted().0.saturating_sub(until.0);
        tracing::info!(
            new = progress.entries,
            events = index.len(),
            kibibytes = index.size() >> 10,
            behind,
            "messages that can be found"
        );
        progress.entries = 0;
        progress.reported = Some(now);
    }
}

/// Why a round has failed.
pub(super) enum Failure {
    Index(Broken),
    Node(Error),
}

impl From<Broken> for Failure {
    fn from(broken: Broken) -> Self {
        Self::Index(broken)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Node(error)
    }
}

impl From<store::Error> for Failure {
    fn from(error: store::Error) -> Self {
        Self::Node(error.into())
    }
}

/// A look at some events, as they are at one moment.
struct Round<'s> {
    search: &'s Search,
    view: &'s View,
    /// What is not after this was looked at before, so there may be something of it in the index.
    passed: Position,
    /// Whatever lies after the first of these is looked at when edits up to the second are known.
    edits_known: (Position, Position),
}

impl<'s> Round<'s> {
    fn new(search: &'s Search, view: &'s View, passed: Position) -> Self {
        Self {
            search,
            view,
            passed,
            edits_known: (passed, Position(0)),
        }
    }

    /// Makes the index say of these events, and of those that they edit, what is to be found of them now. They are all that
    /// there are up to a position.
    fn look_at(
        &mut self,
        events: &[EventNid],
        until: Position,
        progress: &mut Progress,
    ) -> Result<(), Failure> {
        let mut all = BTreeSet::new();
        for event in events {
            if event.0 <= self.passed.0 {
                progress.rows += 1;
            }
            // It is in a commit that is visible; but an index is no reason to stop.
            let Some(stored) = self.search.parts.rooms.event_if_there(self.view, *event)? else {
                continue;
            };
            let Some(edited) = self.edited(&stored)? else {
                all.insert(*event);
                continue;
            };
            let (since, known) = self.edits_known;
            let is_known = event.0 <= known.0 && edited.0 > since.0;
            if !is_known && edited.0 <= until.0 {
                all.insert(edited);
            }
        }
        for event in all {
            self.refresh(event, progress)?;
        }
        self.passed = self.passed.max(until);
        Ok(())
    }

    /// The event in the place of which this one is told, if it is an edit.
    fn edited(&self, stored: &Stored) -> Result<Option<EventNid>> {
        let header = &stored.event.header;
        if !searchable::is_edit(header) {
            return Ok(None);
        }
        let rooms = &self.search.parts.rooms;
        let Some(relation) = &header.relation else {
            return Ok(None);
        };
        let edited = rooms.find_event(self.view, &relation.event_id)?;
        let edited = edited.filter(|edited| edited.event.header.room_id == header.room_id);
        Ok(Some(edited.map_or(stored.nid, |edited| edited.nid)))
    }

    fn refresh(&self, event: EventNid, progress: &mut Progress) -> Result<(), Failure> {
        let may_be_there = event.0 <= self.passed.0;
        match self.entry(event)? {
            Some((entry, id)) => {
                self.search.index()?.put(&entry, may_be_there)?;
                progress.entries += 1;
                if progress
                    .witness
                    .as_ref()
                    .is_none_or(|(last, _)| *last < event)
                {
                    progress.witness = Some((event, id));
                }
            }
            None if may_be_there => {
                if let Some(index) = &*self.search.index.read() {
                    index.remove(event);
                }
            }
            None => {}
        }
        Ok(())
    }

    /// What is to be found of an event now.
    fn entry(&self, event: EventNid) -> Result<Option<(Entry, OwnedEventId)>> {
        let (rooms, store) = (&self.search.parts.rooms, &self.search.parts.store);
        let Some(stored) = rooms.event_if_there(self.view, event)? else {
            return Ok(None);
        };
        let header = &stored.event.header;
        let (Some(key), Some(order)) = (Key::of_event(header), stored.facts.order) else {
            return Ok(None);
        };
        if stored.facts.redacted_by.is_some() || searchable::is_edit(header) {
            return Ok(None);
        }
        let edit = match key {
            Key::Body => rooms.newest_edit(self.view, stored.nid)?,
            Key::Name | Key::Topic => None,
        };
        let text = match &edit {
            Some(edit) => searchable::new_text(&edit.event),
            None => searchable::text(&stored.event, key),
        };
        let Some(text) = text else {
            return Ok(None);
        };
        let room = store.find_room(&header.room_id)?;
        let sender = store.find_user(&header.sender)?;
        let (Some(room), Some(sender)) = (room, sender) else {
            return Ok(None);
        };
        let entry = Entry {
            event,
            room,
            sender,
            key,
            has_url: searchable::has_url(&stored.event),
            order,
            sent: header.origin_server_ts.get().into(),
            edit: edit.map(|edit| edit.nid),
            text,
        };
        Ok(Some((entry, header.id.clone())))
    }
}
