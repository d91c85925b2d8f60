//! The running daemon: it reads the configuration, claims the state directory and the control socket, handles signals,
//! and starts the workers, which connect the engine to the kernel.
//!
//! Invariants:
//! - The daemon gives up its rights ([`confine`]) before it starts a thread, because Linux keeps credentials for each
//!   thread, and before it reads anything from the network.
//! - It binds the control socket before it loads the fast path and starts the workers, so a second daemon changes
//!   nothing of the first one's.
//! - The control socket answers, and the service manager is sent READY, only when the workers give verdicts.
//! - The workers end last.

#[macro_use]
pub mod catalogue;

mod activation;
pub mod config_file;
pub mod confine;
pub(crate) mod control_client;
mod control_socket;
pub mod counted;
mod daemon_host;
mod deadline_stream;
mod events;
mod external_names;
mod fast_path_lines;
mod fast_path_pins;
mod fast_path_thread;
pub mod health;
mod heartbeat_renewer;
mod log;
mod log_files;
mod metrics;
mod operator_rules;
mod pair;
mod pair_link;
mod queries;
mod rates;
mod records;
mod running_bytes;
mod shard;
mod shared_state;
pub mod snapshot;
mod start_table;
mod state_dir;
mod status_source;
mod store;
mod table_guard;
mod takeover;
mod threads;
mod transfers;
mod worker;
mod worker_progress;
mod workers;

use std::{
    fs::{self, DirBuilder, File},
    io,
    net::TcpListener,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown},
            net::UnixStream,
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
    process::{Resource, Rlimit, Signal, getrlimit, set_parent_process_death_signal, setrlimit},
};
use sd_notify::NotifyState;
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

pub(crate) use self::fast_path_pins::off_reason as fast_path_off_reason;
use self::{
    config_file::ConfigFile,
    confine::{Account, AccountError, ConfineError},
    control_socket::{ControlError, ControlSocket},
    counted::counted,
    events::Unwritten,
    fast_path_pins::{FastPathPins, LoadedProgram},
    health::{Health, ProblemName},
    log_files::LogFiles,
    metrics::{Answers, MetricsEndpoint, Site},
    shard::lock,
    takeover::{OtherDaemons, TakeoverError},
    workers::Workers,
};
pub use self::{
    events::MAX_ANSWERED,
    log::{journald::stderr_is_journal as logs_to_journal, level::LEVELS, wants_colours},
    metrics::{Password, PasswordError},
};
use crate::{
    config::{self, Config, ConfigError, MetricsSettings},
    kernel::broker,
};

/// The default of `--state-dir`.
pub const DEFAULT_STATE_DIR: &str = "/run/ftp-alg";
/// The default of `--socket`.
pub const DEFAULT_SOCKET: &str = "/run/ftp-alg/ftp-alg.sock";

/// The options of `ftp-alg run`.
#[derive(Clone, Debug)]
pub struct DaemonOptions {
    /// The configuration file; `None`: the default file, which may be absent.
    pub config: Option<PathBuf>,
    pub state_dir: PathBuf,
    pub socket: PathBuf,
    /// The user that the daemon becomes. `None` leaves the user unchanged.
    pub user: Option<String>,
    /// Whether to end a daemon that already runs.
    pub takeover: bool,
    /// The log level, one of [`LEVELS`]. `None` leaves it to the environment.
    pub log_level: Option<String>,
}

impl DaemonOptions {
    fn socket_dir(&self) -> &Path {
        match self.socket.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        }
    }
}

/// The hidden command with which the keeper starts the broker.
pub const BROKER_COMMAND: &str = "broker";
/// The hidden command with which the daemon starts the broker's keeper.
pub const KEEPER_COMMAND: &str = "keeper";

