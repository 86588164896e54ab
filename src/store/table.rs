//! A table: a column family with the types of its keys and values.

use std::{fmt::Write as _, marker::PhantomData, ops::Bound};

use super::{
    Error, Result,
    batch::Batch,
    codec::{AsKey, AsPrefix, Key, Value},
    view::View,
};

/// How a table's files are tuned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Looked up key by key: bloom filters.
    Point,
    /// Appended and scanned in order.
    Sequential,
    /// Numbers that are added to.
    Counter,
}

/// A column family with typed keys and values.
pub struct Table<K, V> {
    /// The column family's name.
    pub name: &'static str,
    types: PhantomData<fn() -> (K, V)>,
}

impl<K: Key, V: Value> Table<K, V> {
    pub(super) const fn new(name: &'static str) -> Self {
        Self {
            name,
            types: PhantomData,
        }
    }

    /// The value of `key`, if there is one.
    pub fn get(&self, view: &View, key: &impl AsKey<K>) -> Result<Option<V>> {
        let key = key.key_bytes();
        match view.get(self.name, &key)? {
            Some(bytes) => V::from_bytes(&bytes)
                .map(Some)
                .ok_or_else(|| self.corrupt(&key)),
            None => Ok(None),
        }
    }

    /// Whether `key` has a value.
    pub fn contains(&self, view: &View, key: &impl AsKey<K>) -> Result<bool> {
        Ok(view.get(self.name, &key.key_bytes())?.is_some())
    }

    /// The values of many keys, in their order.
    pub fn multi_get<Q: AsKey<K>>(&self, view: &View, keys: &[Q]) -> Result<Vec<Option<V>>> {
        let keys: Vec<_> = keys.iter().map(AsKey::key_bytes).collect();
        let rows = view.multi_get(self.name, &keys)?;
        keys.iter()
            .zip(rows)
            .map(|(key, row)| match row {
                Some(bytes) => V::from_bytes(&bytes)
                    .map(Some)
                    .ok_or_else(|| self.corrupt(key)),
                None => Ok(None),
            })
            .collect()
    }

    /// All rows whose keys begin with `prefix`, in key order.
    pub fn scan<'v>(&self, view: &'v View, prefix: &impl AsPrefix<K>) -> Scan<'v, K, V> {
        let prefix = prefix.prefix_bytes();
        let upper = after_prefix(&prefix);
        self.rows(view, prefix, upper, false)
    }

    /// The rows whose keys begin with `prefix` and lie between the bounds, in key order.
    pub fn range<'v, Q: AsKey<K>>(
        &self,
        view: &'v View,
        prefix: &impl AsPrefix<K>,
        bounds: (Bound<Q>, Bound<Q>),
    ) -> Scan<'v, K, V> {
        let (lower, upper) = byte_bounds(&prefix.prefix_bytes(), &bounds);
        self.rows(view, lower, upper, false)
    }

    /// As [`Self::range`], from the greatest key down.
    pub fn range_back<'v, Q: AsKey<K>>(
        &self,
        view: &'v View,
        prefix: &impl AsPrefix<K>,
        bounds: (Bound<Q>, Bound<Q>),
    ) -> Scan<'v, K, V> {
        let (lower, upper) = byte_bounds(&prefix.prefix_bytes(), &bounds);
        self.rows(view, lower, upper, true)
    }

    /// The row with the greatest key that begins with `prefix`.
    pub fn last(&self, view: &View, prefix: &impl AsPrefix<K>) -> Result<Option<(K, V)>> {
        let prefix = prefix.prefix_bytes();
        let upper = after_prefix(&prefix);
        self.rows(view, prefix, upper, true).next().transpose()
    }

    /// Writes a row when the batch commits.
    pub fn put(&self, batch: &mut Batch<'_>, key: &impl AsKey<K>, value: &V) {
        batch.put(self.name, &key.key_bytes(), &value.to_bytes());
    }

    /// Removes a row, if it is there, when the batch commits.
    pub fn delete(&self, batch: &mut Batch<'_>, key: &impl AsKey<K>) {
        batch.delete(self.name, &key.key_bytes());
    }

    /// Removes all rows whose keys begin with `prefix` when the batch commits, however many there are. Only for rows that
    /// nobody is told of.
    pub fn delete_all(&self, batch: &mut Batch<'_>, prefix: &impl AsPrefix<K>) {
        let prefix = prefix.prefix_bytes();
        // Every prefix begins with a number that is not the greatest of all.
        let upper = after_prefix(&prefix).unwrap_or_else(|| vec![0xFF; prefix.len() + 1]);
        batch.delete_range(self.name, &prefix, &upper);
    }

    fn rows<'v>(
        &self,
        view: &'v View,
        lower: Vec<u8>,
        upper: Option<Vec<u8>>,
        back: bool,
    ) -> Scan<'v, K, V> {
        Scan {
            rows: view.iterate(self.name, lower, upper, back),
            table: self.name,
            types: PhantomData,
        }
    }

    fn corrupt(&self, key: &[u8]) -> Error {
        corrupt(self.name, key)
    }
}

