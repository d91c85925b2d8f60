//! Carries out the engine's changes in the maps of the fast path: hands connections over and takes them back, reserves
//! and closes pinholes, and reads lines.
//!
//! The crate `ftp-alg-fastpath` has the program and its maps. Here is what it does not know: connections, interfaces
//! and the rules.

mod interfaces;
mod tc_filters;
mod translations;

use std::{
    collections::HashMap,
    fmt::Display,
    io,
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use ftp_alg_core::engine::{
    FlowChange, Handover, LoginStage, Opening, PinholeEnds, PinholeId, SequenceOffset, Translation,
    Withdrawal,
};
use ftp_alg_fastpath::{
    FastPath,
    layout::{self, AddressText, Flow, LineRecord, PacketTuple, PinholeKey, dialogue},
};

use super::{NetfilterError, RuleParameters, clocks::monotonic_zero, known_rules::KnownRules};

pub use interfaces::{LinkChanges, list_interfaces};
pub use translations::{TranslationLease, Translations};

/// The fast path's program, and the translations that its connections use.
#[derive(Debug)]
pub struct Offload {
    program: FastPath,
    translations: Mutex<Translations>,
    leases: Mutex<Leases>,
    inspected_mark: u32,
    /// How many operations on the program's maps failed, and why the last one did.
    failures: Mutex<Option<(u64, String)>>,
}

/// The translations that flows use, by flow.
#[derive(Debug, Default)]
struct Leases {
    handed_over: HashMap<u64, [TranslationLease; 2]>,
    /// The translations of flows that were taken back, of which a pinhole may be open.
    taken_back: Vec<(u64, [TranslationLease; 2])>,
}

/// How many taken-back flows there may be before those without a pinhole are looked for.
const MANY_TAKEN_BACK: usize = 256;

/// How long the rules may need to open a pinhole.
const OPENING_TIME: Duration = Duration::from_secs(1);

const NOT_HANDED_OVER: &str = "cannot hand a connection over";

impl Offload {
    /// Uses a loaded program and the translations of the table.
    pub fn new(program: FastPath, translations: Translations, parameters: &RuleParameters) -> Self {
        Self {
            program,
            translations: Mutex::new(translations),
            leases: Mutex::default(),
            inspected_mark: parameters.inspected_mark(),
            failures: Mutex::default(),
        }
    }

    /// The program.
    pub fn program(&self) -> &FastPath {
        &self.program
    }

    /// How many operations on the program's maps have failed since the last call, and why the last one did.
    pub fn take_failures(&self) -> Option<(u64, String)> {
        lock(&self.failures).take()
    }

    /// Appends the lines that were inspected by now.
    pub fn read_lines(&self, into: &mut Vec<LineRecord>) {
        if !self.program.ring().read(into) {
            self.note_failure("cannot read the ring buffer", &"a record is not committed");
        }
    }

    /// Lets the program open pinholes until this time.
    pub fn set_heartbeat(&self, deadline: Instant) {
        let set = self.program.set_heartbeat(deadline.saturating_duration_since(monotonic_zero()));
        self.note_outcome("cannot renew the heartbeat", set);
    }

    /// Bars the program from opening pinholes at barred ports and at ports that the operator's rules translate.
    pub fn bar_ports(&self, known_rules: &KnownRules, is_barred: impl Fn(u16) -> bool) {
        let barred = self
            .program
            .set_barred_ports(|port| is_barred(port) || known_rules.is_translated(port));
        self.note_outcome("cannot bar ports", barred);
    }

    /// Hands connections over, and takes others back.
    pub(super) fn apply_changes(&self, changes: &[FlowChange]) {
        let mut changes = changes.iter().peekable();
        while let Some(change) = changes.next() {
            match (change, changes.peek()) {
                (FlowChange::Withdraw(withdrawal), Some(FlowChange::Handover(handover)))
                    if self.replace(withdrawal, handover) =>
                {
                    changes.next();
                }
                (FlowChange::Withdraw(withdrawal), _) => self.take_back(withdrawal),
                (FlowChange::Handover(handover), _) => self.hand_over(handover),
            }
        }
    }

    /// Tells the program to inspect no more lines of a connection. Returns whether that is so.
    pub(super) fn stop(&self, flow: u64) -> bool {
        let stopped = self.program.stop_inspection(flow).map(|()| true);
        self.value_or(false, "cannot stop a connection", stopped)
    }

    /// Hands a connection over that is being taken back: its flow gets the new state. Returns `false` if the flow is
    /// another connection's, or is not in the program.
    fn replace(&self, withdrawal: &Withdrawal, handover: &Handover) -> bool {
        let is_same =
            (withdrawal.flow, withdrawal.translation) == (handover.flow, handover.translation);
        let marks = lock(&self.leases).handed_over.get(&handover.flow).map(marks_of);
        let Some(marks) = marks.filter(|_| is_same) else { return false };
        let replaced = self.program.replace(handover.flow, &self.flow_of(handover, marks));
        self.value_or(false, NOT_HANDED_OVER, replaced)
    }

    fn hand_over(&self, handover: &Handover) {
        // Connections without a login may use half of the map. The engine offers them again after the login.
        let limit = self.program.max_flows() as usize / 2;
        if handover.login != LoginStage::LoggedIn && lock(&self.leases).handed_over.len() >= limit {
            return;
        }
        let mut acquired = self.acquire_translations(&handover.translation);
        if matches!(acquired, Ok(None)) && self.release_unused_leases() {
            acquired = self.acquire_translations(&handover.translation);
        }
        let leases = match acquired {
            Ok(Some(leases)) => leases,
            Ok(None) => return,
            Err(error) => return self.note_failure(NOT_HANDED_OVER, &error),
        };
        let flow = self.flow_of(handover, marks_of(&leases));
        let (id, tuples) = (handover.flow, packet_tuples(&handover.translation));
        let mut result = self.program.hand_over(id, tuples, &flow);
        if result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AlreadyExists) {
            // The engine took the connection back in another thread, which has not yet reported it to the program.
            result = self
                .program
                .take_back(id, tuples)
                .and_then(|()| self.program.hand_over(id, tuples, &flow));
        }
        match result {
            Ok(()) => {
                let mut all = lock(&self.leases);
                let old = all.handed_over.insert(handover.flow, leases);
                all.taken_back.extend(old.map(|old| (handover.flow, old)));
            }
            Err(error) => {
                self.release_leases(&leases);
                match error.raw_os_error() {
                    Some(libc::E2BIG | libc::ENOSPC) => {
                        let limit = self.program.max_flows();
                        self.note_failure(
                            NOT_HANDED_OVER,
                            &format_args!(
                                "limit of {limit} connections reached; others are queued"
                            ),
                        );
                    }
                    _ => self.note_failure(NOT_HANDED_OVER, &error),
                }
            }
        }
    }

    /// The flow of a connection, with the packet marks of its admitted SYNs, active and passive.
    fn flow_of(&self, handover: &Handover, [active_mark, passive_mark]: [u32; 2]) -> Flow {
        let Translation { client, client_external, server, server_external, .. } =
            handover.translation;
        let [first_client_port, last_client_port] = handover.client_ports;
        let offsets =
            handover.seq_offsets.unwrap_or([SequenceOffset { offset: 0, first_seq: 0 }; 2]);
        Flow {
            handed_over: 1,
            next_seq: handover.next_seq,
            line_count: handover.lines,
            dialogue: match handover.login {
                LoginStage::NotGreeted => dialogue::GREETING_DUE,
                LoginStage::Greeted => dialogue::LOGIN_DUE,
                LoginStage::LoggedIn => dialogue::READY,
            },
            client: client.ip(),
            server: server.ip(),
            client_port: client.port(),
            server_port: server.port(),
            own: [client, server].map(|end| AddressText::new(end.ip())),
            announced: [
                AddressText::announced(client.ip(), handover.announced_addresses[0]),
                AddressText::announced(server.ip(), handover.announced_addresses[1]),
            ],
            active_arrival: client_external.ip(),
            passive_arrival: server_external.ip(),
            active_initiator: server.ip(),
            passive_initiator: client.ip(),
            active_mark,
            passive_mark,
            inspected_mark: self.inspected_mark,
            port_digits: handover.padding.digits() as u32, // at most 4
            adjusted: handover.seq_offsets.is_some().into(),
            seq_offset: offsets.map(|offset| offset.offset),
            offset_since: offsets.map(|offset| offset.first_seq),
            first_client_port,
            last_client_port,
            pinhole_timeout: handover
                .pinhole_timeout
                .map_or(0, |timeout| u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX)),
            interface: handover.interfaces,
            ..Flow::default()
        }
    }

    /// Acquires the translations of the connection's data connections, active and passive.
    fn acquire_translations(
        &self,
        translation: &Translation,
    ) -> Result<Option<[TranslationLease; 2]>, NetfilterError> {
        let Translation { client, client_external, server, server_external, .. } = translation;
        let [client, client_external, server, server_external] =
            [client, client_external, server, server_external].map(SocketAddr::ip);
        let own_if_translated = |own, external| (own != external).then_some(own);
        // Until a SYN has an answer, the program may admit it again, and it needs its translation.
        let end_readmissions = || self.end_readmissions();
        let mut translations = lock(&self.translations);
        let active = translations.acquire(
            own_if_translated(client, client_external),
            (server, client),
            server_external,
            end_readmissions,
        )?;
        let Some(active) = active else { return Ok(None) };
        let passive = translations.acquire(
            own_if_translated(server, server_external),
            (client, server),
            client_external,
            end_readmissions,
        );
        match passive {
            Ok(Some(passive)) => Ok(Some([active, passive])),
            other => {
                translations.release(&active);
                other.map(|_| None)
            }
        }
    }

    fn take_back(&self, withdrawal: &Withdrawal) {
        let tuples = packet_tuples(&withdrawal.translation);
        let back = self.program.take_back(withdrawal.flow, tuples);
        self.note_outcome("cannot take a connection back", back);
        // The program's pinhole stays open, and needs them.
        let mut all = lock(&self.leases);
        let leases = all.handed_over.remove(&withdrawal.flow);
        all.taken_back.extend(leases.map(|leases| (withdrawal.flow, leases)));
        let are_many =
            all.taken_back.len() >= MANY_TAKEN_BACK && all.taken_back.len().is_power_of_two();
        drop(all);
        if are_many {
            self.release_unused_leases();
        }
    }

    /// Releases the translations of flows that were taken back and have no pinhole any more. Returns whether there were
    /// any.
    fn release_unused_leases(&self) -> bool {
        let mut all = lock(&self.leases);
        if all.taken_back.is_empty() {
            return false;
        }
        let with_pinholes = match self.program.flows_with_pinholes() {
            Ok(flows) => flows,
            Err(error) => {
                self.note_failure("cannot read the pinholes", &error);
                return false;
            }
        };
        let unused: Vec<_> =
            all.taken_back.extract_if(.., |(flow, _)| !with_pinholes.contains(flow)).collect();
        drop(all);
        unused.iter().for_each(|(_, leases)| self.release_leases(leases));
        !unused.is_empty()
    }

    fn release_leases(&self, leases: &[TranslationLease; 2]) {
        let mut translations = lock(&self.translations);
        leases.iter().for_each(|lease| translations.release(lease));
    }

    /// Reserves the key of a translated pinhole, so that the program does not open it. Returns `false` if the program
    /// has it open.
    pub fn reserve_pinhole(&self, pinhole: &PinholeEnds) -> bool {
        let Some(key) = translated_key(pinhole) else { return true };
        self.value_or(false, "cannot reserve a pinhole", self.program.reserve_pinhole(&key))
    }

    /// Registers a pinhole of the rules, so that the program remembers the SYN that the pinhole admits. Called before
    /// the rules have the pinhole.
    pub fn note_rules_pinhole(&self, opening: &Opening) {
        let Opening { ends: pinhole, lifetime, .. } = opening;
        let recorded =
            self.program.note_rules_pinhole(&pinhole_key(pinhole), *lifetime + OPENING_TIME);
        if let Err(error) = recorded {
            tracing::debug!("cannot record a pinhole of the rules: {error}");
        }
    }

    /// Ends the reservation of a pinhole.
    pub(super) fn release_pinhole(&self, pinhole: &PinholeEnds) {
        if let Some(key) = translated_key(pinhole) {
            self.note_outcome("cannot release a pinhole", self.program.release_pinhole(&key));
        }
    }

    /// Closes a pinhole that the program opened. Returns whether it was still open there.
    pub(super) fn close_pinhole(&self, pinhole: &PinholeEnds, id: PinholeId) -> bool {
        let closed = self.program.close_pinhole(&pinhole_key(pinhole), id.flow, id.line);
        self.value_or(false, "cannot close a pinhole", closed)
    }

    /// Closes a pinhole in the program, and reserves its key, because the rules have it now. Returns whether it was
    /// still open there.
    pub(super) fn move_pinhole(&self, pinhole: &PinholeEnds, id: PinholeId) -> bool {
        self.close_pinhole(pinhole, id) && self.reserve_pinhole(pinhole)
    }

    /// Keeps an open pinhole of the program open for its lifetime from now. Returns whether the pinhole is open.
    pub(super) fn renew_pinhole(&self, opening: &Opening, id: PinholeId) -> bool {
        let key = pinhole_key(&opening.ends);
        let renewed = self.program.renew_pinhole(&key, (id.flow, id.line), opening.lifetime);
        self.value_or(true, "cannot renew a pinhole", renewed)
    }

    /// Closes pinholes that the program opened and no session holds. Their endpoints are not known, so it looks at all.
    pub(super) fn close_lost_pinholes(&self, lost: &[PinholeId]) {
        let closed = self.program.retain_pinholes(|_, open| !lost.contains(&pinhole_id(open)));
        self.note_outcome("cannot close a pinhole", closed);
    }

    /// From now on the program admits no SYN again that it admitted before.
    pub fn end_readmissions(&self) {
        self.note_outcome("cannot end readmissions", self.program.end_readmissions());
    }

    /// Whether the table may lack translations.
    pub fn lacks_translations(&self) -> Result<bool, NetfilterError> {
        lock(&self.translations).are_incomplete()
    }

    /// Adds the translations to the table after it was replaced.
    pub fn restore_translations(&self) -> Result<(), NetfilterError> {
        lock(&self.translations).restore_elements()
    }

    fn note_outcome(&self, what: &str, outcome: io::Result<()>) {
        self.value_or((), what, outcome);
    }

    /// The value, or `otherwise` after a failure, which is recorded.
    fn value_or<T>(&self, otherwise: T, what: &str, outcome: io::Result<T>) -> T {
        outcome.unwrap_or_else(|error| {
            self.note_failure(what, &error);
            otherwise
        })
    }

    fn note_failure(&self, what: &str, why: &dyn Display) {
        let mut failures = lock(&self.failures);
        let count = failures.take().map_or(0, |(count, _)| count) + 1;
        *failures = Some((count, format!("{what}: {why}")));
    }
}

