//! A `View`: one moment of the database, with the exact position that belongs to it.

use std::sync::Arc;

use rocksdb::{DB, DBPinnableSlice, DBRawIterator, ReadOptions, Snapshot};
use self_cell::self_cell;

use super::{Error, Result, Store, open::Inner};
use crate::protocol::ids::Position;

/// An engine snapshot and the options that make reads use it.
pub(super) struct Pinned<'db> {
    snapshot: Snapshot<'db>,
    options: ReadOptions,
}

self_cell!(
    /// A snapshot that keeps its database open.
    pub(super) struct OwnedSnapshot {
        owner: Arc<DB>,
        #[covariant]
        dependent: Pinned,
    }
);

impl OwnedSnapshot {
    pub(super) fn take(db: Arc<DB>) -> Self {
        Self::new(db, |db| {
            let snapshot = db.snapshot();
            let mut options = ReadOptions::default();
            options.set_snapshot(&snapshot);
            Pinned { snapshot, options }
        })
    }
}

/// A position and the database as it was there; shared by everyone who reads until the next publish.
pub(super) struct Published {
    pub(super) position: Position,
    pub(super) snapshot: OwnedSnapshot,
}

/// One moment of the database.
///
/// [`Store::view`] gives the last durable moment; [`Store::latest`] reads whatever was written last, and is meant for
/// whoever holds the lock of the rows' room.
#[derive(Clone)]
pub struct View {
    inner: Arc<Inner>,
    at: Option<Arc<Published>>,
    position: Position,
}

impl Store {
    /// The last moment that is known to be durable: no row in it is newer than its position.
    #[must_use]
    pub fn view(&self) -> View {
        let at = self.inner.published();
        View {
            inner: self.inner.clone(),
            position: at.position,
            at: Some(at),
        }
    }

    /// This moment, durable or not, which commits must wait for.
    pub(super) fn present(&self) -> View {
        let commits = self.inner.gate.commits.lock();
        let position = commits.position();
        let snapshot = OwnedSnapshot::take(self.inner.db.clone());
        View {
            inner: self.inner.clone(),
            position,
            at: Some(Arc::new(Published { position, snapshot })),
        }
    }

    /// Everything written so far, durable or not.
    #[must_use]
    pub fn latest(&self) -> View {
        View {
            inner: self.inner.clone(),
            position: self.inner.committed(),
            at: None,
        }
    }
}

impl View {
    /// The position of this moment.
    #[must_use]
    pub fn position(&self) -> Position {
        self.position
    }

    /// The store that this is a view of.
    #[must_use]
    pub fn store(&self) -> Store {
        Store {
            inner: self.inner.clone(),
        }
    }

    pub(super) fn get(
        &self,
        table: &'static str,
        key: &[u8],
    ) -> Result<Option<DBPinnableSlice<'_>>> {
        let db = &self.inner.db;
        let cf = self.inner.table(table);
        match &self.at {
            Some(at) => at
                .snapshot
                .with_dependent(|_, pinned| db.get_pinned_cf_opt(cf, key, &pinned.options)),
            None => db.get_pinned_cf(cf, key),
        }
        .map_err(|source| Error::Engine {
            doing: "reading",
            source,
        })
    }

    pub(super) fn multi_get(
        &self,
        table: &'static str,
        keys: &[Vec<u8>],
    ) -> Result<Vec<Option<DBPinnableSlice<'_>>>> {
        let db = &self.inner.db;
        let cf = self.inner.table(table);
        let plain;
        let options = match &self.at {
            Some(at) => &at.snapshot.borrow_dependent().options,
            None => {
                plain = ReadOptions::default();
                &plain
            }
        };
        db.batched_multi_get_cf_opt(cf, keys, false, options)
            .into_iter()
            .map(|row| {
                row.map_err(|source| Error::Engine {
                    doing: "reading",
                    source,
                })
            })
            .collect()
    }

    pub(super) fn iterate(
        &self,
        table: &'static str,
        lower: Vec<u8>,
        upper: Option<Vec<u8>>,
        back: bool,
    ) -> Rows<'_> {
        let mut options = ReadOptions::default();
        if let Some(at) = &self.at {
            options.set_snapshot(&at.snapshot.borrow_dependent().snapshot);
        }
        options.set_iterate_lower_bound(lower);
        if let Some(upper) = upper {
            options.set_iterate_upper_bound(upper);
        }
        let mut cursor = self
            .inner
            .db
            .raw_iterator_cf_opt(self.inner.table(table), options);
        if back {
            cursor.seek_to_last();
        } else {
            cursor.seek_to_first();
        }
        Rows { cursor, back }
    }
}

/// Raw rows between two bounds.
pub(super) struct Rows<'v> {
    cursor: DBRawIterator<'v>,
    back: bool,
}

impl Rows<'_> {
    /// Hands the next row to `read`; `None` at the end.
    pub(super) fn next<T>(&mut self, read: impl FnOnce(&[u8], &[u8]) -> T) -> Option<Result<T>> {
        match self.cursor.item() {
            Some((key, value)) => {
                let row = read(key, value);
                if self.back {
                    self.cursor.prev();
                } else {
                    self.cursor.next();
                }
                Some(Ok(row))
            }
            None => self.cursor.status().err().map(|source| {
                Err(Error::Engine {
                    doing: "scanning",
                    source,
                })
            }),
        }
    }
}
