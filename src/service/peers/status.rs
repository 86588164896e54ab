//! How it stands with the peers.

use std::collections::HashMap;

use ruma::OwnedServerName;
use serde::{Deserialize, Serialize};

use super::Peers;
use crate::error::Result;

/// How it stands with a peer. Times are milliseconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// The peer.
    pub server: OwnedServerName,
    /// Where it is; none if it is looked up like any other server.
    pub address: Option<OwnedServerName>,
    /// Whether the configuration file has it.
    pub is_configured: bool,
    /// Since when it cannot be reached; none if it can, or was never tried.
    pub down_since: Option<u64>,
    /// How many events and receipts wait for it.
    pub waiting: usize,
    /// Whether more wait than were counted.
    pub more: bool,
    /// When the oldest event that waits was sent.
    pub oldest: Option<u64>,
    /// When it was reached the last time.
    pub last_success: Option<u64>,
    /// When it could not be reached the last time.
    pub last_failure: Option<u64>,
    /// Why not.
    pub last_error: Option<String>,
}

impl Peers {
    /// How it stands with all peers, in the order of their names.
    ///
    /// # Errors
    /// When the store fails.
    pub fn list(&self) -> Result<Vec<PeerStatus>> {
        let told = self.parts.federation.destinations()?.into_iter();
        let mut told: HashMap<_, _> = told.map(|one| (one.server.clone(), one)).collect();
        let peers = self.parts.remote.peers().into_iter();
        let all = peers.map(|(server, peer)| {
            let told = told.remove(&server);
            let told = told.as_ref();
            PeerStatus {
                address: peer.address,
                is_configured: peer.is_configured,
                down_since: told.and_then(|told| told.down_since),
                waiting: told.map_or(0, |told| told.waiting),
                more: told.is_some_and(|told| told.more),
                oldest: told.and_then(|told| told.oldest),
                last_success: told.and_then(|told| told.last_success),
                last_failure: told.and_then(|told| told.last_failure),
                last_error: told.and_then(|told| told.last_error.clone()),
                server,
            }
        });
        Ok(all.collect())
    }
}
