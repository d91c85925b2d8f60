//! Starts and ends the workers, and loads the table that queues their packets. [`super::worker`] has one worker's loop.
//!
//! A worker that ends by itself, or panics, ends the daemon. The packets of its queue would get no verdict, and the
//! service manager starts the whole daemon again; meanwhile connections that are not adjusted bypass the queue.

use std::{
    io,
    ops::RangeInclusive,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
        mpsc::{Receiver, Sender},
    },
    thread::JoinHandle,
    time::Instant,
};

use ftp_alg_core::engine::{Checksums, Engine, Kernel};
use ftp_alg_firewall::Firewall;

use super::{
    DaemonEvent, ServiceError,
    config_file::ConfigFile,
    events::EventRing,
    external_names::ExternalNames,
    fast_path_lines::FastPathReader,
    fast_path_pins::{self, LoadedProgram},
    fast_path_thread,
    health::Health,
    heartbeat_renewer::{self, HeartbeatRenewer},
    log::EventLog,
    log_files::LogFiles,
    operator_rules::{self, FollowedRules, OperatorRules},
    pair::Pair,
    pair_link,
    rates::CounterHistory,
    running_bytes::RunningBytes,
    shard::{Shard, lock},
    shared_state::SharedState,
    start_table,
    state_dir::{LastSession, StateDir},
    table_guard::{self, TableChange, TableGuard},
    threads::start_thread,
    transfers::Reporter,
    worker::Worker,
    worker_progress::WorkerProgress,
};
use crate::{
    config::{Config, FastPathMode},
    kernel::{
        LinuxKernel, NetfilterError, RuleParameters,
        data_log::DataLog,
        known_rules::KnownRules,
        operator_firewall::{self, RulesetReader},
        probe::ConntrackAbilities,
        queue::{Queue, QueueCounts, Waker},
        table::{Commits, HEARTBEAT_TIMEOUT, Table, TableRecord},
    },
};

/// How many connections are looked up in the kernel at the end.
const MAX_QUERIED: usize = 4096;

