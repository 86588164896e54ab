//! Use cases: each opens a view, decides, and commits. Built bottom-up, each part given only what it uses.

pub mod accounts;
pub mod delayed;
mod delayed_rows;
mod device_lists;
pub mod e2ee;
pub mod ephemeral;
pub mod federation;
pub mod keyring;
pub mod lifecycle;
pub mod limits;
pub mod peers;
pub mod profiles;
pub mod reports;
mod requester;
pub mod rooms;
pub mod search;
pub mod sync;
pub mod threads;
mod upkeep;
pub mod user_directory;

use std::sync::Arc;

use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::requester::Requester;
use self::{
    accounts::{Accounts, Cost},
    delayed::DelayedEvents,
    e2ee::Encryption,
    ephemeral::{Presence, Receipts, Typing},
    federation::{Federation, Handshakes},
    keyring::{Keyring, OwnKeys},
    lifecycle::Lifecycle,
    limits::Limits,
    peers::Peers,
    profiles::Profiles,
    reports::Reports,
    rooms::Rooms,
    search::Search,
    sync::{Sources, Sync},
    threads::Threads,
    user_directory::UserDirectory,
};
use crate::{
    clock::{Clock, Entropy},
    config::Config,
    error::Result,
    remote::{Remote, Transport},
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
    /// Our own keys and those of other servers.
    pub keyring: Arc<Keyring>,
    /// The other servers.
    pub remote: Remote,
    /// Local accounts.
    pub accounts: Arc<Accounts>,
    /// What users here and elsewhere say about themselves.
    pub profiles: Profiles,
    /// Rooms and their events.
    pub rooms: Arc<Rooms>,
    /// What users have reported.
    pub reports: Reports,
    /// Who is found by name.
    pub user_directory: UserDirectory,
    /// What is found by its words.
    pub search: Arc<Search>,
    /// What other servers and this node do together.
    pub federation: Federation,
    /// The servers with which this node is paired.
    pub peers: Peers,
    /// What begins, changes and ends a user's part in rooms.
    pub lifecycle: Arc<Lifecycle>,
    /// Events that are sent later.
    pub delayed: Arc<DelayedEvents>,
    /// Who is typing.
    pub typing: Arc<Typing>,
    /// Who has read what.
    pub receipts: Arc<Receipts>,
    /// Which threads users follow.
    pub threads: Arc<Threads>,
    /// Who is there.
    pub presence: Arc<Presence>,
    /// Messages and keys of devices.
    pub encryption: Arc<Encryption>,
    /// What tells clients of all this.
    pub sync: Arc<Sync>,
    /// Cancelled when the node stops; whatever waits listens to it.
    pub stop: CancellationToken,
    /// Everything that runs beside the requests, so that a stop can wait for it.
    pub tasks: TaskTracker,
    store: Store,
}

