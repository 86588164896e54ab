//! "Typing Notifications".

use std::{sync::Arc, time::Duration};

use ruma::{
    OwnedRoomId, OwnedUserId,
    api::{
        IncomingRequest, Metadata,
        client::typing::create_typing_event::v3::{Request, Response},
        error::{DeserializationError, Error as RumaError},
    },
};
use serde::Deserialize;

use crate::{
    error::Result,
    http::{extract::Ruma, routes::Routes},
    service::Services,
};

/// How long somebody types who does not say how long.
const USUAL_TIMEOUT: Duration = Duration::from_secs(30);

pub(super) fn routes(routes: Routes) -> Routes {
    routes.on(typing)
}

/// The request as the specification has it: ruma's type wants the timeout to be told.
struct Typing {
    room_id: OwnedRoomId,
    user_id: OwnedUserId,
    body: Body,
}

#[derive(Deserialize)]
struct Body {
    typing: bool,
    timeout: Option<u64>,
}

impl Metadata for Typing {
    const METHOD: http::Method = Request::METHOD;
    const RATE_LIMITED: bool = Request::RATE_LIMITED;
    type Authentication = <Request as Metadata>::Authentication;
    type PathBuilder = <Request as Metadata>::PathBuilder;
    const PATH_BUILDER: Self::PathBuilder = Request::PATH_BUILDER;
}

impl IncomingRequest for Typing {
    type EndpointError = RumaError;
    type OutgoingResponse = Response;

    fn try_from_http_request_inner(
        request: http::Request<&[u8]>,
        path: &[&str],
    ) -> Result<Self, DeserializationError> {
        let path = path.iter().copied();
        let path = serde::de::value::SeqDeserializer::<_, serde::de::value::Error>::new(path);
        let (room_id, user_id) = Deserialize::deserialize(path)?;
        Ok(Self {
            room_id,
            user_id,
            body: serde_json::from_slice(request.body())?,
        })
    }
}

async fn typing(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<Typing>,
) -> Result<Response> {
    let timeout = request.body.timeout.map(Duration::from_millis);
    let timeout = timeout.unwrap_or(USUAL_TIMEOUT);
    let timeout = request.body.typing.then_some(timeout);
    let (room, user) = (&request.room_id, &request.user_id);
    services.typing.set(&requester, room, user, timeout).await?;
    services.presence.active(requester.nid)?;
    Ok(Response::new())
}
