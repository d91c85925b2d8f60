//! The fast path: a program at the interfaces that judges the lines of control connections which the daemon has handed
//! over, and the maps by which both talk.
//!
//! Knows what the maps hold, but neither FTP nor why a connection is handed over. Program, maps and links
//! stay in the kernel when the daemon ends, until [`FastPath::remove`]: a daemon that is started again takes them over.
//!
//! | file | is |
//! | --- | --- |
//! | `program/` | the program, in C |
//! | `layout` | keys and values of its maps |
//! | `program` | loads it, by aya |
//! | `pins` | where it stays |
//! | `attached` | what it is attached to, and when |
//! | `interfaces` | what it can be attached to |
//! | `ring` | the lines that it judged |
//! | `waiting` | waiting for them |
//! | `slots` | translations of the connections that it admits |
//! | `syscall` | bpf(2) |

mod attached;
mod interfaces;
mod layout;
mod pins;
mod program;
mod ring;
mod slots;
mod syscall;
mod waiting;

use std::{
    collections::BTreeSet,
    fs::File,
    io,
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rustix::time::{ClockId, clock_gettime};

use attached::Attached;
pub use layout::{Awaits, Flow, JudgedStep, LONGEST_LINE, WayKey};
use layout::{FLOW, FLOW_JUDGED, HOLE, WAY, flow_of, hole_key, read_hole_key, step_of, until_of};
pub use pins::is_bpf;
use pins::{NAME, Pins};
pub use program::PROGRAM;
use program::{CONTROL_PORTS, COUNTS, FLOWS, HOLES, PORTS, RING, WAYS};
pub use ring::Ring;
pub use slots::{Slot, Translations};
pub use syscall::COMMANDS;
use syscall::{ANY, EXIST, LOCK, Map, NOEXIST};
pub use waiting::RingWaiter;

/// Why there is no fast path here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Missing(String);

impl Missing {
    const NEEDS: &str = "; run as root, or with CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN";

    fn system(what: &str, error: &io::Error) -> Self {
        Self(match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => {
                format!("{what}: not permitted{}", Self::NEEDS)
            }
            Some(libc::ENOSYS) => format!("{what}: the kernel has no bpf(2)"),
            _ => format!("{what}: {error}"),
        })
    }
}

/// The program of one network namespace, loaded, with its maps. All threads may share it.
///
/// It stays in the kernel when this is dropped.
#[derive(Debug)]
pub struct FastPath {
    pins: Pins,
    program: OwnedFd,
    ways: Map,
    flows: Map,
    holes: Map,
    ports: Map,
    control_ports: Map,
    counts: Map,
    /// Processors that this machine may have, each of which counts.
    processors: usize,
    ring: Ring,
    attached: Mutex<Attached>,
    /// The ports that the program was told not to open, a bit each, where that is known.
    barred: Mutex<Option<Vec<u32>>>,
    /// The ports of servers that it was told of, by this daemon.
    known_control_ports: Mutex<BTreeSet<u16>>,
    /// Whether another daemon left it.
    was_left: bool,
    /// No other daemon takes over what is pinned, or removes it, as long as this is open.
    _used: File,
}

/// How often the program did what, since it was loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FastPathCounts {
    /// Lines judged.
    pub judged: u64,
    /// Flows handed back to the queue.
    pub handed_back: u64,
    /// Pinholes opened.
    pub opened: u64,
    /// Data connections admitted.
    pub admitted: u64,
    /// Lines not judged since the ring was full.
    pub no_room: u64,
    /// Lines judged and rewritten.
    pub rewritten: u64,
}

/// Words of 32 ports each.
const PORT_WORDS: u32 = 2048;

impl FastPath {
    /// Loads the program, or takes over what another daemon of this network namespace left pinned below `pins`, a directory
    /// in a bpf file system. Needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN; all else needs CAP_NET_ADMIN at most.
    pub fn load(pins: &Path) -> Result<Self, Missing> {
        program::check_kernel()?;
        let pins = Pins::open(pins, program::version())?;
        // The program was pinned last: with it all is there.
        let failed =
            |error| Missing::system(&format!("use {}", pins.directory().display()), &error);
        if pins.path(NAME).exists()
            && let Ok(left) = Self::open(&pins, pins.lock().map_err(failed)?)
        {
            return Ok(Self { was_left: true, ..left });
        }
        let make = |error| Missing::system(&format!("make {}", pins.directory().display()), &error);
        pins.make().map_err(make)?;
        let used = pins.lock().map_err(failed)?;
        let loaded = program::load(&pins).and_then(|()| Self::open(&pins, used));
        if loaded.is_err()
            && let Err(error) = pins.remove()
        {
            tracing::warn!("{} is not removed: {error}", pins.directory().display());
        }
        loaded
    }

