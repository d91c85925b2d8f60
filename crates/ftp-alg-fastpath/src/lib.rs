//! The fast path of ftp-alg: a BPF program at the interfaces inspects the lines of control connections that the daemon
//! has handed over, and shares maps with the daemon.
//!
//! This crate knows what the maps hold. It does not know FTP, nor why a connection is handed over, nor how interfaces
//! are listed: its callers pass plain values.
//!
//! Program, maps and links are pinned, so they stay in the kernel when the daemon ends. The next daemon takes them
//! over; [`FastPath::remove`] removes them.
//!
//! | file | purpose |
//! | --- | --- |
//! | `program/` | the program, in C |
//! | [`layout`] | keys and values of the maps |
//! | `program` | loads the program, by aya. `no_program` stands for it in a build without the program |
//! | `pin_directory` | the directory with the pinned program, maps and links |
//! | `attachments` | the interfaces that the program is attached to |
//! | `ring` | the ring buffer with the inspected lines |
//! | `syscall` | bpf(2), and the process that loads the program |
//! | `unavailable` | why the fast path cannot run |

mod attachments;
pub mod layout;
mod pin_directory;
#[cfg_attr(not(feature = "program"), path = "no_program.rs")]
mod program;
mod ring;
mod syscall;
mod unavailable;

