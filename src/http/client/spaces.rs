//! "Spaces" and "Room summaries".

use std::sync::Arc;

use ruma::api::client::{room::get_summary, space::get_hierarchy};

use crate::{
    error::Result,
    http::{extract::Ruma, respond::Json, routes::Routes},
    service::{Services, lifecycle::Branch},
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes.also_guests(hierarchy).also_guests(summary)
}

async fn hierarchy(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<get_hierarchy::v1::Request>,
) -> Result<Json> {
    let branch = Branch {
        from: request.from,
        limit: request.limit.map(u64::from),
        max_depth: request.max_depth.map(u64::from),
        suggested_only: request.suggested_only,
    };
    let tree = services
        .lifecycle
        .hierarchy(&requester, &request.room_id, &branch);
    Json::of(&tree.await?)
}

async fn summary(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<get_summary::v1::Request>,
) -> Result<Json> {
    let (meant, via) = (&request.room_id_or_alias, request.via);
    let summary = services
        .lifecycle
        .room_summary(requester.as_ref(), meant, via);
    Json::of(&summary.await?)
}
