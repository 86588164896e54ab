//! "User Directory".

use std::sync::Arc;

use ruma::api::client::user_directory::search_users;

use super::events::beside;
use crate::{
    error::Result,
    http::{extract::Ruma, respond::Json, routes::Routes},
    service::Services,
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes.on(search)
}

async fn search(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<search_users::v3::Request>,
) -> Result<Json> {
    let limit = u64::from(request.limit);
    let found = beside(services, move |services| {
        let directory = &services.user_directory;
        directory.search(&requester, &request.search_term, Some(limit))
    });
    Json::of(&found.await?)
}
