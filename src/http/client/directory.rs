//! "Room aliases" and "Listing rooms".

use std::sync::Arc;

use ruma::{
    api::client::{
        alias::{create_alias, delete_alias, get_alias},
        directory::{
            get_public_rooms, get_public_rooms_filtered, get_room_visibility, set_room_visibility,
        },
        room::{Visibility, aliases},
    },
    directory::{Filter, RoomNetwork, RoomTypeFilter},
};

use crate::{
    error::{Error, Result},
    http::{extract::Ruma, respond::Json, routes::Routes},
    service::{Services, rooms::Listing},
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .on(create)
        .on(delete)
        .on(find)
        .also_guests(of_room)
        .on(visibility)
        .on(set_visibility)
        .on(public_rooms)
        .also_guests(search)
}

async fn create(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<create_alias::v3::Request>,
) -> Result<create_alias::v3::Response> {
    let (alias, room) = (&request.room_alias, &request.room_id);
    services
        .lifecycle
        .create_alias(&requester, alias, room)
        .await?;
    Ok(create_alias::v3::Response::new())
}

async fn delete(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<delete_alias::v3::Request>,
) -> Result<delete_alias::v3::Response> {
    services
        .lifecycle
        .delete_alias(&requester, &request.room_alias)
        .await?;
    Ok(delete_alias::v3::Response::new())
}

async fn find(
    services: Arc<Services>,
    Ruma { request, .. }: Ruma<get_alias::v3::Request>,
) -> Result<get_alias::v3::Response> {
    let found = services.lifecycle.find_room_by_alias(&request.room_alias);
    let (room, servers) = found.await?;
    Ok(get_alias::v3::Response::new(room, servers))
}

async fn of_room(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<aliases::v3::Request>,
) -> Result<aliases::v3::Response> {
    let aliases = services
        .lifecycle
        .aliases_of(&requester, &request.room_id)?;
    Ok(aliases::v3::Response::new(aliases))
}

async fn visibility(
    services: Arc<Services>,
    Ruma { request, .. }: Ruma<get_room_visibility::v3::Request>,
) -> Result<get_room_visibility::v3::Response> {
    let visibility = if services.lifecycle.is_listed(&request.room_id)? {
        Visibility::Public
    } else {
        Visibility::Private
    };
    Ok(get_room_visibility::v3::Response::new(visibility))
}

async fn set_visibility(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<set_room_visibility::v3::Request>,
) -> Result<set_room_visibility::v3::Response> {
    let listed = match request.visibility {
        Visibility::Public => true,
        Visibility::Private => false,
        other => {
            return Err(Error::invalid_param(format!(
                "There is no visibility {other}"
            )));
        }
    };
    services
        .lifecycle
        .set_listed(&requester, &request.room_id, listed)
        .await?;
    Ok(set_room_visibility::v3::Response::new())
}

async fn public_rooms(
    services: Arc<Services>,
    Ruma { request, .. }: Ruma<get_public_rooms::v3::Request>,
) -> Result<Json> {
    let listing = Listing {
        limit: request.limit.map(u64::from),
        since: request.since,
        ..Listing::default()
    };
    let rooms = services
        .lifecycle
        .public_rooms(request.server.as_deref(), listing);
    Json::of(&rooms.await?)
}

async fn search(
    services: Arc<Services>,
    Ruma { request, .. }: Ruma<get_public_rooms_filtered::v3::Request>,
) -> Result<Json> {
    let page = (request.limit.map(u64::from), request.since);
    let listing = listing(page, request.filter, &request.room_network);
    let rooms = services
        .lifecycle
        .public_rooms(request.server.as_deref(), listing);
    Json::of(&rooms.await?)
}

/// What a client or a server asks of a directory.
pub(in crate::http) fn listing(
    (limit, since): (Option<u64>, Option<String>),
    filter: Filter,
    network: &RoomNetwork,
) -> Listing {
    let types = filter.room_types.iter().map(RoomTypeFilter::as_str);
    let types: Vec<_> = types.map(|kind| kind.map(ToOwned::to_owned)).collect();
    Listing {
        limit,
        since,
        term: filter.generic_search_term.filter(|term| !term.is_empty()),
        types: (!types.is_empty()).then_some(types),
        elsewhere: matches!(network, RoomNetwork::ThirdParty(_)),
    }
}
