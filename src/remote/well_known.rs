//! `/.well-known/matrix/server`: a domain says which other name answers for it.
//!
//! See step 3 of "Resolving server names". The file is somebody else's web page, so it is read with suspicion: few
//! redirects, small, soon, and never at a private address.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode, Uri, header};
use quick_cache::sync::Cache;
use ruma::OwnedServerName;
use serde::Deserialize;

use super::client::{Limits, Network};
use crate::clock::Clock;

/// Where the file is.
const PATH: &str = "/.well-known/matrix/server";

/// The longest file that is read. See "well-known" of the server-server API; Synapse takes as much.
const LARGEST: u64 = 50 << 10;

/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(8);

/// How many redirects are followed.
const REDIRECTS: usize = 5;

/// How long a good answer that does not say it is used; "The recommended sensible default is 24 hours".
const USUAL: Duration = Duration::from_hours(24);

/// The longest that it is used, whatever it says: "48 hours is recommended".
const LONGEST: Duration = Duration::from_hours(48);

/// The shortest that it is used, whatever it says, so that nobody makes us ask all the time.
const SHORTEST: Duration = Duration::from_mins(5);

/// How long it is remembered that there is no file: "up to an hour".
const NOTHING: Duration = Duration::from_hours(1);

/// How long it is remembered that nobody answered, the first time; it doubles up to [`NOTHING`].
const SILENCE: Duration = Duration::from_mins(1);

/// How many domains are remembered.
const DOMAINS: usize = 10_000;

/// The files of other domains.
#[derive(Debug)]
pub(super) struct WellKnown {
    clock: Clock,
    known: Cache<String, Known>,
}

/// What a domain said last.
#[derive(Clone, Debug)]
struct Known {
    delegated: Option<OwnedServerName>,
    /// When to ask again.
    until: Instant,
    /// When it said so; a good answer may be used for [`LONGEST`] while nobody answers.
    said: Instant,
    /// How often nobody has answered since.
    silences: u32,
}

#[derive(Deserialize)]
struct File {
    #[serde(rename = "m.server")]
    server: OwnedServerName,
}

/// What came of asking.
enum Outcome {
    /// A valid file, and how long it may be used.
    Delegated(OwnedServerName, Duration),
    /// No valid file.
    Nothing,
    /// Nobody could say.
    Silence,
}

impl WellKnown {
    pub(super) fn new(clock: Clock) -> Self {
        Self {
            clock,
            known: Cache::new(DOMAINS),
        }
    }

    /// Which name answers for the domain `host`; none if it does not say.
    pub(super) async fn ask(
        &self,
        host: &str,
        is_peer: bool,
        network: &Network,
    ) -> Option<OwnedServerName> {
        let before = self.known.get(host);
        if let Some(known) = &before
            && self.clock.instant() < known.until
        {
            return known.delegated.clone();
        }
        let outcome = fetch(host, is_peer, network).await;
        let now = self.clock.instant();
        let known = match (outcome, before) {
            (Outcome::Delegated(server, age), _) => Known {
                delegated: Some(server),
                until: now + age.clamp(SHORTEST, LONGEST),
                said: now,
                silences: 0,
            },
            (Outcome::Nothing, _) => Known {
                delegated: None,
                until: now + NOTHING,
                said: now,
                silences: 0,
            },
            (Outcome::Silence, before) => {
                let silences = before.as_ref().map_or(0, |known| known.silences);
                let wait = SILENCE.saturating_mul(1 << silences.min(6)).min(NOTHING);
                // What was true an hour ago is likelier than that the domain has moved while its web server is down.
                let still = before.filter(|known| now - known.said < LONGEST);
                Known {
                    until: now + wait,
                    silences: silences.saturating_add(1),
                    said: still.as_ref().map_or(now, |known| known.said),
                    delegated: still.and_then(|known| known.delegated),
                }
            }
        };
        let delegated = known.delegated.clone();
        self.known.insert(host.to_owned(), known);
        delegated
    }
}

