//! Committing: one lock hands out positions, one thread makes them durable and then visible.
//!
//! With `sync = always` nothing is seen before it is durable. The syncer notes position and snapshot under the commit
//! lock, releases it, syncs the log, and then publishes that pair: one fsync serves everyone who waits, and new
//! commits go on meanwhile.

use std::{
    sync::{Arc, atomic::Ordering},
    thread::JoinHandle,
};

use super::{
    Error, Result, Store,
    batch::{Batch, Touch},
    open::{Gate, INTERVAL, Inner, Sync},
    outgoing::Note,
    schema::META,
    view::{OwnedSnapshot, Published},
};
use crate::protocol::ids::{EventNid, Position, RoomNid};

/// Positions are reserved in steps of this many, so that a volatile position costs no row.
const CEILING_STEP: u64 = 65_536;

/// What the commit lock guards.
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts, not one state"
)]
pub(super) struct Commits {
    /// The next position to hand out.
    next: u64,
    /// Positions below this are reserved on disk.
    ceiling: u64,
    /// Whether rows were written since the last sync of the log.
    dirty: bool,
    /// Whether positions were handed out since the last publish.
    unpublished: bool,
    touches: Vec<(Position, Touch)>,
    outgoing: Vec<(Position, Note)>,
    changed: Vec<RoomNid>,
    texts: Vec<EventNid>,
    pub(super) closing: bool,
    /// A failed sync of the log: nothing can be promised any more.
    failed: bool,
}

impl Commits {
    pub(super) fn starting_at(position: u64) -> Self {
        Self {
            next: position + 1,
            ceiling: position,
            dirty: false,
            unpublished: false,
            touches: Vec::new(),
            outgoing: Vec::new(),
            changed: Vec::new(),
            texts: Vec::new(),
            closing: false,
            failed: false,
        }
    }

    pub(super) fn position(&self) -> Position {
        Position(self.next - 1)
    }
}

/// What a commit gave.
#[derive(Clone, Copy, Debug)]
#[must_use = "an answer must not be given before the commit is durable"]
pub struct Committed<R> {
    /// The last position that the commit drew; one is drawn for it if it drew none.
    pub position: Position,
    /// What the closure returned.
    pub value: R,
}

