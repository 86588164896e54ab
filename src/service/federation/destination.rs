//! One server that is told what happens here: what it is still to be told, and when it is tried again.
//!
//! The queue is only a part of what waits, as far as memory allows; the rest follows from the cursor and the tables.
//! Whoever is told everything costs a few hundred bytes and no task. See "Transactions" in the server-server API.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use ruma::OwnedServerName;
use tokio::sync::Notify;

use super::transaction::{Flight, MAX_EDUS, MAX_EVENTS};
use crate::{
    protocol::{
        backoff::Schedule,
        ids::{EventNid, Position, RoomNid, ServerNid, UserNid},
    },
    store::schema::DestinationRow,
};

/// How many items wait in memory; what is more is read again later.
pub(super) const MAX_QUEUE: usize = 10_000;

/// The most receipts of a transaction.
const MAX_RECEIPTS: usize = 60;

/// The most messages of a transaction that must not be lost; and, with receipts, so many that the rest has a place.
const MAX_LASTING: usize = 50;
const MAX_STORED: usize = MAX_EDUS - MAX_TYPING - 1;

/// The most notices of typing of a transaction.
const MAX_TYPING: usize = 30;

/// The most people whose presence is told in a transaction, all in one EDU.
const MAX_PRESENCE: usize = 100;

/// A peer that is down is tried again this soon when somebody has something new to say to it: they may have seen
/// before us that the link is back.
const PEER_NEWS: Duration = Duration::from_secs(1);

/// As long as a peer is down for a short time only, it is tried this often; later so that what it waits for us is this
/// part of how long it was down.
const PEER_SOON: Duration = Duration::from_secs(1);
const PART_OF_OUTAGE: u64 = 20;

/// A server that was heard of is tried again at once, but not more often than this: perhaps only its half of the link
/// works.
const HEARD: Duration = Duration::from_millis(500);

/// An attempt that has got no answer for so long, while the server was heard of, is doubted: its connection may be as dead
/// as the link was. Of a server that was up it is not, as long as it may only be slow.
const SLOW: Duration = Duration::from_secs(2);

/// What an item in the queue is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// An event of a room that the server is in.
    Event,
    /// An event for a server that is in the room no more.
    Extra,
    /// A receipt.
    Receipt,
    /// A message that must not be lost; of no room.
    Lasting,
}

/// Something that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) position: Position,
    pub(super) room: RoomNid,
    /// Which event; the position of all else says what it is.
    pub(super) event: EventNid,
    pub(super) what: What,
}

/// A server that is told what happens here.
pub(super) struct Destination {
    pub(super) nid: ServerNid,
    pub(super) name: OwnedServerName,
    /// Told when there may be a reason not to wait any longer.
    pub(super) wake: Notify,
    /// Told when there is a reason to doubt that an attempt will be answered.
    pub(super) doubt: Notify,
    state: Mutex<State>,
}

/// What the peer table says.
struct Standing {
    is_peer: bool,
    schedule: Schedule,
}

/// What changes.
pub(super) struct State {
    standing: Standing,
    pub(super) row: DestinationRow,
    queue: VecDeque<Item>,
    /// Whether the queue holds everything after the cursor that is not in flight.
    complete: bool,
    /// Nothing at or below this comes into the queue.
    queued_to: Position,
    typing: BTreeMap<(RoomNid, UserNid), bool>,
    presence: BTreeMap<UserNid, Arc<str>>,
    /// Whether it is to hear of us even if there is nothing to tell.
    hello: bool,
    /// What is in flight.
    flying: Vec<Item>,
    /// Whether there is a task.
    running: bool,
    next_try: Option<Instant>,
    last_attempt: Option<Instant>,
    /// The attempt that is being made.
    attempt: Option<Attempt>,
    /// The most events of the next transaction: fewer while one of those sent is refused.
    most: usize,
    /// How often a single event was refused.
    refused: u32,
    /// Rows of `EXTRA_TARGETS` that are done with.
    pub(super) done_extras: Vec<Position>,
    /// The same of `LASTING_EDUS`.
    pub(super) done_edus: Vec<Position>,
    returned: Option<Returned>,
}

/// An attempt to reach it.
struct Attempt {
    /// How soon after its beginning the next one may come, if there has been a reason for that.
    urged: Option<Duration>,
}

