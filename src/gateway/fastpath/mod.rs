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

mod attachments;
mod interfaces;
mod layout;
mod pin_directory;
mod program;
mod ring;
mod ring_waiter;
mod syscall;
mod translations;

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

use attachments::Attachments;
pub use layout::{DialogueState, Flow, LONGEST_LINE, LineRecord, PacketTuple};
use layout::{
    FLOW, FLOW_HANDED_OVER, PINHOLE, TUPLE_VALUE, pinhole_key, read_flow_id, read_pinhole_deadline,
    read_pinhole_key, read_pinhole_line,
};
pub use pin_directory::is_bpf_file_system;
use pin_directory::{PROGRAM_NAME, PinDirectory};
pub use program::PROGRAM;
use program::{BARRED_PORTS, CONTROL_PORTS, COUNTERS, FLOWS, PINHOLES, RING, TUPLES};
pub use ring::Ring;
pub use ring_waiter::RingWaiter;
pub use syscall::BPF_COMMANDS;
use syscall::{ANY, BpfMap, EXIST, LOCK, NOEXIST};
pub use translations::{TranslationLease, Translations};

/// Why there is no fast path here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FastPathUnavailable(String);

impl FastPathUnavailable {
    const REQUIRED_RIGHTS: &str = "; run as root, or with CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN";

