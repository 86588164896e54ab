//! Events that the server sends later, unless their sender says otherwise before: MSC4140. An app that may die at any
//! moment leaves word so that others see it leave a call.
//!
//! Whoever knows the id of such an event may act on it; nobody else learns it. It is sent once, also when the node dies
//! meanwhile: its id is the transaction by which it is sent. Somebody else's change of the same state makes it void; that
//! is seen when anybody looks at it, so that no event of a room costs more because of this.

mod ended;
mod list;
mod run;

use std::{collections::HashSet, sync::Arc, time::Duration};

use http::StatusCode;
use parking_lot::Mutex;
use ruma::{RoomId, events::room::member::MembershipState};
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::list::Told;
use self::{
    ended::{Action, Ending},
    run::When,
};

use super::{
    Requester,
    accounts::Accounts,
    delayed_rows::Delayed,
    lifecycle::{Lifecycle, object},
    limits::{Kind, Limits},
    rooms::Rooms,
};
use crate::{
    clock::{Clock, Entropy},
    error::{Error, Result},
    protocol::ids::{Position, UserNid},
    store::{
        self, Store, View,
        schema::{
            CURRENT_STATE, DELAYED_ENDED, DELAYED_EVENTS, DELAYED_TRANSACTIONS, DelayedRow,
            DelayedTransactionRow, Outcome, ROOM_MEMBERS,
        },
    },
};

/// The longest delay.
pub const LONGEST_DELAY: Duration = Duration::from_hours(24);

/// How many such events a user may have at a time.
pub const MOST: usize = 100;

/// The longest content, type and state key, in bytes; with the rest, an event has 64 KiB at most.
const LONGEST_CONTENT: usize = 60 << 10;
const LONGEST_NAME: usize = 255;

/// How many changes of a piece of state by the same user are looked through for one by somebody else.
const MOST_CHANGES: usize = 100;

/// How many rows are removed in one commit.
const CHUNK: usize = 1000;

/// Events that are sent later.
pub struct DelayedEvents {
    store: Store,
    clock: Clock,
    entropy: Entropy,
    limits: Limits,
    accounts: Arc<Accounts>,
    rooms: Arc<Rooms>,
    lifecycle: Arc<Lifecycle>,
    tasks: TaskTracker,
    stop: CancellationToken,
    /// Those that are being sent; they can not be changed any more.
    sending: Mutex<HashSet<String>>,
    /// Told when something may be due earlier than it was.
    changed: Notify,
}

/// What this is built from.
pub struct Parts {
    /// Where they are kept.
    pub store: Store,
    /// When they are due.
    pub clock: Clock,
    /// Makes their ids.
    pub entropy: Entropy,
    /// How often a user may ask.
    pub limits: Limits,
    /// Whose they are.
    pub accounts: Arc<Accounts>,
    /// Where they go.
    pub rooms: Arc<Rooms>,
    /// Sends them.
    pub lifecycle: Arc<Lifecycle>,
    /// Where it runs.
    pub tasks: TaskTracker,
    /// When it ends.
    pub stop: CancellationToken,
}

/// An event that a client wants to be sent later.
#[derive(Debug)]
pub struct NewDelayed<'r> {
    /// Where.
    pub room: &'r RoomId,
    /// Its type.
    pub event_type: String,
    /// Its state key, if it is state.
    pub state_key: Option<String>,
    /// Its content; a transaction that is repeated may leave it out.
    pub content: Option<&'r str>,
    /// How long it waits.
    pub delay: Duration,
    /// The device's name for the request.
    pub txn_id: Option<&'r str>,
}

