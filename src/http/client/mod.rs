//! The client-server API, one file per section of the specification.

mod membership;
mod registration;
mod send;
mod session;
mod sync;

use super::routes::Routes;

pub(super) fn routes(routes: Routes) -> Routes {
    let routes = session::routes(routes);
    let routes = registration::routes(routes);
    let routes = membership::routes(routes);
    let routes = send::routes(routes);
    sync::routes(routes)
}
