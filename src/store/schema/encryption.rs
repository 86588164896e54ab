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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteKeysRow {
    /// Nothing is said of later changes.
    pub as_of: Position,
    /// The identity keys of each device as JSON, with the device's name.
    pub devices: BTreeMap<String, String>,
}

impl Record for RemoteKeysRow {}

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
