//! Bodies on their way: compressed for those who have offered to read it, and never more than a limit.

use std::{error::Error, pin::pin, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Request, Response, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Body;
use tokio::time::{Instant, timeout};

use super::{client::unsendable, connection::words, error::Kind};
use crate::coding::{self, Coding};

/// An answer of which nothing comes for so long has ended.
const STALL: Duration = Duration::from_secs(30);

/// Of a longer one so many bytes must come each time: a slow radio link gives ten times as much. Whoever gives less holds
/// up what waits for the same place.
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
    let mut round = (Instant::now(), 0);
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
        if round.0.elapsed() >= ROUND {
            if whole.len() - round.1 < LEAST {
                return Err(Kind::Slow(LEAST));
            }
            round = (Instant::now(), whole.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, future::ready};

    use futures_util::{StreamExt as _, stream};
    use http_body_util::StreamBody;
    use hyper::body::Frame;

    use super::*;

    /// So many pieces of so many bytes, each a second after the one before.
    async fn got(pieces: usize, bytes: usize) -> (Result<usize, Kind>, Duration) {
        let piece = move |_| async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok::<_, Infallible>(Frame::data(Bytes::from(vec![b'x'; bytes])))
        };
        let body = StreamBody::new(stream::iter(0..pieces).then(piece));
        let before = Instant::now();
        let got = collect(body, 1 << 30).await.map(|body| body.len());
        (got, before.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_may_be_slow_but_not_a_trickle() {
        assert_eq!(got(20, 1).await.0, Ok(20), "it is short");
        let (slow, took) = got(1_000, 1).await;
        assert_eq!(slow, Err(Kind::Slow(LEAST)));
        assert!(took <= ROUND + Duration::from_secs(1), "{took:?}");
        assert_eq!(got(1_000, 300).await.0, Ok(300_000));
        // Nor may it begin well.
        let start = stream::once(ready(Ok::<_, Infallible>(Frame::data(Bytes::from(
            vec![b'x'; 1 << 20],
        )))));
        let rest = stream::iter(0..1_000).then(|_| async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok(Frame::data(Bytes::from_static(b"x")))
        });
        let body = StreamBody::new(start.chain(rest));
        let before = Instant::now();
        assert_eq!(collect(body, 1 << 30).await, Err(Kind::Slow(LEAST)));
        assert!(before.elapsed() <= 2 * ROUND + Duration::from_secs(2));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_stops_has_ended() {
        let body = stream::pending::<Result<Frame<Bytes>, Infallible>>();
        let before = Instant::now();
        let got = collect(StreamBody::new(body), 10).await;
        assert_eq!(got, Err(Kind::Timeout(STALL)));
        assert!(before.elapsed() <= STALL + Duration::from_secs(1));
    }
}
