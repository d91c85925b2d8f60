//! Open ranges: an encrypted session announces nothing that can be read, so its client may connect to all passive ports of
//! its server while it lives.
//!
//! Two sessions of a client with a server share one, and it goes with the last. The kernel has it on behalf of the first,
//! whose translation counts. Two servers behind one address cannot be told apart by it, so the second gets none.
//!
//! Invariant: the kernel has a range only while a session holds it, or for [`LIFETIME`] behind the last renewal.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde::{Serialize, Serializer};

use crate::engine::{Kernel, KernelError, Translation};

/// How long the kernel has a range without a renewal: a daemon that is killed, and not started again, renews none.
pub const LIFETIME: Duration = Duration::from_secs(120);
/// How often each is renewed.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(30);
/// Limit of control connections that conntrack is asked for at a time.
const MAX_LOOKUPS: usize = 256;

/// Passive ports: ranges that ascend and do not touch.
pub type PassivePorts = Arc<[RangeInclusive<u16>]>;

/// The ports of a server to which a client may connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenRange {
    /// The translation of the control connection, which data connections have as well.
    pub control: Translation,
    /// The ports, with destination translation the same on both sides.
    pub ports: PassivePorts,
}

/// The client and the address that it dialled, by which the rules find a range.
type Key = (IpAddr, IpAddr);

/// A session that holds a range.
struct Holder {
    session: u64,
    range: OpenRange,
}

/// The ranges of all shards.
#[derive(Default)]
struct All(BTreeMap<Key, Vec<Holder>>);

/// The ranges of the sessions of one shard.
#[derive(Default)]
pub struct Ranges {
    all: Arc<Mutex<All>>,
    /// Those of the sessions in these table slots.
    of: BTreeMap<u32, Held>,
    /// What sessions that have ended held.
    left: Vec<Held>,
    /// The table slot behind the last one whose control connection was looked up.
    next: u32,
    renewed: Option<Instant>,
    errors: Vec<KernelError>,
}

fn lock(all: &Mutex<All>) -> MutexGuard<'_, All> {
    all.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What one session holds.
struct Held {
    session: u64,
    range: OpenRange,
    /// Whether conntrack has its control connection, as far as is known, so that the range is open.
    is_open: bool,
}

/// Why a range was not opened.
#[derive(Debug)]
pub enum RangeNotOpened {
    /// The client has a session with this server, which it reaches by the same address.
    OtherServer(IpAddr),
    /// The kernel refused it.
    Kernel(KernelError),
}

impl OpenRange {
    fn key(&self) -> Key {
        (self.control.client.ip(), self.control.server_external.ip())
    }
}

/// As in the configuration: `50000-50100, 60000`.
pub struct PortsText<'p>(pub &'p [RangeInclusive<u16>]);

impl fmt::Display for PortsText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, range) in self.0.iter().enumerate() {
            let separator = if nth > 0 { ", " } else { "" };
            match range.start() == range.end() {
                true => write!(f, "{separator}{}", range.start())?,
                false => write!(f, "{separator}{}-{}", range.start(), range.end())?,
            }
        }
        Ok(())
    }
}

/// The range of a session, as events and lists show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RangeInfo {
    /// Source address of a connection's first packet, as it arrives at this machine.
    pub initiator: IpAddr,
    /// Its destination address.
    pub arrival: IpAddr,
    /// Where the connection is sent.
    pub target: IpAddr,
    /// The source address that the target sees.
    pub source: IpAddr,
    /// The destination ports.
    #[serde(serialize_with = "as_text")]
    pub ports: PassivePorts,
}

impl fmt::Display for RangeInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { initiator, arrival, target, source, ports } = self;
        write!(f, "{initiator} -> {arrival}, ports {}", PortsText(ports))?;
        if target != arrival {
            write!(f, " (to {target})")?;
        }
        if source != initiator {
            write!(f, " (from {source})")?;
        }
        Ok(())
    }
}

fn as_text<S: Serializer>(ports: &PassivePorts, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&PortsText(ports))
}

impl From<&OpenRange> for RangeInfo {
    fn from(OpenRange { control, ports }: &OpenRange) -> Self {
        let Translation { client, client_external, server, server_external, .. } = control;
        let [initiator, arrival, target, source] =
            [client, server_external, server, client_external].map(SocketAddr::ip);
        Self { initiator, arrival, target, source, ports: Arc::clone(ports) }
    }
}

impl Ranges {
    /// None, of another shard.
    pub fn new_shard(&self) -> Self {
        Self { all: Arc::clone(&self.all), ..Self::default() }
    }

    /// The range of the session in the table slot `owner`.
    pub fn of(&self, owner: u32) -> Option<&OpenRange> {
        self.of.get(&owner).map(|held| &held.range)
    }

