//! "Creation" of rooms and "Room membership".

use std::sync::Arc;

use ruma::{
    CanonicalJsonObject, RoomId,
    api::client::{
        knock::knock_room,
        membership::{
            ban_user, forget_room,
            invite_user::{self, v3::InvitationRecipient},
            join_room_by_id, join_room_by_id_or_alias, kick_user, leave_room, unban_user,
        },
        room::create_room,
    },
};

use crate::{
    error::{Error, Result},
    http::{extract::Ruma, routes::Routes},
    service::{
        Services,
        lifecycle::{no_identity_server, object},
    },
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .on(create)
        .also_guests(join)
        .also_guests(join_by_alias)
        .on(knock)
        .also_guests(leave)
        .also_guests(forget)
        .on(invite)
        .on(kick)
        .on(ban)
        .on(unban)
}

/// What a member event says besides the membership.
fn with(reason: Option<String>) -> CanonicalJsonObject {
    let reason = reason.map(|reason| ("reason".to_owned(), reason.into()));
    reason.into_iter().collect()
}

/// What a client wants to say when it joins: whatever it sends, as the reference server takes it.
fn custom(body: &[u8]) -> Result<CanonicalJsonObject> {
    let text = str::from_utf8(body).map_err(|e| Error::bad_json(e.to_string()))?;
    object(text)
}

async fn create(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<create_room::v3::Request>,
) -> Result<create_room::v3::Response> {
    let room = services.lifecycle.create_room(&requester, request).await?;
    Ok(create_room::v3::Response::new(room))
}

async fn join(
    services: Arc<Services>,
    Ruma {
        request,
        requester,
        body,
        ..
    }: Ruma<join_room_by_id::v3::Request>,
) -> Result<join_room_by_id::v3::Response> {
    let (room, content) = (request.room_id, custom(&body)?);
    services.lifecycle.join(&requester, &room, content).await?;
    Ok(join_room_by_id::v3::Response::new(room))
}

async fn join_by_alias(
    services: Arc<Services>,
    Ruma {
        request,
        requester,
        body,
        ..
    }: Ruma<join_room_by_id_or_alias::v3::Request>,
) -> Result<join_room_by_id_or_alias::v3::Response> {
    let room = services.lifecycle.room_meant(&request.room_id_or_alias)?;
    let content = custom(&body)?;
    services.lifecycle.join(&requester, &room, content).await?;
    Ok(join_room_by_id_or_alias::v3::Response::new(room))
}

async fn knock(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<knock_room::v3::Request>,
) -> Result<knock_room::v3::Response> {
    let room = services.lifecycle.room_meant(&request.room_id_or_alias)?;
    services
        .lifecycle
        .knock(&requester, &room, with(request.reason))
        .await?;
    Ok(knock_room::v3::Response::new(room))
}

async fn leave(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<leave_room::v3::Request>,
) -> Result<leave_room::v3::Response> {
    services
        .lifecycle
        .leave(&requester, &request.room_id, with(request.reason))
        .await?;
    Ok(leave_room::v3::Response::new())
}

async fn forget(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<forget_room::v3::Request>,
) -> Result<forget_room::v3::Response> {
    services
        .lifecycle
        .forget(&requester, &request.room_id)
        .await?;
    Ok(forget_room::v3::Response::new())
}

async fn invite(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<invite_user::v3::Request>,
) -> Result<invite_user::v3::Response> {
    let InvitationRecipient::UserId(invitee) = request.recipient else {
        return Err(no_identity_server());
    };
    let (room, user): (&RoomId, _) = (&request.room_id, &invitee.user_id);
    services
        .lifecycle
        .invite(&requester, room, user, with(invitee.reason))
        .await?;
    Ok(invite_user::v3::Response::new())
}

async fn kick(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<kick_user::v3::Request>,
) -> Result<kick_user::v3::Response> {
    let (room, user) = (&request.room_id, &request.user_id);
    services
        .lifecycle
        .kick(&requester, room, user, with(request.reason))
        .await?;
    Ok(kick_user::v3::Response::new())
}

async fn ban(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<ban_user::v3::Request>,
) -> Result<ban_user::v3::Response> {
    let (room, user) = (&request.room_id, &request.user_id);
    services
        .lifecycle
        .ban(&requester, room, user, with(request.reason))
        .await?;
    Ok(ban_user::v3::Response::new())
}

async fn unban(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<unban_user::v3::Request>,
) -> Result<unban_user::v3::Response> {
    let (room, user) = (&request.room_id, &request.user_id);
    services
        .lifecycle
        .unban(&requester, room, user, with(request.reason))
        .await?;
    Ok(unban_user::v3::Response::new())
}
