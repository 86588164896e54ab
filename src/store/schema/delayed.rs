//! Rows about events that are to be sent later.

use ruma::OwnedEventId;
use serde::{Deserialize, Serialize};

use crate::{
    protocol::ids::{EventNid, RoomNid, UserNid},
    store::codec::Record,
};

/// An event that is to be sent later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DelayedRow {
    /// Whose.
    pub user: UserNid,
    /// The device that asked for it; empty for an application service.
    pub device: String,
    /// Where it is to be sent.
    pub room: RoomNid,
    /// Its type.
    pub event_type: String,
    /// Its state key, if it is state.
    pub state_key: Option<String>,
    /// Its content as JSON.
    pub content: String,
    /// How long after `since` it is to be sent, in milliseconds.
    pub delay: u64,
    /// When the delay began, or was begun anew, in milliseconds since the epoch.
    pub since: u64,
    /// When it is tried next, in milliseconds since the epoch.
    pub due: u64,
    /// The piece of state that was there when it was asked for.
    pub seen: Option<EventNid>,
}

impl Record for DelayedRow {}

/// An event that does not wait any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndedRow {
    /// As it waited.
    pub event: DelayedRow,
    /// When it ended, in milliseconds since the epoch.
    pub at: u64,
    /// How.
    pub outcome: Outcome,
}

impl Record for EndedRow {}

/// What has become of such an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It was sent as this event.
    Sent(OwnedEventId),
    /// Somebody has cancelled it.
    Cancelled,
    /// It could not be sent.
    Refused {
        /// The errcode of why.
        errcode: String,
        /// The same for people.
        message: String,
    },
}

/// The outcome of a client's transaction that asked for such an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DelayedTransactionRow {
    /// What it was answered with.
    pub delay_id: String,
    /// When, in milliseconds since the epoch; old rows are dropped.
    pub ts: u64,
}

impl Record for DelayedTransactionRow {}
