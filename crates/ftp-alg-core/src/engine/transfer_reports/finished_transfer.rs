//! What is reported of a transfer: its line, and its fields.

use std::{
    fmt,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::Serialize;

use crate::{
    engine::{Transfer, TransferEnd},
    ftp::NameInText,
};

/// How a transfer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TransferResult {
    /// The server reported success.
    Complete,
    /// It ended after it had begun.
    Aborted,
    /// The server refused the command.
    Refused,
    /// The data connection did not come about.
    NoDataConnection,
    /// The data connection or the control connection was reset.
    Reset,
    /// Its end was not seen.
    Unseen,
    /// It has not ended, and waits for its data connection.
    Waiting,
}

/// The session of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransferSession {
    /// The session number.
    pub id: u64,
    /// The client.
    pub client: SocketAddr,
    /// The server.
    pub server: SocketAddr,
}

/// A transfer that has ended, or waits, with what is known of its data connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FinishedTransfer {
    /// Its session.
    pub session: TransferSession,
    /// What the control connection says of it.
    pub transfer: Arc<Transfer>,
    /// When its end was seen, or when it was examined.
    pub at: SystemTime,
    /// How it ended.
    pub result: TransferResult,
    /// The bytes that its receiver got, if the first and the last packets of their sender were seen; modulo 4 GiB.
    pub bytes: Option<u64>,
    /// The data connection: its initiator, and the destination that the initiator dials.
    pub connection: Option<(SocketAddr, SocketAddr)>,
    /// From the SYN to the last FIN, or from the command to the last reply.
    pub duration: Duration,
    /// Why there was no data connection.
    pub reason: Option<String>,
}

/// The fields of a transfer. docs/events.md lists them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TransferFields<'a> {
    /// The command.
    pub verb: &'static str,
    /// The file or directory.
    pub path: &'a str,
    /// `up` to the server, or `down`.
    pub direction: &'static str,
    /// `active` or `passive`; `None` if no announcement opened a pinhole.
    pub mode: Option<&'static str>,
    /// `None` if they are not known.
    pub bytes: Option<u64>,
    /// To a microsecond.
    pub seconds: f64,
    /// How it ended.
    pub result: &'static str,
    /// `None` if the server's last reply was not seen.
    pub code: Option<u16>,
    /// Why there was no data connection.
    pub reason: Option<&'a str>,
}

impl TransferResult {
    /// The name that it has in events.
    pub fn name(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Aborted => "aborted",
            Self::Refused => "refused",
            Self::NoDataConnection => "no-data-connection",
            Self::Reset => "reset",
            Self::Unseen => "unseen",
            Self::Waiting => "waiting",
        }
    }
}

impl FinishedTransfer {
    /// A transfer of which nothing but the dialogue is known.
    pub fn new(at: SystemTime, session: TransferSession, transfer: Arc<Transfer>) -> Self {
        Self {
            session,
            at,
            result: TransferResult::Complete,
            bytes: None,
            connection: None,
            duration: transfer.duration,
            reason: None,
            transfer,
        }
    }

    /// The name of its event.
    pub fn event(&self) -> &'static str {
        match self.result {
            TransferResult::Waiting => "transfer-waiting",
            TransferResult::Unseen => "transfer-unseen",
            _ => "transfer",
        }
    }

    /// The code of the server's last reply.
    pub fn code(&self) -> Option<u16> {
        match self.transfer.end {
            TransferEnd::Replied(reply) => Some(reply.code),
            _ => None,
        }
    }

    /// Its fields.
    pub fn fields(&self) -> TransferFields<'_> {
        let Self { transfer, result, bytes, duration, reason, .. } = self;
        let mode = transfer.is_active().map(|active| if active { "active" } else { "passive" });
        TransferFields {
            verb: transfer.verb.name(),
            path: &transfer.path,
            direction: if transfer.verb.is_upload() { "up" } else { "down" },
            mode,
            bytes: *bytes,
            seconds: (duration.as_secs_f64() * 1e6).round() / 1e6,
            result: result.name(),
            code: self.code(),
            reason: reason.as_deref(),
        }
    }
}

/// The log line: `transfer #17 bob@10.0.0.7 STOR /pub/q3.csv 5 B in 0.2 s: 226`.
impl fmt::Display for FinishedTransfer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { session, transfer, result, bytes, duration, reason, .. } = self;
        write!(f, "transfer #{} ", session.id)?;
        if let Some(user) = &transfer.user {
            write!(f, "{}@", NameInText::User(user))?;
        }
        write!(f, "{} {}", session.client.ip(), transfer.verb.name())?;
        if !transfer.path.is_empty() {
            write!(f, " {}", NameInText::Path(&transfer.path))?;
        }
        if let Some(bytes) = bytes {
            write!(f, " {bytes} B")?;
        }
        let seconds = duration.as_secs_f64();
        if *result == TransferResult::Waiting {
            write!(f, " has waited {seconds:.1} s for its data connection")?;
        } else {
            write!(f, " in {seconds:.1} s: ")?;
            match transfer.end {
                TransferEnd::Replied(reply) => write!(f, "{}", reply.code)?,
                TransferEnd::SessionEnded | TransferEnd::SessionReset => {
                    f.write_str("the control connection ended")?;
                }
                TransferEnd::Unseen | TransferEnd::Pending => {
                    f.write_str("its end was not seen")?
                }
            }
            if !matches!(result, TransferResult::Complete | TransferResult::Unseen) {
                write!(f, ", {}", result.name().replace('-', " "))?;
            }
        }
        match reason {
            Some(reason) => write!(f, ": {reason}"),
            None => Ok(()),
        }
    }
}
