//! The state that the threads of the daemon share. [`queries`](super::queries) answers the control socket from it.

use std::{
    collections::HashSet,
    fmt::Display,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use ftp_alg_core::engine::{
    Closing, Event, Kernel as _, KernelError, OmittedEvents, PinholeEnds, RangeFinder, SessionInfo,
    Translation,
};

use super::{
    config_file::ConfigFile,
    events::EventRing,
    external_names::ExternalNames,
    fast_path_lines::FastPathReader,
    health::{Health, ProblemName},
    log::EventLog,
    log_files::{LineFile, LogFiles},
    metrics::DecisionTimes,
    pair::Pair,
    rates::{self, CounterHistory},
    running_bytes::RunningBytes,
    shard::{Shard, lock},
    snapshot::{FastPathStatus, Findings, Status},
    transfers::{DataConntrack, Reporter, RunningConnection, TimedEvent},
    worker_progress::WorkerProgress,
};
use crate::kernel::{
    LinuxKernel, NetfilterError, RuleParameters,
    conntrack::{CountedPackets, consumed_pinholes},
    parameters::Backend,
    queue::QueueCounts,
};

/// The state that the workers, the control socket and the main thread share.
pub(super) struct SharedState {
    pub(super) backend: &'static str,
    pub(super) backend_reason: &'static str,
    /// The shard of restored sessions, and one for each worker. A visit of all in this order misses no session that is
    /// adopted meanwhile.
    pub(super) shards: Vec<Mutex<Shard>>,
    /// How many restored sessions no worker has adopted yet, at most.
    pub(super) restored_remaining: AtomicUsize,
    /// When each worker last finished a pass of its loop.
    pub(super) progress: WorkerProgress,
    /// Errors outside the engines, which count their own.
    pub(super) errors: AtomicU64,
    /// The counts of each worker's queue.
    pub(super) queue_counts: Mutex<Vec<QueueCounts>>,
    /// Ends of connections that the packet selection had no room to record.
    pub(super) closing_set_overflows: AtomicU64,
    pub(super) log: EventLog,
    pub(super) events: EventRing,
    pub(super) transfers: Reporter,
    pub(super) running_bytes: RunningBytes,
    /// Lines that are missing in the file of `log.events`.
    pub(super) events_unwritten: AtomicU64,
    pub(super) health: Health,
    /// Samples of the counters, since the start.
    pub(super) history: Mutex<CounterHistory>,
    pub(super) config_file: ConfigFile,
    pub(super) external_names: ExternalNames,
    /// The sets of ports to which the operator's rules translate source ports.
    pub(super) port_sets: Mutex<Arc<[RangeInclusive<u16>]>>,
    /// How long batches took. `None` without `[metrics]`.
    pub(super) decision_times: Option<Arc<DecisionTimes>>,
    /// The confinement that this machine lacks, a line each.
    pub(super) unconfined: Vec<String>,
    /// The fast path, or why it is off.
    pub(super) fast_path: Result<FastPathReader, String>,
    /// This gateway as one of two, if it is.
    pub(super) pair: Option<Arc<Pair>>,
    /// The kernel for everything that no worker does: queries, the table, the start and the end.
    pub(super) kernel: Mutex<LinuxKernel>,
}

impl SharedState {
    /// Returns the value of a `result`, or `None` after counting and logging the error.
    pub(super) fn report<T, E: Display>(&self, result: Result<T, E>) -> Option<T> {
        result.inspect_err(|error| self.report_error(error)).ok()
    }

    /// Counts and logs an error of the daemon.
    pub(super) fn report_error(&self, error: &dyn Display) {
        self.report_errors(1, error);
    }

    /// Counts `count` errors, and logs one line for them.
    pub(super) fn report_errors(&self, count: u64, error: &dyn Display) {
        self.errors.fetch_add(count, Ordering::Relaxed);
        self.log.log_error(Instant::now(), error);
    }

    /// The shard of the worker with this index.
    pub(super) fn shard_of(&self, worker: usize) -> &Mutex<Shard> {
        &self.shards[worker + 1]
    }

    /// The shard with the restored sessions.
    pub(super) fn restored(&self) -> &Mutex<Shard> {
        &self.shards[0]
    }

    /// Stores an engine's events: complete events for readers, and the others for the thread that reports transfers.
    /// Called in the order of the events of a session.
    pub(super) fn store_events(&self, events: &[Event]) {
        if events.is_empty() {
            return;
        }
        // Each has its own time, so that readers know their order.
        let now = SystemTime::now();
        let seen = (0..).zip(events).map(|(nth, event)| (now + Duration::from_micros(nth), event));
        self.transfers.note(seen.clone());
        let others = seen.filter(|(_, event)| !self.transfers.reports(&event.kind));
        self.events.note(others.map(|(at, event)| (at, event.clone())));
    }

    /// Logs an engine's events, and hands them to the health checks. The engine left out the `omitted` ones.
    pub(super) fn report_events(&self, now: Instant, events: &[Event], omitted: OmittedEvents) {
        if events.is_empty() && omitted.all == 0 {
            return;
        }
        self.health.note_events(now, events);
        self.transfers.count_lost(omitted.ended_transfers, omitted.all);
        let logged_now = events.iter().filter(|event| !self.transfers.reports(&event.kind));
        self.log.log_events(now, logged_now, omitted.all);
    }

    /// Logs and stores the reports of the transfers' thread, and writes the waiting lines of files.
    pub(super) fn publish_reports(&self, reports: Vec<TimedEvent>, files: &mut LogFiles) {
        let now = Instant::now();
        if self.transfers.take_reopening() {
            files.reopen();
        }
        if !reports.is_empty() {
            let events = || reports.iter().map(|(_, event)| event);
            self.log.log_events(now, events(), 0);
            self.health.note_reports(now, events());
            files.append_transfers(&self.events.note(reports.into_iter()));
        }
        files.maintain(false);
        files.append_events(&self.events.take_unwritten());
        let LogFiles { events, transfers, .. } = files;
        let unwritten = |file: &Option<LineFile>| file.as_ref().map_or(0, |file| file.unwritten);
        self.transfers.set_unwritten(unwritten(transfers));
        let left_out = events.as_ref().map_or(0, |_| self.transfers.left_out());
        self.events_unwritten.store(unwritten(events) + left_out, Ordering::Relaxed);
        let failure = |file: &Option<LineFile>| file.as_ref()?.failure.clone();
        self.health.set(ProblemName::EventFile, failure(events));
        self.health.set(ProblemName::TransferFile, failure(transfers));
    }

    /// The finder of the sessions of encrypted data connections.
    pub(super) fn range_finder(&self) -> RangeFinder {
        // All shards share them.
        self.shards
            .first()
            .map_or_else(RangeFinder::default, |shard| lock(shard).engine.sessions.range_finder())
    }

    /// Closes all ranges, and opens those that sessions hold.
    pub(super) fn reopen_ranges(&self, kernel: &mut LinuxKernel) {
        if let Err(error) = kernel.close_all_ranges() {
            self.report_error(&error);
        }
        for shard in &self.shards {
            lock(shard).engine.sessions.reopen_ranges(Instant::now(), kernel);
        }
    }

    /// Updates the sets of ports. Returns whether they have changed.
    pub(super) fn set_port_sets(&self, sets: Vec<RangeInclusive<u16>>) -> bool {
        let mut known = lock(&self.port_sets);
        let has_changed = **known != *sets;
        *known = sets.into();
        has_changed
    }

    /// Stores and logs which pinholes expired without a connection. Dumps conntrack, which may take long.
    pub(super) fn report_unused_pinholes(&self, now: Instant, parameters: &RuleParameters) {
        let unused = self.health.take_unused_pinholes(now, parameters);
        self.store_events(&unused);
        self.log.log_events(now, unused.iter(), 0);
    }

    /// The tick of the daemon's health: updates it and the history of the counters, and logs new and solved problems.
    pub(super) fn update_health(&self, now: Instant) {
        let (status, unwritten) = self.counters(now);
        lock(&self.history).note(now, rates::counts(&status, self.transfers.is_on));
        self.health.update_traffic(now, &status);
        self.health.report_changes(&self.findings(&status, &unwritten));
    }

    /// Forgets what the previous configuration may have caused. What is not cured is back with the next event.
    pub(super) fn forget_configured(&self, now: Instant) {
        self.health.forget_configured();
        self.health.update_traffic(now, &self.counters(now).0);
    }

    /// Counters and health, without the values that need a look at each session or at the kernel.
    pub(super) fn status_without_sessions(&self, now: Instant) -> Status {
        let (mut status, unwritten) = self.counters(now);
        status.findings = self.findings(&status, &unwritten);
        status
    }

    fn findings(&self, status: &Status, unwritten: &[PathBuf]) -> Findings {
        let mut findings = self.health.findings(status, unwritten);
        findings.extend(self.config_file.difference());
        self.health.date(&mut findings);
        findings
    }

    /// The status without findings, and the journals that cannot be written.
    fn counters(&self, now: Instant) -> (Status, Vec<PathBuf>) {
        let mut unwritten = Vec::new();
        let mut status =
            Status::new(self.backend, now.saturating_duration_since(lock(&self.history).started));
        status.backend_reason = self.backend_reason.to_owned();
        status.counters.errors = self.errors.load(Ordering::Relaxed);
        for queue in lock(&self.queue_counts).iter() {
            status.daemon.overruns += queue.overruns;
            status.daemon.queue_drops += queue.dropped;
            status.daemon.verdicts_refused += queue.refused;
            if let Some(waiting) = queue.waiting {
                *status.queue_waiting.get_or_insert(0) += waiting;
            }
        }
        status.counters.limits.closing_set = self.closing_set_overflows.load(Ordering::Relaxed);
        for shard in &self.shards {
            let Shard { engine, journal, .. } = &*lock(shard);
            status.memory = engine.sessions.memory() as u64; // of all shards
            status.counters += engine.counters();
            if !journal.is_writable() {
                unwritten.push(journal.path().to_owned());
            }
        }
        status.daemon.log_lines_skipped = self.log.skipped_lines();
        status.transfers = self.transfers.totals();
        status.daemon.events_unwritten = self.events_unwritten.load(Ordering::Relaxed);
        status.daemon.pinholes_expired = self.health.unused_pinholes();
        let mut connections = 0;
        self.with_each(|engine| connections += engine.sessions.fast_path_sessions().count());
        status.fast_path = match &self.fast_path {
            Ok(reader) => reader.status(connections),
            Err(why) => FastPathStatus::off(why),
        };
        status.names = self.external_names.rows();
        status.pair = self.pair.as_ref().map(|pair| pair.status(self.shards_behind()));
        status.unconfined = self.unconfined.clone();
        (status, unwritten)
    }

    /// Whether a session of any engine holds this pinhole.
    pub(super) fn holds_pinhole(&self, initiator: IpAddr, arrival: SocketAddr) -> bool {
        lock(self.restored()).engine.sessions.holds_pinhole(initiator, arrival)
    }

    /// Opens the pinholes of sessions that are missing in the table according to `is_missing` and that no connection has
    /// consumed. Returns how many.
    pub(super) fn reopen_unused_pinholes(
        &self,
        parameters: &RuleParameters,
        kernel: &mut LinuxKernel,
        is_missing: impl Fn(&PinholeEnds) -> bool,
    ) -> Result<usize, NetfilterError> {
        // Expectations are in no table.
        if parameters.backend != Backend::Nftables {
            return Ok(0);
        }
        let used = consumed_pinholes(parameters)?;
        let is_missing = |one: &PinholeEnds| is_missing(one) && !used.contains(&one.key());
        Ok(self.reopen_pinholes(kernel, is_missing))
    }

    /// Opens the pinholes of sessions that are missing in the kernel according to `is_missing`, for the rest of their
    /// time. Returns how many.
    pub(super) fn reopen_pinholes(
        &self,
        kernel: &mut LinuxKernel,
        is_missing: impl Fn(&PinholeEnds) -> bool,
    ) -> usize {
        let mut opened = 0;
        // A worker may adopt a session between the looks at two shards.
        let mut tried = HashSet::new();
        for shard in &self.shards {
            let sessions = &lock(shard).engine.sessions;
            let mut missing: Vec<_> =
                sessions.missing_pinholes(Instant::now(), &is_missing).collect();
            missing.retain(|opening| tried.insert(opening.ends.key()));
            let mut failed = kernel.open_many(&missing);
            opened += missing.len() - failed.len();
            // Another program's rules may have it.
            failed.retain(|error| !matches!(error, KernelError::Taken));
            if let Some(error) = failed.first() {
                self.report_errors(failed.len() as u64, error);
            }
        }
        opened
    }

    /// Closes pinholes of the table of which only initiator and arrival are known.
    pub(super) fn close_pinholes_of_table(
        &self,
        kernel: &mut LinuxKernel,
        ends: impl Iterator<Item = (IpAddr, SocketAddr)>,
    ) {
        let closing = |(initiator, arrival)| {
            Closing::Rules(PinholeEnds { initiator, arrival, target: arrival, source: initiator })
        };
        let closings: Vec<_> = ends.map(closing).collect();
        self.report(kernel.close(&closings));
    }

    /// Notes that packets of any connection may have passed unread. The journals are written at once: a restarted
    /// daemon would find a current heartbeat, and could not know of the downtime.
    pub(super) fn note_downtime(&self) {
        for shard in &self.shards {
            let mut shard = lock(shard);
            shard.engine.note_downtime();
            self.report(shard.write_records());
        }
    }
}

impl DataConntrack for SharedState {
    fn counted(&self, initiator: SocketAddr, dialled: SocketAddr) -> Option<[CountedPackets; 2]> {
        lock(&self.kernel).conntrack.counted(initiator, dialled).ok().flatten()
    }

    fn is_running(&self, initiator: SocketAddr, dialled: SocketAddr) -> bool {
        // An error says nothing about the connection.
        lock(&self.kernel).conntrack.is_running(initiator, dialled).unwrap_or(true)
    }

    fn knows(&self, initiator: SocketAddr, dialled: SocketAddr) -> bool {
        lock(&self.kernel).conntrack.knows(initiator, dialled).unwrap_or(true)
    }

    fn running(&self) -> Vec<RunningConnection> {
        let mut sessions = Vec::new();
        self.with_each(|engine| sessions.extend(engine.sessions.list_running()));
        let looks = self.running_bytes.looks_at(&sessions);
        let running = sessions.into_iter().filter_map(|session| {
            let (_, ends) = session.data_connection?;
            let port = looks.port_of(&ends)?;
            let SessionInfo { id, translation, user, .. } = session;
            let Translation { client, server, .. } = translation;
            Some((Event { session: id, client, server, user, kind: ends }, port))
        });
        running.collect()
    }

    fn open_sessions(&self) -> HashSet<u64> {
        let mut open = HashSet::new();
        self.with_each(|engine| open.extend(engine.sessions.list().map(|session| session.id)));
        open
    }
}
