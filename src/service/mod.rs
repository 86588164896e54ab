//! Use cases: each opens a view, decides, and commits. Built bottom-up, each part given only what it uses.

pub mod accounts;
pub mod ephemeral;
pub mod keyring;
pub mod lifecycle;
mod requester;
pub mod rooms;
pub mod sync;

use std::sync::Arc;

pub use self::requester::Requester;
use self::{keyring::Keyring, lifecycle::Lifecycle, rooms::Rooms};
use crate::{
    clock::{Clock, Entropy},
    config::Config,
    error::Result,
    store::Store,
};

/// Everything the node can do.
pub struct Services {
    /// The configuration in force.
    pub config: Arc<Config>,
    /// The time.
    pub clock: Clock,
    /// Randomness.
    pub entropy: Entropy,
    /// Rooms and their events.
    pub rooms: Arc<Rooms>,
    /// What begins, changes and ends a user's part in rooms.
    pub lifecycle: Lifecycle,
    store: Store,
}

impl Services {
    /// Builds the services over an open store.
    ///
    /// # Errors
    /// When the store fails.
    pub fn new(config: Arc<Config>, clock: Clock, entropy: Entropy, store: Store) -> Result<Self> {
        let keyring = Arc::new(Keyring::open(&store, &entropy, &config.server.name)?);
        let rooms = Arc::new(Rooms::new(
            store.clone(),
            clock.clone(),
            entropy.clone(),
            keyring,
            &config,
        ));
        let lifecycle = Lifecycle::new(store.clone(), rooms.clone());
        Ok(Self {
            config,
            clock,
            entropy,
            rooms,
            lifecycle,
            store,
        })
    }

    /// The store, for those who wait and for those who start and stop it.
    pub fn store(&self) -> &Store {
        &self.store
    }
}
