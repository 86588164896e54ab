//! What users are called and look like, here and on other servers.

use std::{sync::Arc, time::Duration};

use ruma::{
    OwnedServerName, ServerName, UserId, api::federation::query::get_profile_information,
    profile::ProfileFieldName,
};
use serde_json::{Map, Value};
use tokio::sync::Semaphore;

use super::accounts::Accounts;
use crate::{
    error::{Error, Result},
    remote::{Limits, Remote},
};

/// Somebody looks at a screen meanwhile.
const LIMITS: Limits = Limits {
    time: Duration::from_secs(10),
    // A profile has at most 64 KiB.
    body: 128 << 10,
};

/// How many profiles are asked for elsewhere at the same time. Anybody may ask, so that this must not take all we have.
const QUESTIONS: usize = 64;

/// The profiles of all users.
pub struct Profiles {
    name: OwnedServerName,
    accounts: Arc<Accounts>,
    remote: Remote,
    questions: Semaphore,
}

impl Profiles {
    pub(super) fn new(name: &ServerName, accounts: Arc<Accounts>, remote: Remote) -> Self {
        Self {
            name: name.to_owned(),
            accounts,
            remote,
            questions: Semaphore::new(QUESTIONS),
        }
    }

    /// The whole profile of a user of any server.
    ///
    /// # Errors
    /// 404 if there is no such user; what their server says, or why it does not.
    pub async fn profile(&self, user: &UserId) -> Result<Map<String, Value>> {
        if user.server_name() == self.name {
            let profile = self.accounts.profile(user)?;
            return profile.ok_or_else(|| Error::not_found("The user"));
        }
        self.ask(user, None).await
    }

    /// One field of a profile.
    ///
    /// # Errors
    /// As [`profile`](Self::profile), and 404 if the user has no such field.
    pub async fn field(&self, user: &UserId, field: &str) -> Result<Value> {
        let value = if user.server_name() == self.name {
            self.accounts.profile_field(user, field)?
        } else {
            self.ask(user, Some(field)).await?.remove(field)
        };
        value.ok_or_else(|| Error::not_found("The field or its user"))
    }

    /// What another server may know of a user of ours: what everybody may.
    ///
    /// # Errors
    /// 404 if there is no such user here, or they have no such field.
    pub fn told(&self, user: &UserId, field: Option<&str>) -> Result<Map<String, Value>> {
        let profile = self.accounts.profile(user)?;
        let mut profile = profile.ok_or_else(|| Error::not_found("The user"))?;
        if let Some(field) = field {
            // An empty answer says that there is the user but not the field.
            profile.retain(|name, _| name == field);
        }
        Ok(profile)
    }

    /// See "Querying for information" in the server-server API.
    async fn ask(&self, user: &UserId, field: Option<&str>) -> Result<Map<String, Value>> {
        let _question = self
            .questions
            .try_acquire()
            .map_err(|_| Error::limit_exceeded(Duration::from_secs(1)))?;
        let mut request = get_profile_information::v1::Request::new(user.to_owned());
        request.field = field.map(ProfileFieldName::from);
        let answer = self
            .remote
            .send_within(user.server_name(), request, LIMITS)
            .await?;
        // As servers write that there is none.
        let fields = answer.into_iter().filter(|(_, value)| !value.is_null());
        Ok(fields.collect())
    }
}
