//! The session table: finds a session by the two endpoints of a packet, in either direction.

pub(crate) mod entry;
mod index;
pub(crate) mod listing;

use std::{
    collections::VecDeque,
    hash::{Hash, Hasher},
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use ahash::RandomState;

use crate::{
    engine::table::{entry::Entry, index::Index},
    packet::{Endpoint, Packet},
};

/// The endpoints of a connection, in either order.
#[derive(Clone, Copy, Default)]
pub struct Key(Endpoint, Endpoint);

impl Key {
    /// The key of the connection between `a` and `b`.
    pub fn between(a: impl Into<Endpoint>, b: impl Into<Endpoint>) -> Self {
        Self(a.into(), b.into())
    }

    /// The key of the connection of a packet, if that can be parsed.
    pub fn of_packet(bytes: &[u8]) -> Option<Self> {
        let (source, destination) = Packet::parse(bytes).ok()?.endpoints();
        Some(Self(source, destination))
    }

    fn of(entry: &Entry) -> Self {
        Self(entry.head.endpoints.client(), entry.head.endpoints.server())
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        (self.0 == other.0 && self.1 == other.1) || (self.0 == other.1 && self.1 == other.0)
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self(a, b) = *self;
        if a.is_v4() && b.is_v4() {
            // Without a branch, which would be mispredicted half of the time.
            let number = |end: Endpoint| (end.low << 16) | u64::from(end.port());
            let (a, b) = (number(a), number(b));
            state.write_u128((u128::from(a.min(b)) << 64) | u128::from(a.max(b)));
        } else {
            for end in [a.min(b), a.max(b)] {
                state.write_u64(end.high);
                state.write_u64(end.low);
                state.write_u32(end.port_and_family());
            }
        }
    }
}

/// The control connections of one shard.
#[derive(Default)]
pub struct Table {
    random: RandomState,
    index: Index,
    entries: Slots,
    free: Vec<u32>,
    /// Slot of the last lookup: consecutive packets often belong to one connection.
    recent: u32,
    /// Slots and low halves of session numbers, oldest first; the sessions may be gone.
    pub(crate) by_age: VecDeque<(u32, u32)>,
    /// Number of entries in the tables of all shards.
    total: Arc<AtomicUsize>,
    /// Held by all shards that get packets.
    sharers: Arc<()>,
}

impl Table {
    /// An empty table for another shard. One of restored sessions counts as no shard.
    pub fn new_shard(&self, is_restored: bool) -> Self {
        let sharers = if is_restored { Arc::default() } else { Arc::clone(&self.sharers) };
        Self { total: Arc::clone(&self.total), sharers, ..Self::default() }
    }

    /// Number of entries in the tables of all shards.
    pub fn total_len(&self) -> usize {
        self.total.load(Ordering::Relaxed)
    }

    /// Number of shards that get packets.
    pub fn table_count(&self) -> usize {
        Arc::strong_count(&self.sharers)
    }

    /// The oldest entry for which `is_evictable` returns true. Entries before it are not examined again.
    pub fn take_oldest(&mut self, is_evictable: impl Fn(&Entry) -> bool) -> Option<u32> {
        while let Some((index, id)) = self.by_age.pop_front() {
            let entry = self.entries.get(index);
            if entry.is_some_and(|entry| entry.head.id as u32 == id && is_evictable(entry)) {
                return Some(index);
            }
        }
        None
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// The slot of the connection `key`.
    #[inline]
    pub fn find(&mut self, key: &Key) -> Option<u32> {
        let has_key = |slot| self.entries.get(slot).is_some_and(|entry| Key::of(entry) == *key);
        if !has_key(self.recent) {
            self.recent = self.index.find(self.random.hash_one(key), has_key)?;
        }
        Some(self.recent)
    }

    /// Loads the entries of these connections into the cache. While one lookup waits for memory, the processor starts
    /// the next, because no lookup depends on another.
    pub fn prefetch(&self, keys: &[Key]) {
        let mut hashes = [0; PREFETCHED];
        for (hash, key) in hashes.iter_mut().zip(keys) {
            *hash = self.random.hash_one(key);
            black_box(self.index.first_slot(*hash));
        }
        for hash in &hashes[..keys.len().min(PREFETCHED)] {
            let slot = self.index.find(*hash, |_| true);
            black_box(slot.and_then(|slot| self.entries.get(slot)).map(Entry::touch_cache_lines));
        }
    }

    /// The entry in slot `index`.
    pub fn get(&self, index: u32) -> Option<&Entry> {
        self.entries.get(index)
    }

    /// As [`get`](Self::get), to be changed.
    pub fn get_mut(&mut self, index: u32) -> Option<&mut Entry> {
        self.entries.get_mut(index)?.as_mut()
    }

    /// The entry in slot `index`, if it is still session `id`.
    pub fn get_session(&mut self, index: u32, id: u64) -> Option<&mut Entry> {
        self.get_mut(index).filter(|entry| entry.head.id == id)
    }

    /// The entry of the connection of `packet`.
    pub fn find_packet(&mut self, packet: &Packet<'_>) -> Option<&mut Entry> {
        let (source, destination) = packet.endpoints();
        let index = self.find(&Key::between(source, destination))?;
        self.get_mut(index)
    }

    /// Inserts an entry. Returns its slot.
    pub fn insert(&mut self, entry: Entry) -> u32 {
        let hash = self.random.hash_one(Key::of(&entry));
        let id = entry.head.id as u32;
        let free = self.free.pop();
        let index = match free.and_then(|index| Some((index, self.entries.get_mut(index)?))) {
            Some((index, slot)) => {
                *slot = Some(entry);
                index
            }
            None => self.entries.push(entry),
        };
        self.index.insert(hash, index);
        self.total.fetch_add(1, Ordering::Relaxed);
        self.by_age.push_back((index, id));
        if self.by_age.len() > 2 * self.entries.len() {
            let entries = &self.entries;
            self.by_age.retain(|(index, id)| {
                entries.get(*index).is_some_and(|entry| entry.head.id as u32 == *id)
            });
        }
        index
    }

    /// Removes the entry in slot `index`.
    pub fn remove(&mut self, index: u32) -> Option<Entry> {
        let entry = self.entries.get_mut(index)?.take()?;
        self.index.remove(self.random.hash_one(Key::of(&entry)), index);
        self.free.push(index);
        self.total.fetch_sub(1, Ordering::Relaxed);
        Some(entry)
    }

    /// All entries.
    pub fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.chunks.iter().flatten().flatten()
    }

    /// All entries with their slots.
    pub fn slots(&self) -> impl Iterator<Item = (u32, &Entry)> {
        (0..self.slot_count()).filter_map(|index| Some((index, self.get(index)?)))
    }

    /// All entries, mutable.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.entries.chunks.iter_mut().flatten().flatten()
    }

    /// Number of slots, used or free.
    pub fn slot_count(&self) -> u32 {
        self.entries.len() as u32 // bounded by max-sessions
    }
}

