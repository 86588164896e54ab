//! "Sending events to a room" and "Redactions".

use std::sync::Arc;

use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedRoomId,
    api::{
        IncomingRequest,
        client::{message::send_message_event, redact::redact_event, state::send_state_event},
        error::{DeserializationError, Error as RumaError},
    },
    events::TimelineEventType,
    exports::serde::de::value,
};
use serde::Deserialize;
use serde_json::{json, value::RawValue};

use super::delayed_events;

use crate::{
    error::{Error, Result},
    http::{
        extract::{Accepts, Ruma, same_endpoint},
        respond::Json,
        routes::Routes,
    },
    service::{Services, delayed::NewDelayed, lifecycle::object},
};

pub(super) fn routes(routes: Routes) -> Routes {
    let accepts = Accepts {
        guests: true,
        ..Accepts::USUAL
    };
    let state = "/_matrix/client/v3/rooms/{room_id}/state/{event_type}";
    routes
        .accepting(
            Accepts {
                no_body: true,
                ..accepts
            },
            send_message,
        )
        .also_guests(redact)
        .also_guests(send_state)
        // An empty state key may be left out, with or without its slash.
        .at(state, accepts, send_state)
        .at(&format!("{state}/"), accepts, send_state)
}

/// A message whose content may be missing: an app that repeats a request to send it later need not repeat that.
struct Send {
    room_id: OwnedRoomId,
    event_type: TimelineEventType,
    txn_id: String,
    content: Option<Box<RawValue>>,
}

same_endpoint!(Send, send_message_event::v3::Request);

impl IncomingRequest for Send {
    type EndpointError = RumaError;
    type OutgoingResponse = send_message_event::v3::Response;

    fn try_from_http_request_inner(
        request: http::Request<&[u8]>,
        path: &[&str],
    ) -> Result<Self, DeserializationError> {
        let path = value::SeqDeserializer::<_, value::Error>::new(path.iter().copied());
        let (room_id, event_type, txn_id) =
            <(OwnedRoomId, TimelineEventType, String)>::deserialize(path)?;
        let body = Some(request.body()).filter(|body| !body.is_empty());
        let content = body.map(|body| serde_json::from_slice(body)).transpose()?;
        Ok(Self {
            room_id,
            event_type,
            txn_id,
            content,
        })
    }
}

async fn send_message(
    services: Arc<Services>,
    Ruma {
        request,
        requester,
        query,
        ..
    }: Ruma<Send>,
) -> Result<Json> {
    let (room, txn) = (&request.room_id, request.txn_id.as_str());
    let content = request.content.as_deref().map(RawValue::get);
    if let Some(delay) = delayed_events::delay(&query)? {
        let new = NewDelayed {
            room,
            event_type: request.event_type.to_string(),
            state_key: None,
            content,
            delay,
            txn_id: Some(txn),
        };
        return delayed_events::add(&services, &requester, new).await;
    }
    let content = object(content.unwrap_or_default())?;
    let event_type = request.event_type;
    let id = services
        .lifecycle
        .send_message(&requester, room, event_type, content, txn)
        .await?;
    services.presence.active(requester.nid)?;
    Json::of(&json!({ "event_id": id }))
}

/// What is to be redacted together with an event. See MSC3912.
#[derive(Deserialize)]
struct WithRelations {
    #[serde(rename = "org.matrix.msc3912.with_relations", default)]
    relations: Vec<String>,
}

async fn redact(
    services: Arc<Services>,
    Ruma {
        request,
        requester,
        body,
        ..
    }: Ruma<redact_event::v3::Request>,
) -> Result<redact_event::v3::Response> {
    let with: WithRelations =
        serde_json::from_slice(&body).map_err(|e| Error::bad_json(e.to_string()))?;
    let mut content = CanonicalJsonObject::new();
    if let Some(reason) = request.reason {
        content.insert("reason".to_owned(), CanonicalJsonValue::String(reason));
    }
    let (room, target, txn) = (&request.room_id, &request.event_id, request.txn_id.as_str());
    let id = services
        .lifecycle
        .redact(&requester, room, target, &with.relations, content, txn)
        .await?;
    Ok(redact_event::v3::Response::new(id))
}

async fn send_state(
    services: Arc<Services>,
    Ruma {
        request,
        requester,
        query,
        ..
    }: Ruma<send_state_event::v3::Request>,
) -> Result<Json> {
    if let Some(delay) = delayed_events::delay(&query)? {
        let new = NewDelayed {
            room: &request.room_id,
            event_type: request.event_type.to_string(),
            state_key: Some(request.state_key),
            content: Some(request.body.json().get()),
            delay,
            txn_id: None,
        };
        return delayed_events::add(&services, &requester, new).await;
    }
    let content = object(request.body.json().get())?;
    let (room, kind, key) = (&request.room_id, request.event_type, &request.state_key);
    let id = services
        .lifecycle
        .send_state(&requester, room, kind, key, content)
        .await?;
    Json::of(&json!({ "event_id": id }))
}
