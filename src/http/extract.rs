//! What a handler is given: the request as ruma's type, and who asks, as the endpoint's scheme of authentication
//! demands it.

use std::{
    borrow::Cow,
    net::{IpAddr, Ipv4Addr},
};

use axum::extract::{RawPathParams, Request, rejection::RawPathParamsRejection};
use bytes::Bytes;
use http::{HeaderMap, StatusCode, Uri, header, request::Parts};
use ruma::OwnedServerName;
use ruma::api::federation::authentication::ServerSignatures;
use ruma::api::{
    IncomingRequest, IncomingRequestExt as _,
    auth_scheme::{
        AccessToken, AccessTokenOptional, AppserviceTokenOptional, NoAccessToken, NoAuthentication,
    },
    error::{DeserializationError, FromHttpRequestError},
};
use ruma::exports::serde_html_form;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::error::Category;

use super::{
    body::{self, BodyError},
    federation::coding::decoded,
    peer::PeerAddr,
};
use crate::{
    error::{Error, Result},
    protocol::xmatrix::{BadHeader, XMatrix},
    service::{Requester, Services},
};

/// A request, parsed, and who asks.
pub(super) struct Ruma<R: IncomingRequest<Authentication: Scheme>> {
    /// The request.
    pub(super) request: R,
    /// Who asks.
    pub(super) requester: <R::Authentication as Scheme>::Identity,
    /// The body as it came, for what ruma's type does not keep.
    pub(super) body: Bytes,
    /// The query as it came, likewise.
    pub(super) query: String,
    /// Where the client is.
    pub(super) address: IpAddr,
}

/// What an endpoint accepts.
#[derive(Clone, Copy)]
pub(super) struct Accepts {
    /// Whether guests may use it. See "Guest access".
    pub(super) guests: bool,
    /// The longest body, in bytes.
    pub(super) body: u64,
    /// Whether what is to be put there may be missing.
    pub(super) no_body: bool,
    /// Whether it only reads, although it is no GET, so that it may end when its client goes away.
    pub(super) only_reads: bool,
}

/// The longest body of most endpoints: many events in one, each of which may have 64 KiB.
pub(super) const USUAL_BODY: u64 = 1 << 20;

impl Accepts {
    /// What most endpoints accept.
    pub(super) const USUAL: Self = Self {
        guests: false,
        body: USUAL_BODY,
        no_body: false,
        only_reads: false,
    };
}

impl<R: IncomingRequest<Authentication: Scheme>> Ruma<R> {
    /// Authenticates first, so that strangers cannot make us read much.
    pub(super) async fn extract(
        services: &Services,
        accepts: Accepts,
        path: Result<RawPathParams, RawPathParamsRejection>,
        request: Request,
    ) -> Result<Self> {
        let (parts, body) = request.into_parts();
        // Only a test that has no connection does not say.
        let unknown = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let address = parts.extensions.get::<PeerAddr>();
        let address = address.map_or(unknown, |peer| peer.0.ip());
        let credentials = Credentials {
            headers: &parts.headers,
            uri: &parts.uri,
            address,
            guests: accepts.guests,
        };
        let claim = R::Authentication::claim(services, &credentials)?;
        let path = path.map_err(|_| Error::invalid_param("The path is not UTF-8"))?;
        let path: Vec<_> = path.iter().map(|(_, value)| value).collect();
        let body = body::read(body, accepts.body).await.map_err(refused)?;
        let body = decoded(&parts.headers, body, accepts.body).await?;
        let sent = body.clone();
        let body = object_or_nothing(&parts.method, body, accepts.no_body)?;
        let requester = R::Authentication::prove(claim, services, &parts, &sent).await?;
        let query = parts.uri.query().unwrap_or_default().to_owned();
        let request = http::Request::from_parts(parts, &*body);
        let request = R::try_from_http_request(request, &path).map_err(malformed)?;
        Ok(Self {
            request,
            requester,
            body,
            query,
            address,
        })
    }
}

/// How deeply a request may be nested; the limit of the parsers that come after.
const MAX_DEPTH: usize = 100;