/// Starts a worker for each queue. When this returns, the workers give verdicts.
pub(super) fn start(
    config: &Config,
    state_dir: &Path,
    events: &Sender<DaemonEvent>,
    unconfined: Vec<String>,
    fast_path: Result<LoadedProgram, String>,
    log_files: Arc<Mutex<LogFiles>>,
    config_file: ConfigFile,
) -> Result<Workers, ServiceError> {
    let parameters = RuleParameters::from(config);
    let reading = operator_firewall::read_in_background(parameters.gateway.clone());
    let names = ExternalNames::new(events.clone());
    names.watch(config.external_names())?;
    // If another program reads a queue, the start fails before it has changed anything. From here on, packets that an
    // earlier daemon's table queues wait until the workers start, or `load_table` drops them.
    let queues = config.queue.numbers().map(Queue::open_with_super_packets);
    let mut queues = queues.collect::<Result<Vec<_>, _>>()?;
    let wakers = || queues.iter().map(Queue::waker).collect::<Result<Vec<_>, _>>();
    let own_wakers = wakers()?;
    let pair = match &config.pair {
        Some(settings) => {
            Some(Arc::new(Pair::new(config, settings, &parameters, state_dir, wakers()?)))
        }
        None => None,
    };
    let (state, shards) = restore_shards(config, state_dir, &parameters, &names, pair.as_deref())?;
    let session_count: usize = shards.iter().map(|shard| lock(shard).engine.sessions.count()).sum();
    let restored = session_count > 0;
    let group = parameters.data_log_group();
    let data_log = config.reports_transfers().then(|| open_data_log(group)).flatten();
    let parameters = parameters.with_data_log(data_log.is_some());
    let (rules, parameters, port_sets, backend_reason) =
        learn(config, parameters, reading, &state, restored);
    let commits = open_commits()?;
    let known_rules = KnownRules::default();
    let why_off = fast_path_pins::off_reason(config.queue.fast_path);
    let reader = fast_path.and_then(|loaded| {
        let reader = FastPathReader::new(loaded, &parameters, &commits, &known_rules);
        let reader = reader.map_err(|error| error.to_string())?;
        if why_off.is_some() {
            // Before the table is loaded: its rules would queue packets that the program has adjusted.
            reader.offload.program().take_back_all().map_err(|error| error.to_string())?;
        }
        Ok(reader)
    });
    let offload = reader.as_ref().ok().map(|reader| Arc::clone(&reader.offload));
    let make_kernel = || -> Result<LinuxKernel, NetfilterError> {
        let kernel = LinuxKernel::new(&parameters, &commits)?.obeying(&known_rules);
        Ok(kernel.with_offload(offload.as_ref()))
    };
    let kernel = make_kernel()?;
    let last_session = state.last_session();
    prepare_sessions(&shards, &kernel, &last_session);
    let shared = Arc::new(SharedState {
        progress: WorkerProgress::new(queues.len()),
        history: Mutex::new(CounterHistory::new(Instant::now())),
        backend: parameters.backend.into(),
        backend_reason,
        queue_counts: Mutex::new(vec![QueueCounts::default(); queues.len()]),
        shards,
        restored_remaining: AtomicUsize::new(session_count),
        errors: AtomicU64::new(0),
        closing_set_overflows: AtomicU64::new(0),
        log: EventLog::default(),
        events: EventRing::new(
            last_session.number(),
            last_session.first_event(),
            config.log.events.is_some(),
        ),
        transfers: Reporter::new(config.reports_transfers(), config.server_addresses()),
        running_bytes: RunningBytes::new(&parameters),
        events_unwritten: AtomicU64::new(0),
        health: Health::default(),
        config_file,
        external_names: names,
        port_sets: Mutex::new(Arc::clone(&port_sets)),
        decision_times: config.metrics.listen.map(|_| Arc::default()),
        unconfined,
        fast_path: reader,
        pair,
        kernel: Mutex::new(kernel),
    });
    let mut workers = Workers::new(shared, state, own_wakers);
    let have_waited =
        workers.load_table(&parameters, &commits, restored, why_off, events, &mut queues)?;
    workers.heartbeat = Some(HeartbeatRenewer::start(&commits, &workers.shared, have_waited)?);
    let obstacle = rules.fast_path_obstacle();
    let rules_reader = rules.reader(&known_rules, &commits, &parameters)?;
    if !port_sets.is_empty() {
        workers.update_policy(config);
    }
    if config.queue.fast_path != FastPathMode::Off {
        workers.start_fast_path(why_off, obstacle, make_kernel()?, events)?;
    }
    workers.start_rules_reader(config, &parameters, rules_reader, rules, events)?;
    let data_log = data_log.filter(|_| workers.table.as_ref().is_some_and(Table::logs_data));
    workers.start_reporter(last_session, data_log, log_files, events)?;
    let backend = parameters.backend;
    for (index, queue) in queues.into_iter().enumerate() {
        workers.start_worker(index, queue, make_kernel()?, &parameters, events)?;
    }
    workers.start_link(events)?;
    log_event!(BACK_END, backend = %backend, "back end {backend}: {backend_reason}");
    Ok(workers)
}

/// Opens the group of nfnetlink_log, unless the kernel lacks that or another program reads it.
fn open_data_log(group: u16) -> Option<DataLog> {
    let opened = DataLog::open(group);
    opened
        .inspect_err(|error| {
            log_event!(DATA_LOG_OFF, "{error}: transfers are reported without their bytes");
        })
        .ok()
}

/// Tells the engines how many pinholes the kernel can have, and after which number to number new sessions.
fn prepare_sessions(shards: &[Mutex<Shard>], kernel: &LinuxKernel, last_session: &LastSession) {
    for shard in shards {
        let sessions = &mut lock(shard).engine.sessions;
        sessions.set_capacity(kernel.pinhole_capacity());
        sessions.number_behind(last_session.number());
    }
}

