//! The composition root: starts the parts of the node bottom-up, and stops them in the opposite order.

mod fresh;

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::signal::unix::Signal;

use self::fresh::Fresh;
use crate::{
    clock::{Clock, Entropy},
    config::{self, Config, RegistrationMode},
    control::Control,
    error::Error,
    http::{
        self,
        serve::{ListenError, Listeners},
    },
    remote::{Network, Transport, TrustError},
    service::{Services, accounts::Cost, keyring::OwnKeys, search::Status},
    store::{self, Store},
};

/// How long tasks have to finish after the last connection is closed.
const LAST_TASKS: Duration = Duration::from_millis(800);

/// A node that is ready to answer.
pub struct App {
    services: Arc<Services>,
    listeners: Listeners,
    /// Where the command line is answered.
    control: Option<Control>,
    fresh: Fresh,
    /// The token for the first account, on the first start only.
    first_token: Option<String>,
}

/// Why the node could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The operating system refused threads, timers or signals.
    #[error("the system refuses what a process needs: {0}")]
    Runtime(#[source] io::Error),
    /// The data directory cannot be made or used.
    #[error("the data directory {path} cannot be used: {source}")]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Another node holds the lock of this data directory.
    #[error("another node already runs on the data directory {0}")]
    InUse(PathBuf),
    /// The store cannot be opened.
    #[error(transparent)]
    Store(store::Error),
    /// What the node needs to know about itself cannot be read or made.
    #[error("the node cannot be set up: {0}")]
    SetUp(#[from] Error),
    /// Certificates of those who vouch for other servers.
    #[error("the authorities for other servers cannot be read: {0}")]
    Trust(#[from] TrustError),
    /// An address or a certificate.
    #[error(transparent)]
    Listen(#[from] ListenError),
}

impl StartError {
    /// What the administrator can do about it.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::Runtime(_) => {
                "Look at the limits of the process (ulimit -a, or the systemd unit)."
            }
            Self::DataDir { .. } => {
                "Set server.data_dir to the directory of the node, which the user of this process may write to."
            }
            Self::InUse(_) => {
                "Stop the other node first, or give this one its own server.data_dir."
            }
            Self::Store(store::Error::Schema { .. }) => {
                "Install the version that wrote it, or a newer one."
            }
            Self::Store(_) | Self::SetUp(_) => {
                "Look whether the disk is full or broken; if a copy of the directory works, use that."
            }
            Self::Trust(_) => "Correct federation.ca_files, or `ca` of the peer.",
            Self::Listen(ListenError::Bind { .. }) => {
                "Stop what uses the address, or choose another (port 0 takes any free one)."
            }
            Self::Listen(ListenError::Tls { .. }) => {
                "Correct listen.tls_certificate and listen.tls_key, or remove both to use the private authority."
            }
        }
    }
}

impl App {
    /// Starts everything but does not answer yet; see [`run`](Self::run). `file` is where the configuration is read again.
    ///
    /// # Errors
    /// When the data directory, an address or a certificate cannot be used.
    pub async fn start(config: Config, file: Option<PathBuf>) -> Result<Self, StartError> {
        // Whoever speaks TLS without naming a provider gets this one. An error says that it is set already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let clock = Clock::real();
        create_data_dir(&config.server.data_dir)?;
        // Before anything else is touched, so that a second node on the same directory changes nothing.
        let store = open_store(&config)?;
        // Closed again if the rest fails: a database that is open at the end of the process may abort it.
        let started = Self::over(config, file, clock, store.clone()).await;
        if started.is_err() {
            store.close();
        }
        started
    }

    /// The rest of the start, over the open store.
    async fn over(
        config: Config,
        file: Option<PathBuf>,
        clock: Clock,
        store: Store,
    ) -> Result<Self, StartError> {
        let cost = Cost::real();
        let network = Network::new(&config.federation, &clock)?;
        let transport = Transport::Network(network);
        let services = Services::new(
            Arc::new(config),
            clock.clone(),
            Entropy::real(),
            store,
            &cost,
            transport,
        )?;
        let services = Arc::new(services);
        let listeners = Listeners::bind(&services.config, clock).await?;
        let fresh = Fresh::new(services.clone(), listeners.identity(), file);
        let data_dir = &services.config.server.data_dir;
        let control = Control::bind(data_dir).inspect_err(|error| {
            tracing::warn!(%error, "no socket for commands in the data directory, so `kontor peer` does not work");
        });
        // When nothing else can go wrong: it is shown once, so a start that fails must not use it up.
        let first_token = services.accounts.first_token().await?;
        Ok(Self {
            services,
            listeners,
            control: control.ok(),
            fresh,
            first_token,
        })
    }

