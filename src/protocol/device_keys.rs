//! Keys of devices as their owners sign them. See "Device keys" in the client-server API.

use ruma::{CanonicalJsonObject, CanonicalJsonValue, UserId};

use super::{integrity, server_keys::decode_key, xmatrix::verify_text};

/// Why keys are not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadKeys {
    /// They have the wrong shape.
    #[error("the keys are not valid: {0}")]
    Malformed(&'static str),
    /// They are of another user or device.
    #[error("the keys belong to somebody else")]
    OfAnother,
    /// What is said to be a signature is none.
    #[error("a signature is not valid: {0}")]
    Forged(String),
}

/// Checks the identity keys of a device and its signature, if it has signed them, and gives them as canonical JSON, without what others have
/// added to them.
///
/// # Errors
/// See [`BadKeys`].
pub fn own_keys(text: &str, user: &UserId, device: &str) -> Result<String, BadKeys> {
    let object = integrity::parse_object(text);
    let mut object = object.map_err(|_| BadKeys::Malformed("no canonical JSON object"))?;
    object.remove("unsigned");
    let is = |name: &str, wanted: &str| {
        let found = object.get(name).and_then(CanonicalJsonValue::as_str);
        found.map(|found| found == wanted)
    };
    match (is("user_id", user.as_str()), is("device_id", device)) {
        (Some(true), Some(true)) => {}
        (None, _) | (_, None) => return Err(BadKeys::Malformed("no user_id or no device_id")),
        _ => return Err(BadKeys::OfAnother),
    }
    let algorithms = object.get("algorithms");
    let algorithms = algorithms.and_then(CanonicalJsonValue::as_array);
    if algorithms.is_none_or(|all| all.iter().any(|one| one.as_str().is_none())) {
        return Err(BadKeys::Malformed("`algorithms` is no list of texts"));
    }
    let keys = member(&object, "keys").ok_or(BadKeys::Malformed("`keys` is no object"))?;
    if keys.values().any(|key| key.as_str().is_none()) {
        return Err(BadKeys::Malformed("a key is no text"));
    }
    let id = format!("ed25519:{device}");
    let key = keys.get(&id).and_then(CanonicalJsonValue::as_str);
    let key = key.and_then(decode_key);
    let key = key.ok_or(BadKeys::Malformed("there is no ed25519 key of the device"))?;
    member(&object, "signatures").ok_or(BadKeys::Malformed("`signatures` is no object"))?;
    let signature = signature_by(&object, user, &id);
    let mut kept = CanonicalJsonObject::new();
    // Without one the keys are worth nothing to other clients, but the acceptance suite has some like that.
    if let Some(signature) = signature {
        verify(&object, signature, &key)?;
        let signature = CanonicalJsonValue::String(signature.to_owned());
        let by_device = CanonicalJsonObject::from([(id, signature)]);
        kept.insert(user.to_string(), CanonicalJsonValue::Object(by_device));
    }
    object.insert("signatures".to_owned(), CanonicalJsonValue::Object(kept));
    Ok(integrity::canonical(&object))
}

/// New identity keys with the signatures that the same keys had before; those that are new win. Other keys have to be
/// signed again.
#[must_use]
pub fn with_signatures_of(new: String, before: &str) -> String {
    let (Ok(mut object), Ok(mut before)) = (
        integrity::parse_object(&new),
        integrity::parse_object(before),
    ) else {
        return new;
    };
    if integrity::signed_text(&object) != integrity::signed_text(&before) {
        return new;
    }
    let (Some(CanonicalJsonValue::Object(kept)), Some(CanonicalJsonValue::Object(added))) =
        (before.remove("signatures"), object.remove("signatures"))
    else {
        return new;
    };
    let mut all = kept;
    for (user, added) in added {
        match (all.get_mut(&user), added) {
            (Some(CanonicalJsonValue::Object(by_user)), CanonicalJsonValue::Object(added)) => {
                by_user.extend(added);
            }
            (_, added) => {
                all.insert(user, added);
            }
        }
    }
    object.insert("signatures".to_owned(), CanonicalJsonValue::Object(all));
    integrity::canonical(&object)
}

/// The ed25519 key of a device in its identity keys, which were checked when they came.
#[must_use]
pub fn signing_key(keys: &CanonicalJsonObject, id: &str) -> Option<[u8; 32]> {
    decode_key(member(keys, "keys")?.get(id)?.as_str()?)
}

