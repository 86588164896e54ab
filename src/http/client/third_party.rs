//! "Third-party Lookups": users and rooms of other networks. Without application services there are none.

use std::sync::Arc;

use ruma::api::client::thirdparty::{
    get_location_for_protocol, get_location_for_room_alias, get_protocol, get_protocols,
    get_user_for_protocol, get_user_for_user_id,
};

use crate::{
    error::{Error, Result},
    http::{extract::Ruma, routes::Routes},
    service::Services,
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .on(protocols)
        .on(protocol)
        .on(locations)
        .on(users)
        .on(locations_of_alias)
        .on(users_of_user)
}

async fn protocols(
    _: Arc<Services>,
    _: Ruma<get_protocols::v3::Request>,
) -> Result<get_protocols::v3::Response> {
    Ok(get_protocols::v3::Response::new([].into()))
}

async fn protocol(
    _: Arc<Services>,
    _: Ruma<get_protocol::v3::Request>,
) -> Result<get_protocol::v3::Response> {
    Err(unknown())
}

async fn locations(
    _: Arc<Services>,
    _: Ruma<get_location_for_protocol::v3::Request>,
) -> Result<get_location_for_protocol::v3::Response> {
    Err(unknown())
}

async fn users(
    _: Arc<Services>,
    _: Ruma<get_user_for_protocol::v3::Request>,
) -> Result<get_user_for_protocol::v3::Response> {
    Err(unknown())
}

async fn locations_of_alias(
    _: Arc<Services>,
    _: Ruma<get_location_for_room_alias::v3::Request>,
) -> Result<get_location_for_room_alias::v3::Response> {
    Ok(get_location_for_room_alias::v3::Response::new(Vec::new()))
}

async fn users_of_user(
    _: Arc<Services>,
    _: Ruma<get_user_for_user_id::v3::Request>,
) -> Result<get_user_for_user_id::v3::Response> {
    Ok(get_user_for_user_id::v3::Response::new(Vec::new()))
}

fn unknown() -> Error {
    Error::not_found("A network of this name")
}
