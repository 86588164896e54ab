//! `/_synapse/admin/v1/register`: accounts for scripts that know the shared secret.

use std::sync::Arc;

use ruma::{
    api::{
        IncomingRequest,
        auth_scheme::NoAuthentication,
        client::account::register,
        error::{DeserializationError, Error as RumaError},
    },
    metadata,
};
use serde::Deserialize;
use serde_json::json;

use crate::{
    error::Result,
    http::{extract::Ruma, respond::Json, routes::Routes},
    service::{Services, accounts::SharedSecretRequest},
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes.on(nonce).on(register)
}

struct Nonce;

metadata! {
    @for Nonce,
    method: GET,
    rate_limited: true,
    authentication: NoAuthentication,
    path: "/_synapse/admin/v1/register",
}

impl IncomingRequest for Nonce {
    type EndpointError = RumaError;
    type OutgoingResponse = register::v3::Response;

    fn try_from_http_request_inner(
        _: http::Request<&[u8]>,
        _: &[&str],
    ) -> Result<Self, DeserializationError> {
        Ok(Self)
    }
}

async fn nonce(services: Arc<Services>, _: Ruma<Nonce>) -> Result<Json> {
    Json::of(&json!({ "nonce": services.accounts.shared_secret_nonce()? }))
}

#[derive(Deserialize)]
struct Register {
    nonce: String,
    username: String,
    password: String,
    displayname: Option<String>,
    #[serde(default)]
    admin: bool,
    user_type: Option<String>,
    mac: String,
    #[serde(default)]
    inhibit_login: bool,
}

metadata! {
    @for Register,
    method: POST,
    rate_limited: true,
    authentication: NoAuthentication,
    path: "/_synapse/admin/v1/register",
}

impl IncomingRequest for Register {
    type EndpointError = RumaError;
    type OutgoingResponse = register::v3::Response;

    fn try_from_http_request_inner(
        request: http::Request<&[u8]>,
        _: &[&str],
    ) -> Result<Self, DeserializationError> {
        Ok(serde_json::from_slice(request.body())?)
    }
}

async fn register(services: Arc<Services>, Ruma { request, .. }: Ruma<Register>) -> Result<Json> {
    let wanted = SharedSecretRequest {
        nonce: request.nonce,
        username: request.username,
        password: request.password,
        display_name: request.displayname,
        admin: request.admin,
        user_type: request.user_type,
        mac: request.mac,
        log_in: !request.inhibit_login,
    };
    let registered = services
        .accounts
        .register_with_shared_secret(wanted)
        .await?;
    let mut body = json!({
        "user_id": registered.user_id,
        "home_server": services.config.server.name,
    });
    if let Some(session) = registered.session {
        body["access_token"] = session.access_token.into();
        body["device_id"] = session.device_id.into();
    }
    Json::of(&body)
}