    /// Opens what is pinned; `used` is the lock on it.
    fn open(pins: &Pins, used: File) -> Result<Self, Missing> {
        let (what, processors) = match aya::util::nr_cpus() {
            Ok(processors) => ("pinned program", processors),
            Err((what, error)) => return Err(Missing::system(what, &error)),
        };
        let open = move || {
            let map = |name: &str| Map::open(&pins.path(name), 1);
            let ring = map(RING)?;
            let size = ring.entries();
            Ok(Self {
                program: syscall::object(&pins.path(NAME))?,
                ways: map(WAYS)?,
                flows: map(FLOWS)?,
                holes: map(HOLES)?,
                ports: map(PORTS)?,
                control_ports: map(CONTROL_PORTS)?,
                counts: Map::open(&pins.path(COUNTS), processors)?,
                processors,
                ring: Ring::open(ring.into(), size)?,
                attached: Mutex::new(Attached::open(pins.links()?)?),
                barred: Mutex::default(),
                known_control_ports: Mutex::default(),
                was_left: false,
                _used: used,
                pins: pins.clone(),
            })
        };
        open().map_err(|error| Missing::system(what, &error))
    }

    /// Whether some interface has the program.
    pub fn is_attached(&self) -> bool {
        lock(&self.attached).is_somewhere()
    }

    /// Whether another daemon left it, with what it has judged and opened.
    pub fn was_left(&self) -> bool {
        self.was_left
    }

    /// Where it is pinned; [`FastPath::attach`] and [`FastPath::remove`] make and remove files there.
    pub fn directory(&self) -> &Path {
        self.pins.directory()
    }

    /// The names of the interfaces that it was attached to when last looked.
    pub fn interfaces(&self) -> Vec<String> {
        lock(&self.attached).names().to_vec()
    }

    /// Attaches the program to every Ethernet interface that it is not attached to, and takes it off those that became
    /// ports of another; takes it off all of them some time after its last connection. [`FastPath::hand_over`] attaches it again.
    /// Only on a thread in the namespace in which it was loaded.
    pub fn look(&self, now: Instant) -> Result<(), Missing> {
        let mut attached = lock(&self.attached);
        if attached.is_wanted() {
            let is_used =
                self.is_used().map_err(|error| Missing::system("connections judged", &error))?;
            attached.note_use(is_used, now);
        }
        attached.follow(self.program.as_fd(), &self.pins)
    }

    /// Whether there is a connection that it may judge, or a pinhole that it has open.
    fn is_used(&self) -> io::Result<bool> {
        Ok(!self.flows.is_empty()? || !self.open_holes()?.is_empty())
    }

    /// So many connections can be handed over at a time.
    pub fn most_flows(&self) -> u32 {
        self.flows.entries()
    }

