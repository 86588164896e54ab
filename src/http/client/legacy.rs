//! "Syncing" and "Room previews" as they were before `/sync`.

use std::{sync::Arc, time::Duration};

use ruma::{
    OwnedEventId, OwnedRoomId,
    api::{
        IncomingRequest,
        auth_scheme::AccessToken,
        client::peeking::{get_current_state, listen_to_new_events},
        error::{DeserializationError, Error as RumaError},
    },
    exports::{serde::de::value, serde_html_form},
    metadata,
};
use serde::Deserialize;

use super::events::{beside, token};
use crate::{
    error::{Error, Result},
    http::{
        extract::{Ruma, same_endpoint},
        respond::Json,
        routes::Routes,
    },
    service::{Services, sync::Listening},
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .also_guests(events)
        .on(one_event)
        .also_guests(initial_of_room)
        .on(initial_of_all)
}

/// A wait for events of one room, or of all that the user is in.
#[derive(Deserialize)]
struct Events {
    from: Option<String>,
    room_id: Option<OwnedRoomId>,
    #[serde(default)]
    timeout: u64,
}

same_endpoint!(Events, listen_to_new_events::v3::Request);

impl IncomingRequest for Events {
    type EndpointError = RumaError;
    type OutgoingResponse = listen_to_new_events::v3::Response;

    fn try_from_http_request_inner(
        request: http::Request<&[u8]>,
        _: &[&str],
    ) -> Result<Self, DeserializationError> {
        let query = request.uri().query().unwrap_or_default();
        Ok(serde_html_form::from_str(query)?)
    }
}

async fn events(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<Events>,
) -> Result<Json> {
    let listening = Listening {
        from: token("from", request.from.as_deref())?,
        room: request.room_id,
        timeout: Duration::from_millis(request.timeout),
    };
    let answer = services.sync.events(&requester, &listening).await?;
    Ok(Json(answer))
}

/// How much is asked for of each room.
#[derive(Deserialize)]
struct Amount {
    #[serde(default = "usual_limit")]
    limit: usize,
    #[serde(default)]
    archived: bool,
}

fn usual_limit() -> usize {
    10
}

async fn initial_of_room(
    services: Arc<Services>,
    Ruma {
        request,
        requester,
        query,
        ..
    }: Ruma<get_current_state::v3::Request>,
) -> Result<Json> {
    let amount = amount(&query)?;
    let answer = beside(services, move |services| {
        let room = &request.room_id;
        services
            .sync
            .initial_of_room(&requester, room, amount.limit)
    });
    answer.await.map(Json)
}

fn amount(query: &str) -> Result<Amount> {
    serde_html_form::from_str(query).map_err(|e| Error::invalid_param(e.to_string()))
}

struct InitialOfAll;

metadata! {
    @for InitialOfAll,
    method: GET,
    rate_limited: false,
    authentication: AccessToken,
    history: {
        1.0 => "/_matrix/client/r0/initialSync",
        1.1 => "/_matrix/client/v3/initialSync",
    }
}

impl IncomingRequest for InitialOfAll {
    type EndpointError = RumaError;
    type OutgoingResponse = get_current_state::v3::Response;

    fn try_from_http_request_inner(
        _: http::Request<&[u8]>,
        _: &[&str],
    ) -> Result<Self, DeserializationError> {
        Ok(Self)
    }
}

async fn initial_of_all(
    services: Arc<Services>,
    Ruma {
        requester, query, ..
    }: Ruma<InitialOfAll>,
) -> Result<Json> {
    let Amount { limit, archived } = amount(&query)?;
    let answer = beside(services, move |services| {
        services.sync.initial_of_all(&requester, limit, archived)
    });
    answer.await.map(Json)
}

struct OneEvent(OwnedEventId);

metadata! {
    @for OneEvent,
    method: GET,
    rate_limited: false,
    authentication: AccessToken,
    history: {
        1.0 => "/_matrix/client/r0/events/{event_id}",
        1.1 => "/_matrix/client/v3/events/{event_id}",
    }
}

impl IncomingRequest for OneEvent {
    type EndpointError = RumaError;
    type OutgoingResponse = get_current_state::v3::Response;

    fn try_from_http_request_inner(
        _: http::Request<&[u8]>,
        path: &[&str],
    ) -> Result<Self, DeserializationError> {
        let path = value::SeqDeserializer::<_, value::Error>::new(path.iter().copied());
        let (event_id,) = <(OwnedEventId,)>::deserialize(path)?;
        Ok(Self(event_id))
    }
}

async fn one_event(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<OneEvent>,
) -> Result<Json> {
    services.sync.one_event(&requester, &request.0).map(Json)
}
