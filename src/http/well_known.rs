//! `/.well-known/matrix`: where clients and servers find this node, and people its administrators.

use std::sync::Arc;

use ruma::api::{
    client::{
        discovery::{
            discover_homeserver::{self, HomeserverInfo},
            discover_support::{self, Contact, ContactRole},
        },
        rtc::RtcTransport,
    },
    federation::discovery::discover_homeserver as discover_server,
};

use super::{extract::Ruma, routes::Routes};
use crate::{
    config::Calls,
    error::{Error, Result},
    service::Services,
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes.on(client).on(server).on(support)
}

async fn client(
    services: Arc<Services>,
    _: Ruma<discover_homeserver::Request>,
) -> Result<discover_homeserver::Response> {
    let url = services.config.server.client_url.as_ref();
    let url = url.ok_or_else(not_configured)?.as_str().to_owned();
    let mut response = discover_homeserver::Response::new(HomeserverInfo::new(url));
    response.rtc_foci = transports(&services.config.calls);
    Ok(response)
}

async fn server(
    services: Arc<Services>,
    _: Ruma<discover_server::Request>,
) -> Result<discover_server::Response> {
    let address = services.config.server.federation_address.clone();
    let address = address.ok_or_else(not_configured)?;
    Ok(discover_server::Response::new(address))
}

async fn support(
    services: Arc<Services>,
    _: Ruma<discover_support::Request>,
) -> Result<discover_support::Response> {
    let server = &services.config.server;
    let email = Some(server.support_email.clone()).filter(|email| !email.is_empty());
    let page = server
        .support_page
        .as_ref()
        .map(|page| page.as_str().to_owned());
    if email.is_none() && page.is_none() {
        return Err(not_configured());
    }
    let contact = email.map(|email| Contact::with_email_address(ContactRole::Admin, email));
    let contacts = contact.into_iter().collect();
    let mut response = discover_support::Response::with_contacts(contacts);
    response.support_page = page;
    Ok(response)
}

/// Where calls go, as apps are told: MSC4143.
pub(super) fn transports(calls: &Calls) -> Vec<RtcTransport> {
    let addresses = calls.livekit.iter();
    addresses
        .map(|address| RtcTransport::livekit(address.as_str().to_owned()))
        .collect()
}

fn not_configured() -> Error {
    Error::not_found("What this file would say")
}
