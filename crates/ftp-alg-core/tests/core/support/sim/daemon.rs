//! The daemon of the simulated network: shards and workers, and every call into the engine. It carries out what comes of
//! a batch as the real one does, one step at a time.

use std::{collections::BTreeMap, time::Instant};

use ftp_alg_core::{
    engine::{
        Checksums, Effects, Engine, Event, FastPathPinhole, Host, Kernel as _, OmittedEvents,
        PacketMeta, QueuedPacket, Sessions, Step, Token, Verdict,
    },
    policy::Policy,
    session::Side,
};

use super::{
    super::{link::Origin, recorder::Recorder, selection::Mark},
    fast_path_lines::FastPathLines,
};

/// A queued packet.
#[derive(Clone, Debug)]
pub struct Packet {
    /// One of its own.
    pub number: u64,
    pub from: Side,
    pub origin: Origin,
    pub bytes: Vec<u8>,
    pub mark: Mark,
    /// Whether it may wait for its predecessors.
    pub may_wait: bool,
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

/// What is to be done of a batch.
#[derive(Default)]
struct Work {
    effects: Vec<Effects>,
    next: Option<Step>,
    now: Option<Instant>,
}

/// An engine, and what it wrote.
struct Shard {
    engine: Engine,
    journal: Vec<Vec<u8>>,
}

/// The daemon: its journals outlive a crash, and nothing else does.
pub struct Daemon {
    pub policy: Policy,
    epoch: Instant,
    shards: Vec<Shard>,
    /// One for each worker, one for the timer, and one for who reads what was inspected.
    work: Vec<Work>,
    /// What was inspected, if connections are handed over.
    fast_path: Option<FastPathLines>,
    /// Packets that the engines have.
    packets: BTreeMap<u32, Packet>,
    last: u32,
    /// Verdicts and events since they were last taken.
    given: Vec<Given>,
    events: Vec<Event>,
    /// The shard of the connection.
    home: usize,
    /// Whether packets pass unread while a batch is decided.
    pub lapses: bool,
}

/// The daemon at work, with its kernel.
struct Hands<'a> {
    daemon: &'a mut Daemon,
    kernel: &'a mut Recorder,
}

impl Host for Hands<'_> {
    type Kernel = Recorder;

    fn kernel(&mut self) -> &mut Recorder {
        self.kernel
    }

    fn with_engine<R>(&mut self, shard: usize, work: impl FnOnce(&mut Engine) -> R) -> R {
        work(&mut self.daemon.shards[shard].engine)
    }

    fn had_downtime(&mut self) -> bool {
        self.daemon.lapses
    }

    fn conclude(&mut self, effects: &mut Effects) {
        let Shard { engine, journal } = &mut self.daemon.shards[effects.shard];
        engine.conclude(effects);
        journal.extend(effects.records().map(<[u8]>::to_vec));
    }

    fn give_verdicts(&mut self, all: &[Effects]) {
        for effects in all {
            for released in &effects.verdicts {
                let packet = self.daemon.packets.remove(&released.token.id).expect("one verdict");
                let decision = match &released.verdict {
                    Verdict::Accept => Decision::Accept,
                    Verdict::Drop(_) => Decision::Drop,
                    verdict @ Verdict::Replace(_) => {
                        Decision::Replace(verdict.replacement(&effects.replacements).to_vec())
                    }
                };
                self.daemon.given.push(Given { packet, decision });
            }
        }
    }

    fn report_events(&mut self, events: &mut Vec<Event>, _: usize, _: OmittedEvents) {
        self.daemon.events.append(events);
    }
}

impl Daemon {
    /// One of `workers` that has seen nothing. The one connection that there is is of the shard `home`.
    pub fn new(
        policy: Policy,
        epoch: Instant,
        (workers, home): (usize, usize),
        hands_over: bool,
    ) -> Self {
        let first = Engine::new(policy.clone(), Checksums::Verify);
        let shard = |_| {
            let mut engine = first.new_shard();
            engine.sessions.track_changes(epoch);
            engine.sessions.set_uses_fast_path(hands_over);
            Shard { engine, journal: Vec::new() }
        };
        let shards = (0..workers).map(shard).collect();
        let mut daemon = Self {
            policy,
            epoch,
            shards,
            work: Vec::new(),
            fast_path: hands_over.then(|| FastPathLines::new(epoch)),
            packets: BTreeMap::new(),
            last: 0,
            given: Vec::new(),
            events: Vec::new(),
            home,
            lapses: false,
        };
        daemon.crash();
        daemon
    }

