//! Strings and the numbers that stand for them.
//!
//! A number is written before the commit that uses it, in a write of its own: a number that nobody uses harms nobody,
//! and the log keeps the order. Numbers never change, so they are cached without any rule for forgetting.

use std::{hash::Hash, sync::Arc};

use parking_lot::Mutex;
use quick_cache::sync::Cache;
use rocksdb::{DB, IteratorMode, WriteBatch};
use ruma::{OwnedRoomId, OwnedServerName, OwnedUserId, RoomId, ServerName, UserId};

use super::{
    Error, Result, Store,
    codec::{AsKey, Key, Part, Value},
    schema::{
        ROOM_IDS, ROOM_NIDS, SERVER_NAMES, SERVER_NIDS, STATE_KEY_NIDS, STATE_KEYS, USER_IDS,
        USER_NIDS,
    },
    table::{Table, corrupt},
};
use crate::protocol::ids::{RoomNid, ServerNid, StateKeyNid, UserNid};

/// How many pairs of each kind are kept in memory.
const CACHED: usize = 20_000;

/// Of how many names of each kind it is kept in memory that they have no number.
const ABSENT: usize = 1_000;

pub(super) struct Interner {
    rooms: Names<OwnedRoomId, RoomNid>,
    users: Names<OwnedUserId, UserNid>,
    servers: Names<OwnedServerName, ServerNid>,
    state_keys: Names<(String, String), StateKeyNid>,
}

struct Names<S, N> {
    /// The greatest number in use.
    last: Mutex<u64>,
    by_name: Cache<S, N>,
    /// Names without a number, and the greatest number in use when they had none: as long as that is the greatest, they
    /// still have none. What no room has, such as an avatar, is asked for again and again.
    absent: Cache<S, u64>,
    by_number: Cache<N, Arc<S>>,
}

impl Interner {
    pub(super) fn open(db: &DB) -> Result<Self> {
        Ok(Self {
            rooms: Names::open(db, &ROOM_IDS)?,
            users: Names::open(db, &USER_IDS)?,
            servers: Names::open(db, &SERVER_NAMES)?,
            state_keys: Names::open(db, &STATE_KEYS)?,
        })
    }
}

impl<S: Hash + Eq + Clone, N: Part + Copy + Hash + Eq + From<u64>> Names<S, N> {
    fn open<V: Value>(db: &DB, numbers: &Table<(N,), V>) -> Result<Self> {
        let cf = db.cf_handle(numbers.name).expect("every table was opened");
        let last = match db.iterator_cf(cf, IteratorMode::End).next().transpose() {
            Ok(Some((key, _))) => {
                <(u64,)>::decode(&key)
                    .ok_or_else(|| corrupt(numbers.name, &key))?
                    .0
            }
            Ok(None) => 0,
            Err(source) => {
                return Err(Error::Engine {
                    doing: "opening",
                    source,
                });
            }
        };
        Ok(Self {
            last: Mutex::new(last),
            by_name: Cache::new(CACHED),
            absent: Cache::new(ABSENT),
            by_number: Cache::new(CACHED),
        })
    }

    #[expect(
        clippy::type_complexity,
        reason = "a pair of tables, one for each direction"
    )]
    fn number<K: Key, Q: AsKey<K>, V: Value>(
        &self,
        store: &Store,
        (numbers, values): (&Table<K, (N,)>, &Table<(N,), V>),
        (key, name): (&Q, &S),
        value: impl FnOnce() -> V,
    ) -> Result<N> {
        if let Some(number) = self.find(store, numbers, (key, name))? {
            return Ok(number);
        }
        let mut last = self.last.lock();
        // Somebody else may have been faster.
        if let Some(number) = self.read(store, numbers, (key, name))? {
            return Ok(number);
        }
        let number = N::from(*last + 1);
        let db = &store.inner.db;
        let mut writes = WriteBatch::default();
        writes.put_cf(
            store.inner.table(numbers.name),
            key.key_bytes(),
            (number,).to_bytes(),
        );
        writes.put_cf(
            store.inner.table(values.name),
            AsKey::<(N,)>::key_bytes(&(number,)),
            value().to_bytes(),
        );
        db.write(writes).map_err(|source| Error::Engine {
            doing: "writing",
            source,
        })?;
        *last += 1;
        self.by_name.insert(name.clone(), number);
        Ok(number)
    }

    fn find<K: Key, Q: AsKey<K>>(
        &self,
        store: &Store,
        names: &Table<K, (N,)>,
        (key, name): (&Q, &S),
    ) -> Result<Option<N>> {
        if let Some(number) = self.by_name.get(name) {
            return Ok(Some(number));
        }
        let last = *self.last.lock();
        if self.absent.get(name) == Some(last) {
            return Ok(None);
        }
        let found = self.read(store, names, (key, name))?;
        if found.is_none() {
            self.absent.insert(name.clone(), last);
        }
        Ok(found)
    }

    fn read<K: Key, Q: AsKey<K>>(
        &self,
        store: &Store,
        names: &Table<K, (N,)>,
        (key, name): (&Q, &S),
    ) -> Result<Option<N>> {
        let found = names.get(&store.latest(), key)?.map(|(number,)| number);
        if let Some(number) = found {
            self.by_name.insert(name.clone(), number);
        }
        Ok(found)
    }

    fn name<V: Value>(
        &self,
        store: &Store,
        numbers: &Table<(N,), V>,
        number: N,
        name: impl FnOnce(V) -> S,
    ) -> Result<Arc<S>> {
        if let Some(name) = self.by_number.get(&number) {
            return Ok(name);
        }
        let row = numbers.get(&store.latest(), &(number,))?;
        let value = row.ok_or_else(|| Error::Missing(format!("a name in {}", numbers.name)))?;
        let name = Arc::new(name(value));
        self.by_number.insert(number, name.clone());
        Ok(name)
    }
}

