//! Who asks: the identity behind an access token.

use ruma::OwnedUserId;

use crate::protocol::ids::UserNid;

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
