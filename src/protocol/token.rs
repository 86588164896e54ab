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

/// Where a sync ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SyncToken {
    /// Everything up to and with this position was told, but perhaps for messages to the device.
    pub position: Position,
    /// Of those only the ones up to and with this earlier position were told: there were more than fit.
    pub messages: Option<Position>,
    /// Some of what timelines told after this earlier position does not hold, as other branches had undone it: the state
    /// that holds is to be told with the next sync.
    pub unsettled: Option<Position>,
}

impl SyncToken {
    /// Everything up to and with this position was told.
    #[must_use]
    pub const fn at(position: Position) -> Self {
        Self {
            position,
            messages: None,
            unsettled: None,
        }
    }

    /// Up to where messages to the device were told.
    #[must_use]
    pub fn messages(self) -> Position {
        self.messages.unwrap_or(self.position)
    }
}

/// A gap between two events of a timeline: behind the event with this order, before the next.
///
/// A sync token says the same of every timeline at once, as live events are ordered by their positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PageToken(pub i64);

/// Where a connection of sliding sync stands: `p`, a position, and which answer on which connection it came with.
///
/// See MSC4186. It serves as a [`PageToken`] too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlidingToken {
    /// Everything up to and with this position was told, or is noted on the connection.
    pub position: Position,
    /// Tells the connections of different devices apart, and those of one with different names.
    pub owner: u64,
    /// Tells the connections apart that one device has had under one name.
    pub epoch: u64,
    /// Counts the answers.
    pub number: u64,
}

impl fmt::Display for SlidingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            position,
            owner,
            epoch,
            number,
        } = self;
        write!(f, "p{position}_{owner}_{epoch}_{number}")
    }
}

impl FromStr for SlidingToken {
    type Err = BadToken;

    fn from_str(text: &str) -> Result<Self, BadToken> {
        let text = text.strip_prefix('p').ok_or(BadToken)?;
        let mut numbers = text.split('_').map(number::<u64>);
        let mut next = || numbers.next().ok_or(BadToken)?;
        let token = Self {
            position: Position(next()?),
            owner: next()?,
            epoch: next()?,
            number: next()?,
        };
        // Positions are orders too, and those are signed.
        if i64::try_from(token.position.0).is_err() || numbers.next().is_some() {
            return Err(BadToken);
        }
        Ok(token)
    }
}

impl fmt::Display for SyncToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{}", self.position)?;
        match (self.messages, self.unsettled) {
            (None, None) => Ok(()),
            (Some(messages), None) => write!(f, "_{messages}"),
            (_, Some(from)) => write!(f, "_{}_{from}", self.messages()),
        }
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
        let text = text.strip_prefix('s').ok_or(BadToken)?;
        let mut numbers = text.split('_').map(number::<u64>);
        let position = numbers.next().ok_or(BadToken)??;
        let messages = numbers.next().transpose()?;
        let unsettled = numbers.next().transpose()?;
        // Positions are orders too, and those are signed.
        if numbers.next().is_some()
            || i64::try_from(position).is_err()
            || messages.is_some_and(|of| of > position)
            || (messages == Some(position) && unsettled.is_none())
            || unsettled.is_some_and(|from| from >= position)
        {
            return Err(BadToken);
        }
        Ok(Self {
            position: Position(position),
            messages: messages.filter(|of| *of < position).map(Position),
            unsettled: unsettled.map(Position),
        })
    }
}

impl FromStr for PageToken {
    type Err = BadToken;

    fn from_str(text: &str) -> Result<Self, BadToken> {
        match text.strip_prefix('t') {
            Some(order) => number(order).map(Self),
            None if text.starts_with('p') => text
                .parse::<SlidingToken>()
                .map(|token| Self(token.position.live_order())),
            None => text.parse::<SyncToken>().map(Self::from),
        }
    }
}

impl From<SyncToken> for PageToken {
    fn from(token: SyncToken) -> Self {
        Self(token.position.live_order())
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
            let token = SyncToken::at(Position(position));
            prop_assert_eq!(token.to_string().parse(), Ok(token));
            prop_assert_eq!(token.to_string().parse(), Ok(PageToken(i64::try_from(position).expect("in range"))));
            let earlier = Some(Position(position / 2));
            for (messages, unsettled) in [(earlier, None), (None, earlier), (earlier, earlier)] {
                let cut = SyncToken { position: Position(position), messages, unsettled };
                let read = if position > 0 { Ok(cut) } else { Err(BadToken) };
                prop_assert_eq!(cut.to_string().parse(), read);
            }
            prop_assert_eq!(PageToken(order).to_string().parse(), Ok(PageToken(order)));
        }

        #[test]
        fn places_on_connections_round_trip(position in 0..=i64::MAX.unsigned_abs(), owner: u64, epoch: u64, number: u64) {
            let token = SlidingToken { position: Position(position), owner, epoch, number };
            prop_assert_eq!(token.to_string().parse(), Ok(token));
            prop_assert_eq!(token.to_string().parse(), Ok(PageToken(i64::try_from(position).expect("in range"))));
            prop_assert_eq!(format!("{token}_0").parse::<SlidingToken>(), Err(BadToken));
        }

        #[test]
        fn only_what_we_write_is_read(text in "[stp]?[-+0-9_ ]{0,4}|.{0,6}|p[0-9_]{0,9}") {
            if let Ok(token) = text.parse::<SlidingToken>() {
                prop_assert_eq!(token.to_string(), text.clone());
            }
            if let Ok(token) = text.parse::<SyncToken>() {
                prop_assert_eq!(token.to_string(), text.clone());
            }
            if let Ok(token) = text.parse::<PageToken>() {
                prop_assert!(token.to_string() == text || text.starts_with(['s', 'p']));
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
            "s1_1",
            "s2_01",
            "s2_",
            "s2_1_2",
            "s2_3_1",
            "s2_1_0_0",
            "s2__1",
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
