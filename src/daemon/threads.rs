//! Threads whose end by itself ends the daemon.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::mpsc::Sender,
    thread::{self, JoinHandle},
};

use super::{DaemonEvent, ServiceError};

/// Starts a thread. If it fails or panics, the main thread gets an event with `what` ended, and why.
pub(super) fn start_thread(
    name: &str,
    what: &str,
    events: Sender<DaemonEvent>,
    work: impl FnOnce() -> Result<(), ServiceError> + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let what = what.to_owned();
    thread::Builder::new().name(name.to_owned()).spawn(move || {
        let why = match catch_unwind(AssertUnwindSafe(work)) {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "a defect in ftp-alg; please report the lines above".to_owned(),
        };
        let _ = events.send(DaemonEvent::Failed(format!("{what} ended: {why}")));
    })
}
