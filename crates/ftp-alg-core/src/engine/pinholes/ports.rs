//! The external ports of all shards, how many pinholes each client has, and how a port is chosen. The first two are what
//! shards share, in one small locked table.
//!
//! The kernel identifies a pinhole of the rules by initiator and arrival. A port stays reserved while a transfer uses it:
//! otherwise a server that connects from port 20 would reuse the tuple of its earlier connection. And it stays reserved
//! until the kernel has closed the pinhole. Until then only the shard that has it may use it again, and closes the old
//! pinhole with the new opening. So a closing meets no pinhole of another shard, and the lock is held for one look,
//! never over a call of the kernel. One exception: each shard may use the port of a restored session whose transfer has
//! started. Which one adopts that session is unknown, and it may be silent for hours.

use std::{
    collections::hash_map::Entry,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ahash::{AHashMap, AHashSet, RandomState};

use crate::{
    engine::{ClientKey, InstalledIn, KernelError, Opening, PinholeEnds, Translation},
    policy::Policy,
};

/// How many targets with another external port are remembered.
const MAX_DISPLACED: usize = 4096;
/// Fraction of all pinholes that one client may have open, and fraction of the ports that it may hold.
const OPEN_FRACTION: usize = 4;
const HELD_FRACTION: usize = 8;
/// Number of random ports to try if the announced one is taken.
const PORT_TRIES: usize = 32;
/// Number of ports of the right length to try before those.
const FITTING_TRIES: usize = 4;
/// Number of random draws to find ports of the right length. Of the ports below 10000, which have one digit less, one
/// in fifty takes four characters in a `PORT`.
const FITTING_DRAWS: usize = 256;

/// The ports of all shards.
#[derive(Clone, Default)]
pub struct Ports(Arc<Mutex<PortTable>>);

impl Ports {
    /// A poisoned lock is used on: a panic between taking an entry out and putting one in, which only an allocation could
    /// cause, leaves one port unreserved.
    pub(super) fn lock(&self) -> MutexGuard<'_, PortTable> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The shard number of a port that each shard may use.
pub(super) const ANY_SHARD: u16 = u16::MAX;

/// A reserved port.
#[derive(Clone, Copy, Debug)]
pub(super) struct Port {
    pub(super) ends: PinholeEnds,
    /// The shard, the table slot of the session, and the serial number of its pinhole.
    shard: u16,
    pub(super) owner: u32,
    pub(super) serial: u64,
    pub(super) installed_in: InstalledIn,
    /// Whether a session holds it. Otherwise it is being closed.
    pub(super) is_held: bool,
}

/// The shard cannot use the port.
pub(super) struct Taken;

/// See [`Ports`].
#[derive(Default)]
pub(super) struct PortTable {
    /// By initiator and arrival.
    ports: AHashMap<(IpAddr, SocketAddr), Port>,
    /// Number of those that sessions hold.
    held: usize,
    /// Number of pinholes by initiator and target, which select the source translation.
    by_target: AHashMap<(IpAddr, SocketAddr), u32>,
    pub(super) clients: ClientCounts,
    /// Initiators and targets whose last pinhole could not have the target's port as its external port.
    displaced: AHashSet<(IpAddr, SocketAddr)>,
    /// Serial number of the last pinhole.
    pub(super) serial: u64,
    shards: u16,
}

impl PortTable {
    /// The number of another shard.
    pub(super) fn add_shard(&mut self) -> u16 {
        self.shards += 1;
        self.shards
    }

    pub(super) fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    /// Number of reserved ports.
    pub(super) fn len(&self) -> usize {
        self.ports.len()
    }

    /// Whether `client` may hold another pinhole, if there may be `capacity` in all and `limit` open ones of the
    /// client.
    pub(super) fn check(
        &self,
        client: ClientKey,
        limit: usize,
        capacity: usize,
    ) -> Result<(), NotOpened> {
        if self.held >= capacity {
            return Err(NotOpened::Full("all are in use"));
        }
        let Some(ClientCount { open, held }) = self.clients.0.get(&client) else {
            return Ok(());
        };
        let limit = max_open(limit, capacity);
        if *open >= limit {
            return Err(NotOpened::Limit(limit));
        }
        if *held >= (capacity / HELD_FRACTION).max(limit) {
            return Err(NotOpened::Full("the client has its share"));
        }
        Ok(())
    }

    /// The port with these ends, if there is one. An error if this shard may not use it: it is another one's, or for another
    /// target.
    pub(super) fn usable(&self, ends: &PinholeEnds, shard: u16) -> Result<Option<&Port>, Taken> {
        let Some(port) = self.get(ends) else { return Ok(None) };
        let is_own = port.shard == shard || port.shard == ANY_SHARD && port.is_held;
        if is_own && port.ends.target == ends.target { Ok(Some(port)) } else { Err(Taken) }
    }

    /// The port with these ends.
    pub(super) fn get(&self, ends: &PinholeEnds) -> Option<&Port> {
        self.ports.get(&ends.key())
    }

    /// The port of the pinhole with this serial number, unless another pinhole has it.
    fn own(&mut self, ends: &PinholeEnds, serial: u64) -> Option<&mut Port> {
        self.ports.get_mut(&ends.key()).filter(|port| port.serial == serial)
    }

    /// Whether the pinhole with this serial number, and no other, has the port.
    pub(super) fn is_own(&self, ends: &PinholeEnds, serial: u64) -> bool {
        self.get(ends).is_some_and(|port| port.serial == serial)
    }

    /// Whether a session holds a pinhole of the rules with these ends.
    pub(super) fn is_held(&self, initiator: IpAddr, arrival: SocketAddr) -> bool {
        let port = self.ports.get(&(initiator, arrival));
        port.is_some_and(|port| port.is_held && port.installed_in == InstalledIn::Rules)
    }

    /// Reserves a port for a pinhole of this shard and session. Returns who had it.
    pub(super) fn reserve(
        &mut self,
        ends: PinholeEnds,
        shard: u16,
        owner: u32,
        serial: u64,
        installed_in: InstalledIn,
    ) -> Option<Port> {
        let before = self.take(&ends);
        self.insert(Port { ends, shard, owner, serial, installed_in, is_held: true });
        before
    }

    /// Takes a reservation back, because the pinhole was not opened: the port is `before` again.
    pub(super) fn cancel(&mut self, ends: &PinholeEnds, serial: u64, before: Option<Port>) {
        if self.is_own(ends, serial) {
            self.take(ends);
            before.into_iter().for_each(|before| self.insert(before));
        }
    }

    /// Notes that no session holds the pinhole with this serial number any more. Returns whether the pinhole still
    /// has the port. The port is free when the kernel has closed the pinhole.
    pub(super) fn release(&mut self, ends: &PinholeEnds, serial: u64) -> bool {
        let Some(port) = self.own(ends, serial) else { return false };
        let was_held = std::mem::take(&mut port.is_held);
        self.held -= usize::from(was_held);
        true
    }

    /// Frees a port.
    pub(super) fn remove(&mut self, ends: &PinholeEnds, serial: u64) {
        if self.is_own(ends, serial) {
            self.take(ends);
        }
    }

    /// Notes that the rules have the pinhole with this serial number. Returns whether the pinhole still has the port.
    pub(super) fn move_to_rules(&mut self, ends: &PinholeEnds, serial: u64) -> bool {
        self.own(ends, serial).map(|port| port.installed_in = InstalledIn::Rules).is_some()
    }

    /// Notes that another shard and session have the pinhole with this serial number.
    pub(super) fn set_owner(&mut self, ends: &PinholeEnds, serial: u64, shard: u16, owner: u32) {
        if let Some(port) = self.own(ends, serial) {
            (port.shard, port.owner) = (shard, owner);
        }
    }

    /// How many pinholes have the same source translation as one with these ends.
    pub(super) fn sharing_source(&self, ends: &PinholeEnds) -> u32 {
        self.by_target.get(&(ends.initiator, ends.target)).copied().unwrap_or_default()
    }

    fn insert(&mut self, port: Port) {
        self.held += usize::from(port.is_held);
        *self.by_target.entry((port.ends.initiator, port.ends.target)).or_default() += 1;
        self.ports.insert(port.ends.key(), port);
    }

    fn take(&mut self, ends: &PinholeEnds) -> Option<Port> {
        let port = self.ports.remove(&ends.key())?;
        self.held -= usize::from(port.is_held);
        let target = (port.ends.initiator, port.ends.target);
        if let Entry::Occupied(mut same) = self.by_target.entry(target) {
            *same.get_mut() -= 1;
            if *same.get() == 0 {
                same.remove();
            }
        }
        Some(port)
    }

    /// Whether the last pinhole of this initiator and target could not have the target's port as its external port.
    pub(super) fn is_displaced(&self, ends: &PinholeEnds) -> bool {
        self.displaced.contains(&(ends.initiator, ends.target))
    }

    /// Notes whether the last pinhole of this initiator and target could not have the target's port.
    pub(super) fn set_displaced(&mut self, ends: &PinholeEnds, is_displaced: bool) {
        let ends = (ends.initiator, ends.target);
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

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.ports.is_empty()
            && self.by_target.is_empty()
            && self.clients.0.is_empty()
            && self.held == 0
    }
}

/// Why no pinhole can be opened.
#[derive(Debug)]
pub enum NotOpened {
    /// The client's limit of open pinholes is reached.
    Limit(usize),
    /// The limit of all pinholes is reached, or the client's fraction of it.
    Full(&'static str),
    /// No external port is free.
    NoPort,
    /// The kernel refused.
    Kernel(KernelError),
}

/// The pinholes of all clients.
#[derive(Default)]
pub(super) struct ClientCounts(AHashMap<ClientKey, ClientCount>);

#[derive(Default)]
struct ClientCount {
    /// How many count for the client's limit: open ones, and one for each connection on the fast path.
    open: usize,
    /// All, including those whose port a transfer uses.
    held: usize,
}

/// Limit of open pinholes of a client with this `limit`, if there may be `capacity` in all.
pub(super) fn max_open(limit: usize, capacity: usize) -> usize {
    limit.min((capacity / OPEN_FRACTION).max(1))
}

impl ClientCounts {
    /// Counts a pinhole that `client` holds, or a grant for one that the BPF program may open for it.
    pub(super) fn add(&mut self, client: ClientKey, is_open: bool) {
        let count = self.0.entry(client).or_default();
        (count.open, count.held) = (count.open + usize::from(is_open), count.held + 1);
    }

    /// Counts a pinhole or a grant less.
    pub(super) fn remove(&mut self, client: ClientKey, is_open: bool) {
        self.change(client, |count| {
            count.open = count.open.saturating_sub(is_open.into());
            count.held = count.held.saturating_sub(1);
        });
    }

    /// Notes whether a pinhole that `client` holds counts for the client's limit.
    pub(super) fn set_open(&mut self, client: ClientKey, is_open: bool) {
        self.change(client, |count| {
            count.open = if is_open { count.open + 1 } else { count.open.saturating_sub(1) };
        });
    }

    fn change(&mut self, client: ClientKey, change: impl FnOnce(&mut ClientCount)) {
        if let Some(count) = self.0.get_mut(&client) {
            change(count);
            if (count.open, count.held) == (0, 0) {
                self.0.remove(&client);
            }
        }
    }
}

/// The first and the last port to choose from, if only some are allowed.
type PortSet = Option<(u16, u16)>;

/// The external ports for a pinhole. A port that fits fills the room, if the announcement is to keep its length.
pub(super) struct PortChoice<F> {
    /// The initiator and the target, which always get the same ports.
    ends: (IpAddr, SocketAddr),
    set: PortSet,
    /// The announced port, if it may be an external port.
    own: Option<u16>,
    fits: F,
}

impl<F: Fn(u16) -> bool> PortChoice<F> {
    pub(super) fn new(opening: &Opening, fits: F, policy: &Policy) -> Self {
        let Opening { ends, control: Translation { client, client_external, .. }, .. } = opening;
        let is_translated = !opening.is_from_client() && client != client_external;
        let set = if is_translated { policy.port_set(client_external.port()) } else { None };
        let announced = ends.arrival.port();
        let is_allowed =
            set.is_none_or(|(first, last): (u16, u16)| (first..=last).contains(&announced));
        let own = is_allowed.then_some(announced);
        Self { ends: (ends.initiator, ends.target), set, own, fits }
    }

    /// Whether only some ports are allowed.
    pub(super) fn is_limited(&self) -> bool {
        self.set.is_some()
    }

    /// Whether the announced port would be the best one if it were free.
    pub(super) fn prefers_own(&self) -> bool {
        self.own.is_some_and(&self.fits)
    }

    /// The ports, best first: the same for all announcements of a target to the same initiator. The announced port
    /// comes first, unless it does not fit, or the target `is_displaced`. An announcement with a port that fits keeps
    /// its length, and so changes no sequence numbers.
    pub(super) fn ports<'a>(
        &'a self,
        policy: &'a Policy,
        is_displaced: bool,
        random: &'a RandomState,
    ) -> impl Iterator<Item = u16> + 'a {
        let (own, is_first) = (self.own, self.prefers_own() && !is_displaced);
        let draw = move |number: usize| {
            policy.external_port(self.set, random.hash_one((&self.ends, number)))
        };
        let fitting = (0..FITTING_DRAWS).map_while(draw);
        let fitting = fitting.filter(|port| (self.fits)(*port)).take(FITTING_TRIES);
        let any = (FITTING_DRAWS..FITTING_DRAWS + PORT_TRIES).map_while(draw);
        let [first, then] = [is_first, !is_first].map(|is_here| own.filter(|_| is_here));
        first.into_iter().chain(fitting).chain(then).chain(any)
    }
}
