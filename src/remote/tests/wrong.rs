//! Servers that do everything wrong, and those that are not who they should be.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::Request;
use ruma::{ServerName, server_name};
use tokio::{io::AsyncWriteExt as _, net::TcpListener, task::JoinSet};

use super::{Does, Web, names};
use crate::{
    clock::{Clock, Entropy},
    config::{Federation, Peer},
    protocol::{
        integrity::{self, ServerKey},
        server_keys::{self, OldKey},
    },
    remote::{
        FixedNames, Kind, Lan, Limits, Network, Reloaded, Remote, Transport, TrustError, memory,
    },
};

type Fits = fn(&Kind) -> bool;

/// Asks `server`, which is at the web server's port.
async fn ask(network: &Network, server: &str, limits: Limits) -> Result<Bytes, Kind> {
    let request = Request::get("/_matrix/x?y=z").body(Bytes::new()).unwrap();
    let server = ServerName::parse(server).unwrap();
    let answer = network.exchange(&server, request, limits).await;
    answer.map(http::Response::into_body)
}

const SOON: Limits = Limits {
    time: Duration::from_millis(700),
    body: 1_000_000,
};

#[tokio::test]
async fn servers_that_do_everything_wrong_are_bounded_and_named() {
    let web = Web::new(&["a.example"]).await;
    let network = web.network(&web.federation(), names(&["a.example", "b.example"], &[]));
    let server = format!("a.example:{}", web.port);
    let path = "/_matrix/x?y=z";
    web.does(path, Does::json("{}"));
    assert_eq!(ask(&network, &server, SOON).await.unwrap(), "{}");
    assert_eq!(
        web.asked.lock()[0],
        format!("GET {path} HTTP/1.1 at {server}")
    );

    let cases: [(Does, Fits); 9] = [
        (Does::Flood(100_000_000), |kind| {
            *kind == Kind::TooLarge(1_000_000)
        }),
        (Does::Promise(100_000_000), |kind| {
            *kind == Kind::TooLarge(1_000_000)
        }),
        (Does::Promise(10), |kind| *kind == Kind::Timeout(SOON.time)),
        (Does::Drip, |kind| *kind == Kind::Timeout(SOON.time)),
        (Does::Silence, |kind| *kind == Kind::Timeout(SOON.time)),
        (Does::Say("garbage".to_owned()), |kind| {
            matches!(kind, Kind::Broken(_))
        }),
        (Does::Say(String::new()), |kind| {
            matches!(kind, Kind::Broken(_))
        }),
        (
            Does::Say("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n1".to_owned()),
            |kind| matches!(kind, Kind::Broken(_)),
        ),
        (
            Does::Say(format!(
                "HTTP/1.1 200 OK\r\nx: {}\r\n\r\n",
                "x".repeat(1_000_000)
            )),
            |kind| matches!(kind, Kind::Broken(_)),
        ),
    ];
    for (case, (does, fits)) in cases.into_iter().enumerate() {
        web.does(path, does);
        let clock = Clock::real();
        let before = clock.instant();
        let kind = ask(&network, &server, SOON)
            .await
            .expect_err(&format!("case {case}"));
        assert!(fits(&kind), "case {case}: {kind:?}");
        assert!(
            clock.instant() - before < 3 * SOON.time,
            "case {case}: {kind}"
        );
    }
    // It is as good as before once it behaves.
    web.does(path, Does::json("{}"));
    assert_eq!(ask(&network, &server, SOON).await.unwrap(), "{}");

    let told = |kind: Kind| kind.of(server_name!("z.example")).to_string();
    let other = format!("b.example:{}", web.port);
    let text = told(ask(&network, &other, SOON).await.unwrap_err());
    assert!(
        text.starts_with("z.example: no secure connection: its certificate is for"),
        "{text}"
    );
    let text = told(ask(&network, "nobody.example:1", SOON).await.unwrap_err());
    assert!(
        text.contains("cannot be resolved: nobody.example has no address"),
        "{text}"
    );
    let free = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let text = told(ask(&network, &free.to_string(), SOON).await.unwrap_err());
    assert!(text.contains("cannot connect to 127.0.0.1:"), "{text}");
}

/// A node that asks over this transport.
fn remote(transport: Transport) -> Remote {
    let key = Arc::new(ServerKey::from_seed(&[1; 32], "k").unwrap());
    let us = server_name!("us.example");
    Remote::new(us, key, &Federation::default(), transport)
}

