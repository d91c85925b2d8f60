//! The registry of all pinholes of all shards, and the order in which the kernel is updated.
//!
//! The kernel identifies a pinhole by initiator and arrival. So closing a pinhole could close one that another shard
//! has opened there since. For that reason an entry is first released, and is free only when the kernel closes it. A
//! shard that wants the entry before takes it over, and then has to close it. [`PinholeRegistry::update_kernel`]
//! serialises updates: it omits closings of entries that were taken over, and a pinhole at a freed entry is opened
//! later.

use std::{
    collections::hash_map::Entry,
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use ahash::{AHashMap, AHashSet};

use super::{Opening, Pinhole, Renewal, Translation, handover::FastPathPinhole};

/// Fraction of all pinholes that one client may hold unused, and fraction including those in use.
const UNUSED_FRACTION: usize = 4;
const HELD_FRACTION: usize = 8;
/// How many targets with another external port are remembered.
const MAX_DISPLACED: usize = 4096;

/// How often a pinhole opens again because its data connection was refused.
const MAX_REOPENINGS: u8 = 8;

/// How often a closing that failed is tried again, once a second. Then the pinhole stays until it expires.
const CLOSING_RETRIES: u32 = 10;

/// Why no pinhole can be opened.
#[derive(Debug)]
pub enum OpenError {
    /// The client's limit of unused pinholes is reached.
    Limit(usize),
    /// The limit of all pinholes is reached, or the client's fraction of it.
    Full(&'static str),
    /// No external port is free.
    NoPort,
}

/// The registry that all shards share.
#[derive(Clone, Default)]
pub struct PinholeRegistry(Arc<RegistryLocks>);

#[derive(Default)]
struct RegistryLocks {
    state: Mutex<RegistryState>,
    /// Held while the kernel is updated. Locked before any other lock.
    updating: Mutex<()>,
}

/// A pinhole to close, unless its entry was taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinholeClosing {
    /// The pinhole.
    pub(super) pinhole: Pinhole,
    /// The serial number that the entry must have.
    pub(super) serial: u64,
    /// How often the kernel failed to close it.
    failures: u32,
}

impl PinholeClosing {
    pub(super) fn new(pinhole: Pinhole, serial: u64) -> Self {
        Self { pinhole, serial, failures: 0 }
    }
}

/// An entry of the registry.
#[derive(Clone, Copy, Debug)]
pub(super) struct RegistryEntry {
    pub(super) pinhole: Pinhole,
    serial: u64,
    is_released: bool,
    /// Identity in the BPF program, if that has it; the rules do not know it then.
    pub(super) fast_path: Option<FastPathPinhole>,
    /// `None` if it never opens again.
    reopening: Option<Reopening>,
}

/// How a pinhole opens again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reopening {
    control: Translation,
    from_client: bool,
    deadline: Instant,
    left: u8,
}

impl Reopening {
    /// For a pinhole of this control connection, until its deadline.
    pub(super) fn new(control: &Translation, from_client: bool, deadline: Instant) -> Self {
        Self { control: *control, from_client, deadline, left: MAX_REOPENINGS }
    }
}

/// The pinholes with one initiator and one target.
#[derive(Clone, Copy, Debug, Default)]
struct SameTarget {
    count: u32,
    /// The arrival of the last one.
    arrival: Option<SocketAddr>,
}

/// The state that all shards share.
#[derive(Default)]
pub(super) struct RegistryState {
    /// By initiator and arrival.
    entries: AHashMap<(IpAddr, SocketAddr), RegistryEntry>,
    /// Number of released entries.
    released: usize,
    /// Closings that failed. Their entries are released.
    failed_closings: Vec<PinholeClosing>,
    /// By initiator and target, which select the source translation.
    by_target: AHashMap<(IpAddr, SocketAddr), SameTarget>,
    per_client: AHashMap<IpAddr, ClientShare>,
    /// Initiators and targets whose last pinhole could not have the target's port as its external port.
    displaced: AHashSet<(IpAddr, SocketAddr)>,
    /// Serial number of the last inserted pinhole.
    pub(super) serial: u64,
}

/// The pinholes of one client.
#[derive(Default)]
struct ClientShare {
    unused: usize,
    /// Includes those in use.
    held: usize,
}

/// The client that pinholes count for: an IPv6 host has a whole /64.
pub(super) fn client_key(client: IpAddr) -> IpAddr {
    match client {
        IpAddr::V4(_) => client,
        IpAddr::V6(address) => Ipv6Addr::from(u128::from(address) >> 64 << 64).into(),
    }
}

