//! Reads request bodies without trusting them: never more than a limit, and never slower than a least rate.

use std::{pin::pin, time::Duration};

use axum::{
    body::{Body, HttpBody},
    response::{IntoResponse, Response},
};
use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http_body_util::BodyExt;

use super::respond::matrix_error;

/// How long a client may take for a small body.
const PATIENCE: Duration = Duration::from_secs(30);

/// Beyond that, how many bytes it must have sent for every further second.
const LEAST_BYTES_PER_SECOND: u64 = 8 << 10;

/// Why a request body was not read to its end.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// It is longer than this many bytes.
    #[error("The request body is larger than {0} bytes")]
    TooLarge(u64),
    /// It came slower than we wait.
    #[error("The request body took too long to arrive")]
    TooSlow,
    /// The connection broke or the framing was wrong.
    #[error("The request body broke off")]
    Broken,
}

impl BodyError {
    /// The status of the answer.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Self::Broken => StatusCode::BAD_REQUEST,
        }
    }

    /// The error code of the specification.
    pub fn errcode(&self) -> &'static str {
        match self {
            Self::TooLarge(_) => "M_TOO_LARGE",
            Self::TooSlow | Self::Broken => "M_UNKNOWN",
        }
    }
}

impl IntoResponse for BodyError {
    fn into_response(self) -> Response {
        let message = self.to_string();
        matrix_error(
            self.status(),
            &serde_json::json!({ "errcode": self.errcode(), "error": message }),
        )
    }
}

/// The whole body, if it has at most `limit` bytes and keeps coming.
///
/// A body that announces its length is refused before any of it is read; one without is cut off at the limit.
///
/// # Errors
/// See [`BodyError`]. The rest of the body is then unread; the connection answers and closes.
pub async fn read(body: Body, limit: u64) -> Result<Bytes, BodyError> {
    if body.size_hint().lower() > limit {
        return Err(BodyError::TooLarge(limit));
    }
    let mut body = pin!(body);
    let mut patience = pin!(tokio::time::sleep(PATIENCE));
    let first_deadline = patience.deadline();
    let mut whole = Gathered::Nothing;
    loop {
        let frame = tokio::select! {
            biased;
            frame = body.frame() => frame,
            () = &mut patience => return Err(BodyError::TooSlow),
        };
        let chunk = match frame {
            None => return Ok(whole.into_bytes()),
            Some(Err(_)) => return Err(BodyError::Broken),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(chunk) => chunk,
                Err(_trailers) => continue,
            },
        };
        let length = whole.len() + len(&chunk);
        if length > limit {
            return Err(BodyError::TooLarge(limit));
        }
        whole = whole.and(chunk);
        let earned = Duration::from_secs(length / LEAST_BYTES_PER_SECOND);
        patience.as_mut().reset(first_deadline + earned);
    }
}

/// The chunks so far. Nearly every body arrives in one, which is then handed on without a copy.
enum Gathered {
    Nothing,
    One(Bytes),
    Many(BytesMut),
}

impl Gathered {
    fn len(&self) -> u64 {
        match self {
            Self::Nothing => 0,
            Self::One(chunk) => len(chunk),
            Self::Many(chunks) => len(chunks),
        }
    }

    fn and(self, chunk: Bytes) -> Self {
        match self {
            Self::Nothing => Self::One(chunk),
            Self::One(first) => {
                let mut chunks = BytesMut::from(first);
                chunks.extend_from_slice(&chunk);
                Self::Many(chunks)
            }
            Self::Many(mut chunks) => {
                chunks.extend_from_slice(&chunk);
                Self::Many(chunks)
            }
        }
    }

    fn into_bytes(self) -> Bytes {
        match self {
            Self::Nothing => Bytes::new(),
            Self::One(chunk) => chunk,
            Self::Many(chunks) => chunks.freeze(),
        }
    }
}

fn len(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).expect("a length in memory fits into 64 bits")
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    fn chunked(chunks: Vec<&'static str>) -> Body {
        Body::from_stream(stream::iter(
            chunks.into_iter().map(Ok::<_, std::io::Error>),
        ))
    }

    #[tokio::test]
    async fn a_body_up_to_the_limit_is_read_whole() {
        for chunks in [vec![], vec!["abc"], vec!["a", "b"], vec!["a", "", "bc"]] {
            let whole = chunks.concat();
            assert_eq!(read(chunked(chunks), 3).await, Ok(Bytes::from(whole)));
        }
    }

    #[tokio::test]
    async fn a_longer_body_is_refused_with_or_without_its_length() {
        assert_eq!(
            read(Body::from("abcd"), 3).await,
            Err(BodyError::TooLarge(3))
        );
        let endless = stream::repeat_with(|| Ok::<_, std::io::Error>("x".repeat(1 << 16)));
        assert_eq!(
            read(Body::from_stream(endless), 1 << 20).await,
            Err(BodyError::TooLarge(1 << 20))
        );
    }

    #[tokio::test]
    async fn a_broken_body_is_told_from_a_finished_one() {
        let broken = stream::iter([Ok("a"), Err(std::io::Error::other("reset"))]);
        assert_eq!(
            read(Body::from_stream(broken), 3).await,
            Err(BodyError::Broken)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_dripping_body_is_given_up() {
        let drip = stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_secs(10)).await;
            Some((Ok::<_, std::io::Error>("x"), ()))
        });
        assert_eq!(
            read(Body::from_stream(drip), 1 << 20).await,
            Err(BodyError::TooSlow)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_but_steady_upload_has_the_time_it_needs() {
        let steady = stream::unfold(0, |sent| async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            (sent < 300).then(|| (Ok::<_, std::io::Error>("x".repeat(16 << 10)), sent + 1))
        });
        let whole = read(Body::from_stream(steady), 1 << 30).await.unwrap();
        assert_eq!(whole.len(), 300 * (16 << 10));
    }
}
