//! The control socket, where the commands `status`, `sessions`, `pinholes`, `events`, `doctor` and `log-level` reach the
//! running daemon.
//!
//! A client sends one request line (`status`, `sessions [ID]`, `pinholes`, `events AFTER`, `config`, `log-level [LEVEL]`,
//! `activate`, `deactivate`),
//! gets one line of JSON, and the connection ends.
//!
//! Invariants:
//! - Only its owner can use the socket, from the moment it exists.
//! - It is bound before the daemon changes anything, so a second daemon finds the first one before it can do damage.
//! - It answers once [`ControlSocket::serve`] is called, so an answer means that the daemon gives verdicts.

use std::{
    fs::{self, File, Permissions},
    io::{self, Write as _},
    os::{
        fd::OwnedFd,
        unix::{
            fs::{FileTypeExt, MetadataExt, PermissionsExt},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::{
    net::sockopt::socket_peercred,
    process::{Pid, geteuid},
};
use serde::Serialize;
use socket2::{Domain, SockAddr, SockRef, Type};

use super::{deadline_stream::DeadlineStream, log::level, status_source::StatusSource};

/// The longest request line, in bytes.
const MAX_REQUEST: usize = 256;
/// Time limit for one client to send its request, and again to take the answer. Other clients wait meanwhile.
const CLIENT_LIMIT: Duration = Duration::from_secs(2);
/// The pause after accept failed, for example because there are no free descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const BACKLOG: i32 = 64;

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error(
        "a daemon is already running on {}: `ftp-alg run --takeover` ends it and continues in its place; if it serves \
         another network namespace, name other places with --socket and --state-dir",
        path.display()
    )]
    InUse { path: PathBuf },
    #[error("{} exists and is not a socket: remove it, or give another --socket", path.display())]
    NotASocket { path: PathBuf },
    #[error(
        "cannot make the control socket {}: {source}; run as root, or give another --socket",
        path.display()
    )]
    System { path: PathBuf, source: io::Error },
}

/// A bound control socket, which answers when it serves. Dropping it ends its thread and removes its name.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    name: SocketName,
}

impl ControlSocket {
    /// Binds `path`, and replaces the socket that a dead daemon may have left there.
    pub fn bind(path: &Path) -> Result<Self, ControlError> {
        let system = |source| ControlError::System { path: path.to_owned(), source };
        let address = SockAddr::unix(path).map_err(system)?;
        let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None).map_err(system)?;
        // Before bind, so that no other user can connect at any moment: the file gets the mode of the unbound socket
        // (unix_bind in net/unix/af_unix.c).
        let socket = File::from(OwnedFd::from(socket));
        socket.set_permissions(Permissions::from_mode(0o600)).map_err(system)?;
        let socket = socket2::Socket::from(OwnedFd::from(socket));
        if let Err(error) = socket.bind(&address) {
            if error.kind() != io::ErrorKind::AddrInUse {
                return Err(system(error));
            }
            // It waits while the other daemon's backlog is full: that daemon may be ending.
            match socket_state(path, true)? {
                SocketState::Absent => {}
                SocketState::Dead => fs::remove_file(path).map_err(system)?,
                SocketState::Hung | SocketState::Live(_) => {
                    return Err(ControlError::InUse { path: path.to_owned() });
                }
            }
            socket.bind(&address).map_err(system)?;
        }
        socket.listen(BACKLOG).map_err(system)?;
        let name = SocketName { path: path.to_owned(), file: file_identity(path).map_err(system)? };
        let listener = UnixListener::from(OwnedFd::from(socket));
        Ok(Self { listener, stopping: Arc::default(), thread: None, name })
    }

    /// Checks that `path` can be bound as soon as the processes that `is_ending` selects have ended.
    pub fn check(path: &Path, is_ending: impl Fn(Pid) -> bool) -> Result<(), ControlError> {
        match socket_state(path, false)? {
            SocketState::Live(process) if !process.is_some_and(is_ending) => {
                Err(ControlError::InUse { path: path.to_owned() })
            }
            _ => Ok(()),
        }
    }

    /// The process that listens on `path`.
    pub fn listener(path: &Path) -> Option<Pid> {
        match socket_state(path, false) {
            Ok(SocketState::Live(process)) => process,
            _ => None,
        }
    }

    /// Starts to answer requests from `source`, on a thread of its own.
    pub fn serve(&mut self, source: Arc<dyn StatusSource>) -> Result<(), ControlError> {
        let failed = |source| ControlError::System { path: self.name.path.clone(), source };
        let accepting = self.listener.try_clone().map_err(failed)?;
        let stopping = Arc::clone(&self.stopping);
        let answer = move || accept_clients(&accepting, &*source, &stopping);
        let thread = thread::Builder::new().name("control".into()).spawn(answer).map_err(failed)?;
        self.thread = Some(thread);
        Ok(())
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        // Wakes the thread in accept, which then fails with EINVAL (unix_accept).
        let woken = SockRef::from(&self.listener).shutdown(std::net::Shutdown::Both);
        if let (Ok(()), Some(thread)) = (woken, self.thread.take()) {
            let _ = thread.join();
        }
    }
}

