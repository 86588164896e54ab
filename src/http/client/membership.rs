//! "Creation" of rooms and "Room membership".

use std::sync::Arc;

use ruma::{
    CanonicalJsonObject, OwnedServerName, RoomId, ServerName,
    api::client::{
        knock::knock_room,
        membership::{
            ban_user, forget_room,
            invite_user::{self, v3::InvitationRecipient},
            join_room_by_id, join_room_by_id_or_alias, kick_user, leave_room, unban_user,
        },
        room::{create_room, upgrade_room},
    },
    exports::serde_html_form,
};

use crate::{
    error::{Error, Result},
    http::{extract::Ruma, routes::Routes},
    service::{
        Services,
        lifecycle::{no_identity_server, object},
    },
};

/// The most servers that a client can name.
const MOST_SERVERS: usize = 20;

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .on(create)
        .on(upgrade)
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

/// The servers that a client thinks know the room: `via`, or `server_name` as older clients write it.
fn servers(query: &str) -> Result<Vec<OwnedServerName>> {
    let pairs: Vec<(String, String)> = serde_html_form::from_str(query)
        .map_err(|e| Error::invalid_param(format!("The query: {e}")))?;
    let named = |wanted: &str| -> Vec<OwnedServerName> {
        let values = pairs.iter().filter(|(name, _)| name == wanted);
        let values = values.filter_map(|(_, value)| ServerName::parse(value).ok());
        values.take(MOST_SERVERS).collect()
    };
    let via = named("via");
    Ok(if via.is_empty() {
        named("server_name")
    } else {
        via
    })
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

async fn upgrade(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<upgrade_room::v3::Request>,
) -> Result<upgrade_room::v3::Response> {
    let (room, version) = (&request.room_id, &request.new_version);
    let new =
        services
            .lifecycle
            .upgrade_room(&requester, room, version, &request.additional_creators);
    Ok(upgrade_room::v3::Response::new(new.await?))
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
    let joined = services.lifecycle.join(&requester, &room, &[], content);
    joined.await?;
    Ok(join_room_by_id::v3::Response::new(room))
}

async fn join_by_alias(
    services: Arc<Services>,
    Ruma {
        request,
        requester,
        body,
        query,
        ..
    }: Ruma<join_room_by_id_or_alias::v3::Request>,
) -> Result<join_room_by_id_or_alias::v3::Response> {
    let via = servers(&query)?;
    let (lifecycle, meant) = (&services.lifecycle, &request.room_id_or_alias);
    let (room, via) = lifecycle.room_meant(meant, via).await?;
    let content = custom(&body)?;
    lifecycle.join(&requester, &room, &via, content).await?;
    Ok(join_room_by_id_or_alias::v3::Response::new(room))
}

async fn knock(
    services: Arc<Services>,
    Ruma {
        request,
        requester,
        query,
        ..
    }: Ruma<knock_room::v3::Request>,
) -> Result<knock_room::v3::Response> {
    let via = servers(&query)?;
    let (lifecycle, meant) = (&services.lifecycle, &request.room_id_or_alias);
    let (room, via) = lifecycle.room_meant(meant, via).await?;
    let content = with(request.reason);
    lifecycle.knock(&requester, &room, &via, content).await?;
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
