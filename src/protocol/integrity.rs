//! What makes an event unforgeable: canonical JSON, content hash, event id, signatures, redaction and size limits.
//!
//! See "Canonical JSON" and "Signing JSON" in the appendices, and "Signing events" in the server-server API.

use base64::{
    Engine,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use ed25519_dalek::{Signer, SigningKey};
use js_int::Int;
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, EventId, OwnedEventId, OwnedRoomId, OwnedServerName,
    RoomId, ServerName,
    canonical_json::RedactingSerializer,
    room_version_rules::{EventIdFormatVersion, RoomVersionRules},
    signatures::{Ed25519KeyPair, PublicKeyMap, Verified},
};
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use sha2::{Digest, Sha256};

use super::format::push_string;
use super::version;

/// The greatest size of a complete event with its signatures, in bytes. See "Size limits" in the client-server API.
pub const MAX_EVENT_BYTES: usize = 65_536;

/// The greatest size of a sender, room id, state key, type or event id, in bytes. See "Size limits".
pub const MAX_ID_BYTES: usize = 255;

/// The most events that an event may follow. See "PDUs" in the server-server API.
pub const MAX_PREV_EVENTS: usize = 20;

/// The most events that may authorise an event. See "PDUs" in the server-server API.
pub const MAX_AUTH_EVENTS: usize = 10;

/// Members that the content hash does not cover.
const NOT_HASHED: [&str; 3] = ["hashes", "signatures", "unsigned"];

/// Members that neither signature nor event id cover.
const NOT_SIGNED: [&str; 2] = ["signatures", "unsigned"];

/// The DER encoding of an ed25519 private key in PKCS #8, version 1, up to its seed.
const PKCS8_BEFORE_SEED: [u8; 16] = [
    0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20,
];

/// Why a text is not an acceptable JSON object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadJson {
    /// It is not JSON at all: M_NOT_JSON.
    #[error("not JSON: {0}")]
    NotJson(String),
    /// It is JSON, but no canonical JSON can stand for it: a fraction, an exponent, or an integer beyond 2^53 - 1.
    #[error("not canonical JSON: {0}")]
    NotCanonical(String),
    /// It is nested too deeply to be looked at.
    #[error("nested too deeply")]
    TooDeep,
    /// It is JSON, but not an object.
    #[error("not an object")]
    NotObject,
}

/// Why an object can not be hashed, signed or accepted as an event.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadEvent {
    /// A member is missing or of the wrong type.
    #[error("malformed event: {0}")]
    Malformed(String),
    /// The whole event, or one of its ids, is over the limit: M_TOO_LARGE.
    #[error("{what} is {bytes} bytes long, the limit is {limit}")]
    TooLarge {
        /// The member, or "the event".
        what: &'static str,
        /// Its size.
        bytes: usize,
        /// What is allowed.
        limit: usize,
    },
}

/// Why an event or object does not prove where it is from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not validly signed: {0}")]
pub struct BadSignature(pub String);

/// Why a signing key can not be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a key version: letters, digits and underscores only")]
pub struct BadKeyVersion(pub String);

/// The key by which this node signs. See "Signing details" in the appendices.
pub struct ServerKey {
    signing: SigningKey,
    pair: Ed25519KeyPair,
    id: String,
    public: String,
}

impl std::fmt::Debug for ServerKey {
    // The seed must not end up in a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerKey")
            .field("id", &self.id)
            .field("public", &self.public)
            .finish_non_exhaustive()
    }
}

