//! Talking to other servers: who they are, where they are, and whether it is them. Knows HTTP, not the database.
//!
//! [`Remote`] is what the services hold. Below it is a [`Transport`], which is the real network or, for simulations, one
//! in memory.

mod address;
mod body;
mod client;
mod connection;
mod dns;
mod error;
mod keys;
pub mod memory;
mod peers;
mod request;
mod resolver;
#[cfg(test)]
mod tests;
mod trust;
mod well_known;

use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use ruma::{OwnedServerName, ServerName};

use self::peers::Peers;
pub use self::{
    client::{Limits, Network, Ports},
    dns::{FixedNames, Service},
    error::{Error, Kind, Result},
    memory::Lan,
    peers::Peer,
    trust::TrustError,
};
use crate::{
    config::{Federation, FederationMode},
    protocol::{backoff::Schedule, integrity::ServerKey},
};

/// What this node calls itself to others.
const USER_AGENT: &str = concat!("Kontor/", env!("CARGO_PKG_VERSION"));

/// What carries requests to other servers.
#[derive(Clone, Debug)]
pub enum Transport {
    /// HTTPS over the network.
    Network(Network),
    /// Nodes in one process.
    Memory(memory::Port),
}

impl Transport {
    async fn exchange(
        &self,
        server: &ServerName,
        request: Request<Bytes>,
        limits: Limits,
    ) -> Result<Response<Bytes>, Kind> {
        match self {
            Self::Network(network) => network.exchange(server, request, limits).await,
            Self::Memory(port) => port.exchange(server, request, limits).await,
        }
    }

    /// The same to a server as if it were a peer like this.
    async fn exchange_as(
        &self,
        server: &ServerName,
        peer: &Peer,
        request: Request<Bytes>,
        limits: Limits,
    ) -> Result<Response<Bytes>, Kind> {
        match self {
            Self::Network(network) => network.exchange_as(server, peer, request, limits).await,
            Self::Memory(port) => port.exchange(server, request, limits).await,
        }
    }
}

/// The other servers, as this node talks to them.
#[derive(Clone, Debug)]
pub struct Remote(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    name: OwnedServerName,
    key: Arc<ServerKey>,
    mode: FederationMode,
    notaries: Vec<OwnedServerName>,
    peers: Peers,
    transport: Transport,
}

/// What is different since the configuration was read again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reloaded {
    /// Whether other authorities may vouch for any server.
    pub authorities: bool,
    /// The peers that came, went or are otherwise now.
    pub peers: Vec<OwnedServerName>,
}

impl Remote {
    /// Others as the server `name` sees them, which signs with `key`.
    pub fn new(
        name: &ServerName,
        key: Arc<ServerKey>,
        federation: &Federation,
        transport: Transport,
    ) -> Self {
        let peers = match &transport {
            Transport::Network(network) => network.peers().clone(),
            Transport::Memory(_) => Peers::without_certificates(federation),
        };
        Self(Arc::new(Shared {
            name: name.to_owned(),
            key,
            mode: federation.mode,
            notaries: federation.notaries.clone(),
            peers,
            transport,
        }))
    }

    /// Whether this node talks with a server at all. One look into a map: it may be asked before anything else.
    pub fn admits(&self, server: &ServerName) -> bool {
        match self.0.mode {
            FederationMode::Open => true,
            FederationMode::Closed => self.is_peer(server),
            FederationMode::Off => false,
        }
    }

    /// Whether it talks with any server.
    pub fn is_on(&self) -> bool {
        self.0.mode != FederationMode::Off
    }

    /// Whether a server is in the peer table.
    pub fn is_peer(&self, server: &ServerName) -> bool {
        self.0.peers.contains(server)
    }

    /// What the peer table says about a server.
    pub fn peer(&self, server: &ServerName) -> Option<Peer> {
        self.0.peers.get(server).map(|known| known.peer.clone())
    }

    /// The peer table, in the order of the names.
    pub fn peers(&self) -> Vec<(OwnedServerName, Peer)> {
        self.0.peers.all()
    }

    /// Adds or replaces a peer, from the next request on. One of the configuration stays as it is.
    pub fn put_peer(&self, server: &ServerName, peer: Peer) {
        self.0.peers.put(server, peer);
        self.reconnect(server);
    }

    /// Takes a peer away, from the next request on, unless it is one of the configuration.
    pub fn remove_peer(&self, server: &ServerName) {
        self.0.peers.remove(server);
        self.reconnect(server);
    }

    /// Takes the peer table of a configuration, and reads the certificates that it names; the rest of it does not count. Where
    /// it has a peer no more that the one before had, the one of `paired` counts again. Blocks.
    ///
    /// # Errors
    /// When a file cannot be used; then everything stays as it was.
    pub fn reload(
        &self,
        federation: &Federation,
        paired: impl FnMut(&ServerName) -> Option<Peer>,
    ) -> Result<Reloaded, TrustError> {
        match &self.0.transport {
            Transport::Network(network) => network.reload(federation, paired),
            Transport::Memory(_) => Ok(Reloaded {
                authorities: false,
                peers: self.0.peers.reload(federation, paired)?,
            }),
        }
    }

    /// Has the next request to a server begin with a new connection, as there is a reason to think that the kept ones are
    /// dead. Requests that are under way go on.
    pub fn reconnect(&self, server: &ServerName) {
        if let Transport::Network(network) = &self.0.transport {
            network.reconnect(server);
        }
    }

    /// The servers that are asked for the keys of others.
    pub fn notaries(&self) -> &[OwnedServerName] {
        &self.0.notaries
    }

    /// When a server is tried again that has failed.
    pub fn schedule(&self, server: &ServerName) -> Schedule {
        self.0.peers.schedule(server)
    }
}