async fn fetch(host: &str, is_peer: bool, network: &Network) -> Outcome {
    let mut url: Uri = match format!("https://{host}{PATH}").parse() {
        Ok(url) => url,
        Err(_) => return Outcome::Nothing,
    };
    let limits = Limits {
        time: PATIENCE,
        body: LARGEST,
    };
    for hop in 0..=REDIRECTS {
        // Where somebody redirects to is no peer's matter any more.
        let is_peer = is_peer && hop == 0;
        let response = match network.fetch(&url, is_peer, limits).await {
            Ok(response) => response,
            Err(problem) => {
                tracing::debug!(%url, %problem, "no well-known file");
                return match problem {
                    super::Kind::TooLarge(_) | super::Kind::Blocked(_) => Outcome::Nothing,
                    _ => Outcome::Silence,
                };
            }
        };
        if !response.status().is_redirection() {
            return read(&response);
        }
        match redirect(&url, response.headers()) {
            Some(next) => url = next,
            None => return Outcome::Nothing,
        }
    }
    Outcome::Nothing
}

fn read(response: &Response<Bytes>) -> Outcome {
    if response.status().is_server_error() || response.status() == StatusCode::TOO_MANY_REQUESTS {
        return Outcome::Silence;
    }
    if response.status() != StatusCode::OK {
        return Outcome::Nothing;
    }
    match serde_json::from_slice::<File>(response.body()) {
        Ok(file) => Outcome::Delegated(file.server, age(response.headers())),
        Err(_) => Outcome::Nothing,
    }
}

/// How long an answer with these headers may be used.
fn age(headers: &HeaderMap) -> Duration {
    let directives = headers
        .get_all(header::CACHE_CONTROL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim);
    let mut age = USUAL;
    for directive in directives {
        let directive = directive.to_ascii_lowercase();
        if matches!(directive.as_str(), "no-store" | "no-cache") {
            return Duration::ZERO;
        }
        if let Some(seconds) = directive.strip_prefix("max-age=")
            && let Ok(seconds) = seconds.trim_matches('"').parse()
        {
            age = Duration::from_secs(seconds);
        }
    }
    age
}

/// Where an answer sends us: only to https, and only to a place that a URL can name.
fn redirect(from: &Uri, headers: &HeaderMap) -> Option<Uri> {
    let location = headers.get(header::LOCATION)?.to_str().ok()?;
    let next: Uri = if location.starts_with('/') && !location.starts_with("//") {
        let authority = from.authority()?;
        format!("https://{authority}{location}").parse().ok()?
    } else {
        location.parse().ok()?
    };
    let ok = next.scheme_str() == Some("https") && next.host().is_some();
    ok.then_some(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: header::HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, value.parse().unwrap())])
    }

    #[test]
    fn the_age_is_what_the_headers_say() {
        for (value, expect) in [
            ("public, max-age=600", 600),
            ("Max-Age=\"5\"", 5),
            ("max-age=nonsense", 24 * 3_600),
            ("no-store", 0),
            ("max-age=600, no-cache", 0),
        ] {
            let age = age(&headers(header::CACHE_CONTROL, value));
            assert_eq!(age, Duration::from_secs(expect), "{value}");
        }
        assert_eq!(age(&HeaderMap::new()), USUAL);
    }

    #[test]
    fn redirects_lead_to_https_only() {
        let from = Uri::from_static("https://a.example/x");
        for (location, expect) in [
            ("/y?z", Some("https://a.example/y?z")),
            ("https://b.example:444/", Some("https://b.example:444/")),
            ("http://b.example/", None),
            ("//b.example/", None),
            ("y", None),
            ("", None),
        ] {
            let next = redirect(&from, &headers(header::LOCATION, location));
            assert_eq!(
                next.map(|next| next.to_string()).as_deref(),
                expect,
                "{location}"
            );
        }
    }
}