use std::{
    collections::BTreeSet,
    fs::File,
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use rustix::time::{ClockId, clock_gettime};

use attachments::Attachments;
pub use attachments::{Interface, Interfaces, ListInterfaces, UsableInterfaces};
use layout::{Flow, PacketTuple, Pinhole, PinholeKey, TupleValue, counter, side};
pub use pin_directory::is_bpf_file_system;
use pin_directory::{PROGRAM_NAME, PinDirectory, lock_namespace};
pub use program::PROGRAM;
pub use ring::Ring;
pub use syscall::BPF_COMMANDS;
use syscall::{ANY, BpfMap, ChildProcess, EXIST, LOCK, NOEXIST};
pub use unavailable::FastPathUnavailable;
use unavailable::OrUnavailable;

/// Whether this build has the program.
pub const HAS_PROGRAM: bool = cfg!(feature = "program");

/// The loaded program of one network namespace, with its maps. Threads may share it.
///
/// The program stays in the kernel when this is dropped.
#[derive(Debug)]
pub struct FastPath {
    pin_directory: PinDirectory,
    program: OnceLock<OwnedFd>,
    /// The process that loads the program in [`FastPath::finish_loading`].
    loading: Mutex<Option<ChildProcess>>,
    tuples: BpfMap,
    flows: BpfMap,
    pinholes: BpfMap,
    rules_pinholes: BpfMap,
    barred_port_bits: BpfMap,
    control_port_bits: BpfMap,
    /// Each processor has its own value of every counter.
    counters: BpfMap,
    heartbeat: BpfMap,
    readmission_start: BpfMap,
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
}

/// Number of 32-bit words in a bitmap of all ports.
const PORT_BITMAP_WORDS: u32 = 2048;

impl FastPath {
    /// Takes over the program that an earlier daemon of this network namespace left pinned below `root`, or loads it.
    /// `root` is a directory in a BPF file system. Loading needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN; all other
    /// methods need CAP_NET_ADMIN at most.
    pub fn load(root: &Path, list_interfaces: ListInterfaces) -> Result<Self, FastPathUnavailable> {
        Self::load_or_begin(root, list_interfaces, false)
    }

    /// As [`FastPath::load`], but if no earlier daemon left the program, a child process loads it in
    /// [`FastPath::finish_loading`]. Only for a process with one thread.
    pub fn begin_loading(
        root: &Path,
        list_interfaces: ListInterfaces,
    ) -> Result<Self, FastPathUnavailable> {
        Self::load_or_begin(root, list_interfaces, true)
    }

    fn load_or_begin(
        root: &Path,
        list_interfaces: ListInterfaces,
        in_background: bool,
    ) -> Result<Self, FastPathUnavailable> {
        let processors = program::check_kernel()?;
        let namespace_lock = lock_namespace().or_unavailable("lock the network namespace")?;
        let pins = PinDirectory::open(root, program::program_version())?;
        let open = |namespace_lock: io::Result<File>| {
            Self::open(&pins, processors, list_interfaces, namespace_lock)
                .or_unavailable("open the pinned program")
        };
        if pins.has_program()
            && let Ok(taken_over) = open(namespace_lock.try_clone())
        {
            return Ok(Self { was_taken_over: true, ..taken_over });
        }
        pins.empty().or_unavailable(format_args!("empty {}", pins.path().display()))?;
        let adopted = program::adopt_attached(&pins, list_interfaces)
            .or_unavailable("take over the attached program");
        let loaded = adopted.and_then(|was_taken_over| {
            if was_taken_over {
                return Ok(Self { was_taken_over, ..open(Ok(namespace_lock))? });
            }
            let prepared = program::prepare(&pins)?;
            if !in_background {
                prepared.load()?;
                return open(Ok(namespace_lock));
            }
            let loading = ChildProcess::start(pins.as_fd(), || prepared.load())
                .or_unavailable("start a process that loads the program")?;
            Ok(Self { loading: Mutex::new(Some(loading)), ..open(Ok(namespace_lock))? })
        });
        if loaded.is_err()
            && let Err(error) = pins.remove()
        {
            tracing::warn!("cannot remove {}: {error}", pins.path().display());
        }
        loaded
    }

    /// Opens the pinned program, if it is pinned, and the maps, under the locks of this daemon.
    fn open(
        pins: &PinDirectory,
        processors: usize,
        list_interfaces: ListInterfaces,
        namespace_lock: io::Result<File>,
    ) -> io::Result<Self> {
        let map = |name: &str| BpfMap::open(&pins.pin_path(name), 1);
        let ring = map("ring")?;
        let program = OnceLock::new();
        if pins.has_program() {
            let _ = program.set(syscall::open_pinned(&pins.pin_path(PROGRAM_NAME))?);
        }
        Ok(Self {
            attachments: Mutex::new(Attachments::open(
                program.get().map(OwnedFd::as_fd),
                pins.links()?,
                pins.is_lasting()? || !program::can_be_found(pins),
                list_interfaces,
            )?),
            program,
            loading: Mutex::default(),
            tuples: map("tuples")?,
            flows: map("flows")?,
            pinholes: map("pinholes")?,
            rules_pinholes: map("rules_pinholes")?,
            barred_port_bits: map("barred_ports")?,
            control_port_bits: map("control_ports")?,
            counters: BpfMap::open(&pins.pin_path("counters"), processors)?,
            heartbeat: map("heartbeat")?,
            readmission_start: map("readmission_start")?,
            ring: Ring::open(ring.as_fd(), ring.max_entries())?,
            known_barred_ports: Mutex::default(),
            known_control_ports: Mutex::default(),
            was_taken_over: false,
            _namespace_lock: namespace_lock?,
            pin_directory: pins.clone(),
        })
    }

    /// Whether the program is loaded. Until then no connection can be handed over.
    pub fn is_loaded(&self) -> bool {
        self.program.get().is_some()
    }

    /// Has the child process load the program, and waits for that. The error says why it cannot. The kernel verifies the
    /// program for a tenth of a second, and transactions of nf_tables may have to wait meanwhile.
    pub fn finish_loading(&self) -> Result<(), FastPathUnavailable> {
        let mut loading = lock(&self.loading);
        if let Some(child) = loading.take() {
            child.finish().map_err(FastPathUnavailable)?;
            let opened = syscall::open_pinned(&self.pin_directory.pin_path(PROGRAM_NAME));
            let _ = self.program.set(opened.or_unavailable("open the pinned program")?);
        }
        Ok(())
    }

    fn program(&self) -> io::Result<BorrowedFd<'_>> {
        let program = self.program.get().map(OwnedFd::as_fd);
        program.ok_or_else(|| io::Error::other("the program is not loaded"))
    }

    /// Whether the program is attached to any interface.
    pub fn is_attached(&self) -> bool {
        !lock(&self.attachments).attached.is_empty()
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
        lock(&self.attachments).interface_names.clone()
    }

    /// The names of the bridges, and of the interfaces upon them, for whose packets the rules run before the program.
    pub fn filtered_early(&self) -> Vec<String> {
        let attachments = lock(&self.attachments);
        attachments.interfaces.filtered_early.iter().map(|one| one.name.clone()).collect()
    }

    /// The interfaces behind whose program something may change packet marks, and what that is.
    pub fn mark_writers(&self) -> Vec<String> {
        let attachments = lock(&self.attachments);
        let writers = attachments.interfaces.mark_writers.iter();
        writers.map(|(interface, what)| format!("{}: {what}", interface.name)).collect()
    }

    /// Reads which interfaces there are. Returns those that can have the program; others keep it until the next
    /// [`FastPath::update_attachments`], because it may have a pinhole there.
    pub fn find_usable_interfaces(&self) -> Result<UsableInterfaces, FastPathUnavailable> {
        let program = self.program().or_unavailable("read what is attached")?;
        lock(&self.attachments).find_usable_interfaces(program)
    }

    /// Attaches the program to each new interface that was found, and detaches it from those that became ports of another
    /// one. Some time after the last connection and pinhole it detaches the program from all interfaces;
    /// [`FastPath::hand_over`] attaches it again. Call this only on a thread in the namespace in which the program was
    /// loaded.
    pub fn update_attachments(&self, now: Instant) -> Result<(), FastPathUnavailable> {
        let mut attachments = lock(&self.attachments);
        if attachments.is_needed {
            let is_in_use = self.is_in_use().or_unavailable("read the map of connections")?;
            attachments.note_use(is_in_use, now);
        }
        let program = self.program().or_unavailable("attach the program")?;
        attachments.sync_with_interfaces(program, &self.pin_directory)
    }

    /// Whether a connection is handed over, or the program has an open pinhole.
    fn is_in_use(&self) -> io::Result<bool> {
        Ok(self.flows.next_key::<8>(None)?.is_some() || !self.list_open_pinholes()?.is_empty())
    }

    /// How many connections can be handed over at a time.
    pub fn max_flows(&self) -> u32 {
        self.flows.max_entries()
    }

    /// Hands a connection over to the program, and attaches the program first if necessary. `tuples` are those of the
    /// packets that client and server send. Call this only on a thread in the namespace in which the program was
    /// loaded.
    pub fn hand_over(&self, id: u64, tuples: [PacketTuple; 2], flow: &Flow) -> io::Result<()> {
        // The lock is held until the connection is in the map. Otherwise another thread could find the program unused
        // and detach it.
        let mut attachments = lock(&self.attachments);
        attachments
            .ensure_attached(self.program()?, &self.pin_directory)
            .map_err(io::Error::other)?;
        let [from_client, from_server] = tuples;
        self.add_control_port(from_client.destination_port)?;
        self.add_control_port(from_server.source_port)?;
        self.flows.update(&id.to_ne_bytes(), &flow.to_bytes(), NOEXIST)?;
        for (tuple, side) in tuples.iter().zip([side::CLIENT, side::SERVER]) {
            let value = TupleValue { flow: id, side };
            if let Err(error) = self.tuples.update(&tuple.to_bytes(), &value.to_bytes(), NOEXIST) {
                self.take_back(id, tuples)?;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Replaces the flow of a connection that the program has, also if it has returned it. Returns `false` if it has not.
    pub fn replace(&self, id: u64, flow: &Flow) -> io::Result<bool> {
        match self.flows.update(&id.to_ne_bytes(), &flow.to_bytes(), LOCK | EXIST) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            replaced => replaced.map(|()| true),
        }
    }

    /// Tells the program to look up packets to or from this port.
    fn add_control_port(&self, port: u16) -> io::Result<()> {
        let mut known = lock(&self.known_control_ports);
        if known.contains(&port) {
            return Ok(());
        }
        let (word, bit) = (u32::from(port / 32).to_ne_bytes(), 1_u32 << (port % 32));
        let bits = self.control_port_bits.look_up(&word, ANY)?.map_or(0, u32::from_ne_bytes) | bit;
        self.control_port_bits.update(&word, &bits.to_ne_bytes(), ANY)?;
        known.insert(port);
        Ok(())
    }

    /// Takes a connection back from the program, and [stops](Self::stop_inspection) it. The program's pinhole stays open,
    /// with its translations.
    pub fn take_back(&self, flow: u64, tuples: [PacketTuple; 2]) -> io::Result<()> {
        self.stop_inspection(flow)?;
        for tuple in tuples {
            let key = tuple.to_bytes();
            // Only the daemon changes tuples, so nothing changes between lookup and deletion.
            let owner = self.tuples.look_up(&key, ANY)?.map(|value| TupleValue::from_bytes(&value));
            if owner.is_some_and(|owner| owner.flow == flow) {
                self.tuples.delete(&key)?;
            }
        }
        self.flows.delete(&flow.to_ne_bytes()).map(drop)
    }

    /// Takes back all connections, also those that an earlier daemon handed over.
    pub fn take_back_all(&self) -> io::Result<()> {
        let flows = self.flow_ids()?;
        flows.iter().try_for_each(|flow| self.stop_inspection(*flow))?;
        let tuples = self.tuples.keys::<{ PacketTuple::SIZE }>()?;
        tuples.iter().try_for_each(|tuple| self.tuples.delete(tuple).map(drop))?;
        flows.iter().try_for_each(|flow| self.flows.delete(&flow.to_ne_bytes()).map(drop))
    }

    /// Sets `handed_over` to 0, unless the program has done so. When this returns, the program inspects no more lines of the
    /// connection, and the record of every inspected line is reserved in the ring.
    pub fn stop_inspection(&self, flow: u64) -> io::Result<()> {
        let key = flow.to_ne_bytes();
        let Some(value) = self.flows.look_up(&key, LOCK)? else { return Ok(()) };
        let flow_now = Flow::from_bytes(&value);
        if flow_now.handed_over == 0 {
            return Ok(());
        }
        let stopped = Flow { handed_over: 0, ..flow_now };
        // A change that the program makes between lookup and update is lost. That does not matter, because the flow
        // ends here.
        self.replace(flow, &stopped).map(drop)
    }

    /// The IDs of all flows in the map, including those that the program has handed back.
    pub fn flow_ids(&self) -> io::Result<Vec<u64>> {
        Ok(self.flows.keys()?.into_iter().map(u64::from_ne_bytes).collect())
    }

    /// Tells the program to open no pinholes at these ports.
    pub fn set_barred_ports(&self, is_barred: impl Fn(u16) -> bool) -> io::Result<()> {
        let word = |index: u32| {
            let ports = (0..32).filter(|bit| is_barred((index * 32 + bit) as u16));
            ports.fold(0, |word, bit| word | 1 << bit)
        };
        let words: Vec<u32> = (0..PORT_BITMAP_WORDS).map(word).collect();
        let mut barred = lock(&self.known_barred_ports);
        let known = barred.take().unwrap_or_default();
        for (index, word) in (0_u32..).zip(&words) {
            if known.get(index as usize) != Some(word) {
                self.barred_port_bits.update(&index.to_ne_bytes(), &word.to_ne_bytes(), ANY)?;
            }
        }
        *barred = Some(words);
        Ok(())
    }

    fn pinhole(&self, key: &PinholeKey) -> io::Result<Option<Pinhole>> {
        let value = self.pinholes.look_up(&key.to_bytes(), ANY)?;
        Ok(value.map(|value| Pinhole::from_bytes(&value)))
    }

    /// All pinholes and reservations. The program may delete them meanwhile.
    fn all_pinholes(&self) -> io::Result<Vec<(PinholeKey, Pinhole)>> {
        let keys = self.pinholes.keys()?;
        let keys = keys.iter().map(PinholeKey::from_bytes);
        keys.filter_map(|key| Some(self.pinhole(&key).transpose()?.map(|found| (key, found))))
            .collect()
    }

    /// Reserves a pinhole: the program does not open it until it is [released](FastPath::release_pinhole). Returns
    /// `false` if the program has it open. A pinhole may be reserved already, as by an earlier daemon.
    pub fn reserve_pinhole(&self, key: &PinholeKey) -> io::Result<bool> {
        match self.pinholes.update(&key.to_bytes(), &[0; Pinhole::SIZE], NOEXIST) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Ok(self.pinhole(key)?.is_some_and(|pinhole| pinhole.flow == 0))
            }
            other => other.map(|()| true),
        }
    }

    /// Ends a reservation. A pinhole that the program opened stays open.
    pub fn release_pinhole(&self, key: &PinholeKey) -> io::Result<()> {
        self.delete_pinhole_if(key, |pinhole| pinhole.flow == 0).map(drop)
    }

    /// Closes the pinhole that this line of this flow opened, unless it was consumed. Returns whether it was there.
    pub fn close_pinhole(&self, key: &PinholeKey, flow: u64, line: u32) -> io::Result<bool> {
        self.delete_pinhole_if(key, |pinhole| (pinhole.flow, pinhole.line) == (flow, line))
    }

    /// Keeps a pinhole of this flow and line open for this time from now, if it is open. Returns whether it is.
    pub fn renew_pinhole(
        &self,
        key: &PinholeKey,
        (flow, line): (u64, u32),
        lifetime: Duration,
    ) -> io::Result<bool> {
        let open = self.pinhole(key)?.filter(|found| (found.flow, found.line) == (flow, line));
        let Some(open) = open else { return Ok(false) };
        let renewed = Pinhole { deadline: deadline_after(lifetime), ..open };
        // The program may admit the connection meanwhile, and delete the pinhole.
        match self.pinholes.update(&key.to_bytes(), &renewed.to_bytes(), EXIST) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            renewed => renewed.map(|()| true),
        }
    }

    /// Tells the program to remember the SYN that a pinhole of the rules admits within this time from now. Then the
    /// retransmission of that SYN consumes no pinhole of the program.
    pub fn note_rules_pinhole(&self, key: &PinholeKey, lifetime: Duration) -> io::Result<()> {
        let deadline = deadline_after(lifetime);
        self.rules_pinholes.update(&key.to_bytes(), &deadline.to_ne_bytes(), ANY)
    }

    /// Closes all pinholes and ends all reservations, except those for which `is_retained` returns true. A reservation
    /// has flow 0.
    pub fn retain_pinholes(
        &self,
        is_retained: impl Fn(&PinholeKey, &Pinhole) -> bool,
    ) -> io::Result<()> {
        let all = self.all_pinholes()?;
        all.iter().try_for_each(|(key, _)| {
            self.delete_pinhole_if(key, |pinhole| !is_retained(key, pinhole)).map(drop)
        })
    }

    /// The IDs of all flows of which the program has a pinhole.
    pub fn flows_with_pinholes(&self) -> io::Result<BTreeSet<u64>> {
        Ok(self.all_pinholes()?.iter().map(|(_, pinhole)| pinhole.flow).collect())
    }

    /// The open pinholes of the program, and the time until the deadline of each.
    pub fn list_open_pinholes(&self) -> io::Result<Vec<(PinholeKey, Duration)>> {
        let now = monotonic_now();
        let all = self.all_pinholes()?.into_iter().filter(|(_, pinhole)| pinhole.flow != 0);
        let left = |pinhole: Pinhole| Duration::from_nanos(pinhole.deadline).saturating_sub(now);
        let all = all.map(|(key, pinhole)| (key, left(pinhole)));
        Ok(all.filter(|(_, left)| !left.is_zero()).collect())
    }

    /// Deletes a pinhole if `is_it` returns true for it. Returns whether it did.
    fn delete_pinhole_if(
        &self,
        key: &PinholeKey,
        is_it: impl Fn(&Pinhole) -> bool,
    ) -> io::Result<bool> {
        // The program may delete this pinhole and open another one with the same key at any moment. So the deleted
        // value is checked, and put back if it is another one.
        if !self.pinhole(key)?.is_some_and(|pinhole| is_it(&pinhole)) {
            return Ok(false);
        }
        let Some(value) = self.pinholes.take(&key.to_bytes())? else { return Ok(false) };
        let is_deleted = is_it(&Pinhole::from_bytes(&value));
        if !is_deleted {
            self.pinholes.update(&key.to_bytes(), &value, NOEXIST)?;
        }
        Ok(is_deleted)
    }

    /// Tells the program to open pinholes until the kernel's monotonic clock shows `deadline`. Until then a daemon is
    /// expected to read the program's lines.
    pub fn set_heartbeat(&self, deadline: Duration) -> io::Result<()> {
        self.heartbeat.update(&[0; 4], &nanoseconds(deadline).to_ne_bytes(), ANY)
    }

    /// Tells the program to admit no SYN again that it admitted before. It does so if a SYN has no answer, because the rules
    /// or a filter may have dropped it.
    pub fn end_readmissions(&self) -> io::Result<()> {
        let now = deadline_after(Duration::ZERO);
        self.readmission_start.update(&[0; 4], &now.to_ne_bytes(), ANY)
    }

    /// The program's counters since it was loaded, summed over all processors.
    pub fn counters(&self) -> io::Result<FastPathCounts> {
        let count = |index: u32| -> io::Result<u64> {
            let values = self.counters.look_up_copies(&index.to_ne_bytes())?;
            Ok(values.as_chunks().0.iter().map(|value| u64::from_ne_bytes(*value)).sum())
        };
        Ok(FastPathCounts {
            inspected: count(counter::INSPECTED)?,
            handed_back: count(counter::HANDED_BACK)?,
            opened: count(counter::OPENED)?,
            admitted: count(counter::ADMITTED)?,
            ring_full: count(counter::RING_FULL)?,
        })
    }

    /// The ring with the inspected lines.
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// Detaches the program, and removes it with its maps and pins.
    pub fn remove(&self) -> io::Result<()> {
        drop(lock(&self.loading).take());
        // All links are detached, even if one fails: a detached program inspects nothing, even if its pin stays.
        let detach_all = |program| lock(&self.attachments).detach_all(program);
        let removed = self.program().map_or(Ok(()), detach_all);
        self.pin_directory.remove()?;
        removed
    }
}

