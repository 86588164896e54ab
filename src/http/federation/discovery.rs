//! "Server discovery": what this node is.

use std::sync::Arc;

use ruma::api::federation::discovery::get_server_version::v1;

use crate::{
    error::Result,
    http::{extract::Ruma, routes::Routes},
    service::Services,
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes.on(version)
}

async fn version(_: Arc<Services>, _: Ruma<v1::Request>) -> Result<v1::Response> {
    let mut server = v1::Server::new();
    server.name = Some("Kontor".to_owned());
    server.version = Some(env!("CARGO_PKG_VERSION").to_owned());
    let mut response = v1::Response::new();
    response.server = Some(server);
    Ok(response)
}
