//! Bodies on their way: compressed for those who have offered to read it, and never more than a limit.

use std::{
    error::Error,
    pin::{Pin, pin},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Request, Response, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Body;
use tokio::time::timeout;

use super::{client::unsendable, connection::words, error::Kind};
use crate::coding::{self, Coding};

/// An answer of which nothing comes for so long has ended, and so has one of which less than this comes: a slow radio link
/// gives ten times as much, and whoever gives less holds up what waits for the same place.
const ROUND: Duration = Duration::from_secs(30);
const LEAST: usize = 8 << 10;

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
pub(super) async fn whole<B>(response: Response<B>, most: u64) -> Result<Response<Bytes>, Kind>
where
    B: Body<Data = Bytes, Error: Error + 'static>,
{
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
pub(super) async fn collect<B>(body: B, most: u64) -> Result<Bytes, Kind>
where
    B: Body<Data = Bytes, Error: Error + 'static>,
{
    if body.size_hint().lower() > most {
        return Err(Kind::TooLarge(most));
    }
    let mut body = pin!(body);
    let mut whole = BytesMut::new();
    loop {
        let before = whole.len();
        match timeout(ROUND, fill(&mut whole, body.as_mut(), most)).await {
            Ok(Ok(())) => return Ok(whole.freeze()),
            Ok(Err(kind)) => return Err(kind),
            Err(_) if whole.len() == before => return Err(Kind::Timeout(ROUND)),
            Err(_) if whole.len() - before < LEAST => return Err(Kind::Slow(LEAST)),
            Err(_) => {}
        }
    }
}

/// Reads on to the end. Nothing is lost if that is broken off.
async fn fill<B>(whole: &mut BytesMut, mut body: Pin<&mut B>, most: u64) -> Result<(), Kind>
where
    B: Body<Data = Bytes, Error: Error + 'static>,
{
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Kind::Broken(words(&error)))?;
        if let Ok(chunk) = frame.into_data() {
            let length = whole.len().saturating_add(chunk.len());
            if u64::try_from(length).is_ok_and(|length| length > most) {
                return Err(Kind::TooLarge(most));
            }
            whole.extend_from_slice(&chunk);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, future::ready};

    use futures_util::{Stream, StreamExt as _, stream};
    use http_body_util::StreamBody;
    use hyper::body::Frame;

    use super::*;

    type Piece = Result<Frame<Bytes>, Infallible>;

    fn piece(bytes: usize) -> Frame<Bytes> {
        Frame::data(Bytes::from(vec![b'x'; bytes]))
    }

    /// So many pieces of so many bytes, each a second after the one before.
    fn pieces(count: usize, bytes: usize) -> impl Stream<Item = Piece> {
        let each = stream::iter(0..count);
        each.then(move |_| async move {
            let never = std::future::pending::<()>();
            assert!(timeout(Duration::from_secs(1), never).await.is_err());
            Ok(piece(bytes))
        })
    }

    /// How long an answer is, or why it has none, within a time.
    async fn got(within: Duration, pieces: impl Stream<Item = Piece>) -> Result<usize, Kind> {
        let body = collect(StreamBody::new(pieces), 1 << 30);
        let got = timeout(within, body).await.expect("it ends in time");
        got.map(|body| body.len())
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_may_be_slow_but_not_a_trickle() {
        let second = Duration::from_secs(1);
        let (slow, day) = (Err(Kind::Slow(LEAST)), 86_400 * second);
        assert_eq!(got(day, pieces(20, 1)).await, Ok(20), "it is short");
        assert_eq!(got(ROUND + second, pieces(1_000, 1)).await, slow);
        assert_eq!(got(day, pieces(1_000, 300)).await, Ok(300_000));
        // Nor may it begin well.
        let start = stream::once(ready(Ok(piece(1 << 20))));
        let both = start.chain(pieces(1_000, 1));
        assert_eq!(got(2 * ROUND + second, both).await, slow);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_stops_has_ended() {
        let stopped = pieces(3, 1 << 20).chain(stream::pending());
        let soon = 2 * ROUND + Duration::from_secs(1);
        assert_eq!(got(soon, stopped).await, Err(Kind::Timeout(ROUND)));
    }
}
