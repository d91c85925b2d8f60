//! What the workers and the control socket share, and what that socket asks of it.

use std::{
    fmt::Display,
    iter,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use ftp_alg_core::engine::{Effects, Event, Kernel, Pinhole, What};

use super::{
    external_names::ExternalNames,
    fast_path_lines::FastPathReader,
    forwarded_verdicts::ForwardedVerdicts,
    health::Health,
    log::EventLog,
    shard::{Shard, lock},
    snapshot::{FastPathStatus, Status},
    worker_progress::WorkerProgress,
};
use crate::gateway::{LinuxKernel, QueueCounts, RuleParameters};

/// Shared by the workers and the control socket.
pub(super) struct SharedState {
    pub(super) started: Instant,
    pub(super) backend: &'static str,
    pub(super) shards: Vec<Shard>,
    /// Verdicts for each queue, of other workers.
    pub(super) forwarded_verdicts: Vec<ForwardedVerdicts>,
    /// Of each worker.
    pub(super) progress: WorkerProgress,
    /// What the workers met besides what their engines count.
    pub(super) errors: AtomicU64,
    /// What each worker's queue has counted.
    pub(super) queue_counts: Mutex<Vec<QueueCounts>>,
    /// Ends of connections that the packet selection could not note.
    pub(super) unnoted_ends: AtomicU64,
    pub(super) log: EventLog,
    pub(super) health: Health,
    pub(super) external_names: ExternalNames,
    /// What of the daemon's confinement is missing on this machine.
    pub(super) unconfined: Vec<String>,
    /// The fast path, or why there is none.
    pub(super) fast_path: Result<FastPathReader, String>,
    /// For questions of the control socket.
    pub(super) kernel: Mutex<LinuxKernel>,
}

impl SharedState {
    pub(super) fn report_error(&self, error: &dyn Display) {
        self.report_errors(1, error);
    }

    /// The same, of `count` errors that one line tells of.
    pub(super) fn report_errors(&self, count: u64, error: &dyn Display) {
        self.errors.fetch_add(count, Ordering::Relaxed);
        self.log.log_error(Instant::now(), error);
    }

    /// What went wrong, and was put right.
    pub(super) fn report_repair(&self, what: &dyn Display) {
        self.errors.fetch_add(1, Ordering::Relaxed);
        self.log.log_repair(Instant::now(), what);
    }

    /// Nothing yet to be done, for each shard.
    pub(super) fn new_effects(&self) -> Vec<Effects> {
        (0..self.shards.len()).map(Effects::of).collect()
    }

    /// Logs what an engine decided.
    pub(super) fn record_events(&self, now: Instant, events: &[Event], more: u64) {
        for event in events {
            if let What::Expired(pinhole, kind) = event.what {
                self.health.record_expired(pinhole, kind, (event.client, event.server));
            }
        }
        self.log.log_events(now, events, more);
    }

    /// Sees to what the health of the daemon depends on, and tells what is new of it. To be called each second.
    pub(super) fn update_health(&self, now: Instant, parameters: &RuleParameters) {
        for (client, line) in self.health.take_unused_pinholes(parameters) {
            self.log.log_unused_pinhole(now, client, &line);
        }
        self.health.report_changes(&self.status_without_sessions(now).problems);
    }

    /// Counters and health, without what takes a look at each session, or at the kernel.
    pub(super) fn status_without_sessions(&self, now: Instant) -> Status {
        let mut unwritten = Vec::new();
        let mut status = Status::new(self.backend, self.started.elapsed());
        status.counters.errors = self.errors.load(Ordering::Relaxed);
        for queue in lock(&self.queue_counts).iter() {
            status.overruns += queue.overruns;
            status.queue_drops += queue.dropped;
            status.verdicts_refused += queue.refused;
        }
        status.counters.limits.endings = self.unnoted_ends.load(Ordering::Relaxed);
        for shard in &self.shards {
            let (engine, journal) = (lock(&shard.engine), lock(&shard.journal));
            status.memory = engine.sessions.memory() as u64; // of all shards
            status.counters += engine.counters();
            if !journal.is_writable() {
                unwritten.push(journal.path().to_owned());
            }
        }
        status.log_lines_skipped = self.log.skipped_lines();
        status.pinholes_expired = self.health.unused_pinholes();
        let handed_over = |shard: &Shard| lock(&shard.engine).sessions.handed_over().count();
        let connections = self.shards.iter().map(handed_over).sum();
        status.fast_path = match &self.fast_path {
            Ok(judged) => judged.status(connections),
            Err(why) => FastPathStatus::off(why),
        };
        status.names = self.external_names.rows();
        status.problems = self.health.problems(now, &status, &unwritten);
        status.unconfined = self.unconfined.clone();
        status
    }

    /// Opens what sessions hold and `is_missing`, for the rest of its time. Not by `carry_out`: no packet waits for it, and no
    /// session changes.
    pub(super) fn reopen_pinholes(
        &self,
        kernel: &mut LinuxKernel,
        is_missing: impl Fn(&Pinhole) -> bool,
    ) {
        let Some(first) = self.shards.first() else { return };
        let places = lock(&first.engine).sessions.places().clone();
        // Nobody closes one meanwhile.
        places.tell(iter::empty(), |_| {
            for shard in &self.shards {
                let missing: Vec<_> = lock(&shard.engine)
                    .sessions
                    .to_open_again(Instant::now(), &is_missing)
                    .collect();
                if missing.is_empty() {
                    continue;
                }
                let mut outcomes = Vec::new();
                if let Err(error) = kernel.change(&[], &missing, &mut outcomes) {
                    self.report_error(&error);
                }
                let failed = outcomes.iter().filter(|outcome| outcome.is_err()).count();
                lock(&shard.engine).count_errors(failed as u64);
            }
        });
    }

    /// Packets passed by unread for some time, of any of the connections. Written at once, as a daemon that is started
    /// again would find a sign of life.
    pub(super) fn record_downtime(&self) {
        for shard in &self.shards {
            if let Err(error) = shard.record_downtime() {
                self.report_error(&shard.describe_write_failure(&error));
            }
        }
    }
}