impl PinholeRegistry {
    /// Calls `update` with the pinholes of `closings` that are due; it updates the kernel. No other thread updates
    /// pinholes meanwhile. If it fails, the closings are tried again later.
    pub fn update_kernel<T, E>(
        &self,
        closings: impl Iterator<Item = PinholeClosing>,
        update: impl FnOnce(&[Pinhole]) -> Result<T, E>,
    ) -> Result<T, E> {
        let _updating = lock(&self.0.updating);
        let mut state = self.lock();
        let due = |closing| Some((closing, state.take_due(closing)?));
        let (closings, due): (Vec<_>, Vec<_>) = closings.filter_map(due).unzip();
        drop(state);
        let updated = update(&due);
        if updated.is_err() {
            let mut state = self.lock();
            closings.into_iter().for_each(|closing| state.retry(closing));
        }
        updated
    }

    /// Calls `renew` with those of `renewals` that are still held. No other thread updates pinholes meanwhile, so none
    /// is closed, and its endpoints used by another one.
    pub fn renew_in_kernel<R>(
        &self,
        now: Instant,
        renewals: &mut Vec<Renewal>,
        renew: impl FnOnce(&[Renewal]) -> R,
    ) -> R {
        let _updating = lock(&self.0.updating);
        let mut state = self.lock();
        renewals.retain_mut(|Renewal { opening: Opening { pinhole, lifetime, .. }, fast_path }| {
            let Some(entry) = state.held_entry(pinhole) else { return false };
            *fast_path = entry.fast_path;
            if let Some(reopening) = &mut entry.reopening {
                reopening.deadline = now + *lifetime;
            }
            true
        });
        drop(state);
        renew(renewals)
    }

    /// Calls `reopen` with those of `refused` that are still held. From then on the rules have them, also if the BPF
    /// program opened them. No other thread updates pinholes meanwhile.
    pub fn reopen_in_kernel<R>(
        &self,
        refused: impl Iterator<Item = Opening>,
        reopen: impl FnOnce(&[Opening]) -> R,
    ) -> R {
        let _updating = lock(&self.0.updating);
        let mut state = self.lock();
        let mut move_to_rules = |opening: &Opening| {
            state.held_entry(&opening.pinhole).map(|entry| entry.fast_path = None).is_some()
        };
        let due: Vec<_> = refused.filter(|opening| move_to_rules(opening)).collect();
        drop(state);
        reopen(&due)
    }

    /// The pinhole between `initiator` and `target` whose data connection was refused, to be opened again for the rest
    /// of its time.
    pub(super) fn take_refused(
        &self,
        initiator: IpAddr,
        target: SocketAddr,
        now: Instant,
    ) -> Option<Opening> {
        let mut state = self.lock();
        let arrival = state.by_target.get(&(initiator, target))?.arrival?;
        let entry = state.entries.get_mut(&(initiator, arrival))?;
        let Reopening { control, from_client, deadline, left } = entry.reopening.as_mut()?;
        let lifetime = deadline.saturating_duration_since(now);
        if entry.is_released || lifetime.is_zero() {
            return None;
        }
        *left = left.checked_sub(1)?;
        let (pinhole, control, from_client) = (entry.pinhole, *control, *from_client);
        Some(Opening { pinhole, control, from_client, lifetime })
    }

    /// Whether a session holds a pinhole between `initiator` and `target`.
    pub(super) fn has_target(&self, initiator: IpAddr, target: SocketAddr) -> bool {
        self.lock().by_target.contains_key(&(initiator, target))
    }

    /// Shares the registry of `others`.
    pub(super) fn share_with(&mut self, others: &Self) {
        if !Arc::ptr_eq(&self.0, &others.0) {
            self.clone_from(others);
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, RegistryState> {
        lock(&self.0.state)
    }
}

impl fmt::Debug for PinholeRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PinholeRegistry")
    }
}

/// Limit of unused pinholes of a client with this `limit`, if there may be `capacity` in all.
pub(super) fn max_unused(limit: usize, capacity: usize) -> usize {
    limit.min((capacity / UNUSED_FRACTION).max(1))
}

impl RegistryState {
    /// Whether `client` may hold another pinhole, if there may be `capacity` in all and `limit` unused ones of the
    /// client.
    pub(super) fn check(
        &self,
        client: IpAddr,
        limit: usize,
        capacity: usize,
    ) -> Result<(), OpenError> {
        if self.entries.len() - self.released >= capacity {
            return Err(OpenError::Full("all are in use"));
        }
        let Some(ClientShare { unused, held }) = self.per_client.get(&client) else {
            return Ok(());
        };
        let limit = max_unused(limit, capacity);
        if *unused >= limit {
            return Err(OpenError::Limit(limit));
        }
        if *held >= (capacity / HELD_FRACTION).max(limit) {
            return Err(OpenError::Full("the client has its share"));
        }
        Ok(())
    }

