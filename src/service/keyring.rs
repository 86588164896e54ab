//! The node's own signing key: made on the first start, kept in the store.

use ruma::{OwnedServerName, ServerName};

use crate::{
    clock::Entropy,
    error::{Error, Result},
    protocol::integrity::ServerKey,
    store::{Store, schema::NODE},
};

/// Who signs for this node.
pub struct Keyring {
    name: OwnedServerName,
    key: ServerKey,
}

impl Keyring {
    /// Reads the key, or makes one if there is none.
    ///
    /// # Errors
    /// When the store fails or what it holds is not a key.
    pub fn open(store: &Store, entropy: &Entropy, name: &ServerName) -> Result<Self> {
        let seed: [u8; 32] = match NODE.get(&store.view(), &("signing_key",))? {
            Some(stored) => stored
                .try_into()
                .map_err(|_| Error::Internal("the stored signing key is damaged".to_owned()))?,
            None => {
                let seed: [u8; 32] = entropy.bytes();
                let _durable_before_any_event = store.commit(|batch| {
                    NODE.put(batch, &("signing_key",), &seed.to_vec());
                    Ok(())
                })?;
                seed
            }
        };
        // Named after itself, so that another key never has the same name.
        let version = format!(
            "k{:02x}{:02x}{:02x}",
            seed[0] ^ seed[8],
            seed[1] ^ seed[9],
            seed[2] ^ seed[10]
        );
        let key =
            ServerKey::from_seed(&seed, &version).map_err(|e| Error::Internal(e.to_string()))?;
        Ok(Self {
            name: name.to_owned(),
            key,
        })
    }

    /// This node's name.
    pub fn name(&self) -> &ServerName {
        &self.name
    }

    /// The key that signs.
    pub fn key(&self) -> &ServerKey {
        &self.key
    }
}