    /// Has the program judge what comes on this connection. Attaches it first, if it is not; only on a thread in its namespace.
    pub fn hand_over(&self, flow: &Flow) -> io::Result<()> {
        // Held until the connection is in the map, so that nobody finds the program unused meanwhile.
        let mut attached = lock(&self.attached);
        attached.want(self.program.as_fd(), &self.pins).map_err(io::Error::other)?;
        let [from_client, from_server] = flow.ways;
        self.add_control_port(from_client.destination.port())?;
        self.add_control_port(from_server.source.port())?;
        self.flows.update(&flow.flow.to_ne_bytes(), &flow.to_bytes(), NOEXIST)?;
        for (key, is_server) in flow.ways.iter().zip([false, true]) {
            let way = layout::way(flow.flow, is_server);
            if let Err(error) = self.ways.update(&key.to_bytes(), &way, NOEXIST) {
                self.take_back(flow.flow, flow.ways)?;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Has the program look up what comes to or from this port.
    fn add_control_port(&self, port: u16) -> io::Result<()> {
        let mut known = lock(&self.known_control_ports);
        if known.contains(&port) {
            return Ok(());
        }
        let (word, bit) = (u32::from(port / 32).to_ne_bytes(), 1_u32 << (port % 32));
        let mut bits = [0; 4];
        self.control_ports.look_up(&word, &mut bits, ANY)?;
        let bits = u32::from_ne_bytes(bits) | bit;
        self.control_ports.update(&word, &bits.to_ne_bytes(), ANY)?;
        known.insert(port);
        Ok(())
    }

    /// Has the program judge nothing more of this connection: what it has judged has its record reserved in the ring when
    /// this returns. A pinhole that it has open stays open.
    pub fn take_back(&self, flow: u64, ways: [WayKey; 2]) -> io::Result<()> {
        self.stop(flow)?;
        for way in ways {
            self.delete_way(&way.to_bytes(), flow)?;
        }
        self.flows.delete(&flow.to_ne_bytes()).map(drop)
    }

    /// As [`FastPath::take_back`], of all flows, of which nothing else need be known, as of those that another daemon left.
    pub fn drop_flows(&self) -> io::Result<()> {
        let flows = self.flows()?;
        flows.iter().try_for_each(|flow| self.stop(*flow))?;
        self.ways.keys()?.iter().try_for_each(|way| self.ways.delete(way).map(drop))?;
        flows.iter().try_for_each(|flow| self.flows.delete(&flow.to_ne_bytes()).map(drop))
    }

    /// Sets `judged` to 0, so that no line is judged from then on.
    fn stop(&self, flow: u64) -> io::Result<()> {
        let key = flow.to_ne_bytes();
        let mut value = [0; FLOW];
        if !self.flows.look_up(&key, &mut value, LOCK)? {
            return Ok(());
        }
        value[FLOW_JUDGED].fill(0);
        // What the program changes in between is lost, which does not matter: the flow ends here.
        match self.flows.update(&key, &value, LOCK | EXIST) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            other => other,
        }
    }

    /// Deletes a way if it is that of `flow`.
    fn delete_way(&self, key: &[u8], flow: u64) -> io::Result<()> {
        let mut value = [0; WAY];
        // Only the daemon changes ways.
        if self.ways.look_up(key, &mut value, ANY)? && flow_of(&value) == flow {
            self.ways.delete(key)?;
        }
        Ok(())
    }

    /// The flows that are handed over, among them those that the program has handed back.
    pub fn flows(&self) -> io::Result<Vec<u64>> {
        let mut flows: Vec<u64> = self.flows.keys()?.iter().map(|key| flow_of(key)).collect();
        flows.sort_unstable();
        flows.dedup();
        Ok(flows)
    }

    /// Has the program open nothing at these ports.
    pub fn set_barred_ports(&self, is_barred: impl Fn(u16) -> bool) -> io::Result<()> {
        let word = |index: u32| {
            let ports = (0..32).filter(|bit| is_barred((index * 32 + bit) as u16));
            ports.fold(0, |word, bit| word | 1 << bit)
        };
        let words: Vec<u32> = (0..PORT_WORDS).map(word).collect();
        let mut barred = lock(&self.barred);
        let known = barred.take();
        for (index, word) in (0_u32..).zip(&words) {
            let is_known = known.as_ref().and_then(|known| known.get(index as usize)) == Some(word);
            if !is_known {
                self.ports.update(&index.to_ne_bytes(), &word.to_ne_bytes(), ANY)?;
            }
        }
        *barred = Some(words);
        Ok(())
    }

    /// Keeps the program from opening this pinhole, as long as it is not [released](FastPath::release): another one holds it.
    /// `false` if the program has it open. It may be reserved already, as by a daemon before.
    pub fn reserve(&self, initiator: Ipv4Addr, arrival: SocketAddrV4) -> io::Result<bool> {
        let key = hole_key(initiator, arrival);
        match self.holes.update(&key, &[0; HOLE], NOEXIST) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                let mut value = [0; HOLE];
                Ok(self.holes.look_up(&key, &mut value, ANY)? && flow_of(&value) == 0)
            }
            other => other.map(|()| true),
        }
    }

