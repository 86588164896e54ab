//! How two nodes become peers and look whether they reach each other: ours alone, not of the specification.

use std::sync::Arc;

use ruma::{
    api::{
        IncomingRequest,
        auth_scheme::NoAuthentication,
        error::{DeserializationError, Error as RumaError},
        federation::{
            authentication::ServerSignatures, discovery::get_server_version::v1::Response,
        },
    },
    metadata,
};

use crate::{
    error::Result,
    http::{
        extract::{Accepts, Ruma},
        respond::Json,
        routes::Routes,
    },
    protocol::pairing::PairRequest,
    service::Services,
};

/// A few certificates.
const ACCEPTS: Accepts = Accepts {
    body: 64 << 10,
    ..Accepts::USUAL
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes.accepting(ACCEPTS, pair).accepting(ACCEPTS, test)
}

/// The secret of the code is what lets in.
struct Pair(PairRequest);

metadata! {
    @for Pair,
    method: POST,
    rate_limited: false,
    authentication: NoAuthentication,
    path: "/_kontor/v1/peers/pair",
}

impl IncomingRequest for Pair {
    type EndpointError = RumaError;
    type OutgoingResponse = Response;

    fn try_from_http_request_inner(
        request: http::Request<&[u8]>,
        _: &[&str],
    ) -> Result<Self, DeserializationError> {
        Ok(Self(serde_json::from_slice(request.body())?))
    }
}

async fn pair(services: Arc<Services>, Ruma { request, .. }: Ruma<Pair>) -> Result<Json> {
    Json::of(&services.peers.pair(request.0).await?)
}

struct Test;

metadata! {
    @for Test,
    method: POST,
    rate_limited: false,
    authentication: ServerSignatures,
    path: "/_kontor/v1/peers/test",
}

impl IncomingRequest for Test {
    type EndpointError = RumaError;
    type OutgoingResponse = Response;

    fn try_from_http_request_inner(
        _: http::Request<&[u8]>,
        _: &[&str],
    ) -> Result<Self, DeserializationError> {
        Ok(Self)
    }
}

async fn test(services: Arc<Services>, Ruma { requester, .. }: Ruma<Test>) -> Result<Json> {
    Json::of(&services.peers.test_back(&requester.server).await?)
}
