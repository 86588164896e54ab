//! "Third-party invites".

use std::sync::Arc;

use ruma::{
    OwnedRoomId,
    api::federation::thirdparty::{bind_callback, exchange_invite},
    events::StateEventType,
};
use serde::Deserialize;

use crate::{
    error::{Error, Result},
    http::{extract::Ruma, respond::Json, routes::Routes},
    service::{Services, lifecycle::Bound},
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes.on(exchange).on(on_bind)
}

async fn exchange(
    services: Arc<Services>,
    Ruma {
        request,
        requester,
        body,
        ..
    }: Ruma<exchange_invite::v1::Request>,
) -> Result<Json> {
    #[derive(Deserialize)]
    struct Body {
        room_id: Option<OwnedRoomId>,
    }
    let body: Body = serde_json::from_slice(&body).map_err(|e| Error::bad_json(e.to_string()))?;
    let is_elsewhere = body.room_id.is_some_and(|room| room != request.room_id);
    if request.kind != StateEventType::RoomMember || is_elsewhere {
        return Err(Error::invalid_param("It is no member event of this room"));
    }
    let (room, pair) = (&request.room_id, (&*request.sender, &*request.state_key));
    let content = request.content.json().get();
    services
        .lifecycle
        .exchange_third_party_invite(&requester.server, room, pair, content)
        .await?;
    Ok(Json("{}".to_owned()))
}

async fn on_bind(
    services: Arc<Services>,
    Ruma { request, .. }: Ruma<bind_callback::v1::Request>,
) -> Result<Json> {
    services.keyring.admit_strangers()?;
    let user = &request.mxid;
    let invites = request.invites.into_iter();
    // What is signed for somebody else is not for this user.
    let invites = invites.filter(|invite| invite.mxid == *user);
    let invites = invites.map(|invite| Bound {
        room: invite.room_id,
        sender: invite.sender,
        signed: invite.signed.into_json(),
    });
    services.lifecycle.on_bind(user, invites.collect()).await?;
    Ok(Json("{}".to_owned()))
}
