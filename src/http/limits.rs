//! Token buckets: how often one user, address or account may do what costs the node or its users something.
//!
//! A bucket holds `burst` tokens and gains one every `period`. It is stored as a single time, the moment at which it
//! will be full again: a bucket whose time has passed is full, and can be forgotten without being noticed. Memory is
//! bounded, because each kind remembers only so many buckets.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};
use parking_lot::Mutex;
use serde_json::Value;

use crate::clock::Clock;

/// What is counted. The key to count under is said with each, and must not come from the client unchecked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Attempts to log in, by address.
    Login,
    /// Attempts to log in to one account that failed, by user id.
    FailedLogin,
    /// New accounts and checks of registration tokens, by address.
    Registration,
    /// Events of any kind, by user id.
    Message,
    /// Joins and knocks, by user id. Joining a room on another server costs both servers much.
    Join,
    /// Invites sent, by user id.
    Invite,
    /// Invites received, by the id of the invited user, so that many cannot flood one.
    Invited,
}

impl Kind {
    const ALL: [Self; 7] = [
        Self::Login,
        Self::FailedLogin,
        Self::Registration,
        Self::Message,
        Self::Join,
        Self::Invite,
        Self::Invited,
    ];

    /// How many are allowed at once, and how often one more.
    fn rate(self) -> (u32, Duration) {
        match self {
            // An office often shares one address, and all of its apps come back after a power cut.
            Self::Login => (60, Duration::from_secs(2)),
            Self::FailedLogin => (5, Duration::from_secs(6)),
            Self::Registration => (20, Duration::from_secs(6)),
            Self::Message => (100, Duration::from_millis(100)),
            Self::Join => (50, Duration::from_secs(1)),
            Self::Invite => (100, Duration::from_millis(500)),
            Self::Invited => (50, Duration::from_secs(5)),
        }
    }
}

/// How many buckets of one kind are remembered at most; about 3 MB for all kinds together at the very worst.
const MOST_BUCKETS: usize = 20_000;

/// The buckets of everybody. Cheap to clone; clones share their state.
#[derive(Clone, Debug)]
pub struct Limits(Option<Arc<Shared>>);

#[derive(Debug)]
struct Shared {
    clock: Clock,
    /// Keys are stored as a hash that nobody outside can predict, so that long or chosen keys cost nothing.
    hasher: RandomState,
    /// In the order of [`Kind::ALL`].
    buckets: [Mutex<Buckets>; Kind::ALL.len()],
}

impl Limits {
    /// Limits that count on `clock`; when not `enabled`, everything is always allowed.
    pub fn new(enabled: bool, clock: Clock) -> Self {
        Self(enabled.then(|| {
            Arc::new(Shared {
                hasher: RandomState::new(),
                buckets: Kind::ALL.map(|_| Mutex::default()),
                clock,
            })
        }))
    }

    /// Takes one token from the bucket of `key`.
    ///
    /// # Errors
    /// How long to wait until there is a token, when the bucket is empty.
    pub fn check(&self, kind: Kind, key: &str) -> Result<(), Duration> {
        self.take(kind, key, 1)
    }

    /// Whether [`check`](Self::check) would succeed, without taking a token. Used where only failures count, as with
    /// [`Kind::FailedLogin`]: look before the attempt, take after it failed.
    ///
    /// # Errors
    /// How long to wait until there is a token.
    pub fn peek(&self, kind: Kind, key: &str) -> Result<(), Duration> {
        self.take(kind, key, 0)
    }

    fn take(&self, kind: Kind, key: &str, tokens: u32) -> Result<(), Duration> {
        let Some(shared) = &self.0 else { return Ok(()) };
        let (burst, period) = kind.rate();
        let index = Kind::ALL
            .iter()
            .position(|listed| *listed == kind)
            .expect("ALL lists every kind");
        let now = shared.clock.instant();
        let mut buckets = shared.buckets[index].lock();
        let key = shared.hasher.hash_one(key);
        let full_at = buckets.get(key).map_or(now, |full_at| full_at.max(now));
        let full_afterwards = full_at + period;
        let empty = now + period * burst;
        if full_afterwards > empty {
            return Err(full_afterwards - empty);
        }
        if tokens > 0 {
            buckets.set(key, full_at + period * tokens);
        }
        Ok(())
    }
}

/// The times at which buckets are full, in two generations of half the permitted number. When the younger is full it
/// becomes the older, and what was not touched for a whole generation is forgotten: bounded memory at constant cost.
#[derive(Debug, Default)]
struct Buckets {
    young: HashMap<u64, Instant>,
    old: HashMap<u64, Instant>,
}

