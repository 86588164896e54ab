//! "OpenID".

use std::sync::Arc;

use ruma::{api::client::account::request_openid_token, authentication::TokenType};

use crate::{
    error::Result,
    http::{extract::Ruma, routes::Routes},
    service::Services,
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes.on(token)
}

async fn token(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<request_openid_token::v3::Request>,
) -> Result<request_openid_token::v3::Response> {
    let accounts = &services.accounts;
    let issued = accounts.issue_openid_token(&requester, &request.user_id);
    let (token, lifetime) = issued.await?;
    Ok(request_openid_token::v3::Response::new(
        token,
        TokenType::Bearer,
        services.config.server.name.clone(),
        lifetime,
    ))
}