/// A server that is back and not told everything yet.
struct Returned {
    /// For how long it was away.
    down: Duration,
    at: Instant,
    events: usize,
}

/// What its task does next.
pub(super) enum Step {
    /// Nothing: it is over, and perhaps everything that had waited was told.
    Done(News),
    /// Wait.
    Wait(Duration),
    /// Look into the tables.
    Load,
    /// Send what is in flight, or this.
    Send(Option<Flight>),
}

/// What came of an attempt.
pub(super) enum Verdict {
    /// It has got it; or there was nothing that it needs.
    Delivered {
        /// Whether it was asked at all.
        contact: bool,
        /// How many events it got.
        events: usize,
    },
    /// It could not be reached, or did not want it.
    Failed {
        problem: String,
        /// It wants to be left alone so long.
        pause: Option<Duration>,
        /// It refuses what was sent, whenever it is sent.
        refused: bool,
    },
}

/// What the log is told.
pub(super) enum News {
    Nothing,
    Down,
    Back {
        events: usize,
        took: Duration,
        down: Duration,
    },
    /// One event was given up, as the server refuses it whatever comes with it.
    GaveUp,
}

impl Destination {
    pub(super) fn new(
        nid: ServerNid,
        name: OwnedServerName,
        is_peer: bool,
        schedule: Schedule,
        row: DestinationRow,
    ) -> Self {
        Self {
            nid,
            name,
            wake: Notify::new(),
            doubt: Notify::new(),
            state: Mutex::new(State {
                standing: Standing { is_peer, schedule },
                queued_to: row.cursor,
                row,
                queue: VecDeque::new(),
                complete: false,
                typing: BTreeMap::new(),
                presence: BTreeMap::new(),
                hello: false,
                flying: Vec::new(),
                running: false,
                next_try: None,
                last_attempt: None,
                attempt: None,
                most: MAX_EVENTS,
                refused: 0,
                done_extras: Vec::new(),
                done_edus: Vec::new(),
                returned: None,
            }),
        }
    }

    /// Goes on to wait as long as before the node was stopped.
    pub(super) fn resume(&self, now_ms: u64, now: Instant, jitter: u64) {
        let mut state = self.state.lock();
        let row = &state.row;
        if row.failures > 0 {
            let next = state
                .standing
                .schedule
                .next_try(row.failures, row.last_failure, jitter);
            state.next_try = Some(now + Duration::from_millis(next.saturating_sub(now_ms)));
        }
    }

