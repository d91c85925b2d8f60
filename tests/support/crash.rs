//! A gateway that crashes at the worst moment, and is started again at once from what it wrote.
//!
//! Crashes come while a packet waits for its verdict, or copies are read: before what changed is written, or after.
//! Either way the packet is dropped, and what was to be sent is not.

use std::time::Instant;

use ftp_alg_core::{
    engine::{Checksums, Engine, Kernel},
    policy::Policy,
};

use super::{Rng, recorder::Recorder, selection::Selection};

/// What outlives a crash, and when crashes come.
pub struct Crashes {
    /// How often, for each packet.
    chance: f64,
    policy: Policy,
    rng: Rng,
    epoch: Instant,
    journal: Vec<Vec<u8>>,
    /// Whether the packet selection takes answers.
    answers: bool,
    pub count: u64,
}

impl Crashes {
    /// The engine, and what becomes of it.
    pub fn new(
        chance: f64,
        policy: Policy,
        epoch: Instant,
        rng: Rng,
        answers: bool,
    ) -> (Engine, Self) {
        let mut engine = Engine::new(policy.clone(), Checksums::Verify);
        engine.set_selection(answers);
        engine.note_changes(epoch);
        (engine, Self { chance, policy, rng, epoch, journal: Vec::new(), answers, count: 0 })
    }

    /// Whether there are any.
    pub fn may_come(&self) -> bool {
        self.chance > 0.0
    }

    /// To be called between decision and verdict, and when copies were read: writes what changed, unless it
    /// crashes. Whether it did; then the packet has no verdict.
    pub fn strike(
        &mut self,
        engine: &mut Engine,
        kernel: &mut Recorder,
        selection: &mut Selection,
        now: Instant,
    ) -> bool {
        let (crashes, writes) = (self.rng.chance(self.chance), self.rng.chance(0.5));
        if !crashes || writes {
            engine.take_changes(|record| self.journal.push(record.to_vec())).unwrap();
            selection.unwritten = false;
        }
        if crashes {
            self.count += 1;
            selection.crashed(writes);
            *engine = self.started_again(kernel, now);
        }
        crashes
    }

    /// One that comes when all is written.
    pub fn crash(&mut self, engine: &mut Engine, kernel: &mut Recorder, now: Instant) {
        engine.take_changes(|record| self.journal.push(record.to_vec())).unwrap();
        self.count += 1;
        *engine = self.started_again(kernel, now);
    }

    fn started_again(&mut self, kernel: &mut Recorder, now: Instant) -> Engine {
        let mut engine = Engine::new(self.policy.clone(), Checksums::Verify);
        engine.set_selection(self.answers);
        engine.restore(self.journal.iter().map(Vec::as_slice), now, self.epoch).unwrap();
        engine.note_changes(self.epoch);
        self.journal.clear();
        engine.records(|record| self.journal.push(record.to_vec())).unwrap();
        for pinhole in kernel.pinholes() {
            if !engine.holds(pinhole.initiator, pinhole.arrival) {
                kernel.close(&pinhole).unwrap();
            }
        }
        engine
    }
}