    /// Ends a reservation; a pinhole of the program stays.
    pub fn release(&self, initiator: Ipv4Addr, arrival: SocketAddrV4) -> io::Result<()> {
        self.delete_hole(&hole_key(initiator, arrival), |flow, _| flow == 0)
    }

    /// Closes the pinhole that this step of this flow opened, unless it was consumed.
    pub fn shut(
        &self,
        initiator: Ipv4Addr,
        arrival: SocketAddrV4,
        flow: u64,
        step: u32,
    ) -> io::Result<()> {
        let key = hole_key(initiator, arrival);
        self.delete_hole(&key, |found, opened| (found, opened) == (flow, step))
    }

    /// Closes all pinholes, and ends all reservations, but for those that `is_kept` knows by initiator, arrival, flow and step.
    /// A reservation is of flow 0.
    pub fn keep_holes(
        &self,
        is_kept: impl Fn(Ipv4Addr, SocketAddrV4, u64, u32) -> bool,
    ) -> io::Result<()> {
        self.holes.keys()?.iter().try_for_each(|key| {
            let Some((initiator, arrival)) = read_hole_key(key) else { return Ok(()) };
            self.delete_hole(key, |flow, step| !is_kept(initiator, arrival, flow, step))
        })
    }

    /// The pinholes that it has open, and in what time each closes by itself.
    pub fn open_holes(&self) -> io::Result<Vec<(Ipv4Addr, SocketAddrV4, Duration)>> {
        let clock = clock_gettime(ClockId::Monotonic);
        let now = Duration::new(clock.tv_sec as u64, clock.tv_nsec as u32); // both count up from 0
        let mut open = Vec::new();
        for key in self.holes.keys()? {
            let mut value = [0; HOLE];
            // It may be gone by now.
            if !self.holes.look_up(&key, &mut value, ANY)? || flow_of(&value) == 0 {
                continue;
            }
            let left = Duration::from_nanos(until_of(&value)).saturating_sub(now);
            if let (Some((initiator, arrival)), false) = (read_hole_key(&key), left.is_zero()) {
                open.push((initiator, arrival, left));
            }
        }
        Ok(open)
    }

    /// Deletes a pinhole if it is of the flow and step that `is_it` knows.
    fn delete_hole(&self, key: &[u8], is_it: impl Fn(u64, u32) -> bool) -> io::Result<()> {
        let mut value = [0; HOLE];
        let is_that = |value: &[u8; HOLE]| is_it(flow_of(value), step_of(value));
        // The program may consume it and open another at any moment.
        if self.holes.look_up(key, &mut value, ANY)?
            && is_that(&value)
            && self.holes.take(key, &mut value)?
            && !is_that(&value)
        {
            self.holes.update(key, &value, NOEXIST)?;
        }
        Ok(())
    }

    /// What the program counted since it was loaded.
    pub fn counters(&self) -> io::Result<FastPathCounts> {
        let mut sums = [0; 6];
        for (index, sum) in (0_u32..).zip(&mut sums) {
            let mut values = vec![0; self.processors * 8];
            self.counts.look_up(&index.to_ne_bytes(), &mut values, ANY)?;
            *sum = values.as_chunks().0.iter().map(|value| u64::from_ne_bytes(*value)).sum();
        }
        let [judged, handed_back, opened, admitted, no_room, rewritten] = sums;
        Ok(FastPathCounts { judged, handed_back, opened, admitted, no_room, rewritten })
    }

    /// The lines that it judged.
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// Detaches the program, and removes it with its maps and pins.
    pub fn remove(&self) -> io::Result<()> {
        // All are tried: what is detached judges nothing, whatever becomes of its pin.
        let removed = lock(&self.attached).remove();
        self.pins.remove()?;
        self.pins.remove_root();
        removed
    }
}

/// Whether daemons of this network namespace left something pinned below `root`.
pub fn is_left(root: &Path) -> bool {
    Pins::are_left(root).unwrap_or(false)
}

/// Removes what daemons of this network namespace left pinned below `root`: none is to run any more.
pub fn remove_left(root: &Path) -> io::Result<()> {
    Pins::remove_all(root)
}

/// A panic leaves nothing half done that the next call would not find out.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
