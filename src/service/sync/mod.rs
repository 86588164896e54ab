//! `/sync`: what has happened to a user since a token, and the wait for something to happen.
//!
//! A sync token is a position of the store. What lies between it and the position of the view is told, all of it; the
//! part of the node that knows which rooms changed is in memory, so that a sync with nothing to tell reads no disk.

mod account_data;
mod device_lists;
mod json;
mod lazy;
mod legacy;
mod notifications;
mod sliding;
mod state;
mod stripped;
mod timeline;
mod unread;
mod v3;

use std::{sync::Arc, time::Duration};

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

pub use self::{
    device_lists::DeviceLists,
    legacy::Listening,
    notifications::Listing,
    sliding::{Asked, SlidingRequest},
};
use self::{lazy::SentMembers, sliding::Sliding, unread::Unread};
use super::{
    Requester,
    accounts::Accounts,
    e2ee::Encryption,
    ephemeral::{Presence, Receipts, Typing},
    rooms::Rooms,
    threads::Threads,
};
use crate::{
    clock::{Clock, Entropy},
    error::{Error, Result},
    protocol::{filter::Filter, ids::Position, token::SyncToken},
    store::{
        Store, View,
        notify::{Changes, Kinds, Live},
        schema::DEVICES,
    },
};

/// The longest that a client may ask to wait.
const MAX_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// More changed rooms than this are worked out beside the threads that serve others.
const FEW_ROOMS: usize = 4;

/// What a client asks of `/sync`.
#[derive(Clone, Debug)]
pub struct SyncRequest {
    /// Where it stopped the last time.
    pub since: Option<SyncToken>,
    /// What it wants to see.
    pub filter: Arc<Filter>,
    /// Whether it wants the state of all rooms, changed or not.
    pub full_state: bool,
    /// How long it waits for something to happen.
    pub timeout: Duration,
    /// Whether state is to be as it is after the timeline, and how that member is called.
    pub state_after: Option<&'static str>,
}

impl SyncRequest {
    /// One that asks for all and waits for nothing.
    fn bare() -> Self {
        Self {
            since: None,
            filter: Arc::default(),
            full_state: false,
            timeout: Duration::ZERO,
            state_after: None,
        }
    }

    /// Behind which position lies what the last answer told and what did not hold.
    fn unsettled(&self) -> Option<Position> {
        self.since.and_then(|token| token.unsettled)
    }
}

/// Tells clients what has happened.
pub struct Sync {
    store: Store,
    rooms: Arc<Rooms>,
    accounts: Arc<Accounts>,
    typing: Arc<Typing>,
    receipts: Arc<Receipts>,
    presence: Arc<Presence>,
    encryption: Arc<Encryption>,
    threads: Arc<Threads>,
    clock: Clock,
    stop: CancellationToken,
    sent_members: SentMembers,
    unread: Unread,
    sliding: Sliding,
    /// Bounds how many long answers are worked out at once.
    long: Semaphore,
}

/// What the services below give to syncs.
pub struct Sources {
    /// The rooms.
    pub rooms: Arc<Rooms>,
    /// The accounts.
    pub accounts: Arc<Accounts>,
    /// Who is typing.
    pub typing: Arc<Typing>,
    /// Who has read what.
    pub receipts: Arc<Receipts>,
    /// Who is there.
    pub presence: Arc<Presence>,
    /// Messages and keys of devices.
    pub encryption: Arc<Encryption>,
    /// Which threads users follow.
    pub threads: Arc<Threads>,
    /// Chance.
    pub entropy: Entropy,
}

/// A range of the stream, and what changed in it as far as memory knows.
struct Range {
    view: View,
    since: Option<Position>,
    changes: Changes,
}

