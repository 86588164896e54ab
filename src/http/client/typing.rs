//! "Typing Notifications".

use std::{sync::Arc, time::Duration};

use ruma::{
    OwnedRoomId, OwnedUserId,
    api::{
        IncomingRequest,
        client::typing::create_typing_event,
        error::{DeserializationError, Error as RumaError},
    },
};
use serde::{
    Deserialize,
    de::value::{self, SeqDeserializer},
};

use crate::{
    error::Result,
    http::{
        extract::{Ruma, same_endpoint},
        routes::Routes,
    },
    service::Services,
};

/// How long somebody types who does not say how long.
const DEFAULT_TIMEOUT: u64 = 30_000;

pub(super) fn routes(routes: Routes) -> Routes {
    routes.on(typing)
}

/// ruma's own type insists on a timeout, which the specification leaves to the client.
struct SetTyping {
    room_id: OwnedRoomId,
    user_id: OwnedUserId,
    state: State,
}

#[derive(Deserialize)]
struct State {
    typing: bool,
    timeout: Option<u64>,
}

same_endpoint!(SetTyping, create_typing_event::v3::Request);

impl IncomingRequest for SetTyping {
    type EndpointError = RumaError;
    type OutgoingResponse = create_typing_event::v3::Response;

    fn try_from_http_request_inner(
        request: http::Request<&[u8]>,
        path: &[&str],
    ) -> Result<Self, DeserializationError> {
        let path = SeqDeserializer::<_, value::Error>::new(path.iter().copied());
        let (room_id, user_id) = <(OwnedRoomId, OwnedUserId)>::deserialize(path)?;
        let state = serde_json::from_slice(request.body())?;
        Ok(Self {
            room_id,
            user_id,
            state,
        })
    }
}

async fn typing(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<SetTyping>,
) -> Result<create_typing_event::v3::Response> {
    let timeout = request.state.timeout.unwrap_or(DEFAULT_TIMEOUT);
    let timeout = request.state.typing.then(|| Duration::from_millis(timeout));
    let (room, user) = (&request.room_id, &request.user_id);
    services.typing.set(&requester, room, user, timeout).await?;
    services.presence.active(requester.nid)?;
    Ok(create_typing_event::v3::Response::new())
}
