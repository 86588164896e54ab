//! "Login", "Using access tokens".

use std::sync::Arc;

use ruma::api::{
    IncomingRequest,
    client::session::{
        get_login_token,
        get_login_types::{
            self,
            v3::{LoginType, PasswordLoginType, TokenLoginType},
        },
        login, logout, logout_all, refresh_token,
    },
    error::{DeserializationError, Error as RumaError},
};
use serde::Deserialize;

use crate::{
    error::Result,
    http::{
        extract::{Ruma, same_endpoint},
        routes::Routes,
    },
    service::{
        Services,
        accounts::{Credential, NewDevice},
    },
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .on(login_types)
        .on(log_in)
        .also_guests(log_out)
        .also_guests(log_out_everywhere)
        .on(issue_login_token)
        .on(refresh)
}

async fn login_types(
    _: Arc<Services>,
    _: Ruma<get_login_types::v3::Request>,
) -> Result<get_login_types::v3::Response> {
    let mut token = TokenLoginType::new();
    token.get_login_token = true;
    Ok(get_login_types::v3::Response::new(vec![
        LoginType::Password(PasswordLoginType::new()),
        LoginType::Token(token),
    ]))
}

/// A login as clients really write it: with the user in either of two places. ruma's own type panics when there is no
/// `type`.
#[derive(Deserialize)]
struct Login {
    r#type: String,
    identifier: Option<Identifier>,
    user: Option<String>,
    password: Option<String>,
    token: Option<String>,
    device_id: Option<String>,
    initial_device_display_name: Option<String>,
    #[serde(default)]
    refresh_token: bool,
}

#[derive(Deserialize)]
struct Identifier {
    r#type: String,
    user: Option<String>,
}

same_endpoint!(Login, login::v3::Request);

impl IncomingRequest for Login {
    type EndpointError = RumaError;
    type OutgoingResponse = login::v3::Response;

    fn try_from_http_request_inner(
        request: http::Request<&[u8]>,
        _: &[&str],
    ) -> Result<Self, DeserializationError> {
        Ok(serde_json::from_slice(request.body())?)
    }
}

async fn log_in(
    services: Arc<Services>,
    Ruma {
        request, address, ..
    }: Ruma<Login>,
) -> Result<login::v3::Response> {
    let device = NewDevice {
        id: request.device_id,
        display_name: request.initial_device_display_name,
        refreshable: request.refresh_token,
    };
    let user = match request.identifier {
        Some(identifier) if identifier.r#type == "m.id.user" => identifier.user,
        Some(_) => None,
        None => request.user,
    };
    let credential = Credential {
        kind: request.r#type,
        user,
        password: request.password,
        token: request.token,
    };
    let session = services
        .accounts
        .log_in(address, credential, device)
        .await?;
    let mut response = login::v3::Response::new(
        session.user_id,
        session.access_token,
        session.device_id.into(),
    );
    response.refresh_token = session.refresh_token;
    response.expires_in = session.expires_in;
    Ok(response)
}

async fn log_out(
    services: Arc<Services>,
    Ruma { requester, .. }: Ruma<logout::v3::Request>,
) -> Result<logout::v3::Response> {
    services.accounts.log_out(&requester).await?;
    Ok(logout::v3::Response::new())
}

async fn log_out_everywhere(
    services: Arc<Services>,
    Ruma { requester, .. }: Ruma<logout_all::v3::Request>,
) -> Result<logout_all::v3::Response> {
    services.accounts.log_out_everywhere(&requester).await?;
    Ok(logout_all::v3::Response::new())
}

async fn issue_login_token(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<get_login_token::v1::Request>,
) -> Result<get_login_token::v1::Response> {
    let accounts = &services.accounts;
    let (token, lifetime) = accounts
        .issue_login_token(&requester, request.auth.as_ref())
        .await?;
    Ok(get_login_token::v1::Response::new(lifetime, token))
}

async fn refresh(
    services: Arc<Services>,
    Ruma { request, .. }: Ruma<refresh_token::v3::Request>,
) -> Result<refresh_token::v3::Response> {
    let refreshed = services.accounts.refresh(&request.refresh_token).await?;
    let mut response = refresh_token::v3::Response::new(refreshed.access_token);
    response.refresh_token = Some(refreshed.refresh_token);
    response.expires_in_ms = Some(refreshed.expires_in);
    Ok(response)
}
