//! Finds the ftp-alg that runs in this network namespace. `--takeover` ends it, and waits for its end; without that a
//! second one does not start.
//!
//! Invariant: nothing is ended before it is known that this daemon can have its directories and its control socket.
//!
//! The other daemon gets SIGTERM, as from a service manager. If it hangs, it gets SIGKILL in the end: its heartbeat has
//! lapsed by then, and the SIGTERM, which cannot be taken back, would end it as soon as it goes on. Its table stays if
//! connections have adjusted sequence numbers. These stall for a moment, and continue if this daemon has the same state
//! directory.

use std::{
    fs::File,
    io,
    os::fd::OwnedFd,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{Access, access},
    io::Errno,
    process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

use super::{
    DaemonError, DaemonOptions,
    confine::{self, Account},
    control_socket::{ControlError, ControlSocket},
};
use crate::kernel::{
    NetfilterError, RuleParameters,
    table::readers::{self, QueueReader},
};

/// What ends the other daemon, and the time limit for it.
const SIGNALS: [(Signal, &str, Duration); 2] = [
    (Signal::TERM, "SIGTERM", Duration::from_secs(10)),
    (Signal::KILL, "SIGKILL", Duration::from_secs(10)),
];
const PROGRAM: &str = "ftp-alg";
/// The pause between two looks for a daemon that is ending.
const PAUSE: Duration = Duration::from_millis(20);

/// Why the other daemon still runs.
#[derive(Debug, thiserror::Error)]
pub enum TakeoverError {
    #[error(
        "an ftp-alg runs in this network namespace already, process {}, which reads queue {}: `ftp-alg run --takeover` \
         ends it and continues in its place; two cannot work side by side",
        .0.process, .0.queue
    )]
    AlreadyRuns(QueueReader),
    #[error(transparent)]
    Gateway(#[from] NetfilterError),
    #[error(
        "queue {} is read by {}, process {}, which is not ftp-alg: stop it, or set another number in \
         [queue]; an ftp-alg of another name is known by its control socket: give --socket",
        .0.queue, .0.name, .0.process
    )]
    NotFtpAlg(QueueReader),
    #[error("cannot end the ftp-alg that runs, process {}: {source}; run as root", reader.process)]
    System { reader: QueueReader, source: Errno },
    #[error(
        "the ftp-alg that runs, process {}, does not end after SIGKILL: the kernel holds it; start this one again when \
         it has ended",
        .0.process
    )]
    StillRunning(QueueReader),
}

/// Checks that no ftp-alg runs in this network namespace, as far as this process may see. One that is ending has until
/// `deadline`.
pub(super) fn check_alone(
    parameters: &RuleParameters,
    socket: &Path,
    deadline: Instant,
) -> Result<(), TakeoverError> {
    loop {
        // Without the right to see who reads the queues, the queues themselves are refused later.
        let readers = readers::readers(parameters).unwrap_or_default();
        match readers.into_iter().find(|reader| is_ftp_alg(reader, socket)) {
            None => return Ok(()),
            Some(_) if Instant::now() < deadline => thread::sleep(PAUSE),
            Some(reader) => return Err(TakeoverError::AlreadyRuns(reader)),
        }
    }
}

/// Whether the reader is an ftp-alg: by its name, or because it listens on the control socket.
fn is_ftp_alg(reader: &QueueReader, socket: &Path) -> bool {
    reader.name.starts_with(PROGRAM) || ControlSocket::listener(socket) == Some(reader.process)
}

/// The daemons that a takeover ends.
pub(super) struct OtherDaemons(Vec<QueueReader>);

impl OtherDaemons {
    /// Finds the daemons that read the queues of `parameters`, or of the loaded table. An error if another program
    /// reads such a queue.
    pub(super) fn find(parameters: &RuleParameters, socket: &Path) -> Result<Self, TakeoverError> {
        let readers = readers::readers(parameters)?;
        match readers.iter().find(|reader| !is_ftp_alg(reader, socket)) {
            Some(other) => Err(TakeoverError::NotFtpAlg(other.clone())),
            None => Ok(Self(readers)),
        }
    }

    /// Checks that this daemon can use its directories and its control socket as `account` once the others have ended.
    pub(super) fn check_start(
        &self,
        options: &DaemonOptions,
        account: Option<&Account>,
        state_dir: &File,
    ) -> Result<(), DaemonError> {
        let can_write = |path: &Path| access(path, Access::WRITE_OK | Access::EXEC_OK);
        let (state_path, socket) = (&options.state_dir, &options.socket);
        let [state, sockets] = confine::as_user(account, || {
            [state_path, options.socket_dir()].map(|path| can_write(path).map_err(io::Error::from))
        })?;
        state.map_err(|source| DaemonError::Directory { path: state_path.clone(), source })?;
        sockets.map_err(|source| ControlError::System { path: socket.clone(), source })?;
        ControlSocket::check(socket, |process| self.0.iter().any(|one| one.process == process))?;
        if self.0.iter().any(|one| readers::has_open_file(one.process, state_dir)) {
            return Ok(());
        }
        super::claim(state_dir, state_path)
    }

    /// Ends the daemons.
    pub(super) fn end(self) -> Result<(), TakeoverError> {
        for reader in self.0 {
            let process = reader.process;
            match end_process(&reader) {
                Ok(true) => {
                    log_event!(
                        TAKEOVER,
                        process = %process,
                        "takeover: process {process} has ended"
                    );
                }
                Ok(false) => return Err(TakeoverError::StillRunning(reader)),
                Err(source) => return Err(TakeoverError::System { reader, source }),
            }
        }
        Ok(())
    }
}

/// Ends the reader's process. Returns whether it ended in time.
fn end_process(reader: &QueueReader) -> Result<bool, Errno> {
    let process = match pidfd_open(reader.process, PidfdFlags::empty()) {
        Err(Errno::SRCH) => return Ok(true),
        other => other?,
    };
    // The descriptor now refers to one process. Its number may have been reused before that, so the name is compared.
    if readers::process_name(reader.process) != reader.name {
        return Ok(true);
    }
    for (signal, name, limit) in SIGNALS {
        log_event!(
            TAKEOVER,
            process = %reader.process,
            "takeover: process {} gets {name}",
            reader.process
        );
        match pidfd_send_signal(&process, signal) {
            Err(Errno::SRCH) => return Ok(true),
            sent => sent?,
        }
        if has_ended(&process, Instant::now() + limit)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Waits until the process has ended, or the deadline. Returns whether it has.
fn has_ended(process: &OwnedFd, deadline: Instant) -> Result<bool, Errno> {
    loop {
        let remaining = deadline.saturating_duration_since(Instant::now());
        let remaining = remaining.try_into().map_err(|_| Errno::INVAL)?;
        match poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&remaining)) {
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
            Ok(count) => return Ok(count > 0),
        }
    }
}
