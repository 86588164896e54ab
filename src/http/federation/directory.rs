//! "Public Room Directory" and "Spaces".

use std::sync::Arc;

use ruma::{
    api::federation::{
        directory::{get_public_rooms, get_public_rooms_filtered},
        space::get_hierarchy,
    },
    directory::Filter,
};

use crate::{
    error::Result,
    http::{client::listing, extract::Ruma, respond::Json, routes::Routes},
    service::Services,
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes.on(public_rooms).on(search).on(hierarchy)
}

async fn hierarchy(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<get_hierarchy::v1::Request>,
) -> Result<Json> {
    let answer =
        services
            .federation
            .hierarchy(&requester.server, request.room_id, request.suggested_only);
    answer.await.map(Json)
}

async fn public_rooms(
    services: Arc<Services>,
    Ruma { request, .. }: Ruma<get_public_rooms::v1::Request>,
) -> Result<Json> {
    let page = (request.limit.map(u64::from), request.since);
    let listing = listing(page, Filter::default(), &request.room_network);
    Json::of(&services.lifecycle.public_rooms(None, listing).await?)
}

async fn search(
    services: Arc<Services>,
    Ruma { request, .. }: Ruma<get_public_rooms_filtered::v1::Request>,
) -> Result<Json> {
    let page = (request.limit.map(u64::from), request.since);
    let listing = listing(page, request.filter, &request.room_network);
    Json::of(&services.lifecycle.public_rooms(None, listing).await?)
}