/// Whether a daemon of this network namespace has pins below `root`.
pub fn has_pins(root: &Path) -> bool {
    PinDirectory::exists_for_namespace(root).unwrap_or(false)
}

/// Whether an earlier daemon of this network namespace left pins below `root`, or its program attached, and this build
/// can take that over.
pub fn has_leftovers(root: &Path, list_interfaces: ListInterfaces) -> bool {
    HAS_PROGRAM && (has_pins(root) || program::is_any_attached(list_interfaces))
}

/// Removes the pins that earlier daemons of this network namespace left below `root`, and detaches their programs. An
/// error if a daemon uses them.
pub fn remove_leftovers(root: &Path, list_interfaces: ListInterfaces) -> io::Result<()> {
    let _namespace_lock = lock_namespace()?;
    PinDirectory::remove_all(root)?;
    program::detach_all(list_interfaces)
}

/// What `bpf_ktime_get_ns` will return after this time.
fn deadline_after(time: Duration) -> u64 {
    nanoseconds(monotonic_now() + time)
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// What `bpf_ktime_get_ns` returns.
fn monotonic_now() -> Duration {
    let clock = clock_gettime(ClockId::Monotonic);
    Duration::new(clock.tv_sec as u64, clock.tv_nsec as u32) // neither is negative
}

/// Locks a mutex, even if a thread panicked with it. That is safe, because each call finds out itself what the kernel
/// has.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
