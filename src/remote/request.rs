//! One request to another server: typed, signed, sent, and its answer or failure in plain words.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use ruma::{
    ServerName,
    api::{
        IncomingResponseExt as _, OutgoingBody as _, OutgoingRequest,
        auth_scheme::NoAuthentication,
        federation::{authentication::ServerSignatures, discovery::get_server_keys},
        path_builder::PathBuilder,
    },
};
use serde::Deserialize;

use super::{
    Limits, Peer, Remote, USER_AGENT,
    error::{Error, Kind, Result, tame},
    keys::keys_in,
};
use crate::protocol::{integrity, server_keys::ServerKeys, xmatrix::XMatrix};

/// The longest error code that is kept of an answer, in characters.
const LONGEST_CODE: usize = 64;

/// The longest explanation that is kept, in characters.
const LONGEST_MESSAGE: usize = 300;

/// The longest time that a server may ask us to stay away.
const LONGEST_PAUSE: Duration = Duration::from_hours(1);

/// A request of the server-server API that is authenticated by `A`. Its path is the same in all versions.
pub trait Ask<A>:
    OutgoingRequest<Authentication = A, PathBuilder: for<'a> PathBuilder<Input<'a> = ()>>
{
}

impl<A, R> Ask<A> for R where
    R: OutgoingRequest<Authentication = A, PathBuilder: for<'a> PathBuilder<Input<'a> = ()>>
{
}

impl Remote {
    /// Sends a signed request that may cost as much as `limits` say.
    ///
    /// # Errors
    /// See [`Kind`].
    pub async fn send_within<R: Ask<ServerSignatures>>(
        &self,
        server: &ServerName,
        request: R,
        limits: Limits,
    ) -> Result<R::IncomingResponse> {
        let (method, uri, body) = parts(request).map_err(|kind| kind.of(server))?;
        let response = self.send_signed(server, method, &uri, body, limits).await?;
        typed::<R>(server, &response)
    }

    /// Sends a request that needs no signature.
    ///
    /// # Errors
    /// See [`Kind`].
    pub async fn send_unsigned<R: Ask<NoAuthentication>>(
        &self,
        server: &ServerName,
        request: R,
        limits: Limits,
    ) -> Result<R::IncomingResponse> {
        let (method, uri, body) = parts(request).map_err(|kind| kind.of(server))?;
        let request = http_request(method, &uri, body, None).map_err(|kind| kind.of(server))?;
        let response = self.exchange(server, request, limits).await?;
        typed::<R>(server, &response)
    }

    /// Signs and sends a request that was put together by hand: path and query, and a body of JSON, empty for none.
    /// What comes back is a success.
    ///
    /// # Errors
    /// See [`Kind`].
    pub async fn send_signed(
        &self,
        server: &ServerName,
        method: Method,
        uri: &str,
        body: Vec<u8>,
        limits: Limits,
    ) -> Result<Response<Bytes>> {
        let signed = || {
            let body = canonical(body)?;
            let content = str::from_utf8(&body).ok().filter(|body| !body.is_empty());
            let (name, key) = (&self.0.name, &self.0.key);
            let signature = XMatrix::sign(method.as_str(), uri, name, server, content, key);
            http_request(method, uri, body, Some(signature))
        };
        let request = signed().map_err(|kind: Kind| kind.of(server))?;
        self.exchange(server, request, limits).await
    }

    /// Sends what is ready; an answer that is no success is an error.
    async fn exchange(
        &self,
        server: &ServerName,
        request: Request<Bytes>,
        limits: Limits,
    ) -> Result<Response<Bytes>> {
        let outcome = async {
            if server == self.0.name {
                return Err(Kind::Request("it is this server itself".to_owned()));
            }
            if !self.admits(server) {
                return Err(Kind::NotAllowed);
            }
            self.0.transport.exchange(server, request, limits).await
        };
        settled(server, outcome.await)
    }

    /// Asks a server for its keys as if it were a peer like this, whatever the peer table says.
    ///
    /// # Errors
    /// See [`Kind`].
    pub async fn server_keys_as(&self, server: &ServerName, peer: &Peer) -> Result<ServerKeys> {
        let (method, uri, body) =
            parts(get_server_keys::v2::Request::new()).map_err(|kind| kind.of(server))?;
        let response = self.ask_as(server, peer, method, &uri, body).await?;
        let response = typed::<get_server_keys::v2::Request>(server, &response)?;
        keys_in(&response, server)
    }

    /// Sends a request without a signature to a server as if it were a peer like this.
    ///
    /// # Errors
    /// See [`Kind`].
    pub async fn ask_as(
        &self,
        server: &ServerName,
        peer: &Peer,
        method: Method,
        uri: &str,
        body: Vec<u8>,
    ) -> Result<Response<Bytes>> {
        let outcome = async {
            if !self.is_on() {
                return Err(Kind::NotAllowed);
            }
            let request = http_request(method, uri, body, None)?;
            let (transport, limits) = (&self.0.transport, Limits::USUAL);
            transport.exchange_as(server, peer, request, limits).await
        };
        settled(server, outcome.await)
    }
}

/// An answer that is no success is an error.
fn settled(server: &ServerName, outcome: Result<Response<Bytes>, Kind>) -> Result<Response<Bytes>> {
    let outcome = outcome.and_then(|response| {
        if response.status().is_success() {
            Ok(response)
        } else {
            Err(refusal(&response))
        }
    });
    outcome.map_err(|kind| {
        tracing::debug!(%server, %kind, "a request failed");
        kind.of(server)
    })
}

