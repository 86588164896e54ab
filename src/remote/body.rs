//! Bodies on their way: compressed for those who have offered to read it, and never more than a limit.

use std::{pin::pin, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Request, Response, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use tokio::time::timeout;

use super::{client::unsendable, connection::words, error::Kind};
use crate::coding::{self, Coding};

/// An answer of which nothing comes for so long has ended.
const STALL: Duration = Duration::from_secs(30);

/// The same request with a compressed body.
pub(super) async fn compressed(
    request: &Request<Bytes>,
    coding: Coding,
) -> Result<Request<Full<Bytes>>, Kind> {
    let body = coding.compress(request.body().clone()).await;
    let mut compressed = request.clone().map(drop);
    let name = HeaderValue::from_static(coding.name());
    compressed
        .headers_mut()
        .insert(header::CONTENT_ENCODING, name);
    let body = Full::new(body.map_err(|e| unsendable(&e))?);
    Ok(compressed.map(|()| body))
}

/// An answer to its end, as it was before it was compressed. The limit is one of both.
pub(super) async fn whole(
    response: Response<Incoming>,
    most: u64,
) -> Result<Response<Bytes>, Kind> {
    let (parts, body) = response.into_parts();
    let bad = |bad: coding::Bad| match bad {
        coding::Bad::TooLarge(most) => Kind::TooLarge(most),
        coding::Bad::Damaged | coding::Bad::Unknown => Kind::BadAnswer(bad.to_string()),
    };
    let coding = parts.headers.get(header::CONTENT_ENCODING);
    let coding = coding.map_or(Ok(""), HeaderValue::to_str);
    let coding = Coding::of(coding.unwrap_or("?")).map_err(bad)?;
    let body = collect(body, most).await?;
    let body = match coding {
        Some(coding) => coding.decompress(body, most).await.map_err(bad)?,
        None => body,
    };
    Ok(Response::from_parts(parts, body))
}

/// Reads an answer up to a limit.
pub(super) async fn collect(body: Incoming, most: u64) -> Result<Bytes, Kind> {
    use hyper::body::Body as _;
    if body.size_hint().lower() > most {
        return Err(Kind::TooLarge(most));
    }
    let mut body = pin!(body);
    let mut whole = BytesMut::new();
    loop {
        let frame = match timeout(STALL, body.frame()).await {
            Err(_) => return Err(Kind::Timeout(STALL)),
            Ok(None) => return Ok(whole.freeze()),
            Ok(Some(Err(error))) => return Err(Kind::Broken(words(&error))),
            Ok(Some(Ok(frame))) => frame,
        };
        if let Ok(chunk) = frame.into_data() {
            let length = whole.len().saturating_add(chunk.len());
            if u64::try_from(length).is_ok_and(|length| length > most) {
                return Err(Kind::TooLarge(most));
            }
            whole.extend_from_slice(&chunk);
        }
    }
}
