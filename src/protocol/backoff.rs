//! When a server that does not answer is tried again: a pure function of how often it has failed, and since when.

use std::time::Duration;

/// How soon and how late somebody is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// The wait after the first failure; it doubles with each further one.
    first: Duration,
    /// No wait is longer.
    most: Duration,
}

impl Schedule {
    /// For a server of the peer table: soon, and at the latest after `most`, however long the link was down.
    #[must_use]
    pub const fn peer(most: Duration) -> Self {
        Self {
            first: Duration::from_secs(1),
            most,
        }
    }

    /// For everybody else: up to an hour, so that servers that are gone for good cost next to nothing.
    #[must_use]
    pub const fn stranger() -> Self {
        Self {
            first: Duration::from_secs(2),
            most: Duration::from_hours(1),
        }
    }

    /// How long to wait after so many failures in a row. `jitter` is a random number: it takes off up to a quarter, so
    /// that those who lost a link together do not come back together.
    #[must_use]
    pub fn wait(&self, failures: u32, jitter: u64) -> Duration {
        if failures == 0 {
            return Duration::ZERO;
        }
        let factor = 1_u32 << (failures - 1).min(30);
        let wait = self.first.saturating_mul(factor).min(self.most);
        // Thousandths, from 750 to 1000.
        let part = 1000 - u32::try_from(jitter % 251).unwrap_or(0);
        wait.saturating_mul(part) / 1000
    }

    /// When to try again, in the milliseconds of `last_failure`.
    #[must_use]
    pub fn next_try(&self, failures: u32, last_failure_ms: u64, jitter: u64) -> u64 {
        let wait = u64::try_from(self.wait(failures, jitter).as_millis()).unwrap_or(u64::MAX);
        last_failure_ms.saturating_add(wait)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn waits_double_up_to_the_most() {
        let peer = Schedule::peer(Duration::from_mins(1));
        let waits: Vec<_> = (0..9)
            .map(|failures| peer.wait(failures, 0).as_secs())
            .collect();
        assert_eq!(waits, [0, 1, 2, 4, 8, 16, 32, 60, 60]);
        let stranger = Schedule::stranger();
        assert_eq!(stranger.wait(1, 0), Duration::from_secs(2));
        assert_eq!(stranger.wait(11, 0), Duration::from_secs(2_048));
        assert_eq!(stranger.wait(12, 0), Duration::from_hours(1));
        assert_eq!(peer.next_try(2, 1_000, 0), 3_000);
        assert_eq!(peer.next_try(0, 1_000, 5), 1_000);
        assert_eq!(peer.next_try(1, u64::MAX, 0), u64::MAX);
        // A peer that shall be tried more often than once a second.
        let hasty = Schedule::peer(Duration::from_millis(100));
        assert_eq!(hasty.wait(1, 0), Duration::from_millis(100));
    }

    proptest! {
        #[test]
        fn no_wait_is_longer_than_the_most_or_much_shorter_than_it_should(
            failures in 1_u32..,
            jitter: u64,
            most in 1_u64..100_000,
        ) {
            let schedule = Schedule::peer(Duration::from_secs(most));
            let wait = schedule.wait(failures, jitter);
            let full = schedule.wait(failures, 0);
            prop_assert!(wait <= full && full <= Duration::from_secs(most));
            prop_assert!(wait >= full * 3 / 4);
        }
    }
}
