//! What each client was told on its connections, in memory: a client whose connection is forgotten begins anew.
//!
//! A connection knows what the client has for certain, because it came back with the position of that answer, and the
//! few answers after it that may have been lost. Whichever of these the client comes back with becomes certain.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use quick_cache::{Weighter, sync::Cache};
use tokio::sync::Mutex as AsyncMutex;

use super::{
    lists::Lists,
    request::{Asked, Wanted},
};
use crate::{
    protocol::ids::{EventNid, Position, RoomNid, StateKeyNid, UserNid},
    store::{notify::Kinds, schema::Counts},
};

/// How many connections a device may have; the one that was begun first goes first.
const MOST_CONNECTIONS: usize = 10;

/// How many rooms all connections together remember.
const MOST_ROOMS: u64 = 500_000;

/// How many answers are remembered that the client may have got or not.
const MOST_ANSWERS: usize = 4;

/// What a device is known by.
pub(super) type Device = (UserNid, Option<String>);

/// All connections of all devices.
pub(in crate::service::sync) struct Connections {
    devices: Cache<Device, Arc<Vec<Slot>>, Weigh>,
    /// Held while the list of a device is replaced.
    changing: Mutex<()>,
}

#[derive(Clone)]
struct Slot {
    name: String,
    connection: Arc<AsyncMutex<Connection>>,
    weight: u64,
}

#[derive(Clone)]
struct Weigh;

impl Weighter<Device, Arc<Vec<Slot>>> for Weigh {
    fn weight(&self, _: &Device, slots: &Arc<Vec<Slot>>) -> u64 {
        slots.iter().map(|slot| slot.weight).sum::<u64>().max(1)
    }
}

impl Connections {
    pub(in crate::service::sync) fn new() -> Self {
        let items = usize::try_from(MOST_ROOMS / 100).unwrap_or(usize::MAX);
        Self {
            devices: Cache::with_weighter(items, MOST_ROOMS, Weigh),
            changing: Mutex::new(()),
        }
    }

    pub(super) fn find(&self, device: &Device, name: &str) -> Option<Arc<AsyncMutex<Connection>>> {
        let slots = self.devices.get(device)?;
        let slot = slots.iter().find(|slot| slot.name == name)?;
        Some(slot.connection.clone())
    }

    /// Keeps a new connection in the place of the one of the same name.
    pub(super) fn keep(
        &self,
        device: Device,
        name: &str,
        connection: Connection,
    ) -> Arc<AsyncMutex<Connection>> {
        let weight = connection.weight();
        let connection = Arc::new(AsyncMutex::new(connection));
        let _changing = self.changing.lock();
        let old = self.devices.get(&device).unwrap_or_default();
        let others = old.iter().filter(|slot| slot.name != name).cloned();
        let new = Slot {
            name: name.to_owned(),
            connection: connection.clone(),
            weight,
        };
        let slots = std::iter::once(new).chain(others).take(MOST_CONNECTIONS);
        self.devices.insert(device, Arc::new(slots.collect()));
        connection
    }

    /// Takes note of how much a connection remembers by now.
    pub(super) fn weigh(
        &self,
        device: &Device,
        connection: &Arc<AsyncMutex<Connection>>,
        weight: u64,
    ) {
        let is_it = |slot: &&Slot| Arc::ptr_eq(&slot.connection, connection);
        let find = || {
            let slots = self.devices.get(device)?;
            let known = slots.iter().find(is_it)?.weight;
            (known.abs_diff(weight) > known / 8).then_some(slots)
        };
        if find().is_none() {
            return;
        }
        let _changing = self.changing.lock();
        let Some(slots) = find() else { return };
        let mut slots = Vec::clone(&slots);
        for slot in &mut slots {
            if Arc::ptr_eq(&slot.connection, connection) {
                slot.weight = weight;
            }
        }
        self.devices.insert(device.clone(), Arc::new(slots));
    }
}

/// One connection.
pub(super) struct Connection {
    /// Tells this connection from others that the same client has had under the same name.
    pub(super) epoch: u64,
    /// The number of the next answer.
    next: u64,
    /// What the client has.
    pub(super) base: Base,
    /// What it may have.
    answers: Vec<Answer>,
    /// The rooms of the user, as they are at the newest view that was looked at.
    pub(super) lists: Lists,
}

