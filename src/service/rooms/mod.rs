//! Rooms and their events: the only place that writes them.

mod append;
mod head;
mod read;
mod relations;
mod render;
mod state;
#[cfg(test)]
pub(crate) mod testing;
mod timeline;
mod visibility;

use std::sync::Arc;

use ruma::{OwnedServerName, RoomVersionId, ServerName};

pub use self::{
    append::{NewEvent, Run, Transaction},
    head::{RoomGuard, RoomHead},
    read::Stored,
    relations::Kind,
    state::Members,
    timeline::{MAX_PAGE, Page, Slice},
    visibility::{Reach, Seen, Sight},
};
use self::{head::Heads, read::Events};
use super::keyring::Keyring;
use crate::{
    clock::{Clock, Entropy},
    config::Config,
    store::Store,
};

/// Rooms and their events.
pub struct Rooms {
    store: Store,
    clock: Clock,
    entropy: Entropy,
    keyring: Arc<Keyring>,
    heads: Heads,
    events: Events,
    default_version: RoomVersionId,
    server_name: OwnedServerName,
}

impl Rooms {
    pub(super) fn new(
        store: Store,
        clock: Clock,
        entropy: Entropy,
        keyring: Arc<Keyring>,
        config: &Config,
    ) -> Self {
        let budget = config.database.memory.bytes() / 8;
        Self {
            heads: Heads::default(),
            events: Events::new(budget),
            default_version: config.server.default_room_version.clone(),
            server_name: keyring.name().to_owned(),
            store,
            clock,
            entropy,
            keyring,
        }
    }

    /// The name of this node.
    pub fn server_name(&self) -> &ServerName {
        &self.server_name
    }

    /// The version of rooms that are created without naming one.
    pub fn default_version(&self) -> &RoomVersionId {
        &self.default_version
    }
}
