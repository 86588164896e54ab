//! "Filtering".

use std::sync::Arc;

use ruma::{
    OwnedUserId,
    api::{
        IncomingRequest,
        client::filter::{create_filter, get_filter},
        error::{DeserializationError, Error as RumaError},
    },
    exports::serde::{Deserialize as _, de::value},
};
use serde_json::value::RawValue;

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
    routes.also_guests(create).also_guests(get)
}

/// A filter as it came: it is given back with all that the client wrote.
struct Create {
    user_id: OwnedUserId,
    filter: Box<RawValue>,
}

same_endpoint!(Create, create_filter::v3::Request);

impl IncomingRequest for Create {
    type EndpointError = RumaError;
    type OutgoingResponse = create_filter::v3::Response;

    fn try_from_http_request_inner(
        request: http::Request<&[u8]>,
        path: &[&str],
    ) -> Result<Self, DeserializationError> {
        let path = value::SeqDeserializer::<_, value::Error>::new(path.iter().copied());
        let (user_id,) = <(OwnedUserId,)>::deserialize(path)?;
        let filter = serde_json::from_slice(request.body())?;
        Ok(Self { user_id, filter })
    }
}

async fn create(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<Create>,
) -> Result<create_filter::v3::Response> {
    requester.must_be(&request.user_id)?;
    let json = request.filter.get();
    let number = services.accounts.add_filter(&requester, json).await?;
    Ok(create_filter::v3::Response::new(number.to_string()))
}

async fn get(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<get_filter::v3::Request>,
) -> Result<Json> {
    requester.must_be(&request.user_id)?;
    let json = services
        .accounts
        .filter_json(&requester, &request.filter_id)?;
    Ok(Json(json.ok_or_else(|| Error::not_found("The filter"))?))
}
