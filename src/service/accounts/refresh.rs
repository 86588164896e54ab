//! "Refreshing access tokens".

use std::time::Duration;

use super::{
    Accounts,
    sessions::{ACCESS_LIFETIME, delete_tokens, hash},
};
use crate::{
    error::{Error, Result},
    store::schema::{ACCESS_TOKENS, AccessTokenRow, DEVICES, REFRESH_TOKENS, RefreshTokenRow},
};

/// The tokens that a device goes on with.
#[derive(Clone)]
pub struct Refreshed {
    /// For requests.
    pub access_token: String,
    /// For the next refresh.
    pub refresh_token: String,
    /// How long the access token lives.
    pub expires_in: Duration,
}

impl Accounts {
    /// Gives a device new tokens. The refresh token stays good until one of them is used, because the answer may be
    /// lost on its way; the old access token ends at once.
    ///
    /// # Errors
    /// 401 M_UNKNOWN_TOKEN.
    pub async fn refresh(&self, token: &str) -> Result<Refreshed> {
        let shown = hash(token);
        let refreshed = Refreshed {
            access_token: self.entropy.token(43),
            refresh_token: self.entropy.token(43),
            expires_in: ACCESS_LIFETIME,
        };
        let access = hash(&refreshed.access_token);
        let refresh = hash(&refreshed.refresh_token);
        let position = {
            let _changing = self.changing.lock();
            let view = self.store.latest();
            let unknown = || Error::unknown_token(false);
            let row = REFRESH_TOKENS.get(&view, &(shown,))?;
            let row = row.ok_or_else(unknown)?;
            let key = (row.user, row.device_id.as_str());
            let before = DEVICES.get(&view, &key)?.ok_or_else(unknown)?;
            let mut device = before.clone();
            device.access_token = Some(access);
            device.refresh_token = Some(refresh);
            device.previous_refresh_token = Some(shown);
            let committed = self.store.commit(|batch| {
                // What was shown goes on; what it was exchanged for before, in vain, does not.
                delete_tokens(batch, &before);
                REFRESH_TOKENS.put(batch, &(shown,), &row);
                let next = RefreshTokenRow {
                    user: row.user,
                    device_id: row.device_id.clone(),
                };
                REFRESH_TOKENS.put(batch, &(refresh,), &next);
                let access_row = AccessTokenRow {
                    user: row.user,
                    device_id: row.device_id.clone(),
                    expires_ts: Some(self.ts_after(ACCESS_LIFETIME)),
                };
                ACCESS_TOKENS.put(batch, &(access,), &access_row);
                DEVICES.put(batch, &key, &device);
                Ok(())
            })?;
            self.sessions.forget(before.access_token);
            committed.position
        };
        self.store.durable(position).await?;
        Ok(refreshed)
    }
}
