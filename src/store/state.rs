//! Room state snapshots: each a small difference to an earlier one, with full copies in between.
//!
//! A state event makes a row of a few bytes. After [`MAX_HOPS`] rows the differences since the last full copy are
//! written as one, and when that would exceed half of the state, a full copy is written instead: so a lookup reads a
//! bounded number of rows, and a big room does not write itself out again and again.

use imbl::OrdMap;
use quick_cache::{Weighter, sync::Cache};
use serde::{Deserialize, Serialize};

use super::{Batch, Error, Record, Result, Store, schema::STATE};
use crate::protocol::ids::{EventNid, SnapshotId, StateKeyNid};

/// The longest chain of rows that a lookup follows to a full or merged one.
const MAX_HOPS: u16 = 64;

/// A room's full state in memory; copies share their nodes.
pub type StateMap = OrdMap<StateKeyNid, EventNid>;

/// A stored snapshot.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StateRow {
    /// The snapshot that this one differs from; none for a full copy.
    pub parent: Option<SnapshotId>,
    /// How many rows lie between this one and the last full or merged one.
    pub hops: u16,
    /// What is set, ascending.
    pub set: Vec<(StateKeyNid, EventNid)>,
    /// What is removed; only where forks were resolved.
    pub removed: Vec<StateKeyNid>,
}

impl Record for StateRow {}

/// Where a room's newest snapshot stands in its chain of rows; kept with the room's head.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Chain {
    /// The newest snapshot.
    pub tip: SnapshotId,
    /// Rows since the last full or merged one.
    pub hops: u16,
    /// The last full copy.
    pub full: SnapshotId,
}

/// The last full copy of a chain, in memory so that a commit needs to read nothing.
#[derive(Default)]
pub struct Base(Option<(SnapshotId, StateMap)>);

/// Snapshots in memory.
pub(super) struct StateCache(Cache<SnapshotId, StateMap, Weigh>);

#[derive(Clone)]
struct Weigh;

impl Weighter<SnapshotId, StateMap> for Weigh {
    fn weight(&self, _: &SnapshotId, map: &StateMap) -> u64 {
        // Neighbouring snapshots share most of their nodes, so a copy costs far less than its length says.
        64 + u64::try_from(map.len()).unwrap_or(u64::MAX) * 4
    }
}

impl StateCache {
    pub(super) fn new(bytes: usize) -> Self {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        Self(Cache::with_weighter(1024, bytes, Weigh))
    }
}

impl Store {
    /// The full state that a snapshot stands for. Snapshot zero is the empty state.
    pub fn state(&self, id: SnapshotId) -> Result<StateMap> {
        if id == SnapshotId(0) {
            return Ok(StateMap::new());
        }
        if let Some(map) = self.inner.states.0.get(&id) {
            return Ok(map);
        }
        // Walk towards the past until a full copy or something in memory, then apply the differences forwards.
        let view = self.latest();
        let mut pending = Vec::new();
        let mut at = id;
        let mut map = loop {
            if let Some(map) = self.inner.states.0.get(&at) {
                break map;
            }
            let row = STATE
                .get(&view, &(at,))?
                .ok_or_else(|| Error::Missing(format!("state snapshot {at}")))?;
            match row.parent {
                None => break row.set.into_iter().collect(),
                Some(parent) => {
                    pending.push(row);
                    at = parent;
                }
            }
        };
        for row in pending.into_iter().rev() {
            apply(&mut map, &row);
        }
        self.inner.states.0.insert(id, map.clone());
        Ok(map)
    }

    /// Remembers a snapshot that was just written.
    pub fn cache_state(&self, id: SnapshotId, map: &StateMap) {
        self.inner.states.0.insert(id, map.clone());
    }
}

fn apply(map: &mut StateMap, row: &StateRow) {
    for (key, event) in &row.set {
        map.insert(*key, *event);
    }
    for key in &row.removed {
        map.remove(key);
    }
}

impl Chain {
    /// The chain that ends in an older snapshot, for what is written on top of it.
    ///
    /// # Errors
    /// When the store fails.
    pub fn of(store: &Store, tip: SnapshotId) -> Result<Self> {
        if tip == SnapshotId(0) {
            return Ok(Self::default());
        }
        let view = store.latest();
        let row = |id: SnapshotId| {
            let row = STATE.get(&view, &(id,))?;
            row.ok_or_else(|| Error::Missing(format!("state snapshot {id}")))
        };
        let mut at = row(tip)?;
        let (hops, mut full) = (at.hops, tip);
        // A bounded number of hops, and one more behind a merged row.
        while let Some(parent) = at.parent {
            full = parent;
            at = row(parent)?;
        }
        Ok(Self { tip, hops, full })
    }

    /// What writing `rows` more snapshots needs; to be asked for before the commit.
    ///
    /// # Errors
    /// When the store fails.
    pub fn base(&self, store: &Store, rows: usize) -> Result<Base> {
        let is_long = usize::from(self.hops) + rows > usize::from(MAX_HOPS);
        if self.tip == SnapshotId(0) || !is_long {
            return Ok(Base::default());
        }
        Ok(Base(Some((self.full, store.state(self.full)?))))
    }

    /// Writes the snapshot `id`, which is `before` with `set` applied and `removed` taken away, and moves the tip.
    ///
    /// `after` is the full result; it is looked at only when the chain has become too long. `base` is what
    /// [`base`](Self::base) gave, and is for all calls of one commit together.
    pub fn write(
        &mut self,
        batch: &mut Batch<'_>,
        id: SnapshotId,
        after: &StateMap,
        (set, removed): (Vec<(StateKeyNid, EventNid)>, Vec<StateKeyNid>),
        base: &mut Base,
    ) {
        let row = if self.tip == SnapshotId(0) {
            full(after)
        } else if self.hops < MAX_HOPS {
            StateRow {
                parent: Some(self.tip),
                hops: self.hops + 1,
                set,
                removed,
            }
        } else {
            let merged = base.0.as_ref().filter(|(id, _)| *id == self.full);
            let merged = merged.map(|(_, base)| difference(base, after));
            match merged {
                Some((set, removed)) if (set.len() + removed.len()) * 2 <= after.len() => {
                    StateRow {
                        parent: Some(self.full),
                        hops: 0,
                        set,
                        removed,
                    }
                }
                _ => full(after),
            }
        };
        self.hops = row.hops;
        if row.parent.is_none() {
            self.full = id;
            base.0 = Some((id, after.clone()));
        }
        self.tip = id;
        STATE.put(batch, &(id,), &row);
    }
}

fn full(map: &StateMap) -> StateRow {
    StateRow {
        parent: None,
        hops: 0,
        set: map.iter().map(|(k, v)| (*k, *v)).collect(),
        removed: Vec::new(),
    }
}

/// What must be set and removed to come from one state to another. Shared parts cost nothing.
#[must_use]
pub fn difference(
    from: &StateMap,
    to: &StateMap,
) -> (Vec<(StateKeyNid, EventNid)>, Vec<StateKeyNid>) {
    use imbl::ordmap::DiffItem;
    let (mut set, mut removed) = (Vec::new(), Vec::new());
    for item in from.diff(to) {
        match item {
            DiffItem::Add(key, event)
            | DiffItem::Update {
                new: (key, event), ..
            } => set.push((*key, *event)),
            DiffItem::Remove(key, _) => removed.push(*key),
        }
    }
    (set, removed)
}
