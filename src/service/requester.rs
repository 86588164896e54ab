//! Who asks: the identity behind an access token.

use ruma::{OwnedUserId, UserId};

use crate::{
    error::{Error, Result},
    protocol::ids::UserNid,
};

/// A local user with the device that they ask from.
#[derive(Clone, Debug)]
pub struct Requester {
    /// Who.
    pub user_id: OwnedUserId,
    /// Their number.
    pub nid: UserNid,
    /// The device; none for an application service.
    pub device_id: Option<String>,
    /// Whether the account is a guest's.
    pub guest: bool,
    /// Whether the account may use the admin API.
    pub admin: bool,
}

impl Requester {
    /// Makes sure that what is asked for is the requester's own.
    ///
    /// # Errors
    /// 403 M_FORBIDDEN.
    pub fn must_be(&self, user: &UserId) -> Result<()> {
        if self.user_id == user {
            Ok(())
        } else {
            Err(Error::forbidden("This belongs to another user"))
        }
    }
}
