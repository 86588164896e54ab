//! What can go wrong with a request, and its one mapping to an HTTP status and an errcode.
//!
//! A lookup that finds nothing is not an error; whoever needs the thing says so with [`Error::not_found`]. Errors are
//! logged once, where they are answered.

use std::time::Duration;

use http::StatusCode;
use ruma::api::client::uiaa::UiaaInfo;
use serde_json::{Map, Value};

use crate::{
    protocol::{
        auth::Denied,
        integrity::{BadEvent, BadJson},
    },
    remote, store,
};

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Said on purpose and shown as it is.
    #[error("{errcode}: {message}")]
    Api {
        /// The status of the answer.
        status: StatusCode,
        /// The error code of the specification.
        errcode: &'static str,
        /// What to do about it, for people.
        message: String,
        /// Further members of the answer, such as `soft_logout`.
        more: Map<String, Value>,
    },
    /// The client must authenticate further. See "User-Interactive Authentication API".
    #[error("further authentication is needed")]
    Uiaa(Box<UiaaInfo>),
    /// The room's rules forbid the event.
    #[error("the room does not allow it: {0}")]
    Denied(#[from] Denied),
    /// Another server could not be asked, or refused.
    #[error(transparent)]
    Remote(#[from] remote::Error),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// Something that should not happen did.
    #[error("{0}")]
    Internal(String),
}

/// What a use case gives.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Any answer of the specification.
    pub fn api(status: StatusCode, errcode: &'static str, message: impl Into<String>) -> Self {
        Self::Api {
            status,
            errcode,
            message: message.into(),
            more: Map::new(),
        }
    }

    /// 404 M_NOT_FOUND: what the client asked for is not there, or not for this client to see.
    pub fn not_found(what: &str) -> Self {
        Self::api(
            StatusCode::NOT_FOUND,
            "M_NOT_FOUND",
            format!("{what} was not found"),
        )
    }

    /// 403 M_FORBIDDEN.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::api(StatusCode::FORBIDDEN, "M_FORBIDDEN", message)
    }

    /// 403 M_GUEST_ACCESS_FORBIDDEN.
    pub fn guest_access_forbidden(message: &str) -> Self {
        Self::api(StatusCode::FORBIDDEN, "M_GUEST_ACCESS_FORBIDDEN", message)
    }

    /// 400 M_BAD_JSON: JSON of the wrong shape.
    pub fn bad_json(message: impl Into<String>) -> Self {
        Self::api(StatusCode::BAD_REQUEST, "M_BAD_JSON", message)
    }

    /// 400 M_INVALID_PARAM: a parameter that can not be.
    pub fn invalid_param(message: impl Into<String>) -> Self {
        Self::api(StatusCode::BAD_REQUEST, "M_INVALID_PARAM", message)
    }

    /// 400 M_UNKNOWN_POS: a place on a connection of sliding sync that is not known, or not any more. See MSC4186.
    pub fn unknown_pos() -> Self {
        Self::api(
            StatusCode::BAD_REQUEST,
            "M_UNKNOWN_POS",
            "This position is not known any more; begin anew without one",
        )
    }

    /// 400 M_MISSING_PARAM.
    pub fn missing_param(name: &str) -> Self {
        Self::api(
            StatusCode::BAD_REQUEST,
            "M_MISSING_PARAM",
            format!("`{name}` is missing"),
        )
    }

    /// 413 M_TOO_LARGE.
    pub fn too_large(message: impl Into<String>) -> Self {
        Self::api(StatusCode::PAYLOAD_TOO_LARGE, "M_TOO_LARGE", message)
    }

    /// 429 M_LIMIT_EXCEEDED: come back after `wait`.
    pub fn limit_exceeded(wait: Duration) -> Self {
        // Rounded up: who comes back when we said must not be refused again.
        let milliseconds = wait.as_nanos().div_ceil(1_000_000);
        Self::api(
            StatusCode::TOO_MANY_REQUESTS,
            "M_LIMIT_EXCEEDED",
            "Too many requests; wait a moment",
        )
        .with(
            "retry_after_ms",
            u64::try_from(milliseconds).unwrap_or(u64::MAX),
        )
    }

    /// 401 M_UNAUTHORIZED: a server has not proven that it is the one it says. See "Request Authentication".
    pub fn unauthorized(message: impl Into<String>) -> Self {
        Self::api(StatusCode::UNAUTHORIZED, "M_UNAUTHORIZED", message)
    }

    /// 401 M_UNKNOWN_TOKEN. With `soft_logout` the client keeps what it has and gets itself a new token.
    pub fn unknown_token(soft_logout: bool) -> Self {
        Self::api(
            StatusCode::UNAUTHORIZED,
            "M_UNKNOWN_TOKEN",
            "The access token is not known or has expired",
        )
        .with("soft_logout", soft_logout)
    }

    /// Adds a member to the answer.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        if let Self::Api { more, .. } = &mut self {
            more.insert(name.to_owned(), value.into());
        }
        self
    }

    /// The status, errcode and text of the answer. What went wrong inside the node stays in its log.
    pub fn answer(&self) -> (StatusCode, &'static str, String) {
        match self {
            Self::Api {
                status,
                errcode,
                message,
                ..
            } => (*status, errcode, message.clone()),
            Self::Uiaa(_) => (StatusCode::UNAUTHORIZED, "M_FORBIDDEN", self.to_string()),
            Self::Denied(denied) => (StatusCode::FORBIDDEN, "M_FORBIDDEN", denied.to_string()),
            Self::Remote(error) => remote_answer(error),
            Self::Store(store::Error::Closed) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "M_UNKNOWN",
                "The server is stopping; try again soon".to_owned(),
            ),
            Self::Store(_) | Self::Internal(_) => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "M_UNKNOWN",
                "The server failed; its administrator finds the reason in the log".to_owned(),
            ),
        }
    }

    /// Whether the node is to blame, so that its log must say more.
    pub fn is_internal(&self) -> bool {
        matches!(self, Self::Store(_) | Self::Internal(_))
    }
}

