//! What other servers and this node do together: the layer between the rooms, which know no network, and the network,
//! which knows no rooms.

mod backfill;
mod by_time;
mod courier;
mod destination;
mod directory;
mod edus;
mod encryption;
mod fetch;
mod handshake;
mod inbox;
mod ingest;
mod introductions;
mod outbox;
mod recommend;
mod search;
mod serve;
mod spaces;
mod third_party;
mod transaction;
mod transactions;
mod verify;
mod waiting;

use std::sync::Arc;

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{backfill::Filling, outbox::Outbox};
pub use self::{
    handshake::{Handshakes, Wish},
    inbox::Inbox,
    recommend::Silent,
    spaces::{Node, Told, ToldRooms},
    transactions::Transaction,
    waiting::DestinationStatus,
};
use super::{
    accounts::Accounts,
    e2ee::Encryption,
    ephemeral::{Presence, Receipts, Typing},
    keyring::Keyring,
    rooms::Rooms,
};
use crate::{
    clock::{Clock, Entropy},
    remote::Remote,
    store::Store,
};

/// What other servers and this node do together.
#[derive(Clone)]
pub struct Federation(Arc<Parts>, Arc<Outbox>, Arc<Filling>);

/// What it is made of.
pub struct Parts {
    /// The store.
    pub store: Store,
    /// The time.
    pub clock: Clock,
    /// Randomness.
    pub entropy: Entropy,
    /// Our own keys and those of other servers.
    pub keyring: Arc<Keyring>,
    /// The other servers.
    pub remote: Remote,
    /// Rooms and their events.
    pub rooms: Arc<Rooms>,
    /// Local accounts.
    pub accounts: Arc<Accounts>,
    /// What other servers have told of rooms.
    pub told_rooms: ToldRooms,
    /// Who enters and leaves rooms now.
    pub handshakes: Handshakes,
    /// Who is typing.
    pub typing: Arc<Typing>,
    /// Who has read what.
    pub receipts: Arc<Receipts>,
    /// Who is there.
    pub presence: Arc<Presence>,
    /// Messages and keys of devices.
    pub encryption: Arc<Encryption>,
    /// What has come in and has no place yet.
    pub inbox: Inbox,
    /// Policy servers that do not answer.
    pub silent: Silent,
    /// What runs beside the requests.
    pub tasks: TaskTracker,
    /// Cancelled when the node stops.
    pub stop: CancellationToken,
}

impl Federation {
    /// Over these. Nothing runs yet; see [`Self::start`].
    pub fn new(parts: Parts) -> Self {
        let parts = Arc::new(parts);
        let outbox = Outbox::new(parts.clone());
        Self(parts, Arc::new(outbox), Arc::default())
    }
}
