//! Whether a request is from the server that it says. See "Request Authentication".

use ruma::ServerName;

use super::{Keyring, Need};
use crate::{
    error::{Error, Result},
    protocol::xmatrix::XMatrix,
};

impl Keyring {
    /// Looks at what a request says about itself before anything is read or asked: whether this node talks with the
    /// server at all, and whether the request is for this node.
    ///
    /// # Errors
    /// 403 M_FORBIDDEN for a server that this node does not talk with; 401 M_UNAUTHORIZED for a request to another, or
    /// one that claims to be from ourselves.
    pub fn admit(&self, claim: &XMatrix) -> Result<()> {
        self.admit_server(&claim.origin)?;
        if claim.origin == self.name {
            return Err(Error::unauthorized("This server does not ask itself"));
        }
        match &claim.destination {
            Some(destination) if *destination != self.name => Err(Error::unauthorized(format!(
                "The request is for {destination}; this is {}",
                self.name
            ))),
            _ => Ok(()),
        }
    }

    /// Whether servers that do not say who they are may ask what anybody may know: our keys, and what we are.
    ///
    /// # Errors
    /// 403 M_FORBIDDEN when there is no federation.
    pub fn admit_strangers(&self) -> Result<()> {
        if self.remote.is_on() {
            Ok(())
        } else {
            Err(Error::forbidden("This server talks to no other"))
        }
    }

    /// Whether this node talks with a server at all; it always talks with itself.
    ///
    /// # Errors
    /// 403 M_FORBIDDEN.
    pub fn admit_server(&self, server: &ServerName) -> Result<()> {
        if server == self.name || self.remote.admits(server) {
            Ok(())
        } else {
            Err(Error::forbidden(format!(
                "{} does not talk to {server}",
                self.name
            )))
        }
    }

    /// Checks the signature of a request. `body` is the body as it came, none if it is empty.
    ///
    /// # Errors
    /// 401 M_UNAUTHORIZED when the key cannot be got or is not valid now, or the signature is not one of this request.
    pub async fn authenticate(
        &self,
        claim: &XMatrix,
        method: &str,
        uri: &str,
        body: Option<&str>,
    ) -> Result<()> {
        let origin = &claim.origin;
        let need = Need {
            server: origin.clone(),
            key_id: claim.key.clone(),
            at: Some(self.clock.now_ms()),
        };
        let mut key = self.held(&need)?;
        let mut problem = None;
        if key.is_none() {
            problem = self.fetch(&need).await?;
            key = self.held(&need)?;
        }
        let Some(key) = key else {
            let reason = problem.map_or_else(
                || format!("{origin} does not publish it, or not as valid now"),
                |problem| problem.public_text(),
            );
            return Err(Error::unauthorized(format!(
                "The key {} is not known: {reason}",
                claim.key
            )));
        };
        claim
            .verify(method, uri, &self.name, body, &key)
            .map_err(|_| Error::unauthorized(format!("The signature is not one of {origin}")))
    }
}
