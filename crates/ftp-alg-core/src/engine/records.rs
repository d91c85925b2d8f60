//! Sessions as records, so that a restarted daemon continues them.
//!
//! A record describes a session after all packets handled so far, or says that the session was removed. The last record
//! of a session counts. The host writes records before it gives the verdicts of those packets. So a packet whose record
//! was not written has not been forwarded either, and is retransmitted. A record may be ahead of the verdicts, if a crash
//! comes in between. Then the retransmission was read before, and is forwarded as it was read. Times are milliseconds
//! since an epoch that both daemons know.
//!
//! A record begins with what the gateway needs to continue the session, on another machine too. What the client does
//! follows: users and paths, for reports only. Another machine does not get them.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    ops::Range,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::{
    engine::{
        Batch, ClientActivity, ClientKey, Entry, Epoch, OpenRange, Opening, PinholeEnds, Sessions,
        Translation,
        decision::{MAX_PER_SESSION, may_belong},
        offload::handover::FastPathProgress,
        pinholes::pinhole::{Pinhole, PinholeRecord},
        table::Key,
    },
    policy::Policy,
    session::{Phase, Session, Side},
};

/// Version of the record format. It is raised with every change of a type in a record, so that records of another
/// version are refused instead of misread. `tests` has a record of this version.
pub const RECORD_FORMAT: u32 = 25;

#[derive(Serialize, Deserialize)]
enum Record<'a> {
    Session(Box<SessionRecord<'a>>),
    Gone(u64),
}

#[derive(Serialize, Deserialize)]
struct SessionRecord<'a> {
    id: u64,
    client: SocketAddr,
    server: SocketAddr,
    translation: Option<Translation>,
    first_seen: u64,
    last_seen: u64,
    pinholes: Vec<PinholeRecord>,
    fast_path: FastPathProgress,
    has_range: bool,
    session: Cow<'a, Session>,
    incarnation: Option<Cow<'a, Session>>,
    /// Behind everything else, and absent in what another machine gets.
    #[serde(skip)]
    activity: Cow<'a, ClientActivity>,
    /// Whether the rules queue none of its packets any more.
    #[serde(skip)]
    is_unqueued: bool,
}

/// Numbers of sessions and pinholes from another machine are lower, so that ours, which count on, do not overflow, and a
/// reader of JSON may compute with them.
const MAX_NUMBER: u64 = 1 << 52;

/// A connection is in use if it had a packet within this time.
const RECENT_USE: Duration = Duration::from_secs(3);

/// A record that cannot be decoded.
#[derive(Debug, thiserror::Error)]
#[error("a session record cannot be decoded: {0}")]
pub struct RecordError(#[from] postcard::Error);

/// An encoded record.
#[derive(Clone, Copy, Debug)]
pub struct EncodedRecord<'b> {
    /// The number of its session.
    pub session: u64,
    /// All of it.
    pub bytes: &'b [u8],
    /// The part of it for another machine. Empty if the session is gone.
    pub portable: &'b [u8],
}

