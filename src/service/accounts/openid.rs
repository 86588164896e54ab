//! Tokens by which a user proves to somebody else's service who they are, and nothing more. See "OpenID" in both APIs.

use std::time::Duration;

use ruma::{OwnedUserId, UserId};

use super::{Accounts, Requester, sessions::hash};
use crate::{
    error::{Error, Result},
    service::limits::Kind,
    store::{
        self,
        schema::{ACCOUNTS, OPENID_TOKENS, OpenIdTokenRow},
    },
};

/// How long a token is good.
const LIFETIME: Duration = Duration::from_secs(60 * 60);

/// How many rows are removed in one commit.
const CHUNK: usize = 1000;

impl Accounts {
    /// A token for the user, and how long it lives.
    ///
    /// # Errors
    /// 403 when it is asked for in another's name, 429 when too often.
    pub async fn issue_openid_token(
        &self,
        requester: &Requester,
        user: &UserId,
    ) -> Result<(String, Duration)> {
        requester.must_be(user)?;
        self.limits
            .check(Kind::Message, requester.user_id.as_str())?;
        let token = self.entropy.token(43);
        let row = OpenIdTokenRow {
            user: requester.nid,
            expires_ts: self.ts_after(LIFETIME),
        };
        let committed = self.store.commit(|batch| {
            OPENID_TOKENS.put(batch, &(hash(&token),), &row);
            Ok(())
        })?;
        self.store.durable(committed.position).await?;
        Ok((token, LIFETIME))
    }

    /// Whose token this is.
    ///
    /// # Errors
    /// 401 M_UNKNOWN_TOKEN when it is nobody's, or not good any more.
    pub fn openid_user(&self, token: &str) -> Result<OwnedUserId> {
        let view = self.store.view();
        let unknown = || Error::unknown_token(false);
        let row = OPENID_TOKENS.get(&view, &(hash(token),))?;
        let row = row.filter(|row| row.expires_ts > self.clock.now_ms());
        let row = row.ok_or_else(unknown)?;
        let account = ACCOUNTS.get(&view, &(row.user,))?;
        if account.is_none_or(|account| account.deactivated) {
            return Err(unknown());
        }
        Ok((*self.store.user_id(row.user)?).clone())
    }

    /// Removes tokens that are not good any more; says how many.
    ///
    /// # Errors
    /// When the store fails.
    pub fn forget_openid_tokens(&self) -> Result<usize> {
        let (now, view) = (self.clock.now_ms(), self.store.view());
        let mut old = OPENID_TOKENS
            .scan(&view, &())
            .filter(|row| row.as_ref().map_or(true, |(_, row)| row.expires_ts <= now));
        let mut removed = 0;
        loop {
            let chunk: Vec<_> = old.by_ref().take(CHUNK).collect::<store::Result<_>>()?;
            if chunk.is_empty() {
                return Ok(removed);
            }
            let _not_awaited = self.store.commit(|batch| {
                for (key, _) in &chunk {
                    OPENID_TOKENS.delete(batch, key);
                }
                Ok(())
            })?;
            removed += chunk.len();
        }
    }
}
