//! "Joining Rooms", "Knocking upon a room", "Inviting to a room" and "Leaving Rooms (Rejecting Invites)".

use std::sync::Arc;

use ruma::{
    api::federation::membership::{
        create_join_event, create_leave_event, prepare_join_event, prepare_knock_event,
        prepare_leave_event,
    },
    events::room::member::MembershipState,
};

use crate::{
    error::{Error, Result},
    http::{
        extract::{Accepts, Ruma},
        respond::Json,
        routes::Routes,
    },
    service::Services,
};

/// An event for a room, whole. The specification has a type for each, but they differ only in what the event must be.
type Event = create_leave_event::v2::Request;

const ACCEPTS: Accepts = Accepts::USUAL;

pub(super) fn routes(routes: Routes) -> Routes {
    let path = |end: &str| format!("/_matrix/federation/{end}/{{room_id}}/{{event_id}}");
    routes
        .on(make_join)
        .on(make_leave)
        .on(make_knock)
        .at(&path("v1/send_join"), ACCEPTS, send_join_v1)
        .on(send_join)
        .at(&path("v1/send_leave"), ACCEPTS, send_leave_v1)
        .on(send_leave)
        .at(&path("v1/send_knock"), ACCEPTS, send_knock)
        .at(&path("v1/invite"), ACCEPTS, invite_v1)
        .at(&path("v2/invite"), ACCEPTS, invite)
}

fn text(body: &[u8]) -> Result<&str> {
    str::from_utf8(body).map_err(|e| Error::bad_json(e.to_string()))
}

/// As the first version of an endpoint answers.
fn as_v1(body: &str) -> Json {
    Json(format!("[200,{body}]"))
}

async fn make_join(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<prepare_join_event::v1::Request>,
) -> Result<Json> {
    let of = (&*request.room_id, &*request.user_id);
    let (origin, versions) = (&requester.server, Some(&request.ver[..]));
    let template = services
        .federation
        .template(origin, of, &MembershipState::Join, versions);
    template.await.map(Json)
}

async fn make_leave(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<prepare_leave_event::v1::Request>,
) -> Result<Json> {
    let of = (&*request.room_id, &*request.user_id);
    let template =
        services
            .federation
            .template(&requester.server, of, &MembershipState::Leave, None);
    template.await.map(Json)
}

async fn make_knock(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<prepare_knock_event::v1::Request>,
) -> Result<Json> {
    let of = (&*request.room_id, &*request.user_id);
    let (origin, versions) = (&requester.server, Some(&request.ver[..]));
    let template = services
        .federation
        .template(origin, of, &MembershipState::Knock, versions);
    template.await.map(Json)
}

async fn take_join(
    services: &Services,
    Ruma {
        request,
        requester,
        body,
        ..
    }: Ruma<create_join_event::v2::Request>,
) -> Result<String> {
    let of = (&*request.room_id, &*request.event_id);
    let (event, omit) = (text(&body)?, request.omit_members);
    services
        .federation
        .take_join(&requester.server, of, event, omit)
        .await
}

async fn send_join(
    services: Arc<Services>,
    request: Ruma<create_join_event::v2::Request>,
) -> Result<Json> {
    take_join(&services, request).await.map(Json)
}

async fn send_join_v1(
    services: Arc<Services>,
    request: Ruma<create_join_event::v2::Request>,
) -> Result<Json> {
    let answer = take_join(&services, request).await?;
    Ok(as_v1(&answer))
}

async fn take_leave(services: &Services, request: Ruma<Event>) -> Result<()> {
    let of = (&*request.request.room_id, &*request.request.event_id);
    let (origin, event) = (&request.requester.server, text(&request.body)?);
    services.federation.take_leave(origin, of, event).await
}

async fn send_leave(services: Arc<Services>, request: Ruma<Event>) -> Result<Json> {
    take_leave(&services, request).await?;
    Ok(Json("{}".to_owned()))
}

async fn send_leave_v1(services: Arc<Services>, request: Ruma<Event>) -> Result<Json> {
    take_leave(&services, request).await?;
    Ok(as_v1("{}"))
}

async fn send_knock(services: Arc<Services>, request: Ruma<Event>) -> Result<Json> {
    let of = (&*request.request.room_id, &*request.request.event_id);
    let (origin, event) = (&request.requester.server, text(&request.body)?);
    let told = services.federation.take_knock(origin, of, event).await?;
    Ok(Json(told))
}

async fn invite(services: Arc<Services>, request: Ruma<Event>) -> Result<Json> {
    let of = (&*request.request.room_id, &*request.request.event_id);
    let (origin, event) = (&request.requester.server, text(&request.body)?);
    let signed = services.federation.take_invite(origin, of, event).await?;
    Ok(Json(signed))
}

async fn invite_v1(services: Arc<Services>, request: Ruma<Event>) -> Result<Json> {
    let of = (&*request.request.room_id, &*request.request.event_id);
    let (origin, event) = (&request.requester.server, text(&request.body)?);
    let federation = &services.federation;
    let signed = federation.take_old_invite(origin, of, event).await?;
    Ok(as_v1(&signed))
}