/// Why the daemon did not start, or why it ended.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(
        "log level refused: {}={value}: {reason}; give a level such as \"debug\"",
        log::level::LEVEL_VARIABLE
    )]
    Log { value: String, reason: String },
    #[error("cannot use the directory {}: {source}; name another one, or run as root so that it can be made", path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error(
        "the state directory {} may be written by others (mode {mode:o}): chmod 0700 it, or name \
         another one with --state-dir",
        path.display()
    )]
    WritableByOthers { path: PathBuf, mode: u32 },
    #[error(
        "the state directory {} belongs to user {owner}, but the daemon runs as user {user}: \
         name another one with --state-dir, or chown it if only ftp-alg uses it",
        path.display()
    )]
    OtherOwner { path: PathBuf, owner: u32, user: u32 },
    #[error(
        "the state directory {} is in use by another ftp-alg: `ftp-alg run --takeover` ends it and continues in its \
         place; if it serves another network namespace, name other places with --state-dir and --socket",
        path.display()
    )]
    InUse { path: PathBuf },
    #[error(transparent)]
    Account(#[from] AccountError),
    #[error(transparent)]
    Confine(#[from] ConfineError),
    #[error(transparent)]
    Takeover(#[from] TakeoverError),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error("cannot set up {what}: {source}")]
    System { what: &'static str, source: io::Error },
    #[error(transparent)]
    Service(#[from] ServiceError),
    /// A thread of the daemon, or its broker, ended by itself.
    #[error("{0}")]
    Failed(String),
}

/// Why the workers did not start: one line with the thing, the reason and the remedy.
pub type ServiceError = Box<dyn std::error::Error + Send + Sync>;

/// Interval of [`Workers::maintain`]. While the table is missing, packets of adjusted connections pass
/// unadjusted. A check takes microseconds, unless another program has changed nf_tables.
const MAINTENANCE_INTERVAL: Duration = Duration::from_millis(100);

/// Interval of [`SharedState::update_health`].
const HEALTH_INTERVAL: Duration = Duration::from_secs(1);

/// The signals that the daemon handles.
const SIGNALS: [i32; 3] = [SIGTERM, SIGINT, SIGHUP];

/// How many changes of the configuration are logged at a reload.
const MAX_CHANGES: usize = 100;

/// Time for a daemon that is ending to close its queues and to release the state directory.
const CLAIM_LIMIT: Duration = Duration::from_secs(1);

/// An event that the main thread handles.
#[derive(Debug)]
pub enum DaemonEvent {
    Terminate,
    Reload,
    /// The external address that a name stands for, or the ports of the operator's rules have changed.
    PolicyChanged,
    /// Another program has changed nf_tables.
    NfTablesChanged,
    /// A thread, or the broker, ended by itself. The text says which one and why.
    Failed(String),
}

/// Runs the daemon in the foreground until a signal ends it.
pub fn run(options: &DaemonOptions) -> Result<(), DaemonError> {
    log::init(options.log_level.as_deref())?;
    let config_file = ConfigFile::load(options.config.as_deref())?;
    let mut config = config_file.in_use();
    // From here on a signal ends the daemon in order, which leaves nothing behind.
    let signals = Signals::new(SIGNALS).map_err(system("signals"))?;
    let confined = confine(options, &config)?;
    let ConfinedDaemon { unconfined, mut socket, metrics, state_dir: _claimed, .. } = confined;
    let fast_path = confined.fast_path;
    let log_files = Arc::new(Mutex::new(confined.log_files));
    let _last_events = LastEvents(Arc::clone(&log_files));
    let (sender, events) = mpsc::channel();
    watch_signals(signals, sender.clone())?;
    watch_broker(sender.clone())?;
    let mut service = workers::start(
        &config,
        &options.state_dir,
        &sender,
        unconfined,
        fast_path,
        Arc::clone(&log_files),
        config_file,
    )?;
    log_warnings(&config, &service);
    socket.serve(service.shared.clone())?;
    let metrics = metrics.and_then(|bound| serve_metrics(&config.metrics, bound, &service));
    let (version, ports) = (env!("CARGO_PKG_VERSION"), &config.control_ports);
    let queues: Vec<_> = config.queue.numbers().collect();
    let path = options.socket.display();
    log_event!(
        READY,
        version,
        control_ports = ?ports,
        queues = ?queues,
        socket = %path,
        "ready: version {version}, control ports {ports:?}, queues {queues:?}, socket {path}"
    );
    notify(&[NotifyState::Ready]);
    let mut watchdog = Watchdog::new();
    let mut next_health = Instant::now();
    let outcome = handle_events(&events, |event| match event {
        None => {
            service.maintain();
            let now = Instant::now();
            watchdog.feed(now, &service);
            if now >= next_health {
                service.shared.update_health(now);
                next_health = now + HEALTH_INTERVAL;
            }
        }
        Some(DaemonEvent::NfTablesChanged) => service.maintain(),
        Some(DaemonEvent::PolicyChanged) => service.update_policy(&config),
        Some(DaemonEvent::Reload) => reload(&mut config, &service, metrics.as_ref()),
        Some(DaemonEvent::Terminate | DaemonEvent::Failed(_)) => {} // not passed on
    });
    notify(&[NotifyState::Stopping]);
    if let Some(pair) = &service.shared.pair {
        pair.wait_for_packets_to_move();
    }
    drop(metrics);
    drop(socket);
    drop(service);
    log_event!(STOPPED, "stopped");
    outcome
}

/// Writes the last events of the daemon at its end, also if it could not start.
struct LastEvents(Arc<Mutex<LogFiles>>);

impl Drop for LastEvents {
    fn drop(&mut self) {
        let mut files = lock(&self.0);
        files.maintain(true);
        files.append_events(&Unwritten::default());
    }
}

/// Passes events to `handle` until one of them ends the daemon. Passes `None` when maintenance is due.
fn handle_events(
    events: &Receiver<DaemonEvent>,
    mut handle: impl FnMut(Option<DaemonEvent>),
) -> Result<(), DaemonError> {
    let mut next_check = Instant::now() + MAINTENANCE_INTERVAL;
    loop {
        let now = Instant::now();
        if now >= next_check {
            handle(None);
            next_check = now + MAINTENANCE_INTERVAL;
        }
        match events.recv_timeout(next_check.saturating_duration_since(now)) {
            Ok(DaemonEvent::Terminate) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Ok(DaemonEvent::Failed(why)) => return Err(DaemonError::Failed(why)),
            Ok(event) => handle(Some(event)),
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

/// Reads the configuration again, and continues with it if it is valid.
fn reload(config: &mut Config, service: &Workers, metrics: Option<&MetricsEndpoint>) {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(_) => notify(&[NotifyState::Reloading]),
    }
    // Both also with an invalid configuration. The files of the log as after a rotation.
    service.shared.transfers.reopen_files();
    if let (Some(endpoint), Some(path)) = (metrics, &config.metrics.password_file) {
        reload_password(endpoint, path, &service.shared.health);
    }
    if let Ok((new, changes)) = service.shared.config_file.load_again() {
        service.reload(&new);
        service.shared.transfers.set_servers(new.server_addresses());
        for change in changes.iter().take(MAX_CHANGES) {
            let (key, before, now) = (&change.key, change.before.as_deref(), change.now.as_deref());
            log_event!(RELOAD_CHANGED, key, before, now, "reload: {}", change.text);
        }
        let changed = match changes.len() {
            0 if new == *config => "nothing has changed".to_owned(),
            0 => "tables are in another order".to_owned(),
            count => counted(count as u64, "change"),
        };
        if new != *config {
            service.shared.forget_configured(Instant::now());
        }
        log_event!(RELOADED, "reload: the new configuration is in use: {changed}");
        log_warnings(&new, service);
        *config = new;
    }
    notify(&[NotifyState::Ready]);
}

/// Logs what the operator may not expect of the configuration.
fn log_warnings(config: &Config, service: &Workers) {
    for warning in config.warnings(service.shared.backend.parse().ok()) {
        log_event!(CONFIG_WARNING, "configuration: {warning}");
    }
}

/// The service manager's watchdog. It restarts a daemon that hangs.
struct Watchdog {
    /// Interval of the notifications. `None` if the service manager watches nothing.
    every: Option<Duration>,
    next: Instant,
}

impl Watchdog {
    fn new() -> Self {
        let every = sd_notify::watchdog_enabled().map(|limit| limit / 4);
        Self { every, next: Instant::now() }
    }

    fn feed(&mut self, now: Instant, service: &Workers) {
        if let Some(every) = self.every
            && now >= self.next
            && service.makes_progress()
        {
            notify(&[NotifyState::Watchdog]);
            self.next = now + every;
        }
    }
}

/// The daemon's resources after it has given up its rights.
struct ConfinedDaemon {
    /// The confinement that this machine lacks, a line each.
    unconfined: Vec<String>,
    socket: ControlSocket,
    /// The endpoint of `[metrics]`, or why it cannot be bound. `None` if it is off.
    metrics: Option<Result<TcpListener, String>>,
    /// The files of `log.events` and `log.transfers`.
    log_files: LogFiles,
    /// The lock on the state directory. No other daemon uses the directory while it is open.
    state_dir: File,
    /// The fast path's program, or why the fast path is off.
    fast_path: Result<LoadedProgram, String>,
}

/// Makes the directories, starts the broker, ends another daemon for `--takeover`, begins to load the fast path, and
/// gives up all other rights.
fn confine(options: &DaemonOptions, config: &Config) -> Result<ConfinedDaemon, DaemonError> {
    let account = options.user.as_deref().map(Account::named).transpose()?;
    let socket_dir = options.socket_dir();
    let state_dir = make_state_dir(&options.state_dir, account.as_ref())?;
    make_dir(socket_dir, account.as_ref())?;
    let mut others = None;
    if options.takeover {
        let found = others.insert(OtherDaemons::find(&config.into(), &options.socket)?);
        found.check_start(options, account.as_ref(), &state_dir)?;
    } else {
        takeover::check_alone(&config.into(), &options.socket, Instant::now() + CLAIM_LIMIT)?;
    }
    start_broker(options, config).map_err(system("the broker"))?;
    raise_limit_of_descriptors();
    others.map(OtherDaemons::end).transpose()?;
    // Only now, because another user's daemon may have had the program until then.
    // A daemon without a fast path still reads the lines that an earlier daemon's program left, and then removes it.
    let pins = match fast_path_off_reason(config.queue.fast_path) {
        Some(why) if !FastPathPins::has_leftovers(&options.state_dir, account.as_ref()) => {
            Err(why.to_owned())
        }
        _ => FastPathPins::open_or_create(&options.state_dir, account.as_ref()),
    };
    confine::become_user(account.as_ref())?;
    let socket = ControlSocket::bind(&options.socket)?;
    claim(&state_dir, &options.state_dir)?;
    let metrics = config.metrics.listen.map(|address| {
        metrics::bind(address)
            .map_err(|error| format!("metrics: cannot listen at {address}: {error}"))
    });
    let log_files = LogFiles::open(&config.log);
    if pins.is_err() {
        FastPathPins::remove_leftovers(&options.state_dir, account.as_ref());
    }
    let fast_path = pins
        .and_then(|pins| LoadedProgram::begin_loading(pins).map_err(|missing| missing.to_string()));
    let path = fast_path.as_ref().ok().map(|loaded| loaded.pins().path());
    let log_dirs = log_files.directories();
    let unconfined =
        confine::confine_daemon(&options.state_dir, socket_dir, path.as_deref(), &log_dirs)?;
    for missing in &unconfined {
        log_event!(UNCONFINED, "not confined: {missing}");
    }
    Ok(ConfinedDaemon { unconfined, socket, metrics, log_files, state_dir, fast_path })
}

/// Reads the password of the endpoint of `[metrics]` again. An invalid file changes nothing.
fn reload_password(endpoint: &MetricsEndpoint, path: &Path, health: &Health) {
    match read_password(path) {
        Ok(password) => {
            endpoint.set_password(password);
            health.set(ProblemName::Metrics, None);
        }
        Err(error) => {
            let error = format!("{error}. The password from before stays in use");
            log_event!(METRICS_FAILED, "reload: {error}: correct the file, then reload");
            let remedy =
                "correct the file, or let the daemon's user read it; then systemctl reload ftp-alg";
            let name = ProblemName::Metrics;
            health.set_finding(name, Some(name.finding_with(error, remedy)));
        }
    }
}

/// Reads the file of `metrics.password-file`.
fn read_password(path: &Path) -> Result<Password, PasswordError> {
    let password = Password::of_file(path, broker::read)?;
    if password.is_public {
        let path = path.display();
        log_event!(
            PASSWORD_EXPOSED,
            %path,
            "metrics: every user of this machine can read the password in {path}: chmod o-r {path}"
        );
    }
    Ok(password)
}

/// Starts the endpoint of `[metrics]`, if it could be bound and its password, if it needs one, can be read. Otherwise
/// the daemon runs without the endpoint.
fn serve_metrics(
    settings: &MetricsSettings,
    bound: Result<TcpListener, String>,
    service: &Workers,
) -> Option<MetricsEndpoint> {
    let decisions = service.shared.decision_times.clone()?;
    let fail = |error: String, remedy: &'static str| {
        log_event!(
            METRICS_FAILED,
            "{error}; the daemon runs without metrics. To have them: {remedy}"
        );
        let name = ProblemName::Metrics;
        service.shared.health.set_finding(name, Some(name.finding_with(error, remedy)));
    };
    let password = settings.password_file.as_deref().map(read_password).transpose();
    let password = password.map_err(|error| {
        fail(
            error.to_string(),
            "correct the file, or let the daemon's user read it; then systemctl restart ftp-alg",
        );
    });
    let password = password.ok()?;
    let has_password = password.is_some();
    let served = bound.and_then(|listener| {
        let failed = |error| format!("metrics: cannot start the endpoint: {error}");
        let address = listener.local_addr().map_err(failed)?;
        let is_local = address.ip().to_canonical().is_loopback();
        let site = Site {
            answers: Answers::new(service.shared.clone(), decisions),
            is_local,
            has_page: settings.page,
            password: Mutex::new(password),
        };
        let endpoint = MetricsEndpoint::serve(listener, site).map_err(failed)?;
        Ok((endpoint, (!is_local && !has_password).then_some(address)))
    });
    let served = served.map_err(|error| {
        fail(error, "free the port or change [metrics] listen, then systemctl restart ftp-alg");
    });
    let (endpoint, exposed) = served.ok()?;
    if let Some(address) = exposed {
        let what = match settings.page {
            true => "them and the page with users and files",
            false => "them",
        };
        log_event!(
            METRICS_EXPOSED,
            %address,
            "metrics: other machines can read {what} at {address} without a password, unless the firewall drops that: \
             set metrics.password-file"
        );
    }
    Some(endpoint)
}

/// Raises the soft limit of descriptors to the hard one. Each worker needs a dozen, and each interface of the fast path
/// one. Programs keep the lower limit, because the broker starts them.
fn raise_limit_of_descriptors() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // A lower limit is one that it had anyway.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

/// Starts the keeper of the broker. The broker does what this process soon has no right to do. Both end with this
/// process.
fn start_broker(options: &DaemonOptions, config: &Config) -> io::Result<()> {
    let file = options.config.as_deref().unwrap_or(Path::new(config::DEFAULT_PATH));
    let files = [file, Path::new(external_names::RESOLVER), Path::new(external_names::HOSTS)];
    let files = files.into_iter().chain(config.metrics.password_file.as_deref());
    let files: Vec<_> = files.map(Path::to_owned).collect();
    let (ours, theirs) = UnixStream::pair()?;
    let mut command = command_of_ours(KEEPER_COMMAND);
    command.args(options.user.iter().flat_map(|user| ["--user", user])).arg("--").args(&files);
    command.stdin(OwnedFd::from(theirs)).stdout(Stdio::null()).spawn()?;
    broker::use_broker(ours, files);
    Ok(())
}

/// Ends the daemon if the broker's keeper ends. Without a broker the daemon cannot load its table again, and a restarted
/// daemon has a new one.
fn watch_broker(events: Sender<DaemonEvent>) -> Result<(), DaemonError> {
    let watch = move || {
        broker::watch();
        let why = "the keeper of the daemon's broker has ended";
        let _ = events.send(DaemonEvent::Failed(why.into()));
    };
    let spawned = thread::Builder::new().name("broker".into()).spawn(watch);
    spawned.map(drop).map_err(system("the broker"))
}

/// Runs the broker's keeper for the daemon at the other end of standard input, until that daemon ends. Its brokers have
/// the keeper's remaining rights.
pub fn keep_broker(user: Option<&str>, files: &[PathBuf]) -> Result<(), DaemonError> {
    let account = user.map(Account::named).transpose()?;
    let daemon = begin_helper(account.as_ref())?;
    let start = || {
        let mut command = command_of_ours(BROKER_COMMAND);
        command.arg("--").args(files).stdin(OwnedFd::from(daemon.try_clone()?)).spawn()
    };
    broker::keep(&daemon, start).map_err(system("the broker's keeper"))
}

/// Runs the broker for the daemon at the other end of standard input, until that daemon or the keeper ends.
pub fn serve_as_broker(files: Vec<PathBuf>) -> Result<(), DaemonError> {
    let daemon = begin_helper(None)?;
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(io::Error::from)
        .and_then(|()| broker::serve(&daemon, files, confine::confine_program))
        .map_err(system("the broker"))
}

/// Confines this process, the broker or its keeper, and returns its connection to the daemon. The daemon's signals,
/// which `killall` sends to all three, do not end it. Handlers, because programs would inherit that they are ignored.
fn begin_helper(account: Option<&Account>) -> Result<UnixStream, DaemonError> {
    // It was started as /proc/self/exe, which would be its name.
    let _ = rustix::thread::set_name(c"ftp-alg");
    for signal in SIGNALS {
        signal_hook::flag::register(signal, Arc::default()).map_err(system("the broker"))?;
    }
    confine::confine_broker(account)?;
    Ok(UnixStream::from(io::stdin().as_fd().try_clone_to_owned().map_err(system("the broker"))?))
}

/// The command that runs a hidden command of this program.
fn command_of_ours(name: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    // Only the daemon handles a terminal's keys, the service manager and the environment.
    command.arg0("ftp-alg").arg(name).process_group(0).env_clear();
    command
}

/// The error if `what` cannot be set up.
fn system(what: &'static str) -> impl Fn(io::Error) -> DaemonError {
    move |source| DaemonError::System { what, source }
}

/// Turns signals into events, on a thread of its own, until the process ends.
fn watch_signals(mut signals: Signals, events: Sender<DaemonEvent>) -> Result<(), DaemonError> {
    let watch = move || {
        for signal in signals.forever() {
            let event = if signal == SIGHUP { DaemonEvent::Reload } else { DaemonEvent::Terminate };
            if events.send(event).is_err() {
                return;
            }
        }
    };
    thread::Builder::new().name("signals".into()).spawn(watch).map(drop).map_err(system("signals"))
}

/// Makes the state directory, or checks the one that exists. Only the daemon may write to it, because a restarted
/// daemon trusts its files.
fn make_state_dir(path: &Path, account: Option<&Account>) -> Result<File, DaemonError> {
    make_dir(path, account)?;
    let failed = |source| DaemonError::Directory { path: path.to_owned(), source };
    let found = fs::metadata(path).map_err(failed)?;
    let user = account.map_or_else(|| rustix::process::geteuid().as_raw(), |account| account.uid);
    let (owner, mode) = (found.uid(), found.permissions().mode() & 0o7777);
    if owner != user {
        return Err(DaemonError::OtherOwner { path: path.to_owned(), owner, user });
    }
    if mode & 0o022 != 0 {
        return Err(DaemonError::WritableByOthers { path: path.to_owned(), mode });
    }
    File::open(path).map_err(failed)
}

/// Locks the state directory at `path` while `directory` is open. Daemons of other network namespaces may see the same
/// path.
fn claim(directory: &File, path: &Path) -> Result<(), DaemonError> {
    let path = path.to_owned();
    let until = Instant::now() + CLAIM_LIMIT;
    loop {
        match flock(directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK) if Instant::now() < until => {
                thread::sleep(Duration::from_millis(20));
            }
            Err(Errno::WOULDBLOCK) => return Err(DaemonError::InUse { path }),
            Err(source) => return Err(DaemonError::Directory { path, source: source.into() }),
        }
    }
}

/// Makes a directory for `account`, unless it exists.
fn make_dir(path: &Path, account: Option<&Account>) -> Result<(), DaemonError> {
    let make = || {
        if path.is_dir() {
            return Ok(());
        }
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        account.map_or(Ok(()), |account| chown(path, Some(account.uid), Some(account.gid)))
    };
    make().map_err(|source| DaemonError::Directory { path: path.to_owned(), source })
}

/// Notifies the service manager, if there is one. A failure is logged, and the daemon continues.
fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        log_event!(
            NOTIFY_FAILED,
            "cannot notify the service manager: {error}; systemd may take the daemon for hung"
        );
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
