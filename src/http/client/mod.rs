//! The client-server API, one file per section of the specification.

mod events;
mod membership;
mod presence;
mod receipts;
mod registration;
mod relations;
mod send;
mod session;
mod state;
mod sync;
mod typing;

use super::routes::Routes;

pub(super) fn routes(routes: Routes) -> Routes {
    let routes = session::routes(routes);
    let routes = registration::routes(routes);
    let routes = membership::routes(routes);
    let routes = send::routes(routes);
    let routes = events::routes(routes);
    let routes = state::routes(routes);
    let routes = relations::routes(routes);
    let routes = typing::routes(routes);
    let routes = receipts::routes(routes);
    let routes = presence::routes(routes);
    sync::routes(routes)
}
