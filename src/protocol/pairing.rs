//! What two nodes tell each other to become peers, and the code that an administrator carries from one to the other.
//!
//! This is no part of the specification: between servers that are not Kontor, administrators edit the peer table.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ruma::OwnedServerName;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Where a node asks another to be its peer.
pub const PAIR_PATH: &str = "/_kontor/v1/peers/pair";

/// Where a peer asks another whether it can be reached from there.
pub const TEST_PATH: &str = "/_kontor/v1/peers/test";

/// What every code begins with; the number is for those who will change what follows.
const PREFIX: &str = "kontor1-";

/// The longest code that is looked at. A certificate has some hundred bytes.
const MAX_CODE_BYTES: usize = 16 << 10;

/// How many bytes of the hash stand at the end of a code, so that one that was not copied whole is noticed.
const CHECKSUM: usize = 4;

/// How a server proves that it is the one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Voucher {
    /// By an authority that anybody trusts.
    Public,
    /// By one of these authorities and no other: their certificates in DER.
    Authorities(Vec<Vec<u8>>),
    /// By this certificate and no other: its SHA-256.
    Certificate([u8; 32]),
}

/// What a code says about the node that made it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invitation {
    /// Its server name.
    pub server: OwnedServerName,
    /// Where it is.
    pub address: OwnedServerName,
    /// How its certificate is judged.
    pub voucher: Voucher,
    /// The key that it signs with.
    pub key: [u8; 32],
    /// What proves to it that its administrator has given the code away. Works once.
    pub secret: [u8; 16],
    /// Until when, in seconds since 1970.
    pub expires: u64,
}

/// Why something is not a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadCode {
    /// It is something else.
    #[error("this is not a code of `kontor peer invite`, which begins with kontor1-")]
    Foreign,
    /// A part is missing or changed.
    #[error("the code is not whole: copy all of it, from kontor1- to its end")]
    Damaged,
}

impl Invitation {
    /// The code: one line of letters, digits, `-` and `_`.
    pub fn encode(&self) -> String {
        let mut bytes = postcard::to_stdvec(self).expect("plain values can be written");
        let hash = Sha256::digest(&bytes);
        bytes.extend(hash.iter().take(CHECKSUM));
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }

    /// Reads a code. Spaces and line breaks, which mail programs add, do not matter.
    ///
    /// # Errors
    /// See [`BadCode`].
    pub fn decode(code: &str) -> Result<Self, BadCode> {
        let code: String = code.split_whitespace().collect();
        let text = code.strip_prefix(PREFIX).ok_or(BadCode::Foreign)?;
        if text.len() > MAX_CODE_BYTES {
            return Err(BadCode::Foreign);
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| BadCode::Damaged)?;
        let end = bytes.len().checked_sub(CHECKSUM).ok_or(BadCode::Damaged)?;
        let (content, checksum) = bytes.split_at(end);
        if !Sha256::digest(content).starts_with(checksum) {
            return Err(BadCode::Damaged);
        }
        postcard::from_bytes(content).map_err(|_| BadCode::Damaged)
    }
}

/// How a node asks another to be its peer: what it says about itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PairRequest {
    /// Of the code.
    pub secret: [u8; 16],
    /// Its server name.
    pub server: OwnedServerName,
    /// Where it is.
    pub address: OwnedServerName,
    /// How its certificate is judged.
    pub voucher: Voucher,
    /// The key that it signs with.
    pub key: [u8; 32],
}

/// What a node that was asked found when it looked in the other direction.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LookBack {
    /// Why it could not reach whoever asked; none if it could.
    pub problem: Option<String>,
    /// The time that its clock shows, in milliseconds since 1970.
    pub now: u64,
}

#[cfg(test)]
mod tests {
    use ruma::owned_server_name;

    use super::*;

    fn invitation() -> Invitation {
        Invitation {
            server: owned_server_name!("a.example"),
            address: owned_server_name!("10.8.0.1:8448"),
            voucher: Voucher::Authorities(vec![vec![7; 400]]),
            key: [1; 32],
            secret: [2; 16],
            expires: 1_700_000_000,
        }
    }

    #[test]
    fn a_code_survives_the_mail() {
        let code = invitation().encode();
        assert!(code.len() < 800, "{}", code.len());
        assert_eq!(Invitation::decode(&code), Ok(invitation()));
        let (start, end) = code.split_at(72);
        let wrapped = format!("  {start}\r\n{end}\n");
        assert_eq!(Invitation::decode(&wrapped), Ok(invitation()));
    }

    #[test]
    fn what_is_not_the_whole_code_is_refused() {
        let code = invitation().encode();
        for wrong in ["", "hello", "kontor2-AAAA", &code[1..]] {
            assert_eq!(Invitation::decode(wrong), Err(BadCode::Foreign), "{wrong}");
        }
        for end in [
            PREFIX.len(),
            PREFIX.len() + 3,
            code.len() / 2,
            code.len() - 1,
        ] {
            assert_eq!(
                Invitation::decode(&code[..end]),
                Err(BadCode::Damaged),
                "{end}"
            );
        }
        let other = if code.as_bytes()[100] == b'A' {
            "B"
        } else {
            "A"
        };
        let mut changed = code.clone();
        changed.replace_range(100..101, other);
        assert_eq!(Invitation::decode(&changed), Err(BadCode::Damaged));
        let long = format!("{PREFIX}{}", "A".repeat(MAX_CODE_BYTES + 1));
        assert_eq!(Invitation::decode(&long), Err(BadCode::Foreign));
    }
}
