//! Registration by scripts that know the secret of the configuration, as Synapse has it.

use std::time::{Duration, Instant};

use hmac::{Hmac, KeyInit as _, Mac as _};
use http::StatusCode;
use quick_cache::sync::Cache;
use sha1::Sha1;

use super::{
    Accounts, NewDevice, Registered,
    register::{Creation, LONGEST_PASSWORD},
};
use crate::error::{Error, Result};

/// How long a nonce may be used.
const LIFETIME: Duration = Duration::from_secs(60);

/// How many nonces are remembered.
const MOST: usize = 1_000;

/// Nonces that were given out and not used.
pub(super) struct Nonces(Cache<String, Instant>);

impl Default for Nonces {
    fn default() -> Self {
        Self(Cache::new(MOST))
    }
}

/// What a script asks for.
#[derive(Clone)]
pub struct SharedSecretRequest {
    /// What it was given first.
    pub nonce: String,
    /// The localpart.
    pub username: String,
    /// The password.
    pub password: String,
    /// The display name, unless it is the localpart.
    pub display_name: Option<String>,
    /// Whether to make an administrator.
    pub admin: bool,
    /// What kind of user Synapse would make.
    pub user_type: Option<String>,
    /// The proof that it knows the secret, in hexadecimal.
    pub mac: String,
    /// Whether to log a device in.
    pub log_in: bool,
}

impl Accounts {
    /// A nonce for one registration.
    ///
    /// # Errors
    /// 400 when there is no secret.
    pub fn shared_secret_nonce(&self) -> Result<String> {
        self.shared_secret()?;
        let nonce = self.entropy.token(32);
        self.nonces.0.insert(nonce.clone(), self.clock.instant());
        Ok(nonce)
    }

    /// Makes an account for whoever knows the secret.
    ///
    /// # Errors
    /// 400 for a nonce that is unknown, used or too old, and for what [`free_user_id`](Self::free_user_id) refuses; 403
    /// for a wrong proof.
    pub async fn register_with_shared_secret(
        &self,
        request: SharedSecretRequest,
    ) -> Result<Registered> {
        let secret = self.shared_secret()?;
        let issued = self.nonces.0.remove(&request.nonce);
        if issued.is_none_or(|(_, at)| self.clock.instant() - at >= LIFETIME) {
            return Err(bad("unrecognised nonce"));
        }
        if request.username.contains('\0') {
            return Err(bad("Invalid username"));
        }
        let password = &request.password;
        if password.is_empty() || password.contains('\0') || password.len() > LONGEST_PASSWORD {
            return Err(bad("Invalid password"));
        }
        if let Some(user_type) = &request.user_type
            && !["support", "bot"].contains(&&**user_type)
        {
            return Err(bad("Invalid user type"));
        }
        if !proves(&request, secret) {
            let status = StatusCode::FORBIDDEN;
            return Err(Error::api(status, "M_UNKNOWN", "HMAC incorrect"));
        }
        let user_id = self.free_user_id(&request.username)?;
        let password = self.passwords.hash(request.password).await?;
        let display_name = request.display_name;
        self.make(Creation {
            display_name: display_name.or_else(|| Some(user_id.localpart().to_owned())),
            user_id,
            password: Some(password),
            admin: request.admin,
            guest: false,
            device: request.log_in.then(NewDevice::default),
            token: None,
        })
        .await
    }

    fn shared_secret(&self) -> Result<&str> {
        let secret = self.registration.shared_secret.reveal();
        secret.ok_or_else(|| bad("Shared secret registration is not enabled"))
    }
}

fn bad(message: &str) -> Error {
    Error::api(StatusCode::BAD_REQUEST, "M_UNKNOWN", message)
}

/// Whether the request could only have been made by someone who knows the secret; compared in constant time.
fn proves(request: &SharedSecretRequest, secret: &str) -> bool {
    let Ok(mut mac) = Hmac::<Sha1>::new_from_slice(secret.as_bytes()) else {
        return false;
    };
    let admin = if request.admin { "admin" } else { "notadmin" };
    let parts = [&*request.nonce, &request.username, &request.password, admin];
    mac.update(parts.join("\0").as_bytes());
    if let Some(user_type) = &request.user_type {
        mac.update(b"\0");
        mac.update(user_type.as_bytes());
    }
    from_hex(&request.mac).is_some_and(|shown| mac.verify_slice(&shown).is_ok())
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    let pairs = text.as_bytes().chunks(2).map(|pair| {
        let [high, low] = pair else { return None };
        u8::try_from(digit(high)? * 16 + digit(low)?).ok()
    });
    pairs.collect()
}
