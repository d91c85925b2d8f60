//! The log: one line a decision, on standard error.
//!
//! The journal has times of its own, and a file is no place for colours, so both are left out
//! unless a person watches.

use std::io::{self, IsTerminal};

use tracing_subscriber::{EnvFilter, filter::LevelFilter, fmt, prelude::*};

use super::DaemonError;
use crate::engine::{Action, Decision, Event, What};

/// The environment variable with the filter, in the words of `RUST_LOG`.
pub(super) const VARIABLE: &str = "FTP_ALG_LOG";
const DEFAULT: &str = "info";

/// Starts the log. Once in a process; a second call changes nothing.
pub(super) fn init() -> Result<(), DaemonError> {
    let value = std::env::var(VARIABLE).ok().filter(|value| !value.is_empty());
    let value = value.unwrap_or_else(|| DEFAULT.to_owned());
    // A single word that is no level would be a module's name, and silence all others.
    if value.parse::<LevelFilter>().is_err() && !value.contains('=') {
        return Err(DaemonError::Log { value, reason: "not a level".to_owned() });
    }
    let filter = EnvFilter::builder()
        .parse(&value)
        .map_err(|error| DaemonError::Log { value, reason: error.to_string() })?;
    let watched = io::stderr().is_terminal() && std::env::var_os("JOURNAL_STREAM").is_none();
    let lines = fmt::layer()
        .with_writer(io::stderr)
        .with_target(false)
        .with_ansi(watched)
        // A closed standard error must not end the daemon (eprintln! panics).
        .log_internal_errors(false);
    let lines = if watched { lines.boxed() } else { lines.without_time().boxed() };
    // Fails only if a log is there already.
    let _ = tracing_subscriber::registry().with(lines.with_filter(filter)).try_init();
    Ok(())
}

/// Logs what an engine decided, one line each.
pub(super) fn events(events: &[Event]) {
    for event in events {
        match &event.what {
            What::Failed(_) => tracing::error!("{event}"),
            What::Refused(_) => tracing::warn!("{event}"),
            What::Announcement(Decision { action: Action::Refuse, .. }) => {
                tracing::warn!("{event}")
            }
            What::Announcement(_) | What::Unread(_) => tracing::info!("{event}"),
            What::Closed(..) | What::Turned(_) => tracing::debug!("{event}"),
        }
    }
}
