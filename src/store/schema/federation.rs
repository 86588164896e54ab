//! Rows about other servers.

use ruma::OwnedEventId;
use serde::{Deserialize, Serialize};

use crate::{protocol::ids::ServerNid, store::codec::Record};

/// A key by which a server signs or has signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerKeyRow {
    /// The public ed25519 key.
    pub key: [u8; 32],
    /// Until when it may be used as far as we know, in milliseconds since the epoch; at most 7 days after we asked.
    pub valid_until: u64,
    /// Since when the server does not sign with it any more, in milliseconds since the epoch.
    pub expired: Option<u64>,
}

impl Record for ServerKeyRow {}

/// The newest document in which a server published its keys, for those who ask us as a notary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyDocumentRow {
    /// Until when its keys may be used, as the server says, in milliseconds since the epoch.
    pub valid_until: u64,
    /// When we got it, in milliseconds since the epoch.
    pub fetched: u64,
    /// The document with the server's own signatures, as canonical JSON.
    pub json: String,
}

impl Record for KeyDocumentRow {}

/// An event that was sent to this node and waits for what it builds on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InboxRow {
    /// Who sent it.
    pub origin: ServerNid,
    /// Its id.
    pub id: OwnedEventId,
    /// The event as it came.
    pub json: String,
}

impl Record for InboxRow {}
