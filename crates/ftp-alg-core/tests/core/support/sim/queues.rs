//! The queues of the simulated kernel, and when the daemon's workers do what.
//!
//! A worker goes from stage to stage, and takes a random time for each. Meanwhile packets arrive, other workers go on, and
//! the daemon may crash.

use std::collections::{BTreeMap, VecDeque};

use super::{
    super::Rng,
    daemon::{Given, Packet},
};

/// How packets get to the daemon and back. Times are in microseconds, and at most as long as this.
#[derive(Clone, Debug)]
pub struct Queueing {
    /// Queues, workers and shards.
    pub workers: usize,
    /// How many packets a worker takes at a time, at most.
    pub batch: usize,
    /// How long a worker takes to wake up.
    pub wake: u64,
    /// How long it takes from one stage to the next, and from one verdict to the next. Without that each packet has its
    /// verdict at once.
    pub stage: u64,
    /// How long the daemon is away after a crash.
    pub away: u64,
}

impl Queueing {
    /// A verdict for each packet before anything else happens.
    pub const AT_ONCE: Self = Self { workers: 1, batch: 1, wake: 0, stage: 0, away: 0 };

    pub fn is_at_once(&self) -> bool {
        self.stage == 0
    }
}

/// What a worker does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It waits for packets.
    Idle,
    /// It wakes up, and receives a batch.
    Receive,
    /// It takes the next step of what comes of its batch.
    Step,
}

/// What is due.
pub enum Due {
    /// The next stage of this worker.
    Worker(usize),
    Verdict(Given),
    /// The daemon is started again.
    Start,
    /// It reads what was inspected.
    Read,
}

/// Queues, and what is due in them.
pub struct Queues {
    pub settings: Queueing,
    rng: Rng,
    due: BTreeMap<(u64, u64), Due>,
    number: u64,
    waiting: Vec<VecDeque<Packet>>,
    pub stages: Vec<Stage>,
    /// The queue of the connection, if that chooses it.
    pub home: usize,
    pub is_away: bool,
    /// Whether it is due to read what was inspected.
    reads: bool,
}

/// How long what was inspected is not read, where no packet has the daemon do so. In microseconds.
const UNREAD: usize = 64_000;

impl Queues {
    pub fn new(settings: Queueing, mut rng: Rng) -> Self {
        let workers = settings.workers;
        let home = if workers > 1 { rng.below(workers) } else { 0 };
        Self {
            rng,
            due: BTreeMap::new(),
            number: 0,
            waiting: vec![VecDeque::new(); workers],
            // The timer is one more, and who reads what was inspected.
            stages: vec![Stage::Idle; workers + 2],
            home,
            is_away: false,
            reads: false,
            settings,
        }
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

    /// It is read now.
    pub fn reads(&mut self) {
        self.reads = false;
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
        let queue = self.home;
        self.waiting[queue].push_back(packet);
        if self.stages[queue] == Stage::Idle {
            let wake = self.some(self.settings.wake);
            self.next_stage(now + wake, queue, Stage::Receive);
        }
        true
    }

    /// A batch of the queue of `worker`.
    pub fn receive(&mut self, worker: usize) -> Vec<Packet> {
        let Some(queue) = self.waiting.get_mut(worker) else { return Vec::new() };
        let count = queue.len().min(1 + self.rng.below(self.settings.batch));
        queue.drain(..count).collect()
    }

    pub fn is_empty(&self, worker: usize) -> bool {
        self.waiting.get(worker).is_none_or(VecDeque::is_empty)
    }

    /// `worker` goes on with `stage` some time after `now`.
    pub fn go_on(&mut self, now: u64, worker: usize, stage: Stage) {
        let time = self.some(self.settings.stage);
        self.next_stage(now + time, worker, stage);
    }

    /// It does so at `at`.
    pub fn next_stage(&mut self, at: u64, worker: usize, stage: Stage) {
        self.stages[worker] = stage;
        self.add(at, Due::Worker(worker));
    }

    /// The verdicts are given one after another. Gives the time of the last.
    pub fn give(&mut self, now: u64, verdicts: Vec<Given>) -> u64 {
        let mut at = now;
        for verdict in verdicts {
            at += self.some(self.settings.stage);
            self.add(at, Due::Verdict(verdict));
        }
        at
    }

    /// The daemon is killed: what waits, and what has no verdict, is dropped. Gives how many packets are.
    pub fn crash(&mut self, now: u64) -> usize {
        let waiting: usize = self.waiting.iter().map(VecDeque::len).sum();
        let ungiven = self.due.values().filter(|due| matches!(due, Due::Verdict(_))).count();
        self.due.clear();
        self.waiting.iter_mut().for_each(VecDeque::clear);
        self.stages.fill(Stage::Idle);
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