    /// What is known of it, for whoever asks or writes it down.
    pub(super) fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.state.lock())
    }

    /// Adds something that has happened now. True if a task has to be started.
    pub(super) fn push(&self, item: Item, now: Instant) -> bool {
        let mut state = self.state.lock();
        if state.complete && item.position > state.queued_to {
            if state.queue.len() < MAX_QUEUE {
                state.queue.push_back(item);
                state.queued_to = item.position;
            } else {
                state.complete = false;
            }
        }
        let is_down = state.row.down_since > 0;
        if state.standing.is_peer && is_down && item.what != What::Receipt {
            self.hasten(&mut state, now, PEER_NEWS);
        }
        !std::mem::replace(&mut state.running, true)
    }

    /// Adds what is told only if nothing newer is. True if a task has to be started.
    pub(super) fn set_typing(&self, room: RoomNid, user: UserNid, typing: bool) -> bool {
        let mut state = self.state.lock();
        state.typing.insert((room, user), typing);
        !std::mem::replace(&mut state.running, true)
    }

    /// The same for presence.
    pub(super) fn set_presence(&self, user: UserNid, json: Arc<str>) -> bool {
        let mut state = self.state.lock();
        state.presence.insert(user, json);
        !std::mem::replace(&mut state.running, true)
    }

    /// Has the tables looked at again. True if a task has to be started.
    pub(super) fn look_again(&self) -> bool {
        let mut state = self.state.lock();
        state.complete = false;
        !std::mem::replace(&mut state.running, true)
    }

    /// It has become a peer, or is none any more.
    pub(super) fn regard(&self, is_peer: bool, schedule: Schedule) {
        let mut state = self.state.lock();
        state.standing = Standing { is_peer, schedule };
    }

    /// Tells it that we are there. True if a task has to be started.
    pub(super) fn hello(&self) -> bool {
        let mut state = self.state.lock();
        state.hello = true;
        state.next_try = None;
        !std::mem::replace(&mut state.running, true)
    }

    /// It is there after all.
    pub(super) fn heard(&self, now: Instant) {
        let mut state = self.state.lock();
        if state.next_try.is_some() {
            state.row.failures = 0;
        }
        self.hasten(&mut state, now, HEARD);
    }

    /// Has it tried again so soon after the last attempt began. Does nothing while all is well.
    fn hasten(&self, state: &mut State, now: Instant, after: Duration) {
        if let Some(attempt) = &mut state.attempt {
            attempt.urged = Some(attempt.urged.map_or(after, |urged| urged.min(after)));
            self.doubt.notify_one();
            return;
        }
        let Some(next) = state.next_try else { return };
        let soon = state.last_attempt.map_or(now, |last| last + after);
        if soon < next {
            state.next_try = Some(soon);
            self.wake.notify_one();
        }
    }

    /// How long an attempt is not doubted.
    pub(super) fn patience(&self) -> Duration {
        let is_down = self.state.lock().row.down_since > 0;
        if is_down { HEARD } else { SLOW }
    }

    /// What to do now.
    pub(super) fn next(&self, in_flight: bool, now: Instant) -> Step {
        let mut state = self.state.lock();
        if let Some(next) = state.next_try.filter(|next| *next > now) {
            return Step::Wait(next - now);
        }
        if in_flight {
            state.begin(now);
            return Step::Send(None);
        }
        if state.queue.is_empty() && !state.complete {
            return Step::Load;
        }
        let idle = state.queue.is_empty() && state.typing.is_empty() && state.presence.is_empty();
        if idle && !state.hello {
            state.running = false;
            return Step::Done(state.caught_up(now));
        }
        state.begin(now);
        Step::Send(Some(state.take()))
    }

    /// From here on the queue is told everything new, while somebody reads what was before.
    pub(super) fn begin_load(&self) -> Position {
        let mut state = self.state.lock();
        state.complete = true;
        state.queue.clear();
        state.queued_to = state.row.cursor;
        state.row.cursor
    }

    /// What was found after the cursor up to a position: all of it, or as much as fits.
    pub(super) fn end_load(&self, found: Vec<Item>, until: Position, is_all: bool) {
        let mut state = self.state.lock();
        let newer: VecDeque<Item> = std::mem::take(&mut state.queue)
            .into_iter()
            .filter(|item| item.position > until)
            .collect();
        state.queue = found.into();
        if !is_all {
            state.complete = false;
            return;
        }
        if state.queue.is_empty() && state.row.sent.is_none() {
            state.row.cursor = state.row.cursor.max(until);
        }
        state.queue.extend(newer);
        state.queued_to = state.queued_to.max(until);
    }

    /// What came of what was sent.
    pub(super) fn settle(
        &self,
        verdict: Verdict,
        (now, now_ms): (Instant, u64),
        jitter: u64,
    ) -> News {
        let mut state = self.state.lock();
        let urged = state.attempt.take().and_then(|attempt| attempt.urged);
        match verdict {
            Verdict::Delivered { contact, events } => {
                let flown = std::mem::take(&mut state.flying);
                if let Some(last) = flown.last() {
                    state.row.cursor = state.row.cursor.max(last.position);
                }
                state.done_with(&flown);
                if state.row.sent.is_some_and(|sent| sent <= state.row.cursor) {
                    state.row.sent = None;
                }
                (state.most, state.refused) = (MAX_EVENTS, 0);
                if contact {
                    state.hello = false;
                    state.next_try = None;
                    state.row.failures = 0;
                    state.row.last_success = now_ms;
                    state.row.last_error = None;
                    let down_since = std::mem::take(&mut state.row.down_since);
                    if down_since > 0 {
                        state.returned = Some(Returned {
                            down: Duration::from_millis(now_ms.saturating_sub(down_since)),
                            at: now,
                            events: 0,
                        });
                    }
                }
                if let Some(returned) = &mut state.returned {
                    returned.events += events;
                }
                if state.queue.is_empty() && state.complete {
                    state.caught_up(now)
                } else {
                    News::Nothing
                }
            }
            Verdict::Failed {
                problem,
                pause,
                refused,
            } => {
                let was_up = state.row.down_since == 0;
                if was_up {
                    state.row.down_since = now_ms;
                }
                state.returned = None;
                state.row.failures = state.row.failures.saturating_add(1);
                state.row.last_failure = now_ms;
                state.row.last_error = Some(problem);
                let mut wait = state.standing.schedule.wait(state.row.failures, jitter);
                if state.standing.is_peer {
                    // A link that was down for a moment is not to look as if it was down for a minute.
                    let down = now_ms.saturating_sub(state.row.down_since);
                    wait = wait.min(PEER_SOON.max(Duration::from_millis(down / PART_OF_OUTAGE)));
                }
                let next = now + wait.max(pause.unwrap_or_default());
                let soon = urged.and_then(|after| Some((state.last_attempt? + after).max(now)));
                state.next_try = Some(match (soon, pause) {
                    (Some(soon), None) => soon.min(next),
                    _ => next,
                });
                // The tables have it; a link may be down for weeks.
                state.queue = VecDeque::new();
                state.complete = false;
                let sent = state.flying.last().map(|item| item.position);
                state.row.sent = state.row.sent.max(sent);
                if refused && Self::is_poison(&mut state) {
                    return News::GaveUp;
                }
                if was_up { News::Down } else { News::Nothing }
            }
        }
    }

    /// Whether what the server refuses is down to one event, which it has refused often enough. Before that it is sent
    /// in smaller pieces, so that one event does not hold up all others.
    fn is_poison(state: &mut State) -> bool {
        const OFTEN: u32 = 3;
        let events = state.flying.len();
        state.row.sent = None;
        if events > 1 {
            state.most = (events / 2).max(1);
            state.flying.clear();
            return false;
        }
        state.refused += 1;
        if state.refused < OFTEN {
            return false;
        }
        let flown = std::mem::take(&mut state.flying);
        if let Some(last) = flown.last() {
            state.row.cursor = state.row.cursor.max(last.position);
        }
        state.done_with(&flown);
        (state.most, state.refused) = (MAX_EVENTS, 0);
        true
    }
}

