//! What of a request is still unread when it is answered. If it is short, it is read too, so that the connection carries the
//! next request; otherwise the answer says that the connection ends, and no client is surprised by that.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use parking_lot::Mutex;
use tokio::time::timeout;

/// The most that is read of a body that nobody wanted.
const REST_BYTES: usize = 64 << 10;

/// How long an answer waits for it.
const REST_TIMEOUT: Duration = Duration::from_secs(1);

/// Where a body returns to when whoever answers is done with it.
#[derive(Clone, Default)]
pub(super) struct Rest(Arc<Mutex<Option<Incoming>>>);

impl Rest {
    /// The body, which returns here unless it is read to its end.
    pub(super) fn lend(&self, body: Incoming) -> Body {
        if body.is_end_stream() {
            return Body::empty();
        }
        Body::new(Lent {
            body: Some(body),
            rest: self.clone(),
        })
    }

    /// Reads what has returned; whether nothing is left then. A client that waits to be `asked` for its body is not.
    pub(super) async fn finish(self, asked: bool) -> bool {
        let Some(mut body) = self.0.lock().take() else {
            return true;
        };
        let least = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
        if !asked || least > REST_BYTES {
            return false;
        }
        let read = async {
            let mut length = 0;
            loop {
                match body.frame().await {
                    None => return true,
                    Some(Err(_)) => return false,
                    Some(Ok(frame)) => length += frame.data_ref().map_or(0, Bytes::len),
                }
                if length > REST_BYTES {
                    return false;
                }
            }
        };
        timeout(REST_TIMEOUT, read).await.unwrap_or(false)
    }
}

/// A body on its way through whatever answers.
struct Lent {
    body: Option<Incoming>,
    rest: Rest,
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        let polled = Pin::new(body).poll_frame(context);
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
            self.body = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let none = || SizeHint::with_exact(0);
        self.body.as_ref().map_or_else(none, HttpBody::size_hint)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let unread = self.body.take().filter(|body| !body.is_end_stream());
        if unread.is_some() {
            *self.rest.0.lock() = unread;
        }
    }
}
