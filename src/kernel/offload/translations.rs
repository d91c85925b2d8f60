//! The translations of the data connections that the program admits, in two maps of the nftables table for each family.
//!
//! The rules find a target (translated destination) by the packet mark, which has the number of the target in it: its
//! slot. They find a source by initiator and target. All connections between the same ends share these elements.
//!
//! An unused element stays until its place is needed, because a transaction costs more than an element. Each connection
//! has a lease of its source, also of one that does not change: so no connection gets the source of an earlier one.
//!
//! This module knows neither flows nor pinholes.

use std::{
    collections::{HashMap, hash_map::Entry},
    ffi::CStr,
    hash::Hash,
    io,
    net::IpAddr,
};

use crate::kernel::{
    NetfilterError, RuleParameters,
    netlink::{
        Socket, address_of,
        nft::{self, Batch, Element},
        octets_of, or_absent, repeat_interrupted,
    },
    parameters::{Backend, MAX_SLOT},
    table::Commits,
};

/// The maps of targets, for IPv4 and IPv6.
const TARGETS: [&CStr; 2] = [c"fast_path_targets4", c"fast_path_targets6"];
const SOURCES: [&CStr; 2] = [c"fast_path_sources4", c"fast_path_sources6"];
/// A set that has an element when all maps have all of their elements.
const READY: &CStr = c"fast_path_ready";
/// Limit of pairs, beyond which an idle pair makes room. Each connection that the program can have may need two.
const MAX_SOURCES: usize = 2 * 16_384;
/// Elements in one transaction, so that it fits a send buffer of the default size.
const ELEMENTS_PER_BATCH: usize = 256;

/// Initiator and target.
type InitiatorAndTarget = (IpAddr, IpAddr);

/// The translations of one table, as the kernel has them.
#[derive(Debug)]
pub struct Translations {
    parameters: RuleParameters,
    commits: Commits,
    socket: Socket,
    /// The slot of each target.
    targets: HashMap<IpAddr, Leased<u32>>,
    /// The source of each pair. A source that is the initiator itself has no element.
    sources: HashMap<InitiatorAndTarget, Leased<IpAddr>>,
}

#[derive(Clone, Copy, Debug)]
struct Leased<T> {
    value: T,
    /// Number of leases that use this element.
    lease_count: usize,
}

/// A use of translations, until it is [released](Translations::release).
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct TranslationLease {
    /// The packet mark by which the rules translate the connection.
    pub mark: u32,
    target: Option<IpAddr>,
    pair: InitiatorAndTarget,
}

impl Translations {
    /// Reads the maps of the table, in which an earlier daemon may have left elements. `commits` sends and counts the
    /// transactions.
    pub fn new(parameters: &RuleParameters, commits: &Commits) -> Result<Self, NetfilterError> {
        let socket = Commits::open_socket().map_err(translation_error)?;
        let mut translations = Self {
            parameters: parameters.clone(),
            commits: commits.clone(),
            socket,
            targets: HashMap::new(),
            sources: HashMap::new(),
        };
        repeat_interrupted(|| translations.read()).map_err(translation_error)?;
        Ok(translations)
    }

    /// Reads the maps. `Interrupted` if one changed meanwhile.
    fn read(&mut self) -> io::Result<()> {
        let Self { parameters, socket, targets, sources, .. } = self;
        targets.clear();
        sources.clear();
        // Without our table there are no elements.
        for (maps, length) in TARGETS.into_iter().zip(SOURCES).zip([4, 16]) {
            or_absent(nft::dump_elements(socket, maps.0, |key, element| {
                let mark = key.first_chunk().map(|mark| u32::from_ne_bytes(*mark));
                if let Some(slot) = mark.and_then(|mark| parameters.slot_of(mark))
                    && let Some(target) = address_at(nft::data_of(element), 0, length)
                {
                    targets.insert(target, Leased { value: slot, lease_count: 0 });
                }
            }))?;
            or_absent(nft::dump_elements(socket, maps.1, |pair, element| {
                let [initiator, target] = [0, length].map(|at| address_at(Some(pair), at, length));
                if let (Some(initiator), Some(target)) = (initiator, target)
                    && let Some(value) = address_at(nft::data_of(element), 0, length)
                {
                    sources.insert((initiator, target), Leased { value, lease_count: 0 });
                }
            }))?;
        }
        Ok(())
    }

