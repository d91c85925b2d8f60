//! A store with a limit and a share for each client, so that the flood of one client displaces its own entries.

use std::collections::BTreeMap;

/// The entries of each `Key`, by rising serial numbers. The store grows by small steps, so no packet waits.
#[derive(Debug)]
pub struct Shares<Key, Value> {
    all: BTreeMap<(Key, u64), Value>,
    counts: BTreeMap<Key, usize>,
}

impl<Key, Value> Default for Shares<Key, Value> {
    fn default() -> Self {
        Self { all: BTreeMap::new(), counts: BTreeMap::new() }
    }
}

impl<Key: Copy + Ord, Value> Shares<Key, Value> {
    /// Number of all entries.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Number of entries of `key`.
    pub fn count_of(&self, key: Key) -> usize {
        self.counts.get(&key).copied().unwrap_or(0)
    }

    /// Each key with its number of entries.
    pub fn counts(&self) -> impl Iterator<Item = (Key, usize)> {
        self.counts.iter().map(|(key, count)| (*key, *count))
    }

    /// The key and the serial number of each entry, in this order.
    pub fn keys(&self) -> impl Iterator<Item = (Key, u64)> {
        self.all.keys().copied()
    }

    /// An entry of `key`.
    pub fn get(&self, key: Key, serial: u64) -> Option<&Value> {
        self.all.get(&(key, serial))
    }

    /// An entry of `key`, to change it.
    pub fn get_mut(&mut self, key: Key, serial: u64) -> Option<&mut Value> {
        self.all.get_mut(&(key, serial))
    }

    /// The entries of `key`, the oldest first.
    pub fn of(&self, key: Key) -> impl Iterator<Item = (u64, &Value)> {
        self.all.range((key, 0)..=(key, u64::MAX)).map(|((_, serial), value)| (*serial, value))
    }

    /// Adds an entry of `key`.
    pub fn insert(&mut self, key: Key, serial: u64, value: Value) {
        if self.all.insert((key, serial), value).is_none() {
            *self.counts.entry(key).or_default() += 1;
        }
    }

    /// Removes an entry of `key`, if it is there.
    pub fn remove(&mut self, key: Key, serial: u64) -> Option<Value> {
        let value = self.all.remove(&(key, serial))?;
        if let Some(count) = self.counts.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&key);
            }
        }
        Some(value)
    }
}
