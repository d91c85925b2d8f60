//! Open ranges. The announcements of an encrypted session cannot be read, so its client may connect to all passive
//! ports of its server until the session ends.
//!
//! Sessions of one client with one server share a range. The kernel has the range with the translation of the first
//! session, until the last session has ended. The rules cannot tell two servers behind one address
//! apart, so the range of the second server stays closed until the range of the first is closed. A range that the
//! kernel refuses is requested again.
//!
//! The range of a server without passive ports in the configuration is empty: the kernel opens nothing, and logs what
//! the client tries.
//!
//! Invariant: the kernel has a range only while a session holds the range, or until [`LIFETIME`] after the last
//! renewal.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::RangeInclusive,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde::{Serialize, Serializer};

use crate::{
    engine::{Event, Kernel, KernelError, PinholeEnds, Translation},
    policy::PassivePorts,
};

/// How long the kernel has a range without a renewal. A daemon that was killed renews none.
pub const LIFETIME: Duration = Duration::from_secs(120);
/// Interval at which each range is renewed.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(30);
/// How long the copy of a packet may be on its way to a [`RangeFinder`].
const COPIES_WAIT: Duration = Duration::from_secs(2);
/// Limit of former holders that are stored.
const MAX_FORMER: usize = 1024;
/// Limit of sessions in one [look](Ranges::look_at). With more sessions, it takes several looks to find that a
/// control connection is gone. With more than 30,000, ranges are renewed too late, and are closed for a while.
const MAX_LOOKUPS: usize = 256;

/// The ports of a server to which a client may connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenRange {
    /// The translation of the control connection, and of its data connections.
    pub control: Translation,
    /// The ports. Destination translation does not change them.
    pub ports: PassivePorts,
}

const LOWEST: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const HIGHEST: IpAddr = IpAddr::V6(Ipv6Addr::from_bits(u128::MAX));

/// A session that holds a range.
struct Holder {
    session: u64,
    range: OpenRange,
}

#[derive(Default)]
struct SharedRanges {
    /// The holders of each range, at least one, by [key](OpenRange::key).
    open: BTreeMap<(IpAddr, IpAddr), Vec<Holder>>,
    /// Holders whose sessions have ended, with the time of the first [`RangeFinder::forget`] after that.
    former: VecDeque<(Option<Instant>, Holder)>,
}

impl SharedRanges {
    /// The holder whose translation the kernel has with the range of this key.
    fn first(&self, key: (IpAddr, IpAddr)) -> Option<&Holder> {
        self.open.get(&key)?.first()
    }

    /// Removes the holder with this session. Returns the holder, and whether it was the first.
    fn remove_holder(&mut self, session: u64, range: &OpenRange) -> Option<(Holder, bool)> {
        let holders = self.open.get_mut(&range.key())?;
        let at = holders.iter().position(|one| one.session == session)?;
        let holder = holders.remove(at);
        if holders.is_empty() {
            self.open.remove(&range.key());
        }
        Some((holder, at == 0))
    }
}

/// The ranges of the sessions of one shard.
#[derive(Default)]
pub struct Ranges {
    all: Arc<Mutex<SharedRanges>>,
    /// The ranges of sessions, by table slot.
    of: BTreeMap<u32, HeldRange>,
    /// The ranges of ended sessions, until [`Ranges::send_closings`].
    released: Vec<HeldRange>,
    /// The table slot behind the last one whose control connection was looked up.
    next: u32,
    errors: Vec<KernelError>,
}

fn lock(all: &Mutex<SharedRanges>) -> MutexGuard<'_, SharedRanges> {
    all.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens in the kernel the first holder's range with the key of `range`. Closes that range if nobody holds it.
///
/// The lock is not held during the transaction. If another thread changes the first holder meanwhile, the kernel may
/// carry out the two transactions in either order, so a further transaction follows.
fn apply(
    all: &Mutex<SharedRanges>,
    range: &OpenRange,
    kernel: &mut dyn Kernel,
) -> Result<(), KernelError> {
    let wanted = || lock(all).first(range.key()).map(|first| first.range.clone());
    loop {
        let first = wanted();
        let applied = match &first {
            Some(first) => kernel.open_range(first),
            None => kernel.close_range(range),
        };
        if first == wanted() {
            return applied;
        }
    }
}

/// The range of one session.
struct HeldRange {
    session: u64,
    range: OpenRange,
    state: RangeState,
    /// Whether the last event about the range said that it is open.
    is_reported: bool,
}