#[tokio::test]
async fn keys_of_servers_that_do_everything_wrong_are_not_believed() {
    let web = Web::new(&["a.example"]).await;
    let network = web.network(&web.federation(), names(&["a.example"], &[]));
    let remote = remote(Transport::Network(network));
    let server = ServerName::parse(format!("a.example:{}", web.port)).unwrap();
    let signed = |name: &ServerName, key: &ServerKey, old: &[OldKey]| {
        let document = server_keys::publish(name, key, old, 2_000_000_000_000);
        Does::json(&integrity::canonical(&document))
    };
    let key = ServerKey::from_seed(&[2; 32], "k").unwrap();
    let own = "/_matrix/key/v2/server";
    web.does(own, signed(&server, &key, &[]));
    let keys = remote.server_keys(&server).await.unwrap();
    assert!(keys.keys.contains_key(key.id()));
    let many: Vec<OldKey> = (0..2_000)
        .map(|number| OldKey {
            id: format!("ed25519:old{number}"),
            key: key.public_base64().to_owned(),
            expired_ts: 1,
        })
        .collect();
    let foreign = server_name!("b.example");
    for (does, expect) in [
        (Does::json("{}"), "makes no sense"),
        (Does::json("[]"), "makes no sense"),
        (Does::json("<html>"), "makes no sense"),
        (Does::Say("garbage".to_owned()), "broke off"),
        (Does::with("500 Oh", "", "{}"), "answered 500"),
        (signed(foreign, &key, &[]), "makes no sense"),
        (signed(&server, &key, &many), "longer than"),
        (Does::Flood(100_000_000), "longer than"),
        (Does::Promise(100_000_000), "longer than"),
    ] {
        web.does(own, does);
        let told = remote.server_keys(&server).await.unwrap_err().to_string();
        assert!(told.contains(expect), "{expect}: {told}");
    }
    let asked = server_name!("c.example");
    let of_other = "/_matrix/key/v2/query/c.example?minimum_valid_until_ts=5";
    for (does, expect) in [
        (Does::json("{}"), None),
        (Does::json("{\"server_keys\":[5,{},\"x\"]}"), Some(0)),
        (Does::Flood(100_000_000), None),
    ] {
        web.does(of_other, does);
        let told = remote.server_keys_from(&server, asked, 5).await;
        assert_eq!(told.ok().map(|keys| keys.len()), expect);
    }
}

#[tokio::test]
async fn whoever_never_sends_its_keys_is_not_waited_for_long() {
    let clock = Clock::manual(0);
    let lan = Lan::new(clock.clone(), Entropy::seeded(1));
    let server = server_name!("b.example");
    let silent = |_| -> memory::Answering { Box::pin(std::future::pending()) };
    lan.attach(server, Arc::new(silent));
    let remote = remote(lan.port(server_name!("us.example")));
    let (told, ()) = tokio::join!(remote.server_keys(server), async {
        tokio::task::yield_now().await;
        clock.advance(Duration::from_secs(10));
    });
    let told = told.unwrap_err();
    assert!(matches!(told.kind, Kind::Timeout(_)), "{told}");
}

#[tokio::test]
async fn private_addresses_are_for_peers() {
    let web = Web::new(&["a.example", "127.0.0.1"]).await;
    web.does("/_matrix/x?y=z", Does::json("{}"));
    let mut federation = web.federation();
    federation.allowed_ranges.clear();
    let by_name = format!("a.example:{}", web.port);
    let by_address = format!("127.0.0.1:{}", web.port);
    let network = web.network(&federation, names(&["a.example"], &[]));
    for server in [&by_name, &by_address] {
        let kind = ask(&network, server, SOON).await.unwrap_err();
        assert_eq!(kind, Kind::Blocked([127, 0, 0, 1].into()));
    }
    assert_eq!(*web.asked.lock(), Vec::<String>::new());
    let name = ServerName::parse(&*by_name).unwrap();
    federation.peers.insert(name, Peer::default());
    let network = web.network(&federation, names(&["a.example"], &[]));
    assert!(ask(&network, &by_name, SOON).await.is_ok());
    assert!(ask(&network, &by_address, SOON).await.is_err());
}

#[tokio::test]
async fn a_server_without_tls_is_named_as_such() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let _hangs_up = socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    });
    let web = Web::new(&[]).await;
    let network = web.network(&web.federation(), FixedNames::default());
    let kind = ask(&network, &address.to_string(), SOON).await.unwrap_err();
    assert!(matches!(kind, Kind::Tls(_)), "{kind:?}");
}

#[tokio::test]
async fn files_with_authorities_are_read_again() {
    let web = Web::new(&["a.example"]).await;
    let other = Web::new(&["b.example"]).await;
    web.does("/_matrix/x?y=z", Does::json("{}"));
    let server = format!("a.example:{}", web.port);
    let right = std::fs::read(web.ca()).unwrap();
    let wrong = std::fs::read(other.ca()).unwrap();
    // For everybody, and for a peer.
    for is_peer in [false, true] {
        let file = web.directory.path().join("changes.pem");
        std::fs::write(&file, &wrong).unwrap();
        let mut federation = web.federation();
        if is_peer {
            federation.ca_files.clear();
            let peer = Peer {
                ca: Some(file.clone()),
                ..Peer::default()
            };
            let name = ServerName::parse(&*server).unwrap();
            federation.peers.insert(name, peer);
        } else {
            federation.ca_files = vec![file.clone()];
        }
        let network = web.network(&federation, names(&["a.example"], &[]));
        let is_reached = async || ask(&network, &server, SOON).await.is_ok();
        let reload = || {
            let reloaded = network.reload(&federation, |_| None)?;
            assert!(!(is_peer && reloaded.authorities));
            Ok::<_, TrustError>(reloaded != Reloaded::default())
        };
        assert!(!reload().unwrap() && !is_reached().await);
        std::fs::write(&file, &right).unwrap();
        assert!(!is_reached().await, "nobody has read it yet");
        assert!(reload().unwrap() && is_reached().await);
        std::fs::write(&file, "-----BEGIN").unwrap();
        assert!(reload().is_err() && is_reached().await);
        std::fs::write(&file, &wrong).unwrap();
        assert!(reload().unwrap() && !is_reached().await);
    }
}
