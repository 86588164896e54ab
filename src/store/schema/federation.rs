//! Rows about other servers.

use ruma::{OwnedEventId, OwnedServerName};
use serde::{Deserialize, Serialize};

use crate::{
    protocol::{
        ids::{Position, RoomNid, ServerNid},
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

/// An event for a server that is not in its room any more, or not yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtraRow {
    /// The room.
    pub room: RoomNid,
    /// Since when the server was in the room, until this event: what it has not got from then on is for it, too. The
    /// position of the event if it was not there.
    pub since: Position,
}

impl Record for ExtraRow {
    const VERSION: u8 = 2;

    fn upgrade(version: u8, bytes: &[u8]) -> Option<Self> {
        // There was only the number of the room, whose first byte is zero.
        let room = [&[version], bytes].concat().try_into().ok()?;
        Some(Self {
            room: RoomNid(u64::from_be_bytes(room)),
            since: Position(u64::MAX),
        })
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::codec::Value as _;

    #[test]
    fn a_server_to_be_told_apart_is_read_as_it_was_written_before() {
        let old = (RoomNid(70_000),).to_bytes();
        let (room, since) = (RoomNid(70_000), Position(u64::MAX));
        assert_eq!(ExtraRow::from_bytes(&old), Some(ExtraRow { room, since }));
        let since = Position(5);
        let new = ExtraRow { room, since };
        assert_eq!(ExtraRow::from_bytes(&new.to_bytes()), Some(new));
    }
}