/// The state of a session's range, as far as is known.
#[derive(Clone, Copy, PartialEq, Eq)]
enum RangeState {
    /// Opened or renewed at this time.
    Open(Instant),
    /// Closed until conntrack knows the control connection, and no session with another server holds a range with
    /// this key.
    Closed,
    /// Closed because conntrack has forgotten the control connection.
    Forgotten,
    /// Refused by the kernel at this time.
    Refused(Instant),
}

/// Finds the session of a data connection, for the reports of transfers.
#[derive(Clone, Default)]
pub struct RangeFinder(Arc<Mutex<SharedRanges>>);

/// A connection between the ends of an encrypted session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncryptedConnection {
    /// Its session, and its ends.
    pub of: Event<PinholeEnds>,
    /// Whether the client has another session with the server.
    pub may_be_anothers: bool,
}

impl RangeFinder {
    /// The data connection from `initiator` to `target`, as the filter chains see them, if an open range admits it.
    pub fn find(&self, initiator: IpAddr, target: SocketAddr) -> Option<EncryptedConnection> {
        let all = lock(&self.0);
        let of_client = all.open.range((initiator, LOWEST)..=(initiator, HIGHEST));
        let open = of_client.filter_map(|(_, holders)| Some((holders.first()?, holders.len())));
        let former = all.former.iter().rev().map(|(_, holder)| (holder, 1));
        let is_its = |holder: &Holder| {
            holder.range.control.client.ip() == initiator && holder.range.leads_to(target)
        };
        let (holder, count) = open.chain(former).find(|(holder, _)| is_its(holder))?;
        let arrival = holder.range.control.server_external.ip();
        Some(holder.connection(SocketAddr::new(arrival, target.port()), target, count > 1))
    }

    /// Forgets ranges that were closed a while before `now`.
    pub(super) fn forget(&self, now: Instant) {
        let former = &mut lock(&self.0).former;
        former.iter_mut().for_each(|(since, _)| _ = since.get_or_insert(now));
        former.retain(|(since, _)| since.is_none_or(|since| now < since + COPIES_WAIT));
    }

    /// The connection of `client` to `dialled` that the rules did not admit, if the client has an encrypted session
    /// with that address.
    pub(super) fn find_tried(
        &self,
        client: IpAddr,
        dialled: SocketAddr,
    ) -> Option<(Event<PinholeEnds>, NotAdmitted)> {
        let all = lock(&self.0);
        let holders = all.open.get(&(client, dialled.ip()))?;
        let holder = holders.first()?;
        let target = SocketAddr::new(holder.range.control.server.ip(), dialled.port());
        let why = match holder.range.has_ports() {
            false => NotAdmitted::NoPorts,
            true if holder.range.leads_to(target) => NotAdmitted::OverLimit,
            true => NotAdmitted::OtherPort,
        };
        Some((holder.connection(dialled, target, holders.len() > 1).of, why))
    }
}

impl Holder {
    fn connection(
        &self,
        arrival: SocketAddr,
        target: SocketAddr,
        may_be_anothers: bool,
    ) -> EncryptedConnection {
        let control = &self.range.control;
        let (session, client, server) = (self.session, control.client, control.server);
        let source = control.client_external.ip();
        let kind = PinholeEnds { initiator: client.ip(), arrival, target, source };
        let of = Event { session, client, server, user: None, kind };
        EncryptedConnection { of, may_be_anothers }
    }
}

/// Why the rules do not admit a data connection of an encrypted session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotAdmitted {
    /// Its server has no passive ports.
    NoPorts,
    /// It goes to another port.
    OtherPort,
    /// Its client is at the limit of data connections.
    OverLimit,
}

/// Why a range was not opened.
#[derive(Debug)]
pub enum RangeNotOpened {
    /// The client has a session with this other server, which clients reach by the same address.
    OtherServer(IpAddr),
    /// The kernel refused it.
    Kernel(KernelError),
}

impl OpenRange {
    /// The client, and the address that the client dialled. The rules find the range by these two.
    pub fn key(&self) -> (IpAddr, IpAddr) {
        (self.control.client.ip(), self.control.server_external.ip())
    }

    fn leads_to(&self, target: SocketAddr) -> bool {
        self.control.server.ip() == target.ip()
            && self.ports.iter().any(|range| range.contains(&target.port()))
    }

    /// Whether anything is open.
    pub fn has_ports(&self) -> bool {
        !self.ports.is_empty()
    }
}