impl Store {
    /// Runs `write` under the commit lock and writes what it put into the batch, all or nothing.
    ///
    /// The closure should only encode; what it reads delays everyone. When it fails, nothing is written and no
    /// position is used.
    pub fn commit<R>(
        &self,
        write: impl FnOnce(&mut Batch<'_>) -> Result<R>,
    ) -> Result<Committed<R>> {
        let inner = &self.inner;
        let mut commits = inner.gate.commits.lock();
        if commits.closing || commits.failed {
            return Err(Error::Closed);
        }
        let mut batch = Batch::new(inner, commits.next);
        let value = write(&mut batch)?;
        if batch.next == commits.next {
            // Rows without a position of their own could not be waited for.
            batch.position();
        }
        if batch.next > commits.ceiling {
            let ceiling = batch.next + CEILING_STEP;
            META.put(&mut batch, &("ceiling",), &(ceiling,));
            commits.ceiling = ceiling;
        }
        let Batch {
            writes,
            next,
            touches,
            outgoing,
            changed,
            texts,
            ..
        } = batch;
        if !writes.is_empty() {
            inner.db.write(writes).map_err(|source| Error::Engine {
                doing: "writing",
                source,
            })?;
            commits.dirty = true;
        }
        commits.next = next;
        inner.committed.store(next - 1, Ordering::Release);
        commits.touches.extend(touches);
        commits.outgoing.extend(outgoing);
        commits.changed.extend(changed);
        commits.texts.extend(texts);
        commits.unpublished = true;
        let committed = Committed {
            position: commits.position(),
            value,
        };
        if inner.sync == Sync::Always {
            drop(commits);
        } else {
            publish(inner, &mut commits);
        }
        inner.gate.unsynced.notify_one();
        Ok(committed)
    }

    /// Waits until everything up to `position` is durable and visible.
    ///
    /// # Errors
    /// When the log could not be synced; the node must then stop.
    pub async fn durable(&self, position: Position) -> Result<()> {
        let mut durable = self.inner.durable.subscribe();
        let reached = durable.wait_for(|&published| published >= position.0).await;
        match reached {
            Ok(published) if *published != u64::MAX => Ok(()),
            _ => Err(Error::Closed),
        }
    }
}

/// Makes the present moment visible: changes are recorded before it, waiters woken after it.
fn publish(inner: &Arc<Inner>, commits: &mut Commits) {
    let position = commits.position();
    let touches = std::mem::take(&mut commits.touches);
    let outgoing = std::mem::take(&mut commits.outgoing);
    let changed = std::mem::take(&mut commits.changed);
    let texts = std::mem::take(&mut commits.texts);
    let snapshot = OwnedSnapshot::take(inner.db.clone());
    commits.unpublished = false;
    let published = Published { position, snapshot };
    show(inner, published, &touches, outgoing, &changed, texts);
}

fn show(
    inner: &Inner,
    published: Published,
    touches: &[(Position, Touch)],
    outgoing: Vec<(Position, Note)>,
    changed: &[RoomNid],
    texts: Vec<EventNid>,
) {
    let position = published.position;
    inner.notify.publish(touches, || {
        inner.set_published(published);
        // Whoever waited for their own change finds it in the directory.
        inner.changed.publish(changed);
        // So that a search after that finds it.
        inner.texts.publish(position, texts);
        // Whoever waits for an answer is woken before the many who wait for news.
        inner.durable.send_replace(position.0);
    });
    inner.outgoing.publish(outgoing);
}

/// Starts the thread that makes commits durable; it ends when the store is closed or dropped.
pub(super) fn start_syncer(inner: &Arc<Inner>) -> JoinHandle<()> {
    let (gate, weak) = (inner.gate.clone(), Arc::downgrade(inner));
    std::thread::Builder::new()
        .name("store-sync".to_owned())
        .spawn(move || {
            while wait(&gate) {
                let Some(inner) = weak.upgrade() else {
                    return;
                };
                if !sync_once(&inner) {
                    return;
                }
                let pause = inner.sync == Sync::Interval;
                drop(inner);
                if pause {
                    std::thread::sleep(INTERVAL);
                }
            }
        })
        .expect("the operating system gives a thread")
}

/// Waits until there is something to do; false when the store closes with nothing left.
fn wait(gate: &Gate) -> bool {
    let mut commits = gate.commits.lock();
    while !commits.dirty && !commits.unpublished {
        if commits.closing {
            return false;
        }
        gate.unsynced.wait(&mut commits);
    }
    true
}

/// One sync; false when the disk fails.
fn sync_once(inner: &Arc<Inner>) -> bool {
    let mut commits = inner.gate.commits.lock();
    let dirty = std::mem::take(&mut commits.dirty);
    commits.unpublished = false;
    if inner.sync != Sync::Always {
        drop(commits);
        if inner.sync == Sync::Interval
            && dirty
            && let Err(error) = inner.db.flush_wal(true)
        {
            tracing::error!(%error, "the log could not be synced");
        }
        return true;
    }
    let position = commits.position();
    let touches = std::mem::take(&mut commits.touches);
    let outgoing = std::mem::take(&mut commits.outgoing);
    let changed = std::mem::take(&mut commits.changed);
    let texts = std::mem::take(&mut commits.texts);
    let snapshot = OwnedSnapshot::take(inner.db.clone());
    drop(commits);
    if dirty && let Err(error) = inner.db.flush_wal(true) {
        tracing::error!(%error, "the log could not be synced: the disk is full or broken; restart the node");
        inner.gate.commits.lock().failed = true;
        inner.durable.send_replace(u64::MAX);
        return false;
    }
    let published = Published { position, snapshot };
    show(inner, published, &touches, outgoing, &changed, texts);
    true
}