/// The packet marks of admitted SYNs, active and passive.
fn marks_of(leases: &[TranslationLease; 2]) -> [u32; 2] {
    leases.each_ref().map(|lease| lease.mark)
}

/// The flow and the line that opened a pinhole of the program.
pub fn pinhole_id(open: &layout::Pinhole) -> PinholeId {
    PinholeId { flow: open.flow, line: open.line }
}

fn pinhole_key(pinhole: &PinholeEnds) -> PinholeKey {
    PinholeKey::new(pinhole.initiator, pinhole.arrival)
}

/// The key of a pinhole with a translation; `None` for others.
fn translated_key(pinhole: &PinholeEnds) -> Option<PinholeKey> {
    (pinhole.arrival != pinhole.target).then(|| pinhole_key(pinhole))
}

/// The tuples of the packets that client and server send, as they arrive at the interface.
fn packet_tuples(translation: &Translation) -> [PacketTuple; 2] {
    let Translation { client, client_external, server, server_external, .. } = *translation;
    [PacketTuple::new(client, server_external), PacketTuple::new(server, client_external)]
}

/// Locks a mutex, even if a thread panicked while it held the lock. This is safe, because each call looks up itself
/// what the kernel has.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A string of netlink without the zero at its end.
fn without_zero(text: &[u8]) -> &[u8] {
    text.strip_suffix(b"\0").unwrap_or(text)
}
