//! "Spaces" and "Room summaries".

use std::sync::Arc;

use ruma::api::client::{room::get_summary, space::get_hierarchy};

use crate::{
    error::Result,
    http::{
        extract::{Accepts, Ruma},
        respond::Json,
        routes::Routes,
    },
    service::{Services, lifecycle::Branch},
};

/// Another unstable path of the summary, which ruma does not know: Element Web and Cinny ask here.
const SUMMARY_OF_APPS: &str =
    "/_matrix/client/unstable/im.nheko.summary/summary/{room_id_or_alias}";

pub(super) fn routes(routes: Routes) -> Routes {
    let accepts = Accepts {
        guests: true,
        ..Accepts::USUAL
    };
    routes
        .also_guests(hierarchy)
        .also_guests(summary)
        .at(SUMMARY_OF_APPS, accepts, summary)
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