    fn from_io_error(what: &str, error: &io::Error) -> Self {
        Self(match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => {
                format!("{what}: not permitted{}", Self::REQUIRED_RIGHTS)
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
    pin_directory: PinDirectory,
    program: OwnedFd,
    tuples: BpfMap,
    flows: BpfMap,
    pinholes: BpfMap,
    barred_port_bits: BpfMap,
    control_port_bits: BpfMap,
    counters: BpfMap,
    /// Processors that this machine may have, each of which counts.
    processor_count: usize,
    ring: Ring,
    attachments: Mutex<Attachments>,
    /// The ports that the program was told not to open, a bit each, where that is known.
    known_barred_ports: Mutex<Option<Vec<u32>>>,
    /// The ports of servers that it was told of, by this daemon.
    known_control_ports: Mutex<BTreeSet<u16>>,
    /// Whether another daemon left it.
    was_taken_over: bool,
    /// No other daemon takes over what is pinned, or removes it, as long as this is open.
    _directory_lock: File,
}

/// How often the program did what, since it was loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FastPathCounts {
    /// Lines judged.
    pub inspected: u64,
    /// Flows handed back to the queue.
    pub handed_back: u64,
    /// Pinholes opened.
    pub opened: u64,
    /// Data connections admitted.
    pub admitted: u64,
    /// Lines not judged since the ring was full.
    pub ring_full: u64,
    /// Lines judged and rewritten.
    pub rewritten: u64,
}

/// Words of 32 ports each.
const PORT_BITMAP_WORDS: u32 = 2048;

impl FastPath {
    /// Loads the program, or takes over what another daemon of this network namespace left pinned below `pins`, a directory
    /// in a bpf file system. Needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN; all else needs CAP_NET_ADMIN at most.
    pub fn load(pins: &Path) -> Result<Self, FastPathUnavailable> {
        program::check_kernel()?;
        let pins = PinDirectory::open(pins, program::program_version())?;
        // The program was pinned last: with it all is there.
        let failed = |error| {
            FastPathUnavailable::from_io_error(
                &format!("use {}", pins.directory().display()),
                &error,
            )
        };
        if pins.pin_path(PROGRAM_NAME).exists()
            && let Ok(left) = Self::open(&pins, pins.lock().map_err(failed)?)
        {
            return Ok(Self { was_taken_over: true, ..left });
        }
        let make = |error| {
            FastPathUnavailable::from_io_error(
                &format!("make {}", pins.directory().display()),
                &error,
            )
        };
        pins.create().map_err(make)?;
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
    fn open(pins: &PinDirectory, used: File) -> Result<Self, FastPathUnavailable> {
        let (what, processors) = match aya::util::nr_cpus() {
            Ok(processors) => ("pinned program", processors),
            Err((what, error)) => return Err(FastPathUnavailable::from_io_error(what, &error)),
        };
        let open = move || {
            let map = |name: &str| BpfMap::open(&pins.pin_path(name), 1);
            let ring = map(RING)?;
            let size = ring.max_entries();
            Ok(Self {
                program: syscall::open_pinned(&pins.pin_path(PROGRAM_NAME))?,
                tuples: map(TUPLES)?,
                flows: map(FLOWS)?,
                pinholes: map(PINHOLES)?,
                barred_port_bits: map(BARRED_PORTS)?,
                control_port_bits: map(CONTROL_PORTS)?,
                counters: BpfMap::open(&pins.pin_path(COUNTERS), processors)?,
                processor_count: processors,
                ring: Ring::open(ring.into(), size)?,
                attachments: Mutex::new(Attachments::open(pins.links()?)?),
                known_barred_ports: Mutex::default(),
                known_control_ports: Mutex::default(),
                was_taken_over: false,
                _directory_lock: used,
                pin_directory: pins.clone(),
            })
        };
        open().map_err(|error| FastPathUnavailable::from_io_error(what, &error))
    }

    /// Whether some interface has the program.
    pub fn is_attached(&self) -> bool {
        lock(&self.attachments).has_any()
    }

    /// Whether another daemon left it, with what it has judged and opened.
    pub fn was_taken_over(&self) -> bool {
        self.was_taken_over
    }

    /// Where it is pinned; [`FastPath::attach`] and [`FastPath::remove`] make and remove files there.
    pub fn directory(&self) -> &Path {
        self.pin_directory.directory()
    }

    /// The names of the interfaces that it was attached to when last looked.
    pub fn interfaces(&self) -> Vec<String> {
        lock(&self.attachments).interface_names().to_vec()
    }

    /// Attaches the program to every Ethernet interface that it is not attached to, and takes it off those that became
    /// ports of another; takes it off all of them some time after its last connection. [`FastPath::hand_over`] attaches it again.
    /// Only on a thread in the namespace in which it was loaded.
    pub fn update_attachments(&self, now: Instant) -> Result<(), FastPathUnavailable> {
        let mut attached = lock(&self.attachments);
        if attached.is_needed() {
            let is_used = self.is_in_use().map_err(|error| {
                FastPathUnavailable::from_io_error("connections judged", &error)
            })?;
            attached.record_use(is_used, now);
        }
        attached.sync_with_interfaces(self.program.as_fd(), &self.pin_directory)
    }

    /// Whether there is a connection that it may judge, or a pinhole that it has open.
    fn is_in_use(&self) -> io::Result<bool> {
        Ok(!self.flows.is_empty()? || !self.list_open_pinholes()?.is_empty())
    }

    /// So many connections can be handed over at a time.
    pub fn max_flows(&self) -> u32 {
        self.flows.max_entries()
    }

    /// Has the program judge what comes on this connection. Attaches it first, if it is not; only on a thread in its namespace.
    pub fn hand_over(&self, flow: &Flow) -> io::Result<()> {
        // Held until the connection is in the map, so that nobody finds the program unused meanwhile.
        let mut attached = lock(&self.attachments);
        attached
            .ensure_attached(self.program.as_fd(), &self.pin_directory)
            .map_err(io::Error::other)?;
        let [from_client, from_server] = flow.tuples;
        self.add_control_port(from_client.destination.port())?;
        self.add_control_port(from_server.source.port())?;
        self.flows.update(&flow.flow.to_ne_bytes(), &flow.to_bytes(), NOEXIST)?;
        for (key, is_server) in flow.tuples.iter().zip([false, true]) {
            let way = layout::tuple_value(flow.flow, is_server);
            if let Err(error) = self.tuples.update(&key.to_bytes(), &way, NOEXIST) {
                self.take_back(flow.flow, flow.tuples)?;
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
        self.control_port_bits.look_up(&word, &mut bits, ANY)?;
        let bits = u32::from_ne_bytes(bits) | bit;
        self.control_port_bits.update(&word, &bits.to_ne_bytes(), ANY)?;
        known.insert(port);
        Ok(())
    }

    /// Has the program judge nothing more of this connection: what it has judged has its record reserved in the ring when
    /// this returns. A pinhole that it has open stays open.
    pub fn take_back(&self, flow: u64, ways: [PacketTuple; 2]) -> io::Result<()> {
        self.stop_inspection(flow)?;
        for way in ways {
            self.delete_tuple(&way.to_bytes(), flow)?;
        }
        self.flows.delete(&flow.to_ne_bytes()).map(drop)
    }

    /// As [`FastPath::take_back`], of all flows, of which nothing else need be known, as of those that another daemon left.
    pub fn take_back_all(&self) -> io::Result<()> {
        let flows = self.flow_ids()?;
        flows.iter().try_for_each(|flow| self.stop_inspection(*flow))?;
        self.tuples.keys()?.iter().try_for_each(|way| self.tuples.delete(way).map(drop))?;
        flows.iter().try_for_each(|flow| self.flows.delete(&flow.to_ne_bytes()).map(drop))
    }

    /// Sets `judged` to 0, so that no line is judged from then on.
    fn stop_inspection(&self, flow: u64) -> io::Result<()> {
        let key = flow.to_ne_bytes();
        let mut value = [0; FLOW];
        if !self.flows.look_up(&key, &mut value, LOCK)? {
            return Ok(());
        }
        value[FLOW_HANDED_OVER].fill(0);
        // What the program changes in between is lost, which does not matter: the flow ends here.
        match self.flows.update(&key, &value, LOCK | EXIST) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            other => other,
        }
    }

    /// Deletes a way if it is that of `flow`.
    fn delete_tuple(&self, key: &[u8], flow: u64) -> io::Result<()> {
        let mut value = [0; TUPLE_VALUE];
        // Only the daemon changes ways.
        if self.tuples.look_up(key, &mut value, ANY)? && read_flow_id(&value) == flow {
            self.tuples.delete(key)?;
        }
        Ok(())
    }

    /// The flows that are handed over, among them those that the program has handed back.
    pub fn flow_ids(&self) -> io::Result<Vec<u64>> {
        let mut flows: Vec<u64> = self.flows.keys()?.iter().map(|key| read_flow_id(key)).collect();
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
        let words: Vec<u32> = (0..PORT_BITMAP_WORDS).map(word).collect();
        let mut barred = lock(&self.known_barred_ports);
        let known = barred.take();
        for (index, word) in (0_u32..).zip(&words) {
            let is_known = known.as_ref().and_then(|known| known.get(index as usize)) == Some(word);
            if !is_known {
                self.barred_port_bits.update(&index.to_ne_bytes(), &word.to_ne_bytes(), ANY)?;
            }
        }
        *barred = Some(words);
        Ok(())
    }

    /// Keeps the program from opening this pinhole, as long as it is not [released](FastPath::release): another one holds it.
    /// `false` if the program has it open. It may be reserved already, as by a daemon before.
    pub fn reserve_pinhole(&self, initiator: Ipv4Addr, arrival: SocketAddrV4) -> io::Result<bool> {
        let key = pinhole_key(initiator, arrival);
        match self.pinholes.update(&key, &[0; PINHOLE], NOEXIST) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                let mut value = [0; PINHOLE];
                Ok(self.pinholes.look_up(&key, &mut value, ANY)? && read_flow_id(&value) == 0)
            }
            other => other.map(|()| true),
        }
    }

    /// Ends a reservation; a pinhole of the program stays.
    pub fn release_pinhole(&self, initiator: Ipv4Addr, arrival: SocketAddrV4) -> io::Result<()> {
        self.delete_pinhole_if(&pinhole_key(initiator, arrival), |flow, _| flow == 0)
    }

    /// Closes the pinhole that this step of this flow opened, unless it was consumed.
    pub fn close_pinhole(
        &self,
        initiator: Ipv4Addr,
        arrival: SocketAddrV4,
        flow: u64,
        step: u32,
    ) -> io::Result<()> {
        let key = pinhole_key(initiator, arrival);
        self.delete_pinhole_if(&key, |found, opened| (found, opened) == (flow, step))
    }

    /// Closes all pinholes, and ends all reservations, but for those that `is_kept` knows by initiator, arrival, flow and step.
    /// A reservation is of flow 0.
    pub fn retain_pinholes(
        &self,
        is_kept: impl Fn(Ipv4Addr, SocketAddrV4, u64, u32) -> bool,
    ) -> io::Result<()> {
        self.pinholes.keys()?.iter().try_for_each(|key| {
            let Some((initiator, arrival)) = read_pinhole_key(key) else { return Ok(()) };
            self.delete_pinhole_if(key, |flow, step| !is_kept(initiator, arrival, flow, step))
        })
    }

    /// The pinholes that it has open, and in what time each closes by itself.
    pub fn list_open_pinholes(&self) -> io::Result<Vec<(Ipv4Addr, SocketAddrV4, Duration)>> {
        let clock = clock_gettime(ClockId::Monotonic);
        let now = Duration::new(clock.tv_sec as u64, clock.tv_nsec as u32); // both count up from 0
        let mut open = Vec::new();
        for key in self.pinholes.keys()? {
            let mut value = [0; PINHOLE];
            // It may be gone by now.
            if !self.pinholes.look_up(&key, &mut value, ANY)? || read_flow_id(&value) == 0 {
                continue;
            }
            let left = Duration::from_nanos(read_pinhole_deadline(&value)).saturating_sub(now);
            if let (Some((initiator, arrival)), false) = (read_pinhole_key(&key), left.is_zero()) {
                open.push((initiator, arrival, left));
            }
        }
        Ok(open)
    }

    /// Deletes a pinhole if it is of the flow and step that `is_it` knows.
    fn delete_pinhole_if(&self, key: &[u8], is_it: impl Fn(u64, u32) -> bool) -> io::Result<()> {
        let mut value = [0; PINHOLE];
        let is_that = |value: &[u8; PINHOLE]| is_it(read_flow_id(value), read_pinhole_line(value));
        // The program may consume it and open another at any moment.
        if self.pinholes.look_up(key, &mut value, ANY)?
            && is_that(&value)
            && self.pinholes.look_up_and_delete(key, &mut value)?
            && !is_that(&value)
        {
            self.pinholes.update(key, &value, NOEXIST)?;
        }
        Ok(())
    }

    /// What the program counted since it was loaded.
    pub fn counters(&self) -> io::Result<FastPathCounts> {
        let mut sums = [0; 6];
        for (index, sum) in (0_u32..).zip(&mut sums) {
            let mut values = vec![0; self.processor_count * 8];
            self.counters.look_up(&index.to_ne_bytes(), &mut values, ANY)?;
            *sum = values.as_chunks().0.iter().map(|value| u64::from_ne_bytes(*value)).sum();
        }
        let [judged, handed_back, opened, admitted, no_room, rewritten] = sums;
        Ok(FastPathCounts {
            inspected: judged,
            handed_back,
            opened,
            admitted,
            ring_full: no_room,
            rewritten,
        })
    }

    /// The lines that it judged.
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// Detaches the program, and removes it with its maps and pins.
    pub fn remove(&self) -> io::Result<()> {
        // All are tried: what is detached judges nothing, whatever becomes of its pin.
        let removed = lock(&self.attachments).detach_all();
        self.pin_directory.remove()?;
        self.pin_directory.remove_root();
        removed
    }
}

/// Whether daemons of this network namespace left something pinned below `root`.
pub fn has_pinned_state(root: &Path) -> bool {
    PinDirectory::exists_for_namespace(root).unwrap_or(false)
}

/// Removes what daemons of this network namespace left pinned below `root`: none is to run any more.
pub fn remove_pinned_state(root: &Path) -> io::Result<()> {
    PinDirectory::remove_all(root)
}

/// A panic leaves nothing half done that the next call would not find out.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