impl Sync {
    /// Syncs over `sources`; all waiting ends when `stop` is cancelled.
    pub fn new(store: Store, clock: Clock, stop: CancellationToken, sources: Sources) -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            store,
            rooms: sources.rooms,
            accounts: sources.accounts,
            typing: sources.typing,
            receipts: sources.receipts,
            presence: sources.presence,
            encryption: sources.encryption,
            threads: sources.threads,
            clock,
            stop,
            sent_members: SentMembers::new(),
            unread: Unread::new(),
            sliding: Sliding::new(sources.entropy),
            long: Semaphore::new(cores * 2),
        }
    }

    /// The answer to a sync as JSON, as soon as there is something to tell or the wait is over.
    ///
    /// # Errors
    /// 401 when the session ends while it waits.
    pub async fn sync(
        self: &Arc<Self>,
        requester: &Requester,
        mut request: SyncRequest,
    ) -> Result<String> {
        let live = self
            .store
            .notify()
            .follow(requester.nid, || self.store.view().position());
        let waits = request.since.is_some() && !request.full_state && !request.timeout.is_zero();
        let patience = self.clock.sleep(request.timeout.min(MAX_TIMEOUT));
        tokio::pin!(patience);
        let device = requester.device_id.as_deref();
        if let (Some(device), Some(since)) = (device, request.since) {
            let (view, device) = (self.store.view(), (requester.nid, device));
            self.encryption.acknowledge(&view, device, since)?;
        }
        let mut has_waited = false;
        loop {
            // Listening begins before looking, so whatever comes after the look is heard.
            let mut listening = live.listen();
            let range = self.range(&live, &request);
            let position = range.view.position();
            if has_waited && range.may_have(Kinds::DEVICES) && !logged_in(&range.view, requester)? {
                return Err(Error::unknown_token(false));
            }
            // Whoever waits must hold no view: it would keep all that is overwritten meanwhile from being tidied up.
            if matches!(range.changes, Changes::None) {
                drop(range);
            } else if let Some(answer) = self.answer(requester, &request, range, waits).await? {
                return Ok(answer);
            }
            if !waits {
                return self.empty(requester, position);
            }
            tokio::select! {
                changed = listening.changed() => {
                    changed.map_err(|_| Error::Internal("a live user was dropped".to_owned()))?;
                }
                () = &mut patience => return self.empty(requester, position),
                () = self.stop.cancelled() => return self.empty(requester, position),
            }
            has_waited = true;
            // Up to here there was nothing to tell.
            request.since = Some(SyncToken::at(position));
        }
    }

    fn range(&self, live: &Live, request: &SyncRequest) -> Range {
        let view = self.store.view();
        // A token from the future was given out before this data directory was restored from a copy: begin anew.
        let since = request.since.map(|token| token.position);
        let since = since.filter(|since| *since <= view.position());
        let rest = request.since.and_then(|token| token.messages);
        let changes = match since {
            Some(_) if request.full_state => Changes::Unknown,
            // What an earlier answer owes is found among what had changed before it.
            Some(since) => {
                match live.changes(request.unsettled().unwrap_or(since), view.position()) {
                    // Something is left that did not fit into the answer before.
                    Changes::None if rest.is_some() => {
                        Changes::Some([(None, Kinds::DEVICES)].into())
                    }
                    changes => changes,
                }
            }
            None => Changes::Unknown,
        };
        Range {
            view,
            since,
            changes,
        }
    }

    async fn answer(
        self: &Arc<Self>,
        requester: &Requester,
        request: &SyncRequest,
        range: Range,
        skip_empty: bool,
    ) -> Result<Option<String>> {
        if matches!(&range.changes, Changes::Some(changed) if changed.len() <= FEW_ROOMS) {
            return self.build(requester, request, &range, skip_empty);
        }
        let closed = |_| Error::Internal("the node is stopping".to_owned());
        let _permit = self.long.acquire().await.map_err(closed)?;
        let (sync, requester, request) = (self.clone(), requester.clone(), request.clone());
        let building = tokio::task::spawn_blocking(move || {
            sync.build(&requester, &request, &range, skip_empty)
        });
        building
            .await
            .map_err(|e| Error::Internal(format!("a sync broke off: {e}")))?
    }
}

/// Whether the device that asks is still there.
fn logged_in(view: &View, requester: &Requester) -> Result<bool> {
    match &requester.device_id {
        Some(device) => Ok(DEVICES.contains(view, &(requester.nid, device.as_str()))?),
        None => Ok(true),
    }
}

#[cfg(test)]
mod tests;
