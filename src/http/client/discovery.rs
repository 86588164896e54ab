//! "API versions" and "Capabilities negotiation".

use std::{collections::BTreeMap, sync::Arc};

use ruma::api::{
    IncomingRequest,
    auth_scheme::NoAuthentication,
    client::discovery::{get_capabilities, get_supported_versions},
    error::{DeserializationError, Error as RumaError},
};
use serde_json::json;

use crate::{
    error::Result,
    http::{
        extract::{Ruma, same_endpoint},
        respond::Json,
        routes::Routes,
    },
    protocol::version,
    service::{Services, delayed},
};

/// The newest version 1.x of the specification that is served, with all before it.
const NEWEST: u8 = 19;

/// What clients may use before, or beside, the version of the specification that has it.
const FEATURES: &[&str] = &[
    "uk.tcpip.msc4133",
    "uk.tcpip.msc4133.stable",
    "org.matrix.msc3874",
    "org.matrix.msc4222",
    "org.matrix.msc3912",
    "org.matrix.msc4155",
    "org.matrix.msc4380",
    "org.matrix.msc4380.stable",
    // Apps set up cross-signing for a new account only where this is named, whatever version the server serves.
    "org.matrix.e2e_cross_signing",
    // By this alone apps know that the room directory tells rooms from spaces.
    "org.matrix.msc3827.stable",
    "org.matrix.msc3391",
    "org.matrix.msc3890",
    "org.matrix.msc4151",
    "org.matrix.msc4260",
    "uk.half-shot.msc2666.query_mutual_rooms",
    "uk.half-shot.msc2666.query_mutual_rooms.stable",
    "org.matrix.msc3814",
    "org.matrix.msc4306",
    "org.matrix.msc4308",
    "org.matrix.msc4140",
    "org.matrix.msc4143",
    "org.matrix.simplified_msc3575",
];

pub(super) fn routes(routes: Routes) -> Routes {
    routes.on(versions).also_guests(capabilities)
}

/// A request that needs no token. A client asks this before anything else, maybe with a token that has expired.
struct Versions;

same_endpoint!(Versions, get_supported_versions::Request, NoAuthentication);

impl IncomingRequest for Versions {
    type EndpointError = RumaError;
    type OutgoingResponse = get_supported_versions::Response;

    fn try_from_http_request_inner(
        _: http::Request<&[u8]>,
        _: &[&str],
    ) -> Result<Self, DeserializationError> {
        Ok(Self)
    }
}

async fn versions(_: Arc<Services>, _: Ruma<Versions>) -> Result<get_supported_versions::Response> {
    let versions = (1..=NEWEST).map(|minor| format!("v1.{minor}"));
    let mut response = get_supported_versions::Response::new(versions.collect());
    let features = FEATURES.iter().map(|name| ((*name).to_owned(), true));
    response.unstable_features = features.collect::<BTreeMap<_, _>>();
    Ok(response)
}

async fn capabilities(
    services: Arc<Services>,
    _: Ruma<get_capabilities::v3::Request>,
) -> Result<Json> {
    // ruma's type leaves out what is as the specification presumes; saying it is clearer.
    Json::of(&json!({
        "capabilities": {
            "m.change_password": { "enabled": true },
            "m.room_versions": {
                "default": services.config.server.default_room_version,
                "available": version::available(),
            },
            "m.set_displayname": { "enabled": true },
            "m.set_avatar_url": { "enabled": true },
            "m.3pid_changes": { "enabled": false },
            "m.get_login_token": { "enabled": true },
            "m.profile_fields": { "enabled": true },
            "org.matrix.msc4140.delayed_events": {
                "max_delay_ms": delayed::LONGEST_DELAY.as_millis(),
                "max_scheduled": delayed::MOST,
            },
        },
    }))
}
