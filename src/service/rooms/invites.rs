//! Whether a user wants to be invited by somebody. See "Invite permission".

use http::StatusCode;
use ruma::UserId;

use super::Rooms;
use crate::{
    error::{Error, Result},
    protocol::{
        ids::{RoomNid, UserNid},
        invite_permission::{Permission, RULES, SETTINGS, blocks_all, by_rules},
    },
    store::{View, schema::ACCOUNT_DATA},
};

impl Rooms {
    /// What becomes of an invite of a local user.
    ///
    /// # Errors
    /// When the store fails.
    pub fn invite_permission(
        &self,
        view: &View,
        user: UserNid,
        inviter: &UserId,
    ) -> Result<Permission> {
        let content = |data_type: &str| -> Result<Option<String>> {
            let row = ACCOUNT_DATA.get(view, &(user, RoomNid::default(), data_type))?;
            Ok(row.map(|row| row.content))
        };
        for (data_type, errcode) in SETTINGS {
            if content(data_type)?.is_some_and(|content| blocks_all(&content)) {
                return Ok(Permission::Blocked(errcode));
            }
        }
        let rules = content(RULES)?;
        Ok(rules.map_or(Permission::Allowed, |rules| by_rules(&rules, inviter)))
    }

    /// Makes sure that a user, if they are one of this node, has not turned away who invites them.
    ///
    /// # Errors
    /// 403 M_INVITE_BLOCKED.
    pub fn check_invite(&self, inviter: &UserId, user: &UserId) -> Result<()> {
        if user.server_name() != self.server_name {
            return Ok(());
        }
        let Some(nid) = self.store.find_user(user)? else {
            return Ok(());
        };
        match self.invite_permission(&self.store.latest(), nid, inviter)? {
            Permission::Allowed | Permission::Ignored => Ok(()),
            Permission::Blocked(errcode) => Err(Error::api(
                StatusCode::FORBIDDEN,
                errcode,
                format!("{user} does not want to be invited"),
            )),
        }
    }
}
