//! Every way to a server, and servers that do everything wrong: with fixed names and loopback only.

mod coded;
mod wrong;

use std::{collections::HashMap, net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use ruma::ServerName;
use rustls::{
    ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use super::{
    FixedNames, Network, Ports, Service,
    resolver::{Route, Target},
};
use crate::{
    clock::Clock,
    config::{Federation, Peer},
};

/// What a web server does with a request for a path.
#[derive(Clone)]
enum Does {
    /// Sends this and closes.
    Say(String),
    /// Sends so many bytes of a body without saying how many.
    Flood(usize),
    /// Sends these bytes and closes.
    Bytes(Vec<u8>),
    /// Sends a byte now and then.
    Drip,
    /// Says that there is much, and sends nothing of it.
    Promise(u64),
    /// Reads, and says nothing.
    Silence,
}

impl Does {
    fn json(body: &str) -> Self {
        Self::with("200 OK", "", body)
    }

    fn with(status: &str, headers: &str, body: &str) -> Self {
        let length = body.len();
        Self::Say(format!(
            "HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n{headers}\r\n{body}"
        ))
    }
}

type Bodies = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

type Site = Arc<Mutex<HashMap<String, Does>>>;

/// A web server on loopback with a certificate for some names by an authority of its own.
struct Web {
    port: u16,
    site: Site,
    /// Heads of the requests, the first line of each.
    asked: Arc<Mutex<Vec<String>>>,
    /// The coding of each body that came, and the body.
    bodies: Bodies,
    directory: tempfile::TempDir,
    clock: Clock,
    _tasks: JoinSet<()>,
}

impl Web {
    async fn new(names: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let ca_key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
        std::fs::write(directory.path().join("ca.pem"), ca_pem).unwrap();
        let key = KeyPair::generate().unwrap();
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let certificate = CertificateParams::new(names).unwrap();
        let certificate = certificate
            .signed_by(&key, &Issuer::new(ca, ca_key))
            .unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (site, asked) = (Site::default(), Arc::<Mutex<Vec<String>>>::default());
        let mut tasks = JoinSet::new();
        let (its_site, its_asked) = (site.clone(), asked.clone());
        let bodies = Bodies::default();
        let its_bodies = bodies.clone();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let (acceptor, site, asked) =
                    (acceptor.clone(), its_site.clone(), its_asked.clone());
                let bodies = its_bodies.clone();
                connections.spawn(async move {
                    if let Ok(stream) = acceptor.accept(socket).await {
                        serve(stream, &site, &asked, &bodies).await;
                    }
                });
            }
        });
        Self {
            port,
            site,
            asked,
            bodies,
            directory,
            clock: Clock::manual(Clock::real().now_ms()),
            _tasks: tasks,
        }
    }

    fn does(&self, path: &str, does: Does) {
        self.site.lock().insert(path.to_owned(), does);
    }

    fn ca(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    fn federation(&self) -> Federation {
        Federation {
            ca_files: vec![self.ca()],
            allowed_ranges: vec!["127.0.0.0/8".parse().unwrap()],
            ..Federation::default()
        }
    }

    /// A network in which every name leads to this server.
    fn network(&self, federation: &Federation, names: FixedNames) -> Network {
        let ports = Ports {
            https: self.port,
            federation: 8448,
        };
        Network::fixed(federation, &self.clock, names, ports).unwrap()
    }
}