/// What another server said "no" with is passed on where clients know what to do with it. All else is a matter between
/// servers: 504 when it took too long, 502 otherwise.
fn remote_answer(error: &remote::Error) -> (StatusCode, &'static str, String) {
    const PASSED_ON: [&str; 11] = [
        "M_FORBIDDEN",
        "M_NOT_FOUND",
        "M_LIMIT_EXCEEDED",
        "M_INCOMPATIBLE_ROOM_VERSION",
        "M_UNSUPPORTED_ROOM_VERSION",
        "M_INVALID_PARAM",
        "M_UNABLE_TO_AUTHORISE_JOIN",
        "M_UNABLE_TO_GRANT_JOIN",
        "M_TOO_LARGE",
        "M_INVITE_BLOCKED",
        "ORG.MATRIX.MSC4155.INVITE_BLOCKED",
    ];
    let text = error.public_text();
    if error.kind == remote::Kind::NotAllowed {
        return (StatusCode::FORBIDDEN, "M_FORBIDDEN", text);
    }
    if let Some((status, errcode)) = error.refusal()
        && status.is_client_error()
        && let Some(errcode) = PASSED_ON.into_iter().find(|known| *known == errcode)
    {
        return (status, errcode, text);
    }
    let status = match error.kind {
        remote::Kind::Timeout(_) => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::BAD_GATEWAY,
    };
    (status, "M_UNKNOWN", text)
}

/// An event that a client wants to send and that can not be made.
impl From<BadEvent> for Error {
    fn from(bad: BadEvent) -> Self {
        match bad {
            BadEvent::TooLarge { .. } => Self::too_large(bad.to_string()),
            _ => Self::bad_json(bad.to_string()),
        }
    }
}

/// Content that a client wants to send and that can not be signed.
impl From<BadJson> for Error {
    fn from(bad: BadJson) -> Self {
        let errcode = match bad {
            BadJson::NotJson { .. } => "M_NOT_JSON",
            _ => "M_BAD_JSON",
        };
        Self::api(StatusCode::BAD_REQUEST, errcode, bad.to_string())
    }
}
