//! Events with text, as they become visible: a list in memory for the one who makes them searchable.
//!
//! It only says where to look, and only until it was taken. Whoever starts, or was told that something is missing here, looks
//! at the events since the last one that was seen, and into `SEARCH_AGAIN`.

use parking_lot::Mutex;
use tokio::sync::{Notify, futures::Notified};

use crate::protocol::ids::{EventNid, Position};

/// How many are kept for one who does not come to take them.
const MOST: usize = 50_000;

/// Events with text that were not looked at yet.
#[derive(Default)]
pub struct Texts {
    noted: Mutex<Noted>,
    wake: Notify,
}

#[derive(Default)]
struct Noted {
    followed: bool,
    events: Vec<EventNid>,
    until: Position,
    incomplete: bool,
}

/// What was noted.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// The events, in the order in which they became visible; one may come several times.
    pub events: Vec<EventNid>,
    /// Up to here nothing else has come. A view that is taken afterwards shows all of it.
    pub until: Position,
    /// Whether some are missing.
    pub incomplete: bool,
}

impl Texts {
    /// Notes what comes from now on.
    pub fn follow(&self) {
        self.noted.lock().followed = true;
    }

    /// Returns when there is something to take.
    pub fn wait(&self) -> Notified<'_> {
        self.wake.notified()
    }

    /// When the last text became visible that was noted here.
    #[must_use]
    pub fn last(&self) -> Position {
        self.noted.lock().until
    }

    /// What was noted since this was asked the last time.
    #[must_use]
    pub fn take(&self) -> Taken {
        let mut noted = self.noted.lock();
        Taken {
            events: std::mem::take(&mut noted.events),
            until: noted.until,
            incomplete: std::mem::take(&mut noted.incomplete),
        }
    }

    /// Adds what is visible since this position, never anything before that.
    pub(super) fn publish(&self, position: Position, events: Vec<EventNid>) {
        if events.is_empty() {
            return;
        }
        let mut noted = self.noted.lock();
        if !noted.followed {
            return;
        }
        noted.until = position;
        if noted.events.len() + events.len() > MOST {
            noted.events = Vec::new();
            noted.incomplete = true;
        } else {
            noted.events.extend(events);
        }
        drop(noted);
        self.wake.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_taken_does_not_pile_up() {
        let texts = Texts::default();
        texts.publish(Position(1), vec![EventNid(1)]);
        assert_eq!(texts.take(), Taken::default());
        texts.follow();
        texts.publish(Position(4), vec![EventNid(2), EventNid(3)]);
        texts.publish(Position(5), Vec::new());
        let expect = Taken {
            events: vec![EventNid(2), EventNid(3)],
            until: Position(4),
            incomplete: false,
        };
        assert_eq!(texts.take(), expect);
        for nid in 0..=u64::try_from(MOST).unwrap() {
            texts.publish(Position(nid + 5), vec![EventNid(nid)]);
        }
        let taken = texts.take();
        assert!(taken.incomplete && taken.events.is_empty());
        assert_eq!(taken.until, texts.last());
        assert!(!texts.take().incomplete);
    }
}
