//! One connection from its first byte to its last, bounded in time and memory whatever the other end does.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use axum::{Router, body::Body, response::Response};
use http::{HeaderValue, Version, header};
use hyper::{Request, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep},
};
use tokio_util::{
    sync::{CancellationToken, WaitForCancellationFutureOwned},
    task::TaskTracker,
};
use tower::ServiceExt;

use super::{peer, rest::Rest};
use crate::{clock::Clock, config::Network};

/// How long the head of an HTTP/1 request may take, counted from the end of the answer before it.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);

/// A connection without a running request on which no answer moves for so long is closed. This also ends clients that
/// never read their answers, and HTTP/2 connections, which have no timeout of their own.
const QUIET_TIMEOUT: Duration = Duration::from_secs(75);

/// How long an ended connection still swallows what the client sends. Closing at once would make the client's system
/// throw away the answer that explains why (a request that was too large, say) before the client has read it.
const LINGER: Duration = Duration::from_secs(2);

/// How much it swallows in that time. Then it only waits: the client's system stops sending by itself.
const LINGER_BYTES: usize = 1 << 20;

/// The longest head of a request, and the most that is buffered of a connection.
const HEAD_BYTES: u32 = 64 << 10;

/// The most header lines of a request.
const HEADERS: usize = 100;

/// The most requests that run at the same time on one HTTP/2 connection.
const STREAMS: u32 = 100;

/// What all connections share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) router: Router,
    pub(super) trusted_proxies: Arc<[Network]>,
    pub(super) clock: Clock,
    /// Runs the tasks of HTTP/2 requests, so that a stop can wait for them.
    pub(super) tasks: TaskTracker,
    /// Asks every connection to finish what it does and close.
    pub(super) stop: CancellationToken,
}

/// Serves the requests of a connection until either side ends it. `stream` is `Watched`, or TLS over it.
pub(super) async fn serve<S>(
    stream: S,
    connected: SocketAddr,
    activity: Arc<Activity>,
    shared: Shared,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = auto::Builder::new(Tasks(shared.tasks.clone()));
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(usize::try_from(HEAD_BYTES).expect("32 bits fit"))
        .max_headers(HEADERS);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(HEAD_BYTES)
        .max_concurrent_streams(STREAMS);

    let service = service_fn(|mut request: Request<Incoming>| {
        let running = activity.begin();
        let peer = peer::client(connected, request.headers(), &shared.trusted_proxies);
        request.extensions_mut().insert(peer);
        // Requests share the connection one after the other only before HTTP/2.
        let in_turn = request.version() < Version::HTTP_2;
        let asked = !request.headers().contains_key(header::EXPECT);
        let rest = Rest::default();
        let request = request.map(|body| {
            if in_turn {
                rest.lend(body)
            } else {
                Body::new(body)
            }
        });
        let response = shared.router.clone().oneshot(request);
        async move {
            let mut response: Result<Response, Infallible> = response.await;
            if !rest.finish(asked).await
                && let Ok(response) = &mut response
            {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(header::CONNECTION, close);
            }
            drop(running);
            response
        }
    });
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut quiet = pin!(activity.quiet());
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = &mut quiet => return,
        () = shared.stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection => ended,
                () = &mut quiet => return,
            }
        }
    };
    if let Err(error) = ended {
        // The other end did something wrong or went away: nothing that an administrator could mend.
        tracing::debug!(%connected, error, "connection failed");
    }
}

/// Lets hyper start its tasks where the stop of the node waits for them.
#[derive(Clone)]
struct Tasks(TaskTracker);

impl<F: Future<Output: Send + 'static> + Send + 'static> hyper::rt::Executor<F> for Tasks {
    fn execute(&self, task: F) {
        self.0.spawn(task);
    }
}

/// Whether a connection still does something.
#[derive(Debug)]
pub(super) struct Activity {
    clock: Clock,
    start: Instant,
    /// Requests whose answer is being computed.
    running: AtomicUsize,
    /// When an answer last moved, in milliseconds since `start`.
    last_ms: AtomicU64,
}

impl Activity {
    pub(super) fn new(clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            start: clock.instant(),
            clock,
            running: AtomicUsize::new(0),
            last_ms: AtomicU64::new(0),
        })
    }

    /// Counts a request as running until the result is dropped.
    fn begin(self: &Arc<Self>) -> Running {
        self.running.fetch_add(1, Ordering::Relaxed);
        Running(Arc::clone(self))
    }

    fn touch(&self) {
        self.last_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    fn now_ms(&self) -> u64 {
        let elapsed = self.clock.instant() - self.start;
        u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
    }

    /// Returns when the connection has been quiet for [`QUIET_TIMEOUT`]. Wakes once in that time, not at every byte.
    async fn quiet(&self) {
        loop {
            let idle = match self.running.load(Ordering::Relaxed) {
                0 => Duration::from_millis(
                    self.now_ms()
                        .saturating_sub(self.last_ms.load(Ordering::Relaxed)),
                ),
                _ => Duration::ZERO,
            };
            match QUIET_TIMEOUT.checked_sub(idle) {
                None | Some(Duration::ZERO) => return,
                Some(rest) => self.clock.sleep(rest).await,
            }
        }
    }
}

/// A request that runs.
struct Running(Arc<Activity>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.touch();
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A socket that notes when it writes, and closes so gently that the last answer arrives.
pub(super) struct Watched {
    socket: TcpStream,
    activity: Arc<Activity>,
    stop: CancellationToken,
    /// Since the end of our side: how long we listen still.
    linger: Option<Linger>,
}

/// What ends the listening after our side has ended, apart from the client itself.
struct Linger {
    time: Pin<Box<Sleep>>,
    stop: Pin<Box<WaitForCancellationFutureOwned>>,
    swallowed: usize,
}

impl Linger {
    fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        self.time.as_mut().poll(cx).is_ready() || self.stop.as_mut().poll(cx).is_ready()
    }
}

impl Watched {
    pub(super) fn new(socket: TcpStream, activity: Arc<Activity>, stop: CancellationToken) -> Self {
        Self {
            socket,
            activity,
            stop,
            linger: None,
        }
    }

    fn note(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.activity.touch();
        }
        written
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(cx, bytes);
        self.note(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write_vectored(cx, slices);
        self.note(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.linger.is_none() {
            ready!(Pin::new(&mut this.socket).poll_shutdown(cx))?;
        }
        let linger = this.linger.get_or_insert_with(|| Linger {
            time: Box::pin(sleep(LINGER)),
            stop: Box::pin(this.stop.clone().cancelled_owned()),
            swallowed: 0,
        });
        let mut space = [0; 4096];
        loop {
            if linger.is_over(cx) {
                return Poll::Ready(Ok(()));
            }
            if linger.swallowed >= LINGER_BYTES {
                return Poll::Pending;
            }
            let mut buffer = ReadBuf::new(&mut space);
            match ready!(Pin::new(&mut this.socket).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => linger.swallowed += buffer.filled().len(),
                Ok(()) | Err(_) => return Poll::Ready(Ok(())),
            }
        }
    }
}