impl Services {
    /// Builds the services over an open store. `cost` is how much work it is to guess a password; `transport` carries
    /// requests to other servers.
    ///
    /// # Errors
    /// When the store fails.
    pub fn new(
        config: Arc<Config>,
        clock: Clock,
        entropy: Entropy,
        store: Store,
        cost: &Cost,
        transport: Transport,
    ) -> Result<Self> {
        let limits = Limits::new(config.limits.enabled, clock.clone());
        let name = &config.server.name;
        let own = OwnKeys::open(&store, &entropy)?;
        let remote = Remote::new(name, own.key.clone(), &config.federation, transport);
        let keyring = Arc::new(Keyring::new(
            name,
            own,
            store.clone(),
            clock.clone(),
            entropy.clone(),
            remote.clone(),
        ));
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
            keyring.clone(),
            &config,
        )?);
        let reports = Reports::new(
            store.clone(),
            clock.clone(),
            limits.clone(),
            accounts.clone(),
            rooms.clone(),
        );
        let user_directory =
            UserDirectory::open(store.clone(), rooms.clone(), &config.user_directory)?;
        let profiles = Profiles::new(name, accounts.clone(), remote.clone());
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let searched = search::Parts {
            store: store.clone(),
            clock: clock.clone(),
            rooms: rooms.clone(),
            tasks: tasks.clone(),
            stop: stop.clone(),
        };
        let search = Arc::new(Search::new(searched, &config.search));
        let typing = Arc::new(Typing::open(
            store.clone(),
            clock.clone(),
            rooms.clone(),
            tasks.clone(),
            stop.clone(),
        )?);
        let receipts = Arc::new(Receipts::new(store.clone(), clock.clone(), rooms.clone()));
        let threads = Arc::new(Threads::new(store.clone(), rooms.clone()));
        let presence = Arc::new(Presence::new(
            store.clone(),
            clock.clone(),
            tasks.clone(),
            stop.clone(),
        ));
        let encryption = Arc::new(Encryption::new(
            store.clone(),
            clock.clone(),
            entropy.clone(),
            remote.clone(),
            accounts.clone(),
        ));
        let federation = Federation::new(federation::Parts {
            store: store.clone(),
            clock: clock.clone(),
            entropy: entropy.clone(),
            keyring: keyring.clone(),
            remote: remote.clone(),
            rooms: rooms.clone(),
            typing: typing.clone(),
            receipts: receipts.clone(),
            presence: presence.clone(),
            encryption: encryption.clone(),
            accounts: accounts.clone(),
            told_rooms: federation::ToldRooms::default(),
            handshakes: Handshakes::new(limits.clone()),
            inbox: federation::Inbox::open(&store)?,
            silent: federation::Silent::default(),
            tasks: tasks.clone(),
            stop: stop.clone(),
        });
        let lifecycle = Arc::new(Lifecycle::new(
            store.clone(),
            clock.clone(),
            rooms.clone(),
            accounts.clone(),
            federation.clone(),
            limits.clone(),
        ));
        let delayed = Arc::new(DelayedEvents::new(delayed::Parts {
            store: store.clone(),
            clock: clock.clone(),
            entropy: entropy.clone(),
            limits: limits.clone(),
            accounts: accounts.clone(),
            rooms: rooms.clone(),
            lifecycle: lifecycle.clone(),
            tasks: tasks.clone(),
            stop: stop.clone(),
        }));
        let peers = Peers::open(peers::Parts {
            config: config.clone(),
            store: store.clone(),
            clock: clock.clone(),
            entropy: entropy.clone(),
            keyring: keyring.clone(),
            remote: remote.clone(),
            federation: federation.clone(),
        })?;
        let sources = Sources {
            rooms: rooms.clone(),
            accounts: accounts.clone(),
            typing: typing.clone(),
            receipts: receipts.clone(),
            presence: presence.clone(),
            encryption: encryption.clone(),
            threads: threads.clone(),
            entropy: entropy.clone(),
        };
        let sync = Sync::new(store.clone(), clock.clone(), stop.clone(), sources);
        Ok(Self {
            config,
            clock,
            entropy,
            limits,
            keyring,
            remote,
            accounts,
            profiles,
            rooms,
            reports,
            user_directory,
            search,
            federation,
            peers,
            lifecycle,
            delayed,
            typing,
            receipts,
            threads,
            presence,
            encryption,
            sync: Arc::new(sync),
            stop,
            tasks,
            store,
        })
    }

    /// The services of a node that reaches no other, for tests.
    #[cfg(test)]
    fn alone(
        config: Arc<Config>,
        clock: Clock,
        entropy: Entropy,
        store: Store,
        cost: &Cost,
    ) -> Result<Self> {
        let lan = crate::remote::Lan::new(clock.clone(), entropy.clone());
        let transport = lan.port(&config.server.name);
        Self::new(config, clock, entropy, store, cost, transport)
    }

    /// The store, for those who wait and for those who start and stop it.
    pub fn store(&self) -> &Store {
        &self.store
    }
}
