//! The table of sessions: found by the two endpoints that a packet shows, whichever way it goes.

use std::{
    collections::VecDeque,
    hash::{Hash, Hasher},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use ahash::AHashMap;

use super::{Attention, Event, Translation, What, pinholes::Held};
use crate::{
    packet::Endpoint,
    session::{Session, Side},
};

/// The endpoints of a connection, the same for both directions.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Key {
    low: u128,
    high: u128,
    ports: u32,
}

impl Key {
    /// The key of the connection between `a` and `b`.
    pub fn between(a: impl Into<Endpoint>, b: impl Into<Endpoint>) -> Self {
        let (a, b) = (a.into(), b.into());
        let (low, high) = if a < b { (a, b) } else { (b, a) };
        let ports = u32::from(low.port) << 16 | u32::from(high.port);
        Self { low: low.address, high: high.address, ports }
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match (u64::try_from(self.low), u64::try_from(self.high)) {
            (Ok(low), Ok(high)) => state.write_u64(low << 32 | high), // IPv4
            _ => {
                state.write_u128(self.low);
                state.write_u128(self.high);
            }
        }
        state.write_u32(self.ports);
    }
}

/// What is known of a control connection besides its session.
#[derive(Debug)]
pub struct Control {
    /// Its number, from 1.
    pub id: u64,
    /// The client, as packets show it.
    pub client: SocketAddr,
    /// The server, as packets show it.
    pub server: SocketAddr,
    /// Which of the policy's networks it is in.
    pub network: Option<u16>,
    /// Looked up when first needed.
    pub translation: Option<Translation>,
    /// What the kernel was last told, and when.
    pub attention: Option<(Attention, Instant)>,
    /// Pinholes that it holds, oldest first.
    pub pinholes: Vec<Held>,
    /// When it was first seen.
    pub since: Instant,
    /// When a packet of it was last seen.
    pub last: Instant,
    /// Another that began on the same endpoints, unless it was forged.
    pub rival: Option<Box<Session>>,
    /// Whether the client said something in a SYN (RFC 7413), which is not read.
    pub spoke_in_syn: bool,
    /// Whether it is noted as changed since it was last written.
    pub changed: bool,
}

impl Control {
    /// A connection that is first seen `now`.
    pub fn new(id: u64, client: SocketAddr, server: SocketAddr, now: Instant) -> Self {
        Self {
            id,
            client,
            server,
            network: None,
            translation: None,
            attention: None,
            pinholes: Vec::new(),
            since: now,
            last: now,
            rival: None,
            spoke_in_syn: false,
            changed: false,
        }
    }

    /// Something that happened on it.
    pub fn event(&self, what: What) -> Event {
        Event { session: self.id, client: self.client, server: self.server, what }
    }

    /// Which end `source` is.
    pub fn side(&self, source: impl Into<Endpoint>) -> Side {
        if source.into() == self.client.into() { Side::Client } else { Side::Server }
    }
}

/// A control connection.
#[derive(Debug)]
pub struct Entry {
    /// The session.
    pub session: Session,
    /// All else.
    pub control: Control,
}

/// All control connections that are followed.
#[derive(Default)]
pub struct Table {
    by_key: AHashMap<Key, u32>,
    entries: Vec<Option<Entry>>,
    free: Vec<u32>,
    /// Places and numbers in the order in which they were taken, of entries that may have gone since.
    pub(super) by_age: VecDeque<(u32, u64)>,
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
            let entry = self.entries.get(index as usize)?.as_ref();
            if entry.is_some_and(|entry| entry.control.id == id && may(entry)) {
                return Some(index);
            }
        }
        None
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Where the connection `key` is.
    pub fn find(&self, key: &Key) -> Option<u32> {
        self.by_key.get(key).copied()
    }

    /// The one at `index`.
    pub fn get_mut(&mut self, index: u32) -> Option<&mut Entry> {
        self.entries.get_mut(index as usize)?.as_mut()
    }

    /// Takes in one more.
    pub fn insert(&mut self, entry: Entry) -> u32 {
        let key = Key::between(entry.control.client, entry.control.server);
        let id = entry.control.id;
        let index = if let Some(index) = self.free.pop() {
            self.entries[index as usize] = Some(entry);
            index
        } else {
            self.entries.push(Some(entry));
            (self.entries.len() - 1) as u32 // bounded by max-sessions
        };
        self.by_key.insert(key, index);
        self.all.fetch_add(1, Ordering::Relaxed);
        self.by_age.push_back((index, id));
        if self.by_age.len() > 2 * self.entries.len() {
            let entries = &self.entries;
            self.by_age.retain(|(index, id)| {
                let entry = entries.get(*index as usize).and_then(Option::as_ref);
                entry.is_some_and(|entry| entry.control.id == *id)
            });
        }
        index
    }

    /// Takes out the one at `index`.
    pub fn remove(&mut self, index: u32) -> Option<Entry> {
        let entry = self.entries.get_mut(index as usize)?.take()?;
        self.by_key.remove(&Key::between(entry.control.client, entry.control.server));
        self.free.push(index);
        self.all.fetch_sub(1, Ordering::Relaxed);
        Some(entry)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().flatten()
    }

    /// All of them, to change.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        self.entries.iter_mut().flatten()
    }

    /// How many places there are, taken or free.
    pub fn places(&self) -> u32 {
        self.entries.len() as u32 // bounded by max-sessions
    }
}
