//! "Querying for information".

use std::sync::Arc;

use ruma::api::federation::query::get_profile_information::v1::Request;

use crate::{
    error::Result,
    http::{extract::Ruma, respond::Json, routes::Routes},
    service::Services,
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes.on(profile)
}

async fn profile(services: Arc<Services>, Ruma { request, .. }: Ruma<Request>) -> Result<Json> {
    let field = request.field.as_ref().map(|field| field.as_str());
    Json::of(&services.profiles.told(&request.user_id, field)?)
}
