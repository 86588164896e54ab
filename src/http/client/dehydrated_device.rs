//! Devices that nobody is logged in with: MSC3814, with its names of before it is in the specification.

use std::sync::Arc;

use ruma::{
    api::{
        IncomingRequest,
        auth_scheme::AccessToken,
        client::dehydrated_device::{
            delete_dehydrated_device, get_dehydrated_device, get_events, put_dehydrated_device,
        },
        error::{DeserializationError, Error as RumaError},
    },
    exports::{serde::de::value, serde_html_form},
    metadata,
};
use serde::Deserialize;
use serde_json::json;

use crate::{
    error::{Error, Result},
    http::{extract::Ruma, respond::Json, routes::Routes},
    protocol::format::push_string,
    service::{
        Requester, Services,
        e2ee::{NewDehydrated, Upload},
    },
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes.on(put).on(get).on(delete).on(events).on(next_events)
}

async fn put(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<put_dehydrated_device::unstable::Request>,
) -> Result<Json> {
    let one_time = request.one_time_keys.into_iter();
    let fallback = request.fallback_keys.into_iter();
    let new = NewDehydrated {
        device: request.device_id.to_string(),
        display_name: request.initial_device_display_name,
        data: request.device_data.into_json(),
        keys: Upload {
            device_keys: Some(request.device_keys.into_json()),
            one_time: one_time
                .map(|(id, key)| (id.to_string(), key.into_json()))
                .collect(),
            fallback: fallback
                .map(|(id, key)| (id.to_string(), key.into_json()))
                .collect(),
        },
    };
    services.encryption.dehydrate(&requester, new).await?;
    Json::of(&json!({ "device_id": request.device_id }))
}

async fn get(
    services: Arc<Services>,
    Ruma { requester, .. }: Ruma<get_dehydrated_device::unstable::Request>,
) -> Result<Json> {
    let (device, data) = services.encryption.dehydrated(&requester)?;
    Json::of(&json!({ "device_id": device, "device_data": data }))
}

async fn delete(
    services: Arc<Services>,
    Ruma { requester, .. }: Ruma<delete_dehydrated_device::unstable::Request>,
) -> Result<Json> {
    let device = services.encryption.delete_dehydrated(&requester).await?;
    Json::of(&json!({ "device_id": device }))
}

/// The way of older clients, which go on until nothing comes any more.
async fn events(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<get_events::unstable::Request>,
) -> Result<Json> {
    let (device, from) = (request.device_id.as_str(), request.next_batch.as_deref());
    page(&services, &requester, (device, from, None), true)
}

/// The way of newer clients, which are told whether there is more.
struct NextEvents {
    device: String,
    from: Option<String>,
    limit: Option<usize>,
}

metadata! {
    @for NextEvents,
    method: GET,
    rate_limited: false,
    authentication: AccessToken,
    path: "/_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device/{device_id}/events",
}

impl IncomingRequest for NextEvents {
    type EndpointError = RumaError;
    type OutgoingResponse = get_events::unstable::Response;

    fn try_from_http_request_inner(
        request: http::Request<&[u8]>,
        path: &[&str],
    ) -> Result<Self, DeserializationError> {
        #[derive(Deserialize)]
        struct Query {
            from: Option<String>,
            limit: Option<usize>,
        }
        let path = value::SeqDeserializer::<_, value::Error>::new(path.iter().copied());
        let (device,) = <(String,)>::deserialize(path)?;
        let query = request.uri().query().unwrap_or_default();
        let Query { from, limit } = serde_html_form::from_str(query)?;
        Ok(Self {
            device,
            from,
            limit,
        })
    }
}

async fn next_events(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<NextEvents>,
) -> Result<Json> {
    if request.limit == Some(0) {
        return Err(Error::invalid_param("`limit` must be greater than zero"));
    }
    let (device, from) = (request.device.as_str(), request.from.as_deref());
    page(&services, &requester, (device, from, request.limit), false)
}

/// A page, with the place of the next where `always` or if there is one.
fn page(
    services: &Services,
    requester: &Requester,
    (device, from, limit): (&str, Option<&str>, Option<usize>),
    always: bool,
) -> Result<Json> {
    let encryption = &services.encryption;
    let waiting = encryption.dehydrated_events(requester, device, from, limit)?;
    let mut json = format!("{{\"events\":[{}]", waiting.events);
    if always || waiting.more {
        json.push_str(",\"next_batch\":");
        push_string(&mut json, &waiting.next);
    }
    json.push('}');
    Ok(Json(json))
}
