//! The daemon of the simulated network, and every call into its engine. As in the real one, nothing else uses the engine
//! from the decision about a batch until all of that is carried out.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use ftp_alg_core::{
    engine::{
        Batch, Checksums, Closing, EncodedRecord, Engine, Event, FastPathLine, Host, Kernel as _,
        PacketMeta, PinholeEnds, PinholeId, QueuedPacket, SessionRecords, Token, Verdict,
    },
    ftp::Padding,
    policy::Policy,
    session::Side,
};

use super::super::{
    fast_path::layout::{self, LineRecord},
    link::Origin,
    recorder::{Life, Recorder},
};

/// A queued packet.
#[derive(Clone, Debug)]
pub struct Packet {
    /// One of its own.
    pub number: u32,
    pub from: Side,
    pub origin: Origin,
    pub bytes: Vec<u8>,
    pub meta: PacketMeta,
}

/// What becomes of a queued packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Accept,
    Replace(Vec<u8>),
    Drop,
}

/// A verdict.
#[derive(Clone, Debug)]
pub struct Given {
    pub packet: Packet,
    pub decision: Decision,
}

/// The daemon: its journal outlives a crash, and nothing else does.
pub struct Daemon {
    pub policy: Policy,
    epoch: Instant,
    engine: Engine,
    /// The sessions from before the last restart whose packets did not come since.
    restored: Engine,
    /// When the batch arrived that is decided, but not carried out.
    decided: Option<Instant>,
    /// The position in the ring before which all lines were read, if connections are handed over.
    fast_path: Option<usize>,
    out: Out,
}

/// How much later another gateway takes the epoch of the records to be: it learns that from messages.
const EPOCH_ERROR: Duration = Duration::from_millis(250);
/// How much longer than each gateway the one that takes over has run.
const UPTIME: Duration = Duration::from_secs(5000);

/// What came out of the engine.
struct Out {
    life: Life,
    /// The journals of the engine, and of restored sessions.
    journals: [Vec<Vec<u8>>; 2],
    /// Packets that the engine has.
    packets: BTreeMap<u32, Packet>,
    /// Verdicts since they were last taken.
    given: Vec<Given>,
    /// Whether packets pass unread while a batch is decided.
    lapses: bool,
    /// Whether another gateway gets the records.
    is_pair: bool,
}

impl Out {
    fn write(&mut self, journal: usize, batch: &Batch) {
        if self.life.call() {
            let is_pair = self.is_pair;
            let records = batch.records().map(|record| written(record, is_pair));
            self.journals[journal].extend(records);
        }
    }
}

/// What is written of a record.
fn written(record: EncodedRecord<'_>, is_pair: bool) -> Vec<u8> {
    let is_gone = record.portable.is_empty();
    if is_pair && !is_gone { record.portable.to_vec() } else { record.bytes.to_vec() }
}

impl Host for Out {
    fn had_downtime(&mut self) -> bool {
        self.lapses
    }

    fn record(&mut self, batch: &Batch) {
        self.write(0, batch);
    }

    fn give(&mut self, batch: &Batch) {
        if !self.life.call() {
            return;
        }
        for released in &batch.verdicts {
            let packet = self.packets.remove(&released.token.id).expect("one verdict");
            let decision = match &released.verdict {
                Verdict::Accept => Decision::Accept,
                Verdict::Drop(_) => Decision::Drop,
                verdict @ Verdict::Replace(_) => {
                    Decision::Replace(verdict.replacement(&batch.replacements).to_vec())
                }
            };
            self.given.push(Given { packet, decision });
        }
    }
}

/// What comes out of the engine that has the restored sessions.
struct RestoredOut<'a>(&'a mut Out);

impl Host for RestoredOut<'_> {
    fn record(&mut self, batch: &Batch) {
        self.0.write(1, batch);
    }

    fn give(&mut self, batch: &Batch) {
        assert!(batch.verdicts.is_empty());
    }
}

impl Daemon {
    /// One that has seen nothing, and ends with this `life`.
    pub fn new(
        policy: Policy,
        epoch: Instant,
        life: Life,
        hands_over: bool,
        is_pair: bool,
    ) -> Self {
        let mut engine = Engine::new(policy.clone(), Checksums::Verify);
        engine.sessions.track_changes(epoch);
        engine.sessions.set_uses_fast_path(hands_over);
        let out = Out {
            life,
            journals: [Vec::new(), Vec::new()],
            packets: BTreeMap::new(),
            given: Vec::new(),
            lapses: false,
            is_pair,
        };
        let fast_path = hands_over.then_some(0);
        let restored = engine.new_restored_shard();
        Self { policy, epoch, engine, restored, decided: None, fast_path, out }
    }

