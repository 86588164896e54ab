//! The only HTTP client: connections to other servers, kept and bounded, and never to an address that is not permitted.
//!
//! One client per server holds its connections, so that what one server does never touches another. Each connection
//! looks the server's way up anew, so a change of address needs no more than the end of the old connections.

use std::{
    fmt,
    future::pending,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use quick_cache::sync::Cache;
use ruma::{OwnedServerName, ServerName};
use rustls::{ClientConfig, pki_types};
use tokio::{net::TcpStream, sync::Semaphore, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    Reloaded, address,
    body::{collect, compressed, whole},
    connection::{Connector, kind_of, kind_of_io},
    dns::{Dns, FixedNames},
    error::Kind,
    peers::{Peer, Peers},
    resolver::{Resolver, Route, Target},
    trust::{Public, Trust, TrustError},
};
use crate::{
    clock::Clock,
    coding::{Coding, OFFER, WORTH},
    config::Federation,
};

/// How long a connection attempt to one address may take when there are others to try.
const CONNECT: Duration = Duration::from_secs(4);

/// The same for a peer, which is near, and tried again soon: a longer attempt would ask ever less often.
const CONNECT_PEER: Duration = Duration::from_secs(3);

/// How long all attempts and the handshake together may take.
const CONNECT_ALL: Duration = Duration::from_secs(15);

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
    /// As it was at the start: for what does not change.
    federation: Federation,
    peers: Peers,
    dns: Dns,
    ports: Ports,
    trust: Trust,
    resolver: Resolver,
    servers: Cache<OwnedServerName, Arc<Server>>,
    /// How bodies may be compressed that are sent to a server, as it has said itself. Kept when the link breaks.
    codings: Cache<OwnedServerName, Coding>,
}

/// The connections to one server.
struct Server {
    client: Client<Connector, Full<Bytes>>,
    seats: Semaphore,
}

