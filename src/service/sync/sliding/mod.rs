//! Simplified sliding sync: what has happened in those of a user's rooms that the client asks for. See MSC4186.
//!
//! A client names lists of rooms with the parts of them that it shows, and single rooms. What it was told on which
//! connection is in memory ([`connection`]); so are the lists ([`lists`]), so that an answer looks only at rooms that have
//! changed or that the client comes to. A room that the client does not see at the moment is noted to be behind, and
//! goes on from there when it does.

mod bump;
mod connection;
mod extensions;
mod facts;
mod lists;
mod request;
mod room;
mod rooms;
mod state;

use std::sync::Arc;

use quick_cache::sync::Cache;
use sha2::{Digest as _, Sha256};
use tokio::sync::Mutex as AsyncMutex;

pub use self::request::{Asked, SlidingRequest};
use self::{
    bump::Bumps,
    connection::{Answer, Base, Connection, Connections, Device, Sent},
    extensions::Besides,
};
use super::{
    FEW_ROOMS, MAX_TIMEOUT, Range, Sync, SyncRequest, json::Object, logged_in, v3::Asking,
};
use crate::{
    clock::Entropy,
    error::{Error, Result},
    protocol::{
        ids::{Position, RoomNid},
        token::SlidingToken,
    },
    service::Requester,
    store::{
        View,
        notify::{Changes, Kinds, Live},
    },
};

/// Of how many rooms the type is remembered.
const REMEMBERED: usize = 50_000;

/// What sliding sync keeps in memory.
pub(super) struct Sliding {
    entropy: Entropy,
    connections: Connections,
    room_types: Cache<RoomNid, Option<Arc<str>>>,
    bumps: Bumps,
}

/// One look at what there is to tell.
struct Turn<'a> {
    requester: &'a Requester,
    asked: &'a Asked,
    range: &'a Range,
    base: &'a Base,
    /// Whether the client asks for the same as in the request of its last answer.
    asks_the_same: bool,
}

impl Sliding {
    pub(super) fn new(entropy: Entropy) -> Self {
        Self {
            entropy,
            connections: Connections::new(),
            room_types: Cache::new(REMEMBERED),
            bumps: Bumps::new(),
        }
    }
}

impl<'a> Turn<'a> {
    fn view(&self) -> &'a View {
        &self.range.view
    }

    /// Up to where the client has got its last answer.
    fn since(&self) -> Option<Position> {
        self.base.position
    }

    fn asking(&self, request: &'a SyncRequest, since: Option<Position>) -> Asking<'a> {
        Asking {
            view: &self.range.view,
            requester: self.requester,
            request,
            since,
        }
    }

    /// What has changed in a room; anything, when that is not known.
    fn kinds(&self, room: RoomNid) -> Option<Kinds> {
        match &self.range.changes {
            Changes::None => Some(Kinds::default()),
            Changes::Some(changed) => Some(changed.get(&Some(room)).copied().unwrap_or_default()),
            Changes::Unknown => None,
        }
    }
}

impl Sync {
    /// The answer to a request of sliding sync as JSON, as soon as there is something to tell or the wait is over.
    ///
    /// # Errors
    /// 400 M_UNKNOWN_POS when the connection is not known or has gone on, M_INVALID_PARAM when too much is asked for, 401
    /// when the session ends while it waits.
    pub async fn sliding(
        self: &Arc<Self>,
        requester: &Requester,
        request: SlidingRequest,
    ) -> Result<String> {
        request.asked.check()?;
        let asked = Arc::new(request.asked);
        let view = || self.store.view();
        let live = self
            .store
            .notify()
            .follow(requester.nid, || view().position());
        let device = (requester.nid, requester.device_id.clone());
        let (connection, number) = self.connect(requester, &asked, request.pos).await?;
        if asked.extensions.to_device.enabled == Some(true)
            && let (Some(device), Some(since)) = (&requester.device_id, asked.messages_since()?)
        {
            let device = (requester.nid, device.as_str());
            self.encryption.acknowledge(&view(), device, since)?;
        }
        let waits = request.pos.is_some() && !request.timeout.is_zero();
        let patience = self.clock.sleep(request.timeout.min(MAX_TIMEOUT));
        tokio::pin!(patience);
        let mut quiet_until = None;
        let mut is_over = !waits;
        loop {
            // Listening begins before looking, so whatever comes after the look is heard.
            let mut listening = live.listen();
            let now = view().position();
            let changes = quiet_until.map(|until| live.changes(until, now));
            if is_over || !matches!(changes, Some(Changes::None)) {
                let mut open = connection.clone().lock_owned().await;
                if open.base.number != number {
                    return Err(Error::unknown_pos());
                }
                let range = self.sliding_range(&live, &open.base);
                quiet_until = Some(range.view.position());
                if changes.is_some()
                    && range.may_have(Kinds::DEVICES)
                    && !logged_in(&range.view, requester)?
                {
                    return Err(Error::unknown_token(false));
                }
                let is_light = open.base.goes_on_with(&asked)
                    && match &range.changes {
                        Changes::None => true,
                        Changes::Some(changed) => changed.len() <= FEW_ROOMS,
                        Changes::Unknown => false,
                    };
                let answer = if is_light {
                    self.tell(requester, &asked, &mut open, (&live, range), !is_over)?
                } else {
                    let closed = |_| Error::Internal("the node is stopping".to_owned());
                    let _permit = self.long.acquire().await.map_err(closed)?;
                    let (sync, requester) = (self.clone(), requester.clone());
                    let (asked, live) = (asked.clone(), live.clone());
                    let work = tokio::task::spawn_blocking(move || {
                        let range = (&*live, range);
                        let answer = sync.tell(&requester, &asked, &mut open, range, !is_over);
                        (answer, open)
                    });
                    let broken = |e| Error::Internal(format!("a sync broke off: {e}"));
                    let (answer, told) = work.await.map_err(broken)?;
                    open = told;
                    answer?
                };
                if let Some(answer) = answer {
                    let weight = open.weight();
                    drop(open);
                    self.sliding.connections.weigh(&device, &connection, weight);
                    return Ok(answer);
                }
            }
            tokio::select! {
                changed = listening.changed() => {
                    changed.map_err(|_| Error::Internal("a live user was dropped".to_owned()))?;
                }
                () = &mut patience => is_over = true,
                () = self.stop.cancelled() => is_over = true,
            }
        }
    }

