//! Logging in, by password or by a token that another session has asked for.

use std::{net::IpAddr, time::Duration};

use http::StatusCode;
use ruma::{OwnedUserId, api::client::uiaa::AuthData};

use super::{
    Accounts, NewDevice, Requester, Session,
    sessions::{deactivated, hash},
};
use crate::{
    error::{Error, Result},
    protocol::ids::UserNid,
    service::limits::Kind,
    store::schema::{LOGIN_TOKENS, LoginTokenRow},
};

/// How long a login token may be used.
const LOGIN_TOKEN_LIFETIME: Duration = Duration::from_secs(2 * 60);

/// What a client shows to be let in.
#[derive(Clone, Default)]
pub struct Credential {
    /// The type of login, such as `m.login.password`.
    pub kind: String,
    /// The user id, or only its localpart.
    pub user: Option<String>,
    /// The password.
    pub password: Option<String>,
    /// The login token.
    pub token: Option<String>,
}

impl Accounts {
    /// Logs a device in.
    ///
    /// # Errors
    /// 403 M_FORBIDDEN for a wrong password or token, 403 M_USER_DEACTIVATED, 429 after too many attempts.
    pub async fn log_in(
        &self,
        address: IpAddr,
        credential: Credential,
        device: NewDevice,
    ) -> Result<Session> {
        self.limits.check_address(Kind::Login, address)?;
        let (position, session) = match &*credential.kind {
            "m.login.password" => {
                let Some(user) = credential.user else {
                    return Err(Error::bad_json("The `identifier` names no user"));
                };
                let Some(password) = credential.password else {
                    return Err(Error::bad_json("`password` is missing"));
                };
                let (user_id, nid) = self.check_password(&user, password).await?;
                self.open_session(user_id, nid, device)?
            }
            "m.login.token" => {
                let Some(token) = credential.token else {
                    return Err(Error::bad_json("`token` is missing"));
                };
                let row = self.take_login_token(&token)?;
                let user_id = self.store.user_id(row.user)?.as_ref().clone();
                self.open_session(user_id, row.user, device)?
            }
            _ => {
                return Err(Error::api(
                    StatusCode::BAD_REQUEST,
                    "M_UNKNOWN",
                    "This type of login is not supported",
                ));
            }
        };
        self.store.durable(position).await?;
        Ok(session)
    }

    /// The account with this name and password.
    pub(super) async fn check_password(
        &self,
        user: &str,
        password: String,
    ) -> Result<(OwnedUserId, UserNid)> {
        let wrong = || Error::forbidden("Wrong user name or password");
        let user_id = self.named(user);
        let limited = user_id.as_ref().map_or(user, |id| id.as_str());
        self.limits.peek(Kind::FailedLogin, limited)?;
        let found = match &user_id {
            Some(user_id) => self.find(&self.store.latest(), user_id)?,
            None => None,
        };
        let hash = found.as_ref().and_then(|(_, row)| row.password.clone());
        let right = self.passwords.verify(password, hash).await?;
        match (&user_id, found) {
            (_, Some((_, row))) if row.deactivated => Err(deactivated()),
            (Some(user_id), Some((nid, _))) if right => Ok((user_id.clone(), nid)),
            _ => {
                // What is left of the limit changes nothing about the answer to this attempt.
                let _ = self.limits.check(Kind::FailedLogin, limited);
                Err(wrong())
            }
        }
    }

    /// Uses a login token up, so that of two who show it only one gets in.
    fn take_login_token(&self, token: &str) -> Result<LoginTokenRow> {
        let key = (hash(token),);
        let _changing = self.changing.lock();
        let unknown = || Error::forbidden("The login token is unknown or has expired");
        let row = LOGIN_TOKENS.get(&self.store.latest(), &key)?;
        let row = row.ok_or_else(unknown)?;
        let _durable_with_the_session = self.store.commit(|batch| {
            LOGIN_TOKENS.delete(batch, &key);
            Ok(())
        })?;
        if row.expires_ts <= self.clock.now_ms() {
            return Err(unknown());
        }
        Ok(row)
    }

    /// A token with which another device of the account can log in, once and soon, and how long it lives; once the
    /// user has given their password.
    ///
    /// # Errors
    /// What the client must do first, see [`Error::Uiaa`].
    pub async fn issue_login_token(
        &self,
        requester: &Requester,
        auth: Option<&AuthData>,
    ) -> Result<(String, Duration)> {
        self.confirm(requester, "get a login token", auth).await?;
        let token = self.entropy.token(43);
        let row = LoginTokenRow {
            user: requester.nid,
            expires_ts: self.ts_after(LOGIN_TOKEN_LIFETIME),
        };
        let now = self.clock.now_ms();
        let expired = self.expired_login_tokens(now)?;
        let committed = self.store.commit(|batch| {
            LOGIN_TOKENS.put(batch, &(hash(&token),), &row);
            for key in &expired {
                LOGIN_TOKENS.delete(batch, key);
            }
            Ok(())
        })?;
        self.store.durable(committed.position).await?;
        Ok((token, LOGIN_TOKEN_LIFETIME))
    }

    /// Tokens that nobody has used in time. There are never many: each costs its user a password.
    fn expired_login_tokens(&self, now: u64) -> Result<Vec<([u8; 32],)>> {
        let mut expired = Vec::new();
        for row in LOGIN_TOKENS.scan(&self.store.latest(), &()) {
            let (key, row) = row?;
            if row.expires_ts <= now {
                expired.push(key);
            }
        }
        Ok(expired)
    }
}
