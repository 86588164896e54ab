//! Sends events when they are due: those of a room one after the other, those of several rooms beside each other, so that
//! one slow room keeps nobody waiting.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use http::StatusCode;
use parking_lot::Mutex;
use ruma::OwnedEventId;

use super::{DelayedEvents, not_there};
use crate::{
    error::{Error, Result},
    protocol::ids::{Position, RoomNid},
    service::{
        Requester,
        delayed_rows::Delayed,
        lifecycle::{DelayedContent, object},
    },
    store::schema::{ACCOUNTS, DELAYED_DUE, DELAYED_EVENTS, Outcome},
};

/// When it is tried again, where the node or another server was at fault: after as long as it is late already, within these
/// bounds, until it is sent or refused.
const AGAIN: Duration = Duration::from_secs(5);
const AGAIN_AT_LATEST: Duration = Duration::from_secs(10 * 60);

/// The clock of the machine may be set while the node waits, so it is looked at now and then.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// How many events are picked up at once.
const MOST_AT_ONCE: usize = 1000;

/// Why an event is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    /// Its time has come.
    Due,
    /// Somebody has asked for it.
    Asked,
}

type Busy = Arc<Mutex<HashSet<RoomNid>>>;

impl DelayedEvents {
    /// Sends what is due, from now on until the node stops.
    pub async fn run(self: Arc<Self>) {
        let busy = Busy::default();
        while !self.stop.is_cancelled() {
            let wait = self.begin_due(&busy).unwrap_or_else(|error| {
                tracing::error!(%error, "delayed events could not be read");
                Some(AGAIN)
            });
            let wait = wait.map_or(LONGEST_WAIT, |wait| wait.min(LONGEST_WAIT));
            tokio::select! {
                () = self.changed.notified() => {}
                () = self.clock.sleep(wait) => {}
                () = self.stop.cancelled() => {}
            }
        }
    }

    /// Begins to send what is due in rooms that are not busy; says when to look again.
    fn begin_due(self: &Arc<Self>, busy: &Busy) -> Result<Option<Duration>> {
        let now = self.clock.now_ms();
        let view = self.store.latest();
        let mut due: BTreeMap<RoomNid, Vec<String>> = BTreeMap::new();
        let mut next = None;
        let mut count = 0;
        let mut rooms = busy.lock();
        for row in DELAYED_DUE.scan(&view, &()) {
            let ((at, id), (room,)) = row?;
            if at > now || count >= MOST_AT_ONCE {
                next = Some(Duration::from_millis(at.saturating_sub(now)));
                break;
            }
            if !rooms.contains(&room) {
                due.entry(room).or_default().push(id);
                count += 1;
            }
        }
        for (room, ids) in due {
            rooms.insert(room);
            let (this, busy) = (self.clone(), busy.clone());
            self.tasks.spawn(async move {
                for id in ids {
                    if this.stop.is_cancelled() {
                        return;
                    }
                    if let Err(error) = this.fire(&id).await {
                        tracing::debug!(%error, "a delayed event was not sent");
                    }
                }
                busy.lock().remove(&room);
                this.changed.notify_one();
            });
        }
        Ok(next)
    }

    async fn fire(&self, id: &str) -> Result<()> {
        let now = self.clock.now_ms();
        match self.take(id, Some(now))? {
            Some(delayed) => self.deliver(&delayed, When::Due).await,
            None => Ok(()),
        }
    }

    /// Takes an event to be sent, so that nobody else does; only if it is due by then, where that is said. One that is void
    /// is ended.
    pub(super) fn take(&self, id: &str, due_by: Option<u64>) -> Result<Option<Delayed>> {
        let _still = self.accounts.still();
        let mut sending = self.sending.lock();
        if let Some(delayed) = self.waiting(id, &sending)? {
            let is_due = due_by.is_none_or(|now| delayed.row.due <= now);
            if is_due {
                sending.insert(delayed.id.clone());
            }
            return Ok(is_due.then_some(delayed));
        }
        self.bury(id, &sending)?;
        Ok(None)
    }

    /// Sends what was taken, and ends it; where that failed for no fault of its own, it waits for another time.
    pub(super) async fn deliver(&self, delayed: &Delayed, when: When) -> Result<()> {
        let sent = self.submit(delayed).await;
        let done = {
            let _still = self.accounts.still();
            let mut sending = self.sending.lock();
            sending.remove(&delayed.id);
            self.finish(delayed, &sent, when)
        };
        match (sent, done) {
            (Ok(_), Ok(position)) => Ok(self.store.durable(position).await?),
            (Err(error), _) | (_, Err(error)) => Err(error),
        }
    }

    fn finish(
        &self,
        delayed: &Delayed,
        sent: &Result<OwnedEventId>,
        when: When,
    ) -> Result<Position> {
        let view = self.store.latest();
        if !DELAYED_EVENTS.contains(&view, &(delayed.id.as_str(),))? {
            // Gone with its user.
            return Ok(view.position());
        }
        let outcome = match sent {
            Ok(id) => Outcome::Sent(id.clone()),
            // What stands in its way may be gone until its time comes.
            Err(_) if when == When::Asked => return Ok(view.position()),
            Err(error) if is_temporary(error) => return self.put_off(delayed, error),
            Err(error) => {
                let user = self.store.user_id(delayed.row.user)?;
                let room = self.store.room_id(delayed.row.room)?;
                tracing::warn!(%user, %room, %error, "a delayed event is refused, and not sent");
                let (_, errcode, message) = error.answer();
                let errcode = errcode.to_owned();
                Outcome::Refused { errcode, message }
            }
        };
        let end = self.end(delayed, outcome)?;
        let committed = self.store.commit(|batch| {
            end.write(batch);
            Ok(())
        })?;
        Ok(committed.position)
    }

    /// Has it tried again later.
    fn put_off(&self, delayed: &Delayed, error: &Error) -> Result<Position> {
        let now = self.clock.now_ms();
        let late = now.saturating_sub(delayed.row.since.saturating_add(delayed.row.delay));
        let wait = late.clamp(ms(AGAIN), ms(AGAIN_AT_LATEST));
        let user = self.store.user_id(delayed.row.user)?;
        let room = self.store.room_id(delayed.row.room)?;
        tracing::warn!(
            %user, %room, %error, late_ms = late, again_in_ms = wait,
            "a delayed event could not be sent yet"
        );
        let mut again = delayed.clone();
        again.row.due = now.saturating_add(wait);
        let committed = self.store.commit(|batch| {
            delayed.remove(batch);
            again.put(batch);
            Ok(())
        })?;
        Ok(committed.position)
    }

    async fn submit(&self, delayed: &Delayed) -> Result<OwnedEventId> {
        let row = &delayed.row;
        let account = ACCOUNTS.get(&self.store.latest(), &(row.user,))?;
        let account = account.filter(|account| !account.deactivated);
        let account = account.ok_or_else(not_there)?;
        let requester = Requester {
            user_id: (*self.store.user_id(row.user)?).clone(),
            nid: row.user,
            device_id: Some(row.device.clone()),
            guest: account.guest,
            admin: account.admin,
        };
        let room = self.store.room_id(row.room)?;
        let content = object(&row.content)?;
        let event = DelayedContent {
            event_type: row.event_type.as_str(),
            state_key: row.state_key.as_deref(),
            content,
        };
        let sending = self
            .lifecycle
            .send_delayed(&requester, &room, event, &delayed.id);
        Box::pin(sending).await
    }
}

/// Whether the same may succeed later.
fn is_temporary(error: &Error) -> bool {
    let (status, _, _) = error.answer();
    status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
