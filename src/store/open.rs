//! Opening and closing the database: engine options, the memory budget, the schema version.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use parking_lot::{Condvar, Mutex, RwLock};
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType,
    Options as EngineOptions,
};
use tokio::sync::watch;

use super::{
    Error, Result, Store,
    changed::ChangedRooms,
    codec::{AsKey, Value},
    commit::{self, Commits},
    intern::Interner,
    notify::Notify,
    outgoing::Outgoing,
    schema::{self, META},
    state::StateCache,
    table::{Profile, sum},
    texts::Texts,
    view::{OwnedSnapshot, Published},
};
use crate::protocol::ids::Position;

/// Raised with every change that older programs could not read, or would break by writing.
const SCHEMA_VERSION: u64 = 5;

/// How many differences of a counter lie in memory beside each other before they are added up.
const MAX_DIFFERENCES: usize = 8;

/// When an acknowledged write is safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// Before it is acknowledged or seen by anyone: it survives a power cut.
    Always,
    /// Within 100 ms: a power cut loses at most that window. A killed process loses nothing.
    Interval,
    /// When the operating system likes. A killed process loses nothing.
    Never,
}

/// How to open a store.
#[derive(Clone, Debug)]
pub struct Options {
    /// The directory; made when it is missing.
    pub directory: PathBuf,
    /// When writes are safe.
    pub sync: Sync,
    /// Bytes for all caches and memtables together.
    pub memory: usize,
}

/// What the thread that syncs waits at. It holds this but not the database, which so closes as soon as nobody uses it.
pub(super) struct Gate {
    pub(super) commits: Mutex<Commits>,
    /// Rung when there is something to make durable, or when the store closes.
    pub(super) unsynced: Condvar,
}

/// The open database and everything that lives as long as it.
pub(super) struct Inner {
    pub(super) db: Arc<DB>,
    pub(super) sync: Sync,
    pub(super) gate: Arc<Gate>,
    /// The last position handed out; read without the lock, also from inside a commit.
    pub(super) committed: AtomicU64,
    published: RwLock<Arc<Published>>,
    pub(super) durable: watch::Sender<u64>,
    pub(super) notify: Notify,
    pub(super) outgoing: Arc<Outgoing>,
    pub(super) changed: ChangedRooms,
    pub(super) texts: Arc<Texts>,
    pub(super) interner: Interner,
    pub(super) states: StateCache,
    directory: PathBuf,
    syncer: Mutex<Option<JoinHandle<()>>>,
}

impl Store {
    /// Opens the database, making it first if there is none.
    ///
    /// # Errors
    /// [`Error::Locked`] when another node has it open, [`Error::Schema`] when a newer program wrote it.
    pub fn open(options: &Options) -> Result<Self> {
        let path = options.directory.join("store");
        std::fs::create_dir_all(&path)
            .map_err(|e| Error::Directory(options.directory.clone(), e))?;
        let db = Arc::new(open_engine(&path, options)?);

        let meta = |key: &str| -> Result<Option<u64>> {
            let cf = db.cf_handle(META.name).expect("every table was opened");
            let row = db.get_cf(cf, AsKey::<(String,)>::key_bytes(&(key,)));
            let row = row.map_err(|source| Error::Engine {
                doing: "opening",
                source,
            })?;
            Ok(row
                .and_then(|bytes| <(u64,)>::from_bytes(&bytes))
                .map(|(number,)| number))
        };
        if let Some(found) = meta("schema")?.filter(|&found| found > SCHEMA_VERSION) {
            return Err(Error::Schema {
                found,
                known: SCHEMA_VERSION,
            });
        }
        // Positions below the ceiling may have been handed out without a row, so the count goes on above it.
        let start = meta("ceiling")?.unwrap_or(0);
        let interner = Interner::open(&db)?;
        let snapshot = OwnedSnapshot::take(db.clone());
        let inner = Arc::new(Inner {
            sync: options.sync,
            gate: Arc::new(Gate {
                commits: Mutex::new(Commits::starting_at(start)),
                unsynced: Condvar::new(),
            }),
            committed: AtomicU64::new(start),
            published: RwLock::new(Arc::new(Published {
                position: Position(start),
                snapshot,
            })),
            durable: watch::channel(start).0,
            notify: Notify::default(),
            outgoing: Arc::default(),
            changed: ChangedRooms::default(),
            texts: Arc::default(),
            interner,
            states: StateCache::new(options.memory / 8),
            directory: options.directory.clone(),
            syncer: Mutex::new(None),
            db,
        });
        let store = Self { inner };
        let _durable_with_the_next = store.commit(|batch| {
            META.put(batch, &("schema",), &(SCHEMA_VERSION,));
            Ok(())
        })?;
        *store.inner.syncer.lock() = Some(commit::start_syncer(&store.inner));
        Ok(store)
    }

    /// Who waits for changes.
    #[must_use]
    pub fn notify(&self) -> &Notify {
        &self.inner.notify
    }

    /// The rooms whose state has changed.
    #[must_use]
    pub fn changed_rooms(&self) -> &ChangedRooms {
        &self.inner.changed
    }

    /// What other servers are to be told.
    #[must_use]
    pub fn outgoing(&self) -> &Arc<Outgoing> {
        &self.inner.outgoing
    }

    /// The events with text that have come.
    #[must_use]
    pub fn texts(&self) -> &Arc<Texts> {
        &self.inner.texts
    }

