//! The only HTTP client: connections to other servers, kept and bounded, and never to an address that is not permitted.
//!
//! One client per server holds its connections, so that what one server does never touches another. Each connection
//! looks the server's way up anew, so a change of address needs no more than the end of the old connections.

use std::{
    error::Error as StdError,
    fmt,
    future::pending,
    io,
    net::{IpAddr, SocketAddr},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Request, Response, Uri, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, rt::ReadBufCursor};
use hyper_util::{
    client::legacy::{
        Client,
        connect::{Connected, Connection},
    },
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use quick_cache::sync::Cache;
use ruma::{OwnedServerName, ServerName};
use rustls::{ClientConfig, pki_types};
use tokio::{net::TcpStream, sync::Semaphore, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    address,
    dns::{Dns, FixedNames},
    error::{Kind, tame},
    resolver::{Resolver, Route, Target},
    trust::{Trust, TrustError, explain},
};
use crate::{clock::Clock, config::Federation};

/// How long a connection attempt to one address may take when there are others to try.
const CONNECT: Duration = Duration::from_secs(4);

/// The same for a peer, which is near, and tried again soon: a longer attempt would ask ever less often.
const CONNECT_PEER: Duration = Duration::from_secs(3);

/// How long all attempts and the handshake together may take.
const CONNECT_ALL: Duration = Duration::from_secs(15);

/// An answer of which nothing comes for so long has ended.
const STALL: Duration = Duration::from_secs(30);

/// How long a connection without requests is kept. Our own nodes close theirs after 75 seconds.
const IDLE: Duration = Duration::from_secs(70);

/// How soon a dead link is noticed while requests wait for an answer: a question and the wait for its answer.
const PING: Duration = Duration::from_secs(5);

/// How many servers' connections are kept.
const SERVERS: usize = 2_000;

/// The most requests to one server at the same time; more wait, which counts as part of their time.
const REQUESTS: usize = 50;

/// The longest head of an answer.
const HEAD_BYTES: u32 = 64 << 10;

/// The most header lines of an answer.
const HEADERS: usize = 100;

/// How much of an answer may be on its way before we have read it.
const WINDOW: u32 = 1 << 20;

/// What a request may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// From the beginning to the last byte of the answer.
    pub time: Duration,
    /// The longest answer, in bytes.
    pub body: u64,
}

impl Limits {
    /// For most requests: half a minute, and a few events.
    pub const USUAL: Self = Self {
        time: Duration::from_secs(30),
        body: 8 << 20,
    };
}

/// The ports that are used where none is named; other ones in tests.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// Of web servers: 443.
    pub https: u16,
    /// Of Matrix servers: 8448.
    pub federation: u16,
}

impl Default for Ports {
    fn default() -> Self {
        Self {
            https: 443,
            federation: 8448,
        }
    }
}

/// Other servers over the real network.
#[derive(Clone, Debug)]
pub struct Network(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    federation: Arc<Federation>,
    dns: Dns,
    ports: Ports,
    trust: Trust,
    resolver: Resolver,
    servers: Cache<OwnedServerName, Arc<Server>>,
}

/// The connections to one server.
struct Server {
    client: Client<Connector, Full<Bytes>>,
    seats: Semaphore,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").finish_non_exhaustive()
    }
}

impl Network {
    /// Gets ready to talk; nobody is contacted yet.
    ///
    /// # Errors
    /// When a file with certificates cannot be used.
    pub fn new(federation: &Federation, clock: &Clock) -> Result<Self, TrustError> {
        let dns = Dns::system(clock.clone());
        Self::with(federation, clock, dns, Ports::default())
    }

