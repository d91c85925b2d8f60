//! The translations of the data connections that the program admits: maps of our table, which its rules read.
//!
//! A target is found by the packet mark, in which it has a number, its slot; a source by initiator and target. They are shared by all
//! connections between the same ends. What nothing uses any more stays, as a transaction costs more than an element,
//! until there is need of its place: without an admitted connection it means nothing. Knows neither flows nor pinholes.

use std::{collections::HashMap, ffi::CStr, hash::Hash, io, net::Ipv4Addr};

use crate::gateway::{
    Commits, GatewayError, RuleParameters,
    netlink::{
        Socket, found,
        nft::{self, Batch, Element},
    },
    parameters::MOST_SLOTS,
};

const TARGETS: &CStr = c"judged_targets4";
const SOURCES: &CStr = c"judged_sources4";
/// As many pairs of initiator and target as have a source of their own.
const MOST_SOURCES: usize = 16_384;
/// Elements put into one transaction: it fits a send buffer of the default size.
const AT_ONCE: usize = 256;
/// How often to read a map that changes meanwhile.
const READS: usize = 8;

/// Initiator and target.
type Pair = (Ipv4Addr, Ipv4Addr);

/// The translations of one table, as the kernel has them.
#[derive(Debug)]
pub struct Translations {
    parameters: RuleParameters,
    commits: Commits,
    socket: Socket,
    /// What is translated to, with its slot.
    targets: HashMap<Ipv4Addr, Used<u32>>,
    sources: HashMap<Pair, Used<Ipv4Addr>>,
}

#[derive(Clone, Copy, Debug)]
struct Used<T> {
    value: T,
    /// How many slots that are out have it.
    users: usize,
}

/// The right to have data connections translated, until it is [released](Translations::release).
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct Slot {
    mark: u32,
    target: Option<Ipv4Addr>,
    pair: Option<Pair>,
}

impl Slot {
    /// The packet mark by which the rules translate the connection.
    pub fn mark(&self) -> u32 {
        self.mark
    }
}

impl Translations {
    /// Reads what the table has, which another daemon may have left. Transactions are made and counted by `commits`.
    pub fn new(parameters: &RuleParameters, commits: &Commits) -> Result<Self, GatewayError> {
        let socket = Socket::open().map_err(failed)?;
        let mut translations = Self {
            parameters: parameters.clone(),
            commits: commits.clone(),
            socket,
            targets: HashMap::new(),
            sources: HashMap::new(),
        };
        for _ in 0..READS {
            if translations.read().map_err(failed)? {
                return Ok(translations);
            }
        }
        Err(failed(io::ErrorKind::Interrupted.into()))
    }

    /// Whether nothing changed meanwhile.
    fn read(&mut self) -> io::Result<bool> {
        let Self { parameters, socket, targets, sources, .. } = self;
        targets.clear();
        sources.clear();
        // Without our table there are none.
        let is_whole = found(nft::dump_map(socket, TARGETS, |key, target| {
            let mark = key.first_chunk().map(|mark| u32::from_ne_bytes(*mark));
            if let Some(slot) = mark.and_then(|mark| parameters.slot_of(mark))
                && let Some(target) = address_at(target, 0)
            {
                targets.insert(target, Used { value: slot, users: 0 });
            }
        }))?;
        let is_whole_too = found(nft::dump_map(socket, SOURCES, |pair, source| {
            if let (Some(initiator), Some(target)) = (address_at(pair, 0), address_at(pair, 4))
                && let Some(value) = address_at(source, 0)
            {
                sources.insert((initiator, target), Used { value, users: 0 });
            }
        }))?;
        Ok(is_whole != Some(false) && is_whole_too != Some(false))
    }

