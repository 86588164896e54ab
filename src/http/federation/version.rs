//! "Server implementation".

use std::sync::Arc;

use ruma::api::federation::discovery::get_server_version::v1::{Request, Response, Server};

use crate::{
    error::Result,
    http::{extract::Ruma, routes::Routes},
    service::Services,
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes.on(version)
}

async fn version(services: Arc<Services>, _: Ruma<Request>) -> Result<Response> {
    services.keyring.admit_strangers()?;
    let mut server = Server::new();
    server.name = Some("Kontor".to_owned());
    server.version = Some(env!("CARGO_PKG_VERSION").to_owned());
    let mut response = Response::new();
    response.server = Some(server);
    Ok(response)
}
