//! Rows about other servers.

use ruma::{OwnedEventId, OwnedServerName};
use serde::{Deserialize, Serialize};

use crate::{
    protocol::{
        ids::{Position, ServerNid},
        pairing::Voucher,
    },
    store::codec::Record,
};

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

/// A server that is told what happens here. What it has not got yet is not listed anywhere: it follows from the position
/// up to which it has got everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DestinationRow {
    /// It has got everything up to this position, or needs none of it.
    pub cursor: Position,
    /// The events after the cursor up to this position, and only those, were in a transaction that may have arrived.
    pub sent: Option<Position>,
    /// How often it could not be reached since it was reached the last time.
    pub failures: u32,
    /// Since when, in milliseconds since the epoch; zero when it can be reached.
    pub down_since: u64,
    /// When it could not be reached the last time, in milliseconds since the epoch; zero for never.
    pub last_failure: u64,
    /// When it was reached the last time, in milliseconds since the epoch; zero for never.
    pub last_success: u64,
    /// Why it could not be reached the last time.
    pub last_error: Option<String>,
}

impl Record for DestinationRow {}

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

/// A server with which this node was paired.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerRow {
    /// Where it is.
    pub address: OwnedServerName,
    /// How its certificate is judged.
    pub voucher: Voucher,
    /// When it became a peer, in milliseconds since the epoch.
    pub since: u64,
}

impl Record for PeerRow {}

/// A code for pairing that was made here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerInvitationRow {
    /// Until when it may be used, in milliseconds since the epoch.
    pub expires: u64,
    /// Who has used it. The same server may do so again, as it may not have got the answer.
    pub used_by: Option<OwnedServerName>,
}

impl Record for PeerInvitationRow {}
