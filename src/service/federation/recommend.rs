//! Asking a room's policy server to sign an event. See "Asking for a Policy Server signature on an event" in the
//! server-server API.

use std::time::Duration;

use http::{Method, StatusCode};
use ruma::room_version_rules::RoomVersionRules;

use super::{
    Federation,
    handshake::{ask::nonsense, malformed},
};
use crate::{
    error::{Error, Result},
    protocol::{
        event::Event,
        format,
        ingest::{self, Pdu},
        policy::PolicyServer,
    },
    remote::{self, Kind, Limits},
};

const SIGN: &str = "/_matrix/policy/v1/sign";

/// It may have to look at pictures, and somebody at a screen waits for it.
const QUESTION: Limits = Limits {
    time: Duration::from_secs(20),
    body: 64 << 10,
};

/// What it may say to a client by way of us. Other codes mean something else to whoever hears them from us: that they
/// must log in again, that we do not know the endpoint.
const VERBATIM: [&str; 5] = [
    "M_FORBIDDEN",
    "M_NOT_FOUND",
    "M_LIMIT_EXCEEDED",
    "M_BAD_JSON",
    "M_NOT_JSON",
];

impl Federation {
    /// An event with the signature of a policy server added to it.
    ///
    /// # Errors
    /// What the policy server says against it, or why it can not be asked. The event is not to be sent then.
    pub async fn recommended(
        &self,
        policy: &PolicyServer,
        event: &Event,
        rules: &'static RoomVersionRules,
    ) -> Result<Pdu> {
        let server = policy.name();
        let object = event.to_canonical();
        let mut object = object.map_err(|e| Error::Internal(e.to_string()))?;
        let body = format::federation(event).into_bytes();
        let asked = self
            .0
            .remote
            .send_signed(server, Method::POST, SIGN, body, QUESTION);
        let answer = Box::pin(asked).await.map_err(|error| {
            self.complain_of(&error);
            refusal(error)
        })?;
        let answer = serde_json::from_slice(answer.body()).map_err(|e| e.to_string());
        answer
            .and_then(|answer| {
                let signed = policy.sign(&mut object, &answer, rules);
                signed.map_err(|bad| bad.to_string())
            })
            .map_err(|problem| {
                self.complain_of(&Kind::BadAnswer(problem.clone()).of(server));
                nonsense(server, problem)
            })?;
        let received = ingest::receive_object(object, rules);
        Ok(received.map_err(|bad| malformed(&bad))?.signed())
    }

    /// The same for an event of another server: without the signature it is one that was refused.
    ///
    /// # Errors
    /// When the store fails.
    pub(super) async fn judged(
        &self,
        policy: &PolicyServer,
        pdu: &Pdu,
        rules: &'static RoomVersionRules,
    ) -> Result<Pdu> {
        match self.recommended(policy, &pdu.event, rules).await {
            Ok(signed) => Ok(signed),
            Err(error) if error.is_internal() => Err(error),
            Err(error) => {
                let id = &pdu.event.header.id;
                tracing::debug!(%id, server = %policy.name(), %error, "an event is not recommended");
                Ok(Pdu {
                    refused: true,
                    ..pdu.clone()
                })
            }
        }
    }

    /// Tells the log once in a while of a policy server that is of no use: nobody can speak in its rooms.
    fn complain_of(&self, error: &remote::Error) {
        let server = &error.server;
        let is_answer = error
            .refusal()
            .is_some_and(|(status, _)| status.is_client_error());
        if !is_answer && self.0.inbox.may_complain(server, self.0.clock.instant()) {
            tracing::warn!(%server, problem = %error.kind, "a policy server does not sign, so nothing can be sent to its rooms");
        }
    }
}

/// What the policy server has said is for whoever wants to send the event; all else is a matter between servers.
fn refusal(error: remote::Error) -> Error {
    let Kind::Status {
        status,
        errcode,
        message,
        retry_after,
    } = &error.kind
    else {
        return error.into();
    };
    let code = VERBATIM.into_iter().find(|known| known == errcode);
    let Some(code) = code.filter(|_| status.is_client_error()) else {
        return error.into();
    };
    let said = Error::api(*status, code, message.clone());
    match retry_after.filter(|_| *status == StatusCode::TOO_MANY_REQUESTS) {
        Some(pause) => said.with(
            "retry_after_ms",
            u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
        ),
        None => said,
    }
}
