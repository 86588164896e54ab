//! The keys with which users say whose devices are theirs and whom they have verified. See "Cross-signing" in the
//! client-server API.

use ruma::{CanonicalJsonObject, CanonicalJsonValue, UserId};

use super::{
    device_keys::{BadKeys, member, signature_by, verify},
    integrity,
    server_keys::decode_key,
};

/// What a cross-signing key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Usage {
    /// It signs the other two, and stands for the user.
    Master,
    /// It signs the user's devices.
    SelfSigning,
    /// It signs the master keys of others; nobody else sees it.
    UserSigning,
}

impl Usage {
    /// The name in `usage`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Master => "master",
            Self::SelfSigning => "self_signing",
            Self::UserSigning => "user_signing",
        }
    }
}

/// A cross-signing key as it is published: its shape was checked, its signatures were not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CrossSigningKey {
    object: CanonicalJsonObject,
    id: String,
    key: [u8; 32],
}

impl CrossSigningKey {
    /// Reads a key that `user` is to have for `usage`. What others have added to it is left out, except signatures.
    ///
    /// # Errors
    /// [`BadKeys::OfAnother`] when it is another user's; [`BadKeys::Malformed`] when it is for something else, does not
    /// hold exactly one key, or that is not named after itself.
    pub fn parse(text: &str, user: &UserId, usage: Usage) -> Result<Self, BadKeys> {
        let object = integrity::parse_object(text);
        let mut object = object.map_err(|_| BadKeys::Malformed("no canonical JSON object"))?;
        object.remove("unsigned");
        let owner = object.get("user_id").and_then(CanonicalJsonValue::as_str);
        match owner {
            Some(owner) if owner == user => {}
            Some(_) => return Err(BadKeys::OfAnother),
            None => return Err(BadKeys::Malformed("no user_id")),
        }
        let usages = object.get("usage").and_then(CanonicalJsonValue::as_array);
        let is_for = |one: &CanonicalJsonValue| one.as_str() == Some(usage.name());
        if !usages.is_some_and(|usages| usages.iter().any(is_for)) {
            return Err(BadKeys::Malformed("it is for something else"));
        }
        let keys = member(&object, "keys").ok_or(BadKeys::Malformed("`keys` is no object"))?;
        let mut keys = keys.iter();
        let (Some((id, public)), None) = (keys.next(), keys.next()) else {
            return Err(BadKeys::Malformed("there is not exactly one key"));
        };
        let public = public.as_str().unwrap_or_default();
        let is_named = id.strip_prefix("ed25519:") == Some(public);
        let key = decode_key(public).filter(|_| is_named);
        let key = key.ok_or(BadKeys::Malformed(
            "it is not an ed25519 key that is named after itself",
        ))?;
        if object.contains_key("signatures") && member(&object, "signatures").is_none() {
            return Err(BadKeys::Malformed("`signatures` is no object"));
        }
        let id = id.clone();
        Ok(Self { object, id, key })
    }

    /// Its id: `ed25519:` and the key itself.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The key itself in base64, which is the name by which it is signed.
    #[must_use]
    pub fn public(&self) -> &str {
        self.id.strip_prefix("ed25519:").unwrap_or(&self.id)
    }

    /// What signatures of it cover.
    #[must_use]
    pub fn signed_text(&self) -> String {
        integrity::signed_text(&self.object)
    }

    /// All of it, for whoever looks for signatures in it.
    #[must_use]
    pub const fn object(&self) -> &CanonicalJsonObject {
        &self.object
    }

    /// Checks that this key of `user` has signed an object, and gives the signature.
    ///
    /// # Errors
    /// [`BadKeys::Forged`] also when there is no signature.
    pub fn has_signed<'o>(
        &self,
        object: &'o CanonicalJsonObject,
        user: &UserId,
    ) -> Result<&'o str, BadKeys> {
        let none = || BadKeys::Forged("there is no signature by the key".to_owned());
        let signature = signature_by(object, user, &self.id).ok_or_else(none)?;
        verify(object, signature, &self.key)?;
        Ok(signature)
    }

    /// As canonical JSON with these signatures of `user` and no others: the id of the key that signed, and the signature.
    #[must_use]
    pub fn signed(&self, user: &UserId, signatures: &[(&str, &str)]) -> String {
        signed(self.object.clone(), user, signatures)
    }

    /// As canonical JSON with the signatures that came with it.
    #[must_use]
    pub fn json(&self) -> String {
        integrity::canonical(&self.object)
    }
}

/// An object as canonical JSON with these signatures of `user` and no others.
#[must_use]
pub fn signed(
    mut object: CanonicalJsonObject,
    user: &UserId,
    signatures: &[(&str, &str)],
) -> String {
    let mut all = CanonicalJsonObject::new();
    add(&mut all, user, signatures);
    object.insert("signatures".to_owned(), CanonicalJsonValue::Object(all));
    integrity::canonical(&object)
}

/// Adds a signature to an object that is JSON; gives it as it is if that cannot be.
#[must_use]
pub fn with_signature(text: String, user: &UserId, signature: (&str, &str)) -> String {
    let Ok(mut object) = integrity::parse_object(&text) else {
        return text;
    };
    let all = object.entry("signatures".to_owned());
    let all = all.or_insert_with(|| CanonicalJsonValue::Object(CanonicalJsonObject::new()));
    let CanonicalJsonValue::Object(all) = all else {
        return text;
    };
    add(all, user, &[signature]);
    integrity::canonical(&object)
}

