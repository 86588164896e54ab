//! Several nodes on one network in memory.

use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response};
use kontor::{
    clock::{Clock, Entropy},
    config::Config,
    remote::{Lan, memory::Handler},
};
use ruma::{OwnedServerName, ServerName};
use tower::ServiceExt as _;

use crate::server::{START, TestServer};

/// A network without nodes.
pub(crate) fn network() -> Lan {
    Lan::new(Clock::manual(START), Entropy::seeded(7))
}

/// The name of a server.
pub(crate) fn named(name: &str) -> OwnedServerName {
    ServerName::parse(name).expect("it is the name of a server")
}

/// A node on a network.
pub(crate) fn node(lan: &Lan, name: &str) -> TestServer {
    node_with(lan, name, |_| ())
}

/// A node on a network with a changed configuration.
pub(crate) fn node_with(lan: &Lan, name: &str, change: impl FnOnce(&mut Config)) -> TestServer {
    let name = named(name);
    let server = TestServer::on(
        |config, _| Some(lan.port(&config.server.name)),
        |config| {
            config.server.name.clone_from(&name);
            change(config);
        },
    );
    attach(lan, &name, &server);
    server
}

/// Lets others find a node, also after it was started anew.
pub(crate) fn attach(lan: &Lan, name: &ServerName, server: &TestServer) {
    lan.attach(name, handler(server));
}

/// What answers the requests of other nodes.
pub(crate) fn handler(server: &TestServer) -> Handler {
    let router = kontor::http::router(server.services.clone());
    Arc::new(move |request: Request<Bytes>| {
        let router = router.clone();
        Box::pin(async move {
            let response = router.oneshot(request.map(Body::from)).await;
            let (parts, body) = response.expect("the router always answers").into_parts();
            let body = kontor::http::body::read(body, 1 << 30).await;
            Response::from_parts(parts, body.expect("the answer is whole"))
        })
    })
}

/// Fails unless the stores of all nodes hold together.
#[track_caller]
pub(crate) fn sound(nodes: &[&TestServer]) {
    for node in nodes {
        let mut complaints = Vec::new();
        let store = node.services.store();
        store
            .check(|line| complaints.push(line))
            .expect("the store can be read");
        assert_eq!(complaints, Vec::<String>::new());
    }
}