    /// The engine of the connection.
    pub fn engine(&mut self) -> &mut Engine {
        &mut self.shards[self.home].engine
    }

    /// How many sessions all engines follow.
    pub fn sessions(&self) -> usize {
        self.shards.iter().map(|shard| shard.engine.sessions.count()).sum()
    }

    /// The worker that looks at what has expired.
    pub fn timer(&self) -> usize {
        self.shards.len()
    }

    /// Who reads what was inspected.
    pub fn reader(&self) -> usize {
        self.shards.len() + 1
    }

    /// `worker` decides about `packets`.
    pub fn take_batch(
        &mut self,
        worker: usize,
        now: Instant,
        packets: Vec<Packet>,
        kernel: &Recorder,
    ) {
        let with = |packet: Packet| {
            let how = PacketMeta {
                may_wait: packet.may_wait,
                from: if let Mark::From(side) = packet.mark { Some(side) } else { None },
                queues_all: packet.mark == Mark::Every,
                ..PacketMeta::default()
            };
            (packet, how)
        };
        self.take(worker, now, packets.into_iter().map(with).collect(), kernel);
    }

    /// `worker` decides about packets of which the packet selection says this.
    pub fn take(
        &mut self,
        worker: usize,
        now: Instant,
        packets: Vec<(Packet, PacketMeta)>,
        kernel: &Recorder,
    ) {
        let first = self.last + 1;
        let arrivals = packets.iter().zip(first..).map(|((packet, how), id)| {
            let token = Token { queue: worker as u16, id, mark: 0 };
            QueuedPacket { token, bytes: &packet.bytes, meta: *how }
        });
        let Work { effects, next, now: at } = &mut self.work[worker];
        (*next, *at) = (Some(Step::CheckRequests), Some(now));
        let (engine, effects) = (&mut self.shards[self.home].engine, &mut effects[self.home]);
        if let Some(fast_path) = &mut self.fast_path {
            fast_path.fetch(kernel);
            fast_path.feed(engine, effects);
        }
        engine.take(now, arrivals, effects);
        for (packet, _) in packets {
            self.last += 1;
            self.packets.insert(self.last, packet);
        }
    }

    /// Drops what is over, and goes on with what has waited for long enough.
    pub fn expire(&mut self, now: Instant, kernel: &Recorder) {
        let timer = self.timer();
        let Work { effects, next, now: at } = &mut self.work[timer];
        (*next, *at) = (Some(Step::CheckRequests), Some(now));
        if let Some(fast_path) = &mut self.fast_path {
            fast_path.fetch(kernel);
            fast_path.feed(&mut self.shards[self.home].engine, &mut effects[self.home]);
        }
        for (shard, effects) in self.shards.iter_mut().zip(effects) {
            shard.engine.expire(now, effects);
        }
    }

    /// Reads what was inspected. Its room is released after the last step of what comes of it.
    pub fn read(&mut self, now: Instant, kernel: &Recorder) {
        let reader = self.reader();
        let Some(fast_path) = &mut self.fast_path else { return };
        let Work { effects, next, now: at } = &mut self.work[reader];
        (*next, *at) = (Some(Step::CheckRequests), Some(now));
        fast_path.begin_read(kernel);
        for (index, (shard, effects)) in self.shards.iter_mut().zip(effects).enumerate() {
            // Also what another worker had it read, and has not written yet.
            shard.engine.read_fast_path_lines(std::iter::empty(), effects);
            if index == self.home {
                fast_path.feed(&mut shard.engine, effects);
            }
        }
    }

    /// When something in the reorder queue has waited for long enough.
    pub fn waits_until(&self) -> Option<Instant> {
        self.shards.iter().filter_map(|shard| shard.engine.reorder_deadline()).min()
    }

