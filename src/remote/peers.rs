//! The peer table: the servers that the administrator knows, from the configuration and from pairing.
//!
//! It is looked into for every request, so it is a map that is replaced as a whole when a peer comes or goes.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use parking_lot::RwLock;
use ruma::{OwnedServerName, ServerName};
use rustls::ClientConfig;

use super::trust::{self, TrustError};
use crate::{
    config::{self, Federation, Span},
    protocol::{backoff::Schedule, pairing::Voucher},
};

/// A server of the peer table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Where it is; none if it is looked up like any other server.
    pub address: Option<OwnedServerName>,
    /// How its certificate is judged.
    pub voucher: Voucher,
    /// The longest wait before it is tried again.
    pub max_backoff: Duration,
    /// Whether the configuration file has it, which wins.
    pub is_configured: bool,
}

impl Peer {
    /// One that was paired with.
    pub fn paired(address: OwnedServerName, voucher: Voucher) -> Self {
        Self {
            address: Some(address),
            voucher,
            max_backoff: config::Peer::default().max_backoff.duration(),
            is_configured: false,
        }
    }

    fn configured(peer: &config::Peer, reads_files: bool) -> Result<Self, TrustError> {
        let voucher = match (&peer.ca, peer.fingerprint) {
            (Some(file), _) if reads_files => {
                let found = trust::read(file)?;
                Voucher::Authorities(found.iter().map(|one| one.to_vec()).collect())
            }
            (_, Some(fingerprint)) => Voucher::Certificate(*fingerprint.bytes()),
            _ => Voucher::Public,
        };
        Ok(Self {
            address: peer.address.clone(),
            voucher,
            max_backoff: Span::duration(peer.max_backoff),
            is_configured: true,
        })
    }
}

/// A peer, and how connections to it are secured once that was needed.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) peer: Peer,
    pub(super) tls: OnceLock<Arc<ClientConfig>>,
}

type Table = BTreeMap<OwnedServerName, Arc<Known>>;

/// The peers of this node. Clones are the same table.
#[derive(Clone, Debug)]
pub(super) struct Peers(Arc<RwLock<Table>>);

impl Peers {
    /// Those of the configuration, with the certificates that it names.
    ///
    /// # Errors
    /// When a file cannot be read or holds no certificate.
    pub(super) fn load(federation: &Federation) -> Result<Self, TrustError> {
        Ok(Self(Arc::new(RwLock::new(configured(federation, true)?))))
    }

    /// Those of the configuration where no certificates are shown.
    pub(super) fn without_certificates(federation: &Federation) -> Self {
        let table = configured(federation, false).unwrap_or_default();
        Self(Arc::new(RwLock::new(table)))
    }

    /// Reads the certificates again that the configuration names; says whether anything is different.
    ///
    /// # Errors
    /// As [`load`](Self::load); then nothing is changed.
    pub(super) fn reload(&self, federation: &Federation) -> Result<bool, TrustError> {
        let fresh = configured(federation, true)?;
        let mut table = self.0.write();
        let is_same = |(name, new): (&OwnedServerName, &Arc<Known>)| {
            table.get(name).is_some_and(|old| old.peer == new.peer)
        };
        if fresh.iter().all(is_same) {
            return Ok(false);
        }
        table.extend(fresh);
        Ok(true)
    }

    /// Forgets how connections are secured, because the authorities that all trust have changed.
    pub(super) fn forget_tls(&self) {
        for known in self.0.write().values_mut() {
            *known = known_as(known.peer.clone());
        }
    }

    pub(super) fn get(&self, server: &ServerName) -> Option<Arc<Known>> {
        self.0.read().get(server).cloned()
    }

    pub(super) fn contains(&self, server: &ServerName) -> bool {
        self.0.read().contains_key(server)
    }

    pub(super) fn all(&self) -> Vec<(OwnedServerName, Peer)> {
        let table = self.0.read();
        let all = table.iter();
        all.map(|(name, known)| (name.clone(), known.peer.clone()))
            .collect()
    }

    /// Adds or replaces a peer; one of the configuration stays as it is.
    pub(super) fn put(&self, server: &ServerName, peer: Peer) {
        let mut table = self.0.write();
        if !table.get(server).is_some_and(|old| old.peer.is_configured) {
            table.insert(server.to_owned(), known_as(peer));
        }
    }

    /// Takes a peer away, unless it is one of the configuration.
    pub(super) fn remove(&self, server: &ServerName) {
        let mut table = self.0.write();
        if table.get(server).is_some_and(|old| !old.peer.is_configured) {
            table.remove(server);
        }
    }

    /// When a server is tried again that has failed.
    pub(super) fn schedule(&self, server: &ServerName) -> Schedule {
        self.get(server).map_or_else(Schedule::stranger, |known| {
            Schedule::peer(known.peer.max_backoff)
        })
    }
}

fn known_as(peer: Peer) -> Arc<Known> {
    Arc::new(Known {
        peer,
        tls: OnceLock::new(),
    })
}

fn configured(federation: &Federation, reads_files: bool) -> Result<Table, TrustError> {
    let peers = federation.peers.iter();
    peers
        .map(|(name, peer)| {
            let peer = Peer::configured(peer, reads_files)?;
            Ok((name.clone(), known_as(peer)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use ruma::{owned_server_name, server_name};

    use super::*;
    use crate::config::FederationMode;

    #[test]
    fn peers_come_and_go_except_those_of_the_configuration() {
        let mut federation = Federation {
            mode: FederationMode::Closed,
            ..Federation::default()
        };
        let in_file = config::Peer {
            address: Some(owned_server_name!("10.8.0.9")),
            ..config::Peer::default()
        };
        let (a, b) = (server_name!("a.example"), server_name!("b.example"));
        federation.peers.insert(a.to_owned(), in_file);
        let peers = Peers::load(&federation).unwrap();
        let paired = Peer::paired(owned_server_name!("10.8.0.2"), Voucher::Public);
        let address = |server| {
            peers
                .get(server)
                .and_then(|known| known.peer.address.clone())
        };
        assert!(peers.contains(a) && !peers.contains(b));
        for server in [a, b] {
            peers.put(server, paired.clone());
        }
        assert_eq!(address(a), Some(owned_server_name!("10.8.0.9")));
        assert_eq!(address(b), Some(owned_server_name!("10.8.0.2")));
        assert_eq!(peers.schedule(b), Schedule::peer(Duration::from_secs(60)));
        assert!(!peers.reload(&federation).unwrap());
        assert!(peers.contains(b), "reading files again forgets nobody");
        for server in [a, b] {
            peers.remove(server);
        }
        assert!(peers.contains(a) && !peers.contains(b));
        assert_eq!(peers.schedule(b), Schedule::stranger());
    }
}