/// The shard with the sessions that the state directory has, and one for each queue.
fn restore_shards(
    config: &Config,
    state_dir: &Path,
    parameters: &RuleParameters,
    names: &ExternalNames,
    pair: Option<&Pair>,
) -> Result<(StateDir, Vec<Mutex<Shard>>), String> {
    let addresses = names.addresses();
    let policy = config.policy(|name| addresses.of(name), &Arc::default());
    names.note_announced(addresses);
    let engine = Engine::new(policy, Checksums::Verify);
    let numbers: Vec<u16> = config.queue.numbers().collect();
    let mut engines = vec![engine.new_restored_shard()];
    engines.extend(numbers.iter().map(|_| engine.new_shard()));
    let failed = |error: io::Error| {
        let path = state_dir.display();
        format!("cannot use the state directory {path}: {error}; name another one with --state-dir")
    };
    let state = StateDir::new(state_dir).map_err(failed)?;
    let control_ports = &parameters.gateway.control_ports;
    let restores = pair.is_none_or(|pair| !pair.is_standby());
    let journals =
        state.open_journals(control_ports, &numbers, &mut engines, restores).map_err(failed)?;
    let shard = |(index, (engine, journal))| {
        let store = pair.map(|pair| pair.writer(index));
        Mutex::new(Shard { engine, journal, store })
    };
    Ok((state, engines.into_iter().zip(journals).enumerate().map(shard).collect()))
}

/// Completes `parameters` by the operator's rules, which are being read. Returns both, the sets of ports to which the rules
/// translate source ports, and why the back end is in use.
fn learn(
    config: &Config,
    parameters: RuleParameters,
    reading: Receiver<Firewall>,
    state: &StateDir,
    restored: bool,
) -> (OperatorRules, RuleParameters, Arc<[RangeInclusive<u16>]>, &'static str) {
    let backend_before = state.backend();
    let is_automatic = config.pinhole.backend.is_none();
    let select_backend =
        is_automatic && backend_before.is_none() && ConntrackAbilities::supports_own_helper();
    let rules = OperatorRules::wait_for(reading, restored, select_backend);
    let before = || state.table_record().map(TableRecord::into_learned).unwrap_or_default();
    let (learned, port_sets) = rules.learned(before);
    let mut parameters = parameters.with_learned(learned);
    if !config.restricts_ports() {
        operator_rules::log_port_sets(&port_sets, &parameters);
    }
    let mut backend_reason = "the configuration says so";
    if is_automatic {
        let backend;
        (backend, backend_reason) = rules.automatic_backend(backend_before, restored, &parameters);
        parameters = parameters.with_backend(backend);
    }
    (rules, parameters, port_sets, backend_reason)
}

/// A variable for tests. With the value `no`, the table gets no owner, so other programs can remove it.
const OWNER_VARIABLE: &str = "FTP_ALG_TABLE_OWNER";

/// Opens the one socket of all transactions. It owns the table, if the kernel supports tables that outlive their
/// owner's socket.
fn open_commits() -> Result<Commits, NetfilterError> {
    if std::env::var_os(OWNER_VARIABLE).is_some_and(|value| value == "no") {
        return Ok(Commits::default());
    }
    Commits::through_one_socket()
}

/// The workers, as the main thread sees them. Dropping them ends them and removes the rules, unless connections need
/// the rules until the next start.
pub(super) struct Workers {
    pub(super) shared: Arc<SharedState>,
    state: StateDir,
    /// Whether the workers are to end. They are woken after it is set.
    stop: Arc<AtomicBool>,
    /// The wakers of the workers, in their order.
    wakers: Vec<Waker>,
    threads: Vec<JoinHandle<()>>,
    rules_thread: Option<JoinHandle<()>>,
    /// The thread that reports transfers. It ends when all that was recorded is reported, after `reports_end` is set.
    transfers_thread: Option<JoinHandle<()>>,
    reports_end: Arc<AtomicBool>,
    /// The thread that reads the fast path's lines.
    fast_path_thread: Option<JoinHandle<()>>,
    /// The thread that looks at the stores of a pair.
    link_thread: Option<JoinHandle<()>>,
    /// The table: loaded when the queues are open, removed before the workers end.
    table: Option<Table>,
    table_guard: TableGuard,
    heartbeat: Option<HeartbeatRenewer>,
}

