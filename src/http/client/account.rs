//! "Account management".

use std::sync::Arc;

use ruma::api::client::account::{ThirdPartyIdRemovalStatus, change_password, deactivate, whoami};

use crate::{
    error::Result,
    http::{
        extract::{Ruma, missing_token},
        routes::Routes,
    },
    service::Services,
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .also_guests(whoami)
        .on(change_password)
        .on(deactivate)
}

async fn whoami(
    _: Arc<Services>,
    Ruma { requester, .. }: Ruma<whoami::v3::Request>,
) -> Result<whoami::v3::Response> {
    let mut response = whoami::v3::Response::new(requester.user_id, requester.guest);
    response.device_id = requester.device_id.map(Into::into);
    Ok(response)
}

async fn change_password(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<change_password::v3::Request>,
) -> Result<change_password::v3::Response> {
    // Only those could do without a token who have an e-mail address to prove who they are.
    let requester = requester.ok_or_else(missing_token)?;
    services
        .accounts
        .change_password(
            &requester,
            request.new_password,
            request.logout_devices,
            request.auth.as_ref(),
        )
        .await?;
    Ok(change_password::v3::Response::new())
}

async fn deactivate(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<deactivate::v3::Request>,
) -> Result<deactivate::v3::Response> {
    let requester = requester.ok_or_else(missing_token)?;
    services
        .lifecycle
        .deactivate(&requester, request.auth.as_ref(), request.erase)
        .await?;
    // There were no third-party ids to unbind.
    let unbound = ThirdPartyIdRemovalStatus::Success;
    Ok(deactivate::v3::Response::new(unbound))
}
