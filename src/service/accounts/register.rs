//! New accounts.

use std::net::IpAddr;

use http::StatusCode;
use ruma::{
    OwnedUserId, UserId,
    api::client::uiaa::{AuthData, AuthType},
};

use super::{
    Accounts, NewDevice, Session,
    data::{GLOBAL, Writing},
    push_rules::{PUSH_RULES, first_rules},
    uia::Operation,
};
use crate::{
    config::RegistrationMode,
    error::{Error, Result},
    protocol::ids::Position,
    service::limits::Kind,
    store::schema::{ACCOUNTS, AccountRow, PROFILES, REGISTRATION_TOKENS},
};

/// The longest password, in bytes; only so that hashing it takes no longer than others.
pub(super) const LONGEST_PASSWORD: usize = 512;

/// The longest user id, in bytes. See "User identifiers".
const LONGEST_ID: usize = 255;

/// What a client may have to show.
const TOKEN: &[AuthType] = &[AuthType::RegistrationToken];
const DUMMY: &[AuthType] = &[AuthType::Dummy];

/// An account that somebody wants.
#[derive(Clone, Default)]
pub struct NewAccount {
    /// The localpart of the user id; one is made up if it is missing.
    pub username: Option<String>,
    /// The password; without one the user can not log in again.
    pub password: Option<String>,
    /// The device to log in at once.
    pub device: Option<NewDevice>,
}

/// An account that was just made.
#[derive(Clone)]
pub struct Registered {
    /// Its user id.
    pub user_id: OwnedUserId,
    /// The session, if a device was to be logged in.
    pub session: Option<Session>,
}

/// An account as it is to be written.
pub(super) struct Creation {
    pub(super) user_id: OwnedUserId,
    /// The hash.
    pub(super) password: Option<String>,
    pub(super) admin: bool,
    pub(super) guest: bool,
    pub(super) display_name: Option<String>,
    pub(super) device: Option<NewDevice>,
    /// The registration token to use up; it may make the account an administrator's.
    pub(super) token: Option<String>,
}

impl Accounts {
    /// Makes an account for whoever asks, as far as the configuration lets them.
    ///
    /// # Errors
    /// 400 M_USER_IN_USE, M_INVALID_USERNAME or M_WEAK_PASSWORD; 401 with what the client must do first; 403
    /// M_FORBIDDEN where registration is closed.
    pub async fn register(
        &self,
        address: IpAddr,
        account: NewAccount,
        auth: Option<&AuthData>,
    ) -> Result<Registered> {
        // The first request only asks what is needed; what counts is the one that shows it.
        if auth.is_some() {
            self.limits.check_address(Kind::Registration, address)?;
        }
        let flows: &[_] = match self.registration.mode {
            RegistrationMode::Token => &[TOKEN],
            RegistrationMode::Open if self.awaits_admin()? => &[DUMMY, TOKEN],
            RegistrationMode::Open => &[DUMMY],
            RegistrationMode::Closed if self.awaits_admin()? => &[TOKEN],
            RegistrationMode::Closed => return Err(closed()),
        };
        let user_id = match &account.username {
            Some(username) => self.free_user_id(username)?,
            None => self.made_up_user_id("")?,
        };
        if let Some(password) = &account.password {
            self.check_strength(password)?;
        }
        let operation = Operation {
            user: None,
            device: None,
            what: "register".to_owned(),
        };
        let shown = self.converse(operation, flows, auth).await?;
        let password = match account.password {
            Some(password) => Some(self.passwords.hash(password).await?),
            None => None,
        };
        self.make(Creation {
            display_name: Some(user_id.localpart().to_owned()),
            user_id,
            password,
            admin: false,
            guest: false,
            device: account.device,
            token: shown.registration_token,
        })
        .await
    }

    /// Makes an account for a guest.
    ///
    /// # Errors
    /// 403 M_GUEST_ACCESS_FORBIDDEN where there are none.
    pub async fn register_guest(
        &self,
        address: IpAddr,
        device: Option<NewDevice>,
    ) -> Result<Registered> {
        if !self.registration.guests {
            let message = "There are no guests on this server";
            return Err(Error::guest_access_forbidden(message));
        }
        self.limits.check_address(Kind::Registration, address)?;
        // A guest does not choose its device.
        let device = device.map(|device| NewDevice { id: None, ..device });
        self.make(Creation {
            user_id: self.made_up_user_id("guest-")?,
            password: None,
            admin: false,
            guest: true,
            display_name: None,
            device,
            token: None,
        })
        .await
    }