    /// Answers requests until `shutdown` completes, then stops within 5 seconds. The configuration's peers and the files with
    /// certificates are read again at each of `hangups`, by which service managers ask for that.
    pub async fn run(self, shutdown: impl Future<Output = ()>, hangups: Signal) {
        let services = self.services;
        let kept = services.clone();
        services.tasks.spawn(async move { kept.keep_up().await });
        services.federation.start();
        services.search.start();
        services.tasks.spawn(services.delayed.clone().run());
        services
            .tasks
            .spawn(self.fresh.keep(hangups, services.stop.clone()));
        if let Some(control) = self.control {
            services.tasks.spawn(control.run(services.clone()));
        }
        let router = http::router(services.clone());
        let listening = self.listeners.run(router, services.stop.clone());
        tokio::join!(listening, async {
            shutdown.await;
            services.stop.cancel();
        });
        services.tasks.close();
        let finished = tokio::time::timeout(LAST_TASKS, services.tasks.wait()).await;
        if finished.is_err() {
            let left = services.tasks.len();
            tracing::warn!("{left} tasks did not finish in time");
        }
        services.store().close();
    }

    /// Walks the whole store and tells each broken invariant in one line.
    ///
    /// # Errors
    /// When there is no store, or it cannot be opened.
    pub fn check(config: &Config) -> Result<Vec<String>, StartError> {
        // Opening would make an empty one, in which nothing is broken.
        let path = config.server.data_dir.join("store");
        if let Err(source) = fs::metadata(&path) {
            return Err(StartError::DataDir { path, source });
        }
        let store = open_store(config)?;
        let mut complaints = Vec::new();
        store
            .check(|complaint| complaints.push(complaint))
            .map_err(StartError::Store)?;
        store.close();
        Ok(complaints)
    }

    /// Replaces the signing key of a node that is stopped; says the ids of the old one and the new one.
    ///
    /// # Errors
    /// When there is no store, or it cannot be opened.
    pub fn rotate_key(config: &Config) -> Result<(String, String), StartError> {
        let path = config.server.data_dir.join("store");
        if let Err(source) = fs::metadata(&path) {
            return Err(StartError::DataDir { path, source });
        }
        let store = open_store(config)?;
        let (clock, entropy) = (Clock::real(), Entropy::real());
        let old = OwnKeys::open(&store, &entropy)?;
        let new = OwnKeys::rotate(&store, &clock, &entropy)?;
        store.close();
        Ok((old.key.id().to_owned(), new.key.id().to_owned()))
    }

    /// Makes the index of messages of a node that is stopped anew, and says now and then how far it is.
    ///
    /// # Errors
    /// When there is no store, it cannot be opened, or searching is switched off.
    pub fn rebuild_search(
        config: Config,
        every: Duration,
        report: &mut dyn FnMut(&Status),
    ) -> Result<(), StartError> {
        let path = config.server.data_dir.join("store");
        if let Err(source) = fs::metadata(&path) {
            return Err(StartError::DataDir { path, source });
        }
        // Nothing of it runs, but some of it is made for one.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(StartError::Runtime)?;
        let _entered = runtime.enter();
        let store = open_store(&config)?;
        let clock = Clock::real();
        let network = Network::new(&config.federation, &clock)?;
        let services = Services::new(
            Arc::new(config),
            clock,
            Entropy::real(),
            store.clone(),
            &Cost::real(),
            Transport::Network(network),
        )?;
        let outcome = services.search.rebuild_now(every, report);
        drop(services);
        store.close();
        Ok(outcome?)
    }

    /// What the person who started the node needs to know now.
    pub fn banner(&self) -> String {
        startup_banner(
            &self.services.config,
            self.listeners.http(),
            self.listeners.https(),
            self.first_token.as_deref(),
        )
    }
}

