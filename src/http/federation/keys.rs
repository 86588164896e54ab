//! "Retrieving server keys": our own, and those of others that we vouch for.

use std::sync::Arc;

use ruma::{
    OwnedServerName,
    api::{
        IncomingRequest,
        auth_scheme::NoAuthentication,
        error::{DeserializationError, Error as RumaError},
        federation::discovery::{
            get_remote_server_keys, get_remote_server_keys_batch, get_server_keys,
        },
    },
    exports::{serde::de::value, serde_html_form},
    metadata,
};
use serde::Deserialize;

use crate::{
    error::Result,
    http::{extract::Ruma, respond::Json, routes::Routes},
    protocol::integrity::canonical,
    service::{Services, keyring::Asked},
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .on(own)
        .on(own_by_id)
        .on(of_one)
        .on(of_one_by_id)
        .on(of_many)
}

async fn own(services: Arc<Services>, _: Ruma<get_server_keys::v2::Request>) -> Result<Json> {
    services.keyring.admit_strangers()?;
    Ok(Json(canonical(&services.keyring.document())))
}

/// The same with the id of a key, as the specification had it before version 1.4. The whole document is the answer in
/// any case.
struct OwnById;

metadata! {
    @for OwnById,
    method: GET,
    rate_limited: false,
    authentication: NoAuthentication,
    path: "/_matrix/key/v2/server/{key_id}",
}

impl IncomingRequest for OwnById {
    type EndpointError = RumaError;
    type OutgoingResponse = get_server_keys::v2::Response;

    fn try_from_http_request_inner(
        _: http::Request<&[u8]>,
        _: &[&str],
    ) -> Result<Self, DeserializationError> {
        Ok(Self)
    }
}

async fn own_by_id(services: Arc<Services>, _: Ruma<OwnById>) -> Result<Json> {
    services.keyring.admit_strangers()?;
    Ok(Json(canonical(&services.keyring.document())))
}

/// What one may say about the time; ruma's type would ask the system's clock when nothing is said.
#[derive(Default, Deserialize)]
struct Criteria {
    minimum_valid_until_ts: Option<u64>,
}

fn criteria(request: &http::Request<&[u8]>) -> Result<Criteria, DeserializationError> {
    match request.uri().query() {
        Some(query) => Ok(serde_html_form::from_str(query)?),
        None => Ok(Criteria::default()),
    }
}

struct OfOne {
    server: OwnedServerName,
    criteria: Criteria,
}

metadata! {
    @for OfOne,
    method: GET,
    rate_limited: false,
    authentication: NoAuthentication,
    path: "/_matrix/key/v2/query/{server_name}",
}

impl IncomingRequest for OfOne {
    type EndpointError = RumaError;
    type OutgoingResponse = get_remote_server_keys::v2::Response;

    fn try_from_http_request_inner(
        request: http::Request<&[u8]>,
        path: &[&str],
    ) -> Result<Self, DeserializationError> {
        let path = value::SeqDeserializer::<_, value::Error>::new(path.iter().copied());
        let (server,) = <(OwnedServerName,)>::deserialize(path)?;
        let criteria = criteria(&request)?;
        Ok(Self { server, criteria })
    }
}

async fn of_one(services: Arc<Services>, Ruma { request, .. }: Ruma<OfOne>) -> Result<Json> {
    let asked = Asked {
        server: request.server,
        key_id: None,
        valid_until: request.criteria.minimum_valid_until_ts,
    };
    answer(&services, vec![asked]).await
}

/// The same with the id of a key, as the specification had it before version 1.4.
struct OfOneById {
    server: OwnedServerName,
    key_id: String,
    criteria: Criteria,
}

metadata! {
    @for OfOneById,
    method: GET,
    rate_limited: false,
    authentication: NoAuthentication,
    path: "/_matrix/key/v2/query/{server_name}/{key_id}",
}

impl IncomingRequest for OfOneById {
    type EndpointError = RumaError;
    type OutgoingResponse = get_remote_server_keys::v2::Response;

    fn try_from_http_request_inner(
        request: http::Request<&[u8]>,
        path: &[&str],
    ) -> Result<Self, DeserializationError> {
        let path = value::SeqDeserializer::<_, value::Error>::new(path.iter().copied());
        let (server, key_id) = <(OwnedServerName, String)>::deserialize(path)?;
        Ok(Self {
            server,
            key_id,
            criteria: criteria(&request)?,
        })
    }
}

async fn of_one_by_id(
    services: Arc<Services>,
    Ruma { request, .. }: Ruma<OfOneById>,
) -> Result<Json> {
    let asked = Asked {
        server: request.server,
        key_id: Some(request.key_id),
        valid_until: request.criteria.minimum_valid_until_ts,
    };
    answer(&services, vec![asked]).await
}

async fn of_many(
    services: Arc<Services>,
    Ruma { request, .. }: Ruma<get_remote_server_keys_batch::v2::Request>,
) -> Result<Json> {
    let mut asked = Vec::new();
    for (server, keys) in request.server_keys {
        if keys.is_empty() {
            asked.push(Asked {
                server: server.clone(),
                key_id: None,
                valid_until: None,
            });
        }
        asked.extend(keys.into_iter().map(|(key_id, criteria)| {
            Asked {
                server: server.clone(),
                key_id: Some(key_id.to_string()),
                valid_until: criteria
                    .minimum_valid_until_ts
                    .map(|time| u64::from(time.get())),
            }
        }));
    }
    answer(&services, asked).await
}

async fn answer(services: &Services, asked: Vec<Asked>) -> Result<Json> {
    services.keyring.admit_strangers()?;
    let documents = services.keyring.documents(asked).await?;
    let documents: Vec<_> = documents.iter().map(canonical).collect();
    Ok(Json(format!(
        "{{\"server_keys\":[{}]}}",
        documents.join(",")
    )))
}