impl Workers {
    /// The workers before anything is loaded or started.
    fn new(shared: Arc<SharedState>, state: StateDir, wakers: Vec<Waker>) -> Self {
        Self {
            shared,
            state,
            stop: Arc::default(),
            wakers,
            threads: Vec::new(),
            rules_thread: None,
            fast_path_thread: None,
            link_thread: None,
            transfers_thread: None,
            table: None,
            reports_end: Arc::default(),
            table_guard: TableGuard::default(),
            heartbeat: None,
        }
    }

    /// Loads the table, and lets the kernel and the fast path continue with the `restored` sessions. Returns whether
    /// packets may have waited for the table since an earlier daemon's end.
    fn load_table(
        &mut self,
        parameters: &RuleParameters,
        commits: &Commits,
        restored: bool,
        why_off: Option<&str>,
        events: &Sender<DaemonEvent>,
        queues: &mut [Queue],
    ) -> Result<bool, ServiceError> {
        let (table, is_new) =
            start_table::load(parameters, commits, &self.state, &self.shared, restored)?;
        if is_new && queues.len() > 1 {
            // The old table may have had another number of queues. Then a packet that it queued is in another queue than
            // the next packets of its connection, and two workers would have the session.
            queues.iter_mut().try_for_each(Queue::drop_waiting)?;
        }
        let have_waited = !is_new && table.holds_packets();
        let is_owned = table.is_owned();
        self.table = Some(table);
        if !is_owned {
            table_guard::watch_nf_tables(events.clone())?;
        }
        // Before the downtime is recorded, which would take connections back that the fast path has inspected all along.
        let mut kernel = lock(&self.shared.kernel);
        if let Some(mut fast_path) = self.shared.fast_path_control(&mut kernel) {
            fast_path.start(parameters)?;
            if let Some(why) = why_off {
                fast_path.turn_off(why.to_owned())?;
            }
        } else {
            fast_path_thread::reopen_program_pinholes(parameters, &self.shared, &mut kernel)?;
        }
        if restored {
            // The configuration may have changed.
            self.shared.close_forbidden_pinholes(&mut kernel);
        }
        Ok(have_waited)
    }

    /// Starts the thread that reads the fast path's lines, unless the fast path is off or the operator's rules are an
    /// obstacle.
    fn start_fast_path(
        &mut self,
        why_off: Option<&str>,
        obstacle: Option<String>,
        mut kernel: LinuxKernel,
        events: &Sender<DaemonEvent>,
    ) -> Result<(), ServiceError> {
        let (shared, end) = (Arc::clone(&self.shared), Arc::clone(&self.stop));
        let why_off = shared.fast_path.as_ref().err().map(String::as_str).or(why_off);
        if let Some(why) = why_off.or(obstacle.as_deref()) {
            fast_path_thread::log_off(why);
        }
        if why_off.is_some() {
            return Ok(());
        }
        if let Some(mut fast_path) = shared.fast_path_control(&mut kernel) {
            if let Some(why) = obstacle {
                return fast_path.turn_off(why);
            }
            if fast_path.is_loaded() {
                fast_path.update_program();
            }
        }
        let work = move || {
            let fast_path = shared.fast_path_control(&mut kernel);
            fast_path.map_or(Ok(()), |mut fast_path| fast_path.run(&end))
        };
        let what = "the reader of the fast path";
        self.fast_path_thread = Some(start_thread("fast-path", what, events.clone(), work)?);
        Ok(())
    }

    /// Starts the thread that looks at the stores, if this gateway is one of a pair.
    fn start_link(&mut self, events: &Sender<DaemonEvent>) -> Result<(), ServiceError> {
        let Some(pair) = self.shared.pair.clone() else { return Ok(()) };
        let (shared, end) = (Arc::clone(&self.shared), Arc::clone(&self.stop));
        let work = move || {
            pair_link::run(&shared, &pair, &end);
            Ok(())
        };
        let what = "the link to the other gateway";
        self.link_thread = Some(start_thread("pair", what, events.clone(), work)?);
        Ok(())
    }