/// Method, path with query, and body of a request.
fn parts<A>(request: impl Ask<A>) -> Result<(Method, String, Vec<u8>), Kind> {
    let unsendable = |e: &dyn std::fmt::Display| Kind::Request(e.to_string());
    let request = request.try_into_http_request_inner("", ());
    let (parts, body) = request.map_err(|e| unsendable(&e))?.into_parts();
    let body: Vec<u8> = body
        .try_into_buf()
        .map_err(|e| unsendable(&Into::<ruma::api::error::IntoHttpError>::into(e)))?;
    Ok((parts.method, parts.uri.to_string(), body))
}

/// The body as it is signed: whoever checks it then need not take it apart.
fn canonical(body: Vec<u8>) -> Result<Vec<u8>, Kind> {
    if body.is_empty() {
        return Ok(body);
    }
    let text = String::from_utf8(body).map_err(|e| Kind::Request(e.to_string()))?;
    let canonical = integrity::canonical_lax(&text).map_err(|e| Kind::Request(e.to_string()))?;
    Ok(canonical.into_bytes())
}

fn http_request(
    method: Method,
    uri: &str,
    body: Vec<u8>,
    signature: Option<XMatrix>,
) -> Result<Request<Bytes>, Kind> {
    let unsendable = |e: &dyn std::fmt::Display| Kind::Request(e.to_string());
    let mut request = Request::builder()
        .method(method)
        .uri(uri)
        .header(header::USER_AGENT, USER_AGENT);
    if !body.is_empty() {
        request = request.header(header::CONTENT_TYPE, "application/json");
    }
    if let Some(signature) = signature {
        let value = HeaderValue::try_from(signature.to_string()).map_err(|e| unsendable(&e))?;
        request = request.header(header::AUTHORIZATION, value);
    }
    request.body(Bytes::from(body)).map_err(|e| unsendable(&e))
}

fn typed<R: OutgoingRequest>(
    server: &ServerName,
    response: &Response<Bytes>,
) -> Result<R::IncomingResponse> {
    let mut borrowed = Response::new(&**response.body());
    *borrowed.status_mut() = response.status();
    *borrowed.headers_mut() = response.headers().clone();
    R::IncomingResponse::try_from_http_response(borrowed).map_err(|error| Error {
        server: server.to_owned(),
        kind: Kind::BadAnswer(tame(&error.to_string(), LONGEST_MESSAGE)),
    })
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Refusal {
    errcode: String,
    error: String,
    retry_after_ms: Option<u64>,
}

/// What an answer that is no success says.
fn refusal(response: &Response<Bytes>) -> Kind {
    let status = response.status();
    if status.is_redirection() || status.is_informational() {
        return Kind::BadAnswer(format!("the status {status}"));
    }
    // Proxies answer with pages for people.
    let said: Refusal = serde_json::from_slice(response.body()).unwrap_or_default();
    let seconds = response.headers().get(header::RETRY_AFTER);
    let seconds = seconds.and_then(|value| value.to_str().ok()?.parse().ok());
    let pause = said
        .retry_after_ms
        .map(Duration::from_millis)
        .or(seconds.map(Duration::from_secs));
    Kind::Status {
        status,
        errcode: tame(&said.errcode, LONGEST_CODE),
        message: tame(&said.error, LONGEST_MESSAGE),
        retry_after: pause
            .filter(|_| status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error())
            .map(|pause| pause.min(LONGEST_PAUSE)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &str) -> Kind {
        let mut response = Response::new(Bytes::copy_from_slice(body.as_bytes()));
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        refusal(&response)
    }

    #[test]
    fn refusals_are_kept_short_and_on_one_line() {
        let body = serde_json::json!({
            "errcode": "M_LIMIT_EXCEEDED",
            "error": format!("no\n{}", "x".repeat(5_000)),
            "retry_after_ms": 1_000_000_000,
        });
        let Kind::Status {
            errcode,
            message,
            retry_after,
            ..
        } = answer(429, &body.to_string())
        else {
            panic!("it is a refusal");
        };
        assert_eq!(errcode, "M_LIMIT_EXCEEDED");
        assert!(message.starts_with("no x") && message.chars().count() == LONGEST_MESSAGE);
        assert_eq!(retry_after, Some(LONGEST_PAUSE));
    }

    #[test]
    fn what_may_pass_by_itself_is_retried() {
        for (status, body, retryable) in [
            (500, "{}", true),
            (502, "<html>", true),
            (429, "", true),
            (408, "", true),
            (301, "", true),
            (400, "{\"errcode\":5}", false),
            (403, "{}", false),
            (404, "no", false),
        ] {
            assert_eq!(answer(status, body).is_retryable(), retryable, "{status}");
        }
    }

    #[test]
    fn bodies_are_sent_in_canonical_form() {
        assert_eq!(
            canonical(b"{\"b\": 1, \"a\":2}".to_vec()).unwrap(),
            b"{\"a\":2,\"b\":1}"
        );
        assert_eq!(canonical(Vec::new()).unwrap(), b"");
        assert!(canonical(b"{\"a\":1.5}".to_vec()).is_err());
    }
}