impl Server {
    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Kind> {
        let sent = self.client.request(request).await;
        sent.map_err(|error| kind_of(&error))
    }
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
        Ok(Self(Arc::new(Shared {
            trust: Trust::load(federation, clock.clone())?,
            peers: Peers::load(federation)?,
            resolver: Resolver::new(clock.clone(), ports),
            servers: Cache::new(SERVERS),
            codings: Cache::new(SERVERS),
            federation: federation.clone(),
            dns,
            ports,
        })))
    }

    /// See [`Remote::reload`](super::Remote::reload). Where anything is different new connections are made, as the old ones
    /// may rest on an authority that is trusted no more, or lead elsewhere.
    pub(super) fn reload(
        &self,
        federation: &Federation,
        paired: impl FnMut(&ServerName) -> Option<Peer>,
    ) -> Result<Reloaded, TrustError> {
        let shared = &self.0;
        // What fails does so before anything is changed.
        let public = Public::load(federation)?;
        let peers = shared.peers.reload(federation, paired)?;
        let authorities = shared.trust.replace(public);
        if authorities {
            shared.peers.forget_tls();
            shared.servers.clear();
        }
        for peer in &peers {
            self.reconnect(peer);
        }
        Ok(Reloaded { authorities, peers })
    }

    /// Connects to a server, wherever it is now.
    pub(super) async fn connect_to(
        &self,
        server: &ServerName,
    ) -> Result<TlsStream<TcpStream>, Kind> {
        let route = self.0.resolver.route(server, self).await?;
        let known = self.0.peers.get(server);
        let tls = self.0.trust.of(server, known.as_deref());
        self.connect(&route, tls).await
    }

    pub(super) fn peers(&self) -> &Peers {
        &self.0.peers
    }

    /// Leaves the connections to a server, and the way to it, to those who use them now.
    pub(super) fn reconnect(&self, server: &ServerName) {
        self.0.servers.remove(server);
        self.0.resolver.forget(server);
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
            | Kind::Slow(_)
            | Kind::Broken(_),
        ) = &outcome
        {
            // A kept connection may be as dead as the link was; the next request begins with a new one, on a way that
            // is looked up again.
            self.reconnect(server);
        }
        outcome
    }

    /// Sends a request to a server as if it were a peer like this, over a connection of its own.
    pub(super) async fn exchange_as(
        &self,
        server: &ServerName,
        peer: &Peer,
        request: Request<Bytes>,
        limits: Limits,
    ) -> Result<Response<Bytes>, Kind> {
        let work = async {
            let route = self.0.resolver.find(server, Some(peer), self).await?;
            let tls = self.0.trust.of_peer(server, peer);
            self.once(&route, &tls, request, limits.body).await
        };
        let outcome = timeout(limits.time, work).await;
        outcome.unwrap_or(Err(Kind::Timeout(limits.time)))
    }

    async fn attempt(
        &self,
        server: &ServerName,
        mut request: Request<Bytes>,
        most: u64,
    ) -> Result<Response<Bytes>, Kind> {
        let route = self.0.resolver.route(server, self).await?;
        let path = request.uri().path_and_query();
        let path = path.ok_or_else(|| unsendable(&"there is no path"))?;
        let uri = Uri::builder()
            .scheme("https")
            .authority(route.host.as_str())
            .path_and_query(path.clone());
        *request.uri_mut() = uri.build().map_err(|e| unsendable(&e))?;
        set_host(&mut request, &route.host)?;

        request
            .headers_mut()
            .insert(header::ACCEPT_ENCODING, HeaderValue::from_static(OFFER));

        let one = self.server(server);
        let _seat = one.seats.acquire().await.expect("it is never closed");
        let coding = self.0.codings.get(server);
        let coding = coding.filter(|_| request.body().len() >= WORTH);
        if let Some(coding) = coding {
            let response = one.send(compressed(&request, coding).await?).await?;
            if response.status() != StatusCode::UNSUPPORTED_MEDIA_TYPE {
                self.note_coding(server, response.headers());
                return whole(response, most).await;
            }
            // Another program has the name now. Nothing was done there yet, so the same may be said once more.
            self.0.codings.remove(server);
        }
        let response = one.send(request.map(Full::new)).await?;
        self.note_coding(server, response.headers());
        whole(response, most).await
    }

    /// Takes note of what an answer says about the requests to come. One that says nothing may be a proxy's.
    fn note_coding(&self, server: &ServerName, headers: &HeaderMap) {
        let said = headers.get(header::ACCEPT_ENCODING);
        let Some(said) = said.and_then(|said| said.to_str().ok()) else {
            return;
        };
        match Coding::best(said) {
            Some(coding) => self.0.codings.insert(server.to_owned(), coding),
            None => {
                self.0.codings.remove(server);
            }
        }
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
        let route = Route {
            host: authority.as_str().to_owned(),
            tls_name: pki_types::ServerName::try_from(bare.to_owned()).map_err(|_| malformed())?,
            targets: vec![target],
            is_peer,
        };
        let path = url.path_and_query().map_or("/", |path| path.as_str());
        let request = Request::get(path)
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, super::USER_AGENT)
            .body(Bytes::new())
            .map_err(|_| malformed())?;
        self.once(&route, &self.0.trust.public(), request, most)
            .await
    }

    /// Sends a request, whose URI is only path and query, over a connection of its own.
    async fn once(
        &self,
        route: &Route,
        tls: &ClientConfig,
        mut request: Request<Bytes>,
        most: u64,
    ) -> Result<Response<Bytes>, Kind> {
        let mut tls = tls.clone();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let stream = self.connect(route, Arc::new(tls)).await?;
        set_host(&mut request, &route.host)?;
        let broken = |error: hyper::Error| Kind::Broken(error.to_string());
        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .max_headers(HEADERS)
            .max_buf_size(usize::try_from(HEAD_BYTES).expect("32 bits fit"))
            .handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        let work = async {
            let request = request.map(Full::new);
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
        route: &Route,
        tls: Arc<ClientConfig>,
    ) -> Result<TlsStream<TcpStream>, Kind> {
        let work = async {
            let socket = self.reach(&route.targets, route.is_peer).await?;
            let name = route.tls_name.clone();
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
                    Ok(Err(error)) => unreachable_because(&error),
                    Err(_) => NO_ANSWER.to_owned(),
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

const NO_ANSWER: &str = "nothing answers: the machine is off, the link is down, or a firewall drops what is sent to this port";

/// Why nobody could be connected to, for whoever has to mend it.
fn unreachable_because(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            "the machine is there, but nobody listens on this port (the port, or a firewall)"
                .to_owned()
        }
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            format!("no way leads there: the link is down, or a route is missing ({error})")
        }
        io::ErrorKind::TimedOut => NO_ANSWER.to_owned(),
        _ => error.to_string(),
    }
}

pub(super) fn unsendable(error: &dyn fmt::Display) -> Kind {
    Kind::Request(error.to_string())
}

fn set_host(request: &mut Request<Bytes>, host: &str) -> Result<(), Kind> {
    let host = HeaderValue::from_str(host).map_err(|e| unsendable(&e))?;
    request.headers_mut().insert(header::HOST, host);
    Ok(())
}
