//! The document in which a server publishes the keys it signs with: reading and checking those of others, and writing
//! our own.
//!
//! See "Publishing Keys" in the server-server API. Nothing is believed of a document that its own keys have not signed.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use js_int::UInt;
use ruma::{CanonicalJsonObject, CanonicalJsonValue, ServerName};

use super::{
    integrity::{self, ServerKey},
    xmatrix::{is_key_id, verify_text},
};

/// The longest document that is looked at, in bytes.
pub const MAX_DOCUMENT_BYTES: usize = 64 << 10;

/// The most keys in one document; what is beyond is no server that changes its key now and then.
const MAX_KEYS: usize = 200;

/// How long a document may be used at most, in milliseconds, whatever it says itself: "Servers MUST use the lesser of
/// this field and 7 days into the future when determining if a key is valid."
pub const MAX_VALIDITY_MS: u64 = 7 * 24 * 60 * 60 * 1000;

/// A key by which a server has signed, with its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifyKey {
    /// The public ed25519 key.
    pub key: [u8; 32],
    /// Since when the server does not sign with it any more, in milliseconds since 1970; none for one in use.
    pub expired: Option<u64>,
}

/// A document that was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerKeys {
    /// Keys in use and old ones, by id.
    pub keys: BTreeMap<String, VerifyKey>,
    /// Until when the keys in use may be used, in milliseconds since 1970, as the server says.
    pub valid_until: u64,
    /// The document as it came, in canonical form.
    pub document: CanonicalJsonObject,
}

/// Why a document is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadKeys(String);

impl ServerKeys {
    /// Reads the document of `server` and checks that the keys in it have signed it.
    ///
    /// # Errors
    /// When it is too large, malformed, of another server, or not signed by every key in use that claims to have.
    pub fn parse(text: &str, server: &ServerName) -> Result<Self, BadKeys> {
        let bad = |what: &str| BadKeys(what.to_owned());
        if text.len() > MAX_DOCUMENT_BYTES {
            return Err(bad("the document with the keys is too large"));
        }
        let document = integrity::parse_object(text).map_err(|e| BadKeys(e.to_string()))?;
        Self::check(document, server)
    }

    /// The same for a document that was taken out of a larger one, as notaries send them.
    ///
    /// # Errors
    /// As [`parse`](Self::parse).
    pub fn check(document: CanonicalJsonObject, server: &ServerName) -> Result<Self, BadKeys> {
        let bad = |what: &str| BadKeys(what.to_owned());
        let text = |name: &str| document.get(name).and_then(CanonicalJsonValue::as_str);
        if text("server_name") != Some(server.as_str()) {
            return Err(bad("the document with the keys is another server's"));
        }
        let valid_until = time(&document, "valid_until_ts")
            .ok_or_else(|| bad("`valid_until_ts` is missing or not a time"))?;
        let mut keys = BTreeMap::new();
        for (name, old) in [("old_verify_keys", true), ("verify_keys", false)] {
            let listed = match document.get(name) {
                Some(CanonicalJsonValue::Object(listed)) => listed,
                None if old => continue,
                _ => return Err(BadKeys(format!("`{name}` is missing or not an object"))),
            };
            if listed.len() > MAX_KEYS {
                return Err(bad("there are too many keys"));
            }
            for (id, value) in listed {
                // Other algorithms may come one day.
                if !is_key_id(id) {
                    continue;
                }
                let wrong = || BadKeys(format!("the key `{id}` is malformed"));
                let value = value.as_object().ok_or_else(wrong)?;
                let key = value.get("key").and_then(CanonicalJsonValue::as_str);
                let key = key.and_then(decode_key).ok_or_else(wrong)?;
                let expired = if old {
                    Some(time(value, "expired_ts").ok_or_else(wrong)?)
                } else {
                    None
                };
                // A key in use is no old one, whatever the other list says.
                keys.insert(id.clone(), VerifyKey { key, expired });
            }
        }
        check_signatures(&document, server, &keys)?;
        Ok(Self {
            keys,
            valid_until,
            document,
        })
    }
}

/// At least one key in use must have signed, and no signature by one may be wrong.
fn check_signatures(
    document: &CanonicalJsonObject,
    server: &ServerName,
    keys: &BTreeMap<String, VerifyKey>,
) -> Result<(), BadKeys> {
    let signed = integrity::signed_text(document);
    let signatures = document
        .get("signatures")
        .and_then(CanonicalJsonValue::as_object)
        .and_then(|signatures| signatures.get(server.as_str()))
        .and_then(CanonicalJsonValue::as_object);
    let mut proven = false;
    for (id, signature) in signatures.into_iter().flatten() {
        let Some(key) = keys.get(id) else { continue };
        let signature = signature.as_str().unwrap_or_default();
        verify_text(&signed, signature, &key.key)
            .map_err(|_| BadKeys(format!("the signature by `{id}` does not fit")))?;
        proven |= key.expired.is_none();
    }
    if proven {
        Ok(())
    } else {
        Err(BadKeys("no key in use has signed the document".to_owned()))
    }
}

/// The 32 bytes of a key in unpadded base64.
#[must_use]
pub fn decode_key(text: &str) -> Option<[u8; 32]> {
    let bytes = STANDARD_NO_PAD.decode(text.trim_end_matches('=')).ok()?;
    bytes.try_into().ok()
}

