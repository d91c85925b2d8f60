//! The client of the control socket: sends one request to a running daemon.

use std::{
    io::{self, Write as _},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use serde::Deserialize;
use socket2::{Domain, SockAddr, SockRef, Type};

use super::deadline_stream::DeadlineStream;

/// The longest answer, in bytes: far more than the largest number of sessions needs.
const MAX_ANSWER: usize = 1 << 30;
/// The pause between two attempts of [`request_until_ready`].
const PAUSE: Duration = Duration::from_millis(10);
/// Time limit for one attempt of [`request_until_ready`].
const TRY_LIMIT: Duration = Duration::from_secs(2);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(
        "no daemon answers on {}: start one with `ftp-alg run`, or name its socket with --socket",
        path.display()
    )]
    NoDaemon { path: PathBuf },
    #[error("no daemon was ready on {} within {}s", path.display(), limit.as_secs_f64())]
    NotReady {
        path: PathBuf,
        limit: Duration,
        /// Whether a daemon listens on the socket and did not answer.
        is_silent: bool,
    },
    #[error("the daemon on {} does not answer within {}s", path.display(), limit.as_secs_f64())]
    Silent { path: PathBuf, limit: Duration },
    #[error("not permitted to ask the daemon on {}: run this as the daemon's user, or as root", path.display())]
    NotPermitted { path: PathBuf },
    #[error("cannot ask the daemon on {}: {source}", path.display())]
    System { path: PathBuf, source: io::Error },
    #[error("the daemon on {} answered: {message}", path.display())]
    Answer { path: PathBuf, message: String },
}

/// A daemon's answer: one line of JSON.
#[derive(Clone, Debug)]
pub struct DaemonAnswer {
    path: PathBuf,
    json: String,
}

impl DaemonAnswer {
    /// The line, without the newline.
    pub fn json(&self) -> &str {
        &self.json
    }

    /// The parsed contents.
    pub fn parse<'a, T: Deserialize<'a>>(&'a self) -> Result<T, ClientError> {
        serde_json::from_str(&self.json).map_err(|error| ClientError::Answer {
            path: self.path.clone(),
            message: format!("an answer that this version does not understand: {error}"),
        })
    }
}

/// Sends the request `what` (`status`, `sessions`, `pinholes`) to the daemon on `socket`. Waits for the answer, but no
/// longer than `timeout`.
pub fn request(socket: &Path, what: &str, timeout: Duration) -> Result<DaemonAnswer, ClientError> {
    let deadline = Instant::now() + timeout;
    let exchange = || {
        let stream =
            connect(socket, deadline.saturating_duration_since(Instant::now()).max(PAUSE))?;
        let mut daemon = DeadlineStream { socket: SockRef::from(&stream), deadline };
        daemon.write_all(format!("{what}\n").as_bytes())?;
        daemon.read_line(MAX_ANSWER)
    };
    let mut line = exchange();
    // The daemon has ended, or has found this process too slow on a busy machine. A new connection shows which.
    while line.as_ref().is_err_and(is_cut) && Instant::now() < deadline {
        thread::sleep(PAUSE);
        line = exchange();
    }
    let line = line.map_err(|error| explain(error, socket, timeout))?;
    let answer = |message| ClientError::Answer { path: socket.to_owned(), message };
    let json = String::from_utf8(line).map_err(|_| answer("no text".to_owned()))?;
    match error_message(&json) {
        Some(message) => Err(answer(message)),
        None => Ok(DaemonAnswer { path: socket.to_owned(), json }),
    }
}

/// Repeats the request `what` until the daemon on `socket` answers, but no longer than `limit`.
pub fn request_until_ready(
    socket: &Path,
    what: &str,
    limit: Duration,
) -> Result<DaemonAnswer, ClientError> {
    let deadline = Instant::now() + limit;
    loop {
        let remaining = deadline.saturating_duration_since(Instant::now());
        let error = match request(socket, what, remaining.clamp(PAUSE, TRY_LIMIT)) {
            // A daemon that is starting or ending causes these errors.
            Err(error @ (ClientError::NoDaemon { .. } | ClientError::Silent { .. })) => error,
            done => return done,
        };
        if remaining.is_zero() {
            let is_silent = matches!(error, ClientError::Silent { .. });
            return Err(match error {
                ClientError::NoDaemon { path } | ClientError::Silent { path, .. } => {
                    ClientError::NotReady { path, limit, is_silent }
                }
                other => other,
            });
        }
        thread::sleep(PAUSE.min(remaining));
    }
}

/// Whether the connection ended without an answer.
fn is_cut(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(error.kind(), Kind::ConnectionReset | Kind::BrokenPipe | Kind::UnexpectedEof)
}

fn connect(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // A Unix socket's connect waits, for the send timeout, while the listener's backlog is full.
    socket.set_write_timeout(Some(timeout))?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(UnixStream::from(OwnedFd::from(socket)))
}

fn explain(error: io::Error, socket: &Path, limit: Duration) -> ClientError {
    use io::ErrorKind as Kind;
    let path = socket.to_owned();
    match error.kind() {
        // A connection that ends without an answer shows that the daemon ended, for example after a failed start.
        Kind::NotFound
        | Kind::ConnectionRefused
        | Kind::ConnectionReset
        | Kind::BrokenPipe
        | Kind::UnexpectedEof => ClientError::NoDaemon { path },
        Kind::TimedOut | Kind::WouldBlock => ClientError::Silent { path, limit },
        Kind::PermissionDenied => ClientError::NotPermitted { path },
        _ => ClientError::System { path, source: error },
    }
}

/// The message of `{"error": "..."}`.
fn error_message(json: &str) -> Option<String> {
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct ErrorAnswer {
        error: String,
    }
    serde_json::from_str::<ErrorAnswer>(json).ok().map(|refusal| refusal.error)
}