/// What a client has.
#[derive(Default)]
pub(super) struct Base {
    /// The number of the last answer that it has got.
    pub(super) number: u64,
    /// Up to where that answer went; nothing if there is none.
    pub(super) position: Option<Position>,
    /// By what request, if it goes on from one.
    pub(super) asked: Option<Arc<Asked>>,
    /// Whether all rooms of all lists were shown.
    pub(super) covered: bool,
    /// What it was told of which rooms.
    pub(super) told: HashMap<RoomNid, Told>,
    /// How far it was told global account data.
    pub(super) data: Sent,
    /// How far it was told whose devices have changed.
    pub(super) devices: Sent,
    /// How far it was told which threads its user follows.
    pub(super) threads: Sent,
}

/// An answer that the client may have got or not.
pub(super) struct Answer {
    pub(super) position: Position,
    pub(super) asked: Arc<Asked>,
    pub(super) covered: bool,
    /// What is different from what the client had for certain.
    pub(super) told: HashMap<RoomNid, Told>,
    pub(super) data: Sent,
    pub(super) devices: Sent,
    pub(super) threads: Sent,
}

/// How far a client was told something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sent {
    /// Not at all.
    #[default]
    Never,
    /// Up to the last answer.
    Live,
    /// Up to an earlier one.
    Until(Position),
}

/// What is told of a room, each for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    /// Timeline, state and membership.
    Events,
    /// How much is unread.
    Counts,
    /// Account data of the room.
    Data,
    /// Receipts.
    Receipts,
    /// Who is typing.
    Typing,
}

/// What a client was told of a room.
#[derive(Clone, Debug)]
pub(super) struct Told {
    streams: [Sent; 5],
    /// With which particulars.
    pub(super) detail: Arc<Detail>,
}

/// With which particulars a room was told.
#[derive(Clone, Debug, Default)]
pub(super) struct Detail {
    /// Whether the user was not in the room any more.
    pub(super) left: bool,
    /// How many events the client has at the end of the timeline without a gap, at least, if there are as many.
    pub(super) limit: u64,
    /// Whether the client has the whole timeline.
    pub(super) whole: bool,
    /// Which state the client has as it was told last.
    pub(super) wanted: Arc<Wanted>,
    /// Which members were told because the timeline needed them.
    pub(super) members: HashMap<StateKeyNid, EventNid>,
    /// How much was unread.
    pub(super) unread: Counts,
    /// Whether it was called a direct chat.
    pub(super) direct: bool,
    /// How many had joined, and how many were invited.
    pub(super) counts: (u64, u64),
}

impl Base {
    /// Whether the client asks for the same again.
    pub(super) fn goes_on_with(&self, asked: &Asked) -> bool {
        self.asked.as_ref().is_some_and(|last| last.is_like(asked))
    }
}

impl Sent {
    /// From where on the client has to be told, when its last answer went up to `base`.
    pub(super) fn since(self, base: Option<Position>) -> Option<Position> {
        match self {
            Self::Never => None,
            Self::Live => base,
            Self::Until(position) => Some(position),
        }
    }

    /// Whether something was not told when it happened.
    pub(super) const fn is_behind(self) -> bool {
        matches!(self, Self::Until(_))
    }

    /// After an answer that has not told what has changed.
    pub(super) fn missed(self, base: Option<Position>) -> Self {
        match (self, base) {
            (Self::Live, Some(base)) => Self::Until(base),
            (sent, _) => sent,
        }
    }
}

impl Stream {
    const ALL: [Self; 5] = [
        Self::Events,
        Self::Counts,
        Self::Data,
        Self::Receipts,
        Self::Typing,
    ];

    /// By what kinds of changes it goes on.
    pub(super) const fn kinds(self) -> Kinds {
        match self {
            Self::Events => Kinds::TIMELINE.and(Kinds::MEMBERSHIP),
            Self::Counts | Self::Receipts => Kinds::RECEIPTS,
            Self::Data => Kinds::ACCOUNT_DATA,
            Self::Typing => Kinds::TYPING,
        }
    }

    const fn index(self) -> usize {
        match self {
            Self::Events => 0,
            Self::Counts => 1,
            Self::Data => 2,
            Self::Receipts => 3,
            Self::Typing => 4,
        }
    }
}

impl Told {
    /// A room of which just the events are told.
    pub(super) fn new(detail: Arc<Detail>) -> Self {
        let mut told = Self {
            streams: [Sent::Never; 5],
            detail,
        };
        told.set(Stream::Events, Sent::Live);
        told.set(Stream::Counts, Sent::Live);
        told
    }

