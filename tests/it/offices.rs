//! Two nodes that listen, with certificates of their own authorities, and know each other as peers.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use http::Method;
use kontor::{
    clock::Clock,
    config::{Config, Fingerprint, Peer},
    http::serve::Listeners,
    remote::{FixedNames, Network, Ports, Transport},
};
use ruma::{OwnedServerName, ServerName, api::federation::discovery::get_server_version};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use crate::server::{START, TestServer, ok, refused};

fn named(name: &str) -> OwnedServerName {
    ServerName::parse(name).expect("it is the name of a server")
}

/// A node that listens, before it is one.
struct Site {
    name: &'static str,
    directory: Arc<tempfile::TempDir>,
    listeners: Listeners,
    address: SocketAddr,
}

impl Site {
    async fn new(name: &'static str) -> Self {
        let directory = Arc::new(tempfile::tempdir().expect("a directory"));
        let config = Self::config(name, &directory);
        // The certificate must be valid by the clock of the tests.
        let listeners = Listeners::bind(&config, Clock::manual(START))
            .await
            .expect("loopback can be listened on");
        let address = listeners.https().expect("it listens");
        Self {
            name,
            directory,
            listeners,
            address,
        }
    }

    fn config(name: &str, directory: &tempfile::TempDir) -> Config {
        let mut config = Config::default();
        config.server.name = named(name);
        directory.path().clone_into(&mut config.server.data_dir);
        config.listen.http = None;
        config.listen.https = Some(([127, 0, 0, 1], 0).into());
        config
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join("tls").join(name)
    }

    fn fingerprint(&self) -> Fingerprint {
        let pem = std::fs::read(self.file("server.pem")).expect("the certificate was made");
        let certificate = CertificateDer::from_pem_slice(&pem).expect("it is one");
        Fingerprint::of(Sha256::digest(&certificate).into())
    }

    /// As the other site knows it.
    fn peer(&self) -> Peer {
        Peer {
            address: Some(named(&self.address.to_string())),
            ca: Some(self.file("ca.pem")),
            ..Peer::default()
        }
    }

    /// Starts the node, which knows the others.
    fn start(self, peers: Vec<(&str, Peer)>) -> Office {
        let network = |config: &Config, clock: &Clock| {
            let names = FixedNames::default();
            let network = Network::fixed(&config.federation, clock, names, Ports::default());
            Some(Transport::Network(network.expect("the files are there")))
        };
        let server = TestServer::on(network, |config| {
            config.server.name = named(self.name);
            for (name, peer) in peers {
                let name = named(name);
                config.federation.peers.insert(name, peer);
            }
        });
        let services = &server.services;
        let router = kontor::http::router(services.clone());
        services
            .tasks
            .spawn(self.listeners.run(router, services.stop.clone()));
        Office {
            server,
            _directory: self.directory,
        }
    }
}

struct Office {
    server: TestServer,
    _directory: Arc<tempfile::TempDir>,
}

#[tokio::test]
async fn two_offices_see_each_others_users() {
    let (a, b) = (Site::new("a.example").await, Site::new("b.example").await);
    let (as_a, as_b) = (a.peer(), b.peer());
    let a_office = a.start(vec![("b.example", as_b)]);
    let b_office = b.start(vec![("a.example", as_a)]);
    let (a, b) = (&a_office.server, &b_office.server);
    b.register("bob").await;
    a.register("alice").await;
    let profile = "/_matrix/client/v3/profile";
    for _ in 0..3 {
        let bob = ok(a
            .anonymous()
            .get(&format!("{profile}/@bob:b.example"))
            .await);
        assert_eq!(bob, json!({ "displayname": "bob" }));
        let alice = ok(b
            .anonymous()
            .get(&format!("{profile}/@alice:a.example"))
            .await);
        assert_eq!(alice, json!({ "displayname": "alice" }));
    }
    let missing = a
        .anonymous()
        .get(&format!("{profile}/@nobody:b.example"))
        .await;
    refused(missing, 404, "M_NOT_FOUND");
    let keys = ok(a.anonymous().get("/_matrix/key/v2/query/b.example").await);
    assert_eq!(keys["server_keys"][0]["server_name"], "b.example");
    // Nobody is there.
    let other = a.anonymous().get(&format!("{profile}/@x:c.example")).await;
    refused(other, 502, "M_UNKNOWN");
    for office in [a, b] {
        let mut complaints = Vec::new();
        office
            .services
            .store()
            .check(|line| complaints.push(line))
            .unwrap();
        assert_eq!(complaints, Vec::<String>::new());
        office.services.stop.cancel();
    }
}