/// Number of connections in one prefetch.
pub const PREFETCHED: usize = 32;

/// Maximum number of entries that move when the table grows, and maximum number of unused slots.
const CHUNK: usize = 1 << 13;

/// Table slots in chunks that are never moved once they are full.
#[derive(Default)]
struct Slots {
    chunks: Vec<Vec<Option<Entry>>>,
}

impl Slots {
    fn len(&self) -> usize {
        self.chunks.last().map_or(0, |last| (self.chunks.len() - 1) * CHUNK + last.len())
    }

    fn get(&self, index: u32) -> Option<&Entry> {
        self.chunks.get(index as usize / CHUNK)?.get(index as usize % CHUNK)?.as_ref()
    }

    fn get_mut(&mut self, index: u32) -> Option<&mut Option<Entry>> {
        self.chunks.get_mut(index as usize / CHUNK)?.get_mut(index as usize % CHUNK)
    }

    fn push(&mut self, entry: Entry) -> u32 {
        let index = self.len() as u32; // bounded by max-sessions
        if (index as usize).is_multiple_of(CHUNK) {
            // The first chunk grows with its content, because it may stay the only one.
            let room = if index == 0 { 0 } else { CHUNK };
            self.chunks.push(Vec::with_capacity(room));
        }
        if let Some(last) = self.chunks.last_mut() {
            last.push(Some(entry));
        }
        index
    }
}
