//! What clients have in a store with a limit, each its share, so that the flood of one displaces its own.

use std::collections::BTreeMap;

/// What each `Key` has, by serial numbers that grow. It takes memory by small steps, so no packet waits for it.
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
    /// How many all have.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether nobody has any.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// How many `key` has.
    pub fn count_of(&self, key: Key) -> usize {
        self.counts.get(&key).copied().unwrap_or(0)
    }

    /// Each key, with how many it has.
    pub fn counts(&self) -> impl Iterator<Item = (Key, usize)> {
        self.counts.iter().map(|(key, count)| (*key, *count))
    }

    /// Whose all are, with their serial numbers, in this order.
    pub fn keys(&self) -> impl Iterator<Item = (Key, u64)> {
        self.all.keys().copied()
    }

    /// One of `key`.
    pub fn get(&self, key: Key, serial: u64) -> Option<&Value> {
        self.all.get(&(key, serial))
    }

    /// One of `key`, to change it.
    pub fn get_mut(&mut self, key: Key, serial: u64) -> Option<&mut Value> {
        self.all.get_mut(&(key, serial))
    }

    /// What `key` has, the oldest first.
    pub fn of(&self, key: Key) -> impl Iterator<Item = (u64, &Value)> {
        self.all.range((key, 0)..=(key, u64::MAX)).map(|((_, serial), value)| (*serial, value))
    }

    /// Adds one of `key`.
    pub fn insert(&mut self, key: Key, serial: u64, value: Value) {
        if self.all.insert((key, serial), value).is_none() {
            *self.counts.entry(key).or_default() += 1;
        }
    }

    /// Removes one of `key`, if it is there.
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
