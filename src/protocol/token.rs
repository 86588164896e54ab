//! The text of the tokens that clients hand back: where a sync ended, and where a page of a timeline ends.
//!
//! Clients must not look inside, so the form is ours: `s` and a position, or `t` and an order. See "Syncing" and
//! "Pagination" in the client-server API.

use std::{fmt, str::FromStr};

use super::ids::Position;

/// Why a text is no token of ours: M_INVALID_PARAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a token that this server has given out")]
pub struct BadToken;

/// Where a sync ended: everything up to and with this position was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SyncToken(pub Position);

/// A gap between two events of a timeline: behind the event with this order, before the next.
///
/// A sync token says the same of every timeline at once, as live events are ordered by their positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PageToken(pub i64);

impl fmt::Display for SyncToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{}", self.0)
    }
}

impl fmt::Display for PageToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "t{}", self.0)
    }
}

impl FromStr for SyncToken {
    type Err = BadToken;

    fn from_str(text: &str) -> Result<Self, BadToken> {
        let position = number::<u64>(text.strip_prefix('s').ok_or(BadToken)?)?;
        // Positions are orders too, and those are signed.
        if i64::try_from(position).is_err() {
            Err(BadToken)
        } else {
            Ok(Self(Position(position)))
        }
    }
}

impl FromStr for PageToken {
    type Err = BadToken;

    fn from_str(text: &str) -> Result<Self, BadToken> {
        match text.strip_prefix('t') {
            Some(order) => number(order).map(Self),
            None => text.parse::<SyncToken>().map(Self::from),
        }
    }
}

impl From<SyncToken> for PageToken {
    fn from(token: SyncToken) -> Self {
        Self(i64::try_from(token.0.0).unwrap_or(i64::MAX))
    }
}

/// A number written the one way in which we write it: no plus, no leading zeros.
fn number<N: FromStr + ToString>(text: &str) -> Result<N, BadToken> {
    let number = text.parse::<N>().map_err(|_| BadToken)?;
    if number.to_string() == text {
        Ok(number)
    } else {
        Err(BadToken)
    }
}

#[cfg(test)]
mod tests {
    //! What is written is read again, and nothing else is.

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn round_trips(position in 0..=i64::MAX.unsigned_abs(), order: i64) {
            let token = SyncToken(Position(position));
            prop_assert_eq!(token.to_string().parse(), Ok(token));
            prop_assert_eq!(token.to_string().parse(), Ok(PageToken(i64::try_from(position).expect("in range"))));
            prop_assert_eq!(PageToken(order).to_string().parse(), Ok(PageToken(order)));
        }

        #[test]
        fn only_what_we_write_is_read(text in "[st]?[-+0-9 ]{0,4}|.{0,6}") {
            if let Ok(token) = text.parse::<SyncToken>() {
                prop_assert_eq!(token.to_string(), text.clone());
            }
            if let Ok(token) = text.parse::<PageToken>() {
                prop_assert!(token.to_string() == text || text.starts_with('s'));
            }
        }
    }

    #[test]
    fn garbage_is_refused() {
        for text in [
            "",
            "s",
            "t",
            "5",
            "s-1",
            "s+1",
            "s01",
            "t01",
            "t-0",
            "t+1",
            "s1 ",
            " s1",
            "S1",
            "s1_2",
            "t1.0",
            "s1\0",
            "s9223372036854775808",
            "s18446744073709551616",
            "t9223372036854775808",
            "t-9223372036854775809",
            "s١",
        ] {
            assert_eq!(text.parse::<SyncToken>(), Err(BadToken), "{text}");
            assert_eq!(text.parse::<PageToken>(), Err(BadToken), "{text}");
        }
        assert_eq!(
            "t5".parse::<SyncToken>(),
            Err(BadToken),
            "a page of one timeline says nothing about a sync"
        );
    }
}