fn open_store(config: &Config) -> Result<Store, StartError> {
    let options = store::Options {
        directory: config.server.data_dir.clone(),
        sync: match config.database.sync {
            config::Sync::Always => store::Sync::Always,
            config::Sync::Interval => store::Sync::Interval,
            config::Sync::Never => store::Sync::Never,
        },
        memory: usize::try_from(config.database.memory.bytes()).unwrap_or(usize::MAX),
    };
    Store::open(&options).map_err(|error| match error {
        store::Error::Locked(directory) => StartError::InUse(directory),
        store::Error::Directory(path, source) => StartError::DataDir { path, source },
        error => StartError::Store(error),
    })
}

fn create_data_dir(path: &Path) -> Result<(), StartError> {
    let created = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path);
    created.map_err(|source| StartError::DataDir {
        path: path.to_owned(),
        source,
    })
}

/// Says where the node listens, what to type into an app, and how accounts are made. `first_token` is the one-time
/// registration token of the first administrator, which exists on the first start only.
fn startup_banner(
    config: &Config,
    http: Option<SocketAddr>,
    https: Option<SocketAddr>,
    first_token: Option<&str>,
) -> String {
    let listens: Vec<_> = [("http", http), ("https", https)]
        .into_iter()
        .filter_map(|(scheme, address)| Some(format!("{scheme}://{}", address?)))
        .collect();
    let listens = listens.join(" and ");
    let type_in = address_for_apps(config, http, https);

    let mut lines = vec![
        format!(
            "Kontor {} is {}",
            env!("CARGO_PKG_VERSION"),
            config.server.name
        ),
        format!("  data            {}", config.server.data_dir.display()),
        format!("  listens on      {listens}"),
        format!("  type into apps  {type_in}"),
    ];
    if let Some(token) = first_token {
        lines.extend([
            String::new(),
            "Make the first account in an app: choose \"create account\" and give this registration token.".to_owned(),
            "It works once, makes an administrator, and is not shown again:".to_owned(),
            String::new(),
            format!("  {token}"),
            String::new(),
        ]);
    } else {
        let accounts = match config.registration.mode {
            RegistrationMode::Closed => "made by administrators only",
            RegistrationMode::Token => "for holders of a registration token",
            RegistrationMode::Open => "for everybody",
        };
        lines.push(format!("  accounts        {accounts}"));
    }
    lines.join("\n")
}

/// What a user types into an app. The configured address is the one that works from everywhere. Without it, plain HTTP
/// comes before a certificate that no app trusts yet.
fn address_for_apps(
    config: &Config,
    http: Option<SocketAddr>,
    https: Option<SocketAddr>,
) -> String {
    if let Some(url) = &config.server.client_url {
        return url.as_str().to_owned();
    }
    let http = http.map(|address| ("http", address));
    let https = https.map(|address| ("https", address));
    let trusted = https.filter(|_| config.listen.tls_certificate.is_some());
    let Some((scheme, address)) = trusted.or(http).or(https) else {
        return format!("https://{}", config.server.name);
    };
    if address.ip().is_unspecified() {
        // "Every address of this machine" is nothing that one could type.
        format!(
            "{scheme}://{}:{}",
            config.server.name.host(),
            address.port()
        )
    } else {
        format!("{scheme}://{address}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_banner_says_where_and_how() {
        let mut config = Config::default();
        let http = Some("127.0.0.1:8008".parse().unwrap());
        let banner = startup_banner(&config, http, None, Some("s3cret"));
        for expected in ["localhost", "http://127.0.0.1:8008", "\n  s3cret\n"] {
            assert!(banner.contains(expected), "{expected} in\n{banner}");
        }

        let every = Some("0.0.0.0:8448".parse().unwrap());
        for (http, https, expected) in [
            (http, every, "http://127.0.0.1:8008"),
            (None, every, "https://localhost:8448"),
        ] {
            assert_eq!(address_for_apps(&config, http, https), expected);
        }
        config.listen.tls_certificate = Some("cert.pem".into());
        assert_eq!(
            address_for_apps(&config, http, every),
            "https://localhost:8448"
        );

        config.server.client_url = Some("https://chat.office.example".parse().unwrap());
        let banner = startup_banner(&config, http, None, None);
        assert!(
            banner.contains("type into apps  https://chat.office.example"),
            "{banner}"
        );
        assert!(
            banner.contains("holders of a registration token"),
            "{banner}"
        );
    }
}