impl<K: Key> Table<K, (u64,)> {
    /// Adds to a number when the batch commits; one that is not there is zero. What it was need not be known, so that
    /// several events of one batch can count in the same row. Only for tables of [`Profile::Counter`].
    pub fn add(&self, batch: &mut Batch<'_>, key: &impl AsKey<K>, difference: i64) {
        let difference = (difference.cast_unsigned(),).to_bytes();
        batch.merge(self.name, &key.key_bytes(), &difference);
    }
}

/// The sum of a number and of what is added to it. Differences below zero are large numbers here, and sums wrap around.
pub(super) fn sum<'a>(
    number: Option<&'a [u8]>,
    differences: impl IntoIterator<Item = &'a [u8]>,
) -> Option<Vec<u8>> {
    let mut sum = 0_u64;
    for bytes in number.into_iter().chain(differences) {
        let (number,) = <(u64,)>::from_bytes(bytes)?;
        sum = sum.wrapping_add(number);
    }
    Some((sum,).to_bytes())
}

/// Rows of a table as they are read.
pub struct Scan<'v, K, V> {
    rows: super::view::Rows<'v>,
    table: &'static str,
    types: PhantomData<fn() -> (K, V)>,
}

impl<K: Key, V: Value> Iterator for Scan<'_, K, V> {
    type Item = Result<(K, V)>;

    fn next(&mut self) -> Option<Self::Item> {
        let table = self.table;
        self.rows
            .next(|key, value| {
                K::decode(key)
                    .zip(V::from_bytes(value))
                    .ok_or_else(|| corrupt(table, key))
            })
            .map(|row| row.and_then(|row| row))
    }
}

pub(super) fn corrupt(table: &'static str, key: &[u8]) -> Error {
    let key = key.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    });
    Error::Corrupt { table, key }
}

/// The least byte string that is greater than every one that begins with `prefix`.
fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let end = prefix.iter().rposition(|&byte| byte != 0xFF)?;
    let mut after = prefix.get(..=end)?.to_vec();
    *after.last_mut()? += 1;
    Some(after)
}

/// Turns bounds on keys into the engine's inclusive lower and exclusive upper bound.
fn byte_bounds<K: Key, Q: AsKey<K>>(
    prefix: &[u8],
    bounds: &(Bound<Q>, Bound<Q>),
) -> (Vec<u8>, Option<Vec<u8>>) {
    // No key lies between `k` and `k` followed by a zero byte.
    let just_after = |key: &Q| {
        let mut bytes = key.key_bytes();
        bytes.push(0);
        bytes
    };
    let lower = match &bounds.0 {
        Bound::Included(key) => key.key_bytes(),
        Bound::Excluded(key) => just_after(key),
        Bound::Unbounded => prefix.to_vec(),
    };
    let upper = match &bounds.1 {
        Bound::Included(key) => Some(just_after(key)),
        Bound::Excluded(key) => Some(key.key_bytes()),
        Bound::Unbounded => after_prefix(prefix),
    };
    (lower, upper)
}