/// Ports as in the configuration: `50000-50100, 60000`.
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
    /// The ranges of another shard: none.
    pub fn new_shard(&self) -> Self {
        Self { all: Arc::clone(&self.all), ..Self::default() }
    }

    /// The finder of the encrypted sessions of all shards.
    pub fn finder(&self) -> RangeFinder {
        RangeFinder(Arc::clone(&self.all))
    }

    /// The ports that are open for the session in the table slot `owner`, as far as is known.
    pub fn open_ports(&self, owner: u32) -> Option<PassivePorts> {
        let held = self.of.get(&owner)?;
        let is_open = matches!(held.state, RangeState::Open(_)) && held.range.has_ports();
        is_open.then(|| Arc::clone(&held.range.ports))
    }

    /// The range of the session in the table slot `owner`.
    pub fn of(&self, owner: u32) -> Option<&OpenRange> {
        self.of.get(&owner).map(|held| &held.range)
    }

    /// Opens `range` for `session`, unless another session of the client has it open. After an error, a later
    /// [look](Self::look_at) tries again.
    pub fn open(
        &mut self,
        now: Instant,
        owner: u32,
        session: u64,
        range: OpenRange,
        kernel: &mut dyn Kernel,
    ) -> Result<(), RangeNotOpened> {
        let (state, opened) = self.join(now, session, &range, kernel);
        self.of.insert(owner, HeldRange { session, range, state, is_reported: opened.is_ok() });
        opened
    }

    /// Adds a holder. The first holder opens the range in the kernel.
    fn join(
        &self,
        now: Instant,
        session: u64,
        range: &OpenRange,
        kernel: &mut dyn Kernel,
    ) -> (RangeState, Result<(), RangeNotOpened>) {
        let mut all = lock(&self.all);
        let holders = all.open.entry(range.key()).or_default();
        let server = range.control.server.ip();
        let other = holders.first().map(|first| first.range.control.server.ip());
        if let Some(other) = other.filter(|other| *other != server) {
            return (RangeState::Closed, Err(RangeNotOpened::OtherServer(other)));
        }
        holders.push(Holder { session, range: range.clone() });
        let is_first = holders.len() == 1;
        drop(all);
        if is_first && let Err(error) = apply(&self.all, range, kernel) {
            lock(&self.all).remove_holder(session, range);
            // Part of it may be open, or another session may hold it by now.
            let _ = apply(&self.all, range, kernel);
            return (RangeState::Refused(now), Err(RangeNotOpened::Kernel(error)));
        }
        (RangeState::Open(now), Ok(()))
    }

    /// Takes over the range of a session of an earlier daemon. The next [look](Self::look_at) opens it.
    pub fn restore(&mut self, owner: u32, session: u64, range: OpenRange) {
        let state = RangeState::Closed;
        self.of.insert(owner, HeldRange { session, range, state, is_reported: true });
    }

    /// Moves the range of the session in the slot `from` of `other` to the slot `owner`.
    pub fn adopt(&mut self, owner: u32, other: &mut Self, from: u32) {
        self.of.extend(other.of.remove(&from).map(|held| (owner, held)));
    }

    /// Releases the range of the session in the table slot `owner`. [`Self::send_closings`] closes the range if no
    /// other session holds it. Returns the range if the last event said that it is open.
    pub fn close(&mut self, owner: u32) -> Option<RangeInfo> {
        let held = self.of.remove(&owner)?;
        let is_reported = held.is_reported && held.range.has_ports();
        let info = is_reported.then(|| RangeInfo::from(&held.range));
        self.released.push(held);
        info
    }

    /// Closes in the kernel the released ranges that no other session holds.
    pub fn send_closings(&mut self, kernel: &mut dyn Kernel) {
        for held in std::mem::take(&mut self.released) {
            self.release(held.session, &held.range, kernel);
        }
    }

    /// Takes the errors of the kernel.
    pub fn take_errors(&mut self) -> Vec<KernelError> {
        std::mem::take(&mut self.errors)
    }

    /// Removes the session from the holders of `range`. If the session was the first holder, opens the range for the
    /// next one, or closes it.
    fn release(&mut self, session: u64, range: &OpenRange, kernel: &mut dyn Kernel) {
        let mut all = lock(&self.all);
        let Some((holder, was_first)) = all.remove_holder(session, range) else { return };
        all.former.push_back((None, holder));
        if all.former.len() > MAX_FORMER {
            all.former.pop_front();
        }
        drop(all);
        if was_first {
            self.errors.extend(apply(&self.all, range, kernel).err());
        }
    }

    /// The table slots of the next sessions to [look at](Self::look_at).
    pub fn owners_to_look_at(&mut self) -> Vec<u32> {
        let rest = self.of.range(self.next..).map(|(owner, _)| *owner);
        let owners: Vec<_> = rest.take(MAX_LOOKUPS).collect();
        // Behind the last one it begins again.
        self.next = if owners.len() < MAX_LOOKUPS { 0 } else { owners[MAX_LOOKUPS - 1] + 1 };
        owners
    }

    /// Whether the range of this session is closed because conntrack has forgotten the control connection.
    pub fn is_forgotten(&self, owner: u32) -> bool {
        self.of.get(&owner).is_some_and(|held| held.state == RangeState::Forgotten)
    }

    /// Renews the range of the session in the table slot `owner` if it is open. Closes it if conntrack has forgotten the
    /// control connection, or that ended while no daemon ran, and opens it if conntrack knows it again.
    pub fn look_at(
        &mut self,
        now: Instant,
        owner: u32,
        kernel: &mut dyn Kernel,
    ) -> Result<(), KernelError> {
        let Some(held) = self.of.get_mut(&owner) else { return Ok(()) };
        let is_found = kernel.is_running(&held.range.control)?;
        let (session, range) = (held.session, held.range.clone());
        match held.state {
            RangeState::Open(_) if !is_found => {
                held.state = RangeState::Forgotten;
                self.release(session, &range, kernel);
            }
            RangeState::Open(at) if now >= at + RENEWAL_INTERVAL => {
                held.state = RangeState::Open(now);
                Self::renew(&self.all, held, kernel)?;
            }
            RangeState::Refused(at) if now < at + RENEWAL_INTERVAL => {}
            RangeState::Closed | RangeState::Forgotten | RangeState::Refused(_) if is_found => {
                let (state, opened) = self.join(now, session, &range, kernel);
                self.of.get_mut(&owner).into_iter().for_each(|held| held.state = state);
                if let Err(RangeNotOpened::Kernel(error)) = opened {
                    return Err(error);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Renews the range if this session is its first holder.
    fn renew(
        all: &Mutex<SharedRanges>,
        held: &HeldRange,
        kernel: &mut dyn Kernel,
    ) -> Result<(), KernelError> {
        let first = lock(all).first(held.range.key()).map(|first| first.session);
        if first == Some(held.session) { apply(all, &held.range, kernel) } else { Ok(()) }
    }

    /// The range of this session, and whether it is open, if the last event said otherwise. The caller reports the
    /// change. A range without ports has no events.
    pub fn take_change(&mut self, owner: u32) -> Option<(RangeInfo, bool)> {
        let held = self.of.get_mut(&owner).filter(|held| held.range.has_ports())?;
        let is_open = match held.state {
            RangeState::Open(_) => true,
            RangeState::Forgotten => false,
            RangeState::Closed | RangeState::Refused(_) => return None,
        };
        let was_reported = std::mem::replace(&mut held.is_reported, is_open);
        (was_reported != is_open).then(|| (RangeInfo::from(&held.range), is_open))
    }

    /// Marks refused ranges as closed, so that the next look requests them from the kernel's new table.
    pub fn forget_refusals(&mut self) {
        for held in self.of.values_mut() {
            if let RangeState::Refused(_) = held.state {
                held.state = RangeState::Closed;
            }
        }
    }

    /// Reopens the open ranges, because the kernel has lost them.
    pub fn reopen(&mut self, kernel: &mut dyn Kernel) {
        let is_open = |held: &&HeldRange| matches!(held.state, RangeState::Open(_));
        for held in self.of.values().filter(is_open) {
            self.errors.extend(Self::renew(&self.all, held, kernel).err());
        }
    }

    /// The table slots of the sessions that hold a range.
    pub fn owners(&self) -> Vec<u32> {
        self.of.keys().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, sync::mpsc, thread};

    use super::*;
    use crate::engine::{Closing, Opening, QueueMode};

    /// What the kernel of several workers has open.
    type Open = RefCell<Vec<OpenRange>>;

    /// One worker's view of that kernel. The closure runs before the next change.
    struct View<'a>(&'a Open, Option<Box<dyn FnOnce() + 'a>>);

    impl View<'_> {
        fn change(&mut self, range: &OpenRange, new: Option<OpenRange>) {
            self.1.take().into_iter().for_each(|happens| happens());
            let mut open = self.0.borrow_mut();
            open.retain(|one| one.key() != range.key());
            open.extend(new);
        }
    }

    impl Kernel for View<'_> {
        fn lookup_translation(
            &mut self,
            client: SocketAddr,
            server: SocketAddr,
        ) -> Result<Option<Translation>, KernelError> {
            Ok(Some(Translation::identity(client, server)))
        }

        fn open_range(&mut self, range: &OpenRange) -> Result<(), KernelError> {
            self.change(range, Some(range.clone()));
            Ok(())
        }

        fn close_range(&mut self, range: &OpenRange) -> Result<(), KernelError> {
            self.change(range, None);
            Ok(())
        }

        fn open(&mut self, _: &Opening, _: &[Closing]) -> Result<(), KernelError> {
            Ok(())
        }

        fn close(&mut self, _: &[Closing]) -> Result<(), KernelError> {
            Ok(())
        }

        fn set_queue_mode(&mut self, _: &Translation, _: QueueMode) -> Result<(), KernelError> {
            Ok(())
        }

        fn inject(&mut self, _: &[u8], _: IpAddr, _: u32) -> Result<(), KernelError> {
            Ok(())
        }
    }

    fn range() -> OpenRange {
        let client = "10.0.0.7:1035".parse().unwrap();
        let control = Translation::identity(client, "203.0.113.9:21".parse().unwrap());
        OpenRange { control, ports: Arc::new([50000..=50009]) }
    }

    /// Others look for the sessions of data connections, or open other ranges.
    #[test]
    fn others_do_not_wait_for_a_transaction() {
        let (now, open, mut ranges) = (Instant::now(), Open::default(), Ranges::default());
        let finder = ranges.finder();
        let kernel = || {
            let finder = finder.clone();
            let looks = move || {
                let (answer, answered) = mpsc::channel();
                let target = range().control.server;
                thread::spawn(move || {
                    answer.send(finder.find([10, 0, 0, 8].into(), target).is_some())
                });
                assert!(answered.recv_timeout(Duration::from_secs(20)).is_ok(), "it waits");
            };
            View(&open, Some(Box::new(looks)))
        };
        ranges.open(now, 0, 17, range(), &mut kernel()).unwrap();
        ranges.look_at(now + RENEWAL_INTERVAL, 0, &mut kernel()).unwrap();
        ranges.reopen(&mut kernel());
        assert_eq!(*open.borrow(), [range()]);
        ranges.close(0);
        ranges.send_closings(&mut kernel());
        assert_eq!(*open.borrow(), []);
    }

    /// The rules cannot tell two servers behind one address apart.
    #[test]
    fn a_session_with_another_server_at_the_address_waits_for_the_end_of_the_first() {
        let (now, open, mut ranges) = (Instant::now(), Open::default(), Ranges::default());
        let mut kernel = View(&open, None);
        let mut second = range();
        second.control.server = "203.0.113.10:21".parse().unwrap();
        ranges.open(now, 0, 17, range(), &mut kernel).unwrap();
        ranges.open(now, 1, 18, second.clone(), &mut kernel).unwrap_err();
        ranges.look_at(now, 1, &mut kernel).unwrap();
        assert_eq!((&*open.borrow(), ranges.open_ports(1)), (&vec![range()], None));
        assert_eq!(ranges.take_change(1), None);
        ranges.close(0);
        ranges.send_closings(&mut kernel);
        ranges.look_at(now, 1, &mut kernel).unwrap();
        assert_eq!(*open.borrow(), [second.clone()]);
        assert_eq!(ranges.take_change(1), Some((RangeInfo::from(&second), true)));
    }

    /// The closing by one worker overlaps the opening by another one, or the other way round.
    #[test]
    fn the_last_transaction_is_about_the_last_holder() {
        let (now, open, mut ranges) = (Instant::now(), Open::default(), Ranges::default());
        let mut others = ranges.new_shard();
        ranges.open(now, 0, 17, range(), &mut View(&open, None)).unwrap();
        ranges.close(0);
        let opens = || others.open(now, 0, 18, range(), &mut View(&open, None)).unwrap();
        ranges.send_closings(&mut View(&open, Some(Box::new(opens))));
        assert_eq!(*open.borrow(), [range()]);

        ranges.open(now, 0, 19, range(), &mut View(&open, None)).unwrap();
        others.close(0);
        let closes = || {
            ranges.close(0);
            ranges.send_closings(&mut View(&open, None));
        };
        others.send_closings(&mut View(&open, Some(Box::new(closes))));
        assert_eq!(*open.borrow(), []);
    }
}
