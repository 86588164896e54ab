//! Two nodes become peers with a code; what is wrong with a code or a request is refused, and nothing is half done.

use std::time::Duration;

use http::{Method, StatusCode};
use kontor::{
    config::{FederationMode, Peer},
    protocol::{
        pairing::{Invitation, PairRequest, Voucher},
        server_keys::decode_key,
    },
    service::peers::Step,
};
use ruma::{OwnedServerName, server_name};
use serde_json::{Value, json};

use crate::{
    neighbour::Neighbour,
    room::Room,
    server::{Client, TestServer, ok, refused},
    several::{named, network, node_with, sound},
};

const PAIR: &str = "/_kontor/v1/peers/pair";

fn closed(lan: &kontor::remote::Lan, name: &str) -> TestServer {
    node_with(lan, name, |config| {
        config.federation.mode = FederationMode::Closed;
    })
}

async fn code(node: &TestServer) -> String {
    let offer = node.services.peers.invite(Some("10.8.0.1:8448")).await;
    offer.expect("a code is made").code
}

fn peers(node: &TestServer) -> Vec<OwnedServerName> {
    let peers = node.services.remote.peers().into_iter();
    peers.map(|(name, _)| name).collect()
}

/// What a node that took the code would say.
fn request(code: &str, server: &str) -> PairRequest {
    PairRequest {
        secret: Invitation::decode(code).expect("it is a code").secret,
        server: named(server),
        address: named("10.8.0.2:8448"),
        voucher: Voucher::Public,
        key: [1; 32],
    }
}

#[tokio::test]
async fn two_nodes_become_peers_at_once_and_stay_so() {
    let lan = network();
    let (a, b) = (closed(&lan, "a.example"), closed(&lan, "b.example"));
    b.register("bob").await;
    let bob = "/_matrix/client/v3/profile/@bob:b.example";
    refused(a.anonymous().get(bob).await, 403, "M_FORBIDDEN");

    let code = code(&a).await;
    let taken = b.services.peers.accept(&code, Some("10.8.0.2:8448")).await;
    let report = taken.expect("nothing fails inside");
    assert!(report.is_good(), "{report:?}");
    assert_eq!(
        (peers(&a), peers(&b)),
        (vec![named("b.example")], vec![named("a.example")])
    );
    assert_eq!(ok(a.anonymous().get(bob).await)["displayname"], "bob");
    // Its answer may have been lost, so the same node may use the code again, but no other.
    let again = b
        .services
        .peers
        .accept(&code, None)
        .await
        .expect("no error");
    assert!(again.is_good(), "{again:?}");
    let c = closed(&lan, "c.example");
    let third = c
        .services
        .peers
        .accept(&code, None)
        .await
        .expect("no error");
    assert!(!third.is_good(), "{third:?}");
    assert_eq!(peers(&c), Vec::<OwnedServerName>::new());
    sound(&[&a, &b]);

    lan.detach(&named("a.example"));
    a.stop().await;
    let a = a.restart();
    let kept = a.services.remote.peer(server_name!("b.example"));
    let kept = kept.expect("it is still a peer");
    assert_eq!(kept.voucher, Voucher::Public);
    a.services
        .peers
        .remove(server_name!("b.example"))
        .await
        .expect("it was there");
    assert_eq!(peers(&a), Vec::<OwnedServerName>::new());
    refused(a.anonymous().get(bob).await, 403, "M_FORBIDDEN");
    let missing = a.services.peers.remove(server_name!("b.example")).await;
    assert!(missing.is_err());
    sound(&[&a]);
}

#[tokio::test]
async fn what_is_wrong_between_two_nodes_is_told_and_changes_nothing() {
    let lan = network();
    let (a, b) = (closed(&lan, "a.example"), closed(&lan, "b.example"));
    let code = code(&a).await;
    let try_it = async || {
        let report = b
            .services
            .peers
            .accept(&code, None)
            .await
            .expect("no error");
        let Some(Step::Failed { problem, .. }) = report.steps.last() else {
            panic!("it fails: {report:?}");
        };
        assert_eq!((peers(&a), peers(&b)), (Vec::new(), Vec::new()));
        problem.clone()
    };
    lan.set_link(&named("a.example"), &named("b.example"), false);
    assert!(try_it().await.contains("a.example: cannot connect"));
    lan.set_link(&named("a.example"), &named("b.example"), true);
    lan.detach(&named("b.example"));
    assert!(
        try_it()
            .await
            .contains("does not reach this one at b.example")
    );
    b.clock.advance(Duration::from_hours(2));
    assert!(try_it().await.contains("expired"));
}

