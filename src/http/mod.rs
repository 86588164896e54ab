//! The HTTP face of the node: how connections are accepted and bounded, and which endpoints there are.

mod admin;
pub mod body;
mod client;
mod connection;
mod extract;
mod federation;
pub mod peer;
mod respond;
mod rest;
mod routes;
pub mod serve;
mod tls;
mod well_known;

use std::sync::Arc;

use axum::{
    Router,
    extract::Request,
    middleware::{Next, from_fn},
    response::{IntoResponse as _, Response},
};
use http::{HeaderValue, Method, StatusCode, header};

use self::routes::Routes;
use crate::{error::Error, service::Services};

fn routes() -> Routes {
    let routes = client::routes(Routes::new());
    let routes = well_known::routes(routes);
    let routes = federation::routes(routes);
    admin::routes(routes)
}

/// Method and path of every endpoint of the node, in the order in which they are listed.
pub fn endpoints() -> Vec<(Method, String)> {
    routes().list()
}

/// What answers to all of them, and to everything else with an error.
pub fn router(services: Arc<Services>) -> Router {
    routes()
        .finish()
        .fallback(async || unrecognized().into_response())
        .method_not_allowed_fallback(async || {
            no_such(StatusCode::METHOD_NOT_ALLOWED).into_response()
        })
        .layer(from_fn(federation::coding::answer))
        .layer(from_fn(cross_origin))
        .with_state(services)
}

fn unrecognized() -> Error {
    no_such(StatusCode::NOT_FOUND)
}

fn no_such(status: StatusCode) -> Error {
    Error::api(status, "M_UNRECOGNIZED", "There is no such endpoint")
}

/// Lets web apps of any origin in. See "Web browser clients".
async fn cross_origin(request: Request, next: Next) -> Response {
    let mut response = if request.method() == Method::OPTIONS {
        StatusCode::NO_CONTENT.into_response()
    } else {
        next.run(request).await
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
        (
            header::ACCESS_CONTROL_ALLOW_METHODS,
            "GET, POST, PUT, DELETE, OPTIONS",
        ),
        (
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            "X-Requested-With, Content-Type, Authorization",
        ),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}