    /// The directory in which the database lies, and whatever is derived from it.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.inner.directory
    }

    /// Makes everything durable and stops the store's thread. Later commits fail; reads go on.
    pub fn close(&self) {
        self.inner.gate.close();
        if let Some(syncer) = self.inner.syncer.lock().take()
            && syncer.join().is_err()
        {
            tracing::error!("the store's sync thread has panicked");
        }
        if let Err(error) = self.inner.db.flush_wal(true) {
            tracing::error!(%error, "the last writes could not be made durable");
        }
        self.inner.db.cancel_all_background_work(true);
    }
}

impl Inner {
    pub(super) fn table(&self, name: &'static str) -> &ColumnFamily {
        self.db.cf_handle(name).expect("every table was opened")
    }

    pub(super) fn published(&self) -> Arc<Published> {
        self.published.read().clone()
    }

    pub(super) fn set_published(&self, published: Published) {
        *self.published.write() = Arc::new(published);
    }

    pub(super) fn committed(&self) -> Position {
        Position(self.committed.load(Ordering::Acquire))
    }
}

fn open_engine(path: &Path, options: &Options) -> Result<DB> {
    let memtables = (options.memory / 4).max(8 << 20);
    let cache = Cache::new_lru_cache(options.memory / 8 * 3);

    let mut engine = EngineOptions::default();
    engine.create_if_missing(true);
    engine.create_missing_column_families(true);
    engine.set_db_write_buffer_size(memtables);
    engine.set_max_total_wal_size(u64::try_from(memtables * 2).unwrap_or(u64::MAX));
    engine.set_max_background_jobs(2);
    engine.set_max_open_files(512);
    // At the start it opens a few files of each table; to start threads for that, for each table anew, costs more.
    engine.set_max_file_opening_threads(1);
    engine.set_keep_log_file_num(4);
    engine.set_max_log_file_size(4 << 20);
    engine.set_stats_dump_period_sec(0);
    engine.set_bytes_per_sync(1 << 20);
    engine.set_wal_recovery_mode(rocksdb::DBRecoveryMode::TolerateCorruptedTailRecords);
    // With `always` the syncer writes the log in one go before each fsync; otherwise every commit must reach the
    // operating system by itself, or a killed process would lose it.
    engine.set_manual_wal_flush(options.sync == Sync::Always);

    // Made once for each profile: the engine makes a cache with each new set of options, even where it is given another.
    let [point, sequential, counter] = [Profile::Point, Profile::Sequential, Profile::Counter]
        .map(|profile| table_options(profile, &cache, memtables));
    let table = |name: &str, profile| {
        let options = match profile {
            Profile::Point => &point,
            Profile::Sequential => &sequential,
            Profile::Counter => &counter,
        };
        ColumnFamilyDescriptor::new(name, options.clone())
    };
    let known = schema::all();
    let tables = known.iter().map(|&(name, profile)| table(name, profile));
    // The engine wants every table opened that is there, also one that only another version knows. Such a table is
    // left as it is; whether this version can do without it is what the schema version says.
    let there = DB::list_cf(&engine, path).unwrap_or_default();
    let foreign = there
        .iter()
        .filter(|there| known.iter().all(|(name, _)| name != there))
        .filter(|there| *there != rocksdb::DEFAULT_COLUMN_FAMILY_NAME)
        .map(|name| table(name, Profile::Point));
    let default = table(rocksdb::DEFAULT_COLUMN_FAMILY_NAME, Profile::Point);
    let tables = tables.chain(foreign).chain([default]);
    DB::open_cf_descriptors(&engine, path, tables).map_err(|source| {
        if source.to_string().to_lowercase().contains("lock") {
            Error::Locked(options.directory.clone())
        } else {
            Error::Engine {
                doing: "opening",
                source,
            }
        }
    })
}

fn table_options(profile: Profile, cache: &Cache, memtables: usize) -> EngineOptions {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(cache);
    blocks.set_cache_index_and_filter_blocks(true);
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(true);
    blocks.set_format_version(6);
    match profile {
        Profile::Point | Profile::Counter => {
            blocks.set_block_size(8 << 10);
            blocks.set_bloom_filter(10.0, false);
        }
        Profile::Sequential => blocks.set_block_size(16 << 10),
    }
    let mut table = EngineOptions::default();
    table.set_block_based_table_factory(&blocks);
    table.set_write_buffer_size(memtables);
    table.set_arena_block_size(64 << 10);
    table.set_compression_type(DBCompressionType::Lz4);
    table.set_bottommost_compression_type(DBCompressionType::Zstd);
    table.set_level_compaction_dynamic_level_bytes(true);
    if profile == Profile::Counter {
        table.set_merge_operator_associative("sum", |_, number, differences| {
            sum(number, differences)
        });
        // Otherwise whoever reads a busy number would have to add up all that came since the memtable was empty.
        table.set_max_successive_merges(MAX_DIFFERENCES);
    }
    table
}

impl Gate {
    fn close(&self) {
        self.commits.lock().closing = true;
        self.unsynced.notify_all();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.gate.close();
        let Some(syncer) = self.syncer.get_mut().take() else {
            return;
        };
        // The thread borrows the database for each sync, so it may be the last to let it go.
        if syncer.thread().id() != std::thread::current().id() {
            // Its panic has been told where it happened.
            let _ = syncer.join();
        }
    }
}

/// How long unsynced writes may wait under [`Sync::Interval`].
pub(super) const INTERVAL: Duration = Duration::from_millis(100);
