//! Simplified sliding sync: what has happened in those of a user's rooms that the client asks for. See MSC4186.
//!
//! A client names lists of rooms with the parts of them that it shows, and single rooms. What it was told on which
//! connection is in memory ([`connection`]); so are the lists ([`lists`]), so that an answer looks only at rooms that have
//! changed or that the client comes to. A room that the client does not see at the moment is noted to be behind, and
//! goes on from there when it does.

mod connection;
mod extensions;
mod lists;
mod request;
mod room;
mod state;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use quick_cache::sync::Cache;
use ruma::OwnedRoomId;
use sha2::{Digest as _, Sha256};
use tokio::sync::Mutex as AsyncMutex;

pub use self::request::{Asked, SlidingRequest};
use self::{
    connection::{Answer, Base, Connection, Connections, Device, Sent, Stream, Told},
    extensions::{Besides, Place},
    lists::{Lists, Standing, of_account},
    request::Config,
    room::{Bumps, Shown, Wish},
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
}

/// Why a room is in the answer.
#[derive(Default)]
struct Matched<'a> {
    lists: Vec<&'a str>,
    subscribed: Option<&'a OwnedRoomId>,
}

/// The rooms of an answer.
#[derive(Default)]
struct Rooms {
    shown: Vec<(String, String)>,
    told: HashMap<RoomNid, Told>,
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
                let is_light = open
                    .base
                    .asked
                    .as_ref()
                    .is_some_and(|last| last.is_like(&asked))
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
        });
        let device = (requester.nid, requester.device_id.clone());
        let pos = SlidingToken {
            position,
            owner: owner(&device, asked.connection()),
            epoch: connection.epoch,
            number,
        };
        let mut out = String::new();
        let mut answer = Object::new(&mut out);
        answer.text("pos", &pos.to_string());
        if let Some(id) = &asked.txn_id {
            answer.text("txn_id", id);
        }
        answer.object("lists", &counts);
        answer.object("rooms", &rooms.shown);
        besides.write(&asked.extensions, answer.member("extensions"));
        answer.finish();
        Ok(Some(out))
    }

    fn rooms_to_tell(
        &self,
        turn: &Turn<'_>,
        lists: &Lists,
        covered: bool,
        besides: &mut Besides,
    ) -> Result<Rooms> {
        let mut rooms = Rooms::default();
        if turn.asked.has_rooms() {
            let matched = self.matched(turn, lists, covered)?;
            let mut configs = HashMap::new();
            for (room, matched) in &matched {
                let key = (&matched.lists, matched.subscribed);
                let config = configs.entry(key).or_insert_with(|| {
                    let of_lists: Vec<_> = matched
                        .lists
                        .iter()
                        .map(|name| &turn.asked.lists[*name])
                        .collect();
                    let of_room = matched
                        .subscribed
                        .map(|id| &turn.asked.room_subscriptions[id]);
                    Config::of(&of_lists, of_room, turn.requester.user_id.as_str())
                });
                self.show(turn, lists, (*room, matched, config), &mut rooms, besides)?;
            }
            self.note_others(turn, lists, &matched, &mut rooms, besides)?;
        } else {
            self.note_others(turn, lists, &HashMap::new(), &mut rooms, besides)?;
        }
        Ok(rooms)
    }

    /// The rooms that are asked for and may have to be told.
    fn matched<'a>(
        &self,
        turn: &Turn<'a>,
        lists: &Lists,
        covered: bool,
    ) -> Result<HashMap<RoomNid, Matched<'a>>> {
        let mut matched: HashMap<RoomNid, Matched<'a>> = HashMap::new();
        let goes_on = covered
            && turn.base.covered
            && turn
                .base
                .asked
                .as_ref()
                .is_some_and(|last| last.is_like(turn.asked));
        // When all rooms were shown, and are, only those that have changed can have to be told.
        let changed: Option<HashSet<RoomNid>> = match &turn.range.changes {
            Changes::None if goes_on => Some(HashSet::new()),
            Changes::Some(changed) if goes_on && !of_account(changed) => {
                Some(changed.keys().filter_map(|room| *room).collect())
            }
            _ => None,
        };
        for (name, list) in &turn.asked.lists {
            let window = match &changed {
                Some(changed) => {
                    let listed = changed.iter().filter(|room| lists.has(name, **room));
                    listed.copied().collect()
                }
                None => lists.window(name, list.ranges.as_deref()),
            };
            for room in window {
                matched.entry(room).or_default().lists.push(name);
            }
        }
        for id in turn.asked.room_subscriptions.keys() {
            let Some(room) = self.store.find_room(id)? else {
                continue;
            };
            let may_have = changed
                .as_ref()
                .is_none_or(|changed| changed.contains(&room));
            if may_have && lists.facts(room).is_some() {
                matched.entry(room).or_default().subscribed = Some(id);
            }
        }
        Ok(matched)
    }

    /// Tells a room that is asked for, if there is something to tell.
    fn show(
        &self,
        turn: &Turn<'_>,
        lists: &Lists,
        (room, matched, config): (RoomNid, &Matched<'_>, &Config),
        rooms: &mut Rooms,
        besides: &mut Besides,
    ) -> Result<()> {
        let facts = lists.facts(room);
        let told = turn.base.told.get(&room);
        let kinds = turn.kinds(room);
        let place = Place {
            room,
            id: &*self.store.room_id(room)?,
            lists: &matched.lists,
            subscribed: matched.subscribed.is_some(),
            kinds,
            is_in: facts.is_some_and(|facts| facts.standing == Standing::In),
        };
        let known = told.filter(|told| {
            kinds
                .is_some_and(|kinds| !kinds.any(Stream::Events.kinds().and(Stream::Counts.kinds())))
                && !told.sent(Stream::Events).is_behind()
                && !told.sent(Stream::Counts).is_behind()
                && told.detail.wanted.covers(&config.wanted)
                && (told.detail.whole || told.detail.limit >= config.limit)
                && facts.is_none_or(|facts| facts.direct == told.detail.direct)
        });
        let shown = match known {
            Some(told) if !place.has_more(&turn.asked.extensions, told) => return Ok(()),
            Some(told) => Shown::nothing(told.detail.clone()),
            None => {
                let wish = Wish {
                    room,
                    config,
                    told,
                    kinds,
                };
                match self.sliding_room(turn, &wish, facts)? {
                    Some(shown) => shown,
                    None => return Ok(()),
                }
            }
        };
        let mut now = match told {
            Some(told) if !shown.anew => told.clone(),
            _ => Told::new(shown.detail.clone()),
        };
        now.detail = shown.detail.clone();
        now.set(Stream::Events, Sent::Live);
        now.set(Stream::Counts, Sent::Live);
        if place.is_in {
            self.besides_room(turn, &place, &shown, &mut now, besides)?;
        }
        if let Some(json) = shown.json {
            rooms.shown.push((place.id.to_string(), json));
        }
        rooms.told.insert(room, now);
        Ok(())
    }

    /// Of the rooms that are not asked for: notes that they are behind, and tells that the user has left them.
    fn note_others(
        &self,
        turn: &Turn<'_>,
        lists: &Lists,
        matched: &HashMap<RoomNid, Matched<'_>>,
        rooms: &mut Rooms,
        besides: &mut Besides,
    ) -> Result<()> {
        let asks_the_same = turn
            .base
            .asked
            .as_ref()
            .is_some_and(|last| last.is_like(turn.asked));
        let others: Vec<RoomNid> = match &turn.range.changes {
            Changes::None if asks_the_same => return Ok(()),
            Changes::Some(changed) if asks_the_same => {
                changed.keys().filter_map(|room| *room).collect()
            }
            _ => turn.base.told.keys().copied().collect(),
        };
        for room in others {
            if matched.contains_key(&room) {
                continue;
            }
            let Some(told) = turn.base.told.get(&room) else {
                continue;
            };
            let standing = lists.facts(room).map(|facts| facts.standing);
            let has_gone = matches!(standing, None | Some(Standing::Gone | Standing::Expelled));
            if turn.asked.has_rooms() && has_gone && !told.detail.left {
                // The client would show the room for ever.
                let config =
                    Config::as_before(told.detail.limit.max(1), told.detail.wanted.clone());
                self.show(
                    turn,
                    lists,
                    (room, &Matched::default(), &config),
                    rooms,
                    besides,
                )?;
                continue;
            }
            let mut now = told.clone();
            if now.missed(turn.kinds(room), turn.since()) {
                rooms.told.insert(room, now);
            }
        }
        Ok(())
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