    /// What is written of the sessions, record by record.
    pub fn journal(&self) -> &[Vec<u8>] {
        &self.out.journals[0]
    }

    /// The engine that has the session.
    pub fn engine(&mut self) -> &mut Engine {
        if self.restored.sessions.count() > 0 { &mut self.restored } else { &mut self.engine }
    }

    /// How many sessions there are.
    pub fn sessions(&self) -> usize {
        self.engine.sessions.count() + self.restored.sessions.count()
    }

    /// Whether packets pass unread while a batch is decided.
    pub fn set_lapses(&mut self, lapses: bool) {
        self.out.lapses = lapses;
    }

    /// Whether a batch is decided, but not carried out.
    pub fn is_busy(&self) -> bool {
        self.decided.is_some()
    }

    /// Decides about `packets`.
    pub fn take(&mut self, now: Instant, packets: Vec<Packet>, kernel: &mut Recorder) {
        let arrivals = packets.iter().map(|packet| {
            let token = Token { id: packet.number, mark: 0 };
            QueuedPacket { token, bytes: &packet.bytes, meta: packet.meta }
        });
        self.engine.stop_fast_path(arrivals.clone(), kernel);
        self.feed(kernel);
        for packet in &packets {
            self.adopt(&packet.bytes);
        }
        self.engine.take(now, arrivals, kernel);
        self.out.packets.extend(packets.into_iter().map(|packet| (packet.number, packet)));
        self.decided = Some(now);
    }

    /// Has the engine adopt the session of a packet.
    fn adopt(&mut self, packet: &[u8]) {
        if self.engine.sessions.adopt(&mut self.restored.sessions, packet) {
            self.engine.sessions.write_records(|batch| self.out.write(0, batch));
            self.restored.sessions.write_records(|batch| self.out.write(1, batch));
        }
    }

    /// Has the engine read what was inspected by now.
    fn feed(&mut self, kernel: &mut Recorder) {
        if let Some(position) = &mut self.fast_path {
            feed(&mut self.engine, position, self.epoch, kernel);
        }
    }

    /// Drops what is over, and goes on with what has waited for long enough.
    pub fn expire(&mut self, now: Instant, kernel: &mut Recorder) {
        self.feed(kernel);
        self.restored.expire(now, kernel);
        self.restored.finish(now, kernel, &mut RestoredOut(&mut self.out));
        self.engine.expire(now, kernel);
        self.decided = Some(now);
    }

    /// The engine does something else, and carries out what comes of it.
    pub fn run(
        &mut self,
        now: Instant,
        kernel: &mut Recorder,
        work: impl FnOnce(&mut Engine, &mut Recorder),
    ) {
        let out = &mut self.out;
        if self.restored.sessions.count() > 0 {
            work(&mut self.restored, kernel);
            self.restored.finish(now, kernel, &mut RestoredOut(out));
        } else {
            work(&mut self.engine, kernel);
            self.engine.finish(now, kernel, out);
        }
    }

    /// Reads what was inspected, carries out what comes of it, and releases its room.
    pub fn read(&mut self, now: Instant, kernel: &mut Recorder) {
        let Some(position) = &mut self.fast_path else { return };
        feed(&mut self.engine, position, self.epoch, kernel);
        self.engine.finish(now, kernel, &mut self.out);
        if self.out.life.call() {
            kernel.program.release_lines(*position);
        }
    }

    /// When something in the reorder queue has waited for long enough.
    pub fn waits_until(&self) -> Option<Instant> {
        self.engine.reorder_deadline()
    }

    /// Carries out what was decided, if anything was.
    pub fn finish(&mut self, kernel: &mut Recorder) {
        if let Some(now) = self.decided.take() {
            self.engine.finish(now, kernel, &mut self.out);
        }
    }

    /// The verdicts that were given, in the order of the packets.
    pub fn take_given(&mut self) -> Vec<Given> {
        std::mem::take(&mut self.out.given)
    }

    pub fn take_events(&mut self) -> Vec<Event> {
        let mut events = self.restored.take_events(Vec::new()).0;
        events.extend(self.engine.take_events(Vec::new()).0);
        events
    }

    /// It is killed: what it wrote is left.
    pub fn crash(&mut self) {
        self.assert_no_fast_path_mismatch();
        self.out.life.begin();
        self.decided = None;
        self.out.packets.clear();
    }

