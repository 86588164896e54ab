//! "Getting events for a room": its state and its members.

use std::sync::Arc;

use ruma::api::client::{
    membership::{get_member_events, joined_members, joined_rooms},
    state::{
        get_state_event_for_key::{self, v3::StateEventFormat},
        get_state_events,
    },
};

use super::events::{beside, token};
use crate::{
    error::Result,
    http::{
        extract::{Accepts, Ruma},
        respond::Json,
        routes::Routes,
    },
    service::{Services, rooms::Members},
};

pub(super) fn routes(routes: Routes) -> Routes {
    let accepts = Accepts {
        guests: true,
        ..Accepts::USUAL
    };
    let state = "/_matrix/client/v3/rooms/{room_id}/state/{event_type}";
    routes
        .also_guests(full_state)
        .also_guests(state_event)
        // An empty state key may be left out, with or without its slash.
        .at(state, accepts, state_event)
        .at(&format!("{state}/"), accepts, state_event)
        .also_guests(members)
        .on(members_joined)
        .also_guests(rooms_joined)
}

async fn full_state(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<get_state_events::v3::Request>,
) -> Result<Json> {
    let answer = beside(services, move |services| {
        services.rooms.full_state(&requester, &request.room_id)
    });
    answer.await.map(Json)
}

async fn state_event(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<get_state_event_for_key::v3::Request>,
) -> Result<Json> {
    let key = (&request.event_type, request.state_key.as_str());
    let whole = matches!(request.format, StateEventFormat::Event);
    services
        .rooms
        .state_event(&requester, &request.room_id, key, whole)
        .map(Json)
}

async fn members(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<get_member_events::v3::Request>,
) -> Result<Json> {
    let which = Members {
        at: token("at", request.at.as_deref())?,
        membership: request.membership,
        not_membership: request.not_membership,
    };
    let answer = beside(services, move |services| {
        services.rooms.members(&requester, &request.room_id, &which)
    });
    answer.await.map(Json)
}

async fn members_joined(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<joined_members::v3::Request>,
) -> Result<Json> {
    let answer = beside(services, move |services| {
        services.rooms.joined_members(&requester, &request.room_id)
    });
    answer.await.map(Json)
}

async fn rooms_joined(
    services: Arc<Services>,
    Ruma { requester, .. }: Ruma<joined_rooms::v3::Request>,
) -> Result<joined_rooms::v3::Response> {
    let rooms = services.rooms.joined_rooms(&requester)?;
    Ok(joined_rooms::v3::Response::new(rooms))
}
