//! Which threads a user follows: MSC4306 and MSC4308, with their names of before they are in the specification.

use std::sync::Arc;

use ruma::{
    OwnedEventId, OwnedRoomId,
    api::{
        IncomingRequest,
        auth_scheme::AccessToken,
        client::{
            account::whoami::v3::Response,
            threads::get_thread_subscriptions_changes::unstable::Request as ChangesRequest,
        },
        error::{DeserializationError, Error as RumaError},
    },
    exports::serde::de::value,
    metadata,
};
use serde::Deserialize;
use serde_json::json;

use super::events::number;
use crate::{
    error::{Error, Result},
    http::{extract::Ruma, respond::Json, routes::Routes},
    protocol::{
        ids::Position,
        token::{SlidingToken, SyncToken},
    },
    service::{Services, threads::Threads},
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes.on(get).on(subscribe).on(unsubscribe).on(changes)
}

/// A thread.
struct Thread {
    room: OwnedRoomId,
    root: OwnedEventId,
}

impl Thread {
    fn of(path: &[&str]) -> Result<Self, DeserializationError> {
        let path = value::SeqDeserializer::<_, value::Error>::new(path.iter().copied());
        let (room, root) = <(OwnedRoomId, OwnedEventId)>::deserialize(path)?;
        Ok(Self { room, root })
    }
}

struct Get(Thread);
struct Unsubscribe(Thread);
struct Subscribe {
    thread: Thread,
    automatic: Option<OwnedEventId>,
}

metadata! {
    @for Get,
    method: GET,
    rate_limited: false,
    authentication: AccessToken,
    path: "/_matrix/client/unstable/io.element.msc4306/rooms/{room_id}/thread/{thread_root}/subscription",
}
metadata! {
    @for Unsubscribe,
    method: DELETE,
    rate_limited: false,
    authentication: AccessToken,
    path: "/_matrix/client/unstable/io.element.msc4306/rooms/{room_id}/thread/{thread_root}/subscription",
}
metadata! {
    @for Subscribe,
    method: PUT,
    rate_limited: false,
    authentication: AccessToken,
    path: "/_matrix/client/unstable/io.element.msc4306/rooms/{room_id}/thread/{thread_root}/subscription",
}

macro_rules! about_a_thread {
    ($($request:ty),*) => {$(
        impl IncomingRequest for $request {
            type EndpointError = RumaError;
            type OutgoingResponse = Response;

            fn try_from_http_request_inner(
                _: http::Request<&[u8]>,
                path: &[&str],
            ) -> Result<Self, DeserializationError> {
                Thread::of(path).map(Self)
            }
        }
    )*};
}
about_a_thread!(Get, Unsubscribe);

impl IncomingRequest for Subscribe {
    type EndpointError = RumaError;
    type OutgoingResponse = Response;

    fn try_from_http_request_inner(
        request: http::Request<&[u8]>,
        path: &[&str],
    ) -> Result<Self, DeserializationError> {
        #[derive(Deserialize)]
        struct Body {
            automatic: Option<OwnedEventId>,
        }
        let Body { automatic } = serde_json::from_slice(request.body())?;
        let thread = Thread::of(path)?;
        Ok(Self { thread, automatic })
    }
}

async fn get(
    services: Arc<Services>,
    Ruma {
        request: Get(Thread { room, root }),
        requester,
        ..
    }: Ruma<Get>,
) -> Result<Json> {
    let subscription = services.threads.subscription(&requester, &room, &root)?;
    let automatic = subscription.ok_or_else(|| Error::not_found("The subscription"))?;
    Json::of(&json!({ "automatic": automatic }))
}

async fn subscribe(
    services: Arc<Services>,
    Ruma {
        request: Subscribe { thread, automatic },
        requester,
        ..
    }: Ruma<Subscribe>,
) -> Result<Json> {
    let Thread { room, root } = &thread;
    let subscribing = services
        .threads
        .subscribe(&requester, room, root, automatic.as_deref());
    subscribing.await?;
    Json::of(&json!({}))
}

async fn unsubscribe(
    services: Arc<Services>,
    Ruma {
        request: Unsubscribe(Thread { room, root }),
        requester,
        ..
    }: Ruma<Unsubscribe>,
) -> Result<Json> {
    let unsubscribing = services.threads.unsubscribe(&requester, &room, &root);
    unsubscribing.await?;
    Json::of(&json!({}))
}

async fn changes(
    services: Arc<Services>,
    Ruma {
        request,
        requester,
        query,
        ..
    }: Ruma<ChangesRequest>,
) -> Result<Json> {
    #[derive(Deserialize)]
    struct Direction {
        dir: String,
    }
    let direction = ruma::exports::serde_html_form::from_str::<Direction>(&query);
    if !direction.is_ok_and(|Direction { dir }| dir == "b") {
        return Err(Error::invalid_param(
            "`dir` must be b: the newest comes first",
        ));
    }
    let limit = request.limit.map_or(Threads::USUAL, number);
    let limit = limit.min(Threads::MOST);
    if limit == 0 {
        return Err(Error::invalid_param("`limit` must be greater than zero"));
    }
    let view = services.store().view();
    let now = view.position();
    let until = place("from", request.from.as_deref())?.unwrap_or(now);
    let after = place("to", request.to.as_deref())?.unwrap_or_default();
    let bounds = (after, until.min(now));
    let changes = services
        .threads
        .changes(&view, requester.nid, bounds, limit)?;
    let mut answer = serde_json::to_value(&changes)
        .map_err(|e| Error::Internal(format!("an answer could not be written: {e}")))?;
    if let Some(end) = changes.more_until {
        answer["end"] = SyncToken::at(end).to_string().into();
    }
    Json::of(&answer)
}

/// A place in the order of changes: where an earlier answer ended, or a sync, of the one kind or the other.
fn place(name: &str, text: Option<&str>) -> Result<Option<Position>> {
    let Some(text) = text.filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    if let Ok(token) = text.parse::<SlidingToken>() {
        return Ok(Some(token.position));
    }
    let token = text.parse::<SyncToken>();
    let token = token.map_err(|e| Error::invalid_param(format!("{name}: {e}")))?;
    Ok(Some(token.position))
}