    pub(super) fn sent(&self, stream: Stream) -> Sent {
        self.streams[stream.index()]
    }

    pub(super) fn set(&mut self, stream: Stream, sent: Sent) {
        self.streams[stream.index()] = sent;
    }

    /// After an answer that tells nothing of the room; `kinds` is what has changed, if it is known. Says whether that
    /// makes a difference.
    pub(super) fn missed(&mut self, kinds: Option<Kinds>, base: Option<Position>) -> bool {
        let before = self.streams;
        for stream in Stream::ALL {
            if kinds.is_none_or(|kinds| kinds.any(stream.kinds())) {
                self.set(stream, self.sent(stream).missed(base));
            }
        }
        self.streams != before
    }
}

impl Connection {
    /// One on which the client has got `base`.
    pub(super) fn new(epoch: u64, base: Base) -> Self {
        Self {
            epoch,
            next: base.number + 1,
            base,
            answers: Vec::new(),
            lists: Lists::default(),
        }
    }

    /// The client has got the answer with this number. False if there is none such.
    pub(super) fn resume(&mut self, number: u64) -> bool {
        if number == self.base.number {
            return true;
        }
        let first = self.next - u64::try_from(self.answers.len()).unwrap_or_default();
        let index = number.checked_sub(first).map(usize::try_from);
        let Some(Ok(index)) = index else { return false };
        if index >= self.answers.len() {
            return false;
        }
        let answer = self.answers.swap_remove(index);
        self.answers.clear();
        self.base.told.extend(answer.told);
        self.base.number = number;
        self.base.position = Some(answer.position);
        self.base.asked = Some(answer.asked);
        self.base.covered = answer.covered;
        self.base.data = answer.data;
        self.base.devices = answer.devices;
        self.base.threads = answer.threads;
        true
    }

    /// Remembers an answer and gives its number.
    pub(super) fn answered(&mut self, answer: Answer) -> u64 {
        if self.answers.len() == MOST_ANSWERS {
            self.answers.remove(0);
        }
        self.answers.push(answer);
        self.next += 1;
        self.next - 1
    }

    /// How much it remembers.
    pub(super) fn weight(&self) -> u64 {
        let open: usize = self.answers.iter().map(|answer| answer.told.len()).sum();
        let rooms = self.base.told.len() + open + self.lists.size();
        u64::try_from(rooms).unwrap_or(u64::MAX).saturating_add(8)
    }
}

#[cfg(test)]
mod tests {
    //! What is certain and what is not, and how much is remembered.

    use super::*;

    fn answer(position: u64, rooms: &[u64]) -> Answer {
        let told = |room: &u64| (RoomNid(*room), Told::new(Arc::default()));
        Answer {
            position: Position(position),
            asked: Arc::default(),
            covered: true,
            told: rooms.iter().map(told).collect(),
            data: Sent::Live,
            devices: Sent::Live,
            threads: Sent::Live,
        }
    }

    #[test]
    fn only_the_answer_that_came_counts() {
        let mut connection = Connection::new(1, Base::default());
        let lost = connection.answered(answer(5, &[1, 2]));
        let got = connection.answered(answer(6, &[2, 3]));
        assert!(connection.resume(0), "the same position again");
        assert!(connection.resume(got));
        assert_eq!(connection.base.position, Some(Position(6)));
        let mut rooms: Vec<_> = connection.base.told.keys().copied().collect();
        rooms.sort_unstable();
        assert_eq!(rooms, [RoomNid(2), RoomNid(3)]);
        assert!(!connection.resume(lost) && !connection.resume(0) && !connection.resume(99));
        assert!(connection.resume(got));
    }

    #[test]
    fn answers_that_nobody_comes_back_with_are_forgotten() {
        let mut connection = Connection::new(1, Base::default());
        let numbers: Vec<_> = (0..6)
            .map(|_| connection.answered(answer(5, &[1])))
            .collect();
        assert!(!connection.resume(numbers[1]) && connection.resume(numbers[2]));
    }

    #[test]
    fn a_device_has_few_connections() {
        let connections = Connections::new();
        let device = (UserNid(1), Some("D".to_owned()));
        for number in 0..=MOST_CONNECTIONS {
            let connection = Connection::new(1, Base::default());
            connections.keep(device.clone(), &number.to_string(), connection);
        }
        assert!(connections.find(&device, "0").is_none());
        assert!(connections.find(&device, "1").is_some());
        assert!(connections.find(&(UserNid(2), None), "1").is_none());
    }
}