    /// Starts the thread that reads the operator's rules when they change. `rules` are those at the start.
    fn start_rules_reader(
        &mut self,
        config: &Config,
        parameters: &RuleParameters,
        reader: RulesetReader,
        rules: OperatorRules,
        events: &Sender<DaemonEvent>,
    ) -> Result<(), ServiceError> {
        let follower = FollowedRules {
            reader,
            is_configured: config.restricts_ports(),
            parameters: parameters.clone(),
            shared: Arc::clone(&self.shared),
            events: events.clone(),
        };
        let end = Arc::clone(&self.stop);
        let work = move || {
            follower.follow(rules, &end);
            Ok(())
        };
        let what = "the reader of the operator's rules";
        self.rules_thread = Some(start_thread("rules", what, events.clone(), work)?);
        Ok(())
    }

    /// Starts the worker of a queue.
    fn start_worker(
        &mut self,
        index: usize,
        queue: Queue,
        kernel: LinuxKernel,
        parameters: &RuleParameters,
        events: &Sender<DaemonEvent>,
    ) -> Result<(), ServiceError> {
        let number = queue.number();
        let worker = Worker {
            queue,
            index,
            kernel,
            parameters: parameters.clone(),
            shared: Arc::clone(&self.shared),
            reorder_deadline: None,
            events: Vec::new(),
        };
        let end = Arc::clone(&self.stop);
        let (name, what) = (format!("queue-{number}"), format!("the worker of queue {number}"));
        let work = move || worker.run(&end);
        self.threads.push(start_thread(&name, &what, events.clone(), work)?);
        Ok(())
    }

    /// Starts the thread that reports transfers, with their bytes if there is a `data_log`, and writes the files of events.
    fn start_reporter(
        &mut self,
        mut last_session: LastSession,
        data_log: Option<DataLog>,
        files: Arc<Mutex<LogFiles>>,
        events: &Sender<DaemonEvent>,
    ) -> Result<(), ServiceError> {
        let (shared, is_over) = (Arc::clone(&self.shared), Arc::clone(&self.reports_end));
        let finder = shared.range_finder();
        let work = move || {
            let publish = |reports| {
                shared.publish_reports(reports, &mut lock(&files));
                last_session.set(shared.events.last_session());
            };
            shared.transfers.run(data_log, finder, &*shared, publish, &is_over);
            Ok(())
        };
        let what = "the reports of transfers";
        self.transfers_thread = Some(start_thread("transfers", what, events.clone(), work)?);
        Ok(())
    }

    /// Whether an adjusted connection is still open according to the kernel. After [`MAX_QUERIED`] lookups the answer
    /// is yes, because the end of the daemon must not take long.
    fn has_adjusted_connection(&self, kernel: &mut LinuxKernel) -> bool {
        let mut adjusted = Vec::new();
        self.shared.with_each(|engine| {
            adjusted.extend(engine.sessions.adjusted_connections().take(MAX_QUERIED + 1));
        });
        adjusted.iter().enumerate().any(|(asked, connection)| {
            asked >= MAX_QUERIED
                || !matches!(kernel.conntrack.has_connection(connection), Ok(false))
        })
    }

    /// Continues with `config`, whose fixed keys have the values of the start.
    pub(super) fn reload(&self, config: &Config) {
        if let Err(error) = self.shared.external_names.watch(config.external_names()) {
            self.shared.report_error(&format!("cannot look up names: {error}"));
        }
        if let Some(pair) = &self.shared.pair {
            pair.note_config(config);
        }
        self.update_policy(config);
        // The sets have the ports of before.
        self.shared.reopen_ranges(&mut lock(&self.shared.kernel));
    }

    /// Continues with the same `config` after one of its names got another address, or the operator's rules another set of
    /// ports.
    pub(super) fn update_policy(&self, config: &Config) {
        let port_sets = lock(&self.shared.port_sets).clone();
        let addresses = self.shared.external_names.addresses();
        let policy = config.policy(|name| addresses.of(name), &port_sets);
        let mut kernel = lock(&self.shared.kernel);
        // Connections may be handed over again as soon as the policy is set. What it permits again is updated later.
        if let Some(fast_path) = self.shared.fast_path_control(&mut kernel) {
            fast_path.bar_ports(Some(&policy));
        }
        self.shared.with_each(|engine| engine.sessions.set_policy(policy.clone()));
        self.shared.external_names.note_announced(addresses);
        if let Some(mut fast_path) = self.shared.fast_path_control(&mut kernel) {
            fast_path.apply_policy();
        }
        self.shared.close_forbidden_pinholes(&mut kernel);
    }

