//! Keys: the one this node signs with, made on the first start and kept in the store, and those of other servers.

mod events;
mod notary;
mod others;
mod requests;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use quick_cache::sync::Cache;
use ruma::{CanonicalJsonObject, OwnedServerName, ServerName};
use tokio::sync::Semaphore;

use self::others::{FETCHES, Flight, SERVERS};
pub use self::{
    events::Verdict,
    notary::{Asked, MOST_ASKED},
    others::Need,
};
use crate::{
    clock::{Clock, Entropy},
    error::{Error, Result},
    protocol::{
        integrity::ServerKey,
        server_keys::{self, MAX_VALIDITY_MS, OldKey},
    },
    remote::Remote,
    store::{Store, schema::NODE},
};

/// Where the seed of the key in use is kept.
const SEED: (&str,) = ("signing_key",);

/// Where the public halves of earlier keys are kept, as JSON.
const OLD: (&str,) = ("old_signing_keys",);

/// The keys that this node has signed with.
#[derive(Clone, Debug)]
pub struct OwnKeys {
    /// The one in use.
    pub key: Arc<ServerKey>,
    /// Earlier ones, the oldest first.
    pub old: Vec<OldKey>,
}

impl OwnKeys {
    /// Reads the keys, or makes one if there is none.
    ///
    /// # Errors
    /// When the store fails or what it holds is not a key.
    pub fn open(store: &Store, entropy: &Entropy) -> Result<Self> {
        let view = store.view();
        let seed: [u8; 32] = match NODE.get(&view, &SEED)? {
            Some(stored) => stored.try_into().map_err(|_| damaged())?,
            None => {
                let seed: [u8; 32] = entropy.bytes();
                let _durable_before_any_event = store.commit(|batch| {
                    NODE.put(batch, &SEED, &seed.to_vec());
                    Ok(())
                })?;
                seed
            }
        };
        let old = match NODE.get(&view, &OLD)? {
            Some(json) => serde_json::from_slice(&json).map_err(|_| damaged())?,
            None => Vec::new(),
        };
        Ok(Self {
            key: Arc::new(key_of(&seed)?),
            old,
        })
    }

    /// Replaces the key in use by a new one. The old one stays published, so that what it has signed stays valid. For a
    /// node that is stopped: a running one goes on with the key that it has.
    ///
    /// # Errors
    /// When the store fails.
    pub fn rotate(store: &Store, clock: &Clock, entropy: &Entropy) -> Result<Self> {
        let mut keys = Self::open(store, entropy)?;
        keys.old.push(OldKey {
            id: keys.key.id().to_owned(),
            key: keys.key.public_base64().to_owned(),
            expired_ts: clock.now_ms(),
        });
        let seed = loop {
            let seed: [u8; 32] = entropy.bytes();
            let id = key_of(&seed)?.id().to_owned();
            // The id is short; two keys must never have the same.
            if keys.old.iter().all(|old| old.id != id) {
                break seed;
            }
        };
        let old = serde_json::to_vec(&keys.old)
            .map_err(|e| Error::Internal(format!("old keys cannot be written: {e}")))?;
        let _durable_when_the_store_closes = store.commit(|batch| {
            NODE.put(batch, &SEED, &seed.to_vec());
            NODE.put(batch, &OLD, &old);
            Ok(())
        })?;
        keys.key = Arc::new(key_of(&seed)?);
        Ok(keys)
    }
}

fn damaged() -> Error {
    Error::Internal("the stored signing key is damaged".to_owned())
}

fn key_of(seed: &[u8; 32]) -> Result<ServerKey> {
    // Named after itself, so that another key never has the same name.
    let version = format!(
        "k{:02x}{:02x}{:02x}",
        seed[0] ^ seed[8],
        seed[1] ^ seed[9],
        seed[2] ^ seed[10]
    );
    ServerKey::from_seed(seed, &version).map_err(|e| Error::Internal(e.to_string()))
}

/// Who signs for this node, and by which keys others do.
pub struct Keyring {
    name: OwnedServerName,
    own: OwnKeys,
    store: Store,
    clock: Clock,
    entropy: Entropy,
    remote: Remote,
    /// Who is being asked, or was lately.
    flights: Cache<OwnedServerName, Arc<tokio::sync::Mutex<Flight>>>,
    /// How many are asked at the same time.
    seats: Semaphore,
}

impl Keyring {
    /// The keyring of the node `name`, which asks for the keys of others through `remote`.
    pub fn new(
        name: &ServerName,
        own: OwnKeys,
        store: Store,
        clock: Clock,
        entropy: Entropy,
        remote: Remote,
    ) -> Self {
        Self {
            name: name.to_owned(),
            own,
            store,
            clock,
            entropy,
            remote,
            flights: Cache::new(SERVERS),
            seats: Semaphore::new(FETCHES),
        }
    }

    /// This node's name.
    pub fn name(&self) -> &ServerName {
        &self.name
    }

    /// The key that signs.
    pub fn key(&self) -> &ServerKey {
        &self.own.key
    }

    /// The document in which this node publishes its keys, signed. See "Publishing Keys".
    pub fn document(&self) -> CanonicalJsonObject {
        // As long as anybody may use it: a link that is down for days must not make what we sign worthless.
        let valid_until = self.clock.now_ms().saturating_add(MAX_VALIDITY_MS);
        server_keys::publish(&self.name, &self.own.key, &self.own.old, valid_until)
    }
}