    /// The connection that a request goes on with, or a new one; and the number of the answer that the client has got.
    async fn connect(
        &self,
        requester: &Requester,
        asked: &Asked,
        pos: Option<SlidingToken>,
    ) -> Result<(Arc<AsyncMutex<Connection>>, u64)> {
        let connections = &self.sliding.connections;
        let device = (requester.nid, requester.device_id.clone());
        let name = asked.connection();
        let Some(pos) = pos else {
            let connection = Connection::new(self.sliding.entropy.number(), Base::default());
            return Ok((connections.keep(device, name, connection), 0));
        };
        if pos.owner != owner(&device, name) {
            return Err(Error::unknown_pos());
        }
        if let Some(connection) = connections.find(&device, name) {
            let mut open = connection.lock().await;
            if open.epoch != pos.epoch || !open.resume(pos.number) {
                return Err(Error::unknown_pos());
            }
            drop(open);
            return Ok((connection, pos.number));
        }
        // What is not about rooms needs no more than the position: it goes on over restarts, as otherwise the client might
        // never hear whose devices have changed meanwhile.
        if asked.has_rooms() || pos.position > self.store.view().position() {
            return Err(Error::unknown_pos());
        }
        let base = Base {
            number: pos.number,
            position: Some(pos.position),
            data: Sent::Live,
            devices: Sent::Live,
            threads: Sent::Live,
            ..Base::default()
        };
        let connection = Connection::new(pos.epoch, base);
        Ok((connections.keep(device, name, connection), pos.number))
    }

    fn sliding_range(&self, live: &Live, base: &Base) -> Range {
        let view = self.store.view();
        let changes = match base.position {
            Some(since) => live.changes(since, view.position()),
            None => Changes::Unknown,
        };
        Range {
            view,
            since: base.position,
            changes,
        }
    }

    /// Works out an answer and remembers it; none if there is nothing to tell and `skip_empty` says to wait on.
    fn tell(
        &self,
        requester: &Requester,
        asked: &Arc<Asked>,
        connection: &mut Connection,
        (live, range): (&Live, Range),
        skip_empty: bool,
    ) -> Result<Option<String>> {
        let (base, lists) = (&connection.base, &mut connection.lists);
        if asked.has_rooms() {
            lists.advance(self, (requester, live), &asked.lists, &range.view)?;
        }
        let mut each = asked.lists.iter();
        let covered = each.all(|(name, list)| lists.covers(name, list.ranges.as_deref()));
        let turn = Turn {
            requester,
            asked,
            range: &range,
            base,
            asks_the_same: base.goes_on_with(asked),
        };
        let mut besides = Besides::default();
        let rooms = self.rooms_to_tell(&turn, lists, covered, &mut besides)?;
        self.besides_rooms(&turn, &mut besides)?;
        if skip_empty && rooms.shown.is_empty() && besides.is_empty() {
            return Ok(None);
        }
        let position = range.view.position();
        let counts = asked
            .lists
            .keys()
            .map(|name| (name.clone(), format!("{{\"count\":{}}}", lists.count(name))));
        let counts: Vec<_> = counts.collect();
        let number = connection.answered(Answer {
            position,
            asked: asked.clone(),
            covered,
            told: rooms.told,
            data: besides.data_sent,
            devices: besides.devices_sent,
            threads: besides.threads_sent,
        });
        let device = (requester.nid, requester.device_id.clone());
        let pos = SlidingToken {
            position,
            owner: owner(&device, asked.connection()),
            epoch: connection.epoch,
            number,
        };
        let size: usize = rooms
            .shown
            .iter()
            .map(|(id, json)| id.len() + json.len() + 8)
            .sum();
        let mut out = String::with_capacity(size + 1024);
        let mut answer = Object::new(&mut out);
        answer.text("pos", &pos.to_string());
        if let Some(id) = &asked.txn_id {
            answer.text("txn_id", id);
        }
        answer.object("lists", &counts);
        answer.object("rooms", &rooms.shown);
        besides.write(&asked.extensions, answer.member("extensions"))?;
        answer.finish();
        Ok(Some(out))
    }
}

/// Tells the connections of different devices apart, and those of one device with different names.
fn owner((user, device): &Device, name: &str) -> u64 {
    let mut hash = Sha256::new();
    hash.update(user.0.to_be_bytes());
    hash.update(device.as_deref().unwrap_or_default());
    hash.update([0]);
    hash.update(name);
    let hash = hash.finalize();
    hash.iter()
        .take(8)
        .fold(0, |all, byte| all << 8 | u64::from(*byte))
}
