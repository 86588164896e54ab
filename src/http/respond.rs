//! Answers, and the single place where errors are logged.

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{StatusCode, header};
use ruma::api::{OutgoingResponse, OutgoingResponseExt as _};
use serde_json::{Map, Value};

use super::limits::{LimitExceeded, matrix_error};
use crate::error::Error;

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let (status, errcode, message) = self.answer();
        if self.is_internal() {
            tracing::error!(error = %self, "a request failed");
        } else {
            tracing::debug!(error = %self, %status, "a request was refused");
        }
        if let Self::Uiaa(info) = self {
            let body = serde_json::to_value(&info).unwrap_or_default();
            return matrix_error(status, &body);
        }
        let mut body = Map::new();
        if let Self::Api { more, .. } = self {
            body.extend(more);
        }
        body.insert("errcode".to_owned(), errcode.into());
        body.insert("error".to_owned(), message.into());
        matrix_error(status, &Value::Object(body))
    }
}

impl From<LimitExceeded> for Error {
    fn from(LimitExceeded(wait): LimitExceeded) -> Self {
        let ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        Self::api(
            StatusCode::TOO_MANY_REQUESTS,
            "M_LIMIT_EXCEEDED",
            "Too many requests; wait a moment",
        )
        .with("retry_after_ms", ms)
    }
}

/// An endpoint's answer as ruma writes it.
pub(super) fn respond<R: OutgoingResponse>(response: R) -> Response {
    match response.try_into_http_response::<Vec<u8>>() {
        Ok(response) => response.map(Body::from),
        Err(error) => {
            Error::Internal(format!("an answer could not be written: {error}")).into_response()
        }
    }
}

/// A JSON answer that was put together from ready-made pieces.
pub(super) fn json(body: String) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}
