//! "Transactions".

use std::sync::Arc;

use ruma::{
    api::{
        IncomingRequest,
        error::{DeserializationError, Error as RumaError},
        federation::transactions::send_transaction_message,
    },
    exports::serde::de::value,
};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{
    error::Result,
    http::{
        extract::{Accepts, Ruma, same_endpoint},
        respond::Json,
        routes::Routes,
    },
    service::{Services, federation::Transaction},
};

/// 50 events and 100 messages, each of which may have 64 KiB, and what is around them.
const BODY: u64 = 10 << 20;

pub(super) fn routes(routes: Routes) -> Routes {
    let accepts = Accepts {
        body: BODY,
        ..Accepts::USUAL
    };
    routes.accepting(accepts, send)
}

/// Servers write `null` for a list that is empty. What else a transaction says of itself is in the header already.
#[derive(Deserialize)]
struct Body {
    pdus: Option<Vec<Box<RawValue>>>,
    edus: Option<Vec<Box<RawValue>>>,
}

struct Send {
    id: String,
    transaction: Transaction,
}

same_endpoint!(Send, send_transaction_message::v1::Request);

impl IncomingRequest for Send {
    type EndpointError = RumaError;
    type OutgoingResponse = send_transaction_message::v1::Response;

    fn try_from_http_request_inner(
        request: http::Request<&[u8]>,
        path: &[&str],
    ) -> Result<Self, DeserializationError> {
        let path = value::SeqDeserializer::<_, value::Error>::new(path.iter().copied());
        let (id,) = <(String,)>::deserialize(path)?;
        let body: Body = serde_json::from_slice(request.body())?;
        Ok(Self {
            id,
            transaction: Transaction {
                pdus: body.pdus.unwrap_or_default(),
                edus: body.edus.unwrap_or_default(),
            },
        })
    }
}

async fn send(
    services: Arc<Services>,
    Ruma {
        request, requester, ..
    }: Ruma<Send>,
) -> Result<Json> {
    let Send { id, transaction } = request;
    let answer = services
        .federation
        .receive_transaction(&requester.server, &id, transaction);
    answer.await.map(Json)
}
