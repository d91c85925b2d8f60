//! The fast path: a BPF program at the interfaces inspects the lines of control connections that the daemon has handed
//! over, and shares maps with the daemon.
//!
//! This module knows what the maps hold. It does not know FTP, nor why a connection is handed over.
//!
//! Program, maps and links are pinned, so they stay in the kernel when the daemon ends. The next daemon takes them
//! over; [`FastPath::remove`] removes them.
//!
//! | file | purpose |
//! | --- | --- |
//! | `program/` | the program, in C |
//! | `layout` | keys and values of the maps |
//! | `program` | loads the program, by aya |
//! | `pin_directory` | the directory with the pinned program, maps and links |
//! | `attachments` | the interfaces that the program is attached to |
//! | `interfaces` | the interfaces that the program can be attached to, and the others |
//! | `ring` | the ring buffer with the inspected lines |
//! | `ring_waiter` | waits until the ring fills |
//! | `translations` | translations of the data connections that the program admits |
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
pub use attachments::OtherInterfaces;
pub use layout::{DialogueState, Flow, LONGEST_LINE, LineRecord, PacketTuple};
use layout::{
    FLOW, FLOW_HANDED_OVER, PINHOLE, TUPLE_VALUE, pinhole_key, read_flow_id, read_pinhole_deadline,
    read_pinhole_key, read_pinhole_line, set_pinhole_deadline,
};
pub use pin_directory::is_bpf_file_system;
use pin_directory::{PROGRAM_NAME, PinDirectory, lock_namespace};
pub use program::PROGRAM;
use program::{
    BARRED_PORTS, CONTROL_PORTS, COUNTERS, FLOWS, HEARTBEAT, PINHOLES, READMISSION_START, RING,
    RULES_PINHOLES, TUPLES,
};
pub use ring::Ring;
pub use ring_waiter::RingWaiter;
pub use syscall::BPF_COMMANDS;
use syscall::{ANY, BpfMap, EXIST, LOCK, NOEXIST};
pub use translations::{TranslationLease, Translations};

/// Why the fast path cannot run here.
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

/// The loaded program of one network namespace, with its maps. Threads may share it.
///
/// The program stays in the kernel when this is dropped.
#[derive(Debug)]
pub struct FastPath {
    pin_directory: PinDirectory,
    program: OwnedFd,
    tuples: BpfMap,
    flows: BpfMap,
    pinholes: BpfMap,
    rules_pinholes: BpfMap,
    barred_port_bits: BpfMap,
    control_port_bits: BpfMap,
    counters: BpfMap,
    heartbeat: BpfMap,
    readmission_start: BpfMap,
    /// Number of possible processors. Each has its own value of every counter.
    processor_count: usize,
    ring: Ring,
    attachments: Mutex<Attachments>,
    /// The bitmap of barred ports, as this daemon wrote it last; `None` before, or if writing it failed.
    known_barred_ports: Mutex<Option<Vec<u32>>>,
    /// Ports that this daemon has put into the map of control ports.
    known_control_ports: Mutex<BTreeSet<u16>>,
    /// Whether an earlier daemon loaded the program.
    was_taken_over: bool,
    /// Lock on the network namespace. As long as this and the pin directory are open, no other daemon takes over the
    /// program or removes the pins.
    _namespace_lock: File,
}

/// The program's counters, since it was loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FastPathCounts {
    /// Inspected packets that the program let pass with a mark, including retransmissions.
    pub inspected: u64,
    /// Flows handed back to the queue.
    pub handed_back: u64,
    /// Pinholes opened.
    pub opened: u64,
    /// Data connections admitted.
    pub admitted: u64,
    /// Lines that were not inspected because the ring was full.
    pub ring_full: u64,
    /// Inspected lines that were rewritten, including retransmissions.
    pub rewritten: u64,
}

/// Number of 32-bit words in a bitmap of all ports.
const PORT_BITMAP_WORDS: u32 = 2048;