    /// The next step of what comes of a batch of `worker`. Whether there was one.
    pub fn step(&mut self, worker: usize, kernel: &mut Recorder) -> bool {
        let mut work = std::mem::take(&mut self.work[worker]);
        let step = work.next.take();
        if let (Some(step), Some(now)) = (step, work.now) {
            let hands = &mut Hands { daemon: self, kernel };
            work.next = step.run(hands, now, &mut work.effects);
        }
        if work.next.is_none()
            && worker == self.reader()
            && let Some(fast_path) = &mut self.fast_path
        {
            fast_path.end_read(kernel);
        }
        self.work[worker] = work;
        step.is_some()
    }

    /// Whether nothing is asked for the batch of `worker`, so that it is concluded next.
    pub fn is_decided(&self, worker: usize) -> bool {
        !self.work[worker].effects.iter().any(Effects::has_kernel_requests)
    }

    /// What `worker` does next.
    pub fn next_step(&self, worker: usize) -> Option<Step> {
        self.work[worker].next
    }

    /// The verdicts that were given, in the order of the packets, and what was decided.
    pub fn take_given(&mut self) -> (Vec<Given>, Vec<Event>) {
        (std::mem::take(&mut self.given), std::mem::take(&mut self.events))
    }

    /// It is killed: what it wrote is left.
    pub fn crash(&mut self) {
        self.assert_no_fast_path_mismatch();
        let shards = self.shards.len();
        let effects = || (0..shards).map(Effects::for_shard).collect();
        let work = |_| Work { effects: effects(), ..Work::default() };
        self.work = (0..shards + 2).map(work).collect();
        self.packets.clear();
    }

    /// It is started again, and has the kernel know the same pinholes as its sessions.
    pub fn restart(&mut self, now: Instant, kernel: &mut Recorder) {
        let first = Engine::new(self.policy.clone(), Checksums::Verify);
        for shard in &mut self.shards {
            let mut engine = first.new_shard();
            engine
                .sessions
                .restore(shard.journal.iter().map(Vec::as_slice), now, self.epoch)
                .unwrap();
            engine.sessions.track_changes(self.epoch);
            shard.journal.clear();
            engine
                .sessions
                .write_all_records(|record| shard.journal.push(record.to_vec()))
                .unwrap();
            shard.engine = engine;
        }
        for pinhole in kernel.pinholes() {
            let (initiator, arrival) = (pinhole.initiator, pinhole.arrival);
            if !self
                .shards
                .iter()
                .any(|shard| shard.engine.sessions.holds_pinhole(initiator, arrival))
            {
                kernel.update_pinholes(&[pinhole], &[], &mut Vec::new()).unwrap();
            }
        }
        if self.fast_path.is_some() {
            self.reconcile(now, kernel);
        }
    }

    /// Has the engines and the program know the same connections, as the real one does when it is started.
    fn reconcile(&mut self, now: Instant, kernel: &mut Recorder) {
        self.fast_path = Some(FastPathLines::new(self.epoch).after(kernel));
        self.read_all(now, kernel);
        for shard in &mut self.shards {
            shard.engine.sessions.set_uses_fast_path(false);
            shard.engine.sessions.set_uses_fast_path(true);
        }
        self.read_all(now, kernel);
        for flow in kernel.program.flow_ids() {
            kernel.program.take_back_any(flow);
        }
        self.read_all(now, kernel);
        let engines = || self.shards.iter().map(|shard| &shard.engine.sessions);
        kernel.program.retain_pinholes(|initiator, arrival, flow, line| match flow {
            0 => engines().any(|sessions| sessions.holds_pinhole(initiator, arrival)),
            _ => engines()
                .flat_map(Sessions::fast_path_pinholes)
                .any(|hole| hole == FastPathPinhole { flow, line }),
        });
    }

    fn read_all(&mut self, now: Instant, kernel: &mut Recorder) {
        self.read(now, kernel);
        let reader = self.reader();
        while self.step(reader, kernel) {}
    }

    /// No line was inspected that the engines would have decided otherwise.
    pub fn assert_no_fast_path_mismatch(&self) {
        let otherwise = self.shards.iter().map(|s| s.engine.counters().fast_path_mismatches).sum();
        assert_eq!(0_u64, otherwise, "decided differently than the engine");
    }
}
