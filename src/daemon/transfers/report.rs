//! The lines of transfers and of sessions that have ended.

use std::{fmt, net::IpAddr, time::SystemTime};

use ftp_alg_core::engine::{FinishedTransfer, TransferResult, TransferSession};

use super::{Report, SessionReport};

impl Report {
    /// Its session.
    pub fn session(&self) -> TransferSession {
        match self {
            Self::Transfer(transfer) => transfer.session,
            Self::SessionEnd(report) => report.session,
        }
    }

    /// Whether it is a transfer of which nothing more comes.
    pub fn is_ended_transfer(&self) -> bool {
        matches!(self, Self::Transfer(transfer) if transfer.result != TransferResult::Waiting)
    }

    /// Logs it. Lines of a client's transfers that wait have a limit, which `admits` knows.
    pub fn log(&self, admits: impl FnOnce(IpAddr) -> bool) {
        match self {
            Self::SessionEnd(report) => report.log(),
            Self::Transfer(finished) => {
                let admits_waiting = || admits(finished.session.client.ip());
                if finished.result != TransferResult::Waiting || admits_waiting() {
                    log_transfer(finished);
                }
            }
        }
    }

    /// When it was seen.
    pub fn at(&self) -> SystemTime {
        match self {
            Self::Transfer(transfer) => transfer.at,
            Self::SessionEnd(report) => report.at,
        }
    }
}

impl SessionReport {
    fn log(&self) {
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

fn log_transfer(finished: &FinishedTransfer) {
    let FinishedTransfer { session, transfer, result, bytes, duration, .. } = finished;
    let code = finished.code();
    macro_rules! log {
        ($level:ident) => {
            tracing::$level!(
                event = finished.event(),
                session = session.id,
                client = %session.client,
                server = %session.server,
                user = transfer.user.as_deref(),
                verb = transfer.verb.name(),
                path = &*transfer.path,
                result = result.name(),
                code,
                bytes,
                seconds = duration.as_secs_f64(),
                "{finished}"
            )
        };
    }
    match result {
        TransferResult::Waiting => log!(warn),
        _ => log!(info),
    }
}
