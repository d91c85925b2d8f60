//! The daemon of the simulated network: shards and workers, and every call into the engine, in the order that
//! `src/daemon/worker.rs` has. All else of the simulated network knows nothing of that order.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use ftp_alg_core::{
    engine::{
        Answer, Checksums, Engine, Event, Handled, Kept, Kernel as _, Queued, Turn, Verdict,
        Waiting,
    },
    policy::Policy,
    session::Side,
};

use super::{
    super::{link::Origin, recorder::Recorder, selection::Mark},
    queues::Fanout,
};

/// A queued packet.
#[derive(Clone, Debug)]
pub struct Packet {
    pub from: Side,
    pub origin: Origin,
    pub bytes: Vec<u8>,
    pub mark: Mark,
    /// Whether it may wait for what it overtook.
    pub may_wait: bool,
}

/// What becomes of a queued packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Accept,
    Replace(Vec<u8>),
    Drop,
}

/// A verdict, and what it tells the packet selection.
#[derive(Clone, Debug)]
pub struct Given {
    pub packet: Packet,
    pub decision: Decision,
    pub answer: Answer,
}

/// A fix that is taken out: the network must find that something goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hole {
    /// A packet is decided on a fast path that began after it was queued.
    DecidedInLaterCalm,
    /// The same of a packet that waited meanwhile for what it overtook.
    WaitedThroughCalm,
    /// A copy is longer than its slot.
    LongCopy,
}

/// How packets come to be decided (`Pace` of `src/daemon/worker.rs`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    Ordinary,
    Due,
    Overdue,
}

/// Packets that are decided together.
struct Batch {
    pace: Pace,
    packets: Vec<Packet>,
    homes: Vec<usize>,
    decided: Vec<(Option<Decision>, Handled, Answer)>,
}

#[derive(Default)]
struct Worker {
    now: Option<Instant>,
    rounds: VecDeque<Batch>,
    early: Waiting<Packet>,
}

/// An engine, and what it wrote.
struct Shard {
    engine: Engine,
    journal: Vec<Vec<u8>>,
}

/// The daemon: its journals outlive a crash, and nothing else does.
pub struct Daemon {
    policy: Policy,
    answers: bool,
    epoch: Instant,
    fanout: Fanout,
    shards: Vec<Shard>,
    workers: Vec<Worker>,
    /// The shard of the connection.
    home: usize,
    pub hole: Option<Hole>,
}

impl Daemon {
    /// One that has seen nothing; `answers` if the packet selection knows calm connections. The packets of the one
    /// connection that there is come by the queue `home`, or are at home there.
    pub fn new(
        policy: Policy,
        answers: bool,
        epoch: Instant,
        (workers, fanout, home): (usize, Fanout, usize),
    ) -> Self {
        let mut daemon = Self {
            policy,
            answers,
            epoch,
            fanout,
            shards: Vec::new(),
            workers: Vec::new(),
            home,
            hole: None,
        };
        daemon.workers.resize_with(workers, Worker::default);
        let first = Engine::new(daemon.policy.clone(), Checksums::Verify);
        for _ in 0..workers {
            let mut engine = first.beside();
            engine.set_selection(answers);
            engine.note_changes(epoch);
            daemon.shards.push(Shard { engine, journal: Vec::new() });
        }
        daemon
    }

    /// The engine of the connection.
    pub fn engine(&mut self) -> &mut Engine {
        &mut self.shards[self.home].engine
    }

    /// How many sessions all engines follow.
    pub fn sessions(&self) -> usize {
        self.shards.iter().map(|shard| shard.engine.session_count()).sum()
    }

    /// The shard of a packet that came by the queue of `worker`.
    fn home_of(&self, worker: usize) -> usize {
        match self.fanout {
            Fanout::Connection => worker,
            Fanout::Cpu => self.home,
        }
    }

    /// `worker` has received `packets`.
    pub fn take_batch(&mut self, worker: usize, now: Instant, packets: Vec<Packet>) {
        self.workers[worker].now = Some(now);
        if !packets.is_empty() {
            self.add_round(worker, Pace::Ordinary, packets);
        }
    }