#[tokio::test]
async fn all_requests_to_an_office_share_one_connection() {
    let (a, b) = (Site::new("a.example").await, Site::new("b.example").await);
    let (as_a, mut as_b) = (a.peer(), b.peer());
    // A door before the office that counts who comes.
    let door = TcpListener::bind("127.0.0.1:0").await.expect("a door");
    let behind = b.address;
    let address = door.local_addr().expect("it has one").to_string();
    as_b.address = Some(named(&address));
    let came = Arc::new(AtomicUsize::new(0));
    let count = came.clone();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut inside = JoinSet::new();
        while let Ok((mut socket, _)) = door.accept().await {
            count.fetch_add(1, Ordering::Relaxed);
            inside.spawn(async move {
                let mut office = TcpStream::connect(behind).await?;
                copy_bidirectional(&mut socket, &mut office).await
            });
        }
    });
    let a = a.start(vec![("b.example", as_b)]);
    let b = b.start(vec![("a.example", as_a)]);
    b.server.register("bob").await;
    let client = a.server.anonymous();
    let ask = || client.get("/_matrix/client/v3/profile/@bob:b.example");
    ok(ask().await);
    let before = came.load(Ordering::Relaxed);
    for answer in futures_util::future::join_all((0..30).map(|_| ask())).await {
        ok(answer);
    }
    // The first tells that b.example reads compressed bodies, the others are such.
    let body = json!({
        "edus": [], "pdus": [], "origin": "a.example", "origin_server_ts": START,
        "more": "x".repeat(900_000),
    });
    let (remote, server) = (&a.server.services.remote, named("b.example"));
    for number in 0..3 {
        let (path, body) = (
            format!("/_matrix/federation/v1/send/{number}"),
            body.to_string(),
        );
        let limits = kontor::remote::Limits::USUAL;
        let sent = remote.send_signed(&server, Method::PUT, &path, body.into(), limits);
        sent.await.expect("it is taken");
    }
    assert_eq!(came.load(Ordering::Relaxed), before, "HTTP/2 needs no more");
    a.server.services.stop.cancel();
    b.server.services.stop.cancel();
}

#[tokio::test]
async fn a_peer_must_prove_that_it_is_it() {
    let (b, c) = (Site::new("b.example").await, Site::new("c.example").await);
    let (good, pinned) = (b.peer(), b.fingerprint());
    let (other_ca, other_print) = (c.peer().ca, c.fingerprint());
    let b = b.start(Vec::new());
    let ask = async |name: &'static str, peer: Peer| {
        let site = Site::new("a.example").await.start(vec![(name, peer)]);
        let server = ServerName::parse(name).unwrap();
        let request = get_server_version::v1::Request::new();
        let remote = &site.server.services.remote;
        let limits = kontor::remote::Limits::USUAL;
        let answer = remote.send_unsigned(&server, request, limits).await;
        site.server.services.stop.cancel();
        answer.map(|_| ()).map_err(|error| error.to_string())
    };
    let with = |change: &dyn Fn(&mut Peer)| {
        let mut peer = good.clone();
        change(&mut peer);
        peer
    };
    let pin = |print: Fingerprint| {
        with(&|peer: &mut Peer| {
            peer.ca = None;
            peer.fingerprint = Some(print);
        })
    };
    assert_eq!(ask("b.example", good.clone()).await, Ok(()));
    assert_eq!(ask("b.example", pin(pinned)).await, Ok(()));
    // Under another name, at an address that the certificate is for.
    assert_eq!(ask("elsewhere.example", good.clone()).await, Ok(()));
    let told = ask("b.example", pin(other_print)).await.unwrap_err();
    assert!(told.contains("fingerprint is configured"), "{told}");
    let told = ask("b.example", with(&|peer| peer.ca.clone_from(&other_ca)))
        .await
        .unwrap_err();
    assert!(
        told.contains("authority that this node does not trust"),
        "{told}"
    );
    let told = ask("b.example", with(&|peer| peer.ca = None))
        .await
        .unwrap_err();
    assert!(
        told.contains("authority that this node does not trust"),
        "{told}"
    );
    b.server.services.stop.cancel();
}
