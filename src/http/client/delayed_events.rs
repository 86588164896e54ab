//! Events that are sent later: MSC4140, with its names of before it is in the specification.

use std::{sync::Arc, time::Duration};

use ruma::{
    api::{
        IncomingRequest,
        auth_scheme::NoAuthentication,
        client::delayed_events::{
            get_all_delayed_events, get_delayed_event, send_delayed_event,
            update_delayed_event::{UpdateAction, unstable_v1, unstable_v2},
        },
        error::{DeserializationError, Error as RumaError},
    },
    exports::{serde::de::value, serde_html_form},
};
use serde::Deserialize;
use serde_json::json;

use crate::{
    error::{Error, Result},
    http::{
        extract::{Ruma, same_endpoint},
        respond::Json,
        routes::Routes,
        unrecognized,
    },
    service::{Requester, Services, delayed::NewDelayed},
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .also_guests(send)
        .also_guests(list)
        .also_guests(get)
        .on(act)
        .on(act_by_path)
}

#[derive(Deserialize)]
struct Query {
    #[serde(rename = "org.matrix.msc4140.delay")]
    delay: Option<String>,
}

/// The delay that the query of a request to send an event asks for.
pub(super) fn delay(query: &str) -> Result<Option<Duration>> {
    let query: Query = serde_html_form::from_str(query)
        .map_err(|e| Error::invalid_param(format!("org.matrix.msc4140.delay: {e}")))?;
    let Some(delay) = query.delay else {
        return Ok(None);
    };
    let milliseconds = delay.parse().map_err(|_| {
        Error::invalid_param("org.matrix.msc4140.delay must be a number of milliseconds")
    })?;
    Ok(Some(Duration::from_millis(milliseconds)))
}

/// Keeps an event for later.
pub(super) async fn add(
    services: &Services,
    requester: &Requester,
    new: NewDelayed<'_>,
) -> Result<Json> {
    let id = services.delayed.add(requester, new).await?;
    services.presence.active(requester.nid)?;
    Json::of(&json!({ "delay_id": id }))
}

async fn send(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<send_delayed_event::unstable::Request>,
) -> Result<Json> {
    let new = NewDelayed {
        room: &request.room_id,
        event_type: request.event_type.to_string(),
        state_key: request.state_key,
        content: Some(request.content.json().get()),
        delay: request.delay,
        txn_id: Some(request.txn_id.as_str()),
    };
    add(&services, &requester, new).await
}

/// Which events are listed: those that wait, as it was before there were others to list, or those that do not any more.
#[derive(Deserialize)]
struct Listing {
    #[serde(default)]
    status: Status,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    #[default]
    Scheduled,
    Finalised,
}

async fn list(
    services: Arc<Services>,
    Ruma {
        requester, query, ..
    }: Ruma<get_all_delayed_events::unstable::Request>,
) -> Result<Json> {
    let query: Listing = serde_html_form::from_str(&query)
        .map_err(|_| Error::invalid_param("`status` must be scheduled or finalised"))?;
    let events = match query.status {
        Status::Scheduled => services.delayed.list(&requester)?,
        Status::Finalised => services.delayed.list_ended(&requester)?,
    };
    Json::of(&json!({ "delayed_events": events }))
}

async fn get(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<get_delayed_event::unstable::Request>,
) -> Result<Json> {
    Json::of(&services.delayed.get(&requester, &request.delay_id)?)
}

#[derive(Deserialize)]
struct Body {
    action: UpdateAction,
}

/// Whoever knows the id may act on the event, with a token or without.
struct Act(unstable_v1::Request);

same_endpoint!(Act, unstable_v1::Request, NoAuthentication);

impl IncomingRequest for Act {
    type EndpointError = RumaError;
    type OutgoingResponse = unstable_v1::Response;

    fn try_from_http_request_inner(
        request: http::Request<&[u8]>,
        path: &[&str],
    ) -> Result<Self, DeserializationError> {
        let path = value::SeqDeserializer::<_, value::Error>::new(path.iter().copied());
        let (delay_id,) = <(String,)>::deserialize(path)?;
        let body: Body = serde_json::from_slice(request.body())?;
        Ok(Self(unstable_v1::Request::new(delay_id, body.action)))
    }
}

async fn act(
    services: Arc<Services>,
    Ruma {
        request: Act(request),
        ..
    }: Ruma<Act>,
) -> Result<Json> {
    let unknown = || Error::invalid_param("`action` must be restart, cancel or send");
    carry_out(&services, &request.delay_id, &request.action, unknown).await
}

async fn act_by_path(
    services: Arc<Services>,
    Ruma { request, .. }: Ruma<unstable_v2::Request>,
) -> Result<Json> {
    let (id, action) = (&request.delay_id, &request.action);
    carry_out(&services, id, action, unrecognized).await
}

async fn carry_out(
    services: &Services,
    id: &str,
    action: &UpdateAction,
    unknown: impl FnOnce() -> Error,
) -> Result<Json> {
    match action {
        UpdateAction::Restart => services.delayed.restart(id).await?,
        UpdateAction::Cancel => services.delayed.cancel(id).await?,
        UpdateAction::Send => services.delayed.send(id).await?,
        _ => return Err(unknown()),
    }
    Json::of(&json!({}))
}