/// Session records by session number, so that the oldest are restored first.
#[derive(Default)]
pub struct SessionRecords(BTreeMap<u64, Box<SessionRecord<'static>>>);

impl SessionRecords {
    /// Decodes `records`.
    pub fn read<'r>(mut records: impl Iterator<Item = &'r [u8]>) -> Result<Self, RecordError> {
        let mut sessions = Self::default();
        records.try_for_each(|record| sessions.decode(record))?;
        Ok(sessions)
    }

    /// Decodes each of `records` alone, and leaves out those that no gateway writes. Also returns how many it has left out.
    pub fn read_each<'r>(records: impl Iterator<Item = &'r [u8]>) -> (Self, usize) {
        let mut sessions = Self::default();
        let damaged = records.filter(|record| sessions.decode(record).is_err()).count();
        let decoded = sessions.len();
        sessions.0.retain(|_, record| record.is_consistent());
        let inconsistent = decoded - sessions.len();
        (sessions, damaged + inconsistent)
    }

    fn decode(&mut self, record: &[u8]) -> Result<(), RecordError> {
        match postcard::take_from_bytes(record)? {
            (Record::Session(mut record), activity) => {
                if !activity.is_empty() {
                    record.activity = Cow::Owned(postcard::from_bytes(activity)?);
                }
                self.0.insert(record.id, record);
            }
            (Record::Gone(id), _) => drop(self.0.remove(&id)),
        }
        Ok(())
    }

    /// Removes what holds on the machine of the daemon that wrote the records, and not on this one: the indices of its
    /// interfaces, and what its BPF program has. Removes pinholes too that this `policy` would not have opened. It relies
    /// on the consistency of records that were [read alone](Self::read_each).
    pub fn leave_machine(&mut self, policy: &Policy) {
        let mut unused = BTreeMap::<ClientKey, usize>::new();
        for record in self.0.values_mut() {
            record.fast_path = FastPathProgress::NONE;
            record.has_range &= record.session.encryption() != Some(false);
            let network = policy.network_of(record.client.ip(), record.server.ip());
            let (policy, client) = (policy.for_network(network), record.client.ip().into());
            let external = record.translation.map_or(0, |control| control.client_external.port());
            record.pinholes.retain(|PinholeRecord { ends, in_use, .. }| {
                let (port, own) = (ends.arrival.port(), ends.target.port());
                let count = unused.entry(client).or_default();
                *count += usize::from(!in_use);
                // Without a translation nobody knows whose it is.
                record.translation.is_some()
                    && (*in_use || *count <= policy.max_pinholes_per_client)
                    && (port == own || policy.may_choose(policy.port_set(external), port))
            });
            record.pinholes.iter_mut().for_each(|pinhole| pinhole.in_program = None);
            for session in [Some(&mut record.session), record.incarnation.as_mut()] {
                session.into_iter().for_each(|session| session.to_mut().interfaces.leave_machine());
            }
        }
    }

    /// Number of sessions.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no session.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds other records, which are newer.
    pub fn add(&mut self, Self(others): Self) {
        self.0.extend(others);
    }

    /// Notes which of the sessions the rules still queue, by server and translation. The others are not restored, because
    /// nobody would see their end. An adjusted session loses only its pinholes.
    pub fn mark_unqueued(&mut self, is_queued: impl Fn(SocketAddr, Option<&Translation>) -> bool) {
        for record in self.0.values_mut() {
            record.is_unqueued = !is_queued(record.server, record.translation.as_ref());
        }
    }
}

impl SessionRecord<'_> {
    /// Whether a gateway may have written it. Who can write to a store may write anything.
    fn is_consistent(&self) -> bool {
        let Self { client, server, translation, pinholes, .. } = self;
        let control = translation.unwrap_or_else(|| Translation::identity(*client, *server));
        let Translation { client_external, server_external, .. } = control;
        let is_end = |end: &SocketAddr| end.is_ipv4() == client.is_ipv4();
        let is_pinhole = |pinhole: &PinholeRecord| {
            let ends = &pinhole.ends;
            pinhole.serial < MAX_NUMBER
                && [ends.arrival, ends.target].iter().all(is_end)
                && (translation.is_none() || may_belong(ends, pinhole.kind, &control))
        };
        let serials: BTreeSet<u64> = pinholes.iter().map(|pinhole| pinhole.serial).collect();
        self.id < MAX_NUMBER
            && (control.client, control.server) == (*client, *server)
            && [*client, *server, client_external, server_external].iter().all(is_end)
            && pinholes.len() <= MAX_PER_SESSION
            && serials.len() == pinholes.len()
            && pinholes.iter().all(is_pinhole)
            && [Some(&self.session), self.incarnation.as_ref()]
                .into_iter()
                .flatten()
                .all(|session| session.is_consistent())
    }
}

/// Counts of restored sessions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RestoredCounts {
    /// Number of control connections.
    pub sessions: usize,
    /// Number of those with sequence adjustment.
    pub adjusted: usize,
    /// Number of sessions, restored or not, with a transfer whose end was not seen.
    pub transferring: usize,
}

/// Changes that are not written yet.
pub(crate) struct UnwrittenChanges {
    epoch: Instant,
    /// Table slots of changed sessions; an entry knows whether it is listed.
    changed: Vec<u32>,
    gone: Vec<u64>,
}

fn millis_since(epoch: Instant, at: Instant) -> u64 {
    at.saturating_duration_since(epoch).as_millis() as u64 // of an uptime
}