fn time(object: &CanonicalJsonObject, name: &str) -> Option<u64> {
    let number = object.get(name)?.as_integer()?;
    u64::try_from(i64::from(number)).ok()
}

/// A key that this node has signed with, and until when.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct OldKey {
    /// Its id.
    pub id: String,
    /// Its public half, in unpadded base64.
    pub key: String,
    /// When it was replaced, in milliseconds since 1970.
    pub expired_ts: u64,
}

/// The document in which a server publishes its keys, signed by the one in use.
#[must_use]
pub fn publish(
    server: &ServerName,
    key: &ServerKey,
    old: &[OldKey],
    valid_until: u64,
) -> CanonicalJsonObject {
    let text = |text: &str| CanonicalJsonValue::String(text.to_owned());
    // Times beyond 2^53 are 200,000 years away.
    let number = |number: u64| {
        CanonicalJsonValue::Integer(UInt::try_from(number).unwrap_or(UInt::MAX).into())
    };
    let object = |members: Vec<(String, CanonicalJsonValue)>| {
        CanonicalJsonValue::Object(members.into_iter().collect())
    };
    let listed = |key: &str| ("key".to_owned(), text(key));
    let in_use = (
        key.id().to_owned(),
        object(vec![listed(key.public_base64())]),
    );
    let old = old.iter().filter(|old| old.id != key.id()).map(|old| {
        let expired = ("expired_ts".to_owned(), number(old.expired_ts));
        (old.id.clone(), object(vec![listed(&old.key), expired]))
    });
    let mut document = CanonicalJsonObject::from([
        ("server_name".to_owned(), text(server.as_str())),
        ("valid_until_ts".to_owned(), number(valid_until)),
        ("verify_keys".to_owned(), object(vec![in_use])),
        ("old_verify_keys".to_owned(), object(old.collect())),
    ]);
    integrity::sign_json(&mut document, key, server).expect("it has no signatures yet");
    document
}

#[cfg(test)]
mod tests {
    use ruma::server_name;
    use serde_json::{Value, json};

    use super::*;

    fn key(seed: u8) -> ServerKey {
        ServerKey::from_seed(&[seed; 32], &format!("k{seed}")).unwrap()
    }

    fn document() -> CanonicalJsonObject {
        let old = OldKey {
            id: "ed25519:k2".to_owned(),
            key: key(2).public_base64().to_owned(),
            expired_ts: 500,
        };
        publish(server_name!("a.example"), &key(1), &[old], 1_000)
    }

    type Change<'c> = &'c dyn Fn(&mut Value);

    fn check(text: &str) -> Result<ServerKeys, BadKeys> {
        ServerKeys::parse(text, server_name!("a.example"))
    }

    #[test]
    fn what_we_publish_is_believed() {
        let document = document();
        let keys = check(&integrity::canonical(&document)).unwrap();
        assert_eq!(keys.valid_until, 1_000);
        assert_eq!(keys.document, document);
        let times: Vec<_> = keys
            .keys
            .iter()
            .map(|(id, key)| (id.as_str(), key.expired))
            .collect();
        assert_eq!(times, [("ed25519:k1", None), ("ed25519:k2", Some(500))]);
        assert_eq!(
            Some(keys.keys["ed25519:k1"].key),
            decode_key(key(1).public_base64())
        );
    }

    #[test]
    fn what_its_keys_have_not_signed_is_not() {
        let good: Value = serde_json::from_str(&integrity::canonical(&document())).unwrap();
        assert!(check(&good.to_string()).is_ok());
        let signature = good["signatures"]["a.example"]["ed25519:k1"].clone();
        let cases: [(Change<'_>, &str); 10] = [
            (&|d| d["valid_until_ts"] = json!(2_000), "does not fit"),
            (
                &|d| d["server_name"] = json!("b.example"),
                "another server's",
            ),
            (&|d| d["signatures"] = json!({}), "no key in use"),
            (
                &|d| d["signatures"]["a.example"] = json!({ "ed25519:k9": signature }),
                "no key in use",
            ),
            (
                &|d| d["signatures"]["a.example"]["ed25519:k2"] = signature.clone(),
                "does not fit",
            ),
            (&|d| d["verify_keys"] = json!([]), "`verify_keys`"),
            (
                &|d| d["verify_keys"]["ed25519:k1"]["key"] = json!("AA"),
                "malformed",
            ),
            (
                &|d| d["old_verify_keys"]["ed25519:k2"]["expired_ts"] = json!("x"),
                "malformed",
            ),
            (&|d| d["valid_until_ts"] = json!(-1), "`valid_until_ts`"),
            (
                &|d| d["x"] = json!("x".repeat(MAX_DOCUMENT_BYTES)),
                "too large",
            ),
        ];
        for (change, expect) in cases {
            let mut changed = good.clone();
            change(&mut changed);
            let told = check(&changed.to_string()).unwrap_err().to_string();
            assert!(told.contains(expect), "{told}, not {expect}");
        }
        for text in ["", "[]", "{}", "{\"server_name\":1.5}"] {
            assert!(check(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_key_in_use_is_not_old() {
        let old = OldKey {
            id: "ed25519:k1".to_owned(),
            key: key(1).public_base64().to_owned(),
            expired_ts: 500,
        };
        let document = publish(server_name!("a.example"), &key(1), &[old], 1_000);
        assert_eq!(
            document["old_verify_keys"],
            CanonicalJsonValue::Object(BTreeMap::new())
        );
    }
}