    fn add_round(&mut self, worker: usize, pace: Pace, packets: Vec<Packet>) {
        let homes = vec![self.home_of(worker); packets.len()];
        let decided = vec![(None, Handled::NONE, Answer::Nothing); packets.len()];
        let batch = Batch { pace, packets, homes, decided };
        self.workers[worker].rounds.push_back(batch);
    }

    /// Whether `worker` has something to decide about.
    pub fn has_work(&self, worker: usize) -> bool {
        !self.workers[worker].rounds.is_empty()
    }

    /// Whether something that `worker` received waits for what it overtook.
    pub fn has_early(&self, worker: usize) -> bool {
        !self.workers[worker].early.is_empty()
    }

    /// The shards of what `worker` decides about, in the order in which it locks them.
    pub fn shards_of(&self, worker: usize) -> Vec<usize> {
        let Some(batch) = self.workers[worker].rounds.front() else { return Vec::new() };
        (0..self.shards.len()).filter(|shard| batch.homes.contains(shard)).collect()
    }

    /// Reads all copies that have come.
    pub fn read_copies(
        &mut self,
        now: Instant,
        (copies, were_lost): (Vec<Vec<u8>>, bool),
        kernel: &mut Recorder,
    ) {
        let home = self.home;
        for copy in copies {
            let shards = match self.fanout {
                Fanout::Cpu => &mut self.shards[home..=home],
                Fanout::Connection => &mut self.shards[..],
            };
            shards.iter_mut().any(|shard| shard.engine.passed(now, &copy, kernel));
        }
        if were_lost {
            self.shards.iter_mut().for_each(|shard| shard.engine.lose_copies());
        }
    }

    /// The same for `worker`, before it decides.
    pub fn read_copies_for(
        &mut self,
        worker: usize,
        copies: (Vec<Vec<u8>>, bool),
        kernel: &mut Recorder,
    ) {
        if let Some(now) = self.workers[worker].now {
            self.read_copies(now, copies, kernel);
        }
    }

    /// `worker` decides about those of its packets that are at home in `shard`.
    pub fn decide(&mut self, worker: usize, shard: usize, kernel: &mut Recorder) {
        let hole = self.hole;
        let engine = &mut self.shards[shard].engine;
        let Worker { now: Some(now), rounds, early } = &mut self.workers[worker] else { return };
        let (now, Some(batch)) = (*now, rounds.front_mut()) else { return };
        let Batch { pace, packets, homes, decided } = batch;
        let own = packets.iter().zip(homes.iter()).filter(|(_, home)| **home == shard);
        engine.expect(own.map(|(packet, _)| &packet.bytes[..]));
        for ((packet, home), decided) in packets.iter().zip(homes.iter()).zip(decided.iter_mut()) {
            if *home != shard {
                continue;
            }
            let has_waited = *pace != Pace::Ordinary && hole != Some(Hole::WaitedThroughCalm);
            let is_hole = hole == Some(Hole::DecidedInLaterCalm);
            let from = if let Mark::From(side) = packet.mark { Some(side) } else { None };
            let mut out = vec![0xa5; 5]; // junk that must go
            let mut queued = |may_wait| {
                let how = Queued {
                    ended_calm: !has_waited && packet.mark == Mark::EndedCalm || is_hole,
                    ended_calm_before: !has_waited && packet.mark == Mark::EndedCalmBefore,
                    may_wait,
                    from,
                    every: packet.mark == Mark::Every,
                    ..Queued::default()
                };
                engine.queued(now, &packet.bytes, how, kernel, &mut out)
            };
            let mut verdict = queued(packet.may_wait && *pace != Pace::Overdue);
            if verdict == Verdict::Early {
                match early.keep(now, &packet.bytes, packet.clone()) {
                    Kept::Yes => {}
                    Kept::Full => verdict = queued(false),
                    Kept::Again => {
                        queued(false); // as the first time
                        verdict = queued(false);
                    }
                }
            }
            let decision = match verdict {
                Verdict::Accept => Some(Decision::Accept),
                Verdict::Drop => Some(Decision::Drop),
                Verdict::Replace => Some(Decision::Replace(out)),
                Verdict::Early => None,
            };
            (decided.0, decided.1) = (decision, engine.handled());
        }
        for (home, (decision, handled, answer)) in homes.iter().zip(decided.iter_mut()) {
            let goes_on = matches!(decision, Some(Decision::Accept | Decision::Replace(_)));
            if *home == shard && goes_on {
                *answer = engine.answer(*handled);
            }
        }
    }

