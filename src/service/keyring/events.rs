//! Which keys an event needs, and whether it proves where it is from.

use std::sync::Arc;

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, room_version_rules::RoomVersionRules, serde::Base64,
    signatures::PublicKeyMap,
};

use super::{Keyring, Need};
use crate::{
    error::Result,
    protocol::{
        integrity::{self, BadSignature},
        policy,
        xmatrix::is_key_id,
    },
};

/// What the signatures of an event say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Everybody who must has signed it, and its content is what they have hashed.
    Good,
    /// Everybody who must has signed it, but its content was changed: redact it before use.
    Changed,
    /// Somebody has not signed it, or not with a key that is known and was valid then.
    Bad(BadSignature),
}

/// The most signatures of one server that are looked at.
const MOST_SIGNATURES: usize = 5;

impl Keyring {
    /// The keys that are needed to check an event in a room with these rules. None for an event that nobody could check.
    pub fn needs(object: &CanonicalJsonObject, rules: &RoomVersionRules) -> Vec<Need> {
        let Ok(signers) = integrity::required_signers(object, rules) else {
            return Vec::new();
        };
        let signatures = object
            .get("signatures")
            .and_then(CanonicalJsonValue::as_object);
        let time = object
            .get("origin_server_ts")
            .and_then(CanonicalJsonValue::as_integer)
            .and_then(|time| u64::try_from(i64::from(time)).ok());
        let at = rules.enforce_key_validity.then(|| time.unwrap_or(u64::MAX));
        let mut needs = Vec::new();
        for server in signers {
            let listed = signatures
                .and_then(|all| all.get(server.as_str()))
                .and_then(CanonicalJsonValue::as_object);
            let ids = listed.into_iter().flat_map(|listed| listed.keys());
            // That of a policy server is published nowhere, and proves nothing about the sender.
            let ids = ids.filter(|id| is_key_id(id) && *id != policy::KEY_ID);
            let ids = ids.take(MOST_SIGNATURES);
            needs.extend(ids.map(|id| Need {
                server: server.clone(),
                key_id: id.clone(),
                at,
            }));
        }
        needs
    }

    /// Those of the keys that are held, in the form that checks of signatures take.
    ///
    /// # Errors
    /// When the store fails.
    pub fn key_map(&self, needs: &[Need]) -> Result<PublicKeyMap> {
        let view = self.store.latest();
        let mut map = PublicKeyMap::new();
        for need in needs {
            if let Some(key) = self.held_in(&view, need)? {
                let keys = map.entry(need.server.to_string()).or_default();
                keys.insert(need.key_id.clone(), Base64::new(key.to_vec()));
            }
        }
        Ok(map)
    }

    /// Checks the signatures of an event with the keys that are held. Computes, so many at once belong on a thread for
    /// that.
    ///
    /// # Errors
    /// When the store fails.
    pub fn judge(&self, object: &CanonicalJsonObject, rules: &RoomVersionRules) -> Result<Verdict> {
        let keys = self.key_map(&Self::needs(object, rules))?;
        Ok(match integrity::verify(object, &keys, rules) {
            Ok(true) => Verdict::Good,
            Ok(false) => Verdict::Changed,
            Err(bad) => Verdict::Bad(bad),
        })
    }

    /// Gets the keys that one event needs, and checks its signatures.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn verify_event(
        self: &Arc<Self>,
        object: &CanonicalJsonObject,
        rules: &RoomVersionRules,
    ) -> Result<Verdict> {
        self.obtain(&Self::needs(object, rules)).await?;
        self.judge(object, rules)
    }
}
