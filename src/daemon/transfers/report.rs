//! The lines of transfers and of sessions that have ended.

use std::{fmt, time::SystemTime};

use ftp_alg_core::engine::TransferEnd;

use super::{FinishedTransfer, Report, SessionReport, TransferResult};

/// The event of a transfer that has ended.
pub(super) const ENDED: &str = "transfer";
/// The event of a transfer that waits for its data connection.
const WAITING: &str = "transfer-waiting";

impl Report {
    /// When it was seen.
    pub fn at(&self) -> SystemTime {
        match self {
            Self::Transfer(transfer) => transfer.at,
            Self::SessionEnd(report) => report.at,
        }
    }
}

impl SessionReport {
    pub(super) fn log(&self) {
        let Self { session, ended, bytes, .. } = self;
        tracing::debug!(
            event = "session-ended",
            session = session.id,
            client = %session.client,
            server = %session.server,
            user = ended.user.as_deref(),
            transfers = ended.transfers,
            bytes,
            "{self}"
        );
    }
}

impl fmt::Display for SessionReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { session, ended, bytes, .. } = self;
        write!(f, "#{} {} -> {}: {ended}", session.id, session.client, session.server)?;
        match bytes {
            Some(bytes) => write!(f, ", {bytes} B"),
            None => Ok(()),
        }
    }
}

impl FinishedTransfer {
    /// The name of its event.
    pub fn event(&self) -> &'static str {
        if self.result == TransferResult::Waiting { WAITING } else { ENDED }
    }

    /// Logs it. Lines of transfers that wait have a limit, which `admits` knows.
    pub fn log(&self, admits: impl FnOnce() -> bool) {
        let Self { session, transfer, result, bytes, duration, .. } = self;
        let code = self.code();
        macro_rules! log {
            ($level:ident) => {
                tracing::$level!(
                    event = self.event(),
                    session = session.id,
                    client = %session.client,
                    server = %session.server,
                    user = transfer.user.as_deref(),
                    verb = transfer.verb.name(),
                    path = &*transfer.path,
                    result = <&str>::from(result),
                    code,
                    bytes,
                    seconds = duration.as_secs_f64(),
                    "{self}"
                )
            };
        }
        match result {
            TransferResult::Waiting if admits() => log!(warn),
            TransferResult::Waiting => {}
            _ => log!(info),
        }
    }

    /// The code of the server's last reply.
    pub fn code(&self) -> Option<u16> {
        match self.transfer.end {
            TransferEnd::Replied(reply) => Some(reply.code),
            _ => None,
        }
    }
}

/// The log line: `transfer #17 bob@10.0.0.7 STOR /pub/q3.csv 5 B in 0.2 s: 226`.
impl fmt::Display for FinishedTransfer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { session, transfer, result, bytes, duration, reason, .. } = self;
        write!(f, "transfer #{} ", session.id)?;
        if let Some(user) = &transfer.user {
            write!(f, "{user}@")?;
        }
        write!(f, "{} {}", session.client.ip(), transfer.verb.name())?;
        if !transfer.path.is_empty() {
            write!(f, " {}", transfer.path)?;
        }
        if let Some(bytes) = bytes {
            write!(f, " {bytes} B")?;
        }
        let seconds = duration.as_secs_f64();
        if *result == TransferResult::Waiting {
            write!(f, " waits for its data connection since {seconds:.1} s")?;
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
                write!(f, ", {}", <&str>::from(result).replace('-', " "))?;
            }
        }
        match reason {
            Some(reason) => write!(f, ": {reason}"),
            None => Ok(()),
        }
    }
}
