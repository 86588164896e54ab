//! The server-server API, one file per section of the specification.

mod discovery;

use super::routes::Routes;

pub(super) fn routes(routes: Routes) -> Routes {
    discovery::routes(routes)
}
