//! An engine with a kernel that answers at once, for hosts without queues: `replay`, benchmarks, tests.

use std::time::Instant;

use super::{
    Arrival, Effects, Engine, Event, Host, Kernel, Queued, Released, Token, Verdict, carry_out,
    event::Events,
};

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It went on as it is.
    Accept,
    /// The [replacement](Standalone::replacement) went on.
    Replace,
    /// It was dropped.
    Drop,
    /// It waits in the engine.
    Wait,
}

/// An engine, its kernel, and what comes of one packet at a time.
pub struct Standalone<K> {
    /// The engine.
    pub engine: Engine,
    /// The kernel.
    pub kernel: K,
    /// Taken out while they are carried out.
    effects: Option<Box<Effects>>,
    given: Vec<Released>,
    replacements: Vec<u8>,
    replacement: Verdict,
    /// Records of sessions, where the engine notes changes.
    pub journal: Vec<Vec<u8>>,
    events: Events,
    last: u32,
}

impl<K: Kernel> Standalone<K> {
    /// `engine`, which asks `kernel`.
    pub fn new(mut engine: Engine, kernel: K) -> Self {
        engine.sessions.set_capacity(kernel.capacity());
        Self {
            engine,
            kernel,
            effects: None,
            given: Vec::new(),
            replacements: Vec::new(),
            replacement: Verdict::Accept,
            journal: Vec::new(),
            events: Events::default(),
            last: 0,
        }
    }

    /// Decides about a packet of a selection that tells nothing, and does what comes of it.
    pub fn packet(&mut self, now: Instant, bytes: &[u8]) -> Fate {
        self.queued(now, bytes, Queued::default())
    }

    /// Decides about a packet, and does what comes of it.
    pub fn queued(&mut self, now: Instant, bytes: &[u8], how: Queued) -> Fate {
        self.last = self.last.wrapping_add(1);
        let token = Token { id: self.last, ..Token::default() };
        self.take(now, std::iter::once(Arrival { token, bytes, how }));
        let released = self.given.iter().find(|released| released.token == token);
        match released.map(|released| &released.verdict) {
            None => Fate::Wait,
            Some(Verdict::Accept) => Fate::Accept,
            Some(Verdict::Drop(_)) => Fate::Drop,
            Some(Verdict::Replace(range)) => {
                self.replacement = Verdict::Replace(range.clone());
                Fate::Replace
            }
        }
    }

    /// What went on in the place of the last packet that was replaced.
    pub fn replacement(&self) -> &[u8] {
        self.replacement.replacement(&self.replacements)
    }

    /// Decides about a batch, and does what comes of it.
    pub fn take<'p>(&mut self, now: Instant, packets: impl Iterator<Item = Arrival<'p>> + Clone) {
        self.work(now, |engine, effects| engine.take(now, packets, effects));
    }

    /// Drops what is over by `now`.
    pub fn expire(&mut self, now: Instant) {
        self.work(now, |engine, effects| engine.expire(now, effects));
    }

    /// Does `work`, and what comes of it.
    pub fn work<R>(
        &mut self,
        now: Instant,
        work: impl FnOnce(&mut Engine, &mut Effects) -> R,
    ) -> R {
        self.given.clear();
        self.replacements.clear();
        self.replacement = Verdict::Accept;
        let mut effects = self.effects.take().unwrap_or_default();
        effects.touch(self.engine.sessions.pinholes.places());
        let result = work(&mut self.engine, &mut effects);
        carry_out(self, now, std::slice::from_mut(&mut *effects));
        self.effects = Some(effects);
        result
    }

    /// The verdicts that were given.
    pub fn given(&self) -> &[Released] {
        &self.given
    }

    /// What went on in the place of packets.
    pub fn replacements(&self) -> &[u8] {
        &self.replacements
    }

    /// What was decided since this was last called, and how much more.
    pub fn take_events(&mut self) -> (Vec<Event>, u64) {
        self.events.take()
    }
}

impl<K: Kernel> Host for Standalone<K> {
    type Kernel = K;

    fn kernel(&mut self) -> &mut K {
        &mut self.kernel
    }

    fn with<R>(&mut self, _: usize, work: impl FnOnce(&mut Engine) -> R) -> R {
        work(&mut self.engine)
    }

    fn conclude(&mut self, effects: &mut Effects) {
        self.engine.conclude(effects);
        self.journal.extend(effects.records().map(<[u8]>::to_vec));
    }

    fn give(&mut self, effects: &[Effects]) {
        for effects in effects {
            let before = self.replacements.len() as u32;
            self.given.extend(effects.verdicts.iter().cloned().map(|mut released| {
                if let Verdict::Replace(range) = &mut released.verdict {
                    *range = before + range.start..before + range.end;
                }
                released
            }));
            self.replacements.extend_from_slice(&effects.replacements);
        }
    }

    fn events(&mut self, events: &mut Vec<Event>, more: u64) {
        self.events.add(events, more);
    }
}