    /// Target of the pinhole with these endpoints, released or not.
    pub(super) fn target_of(&self, initiator: IpAddr, arrival: SocketAddr) -> Option<SocketAddr> {
        self.entries.get(&(initiator, arrival)).map(|entry| entry.pinhole.target)
    }

    /// The entry of this pinhole, if a session holds it.
    fn held_entry(&mut self, pinhole: &Pinhole) -> Option<&mut RegistryEntry> {
        let entry = self.entries.get_mut(&(pinhole.initiator, pinhole.arrival))?;
        (!entry.is_released && entry.pinhole == *pinhole).then_some(entry)
    }

    /// Whether the last pinhole of this initiator and target could not have the target's port as its external port.
    pub(super) fn is_displaced(&self, pinhole: &Pinhole) -> bool {
        self.displaced.contains(&(pinhole.initiator, pinhole.target))
    }

    /// Records whether it could not.
    pub(super) fn set_displaced(&mut self, pinhole: &Pinhole, is_displaced: bool) {
        let ends = (pinhole.initiator, pinhole.target);
        if !is_displaced {
            if !self.displaced.is_empty() {
                self.displaced.remove(&ends);
            }
            return;
        }
        if self.displaced.len() >= MAX_DISPLACED {
            self.displaced.clear();
        }
        self.displaced.insert(ends);
    }

    /// Whether a session holds a pinhole of the rules with these endpoints.
    pub(super) fn is_held(&self, initiator: IpAddr, arrival: SocketAddr) -> bool {
        let entry = self.entries.get(&(initiator, arrival));
        entry.is_some_and(|entry| !entry.is_released && entry.fast_path.is_none())
    }

    /// Inserts a client's pinhole, in use or not. Returns its serial number and the entry that it replaced.
    pub(super) fn insert(
        &mut self,
        pinhole: Pinhole,
        (client, in_use): (IpAddr, bool),
        reopening: Option<Reopening>,
    ) -> (u64, Option<RegistryEntry>) {
        self.serial += 1;
        let serial = self.serial;
        self.count(client, in_use);
        let before = self.insert_entry(RegistryEntry {
            pinhole,
            serial,
            is_released: false,
            fast_path: None,
            reopening,
        });
        (serial, before)
    }

    /// Inserts a client's pinhole that the BPF program opened earlier. A present entry stays, unless it is of the BPF
    /// program as well, because it may be newer. Returns the serial number.
    pub(super) fn insert_from_fast_path(
        &mut self,
        (pinhole, fast_path): (Pinhole, FastPathPinhole),
        (client, in_use): (IpAddr, bool),
        reopening: Option<Reopening>,
    ) -> u64 {
        self.serial += 1;
        let serial = self.serial;
        self.count(client, in_use);
        let present = self.entries.get(&(pinhole.initiator, pinhole.arrival));
        if present.is_none_or(|present| present.fast_path.is_some()) {
            self.insert_entry(RegistryEntry {
                pinhole,
                serial,
                is_released: false,
                fast_path: Some(fast_path),
                reopening,
            });
        }
        serial
    }

    /// Whether the rules have the pinhole with `serial`, not the BPF program.
    pub(super) fn is_in_rules(&self, pinhole: &Pinhole, serial: u64) -> bool {
        let entry = self.entries.get(&(pinhole.initiator, pinhole.arrival));
        entry.is_some_and(|entry| entry.serial == serial && entry.fast_path.is_none())
    }

    /// Moves the pinhole with `serial` from the BPF program to the rules, unless another entry has replaced it. Returns
    /// whether none has.
    pub(super) fn move_to_rules(&mut self, pinhole: Pinhole, serial: u64) -> bool {
        let entry = self.entries.get_mut(&(pinhole.initiator, pinhole.arrival));
        let own = entry.filter(|entry| entry.serial == serial);
        own.map(|entry| entry.fast_path = None).is_some()
    }

    /// Counts a pinhole of `client`.
    pub(super) fn count(&mut self, client: IpAddr, in_use: bool) {
        let share = self.per_client.entry(client).or_default();
        share.held += 1;
        share.unused += usize::from(!in_use);
    }

    fn insert_entry(&mut self, entry: RegistryEntry) -> Option<RegistryEntry> {
        let Pinhole { initiator, arrival, target, .. } = entry.pinhole;
        let before = self.entries.insert((initiator, arrival), entry);
        if let Some(before) = before {
            self.uncount_entry(&before);
        }
        let same = self.by_target.entry((initiator, target)).or_default();
        (same.count, same.arrival) = (same.count + 1, Some(arrival));
        self.released += usize::from(entry.is_released);
        before
    }

