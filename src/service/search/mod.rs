//! Messages, names and topics found by their words. See "Server Side Search" in the client-server API.
//!
//! The index is derived from the store and follows it (`follow`): what is sent never waits for it, and where it is missing or
//! damaged it is made anew. What a search finds there is a hint only: whether somebody sees an event, and what it says, is
//! asked of the store each time (`answer`).

mod answer;
mod follow;
mod index;
mod query;
mod words;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    time::Duration,
};

use http::StatusCode;
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::answer::{Around, Grouping, Order, Wanted};
use self::{follow::Progress, index::Index};
use super::rooms::Rooms;
use crate::{
    clock::Clock,
    config,
    error::{Error, Result},
    protocol::ids::Position,
    store::Store,
};

/// The name of its directory beside the store.
const DIRECTORY: &str = "search";

/// How long a search waits for what was just sent, which hardly ever takes a tenth of it.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long it waits while the index is being made.
const PATIENCE_AT_START: Duration = Duration::from_secs(1);

/// What searches are made of.
pub(super) struct Parts {
    pub(super) store: Store,
    pub(super) clock: Clock,
    pub(super) rooms: Arc<Rooms>,
    pub(super) tasks: TaskTracker,
    pub(super) stop: CancellationToken,
}

/// Finds events by what they say.
pub struct Search {
    parts: Parts,
    is_enabled: bool,
    directory: PathBuf,
    /// None while there is nothing to find.
    index: RwLock<Option<Arc<Index>>>,
    progress: Mutex<Progress>,
    /// Up to where everything can be found.
    done: watch::Sender<Position>,
    /// Up to where it shall be: what was there at the start.
    goal: Mutex<Position>,
    /// How far it was looked, also within a long way.
    seen: AtomicU64,
    /// Rung by those who do not want to wait for the next round.
    asked: Arc<Notify>,
    /// To be made anew.
    anew: AtomicBool,
    /// A search has failed, so the files are to be looked at.
    is_doubtful: AtomicBool,
}

/// How it stands with the index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// How many events can be found.
    pub entries: u64,
    /// How many bytes it has.
    pub size: u64,
    /// Up to which position everything can be found.
    pub until: u64,
    /// Up to which position there is something to be found.
    pub of: u64,
    /// Whether everything can be found.
    pub complete: bool,
}

impl Search {
    pub(super) fn new(parts: Parts, config: &config::Search) -> Self {
        Self {
            directory: parts.store.directory().join(DIRECTORY),
            parts,
            is_enabled: config.enabled,
            index: RwLock::default(),
            progress: Mutex::default(),
            done: watch::channel(Position(0)).0,
            goal: Mutex::default(),
            seen: AtomicU64::new(0),
            asked: Arc::default(),
            anew: AtomicBool::new(false),
            is_doubtful: AtomicBool::new(false),
        }
    }

    /// Starts to follow what is written, until the node stops.
    pub fn start(self: &Arc<Self>) {
        if self.is_enabled {
            // What comes from now on is noted, and what was before is to be found.
            self.parts.store.texts().follow();
            *self.goal.lock() = self.parts.store.view().position();
            let following = follow::follow(Arc::downgrade(self));
            self.parts.tasks.spawn(following);
        }
    }

    /// Has the index made anew.
    ///
    /// # Errors
    /// 400 when searching is switched off.
    pub fn rebuild(&self) -> Result<()> {
        self.must_be_enabled()?;
        self.anew.store(true, Ordering::Release);
        *self.goal.lock() = self.parts.store.view().position();
        self.done.send_replace(Position(0));
        self.asked.notify_one();
        Ok(())
    }

    /// Makes the index anew while nothing else runs, and says now and then how far it is.
    ///
    /// # Errors
    /// 400 when searching is switched off; when the store or the disk fails.
    pub fn rebuild_now(&self, every: Duration, report: &mut dyn FnMut(&Status)) -> Result<()> {
        self.rebuild()?;
        std::thread::scope(|scope| {
            let (done, outcome) = mpsc::channel();
            scope.spawn(move || done.send(self.round()));
            loop {
                match outcome.recv_timeout(every) {
                    Ok(outcome) => return outcome,
                    Err(mpsc::RecvTimeoutError::Timeout) => report(&self.status()?),
                    Err(mpsc::RecvTimeoutError::Disconnected) => {
                        return Err(Error::Internal("the index broke off".to_owned()));
                    }
                }
            }
        })?;
        report(&self.status()?);
        Ok(())
    }

    /// How it stands with the index.
    ///
    /// # Errors
    /// 400 when searching is switched off.
    pub fn status(&self) -> Result<Status> {
        self.must_be_enabled()?;
        let index = self.index.read().clone();
        let (until, of) = (*self.done.borrow(), self.wanted());
        let is_waiting = self.anew.load(Ordering::Acquire);
        Ok(Status {
            entries: index.as_ref().map_or(0, |index| index.len()),
            size: index.as_ref().map_or(0, |index| index.size()),
            until: self.seen.load(Ordering::Acquire).min(of.0),
            of: of.0,
            complete: until >= of && !is_waiting,
        })
    }

    /// Waits a moment for what was written last to be found.
    ///
    /// # Errors
    /// 400 when searching is switched off.
    pub async fn caught_up(&self) -> Result<()> {
        self.must_be_enabled()?;
        let wanted = self.wanted();
        let mut done = self.done.subscribe();
        if *done.borrow_and_update() < wanted {
            self.asked.notify_one();
            let reached = done.wait_for(|done| *done >= wanted);
            let is_made = self.seen.load(Ordering::Acquire) >= self.goal.lock().0;
            let patience = if is_made { PATIENCE } else { PATIENCE_AT_START };
            // Later it answers by what there is.
            let _ = tokio::time::timeout(patience, reached).await;
        }
        Ok(())
    }

    /// Up to where there is something to be found.
    fn wanted(&self) -> Position {
        self.parts.store.texts().last().max(*self.goal.lock())
    }

    fn must_be_enabled(&self) -> Result<()> {
        if self.is_enabled {
            return Ok(());
        }
        Err(Error::api(
            StatusCode::BAD_REQUEST,
            "M_UNKNOWN",
            "Searching is switched off on this server",
        ))
    }
}
