//! "Reporting Content".

use std::sync::Arc;

use ruma::api::client::{
    reporting::report_user,
    room::{report_content, report_room},
};

use crate::{
    error::Result,
    http::{extract::Ruma, routes::Routes},
    service::Services,
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes.on(room).on(event).on(user)
}

async fn room(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<report_room::v3::Request>,
) -> Result<report_room::v3::Response> {
    let (reports, room) = (&services.reports, &request.room_id);
    reports
        .report_room(&requester, room, request.reason)
        .await?;
    Ok(report_room::v3::Response::new())
}

async fn event(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<report_content::v3::Request>,
) -> Result<report_content::v3::Response> {
    let (room, event) = (&request.room_id, &request.event_id);
    let reason = request.reason.unwrap_or_default();
    services
        .reports
        .report_event(&requester, room, event, reason)
        .await?;
    Ok(report_content::v3::Response::new())
}

async fn user(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<report_user::v3::Request>,
) -> Result<report_user::v3::Response> {
    let (reports, user) = (&services.reports, &request.user_id);
    reports
        .report_user(&requester, user, request.reason)
        .await?;
    Ok(report_user::v3::Response::new())
}
