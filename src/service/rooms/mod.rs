//! Rooms and their events: the only place that writes them.

mod aggregations;
mod append;
mod by_time;
mod directory;
mod enter;
mod gaps;
mod handshake;
mod head;
mod incoming;
mod invites;
mod mutual;
mod read;
mod recommended;
mod relations;
mod render;
mod resolution;
mod restricted;
mod serve;
mod servers;
mod state;
mod summary;
#[cfg(test)]
pub(crate) mod testing;
mod threads;
mod timeline;
mod unplaced;
mod visibility;

use std::sync::Arc;

use ruma::{OwnedServerName, RoomVersionId, ServerName};

pub use self::{
    append::{NewEvent, Run, Transaction},
    by_time::{AtTime, When},
    directory::{Listed, Listing},
    enter::Entered,
    gaps::{Filled, Gap, connected},
    handshake::Told,
    head::{RoomGuard, RoomHead},
    incoming::{Before, Outcome},
    mutual::Mutual,
    read::Stored,
    relations::Kind,
    restricted::Door,
    serve::{Guest, MAX_BACKFILL, MAX_MISSING_EVENTS, StateBefore},
    state::Members,
    summary::{Child, Stranger, Summary},
    timeline::{MAX_PAGE, Page, Slice, Surroundings},
    unplaced::Unplaced,
    visibility::{Reach, Seen, Sight, ignored, visibility_of},
};
use self::{directory::Directory, head::Heads, read::Events, resolution::Resolutions, serve::Acls};
use super::keyring::Keyring;
use crate::{
    clock::{Clock, Entropy},
    config::{Config, EncryptedRooms},
    error::Result,
    protocol::{
        ids::{ServerNid, StateKeyNid},
        policy,
    },
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
    resolutions: Resolutions,
    acls: Acls,
    directory: Directory,
    default_version: RoomVersionId,
    encrypted: EncryptedRooms,
    server_name: OwnedServerName,
    server: ServerNid,
    /// The key of the state that names a policy server.
    policy: StateKeyNid,
}

impl Rooms {
    pub(super) fn new(
        store: Store,
        clock: Clock,
        entropy: Entropy,
        keyring: Arc<Keyring>,
        config: &Config,
    ) -> Result<Self> {
        aggregations::open(&store)?;
        let budget = config.database.memory.bytes() / 8;
        Ok(Self {
            heads: Heads::default(),
            events: Events::new(budget),
            default_version: config.server.default_room_version.clone(),
            encrypted: config.rooms.encrypted,
            resolutions: Resolutions::default(),
            acls: Acls::default(),
            directory: Directory::default(),
            server_name: keyring.name().to_owned(),
            server: store.server_nid(keyring.name())?,
            policy: store.state_key_nid(policy::STATE, "")?,
            store,
            clock,
            entropy,
            keyring,
        })
    }

    /// The name of this node.
    pub fn server_name(&self) -> &ServerName {
        &self.server_name
    }

    /// The version of rooms that are created without naming one.
    pub fn default_version(&self) -> &RoomVersionId {
        &self.default_version
    }

    /// Which new rooms are encrypted although their creators do not ask for it.
    pub fn encrypted(&self) -> EncryptedRooms {
        self.encrypted
    }
}
