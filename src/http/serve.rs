//! Listens: accepts plain and TLS connections, and ends them all in a bounded time when the node stops.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use super::tls::Identity;
use super::{
    connection::{self, Activity, Shared, Watched},
    tls::TlsError,
};
use crate::{
    clock::Clock,
    config::{Config, Network},
};

/// The most connections at the same time; more wait in the queue of the operating system.
const CONNECTIONS: usize = 10_000;

/// How long a client may take to agree on a TLS session.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long live connections have to finish when the node stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(4);

/// How long to wait after the system refused a connection, usually for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Bound sockets, ready to serve.
#[derive(Debug)]
pub struct Listeners {
    http: Option<TcpListener>,
    https: Option<(TcpListener, Arc<Identity>)>,
    trusted_proxies: Arc<[Network]>,
    clock: Clock,
}

/// Why the node cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address is taken, not ours or not permitted.
    #[error("cannot listen on {address} ({key}): {source}")]
    Bind {
        /// The option that names the address.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the operating system said.
        source: io::Error,
    },
    /// The certificate cannot be used or made.
    #[error("no certificate for {address} (listen.https): {source}")]
    Tls {
        /// The address that would have used it.
        address: SocketAddr,
        /// What is wrong.
        source: TlsError,
    },
}

impl Listeners {
    /// Binds what the section `listen` asks for, and loads or makes the certificate.
    ///
    /// # Errors
    /// When an address cannot be bound or there is no usable certificate.
    pub async fn bind(config: &Config, clock: Clock) -> Result<Self, ListenError> {
        let http = match config.listen.http {
            Some(address) => Some(bind("listen.http", address).await?),
            None => None,
        };
        let https = match config.listen.https {
            Some(address) => {
                let listener = bind("listen.https", address).await?;
                let identity = Identity::open(config, clock.clone());
                let identity = identity.map_err(|source| ListenError::Tls { address, source })?;
                Some((listener, Arc::new(identity)))
            }
            None => None,
        };
        Ok(Self {
            http,
            https,
            trusted_proxies: config.listen.trusted_proxies.clone().into(),
            clock,
        })
    }

    /// Where plain HTTP is answered.
    pub fn http(&self) -> Option<SocketAddr> {
        self.http
            .as_ref()
            .and_then(|listener| listener.local_addr().ok())
    }

    /// Where HTTPS is answered.
    pub fn https(&self) -> Option<SocketAddr> {
        self.https
            .as_ref()
            .and_then(|(listener, _)| listener.local_addr().ok())
    }

    /// The certificate, which has to be refreshed now and then; none without HTTPS.
    pub fn identity(&self) -> Option<Arc<Identity>> {
        self.https
            .as_ref()
            .map(|(_, identity)| Arc::clone(identity))
    }

    /// Answers requests with `router` until `stop` is cancelled. Then nobody new is let in, running requests finish,
    /// and after 4 seconds at the latest every connection is closed.
    pub async fn run(self, router: Router, stop: CancellationToken) {
        let tasks = TaskTracker::new();
        let abandon = CancellationToken::new();
        let shared = Shared {
            router,
            trusted_proxies: self.trusted_proxies,
            clock: self.clock,
            tasks: tasks.clone(),
            stop: stop.clone(),
        };
        let seats = Arc::new(Semaphore::new(CONNECTIONS));
        let doors = Doors {
            shared,
            seats,
            abandon: abandon.clone(),
        };
        if let Some(listener) = self.http {
            tasks.spawn(doors.clone().accept(listener, None));
        }
        if let Some((listener, identity)) = self.https {
            tasks.spawn(doors.clone().accept(listener, Some(identity)));
        }
        drop(doors);

        stop.cancelled().await;
        tasks.close();
        if timeout(STOP_TIMEOUT, tasks.wait()).await.is_err() {
            tracing::warn!(
                "closing {} connections that did not finish in time",
                tasks.len()
            );
            abandon.cancel();
        }
    }
}

async fn bind(key: &'static str, address: SocketAddr) -> Result<TcpListener, ListenError> {
    let listener = TcpListener::bind(address).await;
    listener.map_err(|source| ListenError::Bind {
        key,
        address,
        source,
    })
}

/// Where connections come in.
#[derive(Clone)]
struct Doors {
    shared: Shared,
    seats: Arc<Semaphore>,
    /// Closes every connection at once.
    abandon: CancellationToken,
}

impl Doors {
    /// Lets connections in until the node stops. The listener is dropped then, so that new ones are refused.
    async fn accept(self, listener: TcpListener, identity: Option<Arc<Identity>>) {
        loop {
            let accepted = tokio::select! {
                () = self.shared.stop.cancelled() => return,
                accepted = async {
                    let seat = Arc::clone(&self.seats).acquire_owned().await;
                    (seat.expect("the semaphore is never closed"), listener.accept().await)
                } => accepted,
            };
            match accepted {
                (seat, Ok((socket, peer))) => {
                    let connection = admit(socket, peer, identity.clone(), self.shared.clone());
                    let abandon = self.abandon.clone();
                    self.shared.tasks.spawn(async move {
                        abandon.run_until_cancelled(connection).await;
                        drop(seat);
                    });
                }
                (_, Err(error)) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    self.shared.clock.sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// Serves one connection, after the TLS handshake where there is to be one.
async fn admit(
    socket: TcpStream,
    peer: SocketAddr,
    identity: Option<Arc<Identity>>,
    shared: Shared,
) {
    // Small answers over kept connections would otherwise wait for an acknowledgement that the other end delays.
    if socket.set_nodelay(true).is_err() {
        return; // The connection is already gone.
    }
    let activity = Activity::new(shared.clock.clone());
    let stream = Watched::new(socket, Arc::clone(&activity), shared.stop.clone());
    let Some(identity) = identity else {
        return connection::serve(stream, peer, activity, shared).await;
    };
    let handshake = TlsAcceptor::from(identity.current()).accept(stream);
    match timeout(HANDSHAKE_TIMEOUT, handshake).await {
        Ok(Ok(stream)) => connection::serve(stream, peer, activity, shared).await,
        Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS handshake failed"),
        Err(_) => tracing::debug!(%peer, "TLS handshake took too long"),
    }
}

#[cfg(test)]
mod tests;