/// The body, if it is one JSON object from its first to its last byte. What ruma's types do not look at must be JSON
/// too. No body at all stands for an empty object where clients are known to leave it out.
fn object_or_nothing(method: &http::Method, body: Bytes, no_body: bool) -> Result<Bytes> {
    if body.is_empty() {
        return match *method {
            http::Method::POST => Ok(Bytes::from_static(b"{}")),
            // What is to be put there must be said.
            http::Method::PUT if !no_body => Err(not_json("the body is missing".to_owned())),
            _ => Ok(body),
        };
    }
    let text = str::from_utf8(&body).map_err(|e| not_json(e.to_string()))?;
    serde_json::from_str::<IgnoredAny>(text).map_err(|e| not_json(e.to_string()))?;
    if !text.trim_start().starts_with('{') {
        return Err(Error::bad_json("The body must be an object"));
    }
    let (mut depth, mut in_text, mut escaped) = (0_usize, false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            b'{' | b'[' if !in_text => depth += 1,
            b'}' | b']' if !in_text => depth -= 1,
            _ => {}
        }
        if depth > MAX_DEPTH {
            return Err(Error::bad_json("The body is nested too deeply"));
        }
    }
    Ok(body)
}

/// Where a request says who sent it.
pub(super) struct Credentials<'r> {
    headers: &'r HeaderMap,
    uri: &'r Uri,
    address: IpAddr,
    /// Whether a guest will do.
    guests: bool,
}

#[derive(Deserialize)]
struct Query {
    access_token: Option<String>,
}

impl Credentials<'_> {
    /// The token in the header, or else in the query; see "Using access tokens".
    fn token(&self) -> Result<Option<Cow<'_, str>>> {
        if let Some(header) = self.headers.get(header::AUTHORIZATION) {
            let header = header.to_str().ok();
            let parts = header.and_then(|header| header.split_once(' '));
            return match parts {
                Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
                    Ok(Some(token.trim().into()))
                }
                _ => Err(missing_token()),
            };
        }
        let query: Query = match self.uri.query() {
            Some(query) => serde_html_form::from_str(query)
                .map_err(|e| Error::invalid_param(format!("access_token: {e}")))?,
            None => return Ok(None),
        };
        Ok(query.access_token.map(Cow::Owned))
    }

    fn requester(&self, services: &Services) -> Result<Option<Requester>> {
        let Some(token) = self.token()?.filter(|token| !token.is_empty()) else {
            return Ok(None);
        };
        let requester = services.accounts.authenticate(&token, self.address)?;
        if requester.guest && !self.guests {
            return Err(Error::guest_access_forbidden("Guests may not do this"));
        }
        Ok(Some(requester))
    }
}

/// A way to authenticate, and the identity that it proves.
pub(super) trait Scheme {
    /// What the head of the request says.
    type Claim: Send;
    /// Who asks.
    type Identity: Send + 'static;

    /// Looks at the head, so that strangers cannot make us read much.
    fn claim(services: &Services, credentials: &Credentials<'_>) -> Result<Self::Claim>;

    /// Looks at the whole, where the head alone proves nothing. `body` is the body as it was sent.
    fn prove(
        claim: Self::Claim,
        services: &Services,
        head: &Parts,
        body: &Bytes,
    ) -> impl Future<Output = Result<Self::Identity>> + Send;
}

/// Schemes of which the head is all.
macro_rules! by_head {
    ($($scheme:ty, $identity:ty, $claim:expr;)*) => {
        $(impl Scheme for $scheme {
            type Claim = $identity;
            type Identity = $identity;

            fn claim(services: &Services, credentials: &Credentials<'_>) -> Result<$identity> {
                let claim: fn(&Services, &Credentials<'_>) -> Result<$identity> = $claim;
                claim(services, credentials)
            }

            async fn prove(
                claim: $identity,
                _: &Services,
                _: &Parts,
                _: &Bytes,
            ) -> Result<$identity> {
                Ok(claim)
            }
        })*
    };
}

by_head! {
    AccessToken, Requester, |services, credentials| {
        let requester = credentials.requester(services)?;
        requester.ok_or_else(missing_token)
    };
    AccessTokenOptional, Option<Requester>, |services, credentials| credentials.requester(services);
    NoAccessToken, (), |_, _| Ok(());
    NoAuthentication, (), |_, _| Ok(());
    AppserviceTokenOptional, (), |_, _| Ok(());
}

/// A server that has proven who it is.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    /// Its name.
    pub(super) server: OwnedServerName,
}

/// See "Request Authentication" in the server-server API.
impl Scheme for ServerSignatures {
    type Claim = Vec<XMatrix>;
    type Identity = Origin;

    fn claim(services: &Services, credentials: &Credentials<'_>) -> Result<Vec<XMatrix>> {
        let claims = x_matrix(credentials.headers)?;
        for claim in &claims {
            services.keyring.admit(claim)?;
        }
        Ok(claims)
    }

