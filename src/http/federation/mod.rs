//! The server-server API, one file per section of the specification.

mod handshake;
mod keys;
mod query;
mod version;

use super::routes::Routes;

pub(super) fn routes(routes: Routes) -> Routes {
    let routes = version::routes(routes);
    let routes = keys::routes(routes);
    let routes = handshake::routes(routes);
    query::routes(routes)
}
