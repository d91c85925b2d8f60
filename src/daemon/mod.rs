//! The running daemon: configuration, state directory, control socket, signals, and the workers
//! that wire the engine to the gateway.
//!
//! Order matters at both ends. The control socket is bound first, so that a second daemon touches
//! nothing of the first; it answers, and the service manager hears READY, only when the workers
//! give verdicts. The workers end last.

pub mod client;
pub mod control;
mod log;
mod names;
pub mod snapshot;
mod state;
mod wire;
mod workers;

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use sd_notify::NotifyState;
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

pub use self::workers::rule_parameters;
use self::{
    control::{ControlError, Socket},
    snapshot::Source,
};
use crate::config::{Config, ConfigError};

/// The daemon's own directory, when no other place is named.
pub const DEFAULT_STATE_DIR: &str = "/run/ftp-alg";
/// Where the daemon answers, when no other place is named.
pub const DEFAULT_SOCKET: &str = "/run/ftp-alg/ftp-alg.sock";

/// What `ftp-alg run` was told.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configuration; `None` means the default file, which may be absent.
    pub config: Option<PathBuf>,
    /// The state directory.
    pub state_dir: PathBuf,
    /// The control socket.
    pub socket: PathBuf,
}

/// Why the daemon did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The configuration is not valid, or asks for what this version does not serve.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The log filter is not valid.
    #[error("{}={value}: {reason}; give a level such as \"debug\"", log::VARIABLE)]
    Log {
        /// The filter.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A directory of ours cannot be made or used.
    #[error("cannot use the directory {}: {source}; run as root, or name another", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others could replace the state under us.
    #[error(
        "the state directory {} may be written by others (mode {mode:o}): chmod 0700 it, or name \
         another with --state-dir",
        path.display()
    )]
    Exposed {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// There is no control socket.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// Signals or threads cannot be set up.
    #[error("cannot set up {what}: {source}")]
    System {
        /// What was to be set up.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The workers did not start.
    #[error(transparent)]
    Service(#[from] ServiceError),
    /// A worker ended although nobody asked it to.
    #[error("{0}")]
    Failed(String),
}

/// Why the workers did not start: one line that names the thing, why, and what to do.
pub type ServiceError = Box<dyn std::error::Error + Send + Sync>;

/// What the daemon is there for, once started. Dropping it ends it, and puts the machine back as
/// it was.
pub trait Service {
    /// Who answers the control socket.
    fn source(&self) -> Arc<dyn Source>;
    /// Goes on with `config`, whose fixed keys are those it was started with.
    fn reload(&self, config: &Config);
    /// Goes on with `config`, which is the same, but its names have other addresses.
    fn resolved(&self, config: &Config);
    /// Sees to it, ten times a second, that the machine is as it was left; what can be put right
    /// is. An error ends the daemon.
    fn check(&mut self) -> Result<(), ServiceError>;
}

/// How often the service is to look after the machine: while our table is missing, adjusted connections pass
/// as they are. A look costs some tens of microseconds.
const CHECK: Duration = Duration::from_millis(100);

/// What the main thread waits for.
#[derive(Debug)]
pub enum Event {
    /// End cleanly.
    Terminate,
    /// Read the configuration again.
    Reload,
    /// An external address given by name is another than before.
    Resolved,
    /// A worker ended; the text says which and why.
    Failed(String),
}

/// Runs the daemon in the foreground until a signal ends it.
pub fn run(options: &Options) -> Result<(), DaemonError> {
    log::init()?;
    let config = load(options)?;
    let (sender, events) = mpsc::channel();
    watch_signals(sender.clone())?;
    make_state_dir(&options.state_dir)?;
    make_socket_dir(&options.socket)?;
    let socket = Socket::bind(&options.socket)?;
    let mut service = workers::start(&config, &options.state_dir, &sender)?;
    let server = socket.serve(service.source())?;
    tracing::info!(
        "ready: version {}, control ports {:?}, queues {:?}, socket {}",
        env!("CARGO_PKG_VERSION"),
        config.control_ports,
        config.queue.numbers().collect::<Vec<_>>(),
        options.socket.display()
    );
    notify(&[NotifyState::Ready]);
    let outcome = attend(&events, options, config, &mut *service);
    notify(&[NotifyState::Stopping]);
    drop(server);
    drop(service);
    tracing::info!("stopped");
    outcome
}

/// Handles events until one ends the daemon.
fn attend(
    events: &Receiver<Event>,
    options: &Options,
    mut config: Config,
    service: &mut dyn Service,
) -> Result<(), DaemonError> {
    let mut next_check = Instant::now() + CHECK;
    loop {
        let now = Instant::now();
        if now >= next_check {
            service.check()?;
            next_check = now + CHECK;
        }
        match events.recv_timeout(next_check.saturating_duration_since(now)) {
            Ok(Event::Terminate) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Ok(Event::Failed(why)) => return Err(DaemonError::Failed(why)),
            Ok(Event::Reload) => config = reload(options, config, service),
            Ok(Event::Resolved) => service.resolved(&config),
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

/// The configuration to go on with: the file's if it is valid, else `old`.
fn reload(options: &Options, old: Config, service: &dyn Service) -> Config {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(_) => notify(&[NotifyState::Reloading]),
    }
    let config = match load(options) {
        Ok(new) => {
            for key in old.fixed_keys_changed(&new) {
                tracing::warn!("reload: {key} changes only at a restart; the old value stays");
            }
            let merged = new.with_fixed_keys_of(&old);
            service.reload(&merged);
            tracing::info!("reload: the new configuration is in use");
            merged
        }
        Err(error) => {
            for line in error.to_string().lines() {
                tracing::error!("reload: {line}");
            }
            tracing::error!("reload: the new configuration is refused; the old one stays in use");
            old
        }
    };
    notify(&[NotifyState::Ready]);
    config
}

fn load(options: &Options) -> Result<Config, ConfigError> {
    let config = Config::load(options.config.as_deref())?;
    config.unsupported()?;
    Ok(config)
}

/// Turns signals into events, on a thread of its own, for as long as the process lives.
fn watch_signals(events: Sender<Event>) -> Result<(), DaemonError> {
    let system = |source| DaemonError::System { what: "signals", source };
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(system)?;
    let watch = move || {
        for signal in signals.forever() {
            let event = if signal == SIGHUP { Event::Reload } else { Event::Terminate };
            if events.send(event).is_err() {
                return;
            }
        }
    };
    thread::Builder::new().name("signals".into()).spawn(watch).map_err(system)?;
    Ok(())
}

/// A directory that only we may write to, since a restarted daemon will believe what it finds there.
fn make_state_dir(path: &Path) -> Result<(), DaemonError> {
    let directory = |source| DaemonError::Directory { path: path.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(directory)?;
    let mode = fs::metadata(path).map_err(directory)?.permissions().mode() & 0o7777;
    if mode & 0o022 != 0 {
        return Err(DaemonError::Exposed { path: path.to_owned(), mode });
    }
    Ok(())
}

/// The control socket may be elsewhere than the state.
fn make_socket_dir(socket: &Path) -> Result<(), DaemonError> {
    match socket.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(parent)
            .map_err(|source| DaemonError::Directory { path: parent.to_owned(), source }),
        _ => Ok(()),
    }
}

/// Tells the service manager, if there is one; that it does not hear is no reason to stop.
fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!("cannot notify the service manager: {error}");
    }
}

#[cfg(test)]
#[path = "reload_tests.rs"]
mod tests;
