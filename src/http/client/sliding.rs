//! Simplified sliding sync. See MSC4186.

use std::{sync::Arc, time::Duration};

use ruma::{
    api::{
        IncomingRequest,
        client::sync::sync_events,
        error::{DeserializationError, Error as RumaError},
    },
    exports::serde_html_form,
    presence::PresenceState,
};
use serde::{
    Deserialize,
    de::{Error as _, IgnoredAny},
};

use crate::{
    error::{Error, Result},
    http::{
        extract::{Accepts, Ruma, same_endpoint},
        respond::Json,
        routes::Routes,
    },
    protocol::token::SlidingToken,
    service::{
        Services,
        sync::{Asked, SlidingRequest},
    },
};

pub(super) fn routes(routes: Routes) -> Routes {
    let accepts = Accepts {
        guests: true,
        only_reads: true,
        ..Accepts::USUAL
    };
    routes.accepting(accepts, sliding)
}

/// The request with all of its filters, some of which ruma does not know.
struct Sliding {
    query: Query,
    asked: Asked,
}

#[derive(Deserialize)]
struct Query {
    pos: Option<String>,
    #[serde(default)]
    timeout: u64,
    #[serde(default)]
    set_presence: PresenceState,
}

same_endpoint!(Sliding, sync_events::v5::Request);

impl IncomingRequest for Sliding {
    type EndpointError = RumaError;
    type OutgoingResponse = sync_events::v5::Response;

    fn try_from_http_request_inner(
        request: http::Request<&[u8]>,
        _: &[&str],
    ) -> Result<Self, DeserializationError> {
        let query = serde_html_form::from_str(request.uri().query().unwrap_or_default())?;
        let asked = match request.into_body() {
            b"" => Asked::default(),
            body => serde_json::from_slice(body).map_err(|error| {
                // A tuple that is too long is told as if it were no JSON.
                match serde_json::from_slice::<IgnoredAny>(body) {
                    Ok(_) => serde_json::Error::custom(error),
                    Err(error) => error,
                }
            })?,
        };
        Ok(Self { query, asked })
    }
}

async fn sliding(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<Sliding>,
) -> Result<Json> {
    let Sliding { query, asked } = request;
    let pos = query.pos.filter(|pos| !pos.is_empty());
    let pos = pos.map(|pos| pos.parse::<SlidingToken>()).transpose();
    let request = SlidingRequest {
        // What this server has not given out it does not know.
        pos: pos.map_err(|_| Error::unknown_pos())?,
        timeout: Duration::from_millis(query.timeout),
        asked,
    };
    let _until_answered = services.presence.syncing(&requester, &query.set_presence)?;
    Ok(Json(services.sync.sliding(&requester, request).await?))
}
