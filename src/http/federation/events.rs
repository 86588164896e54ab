//! "Retrieving events" and "Backfilling and retrieving missing events".

use std::sync::Arc;

use ruma::api::federation::{
    authorization::get_event_authorization,
    backfill::get_backfill,
    event::{
        get_event, get_event_by_timestamp, get_missing_events, get_room_state, get_room_state_ids,
    },
};

use crate::{
    error::Result,
    http::{extract::Ruma, respond::Json, routes::Routes},
    service::{Services, rooms::When},
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .on(event)
        .on(state)
        .on(state_ids)
        .on(event_auth)
        .on(backfill)
        .on(missing_events)
        .on(at_time)
}

async fn at_time(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<get_event_by_timestamp::v1::Request>,
) -> Result<Json> {
    let when = When {
        ts: request.ts.get().into(),
        dir: request.dir,
    };
    let (room, federation) = (request.room_id, &services.federation);
    let answer = federation.told_at(&requester.server, room, when);
    answer.await.map(Json)
}

async fn event(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<get_event::v1::Request>,
) -> Result<Json> {
    let origin = &requester.server;
    let answer = services.federation.event(origin, &request.event_id);
    answer.await.map(Json)
}

async fn state(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<get_room_state::v1::Request>,
) -> Result<Json> {
    let (room, event) = (request.room_id, request.event_id);
    let answer = services.federation.state(&requester.server, room, event);
    answer.await.map(Json)
}

async fn state_ids(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<get_room_state_ids::v1::Request>,
) -> Result<Json> {
    let (room, event) = (request.room_id, request.event_id);
    let federation = &services.federation;
    let answer = federation.state_ids(&requester.server, room, event);
    answer.await.map(Json)
}

async fn event_auth(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<get_event_authorization::v1::Request>,
) -> Result<Json> {
    let (room, event) = (request.room_id, request.event_id);
    let federation = &services.federation;
    let answer = federation.event_auth(&requester.server, room, event);
    answer.await.map(Json)
}

async fn backfill(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<get_backfill::v1::Request>,
) -> Result<Json> {
    let limit = usize::try_from(request.limit).unwrap_or(usize::MAX);
    let (room, from) = (request.room_id, request.v);
    let federation = &services.federation;
    let answer = federation.backfill(&requester.server, room, from, limit);
    answer.await.map(Json)
}

async fn missing_events(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<get_missing_events::v1::Request>,
) -> Result<Json> {
    let limit = usize::try_from(request.limit).unwrap_or(usize::MAX);
    let between = (request.earliest_events, request.latest_events);
    let answer = services.federation.missing_events(
        &requester.server,
        request.room_id,
        between,
        limit,
        request.min_depth.into(),
    );
    answer.await.map(Json)
}
