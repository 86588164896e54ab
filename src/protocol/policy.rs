//! Policy servers: whether an event needs the signature of one, and whether it has it. See "Policy Servers" in the
//! server-server API.

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedServerName, ServerName,
    events::{TimelineEventType, room::policy::RoomPolicyEventContent},
    room_version_rules::RoomVersionRules,
    serde::{
        Base64,
        base64::{Standard, UrlSafe},
    },
    signatures::verify_policy_server_signature,
};
use serde::Deserialize;
use serde_json::Value;

use super::integrity::BadSignature;

/// The type of the state event that names a policy server.
pub const STATE: &str = "m.room.policy";

/// The key by which every policy server signs. It is published in the room, and nowhere else.
pub const KEY_ID: &str = "ed25519:policy_server";

/// Who decides what is recommended for a room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyServer {
    name: OwnedServerName,
    /// The public half; one that is no key fits no signature.
    key: Base64,
}

impl PolicyServer {
    /// The one that an `m.room.policy` with this content names, if it is valid. Whether it is in the room is for
    /// whoever asks to find out.
    #[must_use]
    pub fn named(content: &str) -> Option<Self> {
        #[derive(Deserialize)]
        struct Content {
            via: OwnedServerName,
            public_keys: Keys,
        }
        #[derive(Deserialize)]
        struct Keys {
            ed25519: String,
        }
        let Content { via, public_keys } = serde_json::from_str(content).ok()?;
        let text = &public_keys.ed25519;
        let key = Base64::<Standard>::parse(text)
            .or_else(|_| Base64::<UrlSafe>::parse(text).map(|key| Base64::new(key.into_inner())));
        Some(Self {
            name: via,
            key: key.unwrap_or_else(|_| Base64::empty()),
        })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &ServerName {
        &self.name
    }

    /// Whether it has signed an event, redacted or not.
    #[must_use]
    pub fn has_signed(&self, object: &CanonicalJsonObject, rules: &RoomVersionRules) -> bool {
        let policy = RoomPolicyEventContent::new(self.name.clone(), self.key.clone());
        verify_policy_server_signature(&policy, object, rules).is_ok()
    }

    /// Adds its signature to an event, and nothing else, from its answer to `/_matrix/policy/v1/sign`.
    ///
    /// # Errors
    /// When there is none in it, or a wrong one.
    pub fn sign(
        &self,
        object: &mut CanonicalJsonObject,
        answer: &Value,
        rules: &RoomVersionRules,
    ) -> Result<(), BadSignature> {
        let bad = |problem: &str| BadSignature(problem.to_owned());
        let signature = answer
            .get(self.name.as_str())
            .and_then(|signatures| signatures.get(KEY_ID)?.as_str());
        let signature = signature.ok_or_else(|| bad("the policy server gave no signature"))?;
        let mut inner = &mut *object;
        for member in ["signatures", self.name.as_str()] {
            inner = inner
                .entry(member.to_owned())
                .or_insert_with(|| CanonicalJsonObject::new().into())
                .as_object_mut()
                .ok_or_else(|| bad("its signatures are no objects"))?;
        }
        inner.insert(KEY_ID.to_owned(), CanonicalJsonValue::from(signature));
        if self.has_signed(object, rules) {
            Ok(())
        } else {
            Err(bad("the signature is not by the policy server's key"))
        }
    }
}

/// Whether a policy server is asked about events of this kind: about all but those that name one, so that a room can
/// always get rid of one that is away.
#[must_use]
pub fn is_asked_about(event_type: &TimelineEventType, state_key: Option<&str>) -> bool {
    state_key != Some("") || event_type.to_string() != STATE
}

#[cfg(test)]
mod tests;
