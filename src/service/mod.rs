//! Use cases: each opens a view, decides, and commits. Built bottom-up, each part given only what it uses.

pub mod accounts;
pub mod keyring;
pub mod limits;
mod requester;
pub mod rooms;

use std::sync::Arc;

use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::requester::Requester;
use self::{
    accounts::{Accounts, Cost},
    keyring::Keyring,
    limits::Limits,
    rooms::Rooms,
};
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
    /// How often anybody may do what costs much.
    pub limits: Limits,
    /// Local accounts.
    pub accounts: Arc<Accounts>,
    /// Rooms and their events.
    pub rooms: Arc<Rooms>,
    /// Cancelled when the node stops; whatever waits listens to it.
    pub stop: CancellationToken,
    /// Everything that runs beside the requests, so that a stop can wait for it.
    pub tasks: TaskTracker,
    store: Store,
}

impl Services {
    /// Builds the services over an open store. `cost` is how much work it is to guess a password.
    ///
    /// # Errors
    /// When the store fails.
    pub fn new(
        config: Arc<Config>,
        clock: Clock,
        entropy: Entropy,
        store: Store,
        cost: &Cost,
    ) -> Result<Self> {
        let limits = Limits::new(config.limits.enabled, clock.clone());
        let keyring = Arc::new(Keyring::open(&store, &entropy, &config.server.name)?);
        let accounts = Arc::new(Accounts::new(
            store.clone(),
            clock.clone(),
            entropy.clone(),
            limits.clone(),
            &config,
            cost,
        ));
        let rooms = Arc::new(Rooms::new(
            store.clone(),
            clock.clone(),
            entropy.clone(),
            keyring,
            &config,
        ));
        Ok(Self {
            config,
            clock,
            entropy,
            limits,
            accounts,
            rooms,
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            store,
        })
    }

    /// The store, for those who wait and for those who start and stop it.
    pub fn store(&self) -> &Store {
        &self.store
    }
}