    /// It is started again, perhaps on another gateway, and reads what was written.
    pub fn restart(&mut self, now: Instant) {
        let is_pair = self.out.is_pair;
        let epoch = self.epoch;
        if is_pair {
            self.epoch = epoch.checked_sub(UPTIME).unwrap();
        }
        self.engine = Engine::new(self.policy.clone(), Checksums::Verify);
        self.engine.sessions.track_changes(self.epoch);
        self.restored = self.engine.new_restored_shard();
        let [own, old] = &mut self.out.journals;
        let read = |journal: &[Vec<u8>]| {
            let records = journal.iter().map(Vec::as_slice);
            if !is_pair {
                return SessionRecords::read(records).unwrap();
            }
            let (records, damaged) = SessionRecords::read_each(records);
            assert_eq!(damaged, 0);
            records
        };
        let mut records = read(old);
        records.add(read(own));
        let sessions = &mut self.restored.sessions;
        if is_pair {
            records.leave_machine(&self.policy);
            sessions.restore_sessions(records, now, epoch + EPOCH_ERROR);
        } else {
            sessions.restore_sessions(records, now, epoch);
        }
        sessions.track_changes(self.epoch);
        own.clear();
        old.clear();
        sessions.write_all_records(|record| old.push(written(record, is_pair))).unwrap();
    }

    /// It has the kernel of another gateway open the pinholes that are open here.
    fn take_over(&mut self, now: Instant, kernel: &mut Recorder) {
        kernel.interfaces = kernel.interfaces.map(|index| index + 7);
        let open = kernel.take_open();
        let is_open = |ends: &PinholeEnds| open.contains(&ends.key());
        for opening in self.restored.sessions.missing_pinholes(now, is_open).collect::<Vec<_>>() {
            kernel.open(&opening, &[]).unwrap();
        }
    }

    /// It has the kernel know the same pinholes as its sessions.
    pub fn begin(&mut self, now: Instant, kernel: &mut Recorder) {
        if self.out.is_pair {
            self.take_over(now, kernel);
        }
        for pinhole in kernel.pinholes() {
            if !self.restored.sessions.holds_pinhole(pinhole.initiator, pinhole.arrival) {
                kernel.remove(&Closing::Rules(pinhole)).unwrap();
            }
        }
        if self.fast_path.is_some() {
            self.reconcile(now, kernel);
        }
    }

    /// Has the engine and the program know the same connections, as the real one does when it is started.
    fn reconcile(&mut self, now: Instant, kernel: &mut Recorder) {
        self.fast_path = Some(kernel.program.released);
        self.read_restored(now, kernel);
        self.restored.sessions.set_uses_fast_path(false);
        self.engine.sessions.set_uses_fast_path(true);
        self.read_restored(now, kernel);
        for flow in kernel.program.flow_ids() {
            kernel.program.take_back_any(flow);
        }
        self.read_restored(now, kernel);
        let sessions = &self.restored.sessions;
        kernel.program.retain_pinholes(|initiator, arrival, flow, line| match flow {
            0 => sessions.holds_pinhole(initiator, arrival),
            _ => sessions.fast_path_pinholes().any(|hole| hole == PinholeId { flow, line }),
        });
    }

    /// As [`read`](Self::read), for the sessions that were restored.
    fn read_restored(&mut self, now: Instant, kernel: &mut Recorder) {
        let Some(position) = &mut self.fast_path else { return };
        feed(&mut self.restored, position, self.epoch, kernel);
        self.restored.finish(now, kernel, &mut RestoredOut(&mut self.out));
        kernel.program.release_lines(*position);
    }

    /// No line was inspected that the engine would have decided otherwise.
    pub fn assert_no_fast_path_mismatch(&self) {
        let engines = [&self.engine, &self.restored];
        let otherwise: u64 =
            engines.map(|engine| engine.counters().fast_path_mismatches).iter().sum();
        assert_eq!(0, otherwise, "decided differently than the engine");
    }
}

/// Has `engine` read the lines that were inspected behind `position`.
fn feed(engine: &mut Engine, position: &mut usize, epoch: Instant, kernel: &mut Recorder) {
    let lines = kernel.program.lines(*position).to_vec();
    *position += lines.len();
    if !lines.is_empty() {
        engine.read_fast_path_lines(lines.iter().map(|line| read(line, epoch)), kernel);
    }
}

fn read(line: &LineRecord, epoch: Instant) -> FastPathLine<'_> {
    let is_by_client = line.side == layout::Side::Client as u32;
    FastPathLine {
        flow: line.flow,
        line: line.number,
        at: epoch + Duration::from_nanos(line.at_ns),
        from: if is_by_client { Side::Client } else { Side::Server },
        client: line.client(),
        server: line.server(),
        seq: line.seq,
        ack: line.ack,
        window: line.window,
        opened_pinhole: line.opened_pinhole != 0,
        consumed_pinhole: (line.consumed_pinhole != 0).then_some(line.consumed_pinhole),
        is_fin: line.is_fin != 0,
        padding: Padding::from_digits(line.port_digits.into()),
        bytes: line.line(),
    }
}
