//! "Querying for information".

use std::sync::Arc;

use ruma::{
    api::federation::query::{get_profile_information::v1::Request, get_room_information},
    profile::ProfileFieldName,
};

use crate::{
    error::Result,
    http::{extract::Ruma, respond::Json, routes::Routes},
    service::Services,
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes.on(profile).on(directory)
}

async fn directory(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<get_room_information::v1::Request>,
) -> Result<Json> {
    tracing::debug!(origin = %requester.server, "an alias is asked for");
    let answer = services.federation.directory(&request.room_alias);
    answer.map(Json)
}

async fn profile(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<Request>,
) -> Result<Json> {
    tracing::debug!(origin = %requester.server, "a profile is asked for");
    let field = request.field.as_ref().map(ProfileFieldName::as_str);
    Json::of(&services.profiles.told(&request.user_id, field)?)
}
