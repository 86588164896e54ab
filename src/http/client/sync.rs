//! "Syncing".

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
use serde::Deserialize;

use crate::{
    error::{Error, Result},
    http::{
        extract::{Ruma, same_endpoint},
        respond::Json,
        routes::Routes,
    },
    protocol::filter::Filter,
    service::{Requester, Services, sync::SyncRequest},
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes.also_guests(sync)
}

/// The query of a sync, with what clients ask for before the specification has it.
#[derive(Deserialize)]
struct Sync {
    filter: Option<String>,
    since: Option<String>,
    #[serde(default)]
    full_state: bool,
    #[serde(default)]
    set_presence: PresenceState,
    #[serde(default)]
    timeout: u64,
    #[serde(default)]
    use_state_after: bool,
    #[serde(default, rename = "org.matrix.msc4222.use_state_after")]
    use_state_after_unstable: bool,
}

same_endpoint!(Sync, sync_events::v3::Request);

impl IncomingRequest for Sync {
    type EndpointError = RumaError;
    type OutgoingResponse = sync_events::v3::Response;

    fn try_from_http_request_inner(
        request: http::Request<&[u8]>,
        _: &[&str],
    ) -> Result<Self, DeserializationError> {
        Ok(serde_html_form::from_str(
            request.uri().query().unwrap_or_default(),
        )?)
    }
}

async fn sync(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<Sync>,
) -> Result<Json> {
    let since = request.since.filter(|since| !since.is_empty());
    let since = since.map(|since| since.parse()).transpose();
    let asked = SyncRequest {
        since: since.map_err(|e| Error::invalid_param(format!("since: {e}")))?,
        filter: filter(&services, &requester, request.filter.as_deref())?,
        full_state: request.full_state,
        timeout: Duration::from_millis(request.timeout),
        state_after: match (request.use_state_after, request.use_state_after_unstable) {
            (true, _) => Some("state_after"),
            (false, true) => Some("org.matrix.msc4222.state_after"),
            (false, false) => None,
        },
    };
    let _until_answered = services
        .presence
        .syncing(&requester, &request.set_presence)?;
    Ok(Json(services.sync.sync(&requester, asked).await?))
}

/// A filter is given as JSON, or as the number of one that was stored.
fn filter(services: &Services, requester: &Requester, given: Option<&str>) -> Result<Arc<Filter>> {
    match given {
        None | Some("") => Ok(Arc::new(Filter::default())),
        Some(json) if json.starts_with('{') => Filter::from_json(json)
            .map(Arc::new)
            .map_err(|e| Error::invalid_param(e.to_string())),
        Some(id) => services
            .accounts
            .filter(&requester.user_id, id)?
            .ok_or_else(|| Error::invalid_param("There is no such filter")),
    }
}
