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
    http::{
        extract::{Accepts, Ruma},
        respond::Json,
        routes::Routes,
    },
    protocol::integrity::canonical,
    service::{Services, keyring::Asked},
};

pub(super) fn routes(routes: Routes) -> Routes {
    // With the id of a key behind it, as the specification had both before version 1.4. All keys are the answer in any
    // case.
    const BY_ID: &str = "/_matrix/key/v2/server/{key_id}";
    const OF_ONE_BY_ID: &str = "/_matrix/key/v2/query/{server_name}/{key_id}";
    routes
        .on(own)
        .at(BY_ID, Accepts::USUAL, own)
        .on(of_one)
        .at(OF_ONE_BY_ID, Accepts::USUAL, of_one)
        .on(of_many)
}

async fn own(services: Arc<Services>, _: Ruma<get_server_keys::v2::Request>) -> Result<Json> {
    services.keyring.admit_strangers()?;
    Ok(Json(canonical(&services.keyring.document())))
}

/// What one may say about the time; ruma's type would ask the system's clock when nothing is said.
#[derive(Default, Deserialize)]
struct Criteria {
    minimum_valid_until_ts: Option<u64>,
}

/// Asks about one server; with the id of a key, as the specification had it before version 1.4, for that one.
struct OfOne(Asked);

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
        let (server, key_id) = path.split_at(path.len().min(1));
        let server = value::SeqDeserializer::<_, value::Error>::new(server.iter().copied());
        let (server,) = <(OwnedServerName,)>::deserialize(server)?;
        let criteria: Criteria = match request.uri().query() {
            Some(query) => serde_html_form::from_str(query)?,
            None => Criteria::default(),
        };
        Ok(Self(Asked {
            server,
            key_id: key_id.first().map(|&id| id.to_owned()),
            valid_until: criteria.minimum_valid_until_ts,
        }))
    }
}

async fn of_one(services: Arc<Services>, Ruma { request, .. }: Ruma<OfOne>) -> Result<Json> {
    answer(&services, vec![request.0]).await
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