/// Writes the record of a session to `buffer`. Returns the length of the part for another machine.
fn write_session<'p>(
    entry: &Entry,
    pinholes: impl Iterator<Item = &'p Pinhole>,
    has_range: bool,
    own: Epoch,
    epoch: Instant,
    buffer: &mut Vec<u8>,
) -> Result<usize, postcard::Error> {
    let millis = |timestamp| own.instant(timestamp).map_or(0, |at| millis_since(epoch, at));
    let record = SessionRecord {
        id: entry.head.id,
        client: entry.head.client(),
        server: entry.head.server(),
        translation: entry.head.extra().translation,
        first_seen: millis(entry.head.first_seen),
        last_seen: millis(entry.head.last_seen),
        pinholes: pinholes
            .map(|pinhole| pinhole.record(millis_since(epoch, pinhole.deadline)))
            .collect(),
        fast_path: entry.head.extra().fast_path,
        has_range,
        session: Cow::Borrowed(&entry.session),
        incarnation: entry.head.incarnation().map(Cow::Borrowed),
        activity: Cow::default(),
        is_unqueued: false,
    };
    buffer.clear();
    encode(&Record::Session(Box::new(record)), buffer)?;
    let portable = buffer.len();
    encode(&entry.head.extra().activity, buffer)?;
    Ok(portable)
}

fn encode(value: &impl Serialize, buffer: &mut Vec<u8>) -> Result<(), postcard::Error> {
    *buffer = postcard::to_extend(value, std::mem::take(buffer))?;
    Ok(())
}

impl Sessions {
    /// Notes that the session at `index` has changed.
    pub(crate) fn mark_changed(&mut self, index: u32) {
        if let Some(changes) = &mut self.unwritten
            && let Some(entry) = self.table.get_mut(index)
            && !std::mem::replace(&mut entry.head.changed, true)
        {
            changes.changed.push(index);
        }
    }

    /// Notes that the session `id` was removed.
    pub(crate) fn mark_removed(&mut self, id: u64) {
        if let Some(changes) = &mut self.unwritten {
            changes.gone.push(id);
        }
    }

    /// Tracks changes from now on; times count from `epoch`.
    pub fn track_changes(&mut self, epoch: Instant) {
        self.unwritten = Some(UnwrittenChanges { epoch, changed: Vec::new(), gone: Vec::new() });
    }

    /// Passes a record of each changed session to `write`, outside a batch.
    pub fn write_records<R>(&mut self, write: impl FnOnce(&Batch) -> R) -> R {
        self.take_records();
        let written = write(&self.batch);
        self.batch.clear_records();
        written
    }

    /// Adds a record of each changed session to the batch.
    pub(crate) fn take_records(&mut self) {
        if self.encode_changes().is_err() {
            self.counters.errors += 1;
        }
    }

    fn encode_changes(&mut self) -> Result<(), RecordError> {
        let Some(UnwrittenChanges { epoch, changed, gone }) = &mut self.unwritten else {
            return Ok(());
        };
        let buffer = &mut self.record_buffer;
        // Removals come first. Otherwise truncated records could describe two sessions on the same endpoints.
        for id in gone.drain(..) {
            buffer.clear();
            encode(&Record::Gone(id), buffer)?;
            self.batch.push_record(id, buffer, 0);
        }
        for index in changed.drain(..) {
            let Some(entry) = self.table.get_mut(index) else { continue };
            if std::mem::take(&mut entry.head.changed) {
                let pinholes = self.pinholes.of(index);
                let has_range = self.ranges.of(index).is_some();
                let portable =
                    write_session(entry, pinholes, has_range, self.epoch, *epoch, buffer)?;
                self.batch.push_record(entry.head.id, buffer, portable);
            }
        }
        Ok(())
    }