    /// Makes sure that a new account could have this name.
    ///
    /// # Errors
    /// As [`free_user_id`](Self::free_user_id).
    pub fn check_available(&self, address: IpAddr, username: &str) -> Result<()> {
        self.limits.peek_address(Kind::Registration, address)?;
        self.free_user_id(username).map(drop)
    }

    /// The user id with this localpart, if a new account can have it.
    ///
    /// # Errors
    /// 400 M_INVALID_USERNAME or M_USER_IN_USE.
    pub fn free_user_id(&self, username: &str) -> Result<OwnedUserId> {
        let username = username.to_lowercase();
        let allowed = |byte: u8| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._=-/+".contains(&byte)
        };
        let invalid = |message: &str| {
            Err(Error::api(
                StatusCode::BAD_REQUEST,
                "M_INVALID_USERNAME",
                message,
            ))
        };
        if username.is_empty() || !username.bytes().all(allowed) {
            return invalid("A user name consists of a-z, 0-9 and the characters . _ = - / +");
        }
        if username.starts_with('_') {
            return invalid("User names that start with _ are reserved");
        }
        let user_id = UserId::parse_with_server_name(username, &self.server_name);
        let Some(user_id) = user_id.ok().filter(|id| id.as_str().len() <= LONGEST_ID) else {
            return invalid("The user name is too long");
        };
        if self.find(&self.store.latest(), &user_id)?.is_some() {
            return Err(in_use());
        }
        Ok(user_id)
    }

    fn made_up_user_id(&self, prefix: &str) -> Result<OwnedUserId> {
        let username = format!("{prefix}{}", self.entropy.token(12).to_lowercase());
        self.free_user_id(&username)
    }

    /// Writes an account.
    pub(super) async fn make(&self, creation: Creation) -> Result<Registered> {
        let (position, registered) = self.write_account(creation)?;
        self.store.durable(position).await?;
        Ok(registered)
    }

    fn write_account(&self, creation: Creation) -> Result<(Position, Registered)> {
        let user_id = creation.user_id;
        let nid = self.store.user_nid(&user_id)?;
        let _changing = self.changing.lock();
        let view = self.store.latest();
        // An id is never given twice, not even after its account was closed.
        if ACCOUNTS.contains(&view, &(nid,))? {
            return Err(in_use());
        }
        let mut admin = creation.admin;
        let mut token = None;
        if let Some(key) = creation.token {
            let row = self.valid_registration_token(&view, &key)?;
            let mut row =
                row.ok_or_else(|| Error::forbidden("The registration token is used up"))?;
            row.completed += 1;
            admin |= row.admin;
            token = Some((key, row));
        }
        let account = AccountRow {
            password: creation.password,
            admin,
            guest: creation.guest,
            deactivated: false,
            erased: false,
            created_ts: self.clock.now_ms(),
            last_filter: 0,
        };
        let opening = match creation.device {
            Some(device) => Some(self.prepare_session(&view, nid, user_id.clone(), device)?),
            None => None,
        };
        let rules = first_rules(&user_id)?;
        let rules = Writing::prepare(&view, nid, GLOBAL, PUSH_RULES, |_| Ok(rules))?;
        let display_name = creation.display_name;
        let committed = self.store.commit(|batch| {
            ACCOUNTS.put(batch, &(nid,), &account);
            rules.write(batch);
            if let Some(name) = display_name {
                let name = serde_json::Value::from(name).to_string();
                PROFILES.put(batch, &(nid, "displayname"), &name);
            }
            if let Some((key, row)) = &token {
                REGISTRATION_TOKENS.put(batch, &(key.as_str(),), row);
            }
            if let Some(opening) = &opening {
                opening.write(batch);
            }
            Ok(())
        })?;
        let session = opening.map(|opening| opening.finish(&self.sessions));
        Ok((committed.position, Registered { user_id, session }))
    }

    /// # Errors
    /// 400 M_WEAK_PASSWORD.
    pub(super) fn check_strength(&self, password: &str) -> Result<()> {
        let weak = |message| {
            Err(Error::api(
                StatusCode::BAD_REQUEST,
                "M_WEAK_PASSWORD",
                message,
            ))
        };
        let shortest = self.registration.shortest_password;
        if password.chars().count() < usize::from(shortest.get()) {
            return weak(format!("A password has at least {shortest} characters"));
        }
        if password.len() > LONGEST_PASSWORD {
            return weak(format!("A password has at most {LONGEST_PASSWORD} bytes"));
        }
        Ok(())
    }
}

fn closed() -> Error {
    Error::forbidden("Accounts are made by administrators only")
}

fn in_use() -> Error {
    Error::api(
        StatusCode::BAD_REQUEST,
        "M_USER_IN_USE",
        "This user name is taken",
    )
}
