//! RocksDB behind types: nobody outside this module sees a byte key.
//!
//! Reads go through a [`View`]; writes through [`Store::commit`], which hands out positions.

mod batch;
pub mod changed;
mod check;
mod codec;
mod commit;
mod intern;
pub mod notify;
mod open;
pub mod outgoing;
pub mod schema;
mod state;
mod table;
pub mod texts;
mod view;

use std::{path::PathBuf, sync::Arc};

pub use self::{
    batch::{Batch, Members, Touch},
    check::Complaint,
    codec::{AsKey, Key, Record, Value},
    commit::Committed,
    open::{Options, Sync},
    state::{Base, Chain, StateMap, difference},
    table::{Profile, Table},
    view::View,
};

/// The node's database: cheap to clone, closed when the last clone is dropped.
#[derive(Clone)]
pub struct Store {
    inner: Arc<open::Inner>,
}

/// Why the store could not do what was asked. A missing row is never an error.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process has the directory open.
    #[error("the data directory {0} is in use by another node")]
    Locked(PathBuf),
    /// The directory can not be made or read.
    #[error("the data directory {0} can not be used: {1}")]
    Directory(PathBuf, std::io::Error),
    /// RocksDB failed, most often because the disk is full or broken.
    #[error("the store failed while {doing}: {source}")]
    Engine {
        /// What was attempted.
        doing: &'static str,
        /// What RocksDB said.
        source: rocksdb::Error,
    },
    /// A row does not decode.
    #[error("the store is damaged: table {table}, key {key}")]
    Corrupt {
        /// The table.
        table: &'static str,
        /// The key in hexadecimal.
        key: String,
    },
    /// A row that another row promises is not there.
    #[error("the store is damaged: {0} is missing")]
    Missing(String),
    /// The database was written by a newer program.
    #[error(
        "the data directory has schema version {found}, this program knows {known}: install a newer version"
    )]
    Schema {
        /// What the database says.
        found: u64,
        /// What this program writes.
        known: u64,
    },
    /// The store is being closed.
    #[error("the store is closed")]
    Closed,
}

/// What a store operation gives.
pub type Result<T> = std::result::Result<T, Error>;

#[cfg(test)]
mod tests;
