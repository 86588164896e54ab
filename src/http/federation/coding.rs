//! Compressed bodies between servers: reads those of requests, and compresses answers for those who have offered to read
//! them. See `crate::coding`.

use axum::{body::Body, extract::Request, middleware::Next, response::Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};

use crate::{
    coding::{Bad, Coding, OFFER, WORTH},
    error::{Error, Result},
    http::body,
};

/// The longest answer that is compressed in one piece.
const LARGEST: u64 = 1 << 30;

/// The body of a request as it was before it was compressed.
///
/// # Errors
/// 415 for a way that is not known, 413 for more than `limit` bytes, 400 for what is damaged.
pub(in crate::http) async fn decoded(
    headers: &HeaderMap,
    body: Bytes,
    limit: u64,
) -> Result<Bytes> {
    let Some(coding) = headers.get(header::CONTENT_ENCODING) else {
        return Ok(body);
    };
    let refused = |bad: Bad| {
        let status = match bad {
            Bad::TooLarge(_) => return Error::too_large(bad.to_string()),
            Bad::Damaged => StatusCode::BAD_REQUEST,
            Bad::Unknown => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        };
        Error::api(status, "M_UNKNOWN", bad.to_string())
    };
    let coding = coding.to_str().map_err(|_| refused(Bad::Unknown))?;
    match Coding::of(coding).map_err(refused)? {
        Some(coding) => coding.decompress(body, limit).await.map_err(refused),
        None => Ok(body),
    }
}

/// Says in every answer to a server which codings its requests may have, and uses those that it has offered.
pub(in crate::http) async fn answer(request: Request, next: Next) -> Response {
    let path = request.uri().path();
    if !["/_matrix/federation/", "/_matrix/key/", "/_kontor/"]
        .iter()
        .any(|prefix| path.starts_with(prefix))
    {
        return next.run(request).await;
    }
    let offered = request.headers().get(header::ACCEPT_ENCODING);
    let offered = offered.and_then(|offered| Coding::best(offered.to_str().ok()?));
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(OFFER));
    headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    let is_json = headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"));
    match offered {
        Some(coding) if is_json && !headers.contains_key(header::CONTENT_ENCODING) => {
            compressed(response, coding).await
        }
        _ => response,
    }
}

async fn compressed(response: Response, coding: Coding) -> Response {
    let (mut parts, body) = response.into_parts();
    let body = match body::read(body, LARGEST).await {
        Ok(body) => body,
        Err(error) => {
            tracing::error!(%error, "an answer could not be read");
            parts.status = StatusCode::INTERNAL_SERVER_ERROR;
            Bytes::new()
        }
    };
    if body.len() < WORTH {
        return Response::from_parts(parts, Body::from(body));
    }
    match coding.compress(body.clone()).await {
        Ok(packed) => {
            let name = HeaderValue::from_static(coding.name());
            parts.headers.insert(header::CONTENT_ENCODING, name);
            parts.headers.remove(header::CONTENT_LENGTH);
            Response::from_parts(parts, Body::from(packed))
        }
        Err(error) => {
            tracing::warn!(%error, "an answer is sent as it is");
            Response::from_parts(parts, Body::from(body))
        }
    }
}
