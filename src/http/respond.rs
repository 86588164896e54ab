//! Answers, and the single place where errors are logged.

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use futures_util::stream;
use http::{HeaderValue, StatusCode, header};
use ruma::api::{OutgoingResponse, OutgoingResponseExt as _};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// What a handler gives.
pub(super) trait Answer {
    fn into_response(self) -> Response;
}

/// An endpoint's answer as ruma writes it.
impl<R: OutgoingResponse> Answer for R {
    fn into_response(self) -> Response {
        match self.try_into_http_response::<Vec<u8>>() {
            Ok(response) => response.map(Body::from),
            Err(error) => {
                let error = Error::Internal(format!("an answer could not be written: {error}"));
                IntoResponse::into_response(error)
            }
        }
    }
}

/// A JSON answer that was put together from ready-made pieces.
pub(super) struct Json(pub(super) String);

impl Json {
    /// What ruma has no type for, or one that says too much.
    pub(super) fn of(body: &impl Serialize) -> Result<Self> {
        serde_json::to_string(body)
            .map(Self)
            .map_err(|e| Error::Internal(format!("an answer could not be written: {e}")))
    }
}

impl Answer for Json {
    fn into_response(self) -> Response {
        json_response(StatusCode::OK, self.0)
    }
}

/// A JSON answer of any length, made while it is sent.
pub(super) struct Pieces<I>(pub(super) I);

impl<I: Iterator<Item = Result<String>> + Send + 'static> Answer for Pieces<I> {
    fn into_response(self) -> Response {
        // The status is sent already, so the connection breaks, and the client sees that the answer is not whole.
        let logged = |error: &Error| tracing::error!(%error, "an answer broke off");
        let pieces = self.0.map(move |piece| piece.inspect_err(logged));
        let mut response = json_response(StatusCode::OK, String::new());
        *response.body_mut() = Body::from_stream(stream::iter(pieces));
        response
    }
}

pub(super) fn respond(outcome: Result<impl Answer>) -> Response {
    match outcome {
        Ok(answer) => answer.into_response(),
        Err(error) => error.into_response(),
    }
}

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
        let wait = body.get("retry_after_ms").and_then(Value::as_u64);
        let mut response = matrix_error(status, &Value::Object(body));
        if let Some(milliseconds) = wait {
            let seconds = HeaderValue::from(milliseconds.div_ceil(1_000));
            response.headers_mut().insert(header::RETRY_AFTER, seconds);
        }
        response
    }
}

/// An error in the form of the specification.
pub(super) fn matrix_error(status: StatusCode, body: &Value) -> Response {
    json_response(status, body.to_string())
}

fn json_response(status: StatusCode, body: String) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    async fn answer(error: Error) -> (Response<()>, Value) {
        let (parts, body) = error.into_response().into_parts();
        let body = crate::http::body::read(body, 1_000).await.unwrap();
        let body = serde_json::from_slice(&body).unwrap();
        (Response::from_parts(parts, ()), body)
    }

    #[tokio::test]
    async fn a_limit_says_when_to_come_back() {
        let wait = Duration::from_micros(1_500_100);
        let (response, body) = answer(Error::limit_exceeded(wait)).await;
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()[header::RETRY_AFTER], "2");
        assert_eq!(body["errcode"], "M_LIMIT_EXCEEDED");
        assert_eq!(body["retry_after_ms"], 1_501);
    }

    #[tokio::test]
    async fn what_went_wrong_inside_stays_there() {
        let (response, body) = answer(Error::Internal("the password is 123".to_owned())).await;
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json");
        assert_eq!(body["errcode"], "M_UNKNOWN");
        assert!(!body.to_string().contains("123"), "{body}");
    }
}