    /// Has connections that get the mark of the slot go to `target`, if there is one, and those from an initiator to a target show
    /// a source there, if there is one. `None` if that pair has another source, or there are too many translations.
    pub fn acquire(
        &mut self,
        target: Option<Ipv4Addr>,
        source: Option<(Ipv4Addr, Ipv4Addr, Ipv4Addr)>,
    ) -> Result<Option<Slot>, GatewayError> {
        let mut batch = Batch::new();
        let before = batch.len();
        let (mut slot, mut evicted_target) = (0, None);
        if let Some(target) = target {
            slot = match self.targets.get(&target) {
                Some(known) => known.value,
                None => {
                    let Some(free) = self.free_slot(&mut evicted_target) else { return Ok(None) };
                    free
                }
            };
        }
        let Some(mark) = self.parameters.admitted_mark(slot) else { return Ok(None) };
        if let Some(target) = target
            && !self.targets.contains_key(&target)
        {
            put(&mut batch, TARGETS, &mark.to_ne_bytes(), target);
        }
        let pair = source.map(|(initiator, target, _)| (initiator, target));
        let mut evicted_pair = None;
        if let Some((initiator, target, source)) = source {
            let pair = (initiator, target);
            let known = self.sources.get(&pair).copied();
            match known {
                Some(known) if known.value == source => {}
                Some(known) if known.users > 0 => return Ok(None),
                _ => {
                    if known.is_none() && self.sources.len() >= MOST_SOURCES {
                        let Some(idle) = idle(&self.sources) else { return Ok(None) };
                        batch.destroy_element(SOURCES, &pair_key(idle));
                        evicted_pair = Some(idle);
                    }
                    put(&mut batch, SOURCES, &pair_key(pair), source);
                }
            }
        }
        if batch.len() > before {
            self.send(&mut batch)?;
        }
        evicted_target.map(|target| self.targets.remove(&target));
        evicted_pair.map(|pair| self.sources.remove(&pair));
        if let Some(target) = target {
            self.targets.entry(target).or_insert(Used { value: slot, users: 0 }).users += 1;
        }
        if let Some((initiator, target, source)) = source {
            let used = self.sources.entry((initiator, target));
            let used = used.or_insert(Used { value: source, users: 0 });
            used.value = source;
            used.users += 1;
        }
        Ok(Some(Slot { mark, target, pair }))
    }

    /// A slot that nothing has, or that of a target which nothing uses, which loses it.
    fn free_slot(&self, evicted: &mut Option<Ipv4Addr>) -> Option<u32> {
        if self.targets.len() < MOST_SLOTS as usize {
            let mut taken: Vec<u32> = self.targets.values().map(|target| target.value).collect();
            taken.sort_unstable();
            let gap = taken.iter().zip(1..).find(|(taken, slot)| *taken != slot);
            return Some(gap.map_or(taken.len() as u32 + 1, |(_, slot)| slot));
        }
        let target = idle(&self.targets)?;
        *evicted = Some(target);
        self.targets.get(&target).map(|target| target.value)
    }

    /// Ends a use of translations.
    pub fn release(&mut self, slot: &Slot) {
        let target = slot.target.and_then(|target| self.targets.get_mut(&target));
        if let Some(target) = target {
            target.users = target.users.saturating_sub(1);
        }
        let source = slot.pair.and_then(|pair| self.sources.get_mut(&pair));
        if let Some(source) = source {
            source.users = source.users.saturating_sub(1);
        }
    }

    /// After the table was loaded anew: puts into it what is used. Slots that are out go on.
    pub fn reset(&mut self) -> Result<(), GatewayError> {
        self.targets.retain(|_, target| target.users > 0);
        self.sources.retain(|_, source| source.users > 0);
        let mut elements = Vec::with_capacity(self.targets.len() + self.sources.len());
        for (target, slot) in &self.targets {
            let mark = self.parameters.admitted_mark(slot.value).unwrap_or_default();
            elements.push((TARGETS, mark.to_ne_bytes().to_vec(), *target));
        }
        for (pair, source) in &self.sources {
            elements.push((SOURCES, pair_key(*pair).to_vec(), source.value));
        }
        for some in elements.chunks(AT_ONCE) {
            let mut batch = Batch::new();
            for (map, key, to) in some {
                put(&mut batch, map, key, *to);
            }
            self.send(&mut batch)?;
        }
        Ok(())
    }

    fn send(&mut self, batch: &mut Batch) -> Result<(), GatewayError> {
        let outcome = self.commits.send(batch, &mut self.socket).map_err(failed)?;
        match outcome.first_error() {
            None => Ok(()),
            Some(errno) => Err(failed(io::Error::from_raw_os_error(errno))),
        }
    }
}

/// One that nothing uses.
fn idle<K: Copy + Eq + Hash, T>(all: &HashMap<K, Used<T>>) -> Option<K> {
    all.iter().find(|(_, one)| one.users == 0).map(|(key, _)| *key)
}

/// Has the batch put an element in the place of what is there. Linux 6.3 and newer; the program needs a newer one.
fn put(batch: &mut Batch, set: &'static CStr, key: &[u8], to: Ipv4Addr) {
    batch.destroy_element(set, key);
    batch.add_element(&Element { set, key, data: Some(&to.octets()), timeout: None });
}

fn pair_key((initiator, target): Pair) -> [u8; 8] {
    let mut key = [0; 8];
    let bytes = initiator.octets().into_iter().chain(target.octets());
    key.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
    key
}

fn address_at(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    bytes.get(at..)?.first_chunk::<4>().map(|octets| (*octets).into())
}

fn failed(error: io::Error) -> GatewayError {
    GatewayError::system("translations of the fast path", error)
}
