//! Keys of devices, as apps make them.

use kontor::protocol::integrity::{ServerKey, parse_object, signed_text};
use serde_json::{Value, json};

use crate::server::Client;

/// Identity keys of a device, signed by it.
pub(crate) fn identity(client: &Client, seed: u8) -> Value {
    let key = ServerKey::from_seed(&[seed; 32], &client.device_id).expect("a key");
    let id = format!("ed25519:{}", client.device_id);
    let mut keys = json!({
        "user_id": client.user_id,
        "device_id": client.device_id,
        "algorithms": ["m.olm.v1.curve25519-aes-sha2"],
        "keys": { &id: key.public_base64() },
    });
    let object = parse_object(&keys.to_string()).expect("it is an object");
    let signature = key.sign(signed_text(&object).as_bytes());
    keys["signatures"] = json!({ &client.user_id: { id: signature } });
    keys
}
