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
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use ahash::{AHashMap, AHashSet};

use crate::engine::{
    ClientKey, KernelError, Opening, Pinhole, Renewal,
    offload::handover::FastPathPinhole,
    pinholes::{
        client_counts::{ClientCounts, OpenError},
        registry_entry::{EndpointUse, RegistryEntry, ReplacedEntry},
    },
};

/// How many targets with another external port are remembered.
const MAX_DISPLACED: usize = 4096;

/// Time between two looks for consumed pinholes, for each pinhole that there is. So they take a small part of the time.
const LOOK_INTERVAL: Duration = Duration::from_micros(1);

/// Number of closings for which an update of the kernel keeps room for the next one.
const RETAINED_CLOSINGS: usize = 1024;

/// How often a closing that failed is tried again, once a second. Then the pinhole stays until it expires.
const CLOSING_RETRIES: u32 = 10;

/// The registry that all shards share.
#[derive(Clone, Default)]
pub struct PinholeRegistry(Arc<RegistryLocks>);

#[derive(Default)]
struct RegistryLocks {
    state: Mutex<RegistryState>,
    /// Held while the kernel is updated. Locked before any other lock.
    updating: Mutex<DueClosings>,
}

/// The closings of the last update of the kernel. The next one reuses the allocations.
#[derive(Default)]
struct DueClosings {
    closings: Vec<PinholeClosing>,
    /// The pinhole of each.
    pinholes: Vec<Pinhole>,
}

impl DueClosings {
    fn clear(&mut self) {
        self.closings.clear();
        self.closings.shrink_to(RETAINED_CLOSINGS);
        self.pinholes.clear();
        self.pinholes.shrink_to(RETAINED_CLOSINGS);
    }
}

/// A pinhole to close, unless its entry was taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinholeClosing {
    /// The pinhole.
    pub(crate) pinhole: Pinhole,
    /// The serial number that the entry must have; `None` if the rules must have no entry with its endpoints.
    pub(crate) serial: Option<u64>,
    /// How often the kernel failed to close it.
    failures: u32,
}

impl PinholeClosing {
    pub(crate) fn new(pinhole: Pinhole, serial: u64) -> Self {
        Self { pinhole, serial: Some(serial), failures: 0 }
    }

    /// Of a pinhole of the rules that one of the BPF program has replaced.
    fn replaced_by_fast_path(pinhole: Pinhole) -> Self {
        Self { pinhole, serial: None, failures: 0 }
    }
}

/// The state that all shards share.
#[derive(Default)]
pub(crate) struct RegistryState {
    /// By initiator and arrival.
    entries: AHashMap<(IpAddr, SocketAddr), RegistryEntry>,
    /// Number of released entries.
    released: usize,
    /// Closings that failed. Their entries are released.
    failed_closings: Vec<PinholeClosing>,
    /// Number of pinholes by initiator and target, which select the source translation.
    by_target: AHashMap<(IpAddr, SocketAddr), u32>,
    pub(crate) clients: ClientCounts,
    /// When the kernel was last asked which pinholes are consumed.
    last_look: Option<Instant>,
    /// Initiators and targets whose last pinhole could not have the target's port as its external port.
    displaced: AHashSet<(IpAddr, SocketAddr)>,
    /// Serial number of the last inserted pinhole.
    pub(crate) serial: u64,
}

impl PinholeRegistry {
    /// Calls `update` with the pinholes of `closings` that are due; it updates the kernel. No other thread updates
    /// pinholes meanwhile. If it fails, the closings are tried again later.
    pub fn update_kernel<T, E>(
        &self,
        closings: impl Iterator<Item = PinholeClosing>,
        update: impl FnOnce(&[Pinhole]) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut updating = lock(&self.0.updating);
        let due = &mut *updating;
        due.clear();
        let mut state = self.lock();
        for closing in closings {
            if let Some(pinhole) = state.take_due(closing) {
                due.closings.push(closing);
                due.pinholes.push(pinhole);
            }
        }
        drop(state);
        let updated = update(&due.pinholes);
        if updated.is_err() {
            let mut state = self.lock();
            due.closings.iter().for_each(|closing| state.retry(*closing));
        }
        updated
    }