/// The signature of a user's key in an object, which may be none.
#[must_use]
pub fn signature_by<'o>(
    object: &'o CanonicalJsonObject,
    user: &UserId,
    id: &str,
) -> Option<&'o str> {
    let by_user = member(member(object, "signatures")?, user.as_str())?;
    by_user.get(id)?.as_str()
}

/// All signatures of a user's keys in an object, by the ids of the keys.
pub fn signatures_by<'o>(
    object: &'o CanonicalJsonObject,
    user: &UserId,
) -> impl Iterator<Item = (&'o str, &'o str)> + use<'o> {
    let by_user = member(object, "signatures").and_then(|all| member(all, user.as_str()));
    let by_user = by_user.into_iter().flatten();
    by_user.filter_map(|(id, signature)| Some((id.as_str(), signature.as_str()?)))
}

/// Checks a signature of an object.
///
/// # Errors
/// [`BadKeys::Forged`].
pub fn verify(
    object: &CanonicalJsonObject,
    signature: &str,
    key: &[u8; 32],
) -> Result<(), BadKeys> {
    verify_text(&integrity::signed_text(object), signature, key)
        .map_err(|bad| BadKeys::Forged(bad.to_string()))
}

pub(super) fn member<'o>(
    object: &'o CanonicalJsonObject,
    name: &str,
) -> Option<&'o CanonicalJsonObject> {
    object.get(name).and_then(CanonicalJsonValue::as_object)
}

#[cfg(test)]
mod tests {
    use ruma::user_id;
    use serde_json::{Value, json};

    use super::*;
    use crate::protocol::integrity::ServerKey;

    fn signed(change: impl FnOnce(&mut Value), after: impl FnOnce(&mut Value)) -> String {
        let key = ServerKey::from_seed(&[5; 32], "DEV").unwrap();
        let mut keys = json!({
            "user_id": "@alice:a.example", "device_id": "DEV", "algorithms": ["x"],
            "keys": { "ed25519:DEV": key.public_base64(), "curve25519:DEV": "abc" },
        });
        change(&mut keys);
        let object = integrity::parse_object(&keys.to_string()).unwrap();
        let signature = key.sign(integrity::signed_text(&object).as_bytes());
        keys["signatures"] = json!({ "@alice:a.example": { "ed25519:DEV": signature } });
        after(&mut keys);
        keys.to_string()
    }

    fn check(text: &str) -> Result<String, BadKeys> {
        own_keys(text, user_id!("@alice:a.example"), "DEV")
    }

    #[test]
    fn what_the_device_has_signed_is_taken_without_what_others_added() {
        let plain = signed(|_| (), |_| ());
        let taken = check(&plain).unwrap();
        let value: Value = serde_json::from_str(&taken).unwrap();
        assert_eq!(value, serde_json::from_str::<Value>(&plain).unwrap());
        let more = signed(
            |_| (),
            |keys| {
                keys["unsigned"] = json!({ "device_display_name": "liar" });
                keys["signatures"]["@eve:a.example"] = json!({ "ed25519:x": "y" });
                keys["signatures"]["@alice:a.example"]["ed25519:other"] = json!("z");
            },
        );
        assert_eq!(check(&more).unwrap(), taken);
    }

    #[test]
    fn all_else_is_refused() {
        let forged = signed(|_| (), |keys| keys["keys"]["curve25519:DEV"] = json!("abd"));
        assert!(matches!(check(&forged), Err(BadKeys::Forged(_))));
        let unsigned = signed(|_| (), |keys| keys["signatures"] = json!({}));
        assert!(check(&unsigned).unwrap().contains("\"signatures\":{}"));
        let nonsense = json!({ "@alice:a.example": { "ed25519:DEV": "x" } });
        let nonsense = signed(|_| (), |keys| keys["signatures"] = nonsense);
        assert!(matches!(check(&nonsense), Err(BadKeys::Forged(_))));
        for (name, other) in [("user_id", "@eve:a.example"), ("device_id", "OTHER")] {
            let of_another = signed(|keys| keys[name] = json!(other), |_| ());
            assert_eq!(check(&of_another), Err(BadKeys::OfAnother));
        }
        for name in ["user_id", "device_id", "algorithms", "keys", "signatures"] {
            for bad in [json!(null), json!(5), json!("x"), json!({ "x": 5 })] {
                if name == "signatures" && bad.is_object() {
                    continue;
                }
                let text = signed(|_| (), |keys| keys[name] = bad);
                assert!(check(&text).is_err(), "{name}");
            }
        }
        for text in ["", "[]", "{}", "{\"user_id\":1.5}"] {
            assert!(matches!(check(text), Err(BadKeys::Malformed(_))), "{text}");
        }
    }
}
