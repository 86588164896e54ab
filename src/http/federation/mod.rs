//! The server-server API, one file per section of the specification.

pub(super) mod coding;
mod directory;
mod encryption;
mod events;
mod handshake;
mod keys;
mod openid;
mod peers;
mod query;
mod third_party;
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
    let routes = directory::routes(routes);
    let routes = encryption::routes(routes);
    let routes = openid::routes(routes);
    let routes = third_party::routes(routes);
    query::routes(routes)
}
