//! A persistent ordered map that knows the hash of its rows.

use std::{
    collections::BTreeSet,
    fmt::{self, Debug},
    sync::Arc,
};

use imbl::OrdMap;
use serde::Serialize;
use xxhash_rust::xxh3::xxh3_128;

use crate::codec;

/// Rows by key. A clone is O(1) and shares what does not change.
///
/// The digest is the sum (mod 2^128) of the rows' hashes: independent of the
/// order of changes, so that a restored snapshot and a replayed log agree.
/// [`Table::settle`] brings it up to date after changes; [`crate::Cluster`]
/// does so once at the end of each apply, however often a row changed in it.
#[derive(Clone)]
pub struct Table<K, V> {
    rows: OrdMap<K, Row<V>>,
    dirty: BTreeSet<K>,
    digest: u128,
    tag: u8,
}

#[derive(Debug)]
struct Row<V> {
    /// Shared: a change of one row copies the rows beside it in the map, for those who still
    /// look at the map as it was.
    value: Arc<V>,
    hash: u128, // as of the last settle, 0 before the first
}

/// Derived, it would ask that V be cloned.
impl<V> Clone for Row<V> {
    fn clone(&self) -> Self {
        Row { value: Arc::clone(&self.value), hash: self.hash }
    }
}

impl<K: Ord + Debug, V: Debug> Debug for Table<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.rows.iter().map(|(key, row)| (key, &row.value))).finish()
    }
}

impl<K: Ord + Copy + Debug + Serialize, V: Clone + codec::Row> Table<K, V> {
    /// An empty table; `tag` keeps equal rows of two tables apart.
    pub(crate) fn new(tag: u8) -> Self {
        Table { rows: OrdMap::new(), dirty: BTreeSet::new(), digest: 0, tag }
    }

    /// The row of `key`.
    pub fn get(&self, key: K) -> Option<&V> {
        self.rows.get(&key).map(|row| &*row.value)
    }

    /// Whether `key` has a row.
    pub fn contains(&self, key: K) -> bool {
        self.rows.contains_key(&key)
    }

    /// Rows in rising order of their keys.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (K, &V)> {
        self.rows.iter().map(|(key, row)| (*key, &*row.value))
    }

    /// Values in rising order of their keys.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = &V> {
        self.rows.iter().map(|(_, row)| &*row.value)
    }

    /// How many rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The digest as of the last [`Table::settle`].
    pub(crate) fn digest(&self) -> u128 {
        debug_assert!(self.dirty.is_empty(), "the digest was read before settle");
        self.digest
    }

    /// The row of `key`, to be changed; its hash is due.
    pub(crate) fn get_mut(&mut self, key: K) -> Option<&mut V> {
        let row = self.rows.get_mut(&key)?;
        self.dirty.insert(key);
        Some(Arc::make_mut(&mut row.value))
    }

    /// Adds or replaces a row.
    pub(crate) fn insert(&mut self, key: K, value: V) {
        let hash = self.rows.get(&key).map_or(0, |row| row.hash);
        self.rows.insert(key, Row { value: Arc::new(value), hash });
        self.dirty.insert(key);
    }

    /// Takes a row out.
    pub(crate) fn remove(&mut self, key: K) -> Option<V> {
        let row = self.rows.remove(&key)?;
        self.dirty.remove(&key);
        self.digest = self.digest.wrapping_sub(row.hash);
        Some(Arc::unwrap_or_clone(row.value))
    }

    /// Rows changed since the last settle, rising.
    pub(crate) fn dirty(&self) -> Vec<K> {
        self.dirty.iter().copied().collect()
    }

    /// The cluster has risen to `version`: rows that it writes in another shape are due.
    pub(crate) fn rise(&mut self, version: u32) {
        if V::CHANGED_IN.contains(&version) {
            self.dirty.extend(self.rows.keys().copied());
        }
    }

    /// Brings the digest up to date, in the shapes of a cluster of `version`.
    pub(crate) fn settle(&mut self, version: u32) {
        if self.dirty.is_empty() {
            return;
        }
        let mut bytes = Vec::with_capacity(codec::HASHED_BYTES);
        for key in std::mem::take(&mut self.dirty) {
            let row = self.rows.get_mut(&key).expect("a dirty row is in the table");
            bytes.clear();
            bytes.push(self.tag);
            codec::canonical(&key, &mut bytes);
            row.value.canonical(version, &mut bytes);
            let hash = xxh3_128(&bytes);
            self.digest = self.digest.wrapping_sub(row.hash).wrapping_add(hash);
            row.hash = hash;
        }
    }
}
