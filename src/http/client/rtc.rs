//! Where calls go: MSC4143, with its name of before it is in the specification.

use std::sync::Arc;

use ruma::api::client::rtc::transports::v1::{Request, Response};

use crate::{
    error::Result,
    http::{extract::Ruma, routes::Routes, well_known},
    service::Services,
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes.also_guests(transports)
}

async fn transports(services: Arc<Services>, _: Ruma<Request>) -> Result<Response> {
    let transports = well_known::transports(&services.config.calls);
    Ok(Response::new(transports))
}
