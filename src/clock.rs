//! The only source of time and randomness, so that a test can hold both in its hand.
//!
//! A real node uses [`Clock::real`] and [`Entropy::real`]. A test uses [`Clock::manual`], which stands still until it
//! is told to advance, and [`Entropy::seeded`], which gives the same values in every run. Both are cheap to clone, and
//! clones share their state.

#![expect(
    clippy::disallowed_methods,
    reason = "this is the place that everybody else has to ask for time and randomness"
)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use sha2::{Digest, Sha256};
use tokio::sync::watch;

/// Tells the time of day and measures durations.
#[derive(Clone, Debug)]
pub struct Clock(Time);

#[derive(Clone, Debug)]
enum Time {
    Real,
    Manual(Arc<Manual>),
}

#[derive(Debug)]
struct Manual {
    /// The time of day, in milliseconds since 1970, when the clock was made.
    start_ms: u64,
    /// What the monotonic clock showed at that moment.
    origin: Instant,
    /// How far the clock was advanced since; watched by those who sleep.
    elapsed: watch::Sender<Duration>,
}

impl Clock {
    /// The clock of the machine.
    pub fn real() -> Self {
        Self(Time::Real)
    }

    /// A clock that shows `start_ms` (milliseconds since 1970) until [`advance`](Self::advance) is called.
    pub fn manual(start_ms: u64) -> Self {
        Self(Time::Manual(Arc::new(Manual {
            start_ms,
            origin: Instant::now(),
            elapsed: watch::Sender::default(),
        })))
    }

    /// A manual clock that moves with this manual one, but began at another time of day: that of a machine whose clock is
    /// set wrong.
    ///
    /// # Panics
    /// On the real clock, of which there is only one.
    #[must_use]
    pub fn beside(&self, start_ms: u64) -> Self {
        match &self.0 {
            Time::Real => panic!("the real clock shows one time"),
            Time::Manual(manual) => Self(Time::Manual(Arc::new(Manual {
                start_ms,
                origin: manual.origin,
                elapsed: manual.elapsed.clone(),
            }))),
        }
    }

    /// The time of day in milliseconds since 1970, as events carry it. It may jump when the machine's clock is set.
    pub fn now_ms(&self) -> u64 {
        match &self.0 {
            Time::Real => SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, to_ms),
            Time::Manual(manual) => manual.start_ms + to_ms(*manual.elapsed.borrow()),
        }
    }

    /// A moment to measure durations from; it never goes backwards.
    pub fn instant(&self) -> Instant {
        match &self.0 {
            Time::Real => Instant::now(),
            Time::Manual(manual) => manual.origin + *manual.elapsed.borrow(),
        }
    }

    /// Returns when `duration` has passed on this clock.
    pub async fn sleep(&self, duration: Duration) {
        match &self.0 {
            Time::Real => tokio::time::sleep(duration).await,
            Time::Manual(manual) => {
                let mut elapsed = manual.elapsed.subscribe();
                let deadline = *elapsed.borrow() + duration;
                elapsed
                    .wait_for(|elapsed| *elapsed >= deadline)
                    .await
                    .expect("the sender lives in the clock that is borrowed here");
            }
        }
    }

    /// Moves a manual clock forward and wakes those whose sleep is over.
    ///
    /// # Panics
    /// On the real clock, which nobody can move.
    pub fn advance(&self, by: Duration) {
        match &self.0 {
            Time::Real => panic!("the real clock cannot be advanced"),
            Time::Manual(manual) => manual.elapsed.send_modify(|elapsed| *elapsed += by),
        }
    }
}

/// Milliseconds of a duration; 2^64 of them are half a billion years.
fn to_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Gives random bytes, tokens and numbers.
#[derive(Clone, Debug)]
pub struct Entropy(Source);

#[derive(Clone, Debug)]
enum Source {
    System,
    Seeded(Arc<Seeded>),
}

#[derive(Debug)]
struct Seeded {
    seed: u64,
    /// How many blocks were drawn.
    blocks: AtomicU64,
}