impl ServerKey {
    /// Makes the key from its 32-byte seed and its version, the part after `ed25519:`.
    ///
    /// # Errors
    /// When `version` is empty or has a character that key versions may not have.
    pub fn from_seed(seed: &[u8; 32], version: &str) -> Result<Self, BadKeyVersion> {
        let bad = || BadKeyVersion(version.to_owned());
        if version.is_empty()
            || !version
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'_')
        {
            return Err(bad());
        }
        let signing = SigningKey::from_bytes(seed);
        let public = signing.verifying_key();
        // ruma takes its keys in PKCS #8 only.
        let document: Vec<u8> = PKCS8_BEFORE_SEED.iter().chain(seed).copied().collect();
        let pair = Ed25519KeyPair::from_der(&document, version.to_owned()).map_err(|_| bad())?;
        let public = STANDARD_NO_PAD.encode(public.as_bytes());
        Ok(Self {
            signing,
            pair,
            id: format!("ed25519:{version}"),
            public,
        })
    }

    /// The key's id, `ed25519:VERSION`.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The public half, in unpadded base64.
    #[must_use]
    pub fn public_base64(&self) -> &str {
        &self.public
    }

    /// The same key in the type that ruma's signed requests ask for.
    #[must_use]
    pub fn pair(&self) -> &Ed25519KeyPair {
        &self.pair
    }

    /// The signature of `message`, in unpadded base64.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> String {
        STANDARD_NO_PAD.encode(self.signing.sign(message).to_bytes())
    }
}

/// Reads one JSON object, as strictly as room versions 6 and later and the client API want it.
///
/// See "Canonical JSON" in the appendices.
///
/// # Errors
/// When `text` is not JSON, not an object, not canonical in its numbers, or nested deeper than 127 levels.
pub fn parse_object(text: &str) -> Result<CanonicalJsonObject, BadJson> {
    object_of(parse::<true>(text)?)
}

/// Reads one JSON object for a room of the version with these `rules`: room versions 1 to 5 also take an integer
/// that is written with a fraction, an exponent or a minus before zero, and see the integer that is meant.
///
/// Fractions proper and integers beyond 2^53 - 1 have no canonical form, so no room version takes them here.
///
/// # Errors
/// As [`parse_object`].
pub fn parse_pdu(text: &str, rules: &RoomVersionRules) -> Result<CanonicalJsonObject, BadJson> {
    object_of(if rules.authorization.strict_canonical_json {
        parse::<true>(text)?
    } else {
        parse::<false>(text)?
    })
}

/// Reads one JSON value of any kind; otherwise like [`parse_object`].
///
/// # Errors
/// As [`parse_object`], except that any kind of value is fine.
pub fn parse_value(text: &str) -> Result<CanonicalJsonValue, BadJson> {
    parse::<true>(text)
}

fn object_of(value: CanonicalJsonValue) -> Result<CanonicalJsonObject, BadJson> {
    match value {
        CanonicalJsonValue::Object(object) => Ok(object),
        _ => Err(BadJson::NotObject),
    }
}

fn parse<const STRICT: bool>(text: &str) -> Result<CanonicalJsonValue, BadJson> {
    serde_json::from_str::<Parsed<STRICT>>(text)
        .map(|Parsed(value)| value)
        .map_err(|error| {
            let text = error.to_string();
            if error.is_data() {
                BadJson::NotCanonical(text)
            } else if text.starts_with("recursion limit exceeded") {
                BadJson::TooDeep
            } else {
                BadJson::NotJson(text)
            }
        })
}

/// A value read in one pass; ruma's own goes through a second tree.
struct Parsed<const STRICT: bool>(CanonicalJsonValue);

impl<'de, const STRICT: bool> Deserialize<'de> for Parsed<STRICT> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer
            .deserialize_any(ParsedVisitor::<STRICT>)
            .map(Self)
    }
}

struct ParsedVisitor<const STRICT: bool>;

