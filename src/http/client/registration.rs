//! "Account registration".

use std::sync::Arc;

use ruma::api::client::account::{
    check_registration_token_validity, get_username_availability,
    register::{self, RegistrationKind},
};

use serde_json::json;

use crate::{
    error::Result,
    http::{extract::Ruma, respond::Json, routes::Routes},
    service::{
        Services,
        accounts::{NewAccount, NewDevice},
    },
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes.on(register).on(available).on(token_validity)
}

async fn register(
    services: Arc<Services>,
    Ruma {
        request, address, ..
    }: Ruma<register::v3::Request>,
) -> Result<Json> {
    let device = NewDevice {
        id: request.device_id.map(Into::into),
        display_name: request.initial_device_display_name,
        refreshable: request.refresh_token,
    };
    let device = (!request.inhibit_login).then_some(device);
    let registered = if request.kind == RegistrationKind::Guest {
        services.accounts.register_guest(address, device).await?
    } else {
        let account = NewAccount {
            username: request.username,
            password: request.password,
            device,
        };
        services
            .accounts
            .register(address, account, request.auth.as_ref())
            .await?
    };
    // ruma's type would say `null` about a device that was not logged in.
    let mut body = json!({ "user_id": registered.user_id });
    if let Some(session) = registered.session {
        body["access_token"] = session.access_token.into();
        body["device_id"] = session.device_id.into();
        if let Some(token) = session.refresh_token {
            body["refresh_token"] = token.into();
        }
        if let Some(lifetime) = session.expires_in {
            body["expires_in_ms"] = u64::try_from(lifetime.as_millis())
                .unwrap_or(u64::MAX)
                .into();
        }
    }
    Json::of(&body)
}

async fn available(
    services: Arc<Services>,
    Ruma {
        request, address, ..
    }: Ruma<get_username_availability::v3::Request>,
) -> Result<get_username_availability::v3::Response> {
    services
        .accounts
        .check_available(address, &request.username)?;
    Ok(get_username_availability::v3::Response::new(true))
}

async fn token_validity(
    services: Arc<Services>,
    Ruma {
        request, address, ..
    }: Ruma<check_registration_token_validity::v1::Request>,
) -> Result<check_registration_token_validity::v1::Response> {
    let valid = services
        .accounts
        .check_registration_token(address, &request.token)?;
    Ok(check_registration_token_validity::v1::Response::new(valid))
}
