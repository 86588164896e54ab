//! A node without a network: requests go straight to its router.

use std::{
    ffi::OsString,
    fs,
    net::SocketAddr,
    path::Path,
    sync::{Arc, OnceLock},
};

use axum::{Router, body::Body};
use http::{HeaderMap, Method, Request, StatusCode, header};
use kontor::{
    clock::{Clock, Entropy},
    config::{Config, RegistrationMode},
    http::peer::PeerAddr,
    remote::{Lan, Transport},
    service::{Requester, Services, accounts::Cost},
    store::{self, Store},
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tower::ServiceExt as _;

/// What every user's password is.
pub(crate) const PASSWORD: &str = "correct horse";

/// When every test begins, in milliseconds since 1970.
pub(crate) const START: u64 = 1_700_000_000_000;

/// A node with a store of its own that is gone with it.
pub(crate) struct TestServer {
    /// What the node can do, for tests that look behind its API.
    pub(crate) services: Arc<Services>,
    /// Stands still until it is advanced.
    pub(crate) clock: Clock,
    /// Where other servers are, unless the node was given another network.
    pub(crate) lan: Lan,
    transport: Transport,
    /// Shared with the clients, so that they find the node again after a restart.
    router: Shared,
    /// Where the store is; a restart finds what is there.
    pub(crate) directory: TempDir,
}

type Shared = Arc<Mutex<Router>>;

/// An answer: its status and its body, which is null where there is none.
pub(crate) type Answer = (StatusCode, Value);

fn options(directory: &Path) -> store::Options {
    store::Options {
        directory: directory.to_owned(),
        sync: store::Sync::Never,
        memory: 32 << 20,
    }
}

/// A directory with a store in which there is nothing. To make all of its tables takes the engine long, so they are made
/// once and copied.
fn fresh_store() -> TempDir {
    static EMPTY: OnceLock<Vec<(OsString, Vec<u8>)>> = OnceLock::new();
    let directory = || tempfile::tempdir().expect("there is room for a temporary directory");
    let empty = EMPTY.get_or_init(|| {
        let empty = directory();
        let store = Store::open(&options(empty.path())).expect("the store opens");
        store.close();
        drop(store);
        let files = fs::read_dir(empty.path().join("store")).expect("it was made");
        let read = files.map(|file| {
            let file = file.expect("it was made");
            (
                file.file_name(),
                fs::read(file.path()).expect("it is readable"),
            )
        });
        read.collect()
    });
    let fresh = directory();
    let to = fresh.path().join("store");
    fs::create_dir(&to).expect("there is room for a directory");
    for (name, content) in empty {
        fs::write(to.join(name), content).expect("there is room for a file");
    }
    fresh
}

impl TestServer {
    /// A node on which anybody can register, without limits.
    pub(crate) fn new() -> Self {
        Self::with(|_| ())
    }

    /// The same with a changed configuration.
    pub(crate) fn with(change: impl FnOnce(&mut Config)) -> Self {
        Self::on(|_, _| None, change)
    }

    /// The same on a network other than one in memory, if `network` makes one.
    pub(crate) fn on(
        network: impl FnOnce(&Config, &Clock) -> Option<Transport>,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        Self::timed(Clock::manual(START), network, change)
    }

    /// The same by a manual clock that somebody else moves.
    pub(crate) fn timed(
        clock: Clock,
        network: impl FnOnce(&Config, &Clock) -> Option<Transport>,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let mut config = Config::default();
        config.registration.mode = RegistrationMode::Open;
        config.limits.enabled = false;
        change(&mut config);
        let directory = fresh_store();
        let router = Shared::default();
        let lan = Lan::new(clock.clone(), Entropy::seeded(7));
        let transport = network(&config, &clock).unwrap_or_else(|| lan.port(&config.server.name));
        Self::open(config, clock, (lan, transport), (directory, false), router)
    }

    /// Lets everything end that runs beside the requests, which a restart needs where there is such.
    pub(crate) async fn stop(&self) {
        self.services.stop.cancel();
        self.services.tasks.close();
        self.services.tasks.wait().await;
    }

    /// The same node, stopped and started again. Its clients go on.
    pub(crate) fn restart(self) -> Self {
        self.restart_with(|_| ())
    }

    /// The same with a changed configuration.
    pub(crate) fn restart_with(self, change: impl FnOnce(&mut Config)) -> Self {
        self.again(change, false)
    }

    /// The same without what follows the stream to make messages found, as for a command of a stopped node.
    pub(crate) fn restart_idle(self) -> Self {
        self.again(|_| (), true)
    }

    fn again(self, change: impl FnOnce(&mut Config), is_idle: bool) -> Self {
        let mut config = Config::clone(&self.services.config);
        change(&mut config);
        self.services.store().close();
        *self.router.lock() = Router::new();
        drop(self.services);
        let network = (self.lan, self.transport);
        let directory = (self.directory, is_idle);
        Self::open(config, self.clock, network, directory, self.router)
    }

    fn open(
        config: Config,
        clock: Clock,
        (lan, transport): (Lan, Transport),
        (directory, is_idle): (TempDir, bool),
        router: Shared,
    ) -> Self {
        let options = options(directory.path());
        // A thread of the node before may not have ended yet.
        let mut opened = Store::open(&options);
        for _ in 0..200 {
            if !matches!(opened, Err(store::Error::Locked(_))) {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
            opened = Store::open(&options);
        }
        let store = opened.expect("the store opens");
        // Another seed after a restart and on another node, so that no token comes twice.
        let name = Sha256::digest(config.server.name.as_str());
        let name = u64::from_be_bytes(name[..8].try_into().expect("a digest is longer"));
        let seed = name ^ store.view().position().0;
        let services = Services::new(
            Arc::new(config),
            clock.clone(),
            Entropy::seeded(seed),
            store,
            &Cost::cheap(),
            transport.clone(),
        );
        let services = Arc::new(services.expect("the node starts"));
        *router.lock() = kontor::http::router(services.clone());
        services.federation.start();
        if !is_idle {
            services.search.start();
        }
        Self {
            services,
            clock,
            lan,
            transport,
            router,
            directory,
        }
    }

    /// A new user, logged in.
    pub(crate) async fn register(&self, username: &str) -> Client {
        let body = json!({
            "username": username,
            "password": PASSWORD,
            "auth": { "type": "m.login.dummy" },
        });
        let (status, body) = self
            .anonymous()
            .post("/_matrix/client/v3/register", body)
            .await;
        assert_eq!(status, StatusCode::OK, "{body}");
        self.client(&body)
    }

    /// Another device of a user who exists.
    pub(crate) async fn log_in(&self, username: &str) -> Client {
        let body = json!({
            "type": "m.login.password",
            "identifier": { "type": "m.id.user", "user": username },
            "password": PASSWORD,
        });
        let (status, body) = self
            .anonymous()
            .post("/_matrix/client/v3/login", body)
            .await;
        assert_eq!(status, StatusCode::OK, "{body}");
        self.client(&body)
    }

    /// The client that a login or a registration was answered with.
    pub(crate) fn client(&self, body: &Value) -> Client {
        Client {
            router: self.router.clone(),
            user_id: text(body, "user_id"),
            device_id: text(body, "device_id"),
            token: Some(text(body, "access_token")),
        }
    }

    /// Who the node takes this client for.
    pub(crate) fn requester(&self, client: &Client) -> Requester {
        let token = client.token.as_deref().expect("the client is logged in");
        let requester = self
            .services
            .accounts
            .authenticate(token, [192, 0, 2, 1].into());
        requester.expect("the token is known")
    }

    /// A client that is not logged in.
    pub(crate) fn anonymous(&self) -> Client {
        Client {
            router: self.router.clone(),
            user_id: String::new(),
            device_id: String::new(),
            token: None,
        }
    }
}

/// A member of an answer that must be a text.
pub(crate) fn text(body: &Value, name: &str) -> String {
    let text = body[name].as_str();
    text.unwrap_or_else(|| panic!("no {name} in {body}"))
        .to_owned()
}

/// Somebody's app.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) user_id: String,
    pub(crate) device_id: String,
    pub(crate) token: Option<String>,
    router: Shared,
}

impl Client {
    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, None).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.send(Method::POST, path, Some(body)).await
    }

    pub(crate) async fn put(&self, path: &str, body: Value) -> Answer {
        self.send(Method::PUT, path, Some(body)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.send(Method::DELETE, path, None).await
    }

    pub(crate) async fn send(&self, method: Method, path: &str, body: Option<Value>) -> Answer {
        let body = body.map_or_else(String::new, |body| body.to_string());
        let (status, _, body) = self.raw(method, path, &[], body).await;
        let body = match &*body {
            "" => Value::Null,
            body => {
                serde_json::from_str(body).unwrap_or_else(|e| panic!("{path}: {e} in {body:?}"))
            }
        };
        (status, body)
    }

    /// Any request, and the answer as it came.
    pub(crate) async fn raw(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> (StatusCode, HeaderMap, String) {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let mut request = request.body(body.into()).expect("the request is one");
        let peer = PeerAddr(SocketAddr::from(([192, 0, 2, 1], 5_000)));
        request.extensions_mut().insert(peer);
        let router = self.router.lock().clone();
        let response = router.oneshot(request).await;
        let (parts, body) = response.expect("the router always answers").into_parts();
        let body = kontor::http::body::read(body, 1 << 30).await;
        let body = body.expect("the answer is whole").to_vec();
        let body = String::from_utf8(body).expect("the answer is text");
        (parts.status, parts.headers, body)
    }
}

/// Fails unless the answer is this error.
#[track_caller]
pub(crate) fn refused((status, body): Answer, expect: u16, errcode: &str) {
    assert_eq!(
        (status.as_u16(), body["errcode"].as_str()),
        (expect, Some(errcode)),
        "{body}"
    );
}

/// The body of an answer that must be a success.
#[track_caller]
pub(crate) fn ok((status, body): Answer) -> Value {
    assert_eq!(status, StatusCode::OK, "{body}");
    body
}