impl DelayedEvents {
    /// Nothing is sent before [`run`](Self::run).
    pub fn new(parts: Parts) -> Self {
        Self {
            store: parts.store,
            clock: parts.clock,
            entropy: parts.entropy,
            limits: parts.limits,
            accounts: parts.accounts,
            rooms: parts.rooms,
            lifecycle: parts.lifecycle,
            tasks: parts.tasks,
            stop: parts.stop,
            sending: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// Keeps an event to be sent later; gives the id by which it can be restarted, cancelled or sent at once. The same
    /// transaction of the same device gives the same id again.
    ///
    /// # Errors
    /// 400 for what can never be sent, 403 when the user is not in the room or the delay is too long, 413 M_TOO_LARGE, 429
    /// when they have too many.
    pub async fn add(&self, requester: &Requester, new: NewDelayed<'_>) -> Result<String> {
        self.limits
            .check(Kind::Message, requester.user_id.as_str())?;
        let transaction = Self::transaction(requester, &new);
        let now = self.clock.now_ms();
        let (id, position) = {
            let _still = self.accounts.still();
            let view = self.store.latest();
            if let Some(key) = &transaction
                && let Some(row) = DELAYED_TRANSACTIONS.get(&view, key)?
            {
                (row.delay_id, view.position())
            } else {
                let row = self.checked(&view, requester, new, now)?;
                let (kept, void) = self.of_user(&view, requester)?;
                if kept.len() >= MOST {
                    let first = kept.iter().map(|delayed| delayed.row.due).min();
                    let wait = first.unwrap_or(now).saturating_sub(now).max(1);
                    return Err(Error::limit_exceeded(Duration::from_millis(wait)));
                }
                let delayed = Delayed {
                    id: self.entropy.token(43),
                    row,
                };
                let ends = self.end_void(&void)?;
                let committed = self.store.commit(|batch| {
                    for end in &ends {
                        end.write(batch);
                    }
                    delayed.put(batch);
                    if let Some(key) = &transaction {
                        let row = DelayedTransactionRow {
                            delay_id: delayed.id.clone(),
                            ts: now,
                        };
                        DELAYED_TRANSACTIONS.put(batch, key, &row);
                    }
                    Ok(())
                })?;
                (delayed.id, committed.position)
            }
        };
        self.store.durable(position).await?;
        self.changed.notify_one();
        Ok(id)
    }

    /// What names a request among all of the device.
    fn transaction(
        requester: &Requester,
        new: &NewDelayed<'_>,
    ) -> Option<(UserNid, String, String)> {
        let txn_id = new.txn_id?;
        let scope = format!("{}/{}", new.room, new.event_type);
        // All may contain any character, so the length says where one ends.
        let key = format!("{}/{scope}/{txn_id}", scope.len());
        Some((requester.nid, requester.device_id.clone()?, key))
    }

    fn checked(
        &self,
        view: &View,
        requester: &Requester,
        new: NewDelayed<'_>,
        now: u64,
    ) -> Result<DelayedRow> {
        let content = new.content.ok_or_else(|| {
            let message = "The content is missing";
            Error::api(StatusCode::BAD_REQUEST, "M_NOT_JSON", message)
        })?;
        if new.delay > LONGEST_DELAY {
            return Err(Error::forbidden(format!(
                "An event can be delayed by at most {} milliseconds",
                LONGEST_DELAY.as_millis()
            )));
        }
        let key = new.state_key.as_deref();
        if new.event_type.len() > LONGEST_NAME || key.is_some_and(|key| key.len() > LONGEST_NAME) {
            return Err(Error::too_large(format!(
                "A type and a state key have at most {LONGEST_NAME} bytes"
            )));
        }
        if content.len() > LONGEST_CONTENT {
            return Err(Error::too_large(format!(
                "The content of a delayed event has at most {LONGEST_CONTENT} bytes"
            )));
        }
        object(content)?;
        if key.is_some() && matches!(&*new.event_type, "m.room.create" | "m.room.redaction") {
            return Err(Error::invalid_param("This can not be sent as state"));
        }
        let refused = || Error::forbidden("You are not in this room");
        let room = self.store.find_room(new.room)?.ok_or_else(refused)?;
        let member = ROOM_MEMBERS.get(view, &(room, requester.nid))?;
        let account = self.accounts.find(view, &requester.user_id)?;
        if member.is_none_or(|row| row.membership != MembershipState::Join)
            || account.is_none_or(|(_, account)| account.deactivated)
        {
            return Err(refused());
        }
        let seen = match key {
            Some(key) => CURRENT_STATE.get(view, &(room, new.event_type.as_str(), key))?,
            None => None,
        };
        let delay = u64::try_from(new.delay.as_millis()).unwrap_or(u64::MAX);
        Ok(DelayedRow {
            user: requester.nid,
            device: requester.device_id.clone().unwrap_or_default(),
            room,
            event_type: new.event_type,
            state_key: new.state_key,
            content: content.to_owned(),
            delay,
            since: now,
            due: now.saturating_add(delay),
            seen: seen.map(|(nid,)| nid),
        })
    }

    /// Lets the delay begin anew.
    ///
    /// # Errors
    /// 404 M_NOT_FOUND when it never was, or that is long ago, 409 when it was sent or cancelled; 429.
    pub async fn restart(&self, id: &str) -> Result<()> {
        self.change(id, Action::Restart).await
    }

    /// Has it never sent; that it is cancelled already is well.
    ///
    /// # Errors
    /// As [`restart`](Self::restart).
    pub async fn cancel(&self, id: &str) -> Result<()> {
        self.change(id, Action::Cancel).await
    }

    /// Bounds how often anybody acts on an event; on one that is not there there is nothing to bound.
    fn admit(&self, id: &str) -> Result<()> {
        let view = self.store.latest();
        if !DELAYED_EVENTS.contains(&view, &(id,))? && !DELAYED_ENDED.contains(&view, &(id,))? {
            return Err(not_there());
        }
        self.limits.check(Kind::Message, id)
    }

    async fn change(&self, id: &str, action: Action) -> Result<()> {
        self.admit(id)?;
        let position = {
            let _still = self.accounts.still();
            let sending = self.sending.lock();
            match self.waiting(id, &sending)? {
                Some(delayed) => self.write_change(&delayed, action)?,
                None => {
                    self.bury(id, &sending)?;
                    drop(sending);
                    self.too_late(id, action)?;
                    // Whoever did it first may still wait for the disk.
                    self.store.latest().position()
                }
            }
        };
        self.store.durable(position).await?;
        self.changed.notify_one();
        Ok(())
    }

    fn write_change(&self, delayed: &Delayed, action: Action) -> Result<Position> {
        let committed = if action == Action::Restart {
            let mut again = delayed.clone();
            again.row.since = self.clock.now_ms();
            again.row.due = again.row.since.saturating_add(again.row.delay);
            self.store.commit(|batch| {
                delayed.remove(batch);
                again.put(batch);
                Ok(())
            })?
        } else {
            let end = self.end(delayed, Outcome::Cancelled)?;
            self.store.commit(|batch| {
                end.write(batch);
                Ok(())
            })?
        };
        Ok(committed.position)
    }

    /// Sends it now; that it is sent already is well. Where it can not be sent it goes on to wait for its time.
    ///
    /// # Errors
    /// As [`restart`](Self::restart), and why it can not be sent.
    pub async fn send(&self, id: &str) -> Result<()> {
        self.admit(id)?;
        match self.take(id, None)? {
            Some(delayed) => self.deliver(&delayed, When::Asked).await,
            None => {
                self.too_late(id, Action::Send)?;
                Ok(self.store.durable(self.store.latest().position()).await?)
            }
        }
    }

    /// What is written of events that are void.
    fn end_void(&self, void: &[Delayed]) -> Result<Vec<Ending>> {
        let end = |delayed| {
            let outcome = Outcome::Refused {
                errcode: "M_UNKNOWN".to_owned(),
                message: "Somebody else has changed this state meanwhile".to_owned(),
            };
            self.end(delayed, outcome)
        };
        void.iter().map(end).collect()
    }

    /// Ends an event that is there but does not wait, as it is void. To be called while `sending` is held.
    fn bury(&self, id: &str, sending: &HashSet<String>) -> Result<()> {
        if sending.contains(id) {
            return Ok(());
        }
        if let Some(row) = DELAYED_EVENTS.get(&self.store.latest(), &(id,))? {
            let id = id.to_owned();
            let ends = self.end_void(&[Delayed { id, row }])?;
            let _not_awaited = self.store.commit(|batch| {
                for end in &ends {
                    end.write(batch);
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Those of a user that are still good, and those that are void.
    fn of_user(&self, view: &View, requester: &Requester) -> Result<(Vec<Delayed>, Vec<Delayed>)> {
        let (mut kept, mut void) = (Vec::new(), Vec::new());
        for delayed in Delayed::of_user(view, requester.nid)? {
            if self.is_void(view, &delayed.row)? {
                void.push(delayed);
            } else {
                kept.push(delayed);
            }
        }
        Ok((kept, void))
    }

    /// One that waits and is good. To be called while `sending` is held.
    fn waiting(&self, id: &str, sending: &HashSet<String>) -> Result<Option<Delayed>> {
        if sending.contains(id) {
            return Ok(None);
        }
        let view = self.store.latest();
        let Some(row) = DELAYED_EVENTS.get(&view, &(id,))? else {
            return Ok(None);
        };
        let id = id.to_owned();
        let is_void = self.is_void(&view, &row)?;
        Ok((!is_void).then_some(Delayed { id, row }))
    }

    /// Whether somebody else has changed the state since that it would set.
    fn is_void(&self, view: &View, row: &DelayedRow) -> Result<bool> {
        let Some(state_key) = &row.state_key else {
            return Ok(false);
        };
        let user = self.store.user_id(row.user)?;
        let key = (row.room, row.event_type.as_str(), state_key.as_str());
        let mut present = CURRENT_STATE.get(view, &key)?.map(|(nid,)| nid);
        for _ in 0..MOST_CHANGES {
            let Some(nid) = present.filter(|nid| row.seen.is_none_or(|seen| *nid > seen)) else {
                return Ok(false);
            };
            let stored = self.rooms.event(view, nid)?;
            if stored.event.header.sender != **user {
                return Ok(true);
            }
            present = stored.facts.replaces;
        }
        Ok(false)
    }

    /// Removes the answers to transactions that nobody repeats any more; says how many.
    ///
    /// # Errors
    /// When the store fails.
    pub fn forget_transactions(&self, age: Duration) -> Result<usize> {
        let age = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        let oldest = self.clock.now_ms().saturating_sub(age);
        let view = self.store.view();
        let mut old = DELAYED_TRANSACTIONS
            .scan(&view, &())
            .filter(|row| row.as_ref().map_or(true, |(_, row)| row.ts < oldest));
        let mut removed = 0;
        loop {
            let chunk: Vec<_> = old.by_ref().take(CHUNK).collect::<store::Result<_>>()?;
            if chunk.is_empty() {
                return Ok(removed);
            }
            let _not_awaited = self.store.commit(|batch| {
                for (key, _) in &chunk {
                    DELAYED_TRANSACTIONS.delete(batch, key);
                }
                Ok(())
            })?;
            removed += chunk.len();
        }
    }
}

fn not_there() -> Error {
    Error::not_found("The delayed event")
}
