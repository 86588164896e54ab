//! What has become of delayed events: which were sent, cancelled or refused, for a while. By it a request that is repeated
//! gets its answer again, and a sender learns what was not sent and why.

use std::time::Duration;

use http::StatusCode;

use super::{DelayedEvents, not_there};
use crate::{
    error::{Error, Result},
    service::delayed_rows::{Delayed, ended_of},
    store::{
        self, Batch,
        schema::{DELAYED_ENDED, DELAYED_ENDED_OF, EndedRow, Outcome},
    },
};

/// Of how many a user is told; the oldest are forgotten first.
const MOST_ENDED: usize = 100;

/// For how long, at most.
const ENDED_AGE: Duration = Duration::from_hours(24 * 7);

/// How many rows are removed in one commit.
const CHUNK: usize = 1000;

/// What is done to an event by its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Restart,
    Cancel,
    Send,
}

impl DelayedEvents {
    /// Puts in the place of an event what has become of it.
    pub(super) fn end(&self, delayed: &Delayed, outcome: Outcome) -> Result<Ending> {
        let of_user = ended_of(&self.store.latest(), delayed.row.user)?;
        let too_many = (of_user.len() + 1).saturating_sub(MOST_ENDED);
        Ok(Ending {
            delayed: delayed.clone(),
            row: EndedRow {
                event: delayed.row.clone(),
                at: self.clock.now_ms(),
                outcome,
            },
            forgotten: of_user.into_iter().take(too_many).collect(),
        })
    }

    /// The answer to whoever acts on an event that does not wait: what has happened already is well, and what can not
    /// happen any more is refused.
    pub(super) fn too_late(&self, id: &str, action: Action) -> Result<()> {
        let conflict = |message| Error::api(StatusCode::CONFLICT, "M_UNKNOWN", message);
        if self.sending.lock().contains(id) {
            return Err(conflict("The delayed event is being sent"));
        }
        let row = DELAYED_ENDED.get(&self.store.latest(), &(id,))?;
        match (row.ok_or_else(not_there)?.outcome, action) {
            (Outcome::Sent(_), Action::Send)
            | (Outcome::Cancelled | Outcome::Refused { .. }, Action::Cancel) => Ok(()),
            (Outcome::Sent(_), _) => Err(conflict("The delayed event has been sent")),
            (Outcome::Cancelled, _) => Err(conflict("The delayed event has been cancelled")),
            (Outcome::Refused { .. }, _) => Err(conflict("The delayed event could not be sent")),
        }
    }

    /// Removes what nobody needs to know any more; says how much.
    ///
    /// # Errors
    /// When the store fails.
    pub fn forget_ended(&self) -> Result<usize> {
        let age = u64::try_from(ENDED_AGE.as_millis()).unwrap_or(u64::MAX);
        let oldest = self.clock.now_ms().saturating_sub(age);
        let view = self.store.view();
        let mut old = DELAYED_ENDED_OF
            .scan(&view, &())
            .filter(|row| row.as_ref().map_or(true, |((_, at, _), ())| *at < oldest));
        let mut removed = 0;
        loop {
            let chunk: Vec<_> = old.by_ref().take(CHUNK).collect::<store::Result<_>>()?;
            if chunk.is_empty() {
                return Ok(removed);
            }
            let _not_awaited = self.store.commit(|batch| {
                for (key, ()) in &chunk {
                    DELAYED_ENDED.delete(batch, &(key.2.as_str(),));
                    DELAYED_ENDED_OF.delete(batch, key);
                }
                Ok(())
            })?;
            removed += chunk.len();
        }
    }
}

/// The end of an event that waited, ready to be written.
pub(super) struct Ending {
    delayed: Delayed,
    row: EndedRow,
    /// When those ended that are forgotten for it, and their ids.
    forgotten: Vec<(u64, String)>,
}

impl Ending {
    pub(super) fn write(&self, batch: &mut Batch<'_>) {
        let (user, id) = (self.row.event.user, self.delayed.id.as_str());
        self.delayed.remove(batch);
        for (at, id) in &self.forgotten {
            DELAYED_ENDED.delete(batch, &(id.as_str(),));
            DELAYED_ENDED_OF.delete(batch, &(user, *at, id.as_str()));
        }
        DELAYED_ENDED.put(batch, &(id,), &self.row);
        DELAYED_ENDED_OF.put(batch, &(user, self.row.at, id), &());
    }
}