impl FastPath {
    /// Takes over the program that an earlier daemon of this network namespace left pinned below `root`, or loads it.
    /// `root` is a directory in a BPF file system. Loading needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN; all other
    /// methods need CAP_NET_ADMIN at most.
    pub fn load(root: &Path) -> Result<Self, FastPathUnavailable> {
        program::check_kernel()?;
        let namespace_lock = lock_namespace().map_err(|error| {
            FastPathUnavailable::from_io_error("lock the network namespace", &error)
        })?;
        let pins = PinDirectory::open(root, program::program_version())?;
        if pins.has_program()
            && let Ok(taken_over) = Self::open(&pins, namespace_lock.try_clone())
        {
            return Ok(Self { was_taken_over: true, ..taken_over });
        }
        pins.empty().map_err(|error| {
            let what = format!("empty {}", pins.path().display());
            FastPathUnavailable::from_io_error(&what, &error)
        })?;
        let loaded = program::load(&pins).and_then(|()| {
            let was_taken_over = program::adopt_attached(&pins).map_err(|error| {
                FastPathUnavailable::from_io_error("take over the attached program", &error)
            })?;
            Ok(Self { was_taken_over, ..Self::open(&pins, Ok(namespace_lock))? })
        });
        if loaded.is_err()
            && let Err(error) = pins.remove()
        {
            tracing::warn!("cannot remove {}: {error}", pins.path().display());
        }
        loaded
    }

    /// Opens the pinned program and maps, under the locks of this daemon.
    fn open(
        pins: &PinDirectory,
        namespace_lock: io::Result<File>,
    ) -> Result<Self, FastPathUnavailable> {
        let (what, processors) = match aya::util::nr_cpus() {
            Ok(processors) => ("open the pinned program", processors),
            Err((what, error)) => return Err(FastPathUnavailable::from_io_error(what, &error)),
        };
        let open = move || {
            let map = |name: &str| BpfMap::open(&pins.pin_path(name), 1);
            let ring = map(RING)?;
            let size = ring.max_entries();
            let program = syscall::open_pinned(&pins.pin_path(PROGRAM_NAME))?;
            Ok(Self {
                attachments: Mutex::new(Attachments::open(
                    program.as_fd(),
                    pins.links()?,
                    pins.is_lasting()? || !program::can_be_found(pins),
                )?),
                program,
                tuples: map(TUPLES)?,
                flows: map(FLOWS)?,
                pinholes: map(PINHOLES)?,
                rules_pinholes: map(RULES_PINHOLES)?,
                barred_port_bits: map(BARRED_PORTS)?,
                control_port_bits: map(CONTROL_PORTS)?,
                counters: BpfMap::open(&pins.pin_path(COUNTERS), processors)?,
                heartbeat: map(HEARTBEAT)?,
                readmission_start: map(READMISSION_START)?,
                processor_count: processors,
                ring: Ring::open(ring.into(), size)?,
                known_barred_ports: Mutex::default(),
                known_control_ports: Mutex::default(),
                was_taken_over: false,
                _namespace_lock: namespace_lock?,
                pin_directory: pins.clone(),
            })
        };
        open().map_err(|error| FastPathUnavailable::from_io_error(what, &error))
    }

    /// Whether the program is attached to any interface.
    pub fn is_attached(&self) -> bool {
        lock(&self.attachments).has_any()
    }

    /// Whether the program was taken over from an earlier daemon. Then its maps and the ring may have entries.
    pub fn was_taken_over(&self) -> bool {
        self.was_taken_over
    }

    /// The directory of the pins, for messages.
    pub fn directory(&self) -> &Path {
        self.pin_directory.path()
    }

    /// The names of the interfaces that the program was attached to at the last [`FastPath::update_attachments`].
    pub fn interfaces(&self) -> Vec<String> {
        lock(&self.attachments).interface_names().to_vec()
    }

    /// The names of the bridges, and of the interfaces upon them, for whose packets the rules run before the program.
    pub fn filtered_early(&self) -> Vec<String> {
        lock(&self.attachments).filtered_early().to_vec()
    }

    /// Reads which interfaces there are. Returns those that cannot have the program; they keep it until the next
    /// [`FastPath::update_attachments`], because it may have a pinhole there.
    pub fn find_other_interfaces(&self) -> Result<OtherInterfaces, FastPathUnavailable> {
        lock(&self.attachments).find_other_interfaces()
    }

