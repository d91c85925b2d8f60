//! An engine with a kernel that answers at once, for hosts without queues: `replay`, benchmarks, tests.

use std::time::Instant;

use crate::engine::{
    Effects, Engine, Event, Host, Kernel, OmittedEvents, PacketMeta, QueuedPacket, Released, Token,
    Verdict, carry_out, events::Events,
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

/// An engine with its kernel and the effects of one packet at a time.
pub struct Standalone<K> {
    /// The engine.
    pub engine: Engine,
    /// The kernel.
    pub kernel: K,
    /// Taken out while they are carried out.
    effects: Option<Box<Effects>>,
    verdicts: Vec<Released>,
    replacements: Vec<u8>,
    replacement: Verdict,
    /// Records of sessions, if the engine tracks changes.
    pub journal: Vec<Vec<u8>>,
    events: Events,
    last: u32,
}

impl<K: Kernel> Standalone<K> {
    /// Combines `engine` and `kernel`.
    pub fn new(mut engine: Engine, kernel: K) -> Self {
        engine.sessions.set_capacity(kernel.pinhole_capacity());
        Self {
            engine,
            kernel,
            effects: None,
            verdicts: Vec::new(),
            replacements: Vec::new(),
            replacement: Verdict::Accept,
            journal: Vec::new(),
            events: Events::default(),
            last: 0,
        }
    }

    /// Handles a packet without metadata.
    pub fn packet(&mut self, now: Instant, bytes: &[u8]) -> PacketOutcome {
        self.queued(now, bytes, PacketMeta::default())
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
        self.run(now, |engine, effects| engine.take(now, packets, effects));
    }

    /// Removes what has expired by `now`.
    pub fn expire(&mut self, now: Instant) {
        self.run(now, |engine, effects| engine.expire(now, effects));
    }

    /// Runs `work`, and carries out its effects.
    pub fn run<R>(&mut self, now: Instant, work: impl FnOnce(&mut Engine, &mut Effects) -> R) -> R {
        self.verdicts.clear();
        self.replacements.clear();
        self.replacement = Verdict::Accept;
        let mut effects = self.effects.take().unwrap_or_default();
        effects.activate(self.engine.sessions.pinholes.registry());
        let result = work(&mut self.engine, &mut effects);
        carry_out(self, now, std::slice::from_mut(&mut *effects));
        self.effects = Some(effects);
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
        let (events, omitted) = self.events.take();
        (events, omitted.all)
    }
}

impl<K: Kernel> Host for Standalone<K> {
    type Kernel = K;

    fn kernel(&mut self) -> &mut K {
        &mut self.kernel
    }

    fn with_engine<R>(&mut self, _: usize, work: impl FnOnce(&mut Engine) -> R) -> R {
        work(&mut self.engine)
    }

    fn conclude(&mut self, effects: &mut Effects) {
        self.engine.conclude(effects);
        self.journal.extend(effects.records().map(<[u8]>::to_vec));
    }

    fn give_verdicts(&mut self, effects: &[Effects]) {
        for effects in effects {
            let before = self.replacements.len() as u32;
            self.verdicts.extend(effects.verdicts.iter().cloned().map(|mut released| {
                if let Verdict::Replace(range) = &mut released.verdict {
                    *range = before + range.start..before + range.end;
                }
                released
            }));
            self.replacements.extend_from_slice(&effects.replacements);
        }
    }

    fn report_events(&mut self, events: &mut Vec<Event>, _: usize, omitted: OmittedEvents) {
        self.events.append(events, omitted);
    }
}
