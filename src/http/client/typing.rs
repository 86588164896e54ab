//! "Typing Notifications".

use std::sync::Arc;

use ruma::api::client::typing::create_typing_event::{self, v3::Typing};

use crate::{
    error::Result,
    http::{extract::Ruma, routes::Routes},
    service::Services,
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes.also_guests(typing)
}

async fn typing(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<create_typing_event::v3::Request>,
) -> Result<create_typing_event::v3::Response> {
    let timeout = match request.state {
        Typing::Yes(typing) => Some(typing.timeout),
        Typing::No => None,
    };
    let (room, user) = (&request.room_id, &request.user_id);
    services.typing.set(&requester, room, user, timeout).await?;
    services.presence.active(requester.nid)?;
    Ok(create_typing_event::v3::Response::new())
}