impl Store {
    /// The number of a room, made now if it has none.
    pub fn room_nid(&self, id: &RoomId) -> Result<RoomNid> {
        let names = &self.inner.interner.rooms;
        names.number(
            self,
            (&ROOM_NIDS, &ROOM_IDS),
            (&(id.as_str(),), &id.to_owned()),
            || id.to_owned(),
        )
    }

    /// The number of a room, if it has one.
    pub fn find_room(&self, id: &RoomId) -> Result<Option<RoomNid>> {
        self.inner
            .interner
            .rooms
            .find(self, &ROOM_NIDS, (&(id.as_str(),), &id.to_owned()))
    }

    /// The room with this number.
    pub fn room_id(&self, nid: RoomNid) -> Result<Arc<OwnedRoomId>> {
        self.inner
            .interner
            .rooms
            .name(self, &ROOM_IDS, nid, |id| id)
    }

    /// The number of a user, made now if there is none.
    pub fn user_nid(&self, id: &UserId) -> Result<UserNid> {
        let names = &self.inner.interner.users;
        names.number(
            self,
            (&USER_NIDS, &USER_IDS),
            (&(id.as_str(),), &id.to_owned()),
            || id.to_owned(),
        )
    }

    /// The number of a user, if there is one.
    pub fn find_user(&self, id: &UserId) -> Result<Option<UserNid>> {
        self.inner
            .interner
            .users
            .find(self, &USER_NIDS, (&(id.as_str(),), &id.to_owned()))
    }

    /// The user with this number.
    pub fn user_id(&self, nid: UserNid) -> Result<Arc<OwnedUserId>> {
        self.inner
            .interner
            .users
            .name(self, &USER_IDS, nid, |id| id)
    }

    /// The number of a server, made now if there is none.
    pub fn server_nid(&self, name: &ServerName) -> Result<ServerNid> {
        let names = &self.inner.interner.servers;
        names.number(
            self,
            (&SERVER_NIDS, &SERVER_NAMES),
            (&(name.as_str(),), &name.to_owned()),
            || name.to_owned(),
        )
    }

    /// The number of a server, if there is one.
    pub fn find_server(&self, name: &ServerName) -> Result<Option<ServerNid>> {
        self.inner
            .interner
            .servers
            .find(self, &SERVER_NIDS, (&(name.as_str(),), &name.to_owned()))
    }

    /// The server with this number.
    pub fn server_name(&self, nid: ServerNid) -> Result<Arc<OwnedServerName>> {
        self.inner
            .interner
            .servers
            .name(self, &SERVER_NAMES, nid, |name| name)
    }

    /// The number of a type and state key, made now if there is none.
    pub fn state_key_nid(&self, event_type: &str, state_key: &str) -> Result<StateKeyNid> {
        let name = (event_type.to_owned(), state_key.to_owned());
        let names = &self.inner.interner.state_keys;
        names.number(
            self,
            (&STATE_KEY_NIDS, &STATE_KEYS),
            (&(event_type, state_key), &name),
            || StateKeyName(name.0.clone(), name.1.clone()),
        )
    }

    /// The number of a type and state key, if there is one.
    pub fn find_state_key(&self, event_type: &str, state_key: &str) -> Result<Option<StateKeyNid>> {
        let name = (event_type.to_owned(), state_key.to_owned());
        self.inner.interner.state_keys.find(
            self,
            &STATE_KEY_NIDS,
            (&(event_type, state_key), &name),
        )
    }

    /// The type and state key with this number.
    pub fn state_key(&self, nid: StateKeyNid) -> Result<Arc<(String, String)>> {
        self.inner
            .interner
            .state_keys
            .name(self, &STATE_KEYS, nid, |StateKeyName(kind, key)| {
                (kind, key)
            })
    }
}

/// An event type and a state key, as stored.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct StateKeyName(pub String, pub String);

impl super::Record for StateKeyName {}