    /// The same with fixed names and ports, for tests.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn fixed(
        federation: &Federation,
        clock: &Clock,
        names: FixedNames,
        ports: Ports,
    ) -> Result<Self, TrustError> {
        Self::with(federation, clock, Dns::Fixed(names), ports)
    }

    fn with(
        federation: &Federation,
        clock: &Clock,
        dns: Dns,
        ports: Ports,
    ) -> Result<Self, TrustError> {
        let federation = Arc::new(federation.clone());
        Ok(Self(Arc::new(Shared {
            trust: Trust::load(&federation, clock.clone())?,
            resolver: Resolver::new(federation.clone(), clock.clone(), ports),
            servers: Cache::new(SERVERS),
            federation,
            dns,
            ports,
        })))
    }

    pub(super) fn dns(&self) -> &Dns {
        &self.0.dns
    }

    #[cfg(test)]
    pub(super) async fn route(&self, server: &ServerName) -> Result<Arc<Route>, Kind> {
        self.0.resolver.route(server, self).await
    }

    /// Sends a request, whose URI is only path and query, to a server.
    pub(super) async fn exchange(
        &self,
        server: &ServerName,
        request: Request<Bytes>,
        limits: Limits,
    ) -> Result<Response<Bytes>, Kind> {
        let exchanged = timeout(limits.time, self.attempt(server, request, limits.body)).await;
        let outcome = exchanged.unwrap_or(Err(Kind::Timeout(limits.time)));
        if let Err(
            Kind::Name(_)
            | Kind::Connect { .. }
            | Kind::Tls(_)
            | Kind::Timeout(_)
            | Kind::Broken(_),
        ) = &outcome
        {
            // A kept connection may be as dead as the link was; the next request begins with a new one, on a way that
            // is looked up again.
            self.reconnect(server);
        }
        outcome
    }

    /// Leaves the connections to a server, and the way to it, to those who use them now.
    pub(super) fn reconnect(&self, server: &ServerName) {
        self.0.servers.remove(server);
        self.0.resolver.forget(server);
    }

    async fn attempt(
        &self,
        server: &ServerName,
        mut request: Request<Bytes>,
        most: u64,
    ) -> Result<Response<Bytes>, Kind> {
        let unsendable = |e: &dyn fmt::Display| Kind::Request(e.to_string());
        let route = self.0.resolver.route(server, self).await?;
        let path = request.uri().path_and_query();
        let path = path.ok_or_else(|| unsendable(&"there is no path"))?;
        let uri = Uri::builder()
            .scheme("https")
            .authority(route.host.as_str())
            .path_and_query(path.clone());
        *request.uri_mut() = uri.build().map_err(|e| unsendable(&e))?;
        let host = HeaderValue::from_str(&route.host).map_err(|e| unsendable(&e))?;
        request.headers_mut().insert(header::HOST, host);

        let server = self.server(server);
        let _seat = server.seats.acquire().await.expect("it is never closed");
        let response = server.client.request(request.map(Full::new)).await;
        let (parts, body) = response.map_err(|error| kind_of(&error))?.into_parts();
        let body = collect(body, most).await?;
        Ok(Response::from_parts(parts, body))
    }

    fn server(&self, name: &ServerName) -> Arc<Server> {
        if let Some(server) = self.0.servers.get(name) {
            return server;
        }
        let connector = Connector {
            server: name.to_owned(),
            network: self.clone(),
        };
        let server = Arc::new(Server {
            client: Client::builder(TokioExecutor::new())
                .timer(TokioTimer::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(IDLE)
                .pool_max_idle_per_host(8)
                .http1_max_headers(HEADERS)
                .http1_max_buf_size(usize::try_from(HEAD_BYTES).expect("32 bits fit"))
                .http2_max_header_list_size(HEAD_BYTES)
                .http2_initial_stream_window_size(WINDOW)
                .http2_initial_connection_window_size(4 * WINDOW)
                .http2_keep_alive_interval(PING)
                .http2_keep_alive_timeout(PING)
                .build(connector),
            seats: Semaphore::new(REQUESTS),
        });
        self.0.servers.insert(name.to_owned(), server.clone());
        server
    }

    /// Gets something from a web server that is no Matrix server, over a connection of its own.
    pub(super) async fn fetch(
        &self,
        url: &Uri,
        is_peer: bool,
        limits: Limits,
    ) -> Result<Response<Bytes>, Kind> {
        let work = self.fetch_unbounded(url, is_peer, limits.body);
        let outcome = timeout(limits.time, work).await;
        outcome.unwrap_or(Err(Kind::Timeout(limits.time)))
    }

    async fn fetch_unbounded(
        &self,
        url: &Uri,
        is_peer: bool,
        most: u64,
    ) -> Result<Response<Bytes>, Kind> {
        let malformed = || Kind::Name(format!("{url} leads nowhere"));
        let authority = url.authority().ok_or_else(malformed)?;
        let host = authority.host();
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let port = authority.port_u16().unwrap_or(self.0.ports.https);
        let target = match bare.parse::<IpAddr>() {
            Ok(address) => Target::Address(address, port),
            Err(_) => Target::Name(host.to_owned(), port),
        };
        let name = pki_types::ServerName::try_from(bare.to_owned()).map_err(|_| malformed())?;
        let mut tls = ClientConfig::clone(&self.0.trust.public());
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let stream = self
            .connect(&[target], is_peer, Arc::new(tls), name)
            .await?;

        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| malformed())?;
        let path = url.path_and_query().map_or("/", |path| path.as_str());
        let request = Request::get(path)
            .header(header::HOST, host)
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, super::USER_AGENT)
            .body(Full::<Bytes>::default())
            .map_err(|_| malformed())?;
        let broken = |error: hyper::Error| Kind::Broken(error.to_string());
        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .max_headers(HEADERS)
            .max_buf_size(usize::try_from(HEAD_BYTES).expect("32 bits fit"))
            .handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        let work = async {
            let response = sender.send_request(request).await.map_err(broken)?;
            let (parts, body) = response.into_parts();
            Ok(Response::from_parts(parts, collect(body, most).await?))
        };
        // The connection may end before its answer is read; only the reading says how it went.
        let drive = async {
            let _read_by_the_other = connection.await;
            pending().await
        };
        tokio::select! {
            outcome = work => outcome,
            never = drive => never,
        }
    }

    /// Connects to the first of the targets that answers, and makes it prove its name.
    async fn connect(
        &self,
        targets: &[Target],
        is_peer: bool,
        tls: Arc<ClientConfig>,
        name: pki_types::ServerName<'static>,
    ) -> Result<TlsStream<TcpStream>, Kind> {
        let work = async {
            let socket = self.reach(targets, is_peer).await?;
            // Small requests over kept connections would otherwise wait for an acknowledgement.
            let _the_next_use_tells = socket.set_nodelay(true);
            let handshake = TlsConnector::from(tls).connect(name, socket).await;
            handshake.map_err(|error| kind_of_io(&error))
        };
        let outcome = timeout(CONNECT_ALL, work).await;
        outcome.unwrap_or(Err(Kind::Timeout(CONNECT_ALL)))
    }

    async fn reach(&self, targets: &[Target], is_peer: bool) -> Result<TcpStream, Kind> {
        let mut problem = Kind::Name("it leads nowhere".to_owned());
        let last_target = targets.len().saturating_sub(1);
        for (index, target) in targets.iter().enumerate() {
            let (addresses, port) = match target {
                Target::Address(address, port) => (vec![*address], *port),
                Target::Name(name, port) => match self.0.dns.addresses(name).await {
                    Ok(addresses) => (addresses, *port),
                    Err(error) => {
                        problem = Kind::Name(error);
                        continue;
                    }
                },
            };
            let last_address = addresses.len().saturating_sub(1);
            for (nth, ip) in addresses.into_iter().enumerate() {
                // Judged here, on the address itself: a name may lead anywhere, and elsewhere the next time.
                if !is_peer && !address::is_permitted(ip, &self.0.federation) {
                    problem = Kind::Blocked(ip);
                    continue;
                }
                let address = SocketAddr::new(ip, port);
                let is_last = index == last_target && nth == last_address;
                let patience = match (is_peer, is_last) {
                    (true, _) => CONNECT_PEER,
                    (false, true) => CONNECT_ALL,
                    (false, false) => CONNECT,
                };
                let failed = match timeout(patience, TcpStream::connect(address)).await {
                    Ok(Ok(socket)) => return Ok(socket),
                    Ok(Err(error)) => error.to_string(),
                    Err(_) => "no answer".to_owned(),
                };
                problem = Kind::Connect {
                    address: address.to_string(),
                    problem: failed,
                };
            }
        }
        Err(problem)
    }
}

