//! Token buckets: how often one user, address or account may do what costs the node or its users something.
//!
//! A bucket holds `burst` tokens and gains one every `period`. It is stored as a single time, the moment at which it
//! will be full again: a bucket whose time has passed is full, and can be forgotten without being noticed. Memory is
//! bounded, because each kind remembers only so many buckets.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::{
    clock::Clock,
    error::{Error, Result},
};

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
    /// Reports to those who run the node, by user id.
    Report,
}

impl Kind {
    const ALL: [Self; 8] = [
        Self::Login,
        Self::FailedLogin,
        Self::Registration,
        Self::Message,
        Self::Join,
        Self::Invite,
        Self::Invited,
        Self::Report,
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
            Self::Report => (20, Duration::from_secs(60)),
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
    /// 429 with the time to wait until there is a token, when the bucket is empty.
    pub fn check(&self, kind: Kind, key: &str) -> Result<()> {
        self.take(kind, key, 1).map_err(Error::limit_exceeded)
    }

    /// Takes one token from the bucket of a client's address.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn check_address(&self, kind: Kind, address: IpAddr) -> Result<()> {
        self.check(kind, &customer(address).to_string())
    }

    /// Whether [`check`](Self::check) would succeed, without taking a token. Used where only failures count, as with
    /// [`Kind::FailedLogin`]: look before the attempt, take after it failed.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn peek(&self, kind: Kind, key: &str) -> Result<()> {
        self.take(kind, key, 0).map_err(Error::limit_exceeded)
    }

    /// As [`peek`](Self::peek), for the bucket of a client's address.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn peek_address(&self, kind: Kind, address: IpAddr) -> Result<()> {
        self.peek(kind, &customer(address).to_string())
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

/// The address under which a client counts. One customer of an IPv6 provider holds at least a /64, so all of its
/// addresses count as one.
fn customer(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() & (u128::MAX << 64)).into()),
        v4 => v4,
    }
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
                assert_eq!(limits.take(kind, "a", 1), Ok(()), "{kind:?}");
            }
            assert_eq!(limits.take(kind, "a", 1), Err(period), "{kind:?}");
            assert_eq!(limits.take(kind, "b", 1), Ok(()), "{kind:?}");
            let half = period / 2; // Every period is even in nanoseconds.
            clock.advance(half);
            assert_eq!(limits.take(kind, "a", 1), Err(half), "{kind:?}");
            clock.advance(period);
            assert_eq!(limits.take(kind, "a", 1), Ok(()), "{kind:?}");
            assert!(limits.check(kind, "a").is_err(), "{kind:?}");
        }
    }

    #[test]
    fn kinds_do_not_share_a_bucket() {
        let (limits, _clock) = limits();
        while limits.check(Kind::Login, "a").is_ok() {}
        assert!(limits.check(Kind::Registration, "a").is_ok());
    }

    #[test]
    fn peeking_takes_nothing() {
        let (limits, _clock) = limits();
        for _ in 0..1_000 {
            assert!(limits.peek(Kind::FailedLogin, "a").is_ok());
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

    #[test]
    fn a_whole_ipv6_customer_counts_as_one() {
        let key = |address: &str| customer(address.parse().unwrap());
        assert_eq!(key("2001:db8::1"), key("2001:db8::ffff"));
        assert_ne!(key("2001:db8::1"), key("2001:db8:0:1::1"));
        assert_eq!(key("::ffff:1.2.3.4"), key("1.2.3.4"));
        assert_ne!(key("1.2.3.4"), key("1.2.3.5"));
    }
}
