//! "Getting events for a room": pages of it, what surrounds an event, one event.

use std::sync::Arc;

use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedRoomId, UInt,
    api::{
        Direction, IncomingRequest,
        client::{
            context::get_context,
            message::get_message_events,
            room::{get_event_by_timestamp, get_room_event},
        },
        error::{DeserializationError, Error as RumaError},
    },
    exports::{serde::de::value, serde_html_form},
    uint,
};
use serde::Deserialize;

use crate::{
    error::{Error, Result},
    http::{
        extract::{Ruma, same_endpoint},
        respond::Json,
        routes::Routes,
    },
    protocol::{filter::RoomEventFilter, token::PageToken},
    service::{
        Services,
        rooms::{Page, When},
    },
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .also_guests(messages)
        .also_guests(context)
        .also_guests(event)
        .also_guests(at_time)
}

async fn at_time(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<get_event_by_timestamp::v1::Request>,
) -> Result<get_event_by_timestamp::v1::Response> {
    let when = When {
        ts: request.ts.get().into(),
        dir: request.dir,
    };
    let found = services
        .federation
        .event_at(&requester, &request.room_id, when);
    let (id, ts) = found.await?;
    let ts = MilliSecondsSinceUnixEpoch(UInt::new_saturating(ts));
    Ok(get_event_by_timestamp::v1::Response::new(id, ts))
}

/// A request for a page, which need not say where it goes: clients leave `dir` out, because the reference server then
/// goes forward. ruma's type insists on it.
struct Messages {
    room_id: OwnedRoomId,
    page: PageQuery,
}

#[derive(Deserialize)]
struct PageQuery {
    from: Option<String>,
    to: Option<String>,
    #[serde(default = "forward")]
    dir: Direction,
    #[serde(default = "usual_limit")]
    limit: UInt,
}

fn forward() -> Direction {
    Direction::Forward
}

fn usual_limit() -> UInt {
    uint!(10)
}

same_endpoint!(Messages, get_message_events::v3::Request);

impl IncomingRequest for Messages {
    type EndpointError = RumaError;
    type OutgoingResponse = get_message_events::v3::Response;

    fn try_from_http_request_inner(
        request: http::Request<&[u8]>,
        path: &[&str],
    ) -> Result<Self, DeserializationError> {
        let path = value::SeqDeserializer::<_, value::Error>::new(path.iter().copied());
        let (room_id,) = <(OwnedRoomId,)>::deserialize(path)?;
        let query = request.uri().query().unwrap_or_default();
        Ok(Self {
            room_id,
            page: serde_html_form::from_str(query)?,
        })
    }
}

async fn messages(
    services: Arc<Services>,
    Ruma {
        request,
        requester,
        query,
        ..
    }: Ruma<Messages>,
) -> Result<Json> {
    let filter = filter(&query)?;
    let PageQuery {
        from,
        to,
        dir,
        limit,
    } = request.page;
    let page = Page {
        from: token("from", from.as_deref())?,
        to: token("to", to.as_deref())?,
        dir,
        limit: number(limit),
    };
    if let (Direction::Backward, Some(from)) = (page.dir, page.from) {
        let federation = &services.federation;
        let room = &request.room_id;
        federation.fill_before(&requester, room, from).await;
    }
    let answer = beside(services, move |services| {
        let room = &request.room_id;
        services.rooms.messages(&requester, room, page, &filter)
    });
    answer.await.map(Json)
}

async fn context(
    services: Arc<Services>,
    Ruma {
        request,
        requester,
        query,
        ..
    }: Ruma<get_context::v3::Request>,
) -> Result<Json> {
    let filter = filter(&query)?;
    let answer = beside(services, move |services| {
        let (room, event) = (&request.room_id, &request.event_id);
        let limit = number(request.limit);
        services
            .rooms
            .context(&requester, room, event, limit, &filter)
    });
    answer.await.map(Json)
}

async fn event(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<get_room_event::v3::Request>,
) -> Result<Json> {
    let (room, event) = (&request.room_id, &request.event_id);
    services
        .rooms
        .single_event(&requester, room, event)
        .map(Json)
}

/// Runs what may read much beside the threads that serve others.
pub(super) async fn beside<T: Send + 'static>(
    services: Arc<Services>,
    work: impl FnOnce(&Services) -> Result<T> + Send + 'static,
) -> Result<T> {
    let tasks = services.tasks.clone();
    let done = tasks.spawn_blocking(move || work(&services)).await;
    done.unwrap_or_else(|e| Err(Error::Internal(format!("reading broke off: {e}"))))
}

/// A token of `/sync` or of an earlier page. An empty one is none.
pub(super) fn token(name: &str, text: Option<&str>) -> Result<Option<PageToken>> {
    let text = text.filter(|text| !text.is_empty());
    let token = text.map(str::parse).transpose();
    token.map_err(|e| Error::invalid_param(format!("{name}: {e}")))
}

/// A limit as a number; the services have bounds of their own.
pub(super) fn number(limit: UInt) -> usize {
    usize::try_from(u64::from(limit)).unwrap_or(usize::MAX)
}

/// The filter of a single request. ruma's type does not keep all of it.
fn filter(query: &str) -> Result<RoomEventFilter> {
    #[derive(Deserialize)]
    struct Query {
        filter: Option<String>,
    }
    let query: Query =
        serde_html_form::from_str(query).map_err(|e| Error::invalid_param(e.to_string()))?;
    match query.filter.as_deref() {
        None | Some("") => Ok(RoomEventFilter::default()),
        Some(json) => {
            RoomEventFilter::from_json(json).map_err(|e| Error::invalid_param(e.to_string()))
        }
    }
}
