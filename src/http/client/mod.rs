//! The client-server API, one file per section of the specification.

mod registration;
mod session;

use super::routes::Routes;

pub(super) fn routes(routes: Routes) -> Routes {
    let routes = session::routes(routes);
    registration::routes(routes)
}