/// Reads an answer up to a limit.
async fn collect(body: Incoming, most: u64) -> Result<Bytes, Kind> {
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

/// Connects for one server's client.
#[derive(Clone)]
struct Connector {
    server: OwnedServerName,
    network: Network,
}

impl Connector {
    async fn connect(self) -> Result<Secured, Failure> {
        let shared = &self.network.0;
        let route = shared.resolver.route(&self.server, &self.network).await;
        let route: Arc<Route> = route.map_err(Failure)?;
        let tls = shared.trust.of(&self.server);
        let name = route.tls_name.clone();
        let stream = self
            .network
            .connect(&route.targets, route.is_peer, tls, name)
            .await;
        Ok(Secured(TokioIo::new(stream.map_err(Failure)?)))
    }
}

impl tower::Service<Uri> for Connector {
    type Response = Secured;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Secured, Failure>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        Box::pin(self.clone().connect())
    }
}

/// What failed, on its way through the library.
#[derive(Debug)]
struct Failure(Kind);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl StdError for Failure {}

/// A connection that says which version of HTTP was agreed on.
struct Secured(TokioIo<TlsStream<TcpStream>>);

impl Connection for Secured {
    fn connected(&self) -> Connected {
        let (_, tls) = self.0.inner().get_ref();
        if tls.alpn_protocol() == Some(b"h2") {
            Connected::new().negotiated_h2()
        } else {
            Connected::new()
        }
    }
}

impl hyper::rt::Read for Secured {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl hyper::rt::Write for Secured {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, slices)
    }
}

/// What an error of the library comes from.
fn kind_of(error: &(dyn StdError + 'static)) -> Kind {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(Failure(kind)) = error.downcast_ref() {
            return kind.clone();
        }
        if let Some(error) = error.downcast_ref::<io::Error>()
            && let kind @ Kind::Tls(_) = kind_of_io(error)
        {
            return kind;
        }
        cause = error.source();
    }
    Kind::Broken(words(error))
}

fn kind_of_io(error: &io::Error) -> Kind {
    let tls = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(tls) => Kind::Tls(explain(tls)),
        None => Kind::Broken(error.to_string()),
    }
}

/// An error with its causes, of which the last usually says most.
fn words(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    tame(&text, 300)
}