    /// Acquires the translations of a connection. The destination becomes `target` (`None` leaves it unchanged).
    /// Connections of the `pair`, initiator and final target, get `source`. Returns `None` if another source of this
    /// pair is in use, or if there are too many translations. Calls `before_replacing` before it replaces a translation
    /// by another one.
    pub fn acquire(
        &mut self,
        target: Option<IpAddr>,
        pair: InitiatorAndTarget,
        source: IpAddr,
        before_replacing: impl FnOnce(),
    ) -> Result<Option<TranslationLease>, NetfilterError> {
        // The program opens nothing.
        if self.parameters.backend != Backend::Nftables {
            return Ok(Some(TranslationLease { mark: 0, target: None, pair }));
        }
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
            replace_element(&mut batch, of_family(TARGETS, target), &mark.to_ne_bytes(), target);
        }
        let (mut evicted_pair, sources) = (None, of_family(SOURCES, source));
        let known = self.sources.get(&pair).copied();
        let replaces_source = known.is_some_and(|known| known.value != source);
        match known {
            Some(known) if known.value == source => {}
            Some(known) if known.lease_count > 0 => return Ok(None),
            _ => {
                let is_unchanged = source == pair.0;
                if !is_unchanged && known.is_none() && self.sources.len() >= MAX_SOURCES {
                    let Some(idle) = find_unused(&self.sources) else { return Ok(None) };
                    batch.destroy_element(of_family(SOURCES, idle.0), &pair_key(idle));
                    evicted_pair = Some(idle);
                }
                if !is_unchanged {
                    replace_element(&mut batch, sources, &pair_key(pair), source);
                } else if known.is_some() {
                    batch.destroy_element(sources, &pair_key(pair));
                }
            }
        }
        if evicted_target.is_some() || evicted_pair.is_some() || replaces_source {
            before_replacing();
        }
        if batch.len() > before {
            self.send(&mut batch)?;
        }
        evicted_target.map(|target| self.targets.remove(&target));
        evicted_pair.map(|pair| self.sources.remove(&pair));
        if let Some(target) = target {
            self.targets
                .entry(target)
                .or_insert(Leased { value: slot, lease_count: 0 })
                .lease_count += 1;
        }
        let used = self.sources.entry(pair).or_insert(Leased { value: source, lease_count: 0 });
        used.value = source;
        used.lease_count += 1;
        Ok(Some(TranslationLease { mark, target, pair }))
    }

    /// A free slot, or that of an unused target, which is then evicted.
    fn free_slot(&self, evicted: &mut Option<IpAddr>) -> Option<u32> {
        if self.targets.len() < MAX_SLOT as usize {
            let mut taken: Vec<u32> = self.targets.values().map(|target| target.value).collect();
            taken.sort_unstable();
            let gap = taken.iter().zip(1..).find(|(taken, slot)| *taken != slot);
            return Some(gap.map_or(taken.len() as u32 + 1, |(_, slot)| slot));
        }
        let target = find_unused(&self.targets)?;
        *evicted = Some(target);
        self.targets.get(&target).map(|target| target.value)
    }

    /// Ends the use of the translations.
    pub fn release(&mut self, slot: &TranslationLease) {
        let target = slot.target.and_then(|target| self.targets.get_mut(&target));
        if let Some(target) = target {
            target.lease_count = target.lease_count.saturating_sub(1);
        }
        if let Entry::Occupied(mut source) = self.sources.entry(slot.pair) {
            let Leased { value, lease_count } = source.get_mut();
            *lease_count = lease_count.saturating_sub(1);
            // It has no element.
            if *lease_count == 0 && *value == slot.pair.0 {
                source.remove();
            }
        }
    }

    /// Whether the table may lack elements. The elements that it has of an earlier table may be those of a daemon without
    /// a fast path, or of one that a crash ended before it had added all.
    pub fn are_incomplete(&mut self) -> Result<bool, NetfilterError> {
        let mut is_ready = false;
        let read =
            || or_absent(nft::dump_elements(&mut self.socket, READY, |_, _| is_ready = true));
        repeat_interrupted(read).map_err(translation_error)?;
        Ok(!is_ready)
    }

    /// Adds the elements to the table after it was replaced. Before that the table admits nothing that the program
    /// marks. With the back end `conntrack`, after a daemon with the other back end, the table has no maps.
    pub fn restore_elements(&mut self) -> Result<(), NetfilterError> {
        if self.parameters.backend != Backend::Nftables {
            return Ok(());
        }
        let mut elements = Vec::with_capacity(self.targets.len() + self.sources.len());
        for (target, slot) in &self.targets {
            let mark = self.parameters.admitted_mark(slot.value).unwrap_or_default();
            elements.push((of_family(TARGETS, *target), mark.to_ne_bytes().to_vec(), *target));
        }
        let translated =
            self.sources.iter().filter(|((initiator, _), one)| one.value != *initiator);
        for (pair, source) in translated {
            elements.push((of_family(SOURCES, pair.0), pair_key(*pair), source.value));
        }
        for some in elements.chunks(ELEMENTS_PER_BATCH) {
            let mut batch = Batch::new();
            for (map, key, to) in some {
                replace_element(&mut batch, map, key, *to);
            }
            self.send(&mut batch)?;
        }
        let mut batch = Batch::new();
        let tcp = [libc::IPPROTO_TCP as u8];
        batch.destroy_element(READY, &tcp);
        batch.add_element(&Element { set: READY, key: &tcp, data: None, timeout: None });
        self.send(&mut batch)
    }

    fn send(&mut self, batch: &mut Batch) -> Result<(), NetfilterError> {
        let outcome = self.commits.send(batch, &mut self.socket).map_err(translation_error)?;
        outcome.result().map_err(translation_error)
    }
}

/// The key of an element that no lease uses.
fn find_unused<K: Copy + Eq + Hash, T>(all: &HashMap<K, Leased<T>>) -> Option<K> {
    all.iter().find(|(_, one)| one.lease_count == 0).map(|(key, _)| *key)
}

/// Adds to the batch: replace the element with this key, if there is one. This needs Linux 6.3, and the program needs
/// a newer one anyway.
fn replace_element(batch: &mut Batch, set: &'static CStr, key: &[u8], to: IpAddr) {
    batch.destroy_element(set, key);
    batch.add_element(&Element { set, key, data: Some(&octets_of(to)), timeout: None });
}

fn pair_key((initiator, target): InitiatorAndTarget) -> Vec<u8> {
    [octets_of(initiator), octets_of(target)].concat()
}

/// The map for addresses of this one's family.
fn of_family(maps: [&'static CStr; 2], address: IpAddr) -> &'static CStr {
    maps[usize::from(address.is_ipv6())]
}

fn address_at(bytes: Option<&[u8]>, at: usize, length: usize) -> Option<IpAddr> {
    bytes?.get(at..at + length).and_then(address_of)
}

fn translation_error(error: io::Error) -> NetfilterError {
    NetfilterError::system("translations of the fast path", error)
}
