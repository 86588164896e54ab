//! "Profiles".

use std::sync::Arc;

use ruma::{
    OwnedUserId,
    api::{
        IncomingRequest,
        client::profile::{
            delete_profile_field, get_profile, get_profile_field, set_profile_field,
        },
        error::{DeserializationError, Error as RumaError},
    },
    exports::serde::{Deserialize as _, de::value},
};
use serde_json::{Map, Value, json};

use crate::{
    error::{Error, Result},
    http::{
        extract::{Ruma, same_endpoint},
        respond::Json,
        routes::Routes,
    },
    service::Services,
};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .on(get)
        .on(get_field)
        .also_guests(set_field)
        .on(delete_field)
}

async fn get(
    services: Arc<Services>,
    Ruma { request, .. }: Ruma<get_profile::v3::Request>,
) -> Result<Json> {
    Json::of(&services.profiles.profile(&request.user_id).await?)
}

async fn get_field(
    services: Arc<Services>,
    Ruma { request, .. }: Ruma<get_profile_field::v3::Request>,
) -> Result<Json> {
    let field = request.field.as_str();
    let value = services.profiles.field(&request.user_id, field).await?;
    Json::of(&json!({ field: value }))
}

/// A change with the value as it came: ruma's type gives known fields a shape that older clients do not keep to.
struct SetField {
    user_id: OwnedUserId,
    field: String,
    body: Map<String, Value>,
}

same_endpoint!(SetField, set_profile_field::v3::Request);

impl IncomingRequest for SetField {
    type EndpointError = RumaError;
    type OutgoingResponse = set_profile_field::v3::Response;

    fn try_from_http_request_inner(
        request: http::Request<&[u8]>,
        path: &[&str],
    ) -> Result<Self, DeserializationError> {
        let path = value::SeqDeserializer::<_, value::Error>::new(path.iter().copied());
        let (user_id, field) = <(OwnedUserId, String)>::deserialize(path)?;
        Ok(Self {
            user_id,
            field,
            body: serde_json::from_slice(request.body())?,
        })
    }
}

async fn set_field(
    services: Arc<Services>,
    Ruma {
        mut request,
        requester,
        ..
    }: Ruma<SetField>,
) -> Result<set_profile_field::v3::Response> {
    let value = request.body.remove(&request.field);
    let value = value.ok_or_else(|| Error::missing_param(&request.field))?;
    let (user, field) = (&request.user_id, &*request.field);
    services
        .lifecycle
        .set_profile_field(&requester, user, field, Some(value))
        .await?;
    Ok(set_profile_field::v3::Response::new())
}

async fn delete_field(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<delete_profile_field::v3::Request>,
) -> Result<delete_profile_field::v3::Response> {
    let (user, field) = (&request.user_id, request.field.as_str());
    services
        .lifecycle
        .set_profile_field(&requester, user, field, None)
        .await?;
    Ok(delete_profile_field::v3::Response::new())
}
