//! The peer table: the servers that the administrator knows, from the configuration and from pairing.
//!
//! It is looked into for every request, so it is a map in memory, which changes when a peer comes or goes and when the
//! configuration is read again.

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
pub(super) struct Peers {
    table: Arc<RwLock<Table>>,
    /// Whether the certificates are read that the configuration names.
    reads_files: bool,
}

impl Peers {
    /// Those of the configuration, with the certificates that it names.
    ///
    /// # Errors
    /// When a file cannot be read or holds no certificate.
    pub(super) fn load(federation: &Federation) -> Result<Self, TrustError> {
        Ok(Self {
            table: Arc::new(RwLock::new(configured(federation, true)?)),
            reads_files: true,
        })
    }

    /// Those of the configuration where no certificates are shown.
    pub(super) fn without_certificates(federation: &Federation) -> Self {
        let table = configured(federation, false).unwrap_or_default();
        Self {
            table: Arc::new(RwLock::new(table)),
            reads_files: false,
        }
    }

    /// Takes the peers of a configuration in the place of those of the one before, with the certificates that it names.
    /// Where it has one no more, the one of `paired` counts again. Says of which servers anything is different.
    ///
    /// # Errors
    /// As [`load`](Self::load); then nothing is changed.
    pub(super) fn reload(
        &self,
        federation: &Federation,
        mut paired: impl FnMut(&ServerName) -> Option<Peer>,
    ) -> Result<Vec<OwnedServerName>, TrustError> {
        let mut fresh = configured(federation, self.reads_files)?;
        let mut table = self.table.write();
        let gone = table.iter().filter(|(_, old)| old.peer.is_configured);
        let gone = gone.filter(|(name, _)| !fresh.contains_key(*name));
        let gone: Vec<_> = gone.map(|(name, _)| name.clone()).collect();
        fresh.retain(|name, new| table.get(name).is_none_or(|old| old.peer != new.peer));
        let changed = gone.iter().chain(fresh.keys()).cloned().collect();
        for name in &gone {
            // Asked under the lock: whoever pairs writes it down first, and puts it here then.
            if let Some(peer) = paired(name) {
                fresh.insert(name.clone(), known_as(peer));
            } else {
                table.remove(name);
            }
        }
        table.extend(fresh);
        Ok(changed)
    }

    /// Forgets how connections are secured, because the authorities that all trust have changed.
    pub(super) fn forget_tls(&self) {
        for known in self.table.write().values_mut() {
            *known = known_as(known.peer.clone());
        }
    }

    pub(super) fn get(&self, server: &ServerName) -> Option<Arc<Known>> {
        self.table.read().get(server).cloned()
    }

    pub(super) fn contains(&self, server: &ServerName) -> bool {
        self.table.read().contains_key(server)
    }

    pub(super) fn all(&self) -> Vec<(OwnedServerName, Peer)> {
        let table = self.table.read();
        let all = table.iter();
        all.map(|(name, known)| (name.clone(), known.peer.clone()))
            .collect()
    }

    /// Adds or replaces a peer; one of the configuration stays as it is.
    pub(super) fn put(&self, server: &ServerName, peer: Peer) {
        let mut table = self.table.write();
        if !table.get(server).is_some_and(|old| old.peer.is_configured) {
            table.insert(server.to_owned(), known_as(peer));
        }
    }

    /// Takes a peer away, unless it is one of the configuration.
    pub(super) fn remove(&self, server: &ServerName) {
        let mut table = self.table.write();
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
        assert!(peers.reload(&federation, |_| None).unwrap().is_empty());
        assert!(peers.contains(b), "reading files again forgets nobody");
        for server in [a, b] {
            peers.remove(server);
        }
        assert!(peers.contains(a) && !peers.contains(b));
        assert_eq!(peers.schedule(b), Schedule::stranger());
    }
    #[test]
    fn another_configuration_replaces_its_own_peers_alone() {
        let address = |text: &str| Some(ServerName::parse(text).unwrap());
        let federation = |names: &[(&str, &str)]| {
            let peers = names.iter().map(|(name, place)| {
                let peer = config::Peer {
                    address: address(place),
                    ..config::Peer::default()
                };
                (ServerName::parse(name).unwrap(), peer)
            });
            Federation {
                peers: peers.collect(),
                ..Federation::default()
            }
        };
        let peers = Peers::load(&federation(&[
            ("a.example", "10.8.0.1"),
            ("b.example", "10.8.0.2"),
            ("c.example", "10.8.0.3"),
        ]))
        .unwrap();
        let paired = Peer::paired(owned_server_name!("10.9.0.9"), Voucher::Public);
        peers.put(server_name!("d.example"), paired.clone());
        let reload = |federation: &Federation| {
            let stored = |name: &ServerName| (name == "b.example").then(|| paired.clone());
            peers.reload(federation, stored)
        };
        let places = || -> Vec<_> {
            let all = peers.all().into_iter();
            all.map(|(name, peer)| format!("{name} {}", peer.address.unwrap()))
                .collect()
        };
        let next = federation(&[("a.example", "10.8.0.1"), ("e.example", "10.8.0.5")]);
        let mut changed = reload(&next).unwrap();
        changed.sort();
        assert_eq!(changed, ["b.example", "c.example", "e.example"]);
        let expect = [
            "a.example 10.8.0.1",
            "b.example 10.9.0.9",
            "d.example 10.9.0.9",
            "e.example 10.8.0.5",
        ];
        assert_eq!(places(), expect);
        assert!(reload(&next).unwrap().is_empty());
        // What it names cannot be read, so nothing of it counts.
        let mut broken = federation(&[]);
        let peer = config::Peer {
            ca: Some("/nowhere.pem".into()),
            ..config::Peer::default()
        };
        broken.peers.insert(owned_server_name!("f.example"), peer);
        assert!(reload(&broken).is_err());
        assert_eq!(places(), expect);
        let other = federation(&[("a.example", "10.8.0.7"), ("b.example", "10.8.0.2")]);
        assert_eq!(
            reload(&other).unwrap(),
            ["e.example", "a.example", "b.example"]
        );
        assert_eq!(
            places(),
            [
                "a.example 10.8.0.7",
                "b.example 10.8.0.2",
                "d.example 10.9.0.9"
            ]
        );
        peers.remove(server_name!("b.example"));
        assert!(peers.contains(server_name!("b.example")));
    }
}
