//! Local accounts: who may come in, with which devices, and what the node keeps for them.

mod data;
mod deactivate;
mod devices;
mod filters;
mod login;
mod moved;
mod openid;
mod password;
mod profile;
mod push_rules;
mod refresh;
mod register;
mod registration_tokens;
mod removal;
mod sessions;
mod shared_secret;
mod tags;
mod uia;

use parking_lot::{Mutex, MutexGuard};
use ruma::{OwnedServerName, OwnedUserId, ServerName, UserId};

pub use self::{
    data::{GLOBAL, Writing},
    devices::Device,
    login::Credential,
    password::Cost,
    refresh::Refreshed,
    register::{NewAccount, Registered},
    sessions::{NewDevice, Session},
    shared_secret::SharedSecretRequest,
};
use self::{
    filters::Filters, password::Passwords, push_rules::CompiledRules, sessions::Sessions,
    shared_secret::Nonces, uia::Conversations,
};
pub(super) use self::{removal::Removal, sessions::check_device_name};
use super::{Requester, limits::Limits};
use crate::{
    clock::{Clock, Entropy},
    config::{Config, Registration},
    error::Result,
    protocol::ids::UserNid,
    store::{
        Store, View,
        schema::{ACCOUNTS, AccountRow},
    },
};

/// Local accounts.
pub struct Accounts {
    store: Store,
    clock: Clock,
    entropy: Entropy,
    limits: Limits,
    server_name: OwnedServerName,
    registration: Registration,
    passwords: Passwords,
    sessions: Sessions,
    conversations: Conversations,
    nonces: Nonces,
    filters: Filters,
    push_rules: CompiledRules,
    /// Held while rows of accounts are read, changed and written, so that no change is lost and no name, token or
    /// number is given twice.
    changing: Mutex<()>,
}

impl Accounts {
    pub(super) fn new(
        store: Store,
        clock: Clock,
        entropy: Entropy,
        limits: Limits,
        config: &Config,
        cost: &Cost,
    ) -> Self {
        Self {
            server_name: config.server.name.clone(),
            registration: config.registration.clone(),
            passwords: Passwords::new(cost, entropy.clone()),
            sessions: Sessions::default(),
            conversations: Conversations::default(),
            nonces: Nonces::default(),
            filters: Filters::default(),
            push_rules: CompiledRules::default(),
            changing: Mutex::default(),
            store,
            clock,
            entropy,
            limits,
        }
    }

    /// The number and the row of a local account, if there is one.
    pub fn find(&self, view: &View, user: &UserId) -> Result<Option<(UserNid, AccountRow)>> {
        if user.server_name() != self.server_name {
            return Ok(None);
        }
        let Some(nid) = self.store.find_user(user)? else {
            return Ok(None);
        };
        Ok(ACCOUNTS.get(view, &(nid,))?.map(|row| (nid, row)))
    }

    /// The name of this node.
    pub fn server_name(&self) -> &ServerName {
        &self.server_name
    }

    /// As long as this is held, no device comes or goes, and nothing that belongs to devices is written by others.
    pub fn still(&self) -> MutexGuard<'_, ()> {
        self.changing.lock()
    }

    /// The local user that a client names by a full id or by the part before the colon; none if it can be neither.
    fn named(&self, name: &str) -> Option<OwnedUserId> {
        let named = UserId::parse_with_server_name(name, &self.server_name).ok()?;
        if named.server_name() != self.server_name {
            return None;
        }
        // Every localpart that can be registered is in lower case.
        let localpart = named.localpart().to_lowercase();
        UserId::parse_with_server_name(localpart, &self.server_name).ok()
    }
}