/// Long enough for everything that does not wait for the clock.
async fn rest() {
    tokio::time::sleep(Duration::from_millis(60)).await;
}

/// Whether a user is shown a message; tried for a while.
async fn sees(who: &Client, room: &Room, text: &str) -> bool {
    for _ in 0..100 {
        let page = ok(room.get(who, "messages?dir=b&limit=5").await);
        if page.to_string().contains(text) {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    false
}

#[tokio::test]
async fn a_server_that_becomes_a_peer_is_tried_as_one() {
    let lan = network();
    let (a, b) = (
        node_with(&lan, "a.example", |_| ()),
        node_with(&lan, "b.example", |_| ()),
    );
    let (alice, bob) = (a.register("alice").await, b.register("bob").await);
    let room = Room::new(&alice, "public").await;
    let join = format!("/_matrix/client/v3/join/{}?server_name=a.example", room.0);
    ok(bob.post(&join, json!({})).await);
    let link = |up| lan.set_link(&named("a.example"), &named("b.example"), up);
    let fail_for_hours = async |step: Duration| {
        link(false);
        for _ in 0..14 {
            rest().await;
            a.clock.advance(step);
        }
        rest().await;
        link(true);
    };
    room.say(&alice, "before").await;
    assert!(sees(&bob, &room, "before").await);
    link(false);
    room.say(&alice, "first").await;
    fail_for_hours(Duration::from_hours(1)).await;
    // It would be left alone for an hour, but for the pairing.
    let code = code(&b).await;
    let report = a
        .services
        .peers
        .accept(&code, None)
        .await
        .expect("no error");
    // The clock of this test is hours ahead of the code.
    assert!(!report.is_good(), "{report:?}");
    b.clock.advance(Duration::from_hours(14));
    let code = self::code(&b).await;
    let report = a
        .services
        .peers
        .accept(&code, None)
        .await
        .expect("no error");
    assert!(report.is_good(), "{report:?}");
    assert!(sees(&bob, &room, "first").await);

    link(false);
    room.say(&alice, "second").await;
    fail_for_hours(Duration::from_mins(1)).await;
    a.clock.advance(Duration::from_mins(1));
    assert!(
        sees(&bob, &room, "second").await,
        "a peer waits a minute at most"
    );
}

#[tokio::test]
async fn clocks_that_differ_are_mentioned() {
    let lan = network();
    let (a, b) = (closed(&lan, "a.example"), closed(&lan, "b.example"));
    b.clock.advance(Duration::from_mins(5));
    let code = code(&a).await;
    let report = b
        .services
        .peers
        .accept(&code, None)
        .await
        .expect("no error");
    assert!(report.is_good(), "{report:?}");
    let doubts = |step: &Step| matches!(step, Step::Doubt(what) if what.contains("300 s"));
    assert!(report.steps.iter().any(doubts), "{report:?}");
    let tested = a
        .services
        .peers
        .test(server_name!("b.example"))
        .await
        .expect("a peer");
    assert!(
        tested.is_good() && tested.steps.iter().any(doubts),
        "{tested:?}"
    );
}

#[tokio::test]
async fn strangers_get_nothing_without_a_code() {
    let lan = network();
    let a = closed(&lan, "a.example");
    let code = code(&a).await;
    let post = async |body: Value| a.anonymous().post(PAIR, body).await;
    let with = |change: fn(&mut PairRequest)| {
        let mut request = request(&code, "b.example");
        change(&mut request);
        json!(request)
    };
    refused(post(json!({})).await, 400, "M_BAD_JSON");
    refused(post(json!({ "secret": "x" })).await, 400, "M_BAD_JSON");
    refused(
        post(with(|it| it.secret = [0; 16])).await,
        403,
        "M_FORBIDDEN",
    );
    refused(
        post(with(|it| it.server = named("a.example"))).await,
        400,
        "M_INVALID_PARAM",
    );
    let many = |it: &mut PairRequest| it.voucher = Voucher::Authorities(vec![vec![1]; 6]);
    refused(post(with(many)).await, 400, "M_INVALID_PARAM");
    let large = |it: &mut PairRequest| it.voucher = Voucher::Authorities(vec![vec![200; 30_000]]);
    refused(post(with(large)).await, 413, "M_TOO_LARGE");
    // Nobody is there, which is told to whoever has the code.
    let (status, answer) = post(with(|_| ())).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    assert!(
        answer["problem"]
            .as_str()
            .is_some_and(|it| it.contains("nobody is there")),
        "{answer}"
    );
    // Somebody is there, with another key.
    let _b = closed(&lan, "b.example");
    let (_, answer) = post(with(|_| ())).await;
    assert!(
        answer["problem"]
            .as_str()
            .is_some_and(|it| it.contains("somebody else")),
        "{answer}"
    );
    a.clock.advance(Duration::from_hours(2));
    refused(post(with(|_| ())).await, 403, "M_FORBIDDEN");
    assert_eq!(peers(&a), Vec::<OwnedServerName>::new());
    sound(&[&a]);
}

#[tokio::test]
async fn a_code_lets_nobody_in_as_another() {
    let server = TestServer::with(|config| config.server.name = named("localhost"));
    let real = Neighbour::new(&server.lan, "c.example", 1);
    server.register("alice").await;
    let profile = "/_matrix/federation/v1/query/profile?user_id=@alice:localhost";
    ok(real.get(&server, profile).await);
    // Whoever was invited has put himself in the place of a server that is known.
    let other = Neighbour::new(&server.lan, "c.example", 2);
    let code = code(&server).await;
    let ask = async |by: &Neighbour| {
        let key = decode_key(by.key.public_base64()).expect("it is a key");
        let request = PairRequest {
            key,
            ..request(&code, "c.example")
        };
        ok(server.anonymous().post(PAIR, json!(request)).await)
    };
    let answer = ask(&other).await;
    let problem = answer["problem"].as_str().expect("it is refused");
    assert!(problem.contains("known by other keys"), "{problem}");
    assert_eq!(peers(&server), Vec::<OwnedServerName>::new());
    let real = Neighbour::new(&server.lan, "c.example", 1);
    assert_eq!(ask(&real).await["problem"], Value::Null);
    assert_eq!(peers(&server), [named("c.example")]);
}

#[tokio::test]
async fn only_peers_may_have_us_look_back() {
    let lan = network();
    let (a, b) = (
        node_with(&lan, "a.example", |_| ()),
        node_with(&lan, "b.example", |_| ()),
    );
    let ask = async || {
        let path = "/_kontor/v1/peers/test";
        let limits = kontor::remote::Limits::USUAL;
        let server = server_name!("a.example");
        let remote = &b.services.remote;
        let asked = remote.send_signed(server, Method::POST, path, b"{}".to_vec(), limits);
        asked.await.map_err(|error| error.to_string())
    };
    let told = ask().await.unwrap_err();
    assert!(
        told.contains("M_FORBIDDEN: b.example is not in the peer table"),
        "{told}"
    );
    let code = code(&a).await;
    let report = b
        .services
        .peers
        .accept(&code, None)
        .await
        .expect("no error");
    assert!(report.is_good(), "{report:?}");
    assert!(ask().await.is_ok());
}

#[tokio::test]
async fn the_configuration_wins() {
    let lan = network();
    let a = closed(&lan, "a.example");
    let b = node_with(&lan, "b.example", |config| {
        let peer = Peer {
            address: Some(named("10.9.9.9")),
            ..Peer::default()
        };
        config.federation.peers.insert(named("a.example"), peer);
    });
    let code = code(&a).await;
    let report = b
        .services
        .peers
        .accept(&code, None)
        .await
        .expect("no error");
    assert!(report.is_good(), "{report:?}");
    let wins = |step: &Step| matches!(step, Step::Doubt(what) if what.contains("wins"));
    assert!(report.steps.iter().any(wins), "{report:?}");
    let peer = b
        .services
        .remote
        .peer(server_name!("a.example"))
        .expect("a peer");
    assert_eq!(peer.address, Some(named("10.9.9.9")));
    let removed = b.services.peers.remove(server_name!("a.example")).await;
    assert!(
        removed
            .unwrap_err()
            .to_string()
            .contains("configuration file")
    );
}

#[tokio::test]
async fn without_federation_there_are_no_peers() {
    let lan = network();
    let a = node_with(&lan, "a.example", |config| {
        config.federation.mode = FederationMode::Off;
    });
    assert!(a.services.peers.invite(None).await.is_err());
    let other = Invitation {
        server: named("b.example"),
        address: named("b.example"),
        voucher: Voucher::Public,
        key: [1; 32],
        secret: [1; 16],
        expires: u64::MAX,
    };
    assert!(
        a.services
            .peers
            .accept(&other.encode(), None)
            .await
            .is_err()
    );
    let pair = a
        .anonymous()
        .post(PAIR, json!(request(&other.encode(), "b.example")))
        .await;
    refused(pair, 403, "M_FORBIDDEN");
}