impl<'de, const STRICT: bool> Visitor<'de> for ParsedVisitor<STRICT> {
    type Value = CanonicalJsonValue;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a value of canonical JSON")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(CanonicalJsonValue::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
        Ok(CanonicalJsonValue::Bool(value))
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Self::Value, E> {
        Int::try_from(value)
            .map(CanonicalJsonValue::Integer)
            .map_err(|_| E::custom(format_args!("the integer {value} is beyond 2^53 - 1")))
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Self::Value, E> {
        Int::try_from(value)
            .map(CanonicalJsonValue::Integer)
            .map_err(|_| E::custom(format_args!("the integer {value} is beyond 2^53 - 1")))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Self::Value, E> {
        // Formatted without a fraction, a float that stands for an integer is that integer's digits.
        let meant = if !STRICT && value.fract() == 0.0 {
            format!("{:.0}", value + 0.0).parse::<i64>().ok()
        } else {
            None
        };
        meant
            .and_then(|number| Int::try_from(number).ok())
            .map(CanonicalJsonValue::Integer)
            .ok_or_else(|| {
                E::custom(format_args!(
                    "{value} is not written as an integer up to 2^53 - 1"
                ))
            })
    }

    fn visit_str<E>(self, value: &str) -> Result<Self::Value, E> {
        Ok(CanonicalJsonValue::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Self::Value, E> {
        Ok(CanonicalJsonValue::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        while let Some(Parsed(item)) = access.next_element::<Parsed<STRICT>>()? {
            items.push(item);
        }
        Ok(CanonicalJsonValue::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
        let mut object = CanonicalJsonObject::new();
        while let Some((key, Parsed(value))) = access.next_entry::<String, Parsed<STRICT>>()? {
            // A key that comes twice has its last value, as with everyone else who reads JSON into a map.
            object.insert(key, value);
        }
        Ok(CanonicalJsonValue::Object(object))
    }
}

/// The one true text of `object`. See "Canonical JSON" in the appendices.
#[must_use]
pub fn canonical(object: &CanonicalJsonObject) -> String {
    let mut out = String::with_capacity(512);
    write_object(&mut out, object, &[]);
    out
}

/// The canonical form of any JSON value, whose numbers may be written in any way as long as they are integers.
///
/// # Errors
/// As [`parse_pdu`], except that any kind of value is fine.
pub fn canonical_lax(text: &str) -> Result<String, BadJson> {
    let mut out = String::with_capacity(text.len());
    write_value(&mut out, &parse::<false>(text)?);
    Ok(out)
}

/// Appends `object` in canonical form, without the members in `skip`.
pub(super) fn write_object(out: &mut String, object: &CanonicalJsonObject, skip: &[&str]) {
    out.push('{');
    let mut first = true;
    for (key, value) in object {
        if skip.contains(&key.as_str()) {
            continue;
        }
        if !first {
            out.push(',');
        }
        first = false;
        push_string(out, key);
        out.push(':');
        write_value(out, value);
    }
    out.push('}');
}

/// Appends `value` in canonical form.
pub(super) fn write_value(out: &mut String, value: &CanonicalJsonValue) {
    match value {
        CanonicalJsonValue::Null => out.push_str("null"),
        CanonicalJsonValue::Bool(true) => out.push_str("true"),
        CanonicalJsonValue::Bool(false) => out.push_str("false"),
        CanonicalJsonValue::Integer(number) => out.push_str(&number.to_string()),
        CanonicalJsonValue::String(text) => push_string(out, text),
        CanonicalJsonValue::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index != 0 {
                    out.push(',');
                }
                write_value(out, item);
            }
            out.push(']');
        }
        CanonicalJsonValue::Object(object) => write_object(out, object, &[]),
    }
}

/// Unpadded base64 of the SHA-256 of `text`.
pub(super) fn sha256_base64(text: &str) -> String {
    STANDARD_NO_PAD.encode(Sha256::digest(text.as_bytes()))
}

/// The event id that the bytes of a redacted event give it.
pub(super) fn id_of_redacted(
    text: &str,
    rules: &RoomVersionRules,
) -> Result<OwnedEventId, BadEvent> {
    let hash = Sha256::digest(text.as_bytes());
    let mut id = String::with_capacity(44);
    id.push('$');
    match rules.event_id_format {
        EventIdFormatVersion::V2 => STANDARD_NO_PAD.encode_string(hash, &mut id),
        _ => URL_SAFE_NO_PAD.encode_string(hash, &mut id),
    }
    EventId::parse(&id)
        .map_err(|error| BadEvent::Malformed(format!("`{id}` is not an event id: {error}")))
}

/// The content hash of an event, in unpadded base64. See "Calculating the content hash for an event".
#[must_use]
pub fn content_hash(object: &CanonicalJsonObject) -> String {
    let mut text = String::with_capacity(1024);
    write_object(&mut text, object, &NOT_HASHED);
    sha256_base64(&text)
}

/// What is signed, and from room version 3 hashed into the id: the redacted event without its signatures.
fn redacted_bytes(
    object: &CanonicalJsonObject,
    rules: &RoomVersionRules,
) -> Result<String, BadEvent> {
    RedactingSerializer::new()
        .rules(&rules.redaction)
        .custom_redacted_root_fields(&NOT_SIGNED)
        .serialize(object)
        .map_err(|error| BadEvent::Malformed(error.to_string()))
}

/// Adds the content hash and our signature, and returns the event's id. See "Signing events".
///
/// Signatures of other servers and keys stay.
///
/// # Errors
/// When `hashes` or `signatures` is no object, or the type or (in versions 1 and 2) the id is missing.
pub fn hash_and_sign(
    object: &mut CanonicalJsonObject,
    key: &ServerKey,
    server_name: &ServerName,
    rules: &RoomVersionRules,
) -> Result<OwnedEventId, BadEvent> {
    let hash = content_hash(object);
    member_object(object, "hashes")?.insert("sha256".to_owned(), CanonicalJsonValue::String(hash));
    sign_event(object, key, server_name, rules)
}

/// Adds our signature to an event whose hash is there already, and returns its id: for invites from other servers and
/// for joins that we authorise.
///
/// # Errors
/// As [`hash_and_sign`].
pub fn sign_event(
    object: &mut CanonicalJsonObject,
    key: &ServerKey,
    server_name: &ServerName,
    rules: &RoomVersionRules,
) -> Result<OwnedEventId, BadEvent> {
    need_str(object, "type")?;
    let text = redacted_bytes(object, rules)?;
    let id = match rules.event_id_format {
        EventIdFormatVersion::V1 => own_id(object)?,
        _ => id_of_redacted(&text, rules)?,
    };
    insert_signature(object, key, server_name, key.sign(text.as_bytes()))?;
    Ok(id)
}

/// What a signature of an object that is no event covers. See "Signing JSON" in the appendices.
#[must_use]
pub fn signed_text(object: &CanonicalJsonObject) -> String {
    let mut text = String::with_capacity(512);
    write_object(&mut text, object, &NOT_SIGNED);
    text
}

/// Adds our signature to any object. See "Signing JSON" in the appendices.
///
/// # Errors
/// When `signatures` is there and no object of objects.
pub fn sign_json(
    object: &mut CanonicalJsonObject,
    key: &ServerKey,
    server_name: &ServerName,
) -> Result<(), BadEvent> {
    let text = signed_text(object);
    insert_signature(object, key, server_name, key.sign(text.as_bytes()))
}

fn insert_signature(
    object: &mut CanonicalJsonObject,
    key: &ServerKey,
    server_name: &ServerName,
    signature: String,
) -> Result<(), BadEvent> {
    let signatures = member_object(object, "signatures")?;
    let ours = member_object(signatures, server_name.as_str())?;
    ours.insert(key.id().to_owned(), CanonicalJsonValue::String(signature));
    Ok(())
}

fn member_object<'a>(
    object: &'a mut CanonicalJsonObject,
    key: &str,
) -> Result<&'a mut CanonicalJsonObject, BadEvent> {
    object
        .entry(key.to_owned())
        .or_insert_with(|| CanonicalJsonValue::Object(CanonicalJsonObject::new()))
        .as_object_mut()
        .ok_or_else(|| BadEvent::Malformed(format!("`{key}` is not an object")))
}

/// The event's id: inside it in room versions 1 and 2, its reference hash in all later ones. See "Event IDs" of each
/// room version.
///
/// # Errors
/// When the event has no type, or no valid id where it should carry one.
pub fn event_id(
    object: &CanonicalJsonObject,
    rules: &RoomVersionRules,
) -> Result<OwnedEventId, BadEvent> {
    if rules.event_id_format == EventIdFormatVersion::V1 {
        return own_id(object);
    }
    need_str(object, "type")?;
    id_of_redacted(&redacted_bytes(object, rules)?, rules)
}

fn own_id(object: &CanonicalJsonObject) -> Result<OwnedEventId, BadEvent> {
    EventId::parse(need_str(object, "event_id")?)
        .map_err(|error| BadEvent::Malformed(format!("`event_id`: {error}")))
}

/// The room that a create event of room version 12 makes: its own id with another sigil. See "Room version 12".
///
/// # Errors
/// When `create` is an id of an older format, which names no room.
pub fn room_id_of_create(create: &EventId) -> Result<OwnedRoomId, BadEvent> {
    let hash = create.as_str().strip_prefix('$').unwrap_or_default();
    let bad = |reason: &str| BadEvent::Malformed(format!("`{create}` names no room: {reason}"));
    if hash.contains(':') {
        return Err(bad("it has a server name"));
    }
    RoomId::parse(format!("!{hash}")).map_err(|error| bad(&error.to_string()))
}

/// The create event of a room of version 12: the room's own id with another sigil; `None` for older rooms' ids.
#[must_use]
pub fn create_of_room_id(room_id: &RoomId) -> Option<OwnedEventId> {
    let hash = room_id
        .as_str()
        .strip_prefix('!')
        .filter(|hash| !hash.contains(':'))?;
    EventId::parse(format!("${hash}")).ok()
}

/// The servers that must have signed an event. See "Validating hashes and signatures on received events".
///
/// # Errors
/// When the sender, or another member that names a server, is missing or no valid id.
pub fn required_signers(
    object: &CanonicalJsonObject,
    rules: &RoomVersionRules,
) -> Result<Vec<OwnedServerName>, BadSignature> {
    ruma::signatures::required_server_signatures_to_verify_event(object, &rules.signatures)
        .map(|servers| servers.into_iter().collect())
        .map_err(|error| BadSignature(error.to_string()))
}

/// Checks that all required servers have signed the event; answers whether its content is what they have hashed.
///
/// `keys` holds the keys that were valid at the event's time, by server and key id. When `false` comes back, the
/// event must be [redacted](redact) before use.
///
/// # Errors
/// When a required signature is missing or wrong.
pub fn verify(
    object: &CanonicalJsonObject,
    keys: &PublicKeyMap,
    rules: &RoomVersionRules,
) -> Result<bool, BadSignature> {
    match ruma::signatures::verify_event(keys, object, rules) {
        Ok(Verified::All) => Ok(true),
        Ok(Verified::Signatures) => Ok(false),
        Err(error) => Err(BadSignature(error.to_string())),
    }
}

/// Checks the signatures of an object that is no event. See "Checking for a signature" in the appendices.
///
/// # Errors
/// When any server that has signed it has no valid signature by a known key.
pub fn verify_json(object: &CanonicalJsonObject, keys: &PublicKeyMap) -> Result<(), BadSignature> {
    ruma::signatures::verify_json(keys, object).map_err(|error| BadSignature(error.to_string()))
}

/// The event without everything that its room version does not protect. See "Redactions" of each room version.
///
/// # Errors
/// When the event has no type.
pub fn redact(
    object: CanonicalJsonObject,
    rules: &RoomVersionRules,
) -> Result<CanonicalJsonObject, BadEvent> {
    ruma::canonical_json::redact(object, &rules.redaction, None)
        .map_err(|error| BadEvent::Malformed(error.to_string()))
}

/// Checks that an event has the members of a PDU, each of the right type and size. See "PDUs" and "Size limits".
///
/// What the members say is looked at by the authorisation rules.
///
/// # Errors
/// When a member is missing, of the wrong type or too large, or the whole event is.
pub fn check_format(
    object: &CanonicalJsonObject,
    rules: &RoomVersionRules,
) -> Result<(), BadEvent> {
    let malformed = |text: String| BadEvent::Malformed(text);
    let event_type = need_str(object, "type")?;
    need_str(object, "sender")?;
    if event_type != "m.room.create" || rules.event_format.require_room_create_room_id {
        need_str(object, "room_id")?;
    }
    if rules.event_format.require_event_id {
        need_str(object, "event_id")?;
    }
    for key in ["type", "sender", "room_id", "event_id", "state_key"] {
        match object.get(key) {
            Some(CanonicalJsonValue::String(text)) => {
                let in_characters = version::counts_characters(rules, key);
                if !in_characters || text.chars().count() > MAX_ID_BYTES {
                    check_id_size(key, text)?;
                }
            }
            Some(_) => return Err(malformed(format!("`{key}` is not a string"))),
            None => {}
        }
    }
    for (key, most) in [
        ("prev_events", MAX_PREV_EVENTS),
        ("auth_events", MAX_AUTH_EVENTS),
    ] {
        let items = object
            .get(key)
            .and_then(CanonicalJsonValue::as_array)
            .ok_or_else(|| malformed(format!("`{key}` is missing or not an array")))?;
        if items.len() > most {
            return Err(malformed(format!(
                "`{key}` has {} entries, the limit is {most}",
                items.len()
            )));
        }
    }
    for key in ["depth", "origin_server_ts"] {
        let number = object.get(key).and_then(CanonicalJsonValue::as_integer);
        if number.is_none_or(|number| number < Int::from(0_u8)) {
            return Err(malformed(format!(
                "`{key}` is missing or not a positive integer"
            )));
        }
    }
    for key in ["content", "hashes", "signatures"] {
        if !object.get(key).is_some_and(CanonicalJsonValue::is_object) {
            return Err(malformed(format!("`{key}` is missing or not an object")));
        }
    }
    let mut text = String::with_capacity(1024);
    write_object(&mut text, object, &["unsigned"]);
    check_event_size(text.len())
}

/// Checks the size of a sender, room id, state key, type or event id. See "Size limits".
///
/// # Errors
/// When it is over 255 bytes.
pub fn check_id_size(what: &str, text: &str) -> Result<(), BadEvent> {
    let what = match what {
        "type" => "`type`",
        "sender" => "`sender`",
        "room_id" => "`room_id`",
        "event_id" => "`event_id`",
        _ => "`state_key`",
    };
    let bytes = text.len();
    if bytes > MAX_ID_BYTES {
        Err(BadEvent::TooLarge {
            what,
            bytes,
            limit: MAX_ID_BYTES,
        })
    } else {
        Ok(())
    }
}

/// Checks the size of a complete event. See "Size limits".
///
/// # Errors
/// When it is over 65,536 bytes.
pub fn check_event_size(bytes: usize) -> Result<(), BadEvent> {
    if bytes > MAX_EVENT_BYTES {
        Err(BadEvent::TooLarge {
            what: "the event",
            bytes,
            limit: MAX_EVENT_BYTES,
        })
    } else {
        Ok(())
    }
}

fn need_str<'a>(object: &'a CanonicalJsonObject, key: &str) -> Result<&'a str, BadEvent> {
    object
        .get(key)
        .and_then(CanonicalJsonValue::as_str)
        .ok_or_else(|| BadEvent::Malformed(format!("`{key}` is missing or not a string")))
}

#[cfg(test)]
mod tests;