    /// Attaches the program to each new Ethernet interface that was found, and detaches it from those that became ports
    /// of another one. Some time after the last connection and pinhole it detaches the program from all interfaces;
    /// [`FastPath::hand_over`] attaches it again. Call this only on a thread in the namespace in which the program was
    /// loaded.
    pub fn update_attachments(&self, now: Instant) -> Result<(), FastPathUnavailable> {
        let mut attachments = lock(&self.attachments);
        if attachments.is_needed() {
            let is_in_use = self.is_in_use().map_err(|error| {
                FastPathUnavailable::from_io_error("read the map of connections", &error)
            })?;
            attachments.record_use(is_in_use, now);
        }
        attachments.sync_with_interfaces(self.program.as_fd(), &self.pin_directory)
    }

    /// Whether a connection is handed over, or the program has an open pinhole.
    fn is_in_use(&self) -> io::Result<bool> {
        Ok(!self.flows.is_empty()? || !self.list_open_pinholes()?.is_empty())
    }

    /// How many connections can be handed over at a time.
    pub fn max_flows(&self) -> u32 {
        self.flows.max_entries()
    }

    /// Hands a connection over to the program, and attaches the program first if necessary. Call this only on a
    /// thread in the namespace in which the program was loaded.
    pub fn hand_over(&self, flow: &Flow) -> io::Result<()> {
        // The lock is held until the connection is in the map. Otherwise another thread could find the program unused
        // and detach it.
        let mut attachments = lock(&self.attachments);
        attachments
            .ensure_attached(self.program.as_fd(), &self.pin_directory)
            .map_err(io::Error::other)?;
        let [from_client, from_server] = flow.tuples;
        self.add_control_port(from_client.destination.port())?;
        self.add_control_port(from_server.source.port())?;
        self.flows.update(&flow.id.to_ne_bytes(), &flow.to_bytes(), NOEXIST)?;
        for (key, is_server) in flow.tuples.iter().zip([false, true]) {
            let value = layout::tuple_value(flow.id, is_server);
            if let Err(error) = self.tuples.update(&key.to_bytes(), &value, NOEXIST) {
                self.take_back(flow.id, flow.tuples)?;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Has the program look up packets to or from this port.
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

    /// Takes a connection back from the program. When this returns, the record of every inspected line is reserved in
    /// the ring. The program's pinhole stays open, with its translations.
    pub fn take_back(&self, flow: u64, tuples: [PacketTuple; 2]) -> io::Result<()> {
        self.stop_inspection(flow)?;
        for tuple in tuples {
            self.delete_tuple(&tuple.to_bytes(), flow)?;
        }
        self.flows.delete(&flow.to_ne_bytes()).map(drop)
    }

    /// Takes back all connections, also those that an earlier daemon handed over.
    pub fn take_back_all(&self) -> io::Result<()> {
        let flows = self.flow_ids()?;
        flows.iter().try_for_each(|flow| self.stop_inspection(*flow))?;
        self.tuples.keys()?.iter().try_for_each(|tuple| self.tuples.delete(tuple).map(drop))?;
        flows.iter().try_for_each(|flow| self.flows.delete(&flow.to_ne_bytes()).map(drop))
    }

    /// Sets `handed_over` to 0, so that the program inspects no line after this.
    fn stop_inspection(&self, flow: u64) -> io::Result<()> {
        let key = flow.to_ne_bytes();
        let mut value = [0; FLOW];
        if !self.flows.look_up(&key, &mut value, LOCK)? {
            return Ok(());
        }
        value[FLOW_HANDED_OVER].fill(0);
        // A change that the program makes between lookup and update is lost. That does not matter, because the flow
        // ends here.
        match self.flows.update(&key, &value, LOCK | EXIST) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            other => other,
        }
    }

    /// Deletes a tuple if it belongs to `flow`.
    fn delete_tuple(&self, key: &[u8], flow: u64) -> io::Result<()> {
        let mut value = [0; TUPLE_VALUE];
        // Only the daemon changes tuples, so nothing changes between lookup and deletion.
        if self.tuples.look_up(key, &mut value, ANY)? && read_flow_id(&value) == flow {
            self.tuples.delete(key)?;
        }
        Ok(())
    }

    /// The IDs of all flows in the map, including those that the program has handed back.
    pub fn flow_ids(&self) -> io::Result<Vec<u64>> {
        let mut flows: Vec<u64> = self.flows.keys()?.iter().map(|key| read_flow_id(key)).collect();
        flows.sort_unstable();
        flows.dedup();
        Ok(flows)
    }

    /// Has the program open no pinholes at these ports.
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

    /// Reserves a pinhole: the program does not open it until it is [released](FastPath::release_pinhole). Returns
    /// `false` if the program has it open. A pinhole may be reserved already, as by an earlier daemon.
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

    /// Ends a reservation. A pinhole that the program opened stays open.
    pub fn release_pinhole(&self, initiator: Ipv4Addr, arrival: SocketAddrV4) -> io::Result<()> {
        self.delete_pinhole_if(&pinhole_key(initiator, arrival), |flow, _| flow == 0).map(drop)
    }

    /// Closes the pinhole that this line of this flow opened, unless it was consumed. Returns whether it was there.
    pub fn close_pinhole(
        &self,
        initiator: Ipv4Addr,
        arrival: SocketAddrV4,
        flow: u64,
        line: u32,
    ) -> io::Result<bool> {
        let key = pinhole_key(initiator, arrival);
        self.delete_pinhole_if(&key, |owner, opened_by| (owner, opened_by) == (flow, line))
    }

    /// Keeps a pinhole of this flow and line open for this time from now, if it is open. Returns whether it is.
    pub fn renew_pinhole(
        &self,
        initiator: Ipv4Addr,
        arrival: SocketAddrV4,
        (flow, line): (u64, u32),
        lifetime: Duration,
    ) -> io::Result<bool> {
        let (key, mut value) = (pinhole_key(initiator, arrival), [0; PINHOLE]);
        if !self.pinholes.look_up(&key, &mut value, ANY)?
            || (read_flow_id(&value), read_pinhole_line(&value)) != (flow, line)
        {
            return Ok(false);
        }
        set_pinhole_deadline(&mut value, deadline_after(lifetime));
        // The program may admit the connection meanwhile, and delete the pinhole.
        match self.pinholes.update(&key, &value, EXIST) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            renewed => renewed.map(|()| true),
        }
    }

    /// Has the program remember the SYN that a pinhole of the rules admits within this time from now. Then the
    /// retransmission of that SYN consumes no pinhole of the program.
    pub fn record_rules_pinhole(
        &self,
        initiator: Ipv4Addr,
        arrival: SocketAddrV4,
        lifetime: Duration,
    ) -> io::Result<()> {
        let (key, deadline) = (pinhole_key(initiator, arrival), deadline_after(lifetime));
        self.rules_pinholes.update(&key, &deadline.to_ne_bytes(), ANY)
    }

    /// Closes all pinholes and ends all reservations, except those for which `is_retained` returns true. Its
    /// arguments are initiator, arrival, flow and line. A reservation has flow 0.
    pub fn retain_pinholes(
        &self,
        is_retained: impl Fn(Ipv4Addr, SocketAddrV4, u64, u32) -> bool,
    ) -> io::Result<()> {
        self.pinholes.keys()?.iter().try_for_each(|key| {
            let Some((initiator, arrival)) = read_pinhole_key(key) else { return Ok(()) };
            self.delete_pinhole_if(key, |flow, line| !is_retained(initiator, arrival, flow, line))
                .map(drop)
        })
    }

    /// The IDs of all flows of which the program has a pinhole.
    pub fn flows_with_pinholes(&self) -> io::Result<BTreeSet<u64>> {
        let mut flows = BTreeSet::new();
        for key in self.pinholes.keys()? {
            let mut value = [0; PINHOLE];
            if self.pinholes.look_up(&key, &mut value, ANY)? {
                flows.insert(read_flow_id(&value));
            }
        }
        Ok(flows)
    }

    /// Has the program open pinholes for this time from now, as long as a daemon is expected to read its lines.
    pub fn set_heartbeat(&self, left: Duration) -> io::Result<()> {
        let deadline = deadline_after(left);
        self.heartbeat.update(&0_u32.to_ne_bytes(), &deadline.to_ne_bytes(), ANY)
    }

    /// Has the program admit no SYN again that it admitted before. It does so if a SYN has no answer, because the rules
    /// or a filter may have dropped it.
    pub fn end_readmissions(&self) -> io::Result<()> {
        let now = deadline_after(Duration::ZERO);
        self.readmission_start.update(&0_u32.to_ne_bytes(), &now.to_ne_bytes(), ANY)
    }

    /// The open pinholes of the program: initiator, arrival, and the time until the deadline.
    pub fn list_open_pinholes(&self) -> io::Result<Vec<(Ipv4Addr, SocketAddrV4, Duration)>> {
        let now = monotonic_now();
        let mut open = Vec::new();
        for key in self.pinholes.keys()? {
            let mut value = [0; PINHOLE];
            // The program may have deleted it meanwhile.
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

    /// Deletes a pinhole if `is_it` returns true for its flow and line. Returns whether it did.
    fn delete_pinhole_if(&self, key: &[u8], is_it: impl Fn(u64, u32) -> bool) -> io::Result<bool> {
        let mut value = [0; PINHOLE];
        let is_match = |value: &[u8; PINHOLE]| is_it(read_flow_id(value), read_pinhole_line(value));
        // The program may delete this pinhole and open another one with the same key at any moment. So the deleted
        // value is checked, and put back if it is another one.
        if !self.pinholes.look_up(key, &mut value, ANY)?
            || !is_match(&value)
            || !self.pinholes.look_up_and_delete(key, &mut value)?
        {
            return Ok(false);
        }
        let is_deleted = is_match(&value);
        if !is_deleted {
            self.pinholes.update(key, &value, NOEXIST)?;
        }
        Ok(is_deleted)
    }

    /// The program's counters since it was loaded, summed over all processors.
    pub fn counters(&self) -> io::Result<FastPathCounts> {
        let mut sums = [0; 6];
        for (index, sum) in (0_u32..).zip(&mut sums) {
            let mut values = vec![0; self.processor_count * 8];
            self.counters.look_up(&index.to_ne_bytes(), &mut values, ANY)?;
            *sum = values.as_chunks().0.iter().map(|value| u64::from_ne_bytes(*value)).sum();
        }
        let [inspected, handed_back, opened, admitted, ring_full, rewritten] = sums;
        Ok(FastPathCounts { inspected, handed_back, opened, admitted, ring_full, rewritten })
    }

    /// The ring with the inspected lines.
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// Detaches the program, and removes it with its maps and pins.
    pub fn remove(&self) -> io::Result<()> {
        // All links are detached, even if one fails: a detached program inspects nothing, even if its pin stays.
        let removed = lock(&self.attachments).detach_all(self.program.as_fd());
        self.pin_directory.remove()?;
        self.pin_directory.remove_root();
        removed
    }
}

/// Whether a daemon of this network namespace has pins below `root`.
pub fn has_pins(root: &Path) -> bool {
    PinDirectory::exists_for_namespace(root).unwrap_or(false)
}

/// Whether an earlier daemon of this network namespace left pins below `root`, or its program attached.
pub fn has_leftovers(root: &Path) -> bool {
    has_pins(root) || program::is_any_attached()
}

/// Removes the pins that earlier daemons of this network namespace left below `root`, and detaches their programs. An
/// error if a daemon uses them.
pub fn remove_leftovers(root: &Path) -> io::Result<()> {
    let _namespace_lock = lock_namespace()?;
    PinDirectory::remove_all(root)?;
    program::detach_all()
}

/// What `bpf_ktime_get_ns` will return after this time.
fn deadline_after(time: Duration) -> u64 {
    u64::try_from((monotonic_now() + time).as_nanos()).unwrap_or(u64::MAX)
}

/// What `bpf_ktime_get_ns` returns.
fn monotonic_now() -> Duration {
    let clock = clock_gettime(ClockId::Monotonic);
    Duration::new(clock.tv_sec as u64, clock.tv_nsec as u32) // neither is negative
}

/// Locks a mutex, even if a thread panicked with it. That is safe, because each call finds out itself what the kernel
/// has.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
