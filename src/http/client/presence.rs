//! "Presence".

use std::{sync::Arc, time::Duration};

use ruma::api::client::presence::{get_presence, set_presence};

use crate::{
    error::Result,
    http::{extract::Ruma, routes::Routes},
    service::Services,
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes.also_guests(presence).also_guests(set)
}

async fn presence(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<get_presence::v3::Request>,
) -> Result<get_presence::v3::Response> {
    let status = services.presence.get(&requester, &request.user_id)?;
    let mut response = get_presence::v3::Response::new(status.state);
    response.status_msg = status.status_msg;
    response.last_active_ago = status.last_active_ago.map(Duration::from_millis);
    response.currently_active = Some(status.currently_active);
    Ok(response)
}

async fn set(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<set_presence::v3::Request>,
) -> Result<set_presence::v3::Response> {
    let user = &request.user_id;
    services
        .presence
        .set(&requester, user, &request.presence, request.status_msg)
        .await?;
    Ok(set_presence::v3::Response::new())
}
