//! One thread for each queue: packets in, verdicts out.
//!
//! Each worker has an engine of its own, as the kernel keeps a connection on one queue. Engines
//! are behind locks only for the control socket's thread, which looks at them now and then.
//!
//! A worker that ends by itself, or panics, ends the daemon: half a gateway is worse than one that
//! the service manager starts again, since unadjusted connections pass without us.

use std::{
    collections::HashMap,
    error::Error,
    fmt::Display,
    io::{self, PipeReader, PipeWriter},
    os::fd::AsFd,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::Sender,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{
    Event, Service, ServiceError,
    log::Log,
    names::Names,
    snapshot::{PinholeRow, SessionRow, Source, Status},
    state::{Journal, StateDir},
};
use crate::{
    config::{self, Config},
    engine::{Checksums, Engine, Kernel, Pinhole, Verdict},
    gateway::{
        self, Backend, Condition, Decision, LinuxKernel, OpenPinhole, Queue, RuleParameters, Table,
        Verdicts,
    },
};

/// How long a worker waits for a packet before it looks at what has expired.
const TICK: Duration = Duration::from_secs(1);

/// How many batches a worker reads before it looks whether there is something else to do.
const BATCHES_BETWEEN_LOOKS: usize = 16;

/// What the workers and the control socket share.
pub(super) struct Shared {
    started: Instant,
    backend: &'static str,
    engines: Vec<Arc<Mutex<Engine>>>,
    /// What the workers met besides what their engines count.
    errors: AtomicU64,
    /// Packets that the kernel dropped as a queue was full.
    overruns: AtomicU64,
    log: Log,
    names: Names,
    /// What of the daemon's confinement is missing on this machine.
    unconfined: Vec<String>,
    /// For questions of the control socket.
    kernel: Mutex<LinuxKernel>,
}

impl Shared {
    fn fail(&self, error: &dyn Display) {
        self.errors.fetch_add(1, Ordering::Relaxed);
        self.log.fail(Instant::now(), error);
    }
}

/// A worker that panicked ends the daemon; until then its engine can be looked at.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts a worker for each queue; when this returns they give verdicts.
pub(super) fn start(
    config: &Config,
    state_dir: &Path,
    events: &Sender<Event>,
    unconfined: Vec<String>,
) -> Result<Box<dyn Service>, ServiceError> {
    let mut parameters = rule_parameters(config)?;
    let names = Names::new(events.clone());
    names.watch(config.external_names())?;
    let mut why = "the configuration says so";
    if config.pinhole.backend == config::Backend::Auto {
        let backend;
        (backend, why) = gateway::automatic(&parameters);
        parameters = parameters.with_backend(backend);
    }
    // A queue that another program reads is found before anything is changed. What a table that was
    // left behind puts into one waits from here on until the workers start.
    let numbers: Vec<u16> = config.queue.numbers().collect();
    let queues = numbers.iter().copied().map(Queue::open).collect::<Result<Vec<_>, _>>()?;
    let state =
        StateDir::new(state_dir, &numbers).map_err(|error| state_failed(state_dir, &error))?;
    let engine = Engine::new(config.policy(|name| names.external(name)), Checksums::Verify);
    let shared = Arc::new(Shared {
        started: Instant::now(),
        backend: parameters.backend().as_str(),
        engines: queues.iter().map(|_| Arc::new(Mutex::new(engine.beside()))).collect(),
        errors: AtomicU64::new(0),
        overruns: AtomicU64::new(0),
        log: Log::default(),
        names,
        unconfined,
        kernel: Mutex::new(LinuxKernel::new(&parameters)?),
    });
    let (wake, end) = io::pipe()?;
    let mut workers = Workers { shared, state, end: Some(end), threads: Vec::new(), table: None };
    let shared = Arc::clone(&workers.shared);
    let mut journals = Vec::new();
    for (number, engine) in numbers.iter().zip(&shared.engines) {
        let journal = workers.state.open(*number, &mut lock(engine));
        journals.push(journal.map_err(|error| state_failed(state_dir, &error))?);
    }
    let restored = shared.engines.iter().any(|engine| lock(engine).session_count() > 0);
    workers.load(&parameters, restored)?;
    for ((queue, engine), journal) in queues.into_iter().zip(&shared.engines).zip(journals) {
        let (engine, shared) = (Arc::clone(engine), Arc::clone(&shared));
        let kernel = LinuxKernel::new(&parameters)?;
        let worker = Worker { queue, engine, journal, kernel, shared };
        workers.spawn(worker, wake.try_clone()?, events.clone())?;
    }
    tracing::info!("back end {}: {why}", parameters.backend().as_str());
    Ok(Box::new(workers))
}

fn state_failed(path: &Path, error: &io::Error) -> ServiceError {
    format!("cannot keep state in {}: {error}; name another with --state-dir", path.display())
        .into()
}

/// What the rules need of the configuration.
pub fn rule_parameters(config: &Config) -> Result<RuleParameters, crate::gateway::GatewayError> {
    let (queue, pinhole) = (&config.queue, &config.pinhole);
    let parameters = RuleParameters::new(
        &config.control_ports,
        queue.number,
        queue.workers,
        pinhole.mark,
        pinhole.mark_mask,
    )?;
    Ok(match pinhole.backend {
        config::Backend::Auto | config::Backend::Nftables => parameters,
        config::Backend::Conntrack => parameters.with_backend(Backend::Conntrack),
    })
}

/// One queue and the engine behind it.
struct Worker {
    queue: Queue,
    engine: Arc<Mutex<Engine>>,
    journal: Journal,
    kernel: LinuxKernel,
    shared: Arc<Shared>,
}

impl Worker {
    /// Works until `wake` ends: it never has a byte to read, and hangs up when the daemon stops.
    fn run(mut self, wake: &PipeReader) -> Result<(), Box<dyn Error>> {
        let mut overruns = self.queue.overruns();
        let mut next_tick = Instant::now();
        let mut replacement = Vec::new();
        loop {
            let now = Instant::now();
            if now >= next_tick {
                next_tick = self.tick(now, &mut overruns);
            }
            let rest = next_tick.saturating_duration_since(now);
            let timeout = Timespec::try_from(rest).unwrap_or_default();
            let (queue, wake) = (self.queue.as_fd(), wake.as_fd());
            let mut fds = [
                PollFd::from_borrowed_fd(queue, PollFlags::IN),
                PollFd::from_borrowed_fd(wake, PollFlags::IN),
            ];
            match poll(&mut fds, Some(&timeout)) {
                Ok(0) | Err(rustix::io::Errno::INTR) => continue,
                Ok(_) => {}
                Err(error) => return Err(error.into()),
            }
            if !fds[1].revents().is_empty() {
                return Ok(());
            }
            // What is full is followed by more, mostly.
            for _ in 0..BATCHES_BETWEEN_LOOKS {
                if !self.batch(&mut replacement)? {
                    break;
                }
            }
        }
    }

    /// Reads what waits, and decides about it. Whether it was as much as can be read at once.
    fn batch(&mut self, replacement: &mut Vec<u8>) -> Result<bool, Box<dyn Error>> {
        let count = self.queue.receive()?;
        if count == 0 {
            return Ok(false);
        }
        let mut engine = lock(&self.engine);
        let now = Instant::now();
        let (packets, mut verdicts) = self.queue.batch();
        for packet in packets {
            let verdict = engine.packet(now, packet.payload, &mut self.kernel, replacement);
            let decision = match verdict {
                Verdict::Accept => Decision::Accept,
                Verdict::Replace => Decision::Replace(replacement),
                Verdict::Drop => Decision::Drop,
            };
            if let Err(error) = verdicts.verdict(packet.id, decision) {
                self.shared.fail(&error);
            }
            if verdicts.is_full() {
                give(&mut engine, &mut self.journal, &mut verdicts, &self.shared);
            }
        }
        give(&mut engine, &mut self.journal, &mut verdicts, &self.shared);
        engine.settle(&mut self.kernel);
        let events = engine.take_events();
        drop(engine);
        self.shared.log.events(now, events);
        Ok(count >= Queue::BATCH)
    }

    /// What is to be done about once a second. Gives the time of the next.
    fn tick(&mut self, now: Instant, overruns: &mut u64) -> Instant {
        let mut engine = lock(&self.engine);
        engine.expire(now, &mut self.kernel);
        let was_written = self.journal.is_written();
        match self.journal.recover(&mut engine) {
            Ok(()) if was_written => {}
            Ok(()) => tracing::info!("{} is written again", self.journal.path().display()),
            // Said once.
            Err(_) if !was_written => {}
            Err(error) => self.shared.fail(&not_kept(&self.journal, &error)),
        }
        let events = engine.take_events();
        drop(engine);
        self.shared.log.events(now, events);
        self.shared.log.sum_up(now);
        let dropped = self.queue.overruns();
        if dropped > *overruns {
            let (number, more) = (self.queue.number(), dropped - *overruns);
            tracing::warn!("queue {number} was full: the kernel dropped {more} packets");
            self.shared.overruns.fetch_add(more, Ordering::Relaxed);
            *overruns = dropped;
        }
        now + TICK
    }
}

/// Gives the verdicts so far, once it is written what they do to sessions. Where that fails they are
/// given all the same: FTP goes on, and only a restart will be noticed.
fn give(engine: &mut Engine, journal: &mut Journal, verdicts: &mut Verdicts<'_>, shared: &Shared) {
    if let Err(error) = journal.write(engine) {
        shared.fail(&not_kept(journal, &error));
    }
    if let Err(error) = verdicts.flush() {
        shared.fail(&error);
    }
}

fn not_kept(journal: &Journal, error: &io::Error) -> String {
    let remedy = match error.kind() {
        // The right to write there is one to that directory, whatever took its place.
        io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => {
            "was its directory removed or replaced? Then start ftp-alg again"
        }
        _ => "it is tried again each second",
    };
    format!(
        "{}: {error}; until this works, no session survives a restart; {remedy}",
        journal.path().display()
    )
}

struct Workers {
    shared: Arc<Shared>,
    state: StateDir,
    /// Dropped to end all workers: each has the other end of the pipe.
    end: Option<PipeWriter>,
    threads: Vec<JoinHandle<()>>,
    /// Loaded when the workers wait, removed before they end.
    table: Option<Table>,
}

impl Workers {
    fn spawn(&mut self, worker: Worker, wake: PipeReader, events: Sender<Event>) -> io::Result<()> {
        let name = format!("queue-{}", worker.queue.number());
        let work = move || {
            let number = worker.queue.number();
            let why = match catch_unwind(AssertUnwindSafe(|| worker.run(&wake))) {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error.to_string(),
                Err(_) => "a defect in ftp-alg; please report the lines above".to_owned(),
            };
            let _ =
                events.send(Event::Failed(format!("the worker of queue {number} ended: {why}")));
        };
        self.threads.push(thread::Builder::new().name(name).spawn(work)?);
        Ok(())
    }

    /// Takes over the table that was left, or loads it, and has the kernel know the same pinholes as
    /// the sessions that were `restored`.
    fn load(&mut self, parameters: &RuleParameters, restored: bool) -> Result<(), ServiceError> {
        let imprint = self.state.imprint();
        if imprint.is_none() && Table::is_there()? {
            tracing::warn!(
                "table inet ftp_alg is replaced: another ftp-alg loaded it, or this one with other \
                 queues, as the state directory does not know it. Connections whose numbers that \
                 adjusted break; if it still runs, stop one of them"
            );
        }
        let imprint = imprint.filter(|_| restored);
        let left = imprint.map(|imprint| Table::adopt(parameters, &imprint)).transpose()?.flatten();
        let is_new = left.is_none();
        let mut kernel = lock(&self.shared.kernel);
        let open_before = if restored && is_new { kernel.list_open()? } else { Vec::new() };
        self.table = Some(match left {
            Some(table) => table,
            None => Table::install(parameters)?,
        });
        self.keep_imprint();
        if !restored {
            return Ok(());
        }
        let open_now = kernel.list_open()?;
        let among = |open: &[OpenPinhole], Pinhole { initiator, arrival, .. }: &Pinhole| {
            open.iter().any(|open| (open.initiator, open.arrival) == (*initiator, *arrival))
        };
        for engine in &self.shared.engines {
            let is_missing =
                |pinhole: &Pinhole| among(&open_before, pinhole) && !among(&open_now, pinhole);
            lock(engine).open_again(Instant::now(), &mut *kernel, is_missing);
        }
        // Of an expectation is not known whose it is; it ends by itself.
        if let (Backend::Nftables, Some(engine)) =
            (parameters.backend(), self.shared.engines.first())
        {
            for OpenPinhole { initiator, arrival, .. } in open_now {
                if !lock(engine).holds(initiator, arrival) {
                    let left = Pinhole { initiator, arrival, target: arrival, source: initiator };
                    kernel.close(&left).unwrap_or_else(|error| self.shared.fail(&error));
                }
            }
        }
        Ok(())
    }

    fn keep_imprint(&self) {
        let imprint = self.table.as_ref().and_then(Table::imprint);
        if let Err(error) = self.state.set_imprint(imprint.as_ref()) {
            self.shared.fail(&format!(
                "{}: {error}; a daemon that is started again will load the rules again, too",
                self.state.imprint_path().display()
            ));
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        let mut kernel = lock(&self.shared.kernel);
        let needed = self.shared.engines.iter().any(|engine| lock(engine).is_needed(&mut *kernel));
        // Without the rules nothing new is queued; what waits still gets its verdict.
        match self.table.take() {
            Some(table) if needed => {
                table.keep();
                tracing::warn!(
                    "control connections with adjusted numbers are open: table inet ftp_alg stays, and \
                     they wait for ftp-alg to be started again. `nft delete table inet ftp_alg` \
                     gives them up"
                );
            }
            table => drop(table),
        }
        drop(self.end.take());
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        self.shared.log.end();
        if !needed {
            // Those in our table have gone with it; expectations have not.
            for engine in &self.shared.engines {
                lock(engine).close_all(&mut *kernel);
            }
        }
    }
}

impl Service for Workers {
    fn source(&self) -> Arc<dyn Source> {
        Arc::clone(&self.shared) as Arc<dyn Source>
    }

    fn reload(&self, config: &Config) {
        if let Err(error) = self.shared.names.watch(config.external_names()) {
            self.shared.fail(&format!("cannot look up names: {error}"));
        }
        self.resolved(config);
    }

    fn resolved(&self, config: &Config) {
        let policy = config.policy(|name| self.shared.names.external(name));
        for engine in &self.shared.engines {
            lock(engine).set_policy(policy.clone());
        }
    }

    fn check(&mut self) -> Result<(), ServiceError> {
        let Some(table) = &mut self.table else { return Ok(()) };
        let what = match table.condition() {
            Ok(Condition::Intact) => return Ok(()),
            Ok(Condition::Gone) => "removed",
            Ok(Condition::Changed) => "changed",
            Ok(Condition::Replaced) => {
                return Err("table inet ftp_alg was replaced by another program: does a second \
                            ftp-alg run here? Its table stays; stop it, or leave this one stopped"
                    .into());
            }
            Err(error) => {
                self.shared.fail(&error);
                return Ok(());
            }
        };
        self.shared.fail(&format!(
            "table inet ftp_alg was {what} by another program: it is loaded again; what was open \
             is closed, and what passed meanwhile was not seen"
        ));
        table.restore()?;
        self.keep_imprint();
        Ok(())
    }
}

impl Source for Shared {
    fn status(&self) -> Status {
        let mut status = Status::new(self.backend, self.started.elapsed());
        status.errors = self.errors.load(Ordering::Relaxed);
        status.overruns = self.overruns.load(Ordering::Relaxed);
        for engine in &self.engines {
            let engine = lock(engine);
            let counters = engine.counters();
            status.sessions += engine.sessions().count() as u64;
            status.packets += counters.packets;
            status.rewrites += counters.rewrites;
            status.pinholes_opened += counters.pinholes_opened;
            status.pinholes_refused += counters.pinholes_refused;
            status.commands_refused += counters.commands_refused;
            status.lost += counters.lost;
            status.uninspected += counters.uninspected;
            status.malformed += counters.malformed;
            status.limits += counters.limits;
            status.errors += counters.errors;
        }
        status.pinholes = self.pinholes().len() as u64;
        status.log_lines_skipped = self.log.skipped();
        status.names = self.names.rows();
        status.unconfined = self.unconfined.clone();
        status
    }

    fn sessions(&self) -> Vec<SessionRow> {
        let now = Instant::now();
        let row = |session: crate::engine::SessionInfo| SessionRow {
            id: session.id,
            client: session.translation.client,
            server: session.translation.server,
            client_external: session.translation.client_external,
            server_external: session.translation.server_external,
            state: session.state.to_owned(),
            age_seconds: now.saturating_duration_since(session.since).as_secs(),
            adjusted: session.adjusted,
            pinholes: session.pinholes as u64,
        };
        let rows =
            |engine: &Arc<Mutex<Engine>>| lock(engine).sessions().map(row).collect::<Vec<_>>();
        self.engines.iter().flat_map(rows).collect()
    }

    /// What the engines hold and the kernel says is open: it closes by itself what is used.
    fn pinholes(&self) -> Vec<PinholeRow> {
        let open = match lock(&self.kernel).list_open() {
            Ok(open) => open,
            Err(error) => {
                self.fail(&error);
                return Vec::new();
            }
        };
        // Looked up while an engine is locked, which keeps its worker waiting.
        let remaining: HashMap<_, _> =
            open.iter().map(|open| ((open.initiator, open.arrival), open.remaining)).collect();
        let row = |info: crate::engine::PinholeInfo| {
            let pinhole = info.pinhole;
            let remaining = remaining.get(&(pinhole.initiator, pinhole.arrival))?;
            Some(PinholeRow {
                session: info.session,
                initiator: pinhole.initiator,
                arrival: pinhole.arrival,
                target: pinhole.target,
                source: pinhole.source,
                kind: info.kind,
                remaining_seconds: remaining.as_secs(),
            })
        };
        let rows = |engine: &Arc<Mutex<Engine>>| {
            lock(engine).pinholes().filter_map(row).collect::<Vec<_>>()
        };
        self.engines.iter().flat_map(rows).collect()
    }
}