impl Buckets {
    fn get(&self, key: u64) -> Option<Instant> {
        self.young.get(&key).or_else(|| self.old.get(&key)).copied()
    }

    fn set(&mut self, key: u64, full_at: Instant) {
        if self.young.len() >= MOST_BUCKETS / 2 && !self.young.contains_key(&key) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, full_at);
    }
}

/// The answer to a request that exceeds a limit: 429 with the time to wait, in the body and in `Retry-After`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Too many requests")]
pub struct LimitExceeded(pub Duration);

impl IntoResponse for LimitExceeded {
    fn into_response(self) -> Response {
        // Rounded up: who comes back when we said must not be refused again.
        let milliseconds = self.0.as_nanos().div_ceil(1_000_000);
        let seconds = self.0.as_nanos().div_ceil(1_000_000_000);
        let body = serde_json::json!({
            "errcode": "M_LIMIT_EXCEEDED",
            "error": self.to_string(),
            "retry_after_ms": u64::try_from(milliseconds).unwrap_or(u64::MAX),
        });
        let mut response = matrix_error(StatusCode::TOO_MANY_REQUESTS, &body);
        let seconds = HeaderValue::from_str(&seconds.to_string()).expect("digits are a header");
        response.headers_mut().insert(header::RETRY_AFTER, seconds);
        response
    }
}

/// An error in the form of the specification.
pub(super) fn matrix_error(status: StatusCode, body: &Value) -> Response {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> (Limits, Clock) {
        let clock = Clock::manual(0);
        (Limits::new(true, clock.clone()), clock)
    }

    #[test]
    fn a_burst_is_allowed_then_one_per_period() {
        for kind in Kind::ALL {
            let (limits, clock) = limits();
            let (burst, period) = kind.rate();
            for _ in 0..burst {
                assert_eq!(limits.check(kind, "a"), Ok(()), "{kind:?}");
            }
            assert_eq!(limits.check(kind, "a"), Err(period), "{kind:?}");
            assert_eq!(limits.check(kind, "b"), Ok(()), "{kind:?}");
            let half = period / 2; // Every period is even in nanoseconds.
            clock.advance(half);
            assert_eq!(limits.check(kind, "a"), Err(half), "{kind:?}");
            clock.advance(period);
            assert_eq!(limits.check(kind, "a"), Ok(()), "{kind:?}");
            assert!(limits.check(kind, "a").is_err(), "{kind:?}");
        }
    }

    #[test]
    fn kinds_do_not_share_a_bucket() {
        let (limits, _clock) = limits();
        while limits.check(Kind::Login, "a").is_ok() {}
        assert_eq!(limits.check(Kind::Registration, "a"), Ok(()));
    }

    #[test]
    fn peeking_takes_nothing() {
        let (limits, _clock) = limits();
        for _ in 0..1_000 {
            assert_eq!(limits.peek(Kind::FailedLogin, "a"), Ok(()));
        }
        while limits.check(Kind::FailedLogin, "a").is_ok() {}
        assert!(limits.peek(Kind::FailedLogin, "a").is_err());
    }

    #[test]
    fn nothing_is_limited_when_off() {
        let limits = Limits::new(false, Clock::manual(0));
        assert!((0..10_000).all(|_| limits.check(Kind::Login, "a").is_ok()));
    }

    #[test]
    fn memory_is_bounded_and_recent_keys_are_kept() {
        let (limits, _clock) = limits();
        while limits.check(Kind::Login, "attacker").is_ok() {}
        for other in 0..MOST_BUCKETS / 2 {
            assert!(limits.check(Kind::Login, &other.to_string()).is_ok());
        }
        assert!(limits.check(Kind::Login, "attacker").is_err());
        for other in 0..10 * MOST_BUCKETS {
            assert!(limits.check(Kind::Message, &other.to_string()).is_ok());
        }
        for buckets in &limits.0.unwrap().buckets {
            let buckets = buckets.lock();
            assert!(buckets.young.len() + buckets.old.len() <= MOST_BUCKETS);
        }
    }

    #[tokio::test]
    async fn the_answer_says_when_to_come_back() {
        let response = LimitExceeded(Duration::from_micros(1_500_100)).into_response();
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()[header::RETRY_AFTER], "2");
        let body = crate::http::body::read(response.into_body(), 1_000).await;
        let body: Value = serde_json::from_slice(&body.unwrap()).unwrap();
        assert_eq!(body["errcode"], "M_LIMIT_EXCEEDED");
        assert_eq!(body["retry_after_ms"], 1_501);
    }
}