    /// Passes a record of every session to `each`. A caller that has saved them [forgets the
    /// changes](Self::forget_changes), which are in them.
    pub fn write_all_records(
        &mut self,
        each: impl FnMut(EncodedRecord<'_>),
    ) -> Result<(), RecordError> {
        self.write_records_in(0..self.slot_count(), each)
    }

    /// Number of slots of the table. Each session stays in its slot.
    pub fn slot_count(&self) -> u32 {
        self.table.slot_count()
    }

    /// As [`write_all_records`](Self::write_all_records), of the sessions in these slots of the table.
    pub fn write_records_in(
        &mut self,
        slots: Range<u32>,
        mut each: impl FnMut(EncodedRecord<'_>),
    ) -> Result<(), RecordError> {
        let Some(changes) = &self.unwritten else { return Ok(()) };
        for index in slots {
            let Some(entry) = self.table.get_mut(index) else { continue };
            let (pinholes, buffer) = (self.pinholes.of(index), &mut self.record_buffer);
            let has_range = self.ranges.of(index).is_some();
            let portable =
                write_session(entry, pinholes, has_range, self.epoch, changes.epoch, buffer)?;
            let (session, bytes) = (entry.head.id, &self.record_buffer[..]);
            each(EncodedRecord { session, bytes, portable: &bytes[..portable] });
        }
        Ok(())
    }

    /// Clears all tracked changes.
    pub fn forget_changes(&mut self) {
        let Some(UnwrittenChanges { changed, gone, .. }) = &mut self.unwritten else { return };
        gone.clear();
        for index in changed.drain(..) {
            if let Some(entry) = self.table.get_mut(index) {
                entry.head.changed = false;
            }
        }
    }

    /// Restores the sessions in `records`; see [`restore_sessions`](Self::restore_sessions).
    pub fn restore<'r>(
        &mut self,
        records: impl Iterator<Item = &'r [u8]>,
        now: Instant,
        epoch: Instant,
    ) -> Result<RestoredCounts, RecordError> {
        Ok(self.restore_sessions(SessionRecords::read(records)?, now, epoch))
    }

    /// Restores sessions, with times counted from `epoch`. Leaves out those between endpoints that have a session here.
    /// Their pinholes count as open: one that the kernel no longer has was consumed. A stricter policy does not affect adjusted sessions, because the connection would break.
    pub fn restore_sessions(
        &mut self,
        SessionRecords(sessions): SessionRecords,
        now: Instant,
        epoch: Instant,
    ) -> RestoredCounts {
        let at = |millis| epoch.checked_add(Duration::from_millis(millis)).unwrap_or(now);
        let mut restored = RestoredCounts::default();
        let (adjusted_records, other_records): (Vec<_>, Vec<_>) =
            sessions.into_values().partition(|record| record.session.is_adjusted());
        let records = adjusted_records.iter().chain(&other_records);
        let serials = records.flat_map(|record| &record.pinholes).map(|pinhole| pinhole.serial);
        self.pinholes.number_behind(serials.max().unwrap_or_default());
        for record in adjusted_records.into_iter().chain(other_records) {
            self.last_id.fetch_max(record.id, Ordering::Relaxed);
            restored.transferring += usize::from(record.activity.has_transfer());
            let SessionRecord { id, client, server, translation, pinholes, .. } = *record;
            let network = self.policy.network_of(client.ip(), server.ip());
            let adjusted = record.session.is_adjusted();
            let is_unqueued = record.is_unqueued;
            if !adjusted && (is_unqueued || !self.policy.inspects(network) || !self.has_room())
                || self.table.find(&Key::between(client, server)).is_some()
            {
                continue;
            }
            let [first_seen, last_seen] = [record.first_seen, record.last_seen]
                .map(|millis| self.epoch.timestamp(at(millis).min(now)));
            let mut session = record.session.into_owned();
            if is_unqueued {
                session.note_downtime();
            }
            let mut entry = Entry::new(id, client, server, session, first_seen);
            entry.head.set_network(network);
            // Retransmissions write no record, and an adjusted session must not time out because of that.
            entry.head.last_seen = if adjusted { self.epoch.timestamp(now) } else { last_seen };
            entry.head.set_translation(translation);
            if record.fast_path.lines_inspected > 0 || record.fast_path.is_handed_over {
                entry.head.extra_mut().fast_path = record.fast_path;
                if record.fast_path.is_handed_over {
                    self.pinholes.recount_fast_path_grant(client.ip());
                }
            }
            let mut activity = record.activity.into_owned();
            activity.skip_examinations();
            if activity.is_known() {
                *entry.head.activity_mut() = activity;
            }
            if let Some(incarnation) = record.incarnation {
                entry.head.set_incarnation(incarnation.into_owned(), self.epoch.timestamp(now));
            }
            restored.sessions += 1;
            restored.adjusted += usize::from(adjusted);
            let owner = self.table.insert(entry);
            self.note_memory(owner);
            self.count_for_client(owner);
            let Some(entry) = self.table.get_mut(owner) else { continue };
            if entry.head.incarnation().is_some() {
                entry.head.watch(now);
            }
            let policy = self.policy.for_network(network);
            let is_here = entry.session.interfaces.is_this_machine(Side::Server);
            if let Some(control) = translation.filter(|_| record.has_range && !is_unqueued) {
                let ports = control.passive_ports(policy, is_here);
                self.ranges.restore(owner, id, OpenRange { control, ports });
            }
            let lifetime = policy.pinhole_timeout;
            for pinhole in pinholes.into_iter().filter(|_| !is_unqueued) {
                let deadline = at(pinhole.deadline).min(now + lifetime);
                self.pinholes.restore(owner, client.ip(), &pinhole, deadline);
            }
            // Packets may have passed while no daemon ran.
            self.add_timer(owner, epoch);
        }
        restored
    }

    /// Whether a session has the endpoints of this packet.
    pub fn knows(&mut self, packet: &[u8]) -> bool {
        Key::of_packet(packet).is_some_and(|key| self.table.find(&key).is_some())
    }

    /// Adopts the session of `restored` whose packet this is, unless this shard has a session with these endpoints.
    /// Returns whether there was one. Its record is [written](Self::write_records) here before its end is written there.
    pub fn adopt(&mut self, restored: &mut Self, packet: &[u8]) -> bool {
        let Some(key) = Key::of_packet(packet).filter(|_| !self.knows(packet)) else {
            return false;
        };
        let Some(from) = restored.table.find(&key) else { return false };
        let Some(mut entry) = restored.take_out(from) else { return false };
        let (head, theirs) = (&mut entry.head, restored.epoch);
        let began = theirs.instant(head.first_seen);
        let own = &mut self.epoch;
        let mut convert = |at| theirs.instant(at).map_or(at, |at| own.timestamp(at));
        head.convert_times(&mut convert);
        head.set_network(self.policy.network_of(head.client().ip(), head.server().ip()));
        let index = self.table.insert(entry);
        self.pinholes.adopt(index, &mut restored.pinholes, from);
        self.ranges.adopt(index, &mut restored.ranges, from);
        self.note_memory(index);
        self.count_for_client(index);
        self.mark_changed(index);
        if let Some(began) = began {
            self.add_timer(index, began);
        }
        true
    }

    /// Open pinholes of the rules for which `is_missing` returns true, to be opened again for the rest of their
    /// lifetime.
    pub fn missing_pinholes(
        &self,
        now: Instant,
        is_missing: impl Fn(&PinholeEnds) -> bool,
    ) -> impl Iterator<Item = Opening> {
        let missing = self.pinholes.iter().filter(move |(_, pinhole)| {
            pinhole.in_program().is_none()
                && pinhole.is_open()
                && is_missing(&pinhole.ends)
                && self.pinholes.has_port(pinhole)
        });
        missing.filter_map(move |(owner, pinhole)| {
            let translation = self.table.get(owner)?.head.extra().translation;
            opening_again(pinhole, translation.as_ref(), now)
        })
    }

    /// Whether a session of any shard holds a pinhole with these endpoints that the rules, not the BPF program, must
    /// have.
    pub fn holds_pinhole(&self, initiator: IpAddr, arrival: SocketAddr) -> bool {
        self.pinholes.is_held(initiator, arrival)
    }

    /// Whether an open, inspected connection had a packet a moment ago.
    pub fn is_in_use(&mut self, now: Instant) -> bool {
        let timestamp = self.epoch.timestamp(now);
        self.table.iter().any(|entry| {
            let is_known =
                matches!(entry.session.dialogue.phase(), Phase::Greeted | Phase::Verified);
            is_known
                && !entry.session.is_half_closed()
                && timestamp.duration_since(entry.head.last_seen) < RECENT_USE
        })
    }

    /// The open connections with sequence adjustment, with their translation as far as it is known.
    pub fn adjusted_connections(&self) -> impl Iterator<Item = Translation> {
        let adjusted = |entry: &&Entry| entry.session.is_adjusted() && !entry.session.is_over();
        self.table.iter().filter(adjusted).map(|entry| entry.head.translation_or_identity())
    }
}

/// The request to open `held` again for the rest of its time, if any is left, on behalf of this control connection.
pub(crate) fn opening_again(
    held: &Pinhole,
    control: Option<&Translation>,
    now: Instant,
) -> Option<Opening> {
    let lifetime = held.deadline.saturating_duration_since(now);
    Some(held.opening(control.filter(|_| !lifetime.is_zero())?, lifetime))
}

#[cfg(test)]
#[path = "forged_records_tests.rs"]
mod tests;