impl State {
    /// The rows of these are needed no more.
    fn done_with(&mut self, flown: &[Item]) {
        for item in flown {
            match item.what {
                What::Extra => self.done_extras.push(item.position),
                What::Lasting => self.done_edus.push(item.position),
                What::Event | What::Receipt => {}
            }
        }
    }

    fn begin(&mut self, now: Instant) {
        self.last_attempt = Some(now);
        self.attempt = Some(Attempt { urged: None });
    }

    /// There is nothing left to tell.
    fn caught_up(&mut self, now: Instant) -> News {
        match self.returned.take() {
            Some(returned) => News::Back {
                events: returned.events,
                took: now - returned.at,
                down: returned.down,
            },
            None => News::Nothing,
        }
    }

    /// Takes the next transaction out of what waits.
    fn take(&mut self) -> Flight {
        let (mut events, mut receipts, mut lasting) = (0, 0, 0);
        while let Some(item) = self.queue.front() {
            // The same pieces as before the node was stopped.
            let is_other = self.row.sent.is_some_and(|sent| item.position > sent);
            if is_other && !self.flying.is_empty() {
                break;
            }
            let stored = receipts + lasting;
            let (count, most) = match item.what {
                What::Event | What::Extra => (&mut events, self.most),
                What::Receipt => (&mut receipts, MAX_RECEIPTS.min(self.most)),
                What::Lasting => (&mut lasting, MAX_LASTING.min(self.most)),
            };
            let is_edu = matches!(item.what, What::Receipt | What::Lasting);
            if *count == most || is_edu && stored == MAX_STORED {
                break;
            }
            *count += 1;
            self.flying.extend(self.queue.pop_front());
        }
        let mut typing = Vec::new();
        while typing.len() < MAX_TYPING
            && let Some(((room, user), is_typing)) = self.typing.pop_first()
        {
            typing.push((room, user, is_typing));
        }
        let mut presence = Vec::new();
        while presence.len() < MAX_PRESENCE
            && let Some((_, json)) = self.presence.pop_first()
        {
            presence.push(json);
        }
        Flight::new(self.flying.clone(), typing, presence, self.hello)
    }
}
