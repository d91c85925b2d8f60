//! The queue of the simulated kernel, and when the daemon's worker does what: packets between two addresses have one.
//!
//! The worker goes from stage to stage, and takes a random time for each. Meanwhile packets arrive, and the daemon may
//! crash.

use std::collections::{BTreeMap, VecDeque};

use super::{
    super::Rng,
    daemon::{Given, Packet},
};

/// How packets get to the daemon and back. Times are in microseconds, and at most as long as this.
#[derive(Clone, Debug, Default)]
pub struct Queueing {
    /// How many packets a worker takes at a time, at most.
    pub batch: usize,
    /// How long a worker takes to wake up.
    pub wake: u64,
    /// How long it takes from one stage to the next, and from one verdict to the next.
    pub stage: u64,
    /// How long the daemon is away after a crash.
    pub away: u64,
}

impl Queueing {
    /// A verdict for each packet before anything else happens.
    pub const AT_ONCE: Self = Self { batch: 1, wake: 0, stage: 0, away: 0 };
}

/// What the worker does next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    /// It waits for packets.
    #[default]
    Idle,
    /// It wakes up, and receives a batch.
    Receive,
    /// It carries out what it has decided.
    Finish,
}

/// What is due.
pub enum Due {
    /// The next stage of the worker.
    Worker,
    Verdict(Given),
    /// Packets that the daemon sends.
    Injected(Vec<Vec<u8>>),
    /// The daemon is started again.
    Start,
    /// It reads what was inspected.
    Read,
}

/// Queues, and what is due in them.
#[derive(Default)]
pub struct Queues {
    pub settings: Queueing,
    rng: Rng,
    due: BTreeMap<(u64, u64), Due>,
    number: u64,
    waiting: VecDeque<Packet>,
    pub stage: Stage,
    pub is_away: bool,
    /// Whether it is due to read what was inspected.
    pub reads: bool,
}

/// How long what was inspected is not read, where no packet has the daemon do so. In microseconds.
const UNREAD: usize = 64_000;

impl Queues {
    pub fn new(settings: Queueing, rng: Rng) -> Self {
        Self { settings, rng, ..Self::default() }
    }

    /// When the next thing is due.
    pub fn next_time(&self) -> Option<u64> {
        self.due.first_key_value().map(|((at, _), _)| *at)
    }

    pub fn pop(&mut self) -> Option<Due> {
        self.due.pop_first().map(|(_, due)| due)
    }

    /// Something was inspected: it is read a while after `now`.
    pub fn read_later(&mut self, now: u64) {
        if !std::mem::replace(&mut self.reads, true) && !self.is_away {
            let pause = self.rng.below(UNREAD) as u64;
            self.add(now + pause, Due::Read);
        }
    }

    fn add(&mut self, at: u64, due: Due) {
        self.number += 1;
        self.due.insert((at, self.number), due);
    }

    /// Some time of a stage.
    fn some(&mut self, most: u64) -> u64 {
        // Most take not long, and some do.
        let most = if self.rng.chance(0.8) { most / 8 } else { most };
        self.rng.below(most as usize + 1) as u64
    }

    /// A packet comes into a queue. Without a daemon it is dropped; whether it was not.
    pub fn push(&mut self, now: u64, packet: Packet) -> bool {
        if self.is_away {
            return false;
        }
        self.waiting.push_back(packet);
        if self.stage == Stage::Idle {
            let wake = self.some(self.settings.wake);
            self.next_stage(now + wake, Stage::Receive);
        }
        true
    }

    /// A batch.
    pub fn receive(&mut self) -> Vec<Packet> {
        let count = self.waiting.len().min(1 + self.rng.below(self.settings.batch));
        self.waiting.drain(..count).collect()
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The worker goes on with `stage` some time after `now`.
    pub fn go_on(&mut self, now: u64, stage: Stage) {
        let time = self.some(self.settings.stage);
        self.next_stage(now + time, stage);
    }

    /// It does so at `at`.
    fn next_stage(&mut self, at: u64, stage: Stage) {
        self.stage = stage;
        self.add(at, Due::Worker);
    }

    /// The verdicts are given one after another, and then packets are sent. Gives the time of that.
    pub fn give(&mut self, now: u64, verdicts: Vec<Given>, injected: Vec<Vec<u8>>) -> u64 {
        let mut at = now;
        for verdict in verdicts {
            at += self.some(self.settings.stage);
            self.add(at, Due::Verdict(verdict));
        }
        if !injected.is_empty() {
            self.add(at, Due::Injected(injected));
        }
        at
    }

    /// The daemon is killed: what waits, and what has no verdict, is dropped. Gives how many packets are.
    pub fn crash(&mut self, now: u64) -> usize {
        let waiting = self.waiting.len();
        let ungiven = self.due.values().filter(|due| matches!(due, Due::Verdict(_))).count();
        self.due.clear();
        self.waiting.clear();
        self.stage = Stage::Idle;
        self.is_away = true;
        self.reads = false;
        let away = if self.rng.chance(0.5) { self.some(self.settings.away) } else { 0 };
        self.add(now + away, Due::Start);
        waiting + ungiven
    }

    /// It is started again.
    pub fn start(&mut self) {
        self.due.clear();
        self.is_away = false;
        self.reads = false;
    }
}
