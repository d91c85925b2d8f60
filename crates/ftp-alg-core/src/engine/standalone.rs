//! An engine with its kernel, for hosts without queues: `replay`, benchmarks, tests.

use std::time::Instant;

use crate::engine::{
    Batch, Engine, Event, Host, Kernel, PacketMeta, QueuedPacket, Released, Token, Verdict,
};

/// What happened to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PacketOutcome {
    /// It was forwarded unchanged.
    Accept,
    /// The [replacement](Standalone::replacement) was forwarded.
    Replace,
    /// It was dropped.
    Drop,
    /// It waits in the engine.
    Wait,
}

/// An engine with its kernel.
pub struct Standalone<K> {
    /// The engine.
    pub engine: Engine,
    /// The kernel.
    pub kernel: K,
    /// Records of sessions, if the engine tracks changes.
    pub journal: Vec<Vec<u8>>,
    verdicts: Vec<Released>,
    replacements: Vec<u8>,
    replacement: Verdict,
    last: u32,
}

struct BatchHost<'a> {
    verdicts: &'a mut Vec<Released>,
    replacements: &'a mut Vec<u8>,
    journal: &'a mut Vec<Vec<u8>>,
}

impl Host for BatchHost<'_> {
    fn record(&mut self, batch: &Batch) {
        self.journal.extend(batch.records().map(|record| record.bytes.to_vec()));
    }

    fn give(&mut self, batch: &Batch) {
        self.verdicts.clone_from(&batch.verdicts);
        self.replacements.clone_from(&batch.replacements);
    }
}

impl<K: Kernel> Standalone<K> {
    /// Combines `engine` and `kernel`.
    pub fn new(mut engine: Engine, kernel: K) -> Self {
        engine.sessions.set_capacity(kernel.pinhole_capacity());
        let (journal, verdicts, replacements) = Default::default();
        let replacement = Verdict::Accept;
        Self { engine, kernel, journal, verdicts, replacements, replacement, last: 0 }
    }

    /// Handles a packet without metadata.
    pub fn packet(&mut self, now: Instant, bytes: &[u8]) -> PacketOutcome {
        self.queued(now, bytes, PacketMeta::FORWARDED)
    }

    /// Handles a packet.
    pub fn queued(&mut self, now: Instant, bytes: &[u8], meta: PacketMeta) -> PacketOutcome {
        self.last = self.last.wrapping_add(1);
        let token = Token { id: self.last, ..Token::default() };
        self.take(now, std::iter::once(QueuedPacket { token, bytes, meta }));
        let released = self.verdicts.iter().find(|released| released.token == token);
        match released.map(|released| &released.verdict) {
            None => PacketOutcome::Wait,
            Some(Verdict::Accept) => PacketOutcome::Accept,
            Some(Verdict::Drop(_)) => PacketOutcome::Drop,
            Some(Verdict::Replace(range)) => {
                self.replacement = Verdict::Replace(range.clone());
                PacketOutcome::Replace
            }
        }
    }

    /// The replacement of the last packet.
    pub fn replacement(&self) -> &[u8] {
        self.replacement.replacement(&self.replacements)
    }

    /// Handles a batch.
    pub fn take<'p>(
        &mut self,
        now: Instant,
        packets: impl Iterator<Item = QueuedPacket<'p>> + Clone,
    ) {
        self.run(now, |engine, kernel| {
            engine.stop_fast_path(packets.clone(), kernel);
            engine.take(now, packets, kernel);
        });
    }

    /// Removes what has expired by `now`.
    pub fn expire(&mut self, now: Instant) {
        self.run(now, |engine, kernel| engine.expire(now, kernel));
    }

    /// Runs `work`, and finishes it.
    pub fn run<R>(&mut self, now: Instant, work: impl FnOnce(&mut Engine, &mut K) -> R) -> R {
        self.replacement = Verdict::Accept;
        let result = work(&mut self.engine, &mut self.kernel);
        let Self { verdicts, replacements, journal, .. } = self;
        let mut host = BatchHost { verdicts, replacements, journal };
        self.engine.finish(now, &mut self.kernel, &mut host);
        result
    }

    /// The verdicts of the last batch.
    pub fn verdicts(&self) -> &[Released] {
        &self.verdicts
    }

    /// Replacements of packets.
    pub fn replacements(&self) -> &[u8] {
        &self.replacements
    }

    /// Events since the last call, and the number of omitted ones.
    pub fn take_events(&mut self) -> (Vec<Event>, u64) {
        let (events, omitted) = self.engine.take_events(Vec::new());
        (events, omitted.all)
    }
}
