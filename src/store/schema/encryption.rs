//! Rows about keys of devices.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{protocol::ids::Position, store::codec::Record};

/// A key that is given once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceKeyRow {
    /// Its id with the algorithm.
    pub id: String,
    /// The key as JSON.
    pub json: String,
}

impl Record for DeviceKeyRow {}

/// A key that is given when there is no other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FallbackKeyRow {
    /// The key.
    pub key: DeviceKeyRow,
    /// Whether it was given.
    pub used: bool,
}

impl Record for FallbackKeyRow {}

/// Keys of a user of another server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteKeysRow {
    /// Nothing is said of later changes.
    pub as_of: Position,
    /// The identity keys of each device as JSON, with the device's name.
    pub devices: BTreeMap<String, String>,
    /// The master key as JSON.
    pub master: Option<String>,
    /// The self-signing key as JSON.
    pub self_signing: Option<String>,
}

impl Record for RemoteKeysRow {
    const VERSION: u8 = 2;

    /// The first version did not have cross-signing keys, so that all of it is to be fetched again.
    fn upgrade(version: u8, _bytes: &[u8]) -> Option<Self> {
        (version == 1).then(Self::default)
    }
}

/// What a user has signed of another one's master key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserSignatureRow {
    /// The id of the master key.
    pub of: String,
    /// The id of the user-signing key.
    pub by: String,
    /// The signature.
    pub signature: String,
}

impl Record for UserSignatureRow {}

/// What a device is told of its keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyCountsRow {
    /// When this last changed.
    pub position: Position,
    /// How many one-time keys there are of each algorithm.
    pub counts: BTreeMap<String, u64>,
    /// The algorithms of the fallback keys, and whether each was given.
    pub fallback: BTreeMap<String, bool>,
    /// The place of the last one-time key that was given of each algorithm: looking for the next one begins behind it, and
    /// not with all that were deleted before.
    pub given: BTreeMap<String, Position>,
}

impl Record for KeyCountsRow {}

/// A backup of room keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyBackupRow {
    /// How its keys are encrypted.
    pub algorithm: String,
    /// What that needs, as JSON.
    pub auth_data: String,
    /// When its keys last changed.
    pub changed: Position,
    /// How many keys it holds.
    pub count: u64,
}

impl Record for KeyBackupRow {}

/// A device that nobody is logged in with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DehydratedRow {
    /// Its id.
    pub device: String,
    /// What its owner needs to bring it back, encrypted, as JSON.
    pub data: String,
}

impl Record for DehydratedRow {}
