//! What the node does so that users can encrypt from end to end: it carries messages and keys of devices, and reads
//! nothing of what they say.

mod backup;
mod cross_signing;
mod dehydrated;
mod keys;
mod lists;
mod signatures;
mod to_device;

use std::sync::Arc;

use ruma::ServerName;

pub use self::{
    backup::{Backup, BackupKeys, Part},
    cross_signing::SigningKeys,
    dehydrated::NewDehydrated,
    keys::{Claimed, Keys, MOST_ASKED, Named, OfDevices, Upload},
    lists::Kept,
    signatures::Failures,
    to_device::{MOST_TOLD, Pending, ToDevice},
};
use super::accounts::Accounts;
use crate::{
    clock::{Clock, Entropy},
    remote::Remote,
    store::Store,
};

/// Messages and keys of devices.
pub struct Encryption {
    store: Store,
    clock: Clock,
    entropy: Entropy,
    remote: Remote,
    accounts: Arc<Accounts>,
}

impl Encryption {
    /// Nothing is kept in memory.
    pub fn new(
        store: Store,
        clock: Clock,
        entropy: Entropy,
        remote: Remote,
        accounts: Arc<Accounts>,
    ) -> Self {
        Self {
            store,
            clock,
            entropy,
            remote,
            accounts,
        }
    }

    fn is_local(&self, server: &ServerName) -> bool {
        server == self.accounts.server_name()
    }
}
