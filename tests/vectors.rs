//! What the specification itself says must come out: its own examples, and its rules as tables.
//!
//! The data lies in `tests/vectors/`. Nothing there was made by running this program or the libraries that it uses.

#[path = "vectors/auth.rs"]
mod auth;
#[path = "vectors/redaction.rs"]
mod redaction;
#[path = "vectors/signing.rs"]
mod signing;

use kontor::protocol::version;
use ruma::room_version_rules::RoomVersionRules;

/// All room versions of the specification, with their rules.
fn versions() -> impl Iterator<Item = (u8, &'static RoomVersionRules)> {
    (1..=12).map(|number| {
        let version = number.to_string().as_str().try_into().expect("a version");
        (number, version::rules(&version).expect("a served version"))
    })
}

/// Reads one of the data files.
fn data<T: serde::de::DeserializeOwned>(text: &str) -> T {
    serde_json::from_str(text).expect("the data has the expected shape")
}
