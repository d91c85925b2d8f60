//! What the fast path has judged, on its way to the engines.
//!
//! Whoever is to decide about packets fetches first what was judged before, for all shards, and has the engine of its shard
//! read it. So an engine never decides about a packet before it has read the lines that went before. The room of the ring is given back when
//! all of it is in the journals.

use std::{
    error::Error,
    sync::{Arc, Mutex, OnceLock},
    time::{Duration, Instant},
};

use ftp_alg_core::{
    engine::{Effects, Engine, JudgedLine, Side},
    ftp::Zeros,
};
use rustix::time::{ClockId, clock_gettime};

use super::{
    fast_path_pins::LoadedProgram,
    shard::lock,
    shard_map::ShardMap,
    snapshot::{FastPathState, FastPathStatus},
};
use crate::gateway::{
    Commits, RuleParameters,
    fastpath::{LineRecord, RingWaiter, Translations},
    flows::FastPathFlows,
};

/// The fast path, as the daemon has it.
pub(super) struct FastPathReader {
    pub(super) flows: Arc<FastPathFlows>,
    shard_map: ShardMap,
    fetched_steps: Mutex<Vec<LineRecord>>,
    /// For each shard what its engine has not read yet.
    pub(super) unread_steps: Vec<Mutex<Vec<LineRecord>>>,
    /// Why it was turned off, if it was.
    pub(super) off_reason: OnceLock<String>,
    /// What the thread that reads the ring waits by.
    pub(super) ring_waiter: RingWaiter,
    /// The directory in it is open as long as something may be pinned.
    _loaded: LoadedProgram,
}

impl FastPathReader {
    /// With the program that is `loaded`.
    pub(super) fn new(
        mut loaded: LoadedProgram,
        parameters: &RuleParameters,
        commits: &Commits,
        shards: usize,
    ) -> Result<Self, Box<dyn Error>> {
        let translations = Translations::new(parameters, commits)?;
        let program = loaded.take_program().ok_or("the program is in use")?;
        let waiter = RingWaiter::new(program.ring())?;
        let flows = Arc::new(FastPathFlows::new(program, translations, parameters));
        Ok(Self {
            flows,
            shard_map: ShardMap(shards),
            fetched_steps: Mutex::default(),
            unread_steps: (0..shards).map(|_| Mutex::default()).collect(),
            off_reason: OnceLock::new(),
            ring_waiter: waiter,
            _loaded: loaded,
        })
    }

    /// What kernels are to tell of connections.
    pub(super) fn flows(&self) -> &Arc<FastPathFlows> {
        &self.flows
    }

    /// Fetches what was judged by now. Gives the position in the ring up to which that is.
    pub(super) fn fetch_steps(&self) -> u64 {
        let ring = self.flows.program().ring();
        let mut fetched = lock(&self.fetched_steps);
        if ring.has_unread() {
            self.flows.read_lines(&mut fetched);
            // One that was judged later may have had its room reserved before. They are large, so their places are sorted.
            let mut order: Vec<_> = (0..).zip(&*fetched).map(sort_key).collect();
            order.sort_unstable();
            for step in order.into_iter().filter_map(|(.., at)| fetched.get(at)) {
                let home =
                    self.shard_map.shard_of_connection(step.client.into(), step.server.into());
                if let Some(inbox) = self.unread_steps.get(home) {
                    lock(inbox).push(*step);
                }
            }
            fetched.clear();
        }
        ring.position()
    }

    /// Has the engine of `shard` read what was fetched.
    pub(super) fn feed_engine(&self, shard: usize, engine: &mut Engine, effects: &mut Effects) {
        let Some(inbox) = self.unread_steps.get(shard) else { return };
        let mut steps = std::mem::take(&mut *lock(inbox));
        if !steps.is_empty() {
            let age = KernelClock::now();
            engine.read_judged(steps.iter().map(|step| line_of_step(step, &age)), effects);
            steps.clear();
            // Its memory is for the next ones.
            let mut inbox = lock(inbox);
            if inbox.capacity() == 0 {
                *inbox = steps;
            }
        }
    }

    /// What `status` says.
    pub(super) fn status(&self, connections: usize) -> FastPathStatus {
        if let Some(why) = self.off_reason.get() {
            return FastPathStatus::off(why);
        }
        let counts = self.flows.program().counters().unwrap_or_default();
        FastPathStatus {
            state: FastPathState::On,
            why: String::new(),
            interfaces: self.flows.program().interfaces(),
            connections: connections as u64,
            judged: counts.inspected,
            handed_back: counts.handed_back,
            opened: counts.opened,
            admitted: counts.admitted,
            no_room: counts.ring_full,
        }
    }
}

/// By what steps are sorted: those of a flow in their order.
fn sort_key((at, step): (usize, &LineRecord)) -> (u64, u32, usize) {
    (step.flow, step.number, at)
}

/// The kernel's clock, to tell how long ago something was.
struct KernelClock {
    now: Instant,
    clock: Duration,
}

impl KernelClock {
    fn now() -> Self {
        let clock = clock_gettime(ClockId::Monotonic);
        let clock = Duration::new(clock.tv_sec as u64, clock.tv_nsec as u32); // both count up from 0
        Self { now: Instant::now(), clock }
    }

    fn instant_of(&self, at_ns: u64) -> Instant {
        let age = self.clock.saturating_sub(Duration::from_nanos(at_ns));
        self.now.checked_sub(age).unwrap_or(self.now)
    }
}

fn line_of_step<'s>(step: &'s LineRecord, age: &KernelClock) -> JudgedLine<'s> {
    JudgedLine {
        flow: step.flow,
        line: step.number,
        at: age.instant_of(step.at_ns),
        from: if step.from_client { Side::Client } else { Side::Server },
        client: step.client,
        server: step.server,
        seq: step.seq,
        ack: step.ack,
        window: step.window,
        opened: step.opened_pinhole,
        consumed: (step.consumed_pinhole != 0).then_some(step.consumed_pinhole),
        ends: step.is_fin,
        zeros: Zeros::of_digits(step.port_digits.into()),
        bytes: step.bytes(),
    }
}
