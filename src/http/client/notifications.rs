//! "Listing Notifications".

use std::sync::Arc;

use ruma::api::client::push::get_notifications;

use super::events::beside;
use crate::{
    error::Result,
    http::{extract::Ruma, respond::Json, routes::Routes},
    service::{Services, sync::Listing},
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes.on(notifications)
}

async fn notifications(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<get_notifications::v3::Request>,
) -> Result<Json> {
    let listing = Listing {
        from: request.from,
        limit: request.limit.map(u64::from),
        highlights: request.only.as_deref() == Some("highlight"),
    };
    let answer = beside(services, move |services| {
        services.sync.notifications(&requester, &listing)
    });
    answer.await.map(Json)
}
