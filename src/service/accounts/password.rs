//! Passwords are kept as argon2id hashes. Hashing is slow and takes much memory on purpose, so it runs on threads of its
//! own, two at a time.

use std::sync::Arc;

use argon2::{Algorithm, Argon2, Params, PasswordHasher, PasswordVerifier, Version};
use tokio::{sync::Semaphore, task::spawn_blocking};

use crate::{
    clock::Entropy,
    error::{Error, Result},
};

/// How many hashes are worked out at the same time.
const AT_ONCE: usize = 2;

/// How much work a hash is.
#[derive(Clone, Debug)]
pub struct Cost(Params);

impl Cost {
    /// The least that OWASP recommends: 19 MiB and two passes.
    pub fn real() -> Self {
        Self(Params::new(19 * 1024, 2, 1, None).expect("the numbers are within the limits"))
    }

    /// Next to nothing; for tests only.
    pub fn cheap() -> Self {
        Self(Params::new(8, 1, 1, None).expect("the numbers are within the limits"))
    }
}

/// Hashes passwords and compares them.
pub(super) struct Passwords {
    argon2: Argon2<'static>,
    entropy: Entropy,
    seats: Arc<Semaphore>,
}

impl Passwords {
    pub(super) fn new(cost: &Cost, entropy: Entropy) -> Self {
        Self {
            argon2: Argon2::new(Algorithm::Argon2id, Version::V0x13, cost.0.clone()),
            entropy,
            seats: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }

    /// The hash of a password in PHC form.
    pub(super) async fn hash(&self, password: String) -> Result<String> {
        let salt: [u8; 16] = self.entropy.bytes();
        self.run(move |argon2| {
            let hash = argon2.hash_password_with_salt(password.as_bytes(), &salt);
            hash.map(|hash| hash.to_string())
                .map_err(|e| Error::Internal(format!("a password could not be hashed: {e}")))
        })
        .await
    }

    /// Whether this is the password that was hashed. Without a hash it is not, but finding out takes as long, so that
    /// nobody can tell by the time which accounts there are.
    pub(super) async fn verify(&self, password: String, hash: Option<String>) -> Result<bool> {
        let Some(hash) = hash else {
            self.hash(password).await?;
            return Ok(false);
        };
        self.run(move |argon2| {
            match PasswordVerifier::<str>::verify_password(argon2, password.as_bytes(), &hash) {
                Ok(()) => Ok(true),
                Err(argon2::password_hash::Error::PasswordInvalid) => Ok(false),
                Err(e) => Err(Error::Internal(format!(
                    "a password could not be verified: {e}"
                ))),
            }
        })
        .await
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Argon2<'static>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let seat = self.seats.clone().acquire_owned().await;
        let argon2 = self.argon2.clone();
        let done = spawn_blocking(move || {
            // Kept until the work is done, even if nobody waits for it any more.
            let _seat = seat;
            work(&argon2)
        });
        done.await
            .unwrap_or_else(|e| Err(Error::Internal(format!("a hash broke off: {e}"))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_password_itself_verifies() {
        let passwords = Passwords::new(&Cost::cheap(), Entropy::seeded(1));
        let hash = passwords.hash("secret".to_owned()).await.unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=8,t=1,p=1$"), "{hash}");
        assert_ne!(hash, passwords.hash("secret".to_owned()).await.unwrap());
        for (password, hash, expect) in [
            ("secret", Some(hash.clone()), true),
            ("Secret", Some(hash), false),
            ("secret", None, false),
        ] {
            let verified = passwords.verify(password.to_owned(), hash).await;
            assert_eq!(verified.unwrap(), expect);
        }
        let damaged = passwords.verify("secret".to_owned(), Some("x".to_owned()));
        assert!(damaged.await.is_err());
    }

    #[test]
    fn the_real_cost_is_what_it_says() {
        let Cost(params) = Cost::real();
        assert_eq!(
            (params.m_cost(), params.t_cost(), params.p_cost()),
            (19_456, 2, 1)
        );
    }
}