    /// Calls `renew` with those of `renewals` that are still held. No other thread updates pinholes meanwhile, so none
    /// is closed, and its endpoints used by another one.
    pub fn renew_in_kernel(
        &self,
        renewals: &mut Vec<Renewal>,
        renew: impl FnOnce(&[Renewal]) -> Vec<Result<bool, KernelError>>,
    ) -> Vec<KernelError> {
        let _updating = lock(&self.0.updating);
        let state = self.lock();
        renewals.retain_mut(|Renewal { opening: Opening { pinhole, .. }, fast_path }| {
            let entry = state.entries.get(&pinhole.ends());
            let open = entry.filter(|entry| entry.is_held(pinhole) && entry.is_open);
            let Some(entry) = open else { return false };
            *fast_path = entry.fast_path;
            true
        });
        drop(state);
        let renewed = renew(renewals);
        let mut state = self.lock();
        for (Renewal { opening, .. }, renewed) in renewals.iter().zip(&renewed) {
            if let Ok(false) = renewed {
                state.record_gone(&opening.pinhole);
            }
        }
        renewed.into_iter().filter_map(Result::err).collect()
    }

    /// Calls `find_consumed` with the pinholes whose transfer has started; those that it returns count as open no more.
    /// No other thread updates pinholes meanwhile.
    pub fn look_for_consumed<E>(
        &self,
        now: Instant,
        find_consumed: impl FnOnce(&[Pinhole]) -> Result<Vec<Pinhole>, E>,
    ) -> Result<(), E> {
        let _updating = lock(&self.0.updating);
        let mut state = self.lock();
        state.last_look = state.last_look.max(Some(now));
        let started = state.entries.values().filter(|entry| entry.has_started && entry.counts());
        let started: Vec<_> = started.map(|entry| entry.pinhole).collect();
        drop(state);
        if started.is_empty() {
            return Ok(());
        }
        let consumed = find_consumed(&started)?;
        let mut state = self.lock();
        consumed.iter().for_each(|pinhole| state.record_gone(pinhole));
        Ok(())
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, RegistryState> {
        lock(&self.0.state)
    }
}

impl fmt::Debug for PinholeRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PinholeRegistry")
    }
}

impl RegistryState {
    /// Whether `client` may hold another pinhole, if there may be `capacity` in all and `limit` open ones of the
    /// client.
    pub(crate) fn check(
        &self,
        client: ClientKey,
        limit: usize,
        capacity: usize,
    ) -> Result<(), OpenError> {
        if self.entries.len() - self.released >= capacity {
            return Err(OpenError::Full("all are in use"));
        }
        self.clients.check(client, limit, capacity)
    }

    /// Who uses the endpoints of `pinhole`.
    pub(crate) fn use_of(&self, pinhole: &Pinhole) -> EndpointUse {
        match self.entries.get(&pinhole.ends()) {
            Some(entry) if entry.pinhole.target != pinhole.target => EndpointUse::OtherTarget,
            Some(entry) if entry.is_waited_for() => EndpointUse::WaitedFor(entry.serial),
            _ => EndpointUse::None,
        }
    }

    /// Whether the last pinhole of this initiator and target could not have the target's port as its external port.
    pub(crate) fn is_displaced(&self, pinhole: &Pinhole) -> bool {
        self.displaced.contains(&(pinhole.initiator, pinhole.target))
    }

