//! Asking a room's policy server to sign an event. See "Asking for a Policy Server signature on an event" in the
//! server-server API.

use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use quick_cache::sync::Cache;
use ruma::{OwnedServerName, ServerName, room_version_rules::RoomVersionRules};

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

/// So many questions in a row that were not answered mean that it is away: one may have been too hard for it.
const MOST_SILENT: u32 = 2;

/// So long it is not asked again by those who wait for the answer.
const AWAY: Duration = Duration::from_secs(30);

/// How many such servers are remembered.
const MOST_REMEMBERED: usize = 1_000;

/// What it may say to a client by way of us. Other codes mean something else to whoever hears them from us: that they
/// must log in again, that we do not know the endpoint.
const VERBATIM: [&str; 5] = [
    "M_FORBIDDEN",
    "M_NOT_FOUND",
    "M_LIMIT_EXCEEDED",
    "M_BAD_JSON",
    "M_NOT_JSON",
];

/// Policy servers that do not answer. Whoever wants to do something in a room of theirs, or in many, is not to wait
/// each time to find that out.
pub struct Silent(Cache<OwnedServerName, Silence>);

#[derive(Clone)]
struct Silence {
    questions: u32,
    since: Instant,
    error: remote::Error,
}

impl Default for Silent {
    fn default() -> Self {
        Self(Cache::new(MOST_REMEMBERED))
    }
}

impl Silent {
    /// Why a server need not be asked now.
    fn problem(&self, server: &ServerName, now: Instant) -> Option<remote::Error> {
        let silence = self.0.get(server)?;
        let is_away = silence.questions >= MOST_SILENT && now < silence.since + AWAY;
        is_away.then_some(silence.error)
    }

    /// A question was not answered.
    fn note(&self, error: &remote::Error, now: Instant) {
        let before = self.0.get(&error.server);
        let silence = Silence {
            questions: before
                .map_or(0, |before| before.questions)
                .saturating_add(1),
            since: now,
            error: error.clone(),
        };
        self.0.insert(error.server.clone(), silence);
    }

    /// It is there.
    pub(super) fn heard(&self, server: &ServerName) {
        self.0.remove(server);
    }
}

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
        let now = self.0.clock.instant();
        match self.0.silent.problem(policy.name(), now) {
            Some(error) => Err(refusal(error)),
            None => self.signed_by(policy, event, rules).await,
        }
    }

    async fn signed_by(
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
            if error.kind.is_silence() {
                self.0.silent.note(&error, self.0.clock.instant());
            } else {
                self.0.silent.heard(server);
            }
            refusal(error)
        })?;
        self.0.silent.heard(server);
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
        // Nobody sends it a second time, so whoever may be there after all is asked.
        match self.signed_by(policy, &pdu.event, rules).await {
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
