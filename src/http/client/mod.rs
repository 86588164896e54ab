//! The client-server API, one file per section of the specification.

mod account;
mod account_data;
mod devices;
mod discovery;
mod filters;
mod membership;
mod profile;
mod push_rules;
mod registration;
mod send;
mod session;
mod sync;

use super::routes::Routes;

pub(super) fn routes(routes: Routes) -> Routes {
    let routes = discovery::routes(routes);
    let routes = session::routes(routes);
    let routes = registration::routes(routes);
    let routes = account::routes(routes);
    let routes = devices::routes(routes);
    let routes = profile::routes(routes);
    let routes = account_data::routes(routes);
    let routes = push_rules::routes(routes);
    let routes = filters::routes(routes);
    let routes = membership::routes(routes);
    let routes = send::routes(routes);
    sync::routes(routes)
}