    /// Records whether it could not.
    pub(crate) fn set_displaced(&mut self, pinhole: &Pinhole, is_displaced: bool) {
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
    pub(crate) fn is_held(&self, initiator: IpAddr, arrival: SocketAddr) -> bool {
        let entry = self.entries.get(&(initiator, arrival));
        entry.is_some_and(|entry| !entry.is_released && entry.fast_path.is_none())
    }

    /// Inserts a client's pinhole. Returns its serial number and the entry that it replaced.
    pub(crate) fn insert(
        &mut self,
        pinhole: Pinhole,
        client: ClientKey,
    ) -> (u64, Option<RegistryEntry>) {
        self.serial += 1;
        let serial = self.serial;
        let entry = || RegistryEntry::new(pinhole, serial, client);
        let before = match self.entries.entry(pinhole.ends()) {
            Entry::Vacant(vacant) => {
                vacant.insert(entry());
                self.clients.add(client);
                *self.by_target.entry((pinhole.initiator, pinhole.target)).or_default() += 1;
                None
            }
            Entry::Occupied(_) => {
                self.clients.add_held(client);
                self.insert_entry(entry())
            }
        };
        (serial, before)
    }

    /// Inserts a pinhole of the rules that an earlier daemon gave this serial number. A later one with its endpoints
    /// stays.
    pub(crate) fn restore(&mut self, pinhole: Pinhole, serial: u64, client: ClientKey) {
        self.serial = self.serial.max(serial);
        self.clients.add_held(client);
        if self.entries.get(&pinhole.ends()).is_none_or(|present| present.serial < serial) {
            self.insert_entry(RegistryEntry::new(pinhole, serial, client));
        }
    }

    /// Inserts a client's pinhole that the BPF program opened earlier. An entry of the rules that may be open stays,
    /// because it may be newer. Returns the serial number, and the closing of an entry of the rules that it replaced.
    pub(crate) fn insert_from_fast_path(
        &mut self,
        (pinhole, fast_path): (Pinhole, FastPathPinhole),
        (client, is_granted): (ClientKey, bool),
    ) -> (u64, Option<PinholeClosing>) {
        self.serial += 1;
        let serial = self.serial;
        self.clients.add_held(client);
        let is_newer = |present: &RegistryEntry| {
            present.fast_path.is_none() && present.is_open && !present.is_released
        };
        if self.entries.get(&pinhole.ends()).is_some_and(is_newer) {
            return (serial, None);
        }
        let (entry, fast_path) = (RegistryEntry::new(pinhole, serial, client), Some(fast_path));
        let before = self.insert_entry(RegistryEntry { is_granted, fast_path, ..entry });
        let of_rules = before.filter(|before| before.fast_path.is_none());
        (serial, of_rules.map(|of_rules| PinholeClosing::replaced_by_fast_path(of_rules.pinhole)))
    }

    /// Whether the rules have the pinhole with `serial`, not the BPF program.
    pub(crate) fn is_in_rules(&self, pinhole: &Pinhole, serial: u64) -> bool {
        self.own_entry(pinhole, serial).is_some_and(|entry| entry.fast_path.is_none())
    }

    /// Moves the pinhole with `serial` from the BPF program to the rules, unless another entry has replaced it. Returns
    /// whether none has.
    pub(crate) fn move_to_rules(&mut self, pinhole: Pinhole, serial: u64) -> bool {
        self.change_entry(&pinhole, |entry| entry.serial == serial, RegistryEntry::move_to_rules)
    }

    /// The connection of the pinhole with `serial` is no longer on the fast path, so the pinhole counts itself.
    pub(crate) fn end_grant(&mut self, pinhole: &Pinhole, serial: u64) {
        let is_meant = |entry: &RegistryEntry| entry.serial == serial;
        self.change_entry(pinhole, is_meant, |entry| entry.is_granted = false);
    }

    /// Changes the entry with the endpoints of `pinhole` if `is_meant` holds for it, and with it what counts for its
    /// client. Returns whether it held.
    fn change_entry(
        &mut self,
        pinhole: &Pinhole,
        is_meant: impl FnOnce(&RegistryEntry) -> bool,
        change: impl FnOnce(&mut RegistryEntry),
    ) -> bool {
        let entry = self.entries.get_mut(&pinhole.ends());
        let Some(entry) = entry.filter(|entry| is_meant(entry)) else { return false };
        let counted = entry.counts();
        change(entry);
        match (counted, entry.counts()) {
            (true, false) => self.clients.remove_open(entry.client),
            (false, true) => self.clients.add_open(entry.client),
            _ => {}
        }
        true
    }

    /// The pinhole with `serial`, if it is the present entry.
    fn own_entry(&self, pinhole: &Pinhole, serial: u64) -> Option<&RegistryEntry> {
        self.entries.get(&pinhole.ends()).filter(|entry| entry.serial == serial)
    }

    /// Whether no other pinhole has replaced the one with `serial`.
    pub(crate) fn has(&self, pinhole: &Pinhole, serial: u64) -> bool {
        self.own_entry(pinhole, serial).is_some()
    }

    /// Whether the kernel may have the pinhole with `serial` open, as far as is known.
    pub(crate) fn is_open(&self, pinhole: &Pinhole, serial: u64) -> bool {
        let entry = self.entries.get(&pinhole.ends());
        // A later one with its endpoints replaces it. An earlier one stays next to one of the BPF program.
        entry.is_none_or(|entry| entry.serial < serial || entry.serial == serial && entry.is_open)
    }

    /// Records that the transfer of the pinhole with `serial` has started.
    pub(crate) fn record_start(&mut self, pinhole: &Pinhole, serial: u64) {
        let is_meant = |entry: &RegistryEntry| entry.serial == serial;
        self.change_entry(pinhole, is_meant, |entry| entry.has_started = true);
    }

    /// Records that the pinhole with `serial` is consumed or expired.
    pub(crate) fn record_closed(&mut self, pinhole: &Pinhole, serial: u64) {
        let is_meant = |entry: &RegistryEntry| entry.serial == serial && entry.is_held(pinhole);
        self.change_entry(pinhole, is_meant, |entry| entry.is_open = false);
    }

    /// Records that the kernel no longer has this pinhole, which a session holds.
    fn record_gone(&mut self, pinhole: &Pinhole) {
        self.change_entry(pinhole, |entry| entry.is_held(pinhole), |entry| entry.is_open = false);
    }

    /// Whether the kernel was not asked which pinholes are consumed for a while, so that it may be asked `now`.
    pub(crate) fn may_look(&self, now: Instant) -> bool {
        let interval = LOOK_INTERVAL.saturating_mul(self.entries.len() as u32 + 1); // at most one a port
        self.last_look.is_none_or(|last| now >= last + interval)
    }

    fn insert_entry(&mut self, entry: RegistryEntry) -> Option<RegistryEntry> {
        let before = self.entries.insert(entry.pinhole.ends(), entry);
        self.recount(before.as_ref(), Some(&entry));
        before
    }

    /// Removes the pinhole with `serial`, if it is the present entry.
    fn remove(&mut self, pinhole: Pinhole, serial: u64) -> bool {
        let Entry::Occupied(present) = self.entries.entry(pinhole.ends()) else {
            return false;
        };
        let is_its_own = present.get().serial == serial;
        if is_its_own {
            let entry = present.remove();
            self.recount(Some(&entry), None);
        }
        is_its_own
    }

    /// Updates the counts after the entry `before` was replaced by `after`. What both count for stays as it is.
    fn recount(&mut self, before: Option<&RegistryEntry>, after: Option<&RegistryEntry>) {
        let released = |entry: Option<&RegistryEntry>| {
            usize::from(entry.is_some_and(|entry| entry.is_released))
        };
        self.released = self.released - released(before) + released(after);
        let client = |entry: Option<&RegistryEntry>| {
            entry.filter(|entry| entry.counts()).map(|entry| entry.client)
        };
        let (was, is) = (client(before), client(after));
        if was != is {
            was.into_iter().for_each(|client| self.clients.remove_open(client));
            is.into_iter().for_each(|client| self.clients.add_open(client));
        }
        let by_target = |entry: &RegistryEntry| (entry.pinhole.initiator, entry.pinhole.target);
        let (was, is) = (before.map(by_target), after.map(by_target));
        if was != is
            && let Some(was) = was
            && let Entry::Occupied(mut same) = self.by_target.entry(was)
        {
            *same.get_mut() -= 1;
            if *same.get() == 0 {
                same.remove();
            }
        }
        if let Some(is) = is.filter(|is| was != Some(*is)) {
            *self.by_target.entry(is).or_default() += 1;
        }
    }

    /// Withdraws the pinhole with `serial`, which was not opened: the `replaced` entry returns. It must be closed if it
    /// was released, because its owner may have left that to this pinhole.
    pub(crate) fn withdraw(
        &mut self,
        pinhole: Pinhole,
        serial: u64,
        client: ClientKey,
        replaced: Option<&ReplacedEntry>,
    ) -> Option<PinholeClosing> {
        self.clients.remove_held(client);
        let was_there = self.remove(pinhole, serial);
        let entry = replaced.filter(|_| was_there)?.entry(&pinhole);
        self.insert_entry(entry);
        entry.is_released.then(|| PinholeClosing::new(entry.pinhole, entry.serial))
    }

    /// Releases the pinhole with `serial`. Returns its closing, unless another entry has replaced it.
    pub(crate) fn release(
        &mut self,
        pinhole: Pinhole,
        serial: u64,
        client: ClientKey,
    ) -> Option<PinholeClosing> {
        self.clients.remove_held(client);
        let entry = self.own_entry(&pinhole, serial)?;
        if entry.fast_path.is_some() {
            self.remove(pinhole, serial);
            return None;
        }
        let is_new = |entry: &RegistryEntry| entry.serial == serial && !entry.is_released;
        let is_released = self.change_entry(&pinhole, is_new, |entry| entry.is_released = true);
        self.released += usize::from(is_released);
        is_released.then(|| PinholeClosing::new(pinhole, serial))
    }

    /// The pinhole that the kernel is to close now for `closing`. Its source translation is omitted if another open
    /// pinhole has the same. A released entry is free from now on.
    fn take_due(&mut self, closing: PinholeClosing) -> Option<Pinhole> {
        let PinholeClosing { pinhole, serial, .. } = closing;
        let Pinhole { initiator, target, .. } = pinhole;
        let entry = self.entries.get(&pinhole.ends());
        let is_due = match serial {
            Some(serial) => entry.is_some_and(|entry| entry.serial == serial),
            None => entry.is_none_or(|entry| entry.fast_path.is_some()),
        };
        if !is_due {
            return None;
        }
        let same = self.by_target.get(&(initiator, target));
        let own = entry.filter(|entry| entry.pinhole.target == target);
        let is_shared = same.is_some_and(|same| *same > u32::from(own.is_some()));
        if let Some(serial) = entry.filter(|entry| entry.is_released).map(|entry| entry.serial) {
            self.remove(pinhole, serial);
        }
        Some(if is_shared { Pinhole { source: initiator, ..pinhole } } else { pinhole })
    }

    /// Has a closing that failed tried again, unless another pinhole has its entry: that one then fails to open, or is
    /// closed itself.
    fn retry(&mut self, closing: PinholeClosing) {
        let PinholeClosing { pinhole, serial, failures } = closing;
        let is_free = !self.entries.contains_key(&pinhole.ends());
        if failures >= CLOSING_RETRIES || serial.is_some() && !is_free {
            return;
        }
        if let Some(serial) = serial {
            self.insert_entry(RegistryEntry::released(pinhole, serial));
        }
        self.failed_closings.push(PinholeClosing { failures: failures + 1, ..closing });
    }

    /// Takes the closings that failed.
    pub(crate) fn take_failed_closings(&mut self) -> Vec<PinholeClosing> {
        std::mem::take(&mut self.failed_closings)
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
            && self.failed_closings.is_empty()
            && self.by_target.is_empty()
            && self.clients.is_empty()
            && self.released == 0
    }
}

/// A poisoned lock is still consistent, because an entry is written in one step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
