//! The admin API, path- and field-compatible with Synapse's.

mod registration;

use super::routes::Routes;

pub(super) fn routes(routes: Routes) -> Routes {
    registration::routes(routes)
}
