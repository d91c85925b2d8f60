//! Sends lines to journald with its native protocol: one datagram for each line, with priority and fields.
//!
//! It knows nothing of what is logged. A field `session` becomes `FTP_ALG_SESSION`, and so do the fields of `details`. See
//! <https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>.

use std::{
    env, fmt,
    io::{self, ErrorKind, Write},
    os::unix::net::UnixDatagram,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl, fstat};
use serde_json::{Map, Value};
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{Layer, layer::Context};

const SOCKET: &str = "/run/systemd/journal/socket";
/// How long a worker waits for a journald that takes no lines. The line then goes to standard error, and no worker
/// waits until journald takes lines again.
const SEND_LIMIT: Duration = Duration::from_millis(100);

/// Whether standard error is the journal. See systemd.exec(5), `$JOURNAL_STREAM`.
pub fn stderr_is_journal() -> bool {
    let ours = env::var("JOURNAL_STREAM").ok();
    let stderr = fstat(io::stderr()).ok();
    ours.zip(stderr).is_some_and(|(ours, file)| ours == format!("{}:{}", file.st_dev, file.st_ino))
}

/// The connection to journald.
pub(super) struct Journald {
    socket: UnixDatagram,
    path: PathBuf,
    /// Whether journald took no line for [`SEND_LIMIT`]. Sends do not wait then.
    is_blocked: AtomicBool,
}

impl Journald {
    pub(super) fn new() -> io::Result<Self> {
        // journald reads standard error, too. If it hangs, lines are lost, and FTP continues.
        let flags = fcntl_getfl(io::stderr())?;
        fcntl_setfl(io::stderr(), flags | OFlags::NONBLOCK)?;
        Self::at(PathBuf::from(SOCKET))
    }

    fn at(path: PathBuf) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(SEND_LIMIT))?;
        Ok(Self { socket, path, is_blocked: AtomicBool::new(false) })
    }

    /// Sends a line. If that fails, the line goes to `fallback`, with its priority in the format of sd-daemon(3).
    fn send(&self, entry: &JournalEntry, mut fallback: impl Write) {
        // Unconnected, because journald may have been restarted.
        let sent = self.socket.send_to(&entry.datagram, &self.path);
        let is_behind = sent.as_ref().is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
        if self.is_blocked.swap(is_behind, Ordering::Relaxed) != is_behind {
            let _ = self.socket.set_nonblocking(is_behind);
        }
        if sent.is_err() {
            let line = format!("<{}>{}\n", entry.priority, entry.message);
            let _ = fallback.write_all(line.as_bytes());
        }
    }
}

impl<S: Subscriber> Layer<S> for Journald {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut entry = JournalEntry::new(event.metadata().level());
        event.record(&mut entry);
        self.send(&entry, io::stderr());
    }
}

/// A line, as a datagram and as text.
struct JournalEntry {
    priority: u8,
    message: String,
    datagram: Vec<u8>,
}

impl JournalEntry {
    fn new(level: &Level) -> Self {
        // The priorities of syslog(3).
        let priority = match *level {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        let mut entry = Self { priority, message: String::new(), datagram: Vec::new() };
        entry.put_field("PRIORITY", &priority.to_string());
        entry.put_field("SYSLOG_IDENTIFIER", "ftp-alg");
        entry
    }

    /// Adds a field of ours.
    fn put_own(&mut self, name: &str, value: &str) {
        let name = name.to_ascii_uppercase().replace(['.', '-'], "_");
        self.put_field(&format!("FTP_ALG_{name}"), value);
    }

    fn put_field(&mut self, name: &str, value: &str) {
        let datagram = &mut self.datagram;
        datagram.extend_from_slice(name.as_bytes());
        if value.contains('\n') {
            datagram.push(b'\n');
            datagram.extend_from_slice(&(value.len() as u64).to_le_bytes());
        } else {
            datagram.push(b'=');
        }
        datagram.extend_from_slice(value.as_bytes());
        datagram.push(b'\n');
    }
}

impl Visit for JournalEntry {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let value = format!("{value:?}");
        self.record_str(field, &value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => {
                self.put_field("MESSAGE", value);
                value.clone_into(&mut self.message);
            }
            // An object, whose fields are fields of the line.
            "details" => {
                let fields: Map<String, Value> = serde_json::from_str(value).unwrap_or_default();
                for (name, value) in &fields {
                    match value {
                        Value::Null => {}
                        Value::String(text) => self.put_own(name, text),
                        value => self.put_own(name, &value.to_string()),
                    }
                }
            }
            name => self.put_own(name, value),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tracing_subscriber::prelude::*;

    use super::*;

    #[test]
    fn a_line_has_priority_message_and_fields() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("socket");
        let journal = UnixDatagram::bind(&path).unwrap();
        let log = tracing_subscriber::registry().with(Journald::at(path).unwrap());
        tracing::subscriber::with_default(log, || {
            tracing::warn!(event = "refusal", session = 7, client = %"10.0.0.5:4000",
                details = %r#"{"kind":"PORT","code":7,"reason":null}"#, "a line");
            tracing::error!("two\nlines");
        });
        let mut datagram = [0; 1000];
        let length = journal.recv(&mut datagram).unwrap();
        let expected = "PRIORITY=4\nSYSLOG_IDENTIFIER=ftp-alg\nMESSAGE=a line\nFTP_ALG_EVENT=refusal\n\
                        FTP_ALG_SESSION=7\nFTP_ALG_CLIENT=10.0.0.5:4000\nFTP_ALG_CODE=7\nFTP_ALG_KIND=PORT\n";
        assert_eq!(String::from_utf8_lossy(&datagram[..length]), expected);
        let length = journal.recv(&mut datagram).unwrap();
        let expected =
            b"PRIORITY=3\nSYSLOG_IDENTIFIER=ftp-alg\nMESSAGE\n\x09\0\0\0\0\0\0\0two\nlines\n";
        assert_eq!(&datagram[..length], expected);
    }

    #[test]
    fn a_journald_that_hangs_delays_workers_only_briefly() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("socket");
        let hung = UnixDatagram::bind(&path).unwrap();
        let journal = Journald::at(path).unwrap();
        let entry = JournalEntry::new(&Level::WARN);
        let (mut said, started) = (Vec::new(), Instant::now());
        (0..5000).for_each(|_| journal.send(&entry, &mut said));
        assert!(started.elapsed() < 20 * SEND_LIMIT, "{:?}", started.elapsed());
        let taken = 5000 - said.len() / "<4>\n".len();
        assert!(taken < 5000);
        // Once it reads again, it gets lines again.
        let mut datagram = [0; 1000];
        for _ in 0..taken {
            hung.recv(&mut datagram).unwrap();
        }
        said.clear();
        journal.send(&entry, &mut said);
        assert!(said.is_empty());
        assert!(!journal.is_blocked.load(Ordering::Relaxed));
    }
}