fn accept_clients(listener: &UnixListener, source: &dyn StatusSource, stopping: &AtomicBool) {
    let mut has_failed = false;
    loop {
        let accepted = listener.accept();
        if stopping.load(Ordering::Acquire) {
            return;
        }
        match accepted {
            Ok((stream, _)) => {
                has_failed = false;
                if let Err(error) = answer_client(&stream, source) {
                    tracing::debug!("control socket: a client's request failed: {error}");
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut has_failed, true) {
                    log_event!(
                        CONTROL_ACCEPT_FAILED,
                        "control socket: cannot accept a client: {error}; ftp-alg tries again"
                    );
                }
                thread::sleep(ACCEPT_PAUSE);
            }
        }
    }
}

fn answer_client(stream: &UnixStream, source: &dyn StatusSource) -> io::Result<()> {
    let client = || DeadlineStream {
        socket: SockRef::from(stream),
        deadline: Instant::now() + CLIENT_LIMIT,
    };
    let answer = match client().read_line(MAX_REQUEST) {
        Ok(request) => answer_request(&request, source, || is_trusted(stream))?,
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            error_answer(&error.to_string())?
        }
        Err(error) => return Err(error),
    };
    client().write_all(&answer)
}

fn answer_request(
    request: &[u8],
    source: &dyn StatusSource,
    is_trusted: impl Fn() -> bool,
) -> io::Result<Vec<u8>> {
    let request = request.trim_ascii();
    let end = request.iter().position(u8::is_ascii_whitespace).unwrap_or(request.len());
    let (word, argument) = (&request[..end], String::from_utf8_lossy(request[end..].trim_ascii()));
    match (word, &*argument) {
        (b"status", "") => json_line(&source.status()),
        (b"sessions", "") => json_line(&source.sessions()),
        (b"sessions", id) => match id.parse() {
            Ok(id) => match source.session(id) {
                Some(session) => json_line(&session),
                None => error_answer(&format!(
                    "no session {id} is open; if it has ended, see `ftp-alg events --session {id}`, or the log: \
                     `journalctl -b -u ftp-alg FTP_ALG_SESSION={id}`"
                )),
            },
            Err(error) => {
                error_answer(&format!("sessions: `{id}` is no number of a session: {error}"))
            }
        },
        (b"pinholes", "") => json_line(&source.pinholes()),
        (b"events", after) => match after.parse() {
            Ok(after) => json_line(&source.events(after)),
            Err(error) => error_answer(&format!("events: `{after}` is no ID of an event: {error}")),
        },
        // The file may be one that others may not read.
        (b"config", "") if !is_trusted() => {
            error_answer("only root and the daemon's own user may read the configuration")
        }
        (b"config", "") => json_line(&source.config_texts()),
        (b"log-level", "") => json_line(&level::current_level()),
        (b"log-level", _) if !is_trusted() => {
            error_answer("only root and the daemon's own user may change the log level")
        }
        (b"log-level", wanted) => match level::set_level(wanted) {
            Ok(()) => json_line(&level::current_level()),
            Err(why) => error_answer(&why),
        },
        (b"activate" | b"deactivate", "") if !is_trusted() => {
            error_answer("only root and the daemon's own user may change the role of a gateway")
        }
        (b"activate" | b"deactivate", "") => match source.change_role(word == b"activate") {
            Ok(done) => json_line(&done),
            Err(why) => error_answer(&why),
        },
        _ => error_answer(&format!(
            "unknown request `{}`: status, sessions, pinholes, events, config, log-level, activate and deactivate are known",
            request.escape_ascii()
        )),
    }
}

/// Whether the client is root or the daemon's own user. An operator may open the socket to other users, who may only
/// read.
fn is_trusted(stream: &UnixStream) -> bool {
    socket_peercred(stream).is_ok_and(|peer| peer.uid.is_root() || peer.uid == geteuid())
}

fn error_answer(message: &str) -> io::Result<Vec<u8>> {
    json_line(&serde_json::json!({ "error": message }))
}

fn json_line(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(line)
}

/// Who answers at a path.
enum SocketState {
    Absent,
    /// No process listens on it.
    Dead,
    /// Its backlog is full, because its process takes no more clients.
    Hung,
    /// A process listens on it; the process, if known.
    Live(Option<Pid>),
}

/// The state of the socket at `path`; an error if there is something else. If `waits` is set, waits for room in the
/// backlog.
fn socket_state(path: &Path, waits: bool) -> Result<SocketState, ControlError> {
    let system = |source| ControlError::System { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Ok(file) if file.file_type().is_socket() => {}
        Ok(_) => return Err(ControlError::NotASocket { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(SocketState::Absent),
        Err(error) => return Err(system(error)),
    }
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None).map_err(system)?;
    socket.set_nonblocking(!waits).map_err(system)?;
    match socket.connect(&SockAddr::unix(path).map_err(system)?) {
        Ok(()) => Ok(SocketState::Live(socket_peercred(&socket).ok().map(|peer| peer.pid))),
        Err(error) => match error.kind() {
            io::ErrorKind::ConnectionRefused => Ok(SocketState::Dead),
            io::ErrorKind::WouldBlock => Ok(SocketState::Hung),
            _ => Err(system(error)),
        },
    }
}

/// A socket's name in the file system. Dropping it removes the name, unless it has become another socket's.
#[derive(Debug)]
struct SocketName {
    path: PathBuf,
    file: (u64, u64),
}

impl Drop for SocketName {
    fn drop(&mut self) {
        if file_identity(&self.path).is_ok_and(|file| file == self.file) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn file_identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()))
}

#[cfg(test)]
#[path = "control_socket_tests.rs"]
mod tests;
