//! The server-server API, one file per section of the specification.

pub(super) mod coding;
mod events;
mod handshake;
mod keys;
mod peers;
mod query;
mod transactions;
mod version;

use super::routes::Routes;

pub(super) fn routes(routes: Routes) -> Routes {
    let routes = version::routes(routes);
    let routes = keys::routes(routes);
    let routes = peers::routes(routes);
    let routes = handshake::routes(routes);
    let routes = transactions::routes(routes);
    let routes = events::routes(routes);
    query::routes(routes)
}