    /// Writes what the engine of `shard` has noted.
    pub fn write(&mut self, shard: usize) {
        let Shard { engine, journal } = &mut self.shards[shard];
        engine.take_changes(|record| journal.push(record.to_vec())).unwrap();
    }

    /// The verdicts of `worker`, in the order of the packets. What waits has none yet.
    pub fn verdicts(&mut self, worker: usize) -> Vec<Given> {
        let Some(batch) = self.workers[worker].rounds.front_mut() else { return Vec::new() };
        let decided = std::mem::take(&mut batch.packets).into_iter().zip(batch.decided.drain(..));
        decided
            .filter_map(|(packet, (decision, _, answer))| {
                Some(Given { packet, decision: decision?, answer })
            })
            .collect()
    }

    /// What `worker` may do once its verdicts are given; then it is done with them.
    pub fn settle(&mut self, worker: usize, kernel: &mut Recorder) -> Vec<Event> {
        let shards = self.shards_of(worker);
        self.workers[worker].rounds.pop_front();
        shards.into_iter().flat_map(|shard| self.settle_shard(shard, kernel)).collect()
    }

    fn settle_shard(&mut self, shard: usize, kernel: &mut Recorder) -> Vec<Event> {
        let engine = &mut self.shards[shard].engine;
        engine.settle(kernel);
        engine.take_events().0
    }

    /// Injects and closes what follows from copies.
    pub fn settle_all(&mut self, kernel: &mut Recorder) -> Vec<Event> {
        (0..self.shards.len()).flat_map(|shard| self.settle_shard(shard, kernel)).collect()
    }

    /// Writes all that the engines have noted.
    pub fn write_all(&mut self) {
        (0..self.shards.len()).for_each(|shard| self.write(shard));
    }

    /// `worker` looks at what waits for what it overtook. Gives how many packets are dropped at once.
    pub fn look_at_early(&mut self, worker: usize) -> usize {
        let home = self.home_of(worker);
        let Worker { now: Some(now), early, .. } = &mut self.workers[worker] else { return 0 };
        let engine = &mut self.shards[home].engine;
        let taken = early.take(*now, |bytes| -> Turn { engine.turn(bytes) });
        for (early, pace) in [(taken.due, Pace::Due), (taken.late, Pace::Overdue)] {
            let packets: Vec<_> = early.into_iter().map(|early| early.with).collect();
            if !packets.is_empty() {
                self.add_round(worker, pace, packets);
            }
        }
        taken.over.len()
    }

    /// What is to be done about once a second.
    pub fn tick(&mut self, now: Instant, kernel: &mut Recorder) -> Vec<Event> {
        let mut events = Vec::new();
        for Shard { engine, .. } in &mut self.shards {
            engine.expire(now, kernel);
            events.extend(engine.take_events().0);
        }
        events
    }

    /// It is killed: what it wrote is left.
    pub fn crash(&mut self) {
        let workers = self.workers.len();
        self.workers.clear();
        self.workers.resize_with(workers, Worker::default);
    }

    /// It is started again, and has the kernel know the same pinholes as its sessions.
    pub fn restart(&mut self, now: Instant, kernel: &mut Recorder) {
        let first = Engine::new(self.policy.clone(), Checksums::Verify);
        for shard in &mut self.shards {
            let mut engine = first.beside();
            engine.restore(shard.journal.iter().map(Vec::as_slice), now, self.epoch).unwrap();
            engine.note_changes(self.epoch);
            shard.journal.clear();
            engine.records(|record| shard.journal.push(record.to_vec())).unwrap();
            engine.set_selection(self.answers);
            shard.engine = engine;
        }
        for pinhole in kernel.pinholes() {
            let (initiator, arrival) = (pinhole.initiator, pinhole.arrival);
            if !self.shards.iter().any(|shard| shard.engine.holds(initiator, arrival)) {
                kernel.close(&pinhole).unwrap();
            }
        }
    }

    /// How long after [`look_at_early`](Self::look_at_early) a worker looks again. The real one does after 2 ms.
    pub const LOOK: Duration = Duration::from_millis(10);
}