    /// Removes the pinhole with `serial`, if it is the present entry.
    fn remove(&mut self, pinhole: Pinhole, serial: u64) -> bool {
        let Entry::Occupied(present) = self.entries.entry((pinhole.initiator, pinhole.arrival))
        else {
            return false;
        };
        let is_its_own = present.get().serial == serial;
        if is_its_own {
            let entry = present.remove();
            self.uncount_entry(&entry);
        }
        is_its_own
    }

    /// Updates the counts for a removed entry.
    fn uncount_entry(&mut self, entry: &RegistryEntry) {
        self.released -= usize::from(entry.is_released);
        let Pinhole { initiator, target, .. } = entry.pinhole;
        if let Entry::Occupied(mut same) = self.by_target.entry((initiator, target)) {
            same.get_mut().count -= 1;
            if same.get().count == 0 {
                same.remove();
            }
        }
    }

    /// Withdraws the pinhole with `serial`, which was not opened: the `replaced` entry returns. It must be closed if it
    /// was released, because its owner may have left that to this pinhole.
    pub(super) fn withdraw(
        &mut self,
        pinhole: Pinhole,
        serial: u64,
        client: IpAddr,
        replaced: Option<RegistryEntry>,
    ) -> Option<PinholeClosing> {
        self.uncount_held(client, false);
        let was_there = self.remove(pinhole, serial);
        let entry = replaced.filter(|_| was_there)?;
        self.insert_entry(entry);
        entry.is_released.then(|| PinholeClosing::new(entry.pinhole, entry.serial))
    }

    /// Releases the pinhole with `serial`. Returns its closing, unless another entry has replaced it.
    pub(super) fn release(
        &mut self,
        pinhole: Pinhole,
        serial: u64,
        (client, in_use): (IpAddr, bool),
    ) -> Option<PinholeClosing> {
        self.uncount_held(client, in_use);
        let entry = self.entries.get_mut(&(pinhole.initiator, pinhole.arrival))?;
        if entry.fast_path.is_some() {
            self.remove(pinhole, serial);
            return None;
        }
        let is_new = entry.serial == serial && !std::mem::replace(&mut entry.is_released, true);
        self.released += usize::from(is_new);
        is_new.then(|| PinholeClosing::new(pinhole, serial))
    }

    /// The pinhole that the kernel is to close now for `closing`. Its source translation is omitted if another open
    /// pinhole has the same. A released entry is free from now on.
    fn take_due(&mut self, closing: PinholeClosing) -> Option<Pinhole> {
        let PinholeClosing { pinhole, serial, .. } = closing;
        let Pinhole { initiator, arrival, target, .. } = pinhole;
        let present =
            self.entries.get(&(initiator, arrival)).filter(|entry| entry.serial == serial)?;
        let is_released = present.is_released;
        let same = self.by_target.get(&(initiator, target));
        let is_shared = same.is_some_and(|same| same.count > 1);
        if is_released {
            self.remove(pinhole, serial);
        }
        Some(if is_shared { Pinhole { source: initiator, ..pinhole } } else { pinhole })
    }

    /// Has a closing that failed tried again, unless another pinhole has its entry: that one then fails to open, or is
    /// closed itself.
    fn retry(&mut self, closing: PinholeClosing) {
        let PinholeClosing { pinhole, serial, failures } = closing;
        let is_free = !self.entries.contains_key(&(pinhole.initiator, pinhole.arrival));
        if is_free && failures < CLOSING_RETRIES {
            self.insert_entry(RegistryEntry {
                pinhole,
                serial,
                is_released: true,
                fast_path: None,
                reopening: None,
            });
            self.failed_closings.push(PinholeClosing { failures: failures + 1, ..closing });
        }
    }

    /// Takes the closings that failed.
    pub(super) fn take_failed_closings(&mut self) -> Vec<PinholeClosing> {
        std::mem::take(&mut self.failed_closings)
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
            && self.failed_closings.is_empty()
            && self.by_target.is_empty()
            && self.per_client.is_empty()
            && self.released == 0
    }

    pub(super) fn count_unused(&mut self, client: IpAddr) {
        self.per_client.entry(client).or_default().unused += 1;
    }

    pub(super) fn uncount_unused(&mut self, client: IpAddr) {
        if let Some(share) = self.per_client.get_mut(&client) {
            share.unused = share.unused.saturating_sub(1);
        }
    }

    /// Counts one pinhole of `client` less.
    pub(super) fn uncount_held(&mut self, client: IpAddr, in_use: bool) {
        if !in_use {
            self.uncount_unused(client);
        }
        if let Entry::Occupied(mut share) = self.per_client.entry(client) {
            share.get_mut().held = share.get().held.saturating_sub(1);
            if share.get().held == 0 {
                share.remove();
            }
        }
    }
}

/// A poisoned lock is still consistent, because an entry is written in one step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
