//! The lines of transfers and of sessions that have ended.

use std::{fmt, time::SystemTime};

use ftp_alg_core::engine::{FinishedTransfer, TransferResult, TransferSession};

use super::{MissingConnection, Report, SessionReport};

impl Report {
    /// Its session.
    pub fn session(&self) -> TransferSession {
        match self {
            Self::Transfer(transfer) => transfer.session,
            Self::SessionEnd(report) => report.session,
            Self::NoDataConnection(missing) => missing.session,
        }
    }

    /// The transfer, if nothing more comes of it.
    pub fn ended_transfer(&self) -> Option<&FinishedTransfer> {
        match self {
            Self::Transfer(transfer) => {
                Some(&**transfer).filter(|transfer| transfer.result != TransferResult::Waiting)
            }
            _ => None,
        }
    }

    /// Logs it.
    pub fn log(&self) {
        match self {
            Self::Transfer(finished) => log_transfer(finished),
            Self::SessionEnd(report) => report.log(),
            Self::NoDataConnection(missing) => missing.log(),
        }
    }

    /// When it was seen.
    pub fn at(&self) -> SystemTime {
        match self {
            Self::Transfer(transfer) => transfer.at,
            Self::SessionEnd(report) => report.at,
            Self::NoDataConnection(missing) => missing.at,
        }
    }
}

impl MissingConnection {
    fn log(&self) {
        let Self { session, user, reason, .. } = self;
        tracing::warn!(
            event = "no-data-connection",
            session = session.id,
            client = %session.client,
            server = %session.server,
            user = user.as_deref(),
            reason,
            "{self}"
        );
    }
}

impl fmt::Display for MissingConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { session, reason, .. } = self;
        let TransferSession { id, client, server } = session;
        write!(f, "#{id} {client} -> {server}: no data connection: {reason}")
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
