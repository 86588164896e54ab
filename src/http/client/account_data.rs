//! "Client config" (account data) and "Room tagging".

use std::sync::Arc;

use ruma::{
    OwnedRoomId, OwnedUserId,
    api::{
        IncomingRequest,
        auth_scheme::AccessToken,
        client::{
            config::{
                get_global_account_data, get_room_account_data, set_global_account_data,
                set_room_account_data,
            },
            tag::{create_tag, delete_tag, get_tags},
        },
        error::{DeserializationError, Error as RumaError},
    },
    exports::serde::{Deserialize as _, de::value},
    metadata,
};
use serde_json::json;

use crate::{
    error::{Error, Result},
    http::{extract::Ruma, respond::Json, routes::Routes},
    service::Services,
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .on(get_global)
        .on(set_global)
        .on(get_of_room)
        .on(set_of_room)
        .on(delete_global)
        .on(delete_of_room)
        .on(tags)
        .on(set_tag)
        .on(delete_tag)
}

async fn get_global(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<get_global_account_data::v3::Request>,
) -> Result<Json> {
    requester.must_be(&request.user_id)?;
    let data_type = request.event_type.to_string();
    found(
        services
            .accounts
            .account_data(&requester, None, &data_type)?,
    )
}

async fn set_global(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<set_global_account_data::v3::Request>,
) -> Result<set_global_account_data::v3::Response> {
    requester.must_be(&request.user_id)?;
    let (data_type, content) = (request.event_type.to_string(), request.data.json().get());
    services
        .accounts
        .set_account_data(&requester, None, &data_type, content)
        .await?;
    Ok(set_global_account_data::v3::Response::new())
}

async fn get_of_room(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<get_room_account_data::v3::Request>,
) -> Result<Json> {
    requester.must_be(&request.user_id)?;
    let (room, data_type) = (Some(&*request.room_id), request.event_type.to_string());
    found(
        services
            .accounts
            .account_data(&requester, room, &data_type)?,
    )
}

async fn set_of_room(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<set_room_account_data::v3::Request>,
) -> Result<set_room_account_data::v3::Response> {
    requester.must_be(&request.user_id)?;
    let (data_type, content) = (request.event_type.to_string(), request.data.json().get());
    services
        .accounts
        .set_account_data(&requester, Some(&request.room_id), &data_type, content)
        .await?;
    Ok(set_room_account_data::v3::Response::new())
}

/// Deletes what a user keeps globally. See MSC3391.
struct DeleteGlobal {
    user_id: OwnedUserId,
    event_type: String,
}

metadata! {
    @for DeleteGlobal,
    method: DELETE,
    rate_limited: false,
    authentication: AccessToken,
    path: "/_matrix/client/unstable/org.matrix.msc3391/user/{user_id}/account_data/{event_type}",
}

impl IncomingRequest for DeleteGlobal {
    type EndpointError = RumaError;
    type OutgoingResponse = set_global_account_data::v3::Response;

    fn try_from_http_request_inner(
        _: http::Request<&[u8]>,
        path: &[&str],
    ) -> Result<Self, DeserializationError> {
        let path = value::SeqDeserializer::<_, value::Error>::new(path.iter().copied());
        let (user_id, event_type) = <(OwnedUserId, String)>::deserialize(path)?;
        Ok(Self {
            user_id,
            event_type,
        })
    }
}

async fn delete_global(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<DeleteGlobal>,
) -> Result<set_global_account_data::v3::Response> {
    requester.must_be(&request.user_id)?;
    let accounts = &services.accounts;
    accounts
        .delete_account_data(&requester, None, &request.event_type)
        .await?;
    Ok(set_global_account_data::v3::Response::new())
}

/// Deletes what a user keeps for a room. See MSC3391.
struct DeleteOfRoom {
    user_id: OwnedUserId,
    room_id: OwnedRoomId,
    event_type: String,
}

metadata! {
    @for DeleteOfRoom,
    method: DELETE,
    rate_limited: false,
    authentication: AccessToken,
    path: "/_matrix/client/unstable/org.matrix.msc3391/user/{user_id}/rooms/{room_id}/account_data/{event_type}",
}

impl IncomingRequest for DeleteOfRoom {
    type EndpointError = RumaError;
    type OutgoingResponse = set_room_account_data::v3::Response;

    fn try_from_http_request_inner(
        _: http::Request<&[u8]>,
        path: &[&str],
    ) -> Result<Self, DeserializationError> {
        let path = value::SeqDeserializer::<_, value::Error>::new(path.iter().copied());
        let (user_id, room_id, event_type) =
            <(OwnedUserId, OwnedRoomId, String)>::deserialize(path)?;
        Ok(Self {
            user_id,
            room_id,
            event_type,
        })
    }
}

async fn delete_of_room(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<DeleteOfRoom>,
) -> Result<set_room_account_data::v3::Response> {
    requester.must_be(&request.user_id)?;
    let (accounts, room) = (&services.accounts, Some(&*request.room_id));
    accounts
        .delete_account_data(&requester, room, &request.event_type)
        .await?;
    Ok(set_room_account_data::v3::Response::new())
}

fn found(content: Option<String>) -> Result<Json> {
    let content = content.ok_or_else(|| Error::not_found("Account data of this type"))?;
    Ok(Json(content))
}

async fn tags(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<get_tags::v3::Request>,
) -> Result<Json> {
    requester.must_be(&request.user_id)?;
    let tags = services.accounts.tags(&requester, &request.room_id)?;
    Json::of(&json!({ "tags": tags }))
}

async fn set_tag(
    services: Arc<Services>,
    Ruma {
        request,
        requester,
        body,
        ..
    }: Ruma<create_tag::v3::Request>,
) -> Result<create_tag::v3::Response> {
    requester.must_be(&request.user_id)?;
    // As it came, with members that ruma's type does not keep.
    services
        .accounts
        .set_tag(&requester, &request.room_id, &request.tag, &body)
        .await?;
    Ok(create_tag::v3::Response::new())
}

async fn delete_tag(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<delete_tag::v3::Request>,
) -> Result<delete_tag::v3::Response> {
    requester.must_be(&request.user_id)?;
    services
        .accounts
        .delete_tag(&requester, &request.room_id, &request.tag)
        .await?;
    Ok(delete_tag::v3::Response::new())
}
