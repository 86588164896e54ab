//! The servers with which this node is paired: how two nodes become peers without anybody editing a file, and how it
//! stands between them.
//!
//! One node makes a code (`invite`), the other takes it (`accept`). It looks whether it reaches the first, and has that
//! one look back, before either writes anything down. See `protocol::pairing` for what is said.

mod own;
mod pair;
mod report;
mod status;

use std::{path::PathBuf, sync::Arc};

use http::StatusCode;
use parking_lot::RwLock;
use ruma::{OwnedServerName, ServerName};

pub use self::{
    pair::Offer,
    report::{Report, Step},
    status::PeerStatus,
};
use super::{federation::Federation, keyring::Keyring};
use crate::{
    clock::{Clock, Entropy},
    config::{self, Config},
    error::{Error, Result},
    remote::{Peer, Remote},
    store::{
        self, Store,
        schema::{PEERS, PeerRow},
    },
};

/// The servers with which this node is paired.
pub struct Peers {
    parts: Parts,
    /// `federation.ca_files` as it is now.
    ca_files: RwLock<Vec<PathBuf>>,
    /// Two who use the same code come one after the other.
    pairing: tokio::sync::Mutex<()>,
}

/// What it is made of.
pub struct Parts {
    /// The configuration in force.
    pub config: Arc<Config>,
    /// The store.
    pub store: Store,
    /// The time.
    pub clock: Clock,
    /// Randomness.
    pub entropy: Entropy,
    /// Our own keys.
    pub keyring: Arc<Keyring>,
    /// The other servers.
    pub remote: Remote,
    /// What tells them of us.
    pub federation: Federation,
}

impl Peers {
    /// Over these. The stored peers are in the peer table from here on.
    ///
    /// # Errors
    /// When the store fails.
    pub fn open(parts: Parts) -> Result<Self> {
        let view = parts.store.view();
        let rows = PEERS.scan(&view, &());
        for row in rows.collect::<store::Result<Vec<_>>>()? {
            let ((name,), row) = row;
            match ServerName::parse(name.as_str()) {
                Ok(server) => parts
                    .remote
                    .put_peer(&server, Peer::paired(row.address, row.voucher)),
                Err(error) => tracing::error!(name, %error, "a stored peer is damaged"),
            }
        }
        Ok(Self {
            ca_files: RwLock::new(parts.config.federation.ca_files.clone()),
            parts,
            pairing: tokio::sync::Mutex::default(),
        })
    }

    /// Takes the peer table and the authorities of a configuration, and reads the certificates that it names; the rest of it
    /// does not count. Who was paired with and is named no more is a peer by the pairing again. Says whether anything is
    /// different. Blocks.
    ///
    /// # Errors
    /// When a file cannot be used, and then everything stays as it was; when the store fails.
    pub fn reload(&self, federation: &config::Federation) -> Result<bool> {
        let parts = &self.parts;
        let mut failed = None;
        let reloaded = parts.remote.reload(federation, |server| {
            let row = PEERS.get(&parts.store.latest(), &(server.as_str(),));
            let row = row.unwrap_or_else(|error| {
                failed = Some(error);
                None
            });
            row.map(|row| Peer::paired(row.address, row.voucher))
        });
        let reloaded = reloaded.map_err(|error| Error::Internal(error.to_string()))?;
        self.ca_files.write().clone_from(&federation.ca_files);
        for server in &reloaded.peers {
            match parts.remote.peer(server) {
                Some(peer) => {
                    let address = peer.address.map(tracing::field::display);
                    tracing::info!(%server, address, "is a peer in this way now");
                }
                None => tracing::info!(%server, "is no peer any more"),
            }
            parts.federation.peer_changed(server)?;
        }
        if let Some(error) = failed {
            return Err(error.into());
        }
        Ok(reloaded.authorities || !reloaded.peers.is_empty())
    }

    /// Takes a peer out of the store and of the peer table at once.
    ///
    /// # Errors
    /// When it is no peer, or one of the configuration; when the store fails.
    pub async fn remove(&self, server: &ServerName) -> Result<()> {
        let parts = &self.parts;
        match parts.remote.peer(server) {
            None => return Err(no_peer(server)),
            Some(peer) if peer.is_configured => {
                return Err(Error::invalid_param(format!(
                    "{server} is in the configuration file: remove its section there, and have the node read it again (systemctl reload kontor, or SIGHUP)"
                )));
            }
            Some(_) => {}
        }
        let removed = parts.store.commit(|batch| {
            PEERS.delete(batch, &(server.as_str(),));
            Ok(())
        })?;
        parts.store.durable(removed.position).await?;
        parts.remote.remove_peer(server);
        parts.federation.peer_changed(server)?;
        tracing::info!(%server, "is no peer any more");
        Ok(())
    }

    /// Writes a peer down and begins to treat it as one.
    async fn keep(&self, server: &OwnedServerName, row: PeerRow) -> Result<()> {
        let parts = &self.parts;
        let kept = parts.store.commit(|batch| {
            PEERS.put(batch, &(server.as_str(),), &row);
            Ok(())
        })?;
        parts.store.durable(kept.position).await?;
        self.welcome(server, row)
    }

    fn welcome(&self, server: &ServerName, row: PeerRow) -> Result<()> {
        let parts = &self.parts;
        let (address, peer) = (row.address.clone(), Peer::paired(row.address, row.voucher));
        parts.remote.put_peer(server, peer);
        parts.federation.peer_changed(server)?;
        tracing::info!(%server, %address, "is a peer now");
        Ok(())
    }
}

fn no_peer(server: &ServerName) -> Error {
    let text = format!("{server} is no peer; `kontor peer list` says who is");
    Error::api(StatusCode::NOT_FOUND, "M_NOT_FOUND", text)
}
