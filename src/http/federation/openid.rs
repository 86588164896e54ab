//! "OpenID".

use std::sync::Arc;

use ruma::{
    api::{
        IncomingRequest,
        error::{DeserializationError, Error as RumaError},
        federation::openid::get_openid_userinfo,
    },
    exports::serde_html_form,
};
use serde::Deserialize;

use crate::{
    error::Result,
    http::{
        extract::{Ruma, missing_token, same_endpoint},
        routes::Routes,
    },
    service::Services,
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes.on(userinfo)
}

/// Without a token the answer is that it is missing, as everywhere; ruma's type knows only a wrong query.
#[derive(Default, Deserialize)]
struct UserInfo {
    access_token: Option<String>,
}

same_endpoint!(UserInfo, get_openid_userinfo::v1::Request);

impl IncomingRequest for UserInfo {
    type EndpointError = RumaError;
    type OutgoingResponse = get_openid_userinfo::v1::Response;

    fn try_from_http_request_inner(
        request: http::Request<&[u8]>,
        _: &[&str],
    ) -> Result<Self, DeserializationError> {
        let query = request.uri().query().unwrap_or_default();
        Ok(serde_html_form::from_str(query)?)
    }
}

async fn userinfo(
    services: Arc<Services>,
    Ruma { request, .. }: Ruma<UserInfo>,
) -> Result<get_openid_userinfo::v1::Response> {
    services.keyring.admit_strangers()?;
    let token = request.access_token.ok_or_else(missing_token)?;
    let user = services.accounts.openid_user(&token)?;
    Ok(get_openid_userinfo::v1::Response::new(user))
}
