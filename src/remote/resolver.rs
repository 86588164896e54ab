//! From the name of a server to where it is, and to the names that it must answer to.
//!
//! See "Resolving server names" in the server-server API, whose order this file keeps. Peers whose address is
//! configured skip all of it.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use quick_cache::sync::Cache;
use ruma::{OwnedServerName, ServerName};
use rustls::pki_types;

use super::{
    client::{Network, Ports},
    error::Kind,
    peers::Peer,
    trust,
    well_known::WellKnown,
};
use crate::clock::Clock;

/// How long a found way is used without asking again. It is forgotten at once when it does not work.
const ROUTE_AGE: Duration = Duration::from_mins(5);

/// How many ways are remembered.
const ROUTES: usize = 10_000;

/// How to reach a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Route {
    /// The `Host` header.
    pub(super) host: String,
    /// What its certificate must be for.
    pub(super) tls_name: pki_types::ServerName<'static>,
    /// Where to connect, the first to try first.
    pub(super) targets: Vec<Target>,
    /// Whether it is a peer, which may have a private address.
    pub(super) is_peer: bool,
}

/// A place to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// An address.
    Address(IpAddr, u16),
    /// A name to look up.
    Name(String, u16),
}

/// Finds the way to servers.
#[derive(Debug)]
pub(super) struct Resolver {
    clock: Clock,
    ports: Ports,
    well_known: WellKnown,
    routes: Cache<OwnedServerName, (Instant, Arc<Route>)>,
}

impl Resolver {
    pub(super) fn new(clock: Clock, ports: Ports) -> Self {
        Self {
            well_known: WellKnown::new(clock.clone()),
            clock,
            ports,
            routes: Cache::new(ROUTES),
        }
    }

    /// The way to a server.
    ///
    /// # Errors
    /// When its name can not be one of a host.
    pub(super) async fn route(
        &self,
        server: &ServerName,
        network: &Network,
    ) -> Result<Arc<Route>, Kind> {
        let now = self.clock.instant();
        if let Some((found, route)) = self.routes.get(server)
            && now - found < ROUTE_AGE
        {
            return Ok(route);
        }
        let known = network.peers().get(server);
        let peer = known.as_ref().map(|known| &known.peer);
        let route = Arc::new(self.find(server, peer, network).await?);
        // A server that has become a peer meanwhile is found in another way from now on.
        let is_same = match (&known, &network.peers().get(server)) {
            (Some(before), Some(now)) => Arc::ptr_eq(before, now),
            (before, now) => before.is_none() && now.is_none(),
        };
        if is_same {
            let found = (self.clock.instant(), route.clone());
            self.routes.insert(server.to_owned(), found);
        }
        Ok(route)
    }

    /// Looks for the way anew next time, because the known one did not work.
    pub(super) fn forget(&self, server: &ServerName) {
        self.routes.remove(server);
    }

    /// The same for a server as a peer like this, or as nobody's peer. Nothing is remembered.
    pub(super) async fn find(
        &self,
        server: &ServerName,
        peer: Option<&Peer>,
        network: &Network,
    ) -> Result<Route, Kind> {
        if let Some(address) = peer.and_then(|peer| peer.address.as_deref()) {
            return self.configured(server, address);
        }
        let is_peer = peer.is_some();
        if let Some(route) = self.explicit(server, is_peer)? {
            return Ok(route);
        }
        let host = server.host();
        let delegated = self.well_known.ask(host, is_peer, network).await;
        match delegated {
            Some(delegated) => match self.explicit(&delegated, is_peer)? {
                Some(route) => Ok(route),
                None => self.by_services(&delegated, is_peer, network).await,
            },
            None => self.by_services(server, is_peer, network).await,
        }
    }

    /// A peer whose address is configured. A name there stands for how the peer wants to be called; an address is only
    /// a place.
    fn configured(&self, server: &ServerName, address: &ServerName) -> Result<Route, Kind> {
        let port = address.port().unwrap_or(self.ports.federation);
        let target = target(address, port);
        let called = match target {
            Target::Address(..) => server,
            Target::Name(..) => address,
        };
        Ok(Route {
            host: called.as_str().to_owned(),
            tls_name: tls_name(called)?,
            targets: vec![target],
            is_peer: true,
        })
    }

    /// Steps 1, 2, 3.1 and 3.2: an address, or a name with a port.
    fn explicit(&self, name: &ServerName, is_peer: bool) -> Result<Option<Route>, Kind> {
        if !name.is_ip_literal() && name.port().is_none() {
            return Ok(None);
        }
        let port = name.port().unwrap_or(self.ports.federation);
        Ok(Some(Route {
            host: name.as_str().to_owned(),
            tls_name: tls_name(name)?,
            targets: vec![target(name, port)],
            is_peer,
        }))
    }

    /// Steps 3.3 to 3.5 and 4 to 6: SRV records under either service name, or else port 8448.
    async fn by_services(
        &self,
        name: &ServerName,
        is_peer: bool,
        network: &Network,
    ) -> Result<Route, Kind> {
        let host = name.host();
        let mut targets = Vec::new();
        for service in ["_matrix-fed", "_matrix"] {
            let found = network
                .dns()
                .services(&format!("{service}._tcp.{host}"))
                .await;
            targets.extend(found.into_iter().map(|s| Target::Name(s.host, s.port)));
            if !targets.is_empty() {
                break;
            }
        }
        if targets.is_empty() {
            targets.push(Target::Name(host.to_owned(), self.ports.federation));
        }
        Ok(Route {
            host: host.to_owned(),
            tls_name: tls_name(name)?,
            targets,
            is_peer,
        })
    }
}

/// Where a name with this port leads.
fn target(name: &ServerName, port: u16) -> Target {
    let host = name.host();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    match bare.parse::<IpAddr>() {
        Ok(address) => Target::Address(address, port),
        Err(_) => Target::Name(host.to_owned(), port),
    }
}

fn tls_name(name: &ServerName) -> Result<pki_types::ServerName<'static>, Kind> {
    trust::tls_name(name).ok_or_else(|| Kind::Name(format!("{} is no name of a host", name.host())))
}
