//! The table of sessions: found by the two endpoints that a packet shows, whichever way it goes.

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

use super::{
    control::{Control, Entry},
    index::Index,
};
use crate::packet::{Endpoint, Packet};

/// The endpoints of a connection, in either order.
#[derive(Clone, Copy, Default)]
pub struct Key(Endpoint, Endpoint);

impl Key {
    /// The key of the connection between `a` and `b`.
    pub fn between(a: impl Into<Endpoint>, b: impl Into<Endpoint>) -> Self {
        Self(a.into(), b.into())
    }

    fn of(control: &Control) -> Self {
        Self(control.ends.client(), control.ends.server())
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
            // Without a jump, which would be taken as often as not.
            let one = |end: Endpoint| (end.low << 16) | u64::from(end.port());
            let (a, b) = (one(a), one(b));
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

/// All control connections that are followed.
#[derive(Default)]
pub struct Table {
    random: RandomState,
    index: Index,
    entries: Places,
    free: Vec<u32>,
    /// What was found last: packets of one connection often come one after the other.
    recent: u32,
    /// Places and the ends of numbers in the order in which they were taken, of entries that may have gone
    /// since.
    pub(super) by_age: VecDeque<(u32, u32)>,
    /// How many entries the tables beside each other have together.
    all: Arc<AtomicUsize>,
}

impl Table {
    /// An empty table, whose entries are counted with those of this one.
    pub fn beside(&self) -> Self {
        Self { all: Arc::clone(&self.all), ..Self::default() }
    }

    /// How many there are in all tables that are counted together.
    pub fn all(&self) -> usize {
        self.all.load(Ordering::Relaxed)
    }

    /// How many tables are counted together.
    pub fn tables(&self) -> usize {
        Arc::strong_count(&self.all)
    }

    /// The one that has been there longest among those that `may` be dropped. Those before it are
    /// never asked about again.
    pub fn oldest(&mut self, may: impl Fn(&Entry) -> bool) -> Option<u32> {
        while let Some((index, id)) = self.by_age.pop_front() {
            let entry = self.entries.get(index);
            if entry.is_some_and(|entry| entry.control.id as u32 == id && may(entry)) {
                return Some(index);
            }
        }
        None
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// Where the connection `key` is.
    #[inline]
    pub fn find(&mut self, key: &Key) -> Option<u32> {
        let is = |place| {
            let entry = self.entries.get(place);
            entry.is_some_and(|entry| Key::of(&entry.control) == *key)
        };
        if !is(self.recent) {
            self.recent = self.index.find(self.random.hash_one(key), is)?;
        }
        Some(self.recent)
    }

    /// Has what is known of these connections in the cache, as far as it fits. Where one search waits for memory
    /// the processor begins the next, as no step of one needs another's.
    pub fn approach(&self, keys: &[Key]) {
        let mut hashes = [0; APPROACHED];
        for (hash, key) in hashes.iter_mut().zip(keys) {
            *hash = self.random.hash_one(key);
            black_box(self.index.first_slot(*hash));
        }
        for hash in &hashes[..keys.len().min(APPROACHED)] {
            let place = self.index.find(*hash, |_| true);
            black_box(place.and_then(|place| self.entries.get(place)).map(Entry::touched));
        }
    }

    /// The one at `index`.
    pub fn get_mut(&mut self, index: u32) -> Option<&mut Entry> {
        self.entries.get_mut(index)?.as_mut()
    }

    /// The one at `index`, if it is still that of the session `id`.
    pub fn get_of(&mut self, index: u32, id: u64) -> Option<&mut Entry> {
        self.get_mut(index).filter(|entry| entry.control.id == id)
    }

    /// That of the connection of `packet`.
    pub fn of_packet(&mut self, packet: &Packet<'_>) -> Option<&mut Entry> {
        let (source, destination) = packet.endpoints();
        let index = self.find(&Key::between(source, destination))?;
        self.get_mut(index)
    }

    /// Takes in one more.
    pub fn insert(&mut self, entry: Entry) -> u32 {
        let hash = self.random.hash_one(Key::of(&entry.control));
        let id = entry.control.id as u32;
        let free = self.free.pop();
        let index = match free.and_then(|index| Some((index, self.entries.get_mut(index)?))) {
            Some((index, place)) => {
                *place = Some(entry);
                index
            }
            None => self.entries.push(entry),
        };
        self.index.insert(hash, index);
        self.all.fetch_add(1, Ordering::Relaxed);
        self.by_age.push_back((index, id));
        if self.by_age.len() > 2 * self.entries.len() {
            let entries = &self.entries;
            self.by_age.retain(|(index, id)| {
                entries.get(*index).is_some_and(|entry| entry.control.id as u32 == *id)
            });
        }
        index
    }

    /// Takes out the one at `index`.
    pub fn remove(&mut self, index: u32) -> Option<Entry> {
        let entry = self.entries.get_mut(index)?.take()?;
        self.index.remove(self.random.hash_one(Key::of(&entry.control)), index);
        self.free.push(index);
        self.all.fetch_sub(1, Ordering::Relaxed);
        Some(entry)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.chunks.iter().flatten().flatten()
    }

    /// All of them, to change.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.entries.chunks.iter_mut().flatten().flatten()
    }

    /// How many places there are, taken or free.
    pub fn places(&self) -> u32 {
        self.entries.len() as u32 // bounded by max-sessions
    }
}

/// How many connections are approached together.
pub const APPROACHED: usize = 32;

/// How many entries are moved at most as there are more of them, and how much room for them is free at most.
const CHUNK: usize = 1 << 13;

/// Entries, in pieces that are never moved once they are full.
#[derive(Default)]
struct Places {
    chunks: Vec<Vec<Option<Entry>>>,
}

impl Places {
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
            // The first grows with what is in it, as there may never be more.
            let room = if index == 0 { 0 } else { CHUNK };
            self.chunks.push(Vec::with_capacity(room));
        }
        if let Some(last) = self.chunks.last_mut() {
            last.push(Some(entry));
        }
        index
    }
}
