//! "Mutual Rooms", under the name in the specification and the one that clients used before.

use std::sync::Arc;

use ruma::api::client::membership::get_mutual_rooms::{unstable, v1};

use crate::{
    error::Result,
    http::{extract::Ruma, respond::Json, routes::Routes},
    service::Services,
};

/// The most rooms of an answer.
const MAX_PAGE: usize = 500;

pub(super) fn routes(routes: Routes) -> Routes {
    routes.on(stable).on(before)
}

async fn stable(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<v1::Request>,
) -> Result<Json> {
    let (user, from) = (&request.user_id, request.from.as_deref());
    Json::of(&services.rooms.mutual(&requester, user, from, MAX_PAGE)?)
}

async fn before(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<unstable::Request>,
) -> Result<Json> {
    let (user, from) = (&request.user_id, request.from.as_deref());
    Json::of(&services.rooms.mutual(&requester, user, from, MAX_PAGE)?)
}