/// Letters and digits without a special meaning in any URL, header or Matrix id.
const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

impl Entropy {
    /// The operating system's generator, fit for keys and tokens.
    pub fn real() -> Self {
        Self(Source::System)
    }

    /// The same sequence in every run that uses the same `seed`; for tests only.
    pub fn seeded(seed: u64) -> Self {
        Self(Source::Seeded(Arc::new(Seeded {
            seed,
            blocks: AtomicU64::new(0),
        })))
    }

    /// Overwrites `bytes` with random ones.
    ///
    /// # Panics
    /// When the operating system has no randomness to give: nothing secure could be done after that.
    pub fn fill(&self, bytes: &mut [u8]) {
        match &self.0 {
            Source::System => getrandom::fill(bytes).expect("the system's random generator works"),
            Source::Seeded(seeded) => {
                for chunk in bytes.chunks_mut(32) {
                    let block = seeded.blocks.fetch_add(1, Ordering::Relaxed);
                    let mut hash = Sha256::new();
                    hash.update(seeded.seed.to_be_bytes());
                    hash.update(block.to_be_bytes());
                    chunk.copy_from_slice(&hash.finalize()[..chunk.len()]);
                }
            }
        }
    }

    /// So many random bytes, for keys and salts.
    pub fn bytes<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.fill(&mut bytes);
        bytes
    }

    /// A random number, for instance to spread retries in time.
    pub fn number(&self) -> u64 {
        u64::from_be_bytes(self.bytes())
    }

    /// A random text of `length` letters and digits; every character is worth nearly 6 bits.
    pub fn token(&self, length: usize) -> String {
        let mut token = String::with_capacity(length);
        let mut bytes = [0; 64];
        while token.len() < length {
            self.fill(&mut bytes);
            // Only the 248 byte values that map evenly onto 62 letters are used, so that no letter is likelier.
            let even = bytes.iter().filter(|byte| **byte < 248);
            let letters = even.map(|byte| char::from(ALPHABET[usize::from(byte % 62)]));
            token.extend(letters.take(length - token.len()));
        }
        token
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_manual_clock_moves_only_when_told() {
        let clock = Clock::manual(1_000);
        let start = clock.instant();
        assert_eq!(clock.now_ms(), 1_000);

        let sleeper = tokio::time::timeout(Duration::from_secs(5), async {
            tokio::join!(clock.sleep(Duration::from_secs(3)), async {
                clock.advance(Duration::from_secs(2));
                tokio::task::yield_now().await;
                clock.clone().advance(Duration::from_secs(1));
            });
        });
        sleeper.await.expect("the sleeper wakes");

        assert_eq!(clock.now_ms(), 4_000);
        assert_eq!(clock.instant() - start, Duration::from_secs(3));

        let wrong = clock.beside(500);
        clock.advance(Duration::from_secs(1));
        assert_eq!((clock.now_ms(), wrong.now_ms()), (5_000, 4_500));
        assert_eq!(clock.instant(), wrong.instant());
    }

    #[test]
    fn the_real_clock_shows_a_plausible_time() {
        let year_2020 = 1_577_836_800_000;
        assert!(Clock::real().now_ms() > year_2020);
    }

    #[test]
    fn seeded_entropy_repeats_and_never_stands_still() {
        let (one, same, other) = (Entropy::seeded(1), Entropy::seeded(1), Entropy::seeded(2));
        let first = one.token(40);
        assert_eq!(first, same.token(40));
        assert_ne!(first, one.token(40));
        assert_ne!(first, other.token(40));
        assert_ne!(one.number(), one.number());
    }

    #[test]
    fn tokens_have_the_asked_length_and_only_letters_and_digits() {
        for length in [0, 1, 64, 500] {
            let token = Entropy::real().token(length);
            assert_eq!(token.len(), length);
            assert!(token.bytes().all(|byte| byte.is_ascii_alphanumeric()));
        }
        assert_ne!(Entropy::real().bytes::<16>(), Entropy::real().bytes::<16>());
    }
}
