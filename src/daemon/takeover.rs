//! `--takeover`: the ftp-alg that works in this network namespace is told to end, and waited for.
//!
//! It ends as by a service manager: connections with adjusted numbers wait in its table, and go on if
//! this daemon has the same state directory.

use std::time::{Duration, Instant};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

use crate::gateway::{
    GatewayError, RuleParameters,
    readers::{self, Reader},
};

/// How long it may take to end.
const END_LIMIT: Duration = Duration::from_secs(10);
const PROGRAM: &str = "ftp-alg";

/// Why the other one still runs.
#[derive(Debug, thiserror::Error)]
pub enum TakeoverError {
    #[error(transparent)]
    Gateway(#[from] GatewayError),
    #[error(
        "queue {} is read by {}, process {}, which is no ftp-alg: stop it, or set another number in \
         [queue]",
        .0.queue, .0.name, .0.process
    )]
    NotFtpAlg(Reader),
    #[error("cannot end the ftp-alg that runs, process {}: {source}; run as root", reader.process)]
    System { reader: Reader, source: Errno },
    #[error(
        "the ftp-alg that runs, process {}, does not end within {} s: `kill -9 {}` ends it",
        .0.process, END_LIMIT.as_secs(), .0.process
    )]
    StillRunning(Reader),
}

/// Ends the ftp-alg that reads queues of `parameters`, or of the loaded table, if there is one.
pub(super) fn take_over(parameters: &RuleParameters) -> Result<(), TakeoverError> {
    let deadline = Instant::now() + END_LIMIT;
    for reader in readers::readers(parameters)? {
        if !reader.name.starts_with(PROGRAM) {
            return Err(TakeoverError::NotFtpAlg(reader));
        }
        tracing::info!("takeover: process {} is told to end", reader.process);
        match terminate(&reader, deadline) {
            Ok(true) => tracing::info!("takeover: process {} has ended", reader.process),
            Ok(false) => return Err(TakeoverError::StillRunning(reader)),
            Err(source) => return Err(TakeoverError::System { reader, source }),
        }
    }
    Ok(())
}

/// Whether it ended in time.
fn terminate(reader: &Reader, deadline: Instant) -> Result<bool, Errno> {
    let ended = |result: Result<(), Errno>| match result {
        Err(Errno::SRCH) => Ok(true),
        other => other.map(|()| false),
    };
    let process = match pidfd_open(reader.process, PidfdFlags::empty()) {
        Err(Errno::SRCH) => return Ok(true),
        other => other?,
    };
    // From here on the number is that of no other process, unless it already was.
    if readers::name(reader.process) != reader.name {
        return Ok(true);
    }
    if ended(pidfd_send_signal(&process, Signal::TERM))? {
        return Ok(true);
    }
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = left.try_into().map_err(|_| Errno::INVAL)?;
        match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&left)) {
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
            Ok(count) => return Ok(count > 0),
        }
    }
}
