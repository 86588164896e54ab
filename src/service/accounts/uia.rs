//! "User-Interactive Authentication": what a client has to show before something that matters, in one or more stages.
//!
//! What has been shown so far is kept in memory; after a restart the client starts again.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use quick_cache::sync::Cache;
use ruma::api::{
    client::uiaa::{AuthData, AuthFlow, AuthType, UiaaInfo, UserIdentifier},
    error::{ErrorKind, StandardErrorBody},
};
use serde_json::value::RawValue;

use super::{Accounts, Requester};
use crate::{
    error::{Error, Result},
    protocol::ids::UserNid,
};

/// How many conversations are remembered; when there are more, old ones have to start again.
const MOST: usize = 10_000;

/// How long a client may take from the first stage to the last.
const LIFETIME: Duration = Duration::from_secs(15 * 60);

/// What is to be done. What was shown for one operation is worth nothing for another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Operation {
    /// By whom; none for a registration.
    pub(super) user: Option<UserNid>,
    /// From which device.
    pub(super) device: Option<String>,
    /// The endpoint and what it is to be done to.
    pub(super) what: String,
}

/// What was shown.
#[derive(Clone, Default)]
pub(super) struct Shown {
    completed: Vec<AuthType>,
    /// The registration token, if one was asked for.
    pub(super) registration_token: Option<String>,
}

/// All that are going on.
pub(super) struct Conversations(Cache<String, Arc<Conversation>>);

impl Default for Conversations {
    fn default() -> Self {
        Self(Cache::new(MOST))
    }
}

struct Conversation {
    operation: Operation,
    started: Instant,
    shown: Mutex<Shown>,
}

/// Why a stage was not passed.
struct Failed(ErrorKind, String);

impl Accounts {
    /// Lets an operation of a user through once they have given their password.
    ///
    /// `what` names the endpoint and what it is to be done to.
    ///
    /// # Errors
    /// What the client must do first, see [`Error::Uiaa`]; 403 when somebody else is named.
    pub async fn confirm(
        &self,
        requester: &Requester,
        what: &str,
        auth: Option<&AuthData>,
    ) -> Result<()> {
        let operation = Operation {
            user: Some(requester.nid),
            device: requester.device_id.clone(),
            what: what.to_owned(),
        };
        self.converse(operation, &[&[AuthType::Password]], auth)
            .await
            .map(drop)
    }

    /// Goes one step further, and gives what was shown once all stages of one of `flows` are passed.
    pub(super) async fn converse(
        &self,
        operation: Operation,
        flows: &[&[AuthType]],
        auth: Option<&AuthData>,
    ) -> Result<Shown> {
        let now = self.clock.instant();
        let (id, conversation) = match auth.and_then(AuthData::session) {
            Some(id) => {
                let going_on = self.conversations.0.get(id);
                let going_on = going_on.filter(|it| now - it.started < LIFETIME);
                let conversation = going_on
                    .ok_or_else(|| Error::invalid_param("The `session` is unknown or too old"))?;
                if conversation.operation != operation {
                    return Err(Error::forbidden("The `session` was for something else"));
                }
                (id.to_owned(), conversation)
            }
            None => {
                let conversation = Arc::new(Conversation {
                    operation,
                    started: now,
                    shown: Mutex::default(),
                });
                let id = self.entropy.token(24);
                self.conversations
                    .0
                    .insert(id.clone(), conversation.clone());
                (id, conversation)
            }
        };
        let mut failed = None;
        if let Some(stage) = auth.and_then(AuthData::auth_type)
            && let Some(auth) = auth
        {
            let offered = flows.iter().any(|stages| stages.contains(&stage));
            let passed = if offered {
                self.pass(&conversation, auth).await?
            } else {
                let message = "This stage is not offered".to_owned();
                Err(Failed(ErrorKind::Unrecognized, message))
            };
            failed = passed.err();
        }
        let shown = conversation.shown.lock().clone();
        let done = flows
            .iter()
            .any(|stages| stages.iter().all(|stage| shown.completed.contains(stage)));
        if done {
            self.conversations.0.remove(&id);
            return Ok(shown);
        }
        Err(Error::Uiaa(Box::new(info(id, flows, shown, failed))))
    }

    /// Looks at what was shown for one stage.
    async fn pass(
        &self,
        conversation: &Conversation,
        auth: &AuthData,
    ) -> Result<Result<(), Failed>> {
        let mut token = None;
        let stage = match auth {
            AuthData::Dummy(_) => AuthType::Dummy,
            AuthData::RegistrationToken(shown) => {
                if !self.is_valid_registration_token(&shown.token)? {
                    let message = "The registration token is not valid".to_owned();
                    return Ok(Err(Failed(ErrorKind::Unauthorized, message)));
                }
                token = Some(shown.token.clone());
                AuthType::RegistrationToken
            }
            AuthData::Password(shown) => {
                let UserIdentifier::Matrix(named) = &shown.identifier else {
                    let message = "The `identifier` names no user".to_owned();
                    return Ok(Err(Failed(ErrorKind::Forbidden, message)));
                };
                // Trying again would be in vain, so there is no session to go on with. The password is not looked at:
                // who is logged in must not find out here whether it is that of somebody else.
                let whose = self.named(&named.user);
                let whose = whose.map(|id| self.store.find_user(&id)).transpose()?;
                if whose.flatten() != conversation.operation.user {
                    let message = "Whoever asks for this has to confirm it, and nobody else";
                    return Err(Error::forbidden(message));
                }
                let checked = self.check_password(&named.user, shown.password.clone());
                match checked.await {
                    Ok(_) => AuthType::Password,
                    Err(Error::Api {
                        errcode: "M_FORBIDDEN",
                        message,
                        ..
                    }) => return Ok(Err(Failed(ErrorKind::Forbidden, message))),
                    Err(error) => return Err(error),
                }
            }
            _ => {
                let message = "This stage is not supported".to_owned();
                return Ok(Err(Failed(ErrorKind::Unrecognized, message)));
            }
        };
        let mut shown = conversation.shown.lock();
        shown.completed.push(stage);
        shown.registration_token = token.or(shown.registration_token.take());
        Ok(Ok(()))
    }
}

fn info(id: String, flows: &[&[AuthType]], shown: Shown, failed: Option<Failed>) -> UiaaInfo {
    let flows = flows.iter().map(|stages| AuthFlow::new(stages.to_vec()));
    let mut info = UiaaInfo::new(flows.collect());
    info.completed = shown.completed;
    info.params = RawValue::from_string("{}".to_owned()).ok();
    info.session = Some(id);
    info.auth_error =
        failed.map(|Failed(kind, message)| Box::new(StandardErrorBody::new(kind, message)));
    info
}
