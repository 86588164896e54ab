//! Talking to other servers: who they are, where they are, and whether it is them. Knows HTTP, not the database.
//!
//! [`Remote`] is what the services hold. Below it is a [`Transport`], which is the real network or, for simulations, one
//! in memory.

mod address;
mod client;
mod dns;
mod error;
mod keys;
pub mod memory;
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

pub use self::{
    client::{Limits, Network, Ports},
    dns::{FixedNames, Service},
    error::{Error, Kind, Result},
    memory::Lan,
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
}

/// The other servers, as this node talks to them.
#[derive(Clone, Debug)]
pub struct Remote(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    name: OwnedServerName,
    key: Arc<ServerKey>,
    federation: Federation,
    transport: Transport,
}

impl Remote {
    /// Others as the server `name` sees them, which signs with `key`.
    pub fn new(
        name: &ServerName,
        key: Arc<ServerKey>,
        federation: &Federation,
        transport: Transport,
    ) -> Self {
        Self(Arc::new(Shared {
            name: name.to_owned(),
            key,
            federation: federation.clone(),
            transport,
        }))
    }

    /// Whether this node talks with a server at all.
    pub fn admits(&self, server: &ServerName) -> bool {
        self.0.federation.admits(server)
    }

    /// Whether it talks with any server.
    pub fn is_on(&self) -> bool {
        self.0.federation.mode != FederationMode::Off
    }

    /// Whether a server is in the peer table.
    pub fn is_peer(&self, server: &ServerName) -> bool {
        self.0.federation.peers.contains_key(server)
    }

    /// The servers of the peer table.
    pub fn peers(&self) -> impl Iterator<Item = &ServerName> {
        self.0.federation.peers.keys().map(|name| &**name)
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
        &self.0.federation.notaries
    }

    /// When a server is tried again that has failed.
    pub fn schedule(&self, server: &ServerName) -> Schedule {
        resolver::schedule(self.0.federation.peers.get(server))
    }
}