fn add(all: &mut CanonicalJsonObject, user: &UserId, signatures: &[(&str, &str)]) {
    let text = |text: &str| CanonicalJsonValue::String(text.to_owned());
    let new = signatures.iter();
    let new = new.map(|(id, signature)| ((*id).to_owned(), text(signature)));
    match all.get_mut(user.as_str()) {
        Some(CanonicalJsonValue::Object(by_user)) => by_user.extend(new),
        _ if signatures.is_empty() => {}
        _ => {
            let by_user = CanonicalJsonValue::Object(new.collect());
            all.insert(user.to_string(), by_user);
        }
    }
}

#[cfg(test)]
mod tests {
    use ruma::user_id;
    use serde_json::{Value, json};

    use super::*;
    use crate::protocol::integrity::ServerKey;

    fn pair(seed: u8) -> ServerKey {
        ServerKey::from_seed(&[seed; 32], "x").unwrap()
    }

    fn key(seed: u8, usage: &str) -> Value {
        let public = pair(seed).public_base64().to_owned();
        json!({
            "user_id": "@alice:a.example", "usage": [usage],
            "keys": { format!("ed25519:{public}"): public },
        })
    }

    fn parse(value: &Value, usage: Usage) -> Result<CrossSigningKey, BadKeys> {
        CrossSigningKey::parse(&value.to_string(), user_id!("@alice:a.example"), usage)
    }

    #[test]
    fn a_key_is_named_after_itself_and_says_whose_and_what_for() {
        let good = key(1, "master");
        let parsed = parse(&good, Usage::Master).unwrap();
        assert_eq!(parsed.public(), pair(1).public_base64());
        assert_eq!(parsed.id(), format!("ed25519:{}", parsed.public()));
        assert_eq!(
            parse(&key(1, "self_signing"), Usage::SelfSigning)
                .unwrap()
                .public(),
            parsed.public()
        );
        for usage in [Usage::SelfSigning, Usage::UserSigning] {
            assert!(matches!(parse(&good, usage), Err(BadKeys::Malformed(_))));
        }
        let mut other = good.clone();
        other["user_id"] = json!("@eve:a.example");
        assert_eq!(parse(&other, Usage::Master), Err(BadKeys::OfAnother));
        let (one, two) = (parsed.public(), pair(2).public_base64().to_owned());
        for keys in [
            json!({}),
            json!({ "ed25519:x": one }),
            json!({ format!("curve25519:{one}"): one }),
            json!({ format!("ed25519:{one}"): two }),
            json!({ format!("ed25519:{one}"): one, format!("ed25519:{two}"): two }),
            json!({ "ed25519:x": "x" }),
            json!({ "ed25519:x": 5 }),
            json!([one]),
            json!(null),
        ] {
            let mut bad = good.clone();
            bad["keys"] = keys;
            assert!(
                matches!(parse(&bad, Usage::Master), Err(BadKeys::Malformed(_))),
                "{bad}"
            );
        }
        for (name, value) in [
            ("usage", json!("master")),
            ("signatures", json!(5)),
            ("user_id", json!(5)),
        ] {
            let mut bad = good.clone();
            bad[name] = value;
            assert!(
                matches!(parse(&bad, Usage::Master), Err(BadKeys::Malformed(_))),
                "{bad}"
            );
        }
    }

    #[test]
    fn a_signature_counts_only_if_the_key_has_made_it() {
        let alice = user_id!("@alice:a.example");
        let master = parse(&key(1, "master"), Usage::Master).unwrap();
        let mut own = key(2, "self_signing");
        let object = integrity::parse_object(&own.to_string()).unwrap();
        let signature = pair(1).sign(integrity::signed_text(&object).as_bytes());
        let check = |value: &Value| {
            let key = parse(value, Usage::SelfSigning).unwrap();
            master
                .has_signed(key.object(), alice)
                .map(ToOwned::to_owned)
        };
        assert!(matches!(check(&own), Err(BadKeys::Forged(_))));
        own["signatures"] = json!({ "@alice:a.example": { master.id(): signature } });
        own["unsigned"] = json!({ "x": 1 });
        assert_eq!(check(&own).as_deref(), Ok(&*signature));
        let mut by_another = own.clone();
        by_another["signatures"] = json!({ "@eve:a.example": { master.id(): signature } });
        assert!(matches!(check(&by_another), Err(BadKeys::Forged(_))));
        own["more"] = json!(1);
        assert!(matches!(check(&own), Err(BadKeys::Forged(_))));
    }

    #[test]
    fn signatures_are_added_to_those_that_are_there() {
        let (alice, bob) = (user_id!("@alice:a.example"), user_id!("@bob:b.example"));
        let plain = parse(&key(1, "master"), Usage::Master).unwrap();
        let text = plain.signed(alice, &[("a", "1")]);
        let text = with_signature(text, alice, ("b", "2"));
        let text = with_signature(text, bob, ("c", "3"));
        let value: Value = serde_json::from_str(&text).unwrap();
        let all =
            json!({ "@alice:a.example": { "a": "1", "b": "2" }, "@bob:b.example": { "c": "3" } });
        assert_eq!(value["signatures"], all);
        assert_eq!(
            plain.signed_text(),
            parse(&value, Usage::Master).unwrap().signed_text()
        );
        let none: Value = serde_json::from_str(&plain.signed(alice, &[])).unwrap();
        assert_eq!(none["signatures"], json!({}));
    }
}