    /// Opens a `range` for a `session`, unless another one of its client has it open.
    pub fn open(
        &mut self,
        owner: u32,
        session: u64,
        range: OpenRange,
        kernel: &mut dyn Kernel,
    ) -> Result<(), RangeNotOpened> {
        let mut all = lock(&self.all);
        let holders = all.0.entry(range.key()).or_default();
        let server = range.control.server.ip();
        let other = holders.iter().map(|one| one.range.control.server.ip());
        if let Some(other) = other.into_iter().find(|other| *other != server) {
            return Err(RangeNotOpened::OtherServer(other));
        }
        let opened = if holders.is_empty() { kernel.open_range(&range) } else { Ok(()) };
        match opened {
            Ok(()) => holders.push(Holder { session, range: range.clone() }),
            Err(_) => drop(all.0.remove(&range.key())),
        }
        drop(all);
        opened.map_err(RangeNotOpened::Kernel)?;
        self.of.insert(owner, Held { session, range, is_open: true });
        Ok(())
    }

    /// Takes over the range of a session of an earlier daemon. The next [look](Self::look) opens it.
    pub fn restore(&mut self, owner: u32, session: u64, range: OpenRange) {
        self.of.insert(owner, Held { session, range, is_open: false });
    }

    /// Takes over what the session in the slot `from` of `other` has, for the slot `owner`.
    pub fn adopt(&mut self, owner: u32, other: &mut Self, from: u32) {
        self.of.extend(other.of.remove(&from).map(|held| (owner, held)));
    }

    /// Has the range of the session in the table slot `owner` closed, if no other one holds it. Returns it.
    pub fn close(&mut self, owner: u32) -> Option<RangeInfo> {
        let held = self.of.remove(&owner)?;
        let info = RangeInfo::from(&held.range);
        self.left.push(held);
        Some(info)
    }

    /// Has the kernel close what no session holds any more.
    pub fn send_closings(&mut self, kernel: &mut dyn Kernel) {
        for held in std::mem::take(&mut self.left) {
            self.leave(&held, kernel);
        }
    }

    /// Takes the errors of the kernel.
    pub fn take_errors(&mut self) -> Vec<KernelError> {
        std::mem::take(&mut self.errors)
    }

    /// Closes the range, or has the next session that holds it open it.
    fn leave(&mut self, Held { session, range, .. }: &Held, kernel: &mut dyn Kernel) {
        let all = Arc::clone(&self.all);
        let mut all = lock(&all);
        let Some(holders) = all.0.get_mut(&range.key()) else { return };
        let was_first = holders.first().is_some_and(|one| one.session == *session);
        holders.retain(|one| one.session != *session);
        let changed = match holders.first() {
            None => kernel.close_range(range),
            Some(next) if was_first => kernel.open_range(&next.range),
            Some(_) => Ok(()),
        };
        if holders.is_empty() {
            all.0.remove(&range.key());
        }
        self.errors.extend(changed.err());
    }

    /// Renews what is open, and closes what belongs to control connections that conntrack has forgotten, until it knows them
    /// again.
    pub fn look(&mut self, now: Instant, kernel: &mut dyn Kernel) {
        let owners: Vec<_> = self.of.range(self.next..).map(|(owner, _)| *owner).collect();
        let is_rest = owners.len() <= MAX_LOOKUPS;
        for owner in owners.into_iter().take(MAX_LOOKUPS) {
            self.look_at(owner, kernel);
            self.next = owner + 1;
        }
        if is_rest {
            self.next = 0;
        }
        if self.renewed.is_none_or(|renewed| now >= renewed + RENEWAL_INTERVAL) {
            self.renewed = Some(now);
            self.renew(kernel);
        }
    }

    fn look_at(&mut self, owner: u32, kernel: &mut dyn Kernel) {
        let Some(held) = self.of.get_mut(&owner) else { return };
        let control = &held.range.control;
        let found = match kernel.lookup_translation(control.client, control.server) {
            Ok(found) => found.is_some(),
            Err(error) => return self.errors.push(error),
        };
        match (held.is_open, found) {
            (true, false) => {
                held.is_open = false;
                let closed =
                    Held { session: held.session, range: held.range.clone(), is_open: false };
                self.leave(&closed, kernel);
            }
            (false, true) => {
                let (session, range) = (held.session, held.range.clone());
                // It stays closed if another server has the place by now.
                if let Err(RangeNotOpened::Kernel(error)) = self.open(owner, session, range, kernel)
                {
                    self.errors.push(error);
                }
            }
            _ => {}
        }
    }

    fn renew(&mut self, kernel: &mut dyn Kernel) {
        let all = lock(&self.all);
        for Held { session, range, .. } in self.of.values().filter(|held| held.is_open) {
            let holders = all.0.get(&range.key());
            if holders.and_then(|all| all.first()).is_some_and(|one| one.session == *session) {
                self.errors.extend(kernel.open_range(range).err());
            }
        }
    }

    /// Has those that are open opened again, because the kernel has lost them.
    pub fn reopen(&mut self, kernel: &mut dyn Kernel) {
        self.renew(kernel);
    }

    /// The table slots of the sessions that hold one.
    pub fn owners(&self) -> Vec<u32> {
        self.of.keys().copied().collect()
    }
}
