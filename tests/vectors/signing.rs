//! The examples of the appendices: "Canonical JSON" and "Cryptographic Test Vectors".

use kontor::protocol::integrity::{
    ServerKey, canonical, content_hash, hash_and_sign, parse_object, parse_pdu, sign_json,
};
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, ServerName, room_version_rules::RoomVersionRules,
    serde::Base64,
};
use serde::Deserialize;

#[derive(Deserialize)]
struct Canonical {
    json: String,
    canonical: String,
}

#[derive(Deserialize)]
struct Signing {
    seed: String,
    server_name: String,
    key_version: String,
    json: Vec<Signed>,
    events: Vec<Signed>,
}

#[derive(Deserialize)]
struct Signed {
    given: CanonicalJsonObject,
    signed: CanonicalJsonObject,
}

impl Signing {
    fn read() -> (Self, ServerKey) {
        let signing: Self = super::data(include_str!("signing.json"));
        // Its last letter has bits that stand for nothing, which base64 commonly forbids.
        let seed: Base64 = Base64::parse(&signing.seed).expect("base64");
        let seed = seed.into_inner().try_into().expect("32 bytes");
        let key = ServerKey::from_seed(&seed, &signing.key_version).expect("a key");
        (signing, key)
    }

    fn server(&self) -> &ServerName {
        (&*self.server_name).try_into().expect("a server name")
    }
}

#[test]
fn canonical_json() {
    let examples: Vec<Canonical> = super::data(include_str!("canonical_json.json"));
    assert_eq!(examples.len(), 10);
    for Canonical {
        json,
        canonical: expect,
    } in &examples
    {
        // Old rooms see the number that is meant; everywhere else only canonical numbers are taken.
        let lenient = parse_pdu(json, &RoomVersionRules::V1).expect(json);
        assert_eq!(canonical(&lenient), *expect, "{json}");
        let is_strict = !json.contains("-0");
        let strict = parse_object(json);
        assert_eq!(strict.is_ok(), is_strict, "{json}");
        assert!(
            strict.is_ok_and(|object| canonical(&object) == *expect) == is_strict,
            "{json}"
        );
    }
}

#[test]
fn objects() {
    let (signing, key) = Signing::read();
    for Signed { given, signed } in &signing.json {
        let mut object = given.clone();
        sign_json(&mut object, &key, signing.server()).expect("can be signed");
        assert_eq!(object, *signed);
    }
}

#[test]
fn events() {
    let (signing, key) = Signing::read();
    for Signed { given, signed } in &signing.events {
        let expect = signed
            .get("hashes")
            .and_then(CanonicalJsonValue::as_object)
            .expect("an object");
        assert_eq!(
            expect.get("sha256").and_then(CanonicalJsonValue::as_str),
            Some(&*content_hash(given)),
        );
        // The examples are of old rooms, where signatures cover `origin`; one of them has no id of its own.
        let mut object = given.clone();
        hash_and_sign(&mut object, &key, signing.server(), &RoomVersionRules::V3)
            .expect("can be signed");
        assert_eq!(object, *signed);
    }
}
