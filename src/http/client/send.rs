//! "Sending events to a room" and "Redactions".

use std::sync::Arc;

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue,
    api::client::{message::send_message_event, redact::redact_event, state::send_state_event},
};

use crate::{
    error::Result,
    http::{
        extract::{Accepts, Ruma},
        routes::Routes,
    },
    service::{Services, lifecycle::object},
};

pub(super) fn routes(routes: Routes) -> Routes {
    let accepts = Accepts {
        guests: true,
        ..Accepts::USUAL
    };
    let state = "/_matrix/client/v3/rooms/{room_id}/state/{event_type}";
    routes
        .also_guests(send_message)
        .also_guests(redact)
        .also_guests(send_state)
        // An empty state key may be left out, with or without its slash.
        .at(state, accepts, send_state)
        .at(&format!("{state}/"), accepts, send_state)
}

async fn send_message(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<send_message_event::v3::Request>,
) -> Result<send_message_event::v3::Response> {
    let content = object(request.body.json().get())?;
    let (room, txn) = (&request.room_id, request.txn_id.as_str());
    let event_type = request.event_type.into();
    let id = services
        .lifecycle
        .send_message(&requester, room, event_type, content, txn)
        .await?;
    services.presence.active(requester.nid)?;
    Ok(send_message_event::v3::Response::new(id))
}

async fn redact(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<redact_event::v3::Request>,
) -> Result<redact_event::v3::Response> {
    let mut content = CanonicalJsonObject::new();
    if let Some(reason) = request.reason {
        content.insert("reason".to_owned(), CanonicalJsonValue::String(reason));
    }
    let (room, target, txn) = (&request.room_id, &request.event_id, request.txn_id.as_str());
    let id = services
        .lifecycle
        .redact(&requester, room, target, content, txn)
        .await?;
    Ok(redact_event::v3::Response::new(id))
}

async fn send_state(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<send_state_event::v3::Request>,
) -> Result<send_state_event::v3::Response> {
    let content = object(request.body.json().get())?;
    let (room, kind, key) = (&request.room_id, request.event_type, &request.state_key);
    let id = services
        .lifecycle
        .send_state(&requester, room, kind, key, content)
        .await?;
    Ok(send_state_event::v3::Response::new(id))
}