async fn serve(
    mut stream: tokio_rustls::server::TlsStream<tokio::net::TcpStream>,
    site: &Site,
    asked: &Mutex<Vec<String>>,
    bodies: &Mutex<Vec<(String, Vec<u8>)>>,
) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let head = String::from_utf8(head).unwrap();
    let line = head.lines().next().unwrap_or_default().to_owned();
    let header = |name: &str| {
        let mut lines = head.lines();
        lines
            .find_map(|line| line.strip_prefix(name))
            .unwrap_or_default()
    };
    let host = header("host: ");
    let mut body = vec![0; header("content-length: ").parse().unwrap_or(0)];
    if stream.read_exact(&mut body).await.is_err() {
        return;
    }
    if !body.is_empty() {
        bodies
            .lock()
            .push((header("content-encoding: ").to_owned(), body));
    }
    asked.lock().push(format!("{line} at {host}"));
    let path = line.split(' ').nth(1).unwrap_or_default();
    let does = site.lock().get(path).cloned();
    let does = does.unwrap_or_else(|| Does::with("404 Not Found", "", ""));
    let open = "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n";
    // Whoever is bored may hang up at any time.
    let _outcome: std::io::Result<()> = async {
        match does {
            Does::Say(text) => stream.write_all(text.as_bytes()).await?,
            Does::Bytes(bytes) => stream.write_all(&bytes).await?,
            Does::Flood(bytes) => {
                stream.write_all(open.as_bytes()).await?;
                for _ in 0..bytes / 10_000 {
                    stream.write_all(&[b' '; 10_000]).await?;
                }
            }
            Does::Drip => {
                stream.write_all(open.as_bytes()).await?;
                loop {
                    stream.write_all(b" ").await?;
                    stream.flush().await?;
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
            Does::Promise(length) => {
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
                stream.write_all(head.as_bytes()).await?;
                stream.flush().await?;
                std::future::pending::<()>().await;
            }
            Does::Silence => std::future::pending::<()>().await,
        }
        stream.shutdown().await
    }
    .await;
}

fn local() -> Vec<IpAddr> {
    vec![IpAddr::from([127, 0, 0, 1])]
}

fn names(addresses: &[&str], services: &[(&str, &str, u16)]) -> FixedNames {
    let mut listed = HashMap::<_, Vec<_>>::new();
    for (name, host, port) in services {
        listed.entry((*name).to_owned()).or_default().push(Service {
            priority: 1,
            weight: 1,
            host: (*host).to_owned(),
            port: *port,
        });
    }
    FixedNames {
        addresses: addresses
            .iter()
            .map(|name| ((*name).to_owned(), local()))
            .collect(),
        services: listed,
        ..FixedNames::default()
    }
}

/// A way as text: Host header, name of the certificate, and where.
fn told(route: &Route) -> String {
    let targets = route.targets.iter().map(|target| match target {
        Target::Address(address, port) => format!("{address} {port}"),
        Target::Name(name, port) => format!("{name} {port}"),
    });
    let targets = targets.collect::<Vec<_>>().join(", ");
    format!("{} as {} at {targets}", route.host, route.tls_name.to_str())
}

const WELL_KNOWN: &str = "/.well-known/matrix/server";

async fn way(network: &Network, server: &str) -> String {
    told(
        &network
            .route(&ServerName::parse(server).unwrap())
            .await
            .unwrap(),
    )
}

#[tokio::test]
async fn addresses_and_ports_need_no_questions() {
    let web = Web::new(&["a.example"]).await;
    let names = names(&["a.example"], &[]);
    let network = web.network(&web.federation(), names.clone());
    for (server, expect) in [
        ("1.2.3.4", "1.2.3.4 as 1.2.3.4 at 1.2.3.4 8448"),
        ("1.2.3.4:5", "1.2.3.4:5 as 1.2.3.4 at 1.2.3.4 5"),
        ("[::1]", "[::1] as ::1 at ::1 8448"),
        ("[::1]:7", "[::1]:7 as ::1 at ::1 7"),
        ("a.example:99", "a.example:99 as a.example at a.example 99"),
    ] {
        assert_eq!(way(&network, server).await, expect);
    }
    assert_eq!(*web.asked.lock(), Vec::<String>::new());
    assert_eq!(*names.asked.lock(), Vec::<String>::new());
}

#[tokio::test]
async fn a_domain_may_delegate() {
    let fed = ("_matrix-fed._tcp.d.example", "fed.example", 1);
    let old = ("_matrix._tcp.d.example", "old.example", 2);
    let ignored = ("_matrix-fed._tcp.a.example", "no.example", 3);
    for (delegated, services, expect) in [
        ("1.2.3.4", vec![fed], "1.2.3.4 as 1.2.3.4 at 1.2.3.4 8448"),
        ("[::2]:5", vec![fed], "[::2]:5 as ::2 at ::2 5"),
        (
            "d.example:99",
            vec![fed],
            "d.example:99 as d.example at d.example 99",
        ),
        (
            "d.example",
            vec![fed, old, ignored],
            "d.example as d.example at fed.example 1",
        ),
        (
            "d.example",
            vec![old, ignored],
            "d.example as d.example at old.example 2",
        ),
        (
            "d.example",
            vec![ignored],
            "d.example as d.example at d.example 8448",
        ),
    ] {
        let web = Web::new(&["a.example"]).await;
        web.does(
            WELL_KNOWN,
            Does::json(&format!("{{\"m.server\":\"{delegated}\"}}")),
        );
        let network = web.network(&web.federation(), names(&["a.example"], &services));
        assert_eq!(way(&network, "a.example").await, expect);
        let port = web.port;
        let line = format!("GET {WELL_KNOWN} HTTP/1.1 at a.example");
        assert_eq!(*web.asked.lock(), [line], "{port}");
    }
}

#[tokio::test]
async fn a_domain_that_does_not_delegate_is_asked_for_by_its_own_name() {
    let fed = ("_matrix-fed._tcp.a.example", "fed.example", 1);
    let also = ("_matrix-fed._tcp.a.example", "fed2.example", 1);
    let old = ("_matrix._tcp.a.example", "old.example", 2);
    let plain = "a.example as a.example at a.example 8448";
    let big = format!(
        "{{\"m.server\":\"d.example:1\",\"x\":\"{}\"}}",
        "x".repeat(60 << 10)
    );
    for (does, services, expect) in [
        (
            Does::with("404 Not Found", "", ""),
            vec![fed, also, old],
            "a.example as a.example at fed.example 1, fed2.example 1",
        ),
        (
            Does::with("404 Not Found", "", ""),
            vec![old],
            "a.example as a.example at old.example 2",
        ),
        (Does::with("404 Not Found", "", ""), vec![], plain),
        (Does::with("500 Oh", "", ""), vec![], plain),
        (Does::json("<html>"), vec![], plain),
        (Does::json("{}"), vec![], plain),
        (Does::json("{\"m.server\":\"not a name\"}"), vec![], plain),
        (Does::json("{\"m.server\":5}"), vec![], plain),
        (Does::json(&big), vec![], plain),
        (Does::Flood(100_000_000), vec![], plain),
        (
            Does::with("302 Found", &format!("location: {WELL_KNOWN}\r\n"), ""),
            vec![],
            plain,
        ),
        (
            Does::with("302 Found", "location: http://a.example/x\r\n", ""),
            vec![],
            plain,
        ),
        (Does::with("302 Found", "", ""), vec![], plain),
        (Does::Say("nonsense".to_owned()), vec![], plain),
        (Does::Say(String::new()), vec![], plain),
    ] {
        let web = Web::new(&["a.example"]).await;
        web.does(WELL_KNOWN, does);
        let network = web.network(&web.federation(), names(&["a.example"], &services));
        assert_eq!(way(&network, "a.example").await, expect);
        assert!(
            web.asked.lock().len() <= 6,
            "redirects are followed only so far"
        );
    }
    // No web server at all, no trusted certificate, a certificate for another name: as if there were no file.
    let web = Web::new(&["b.example"]).await;
    web.does(WELL_KNOWN, Does::json("{\"m.server\":\"d.example:1\"}"));
    let network = web.network(&web.federation(), names(&["a.example"], &[]));
    assert_eq!(way(&network, "a.example").await, plain);
    assert_eq!(
        way(&network, "nobody.example").await,
        "nobody.example as nobody.example at nobody.example 8448"
    );
    let network = web.network(
        &Federation {
            ca_files: Vec::new(),
            ..web.federation()
        },
        names(&["b.example"], &[]),
    );
    assert_eq!(
        way(&network, "b.example").await,
        "b.example as b.example at b.example 8448"
    );
    // A private address, although the file there is good.
    let strict = Federation {
        allowed_ranges: Vec::new(),
        ..web.federation()
    };
    let network = web.network(&strict, names(&["b.example"], &[]));
    assert_eq!(
        way(&network, "b.example").await,
        "b.example as b.example at b.example 8448"
    );
}

#[tokio::test]
async fn redirects_to_other_hosts_are_followed() {
    let web = Web::new(&["a.example", "www.example"]).await;
    let location = format!("location: https://www.example:{}/x\r\n", web.port);
    web.does(WELL_KNOWN, Does::with("301 Moved", &location, ""));
    web.does("/x", Does::json("{\"m.server\":\"d.example:1\"}"));
    let network = web.network(&web.federation(), names(&["a.example", "www.example"], &[]));
    assert_eq!(
        way(&network, "a.example").await,
        "d.example:1 as d.example at d.example 1"
    );
    let asked = web.asked.lock().clone();
    assert_eq!(
        asked[1],
        format!("GET /x HTTP/1.1 at www.example:{}", web.port)
    );
}

#[tokio::test]
async fn what_a_domain_says_is_remembered_as_long_as_it_says() {
    let web = Web::new(&["a.example"]).await;
    let says = |server: &str, age: u64| {
        let headers = format!("cache-control: max-age={age}\r\n");
        web.does(
            WELL_KNOWN,
            Does::with(
                "200 OK",
                &headers,
                &format!("{{\"m.server\":\"{server}\"}}"),
            ),
        );
    };
    says("d.example:1", 3_600);
    let network = web.network(&web.federation(), names(&["a.example"], &[]));
    let asked = || web.asked.lock().len();
    let first = "d.example:1 as d.example at d.example 1";
    assert_eq!(way(&network, "a.example").await, first);
    says("e.example:2", 1);
    web.clock.advance(Duration::from_mins(59));
    assert_eq!(way(&network, "a.example").await, first);
    assert_eq!(asked(), 1);
    // A way once found is used for five minutes more.
    web.clock.advance(Duration::from_mins(6));
    let second = "e.example:2 as e.example at e.example 2";
    assert_eq!(way(&network, "a.example").await, second);
    assert_eq!(asked(), 2);
    // Shorter than five minutes is not believed; while nobody answers, what was said last stays, for two days.
    web.does(WELL_KNOWN, Does::with("503 Down", "", ""));
    web.clock.advance(Duration::from_mins(6));
    assert_eq!(way(&network, "a.example").await, second);
    assert_eq!(asked(), 3);
    web.clock.advance(Duration::from_secs(50));
    assert_eq!(way(&network, "a.example").await, second);
    assert_eq!(asked(), 3, "it is left alone for a while");
    web.clock.advance(Duration::from_hours(49));
    assert_eq!(
        way(&network, "a.example").await,
        "a.example as a.example at a.example 8448"
    );
    // That there is nothing is remembered for an hour.
    web.does(WELL_KNOWN, Does::with("404 Not Found", "", ""));
    web.clock.advance(Duration::from_hours(2));
    let before = asked();
    for _ in 0..3 {
        web.clock.advance(Duration::from_mins(10));
        way(&network, "a.example").await;
    }
    assert_eq!(asked(), before + 1);
}

#[tokio::test]
async fn peers_with_an_address_need_no_questions() {
    let web = Web::new(&["a.example"]).await;
    let mut federation = web.federation();
    let mut peer = |name: &str, address: &str| {
        let peer = Peer {
            address: Some(ServerName::parse(address).unwrap()),
            ..Peer::default()
        };
        federation
            .peers
            .insert(ServerName::parse(name).unwrap(), peer);
    };
    peer("b.example", "10.8.0.2:8449");
    peer("c.example:5", "10.8.0.3");
    peer("d.example", "matrix.example");
    peer("e.example", "matrix.example:443");
    let names = names(&[], &[("_matrix-fed._tcp.matrix.example", "no.example", 1)]);
    let network = web.network(&federation, names.clone());
    for (server, expect) in [
        ("b.example", "b.example as b.example at 10.8.0.2 8449"),
        ("c.example:5", "c.example:5 as c.example at 10.8.0.3 8448"),
        (
            "d.example",
            "matrix.example as matrix.example at matrix.example 8448",
        ),
        (
            "e.example",
            "matrix.example:443 as matrix.example at matrix.example 443",
        ),
    ] {
        assert_eq!(way(&network, server).await, expect);
    }
    assert_eq!(*web.asked.lock(), Vec::<String>::new());
    assert_eq!(*names.asked.lock(), Vec::<String>::new());
}
