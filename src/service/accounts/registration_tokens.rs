//! Tokens that allow to register.

use std::net::IpAddr;

use super::Accounts;
use crate::{
    error::Result,
    service::limits::Kind,
    store::{
        View,
        schema::{ACCOUNTS, REGISTRATION_TOKENS, RegistrationTokenRow},
    },
};

impl Accounts {
    /// The token for the first administrator, made if the node has neither an account nor such a token.
    ///
    /// Given out only when it is made; it survives a restart, but is not shown again.
    pub async fn first_token(&self) -> Result<Option<String>> {
        let (token, position) = {
            let _changing = self.changing.lock();
            let view = self.store.latest();
            let has_accounts = ACCOUNTS.scan(&view, &()).next().transpose()?.is_some();
            let has_tokens = REGISTRATION_TOKENS.scan(&view, &()).next();
            if has_accounts || has_tokens.transpose()?.is_some() {
                return Ok(None);
            }
            let token = self.entropy.token(32);
            let row = RegistrationTokenRow {
                uses_allowed: Some(1),
                completed: 0,
                expires_ts: None,
                admin: true,
            };
            let committed = self.store.commit(|batch| {
                REGISTRATION_TOKENS.put(batch, &(token.as_str(),), &row);
                Ok(())
            })?;
            (token, committed.position)
        };
        self.store.durable(position).await?;
        Ok(Some(token))
    }

    /// Whether somebody may still register with this token, for a client that is about to.
    ///
    /// # Errors
    /// 429 after too many attempts, so that nobody can guess one.
    pub fn check_registration_token(&self, address: IpAddr, token: &str) -> Result<bool> {
        self.limits.check_address(Kind::Registration, address)?;
        self.is_valid_registration_token(token)
    }

    /// Whether somebody may still register with this token.
    pub(super) fn is_valid_registration_token(&self, token: &str) -> Result<bool> {
        let row = self.valid_registration_token(&self.store.latest(), token)?;
        Ok(row.is_some())
    }

    /// The row of a token that may still be used.
    pub(super) fn valid_registration_token(
        &self,
        view: &View,
        token: &str,
    ) -> Result<Option<RegistrationTokenRow>> {
        let row = REGISTRATION_TOKENS.get(view, &(token,))?;
        Ok(row.filter(|row| self.may_be_used(row)))
    }

    /// Whether there is an unused token that makes an administrator.
    pub(super) fn awaits_admin(&self) -> Result<bool> {
        let view = self.store.latest();
        for row in REGISTRATION_TOKENS.scan(&view, &()) {
            let (_, row) = row?;
            if row.admin && self.may_be_used(&row) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn may_be_used(&self, row: &RegistrationTokenRow) -> bool {
        let used_up = row.uses_allowed.is_some_and(|uses| row.completed >= uses);
        let expired = row.expires_ts.is_some_and(|at| at <= self.clock.now_ms());
        !used_up && !expired
    }
}