    async fn prove(
        claims: Vec<XMatrix>,
        services: &Services,
        head: &Parts,
        body: &Bytes,
    ) -> Result<Origin> {
        let uri = head.uri.path_and_query().map_or("/", |uri| uri.as_str());
        let body = str::from_utf8(body).map_err(|e| not_json(e.to_string()))?;
        let body = Some(body).filter(|body| !body.is_empty());
        let mut refused = missing_signature();
        for claim in claims {
            let proven = services
                .keyring
                .authenticate(&claim, head.method.as_str(), uri, body);
            match proven.await {
                Ok(()) => {
                    services.federation.heard_from(&claim.origin);
                    return Ok(Origin {
                        server: claim.origin,
                    });
                }
                Err(error) if error.is_internal() => return Err(error),
                Err(error) => refused = error,
            }
        }
        Err(refused)
    }
}

/// A server signs with one key or, while it changes keys, with two.
const MOST_SIGNATURES: usize = 3;

/// What the `Authorization` headers say. All must be of one server.
fn x_matrix(headers: &HeaderMap) -> Result<Vec<XMatrix>> {
    let mut claims: Vec<XMatrix> = Vec::new();
    for header in headers.get_all(header::AUTHORIZATION) {
        let malformed = |e: &dyn std::fmt::Display| {
            Error::unauthorized(format!("The Authorization header is not valid: {e}"))
        };
        let header = header.to_str().map_err(|e| malformed(&e))?;
        let claim = match XMatrix::parse(header) {
            Ok(claim) => claim,
            Err(BadHeader::OtherScheme) => continue,
            Err(bad) => return Err(malformed(&bad)),
        };
        if claims.len() >= MOST_SIGNATURES
            || claims
                .first()
                .is_some_and(|first| first.origin != claim.origin)
        {
            return Err(malformed(&"too many, or of several servers"));
        }
        claims.push(claim);
    }
    if claims.is_empty() {
        return Err(missing_signature());
    }
    Ok(claims)
}

fn missing_signature() -> Error {
    Error::unauthorized(
        "The request must be signed by a server: an Authorization header of the scheme X-Matrix is needed",
    )
}

/// Gives a request type of ours the method, the paths and the authentication of one of ruma's.
macro_rules! same_endpoint {
    ($ours:ty, $theirs:ty) => {
        same_endpoint!(
            $ours,
            $theirs,
            <$theirs as ruma::api::Metadata>::Authentication
        );
    };
    ($ours:ty, $theirs:ty, $authentication:ty) => {
        impl ruma::api::Metadata for $ours {
            const METHOD: http::Method = <$theirs as ruma::api::Metadata>::METHOD;
            const RATE_LIMITED: bool = <$theirs as ruma::api::Metadata>::RATE_LIMITED;
            type Authentication = $authentication;
            type PathBuilder = <$theirs as ruma::api::Metadata>::PathBuilder;
            const PATH_BUILDER: Self::PathBuilder = <$theirs as ruma::api::Metadata>::PATH_BUILDER;
        }
    };
}
pub(super) use same_endpoint;

pub(super) fn missing_token() -> Error {
    Error::api(
        StatusCode::UNAUTHORIZED,
        "M_MISSING_TOKEN",
        "An access token is needed",
    )
}

fn refused(error: BodyError) -> Error {
    Error::api(error.status(), error.errcode(), error.to_string())
}

fn malformed(error: FromHttpRequestError) -> Error {
    let FromHttpRequestError::Deserialization(error) = error else {
        return Error::Internal(format!("a route has the wrong method: {error}"));
    };
    match error {
        DeserializationError::Utf8(error) => not_json(error.to_string()),
        DeserializationError::Json(error) => malformed_json(&error),
        DeserializationError::Query(error) => {
            let message = error.to_string();
            match message.split('`').collect::<Vec<_>>()[..] {
                ["missing field ", name, ""] => Error::missing_param(name),
                _ => Error::invalid_param(message),
            }
        }
        DeserializationError::Header(error) => Error::invalid_param(error.to_string()),
        error => Error::invalid_param(error.to_string()),
    }
}

fn malformed_json(error: &serde_json::Error) -> Error {
    match error.classify() {
        Category::Data => Error::bad_json(error.to_string()),
        Category::Io | Category::Syntax | Category::Eof => not_json(error.to_string()),
    }
}

fn not_json(message: String) -> Error {
    Error::api(StatusCode::BAD_REQUEST, "M_NOT_JSON", message)
}