    /// Whether every worker made progress recently.
    pub(super) fn makes_progress(&self) -> bool {
        self.shared.progress.oldest_pass().elapsed() < HEARTBEAT_TIMEOUT
    }

    /// Renews the heartbeat, and loads the table again if another program removed or changed it. Called ten times a
    /// second.
    pub(super) fn maintain(&mut self) {
        if let Some(heartbeat) = &mut self.heartbeat {
            self.shared.report(heartbeat.renew_if_due(&self.shared));
        }
        let Some(table) = &mut self.table else { return };
        let change = self.table_guard.check_table(Instant::now(), table, &self.shared);
        if change == Some(TableChange::Restored) {
            let mut kernel = lock(&self.shared.kernel);
            if let Some(mut fast_path) = self.shared.fast_path_control(&mut kernel) {
                fast_path.handle_new_table();
            }
            drop(kernel);
            self.shared.note_downtime();
            table_guard::reopen_pinholes(table, &self.shared);
        }
        if change.is_some() {
            self.shared.report(self.state.set_table_record(table.record().as_ref()));
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        let mut kernel = lock(&self.shared.kernel);
        if let Some(mut fast_path) = self.shared.fast_path_control(&mut kernel) {
            fast_path.stop();
        }
        let adjusted = self.has_adjusted_connection(&mut kernel);
        // Their announcements wait in the queue for the restarted daemon.
        let now = Instant::now();
        let in_use = |shard: &Mutex<Shard>| lock(shard).engine.sessions.is_in_use(now);
        let needed = adjusted || self.shared.shards.iter().any(in_use);
        // Without the table's rules no more packets are queued. Those in the queues still get their verdicts.
        match self.table.take() {
            Some(table) if needed => {
                if let Some(heartbeat) = &mut self.heartbeat {
                    self.shared.report(heartbeat.stop(&self.shared));
                }
                table.leave_in_kernel();
                if adjusted {
                    log_event!(
                        TABLE_LEFT,
                        "table inet ftp_alg stays: control connections with adjusted sequence numbers are open, \
                         and stall until ftp-alg starts again. `nft delete table inet ftp_alg` abandons them"
                    );
                } else {
                    let seconds = heartbeat_renewer::RESTART_GRACE.as_secs();
                    log_event!(
                        TABLE_LEFT,
                        seconds,
                        "table inet ftp_alg stays: control connections are in use, and stall for up to {seconds} s \
                         until ftp-alg starts again. `nft delete table inet ftp_alg` removes it"
                    );
                }
            }
            table => drop(table),
        }
        self.stop.store(true, Ordering::Release);
        for (thread, waker) in self.threads.drain(..).zip(&mut self.wakers) {
            waker.wake();
            let _ = thread.join();
        }
        if let Some(thread) = self.link_thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
        if let Ok(reader) = &self.shared.fast_path {
            if let Some(thread) = self.fast_path_thread.take() {
                thread.thread().unpark();
                let _ = thread.join();
            }
            if !needed {
                self.shared.report(reader.offload.program().remove());
            }
        }
        // Its last reports look into conntrack.
        drop(kernel);
        if let Some(thread) = self.transfers_thread.take() {
            self.reports_end.store(true, Ordering::Release);
            let _ = thread.join();
        }
        // This thread may be reading a large rule set, so the end does not wait for it.
        if let Some(thread) = self.rules_thread.take() {
            thread.thread().unpark();
        }
        self.shared.log.log_skipped();
        // What the other gateway may continue stays in the store.
        self.shared.shards.iter().filter_map(|shard| lock(shard).store.take()).for_each(drop);
        if !needed {
            // Pinholes of the table are gone with it, but expectations are not.
            let mut kernel = lock(&self.shared.kernel);
            self.shared.finish_each(&mut kernel, |engine, _| engine.sessions.close_all_pinholes());
        }
    }
}
