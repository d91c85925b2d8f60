//! The log level: from the command line or the environment at the start, and changed later by `ftp-alg log-level`.

use std::sync::{Mutex, OnceLock};

use tracing_subscriber::{EnvFilter, Registry, filter::LevelFilter, reload};

use crate::daemon::{DaemonError, shard::lock};

/// The environment variable with the filter, in the syntax of `RUST_LOG`.
pub(in crate::daemon) const LEVEL_VARIABLE: &str = "FTP_ALG_LOG";
/// The log levels, from the fewest lines to the most.
pub const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];
const DEFAULT: &str = "info";

/// The filter in use, with its text.
struct ActiveFilter {
    handle: reload::Handle<EnvFilter, Registry>,
    text: Mutex<String>,
}

static ACTIVE_FILTER: OnceLock<ActiveFilter> = OnceLock::new();

/// The filter for `level`, from the command line. Without it the environment decides.
pub(super) fn filter(
    level: Option<&str>,
) -> Result<reload::Layer<EnvFilter, Registry>, DaemonError> {
    let variable = || std::env::var(LEVEL_VARIABLE).ok().filter(|value| !value.is_empty());
    let value = level.map(str::to_owned).or_else(variable);
    let value = value.unwrap_or_else(|| DEFAULT.to_owned());
    // The syntax takes a single word that is not a level for a module, and would silence all others.
    if value.parse::<LevelFilter>().is_err() && !value.contains('=') {
        return Err(DaemonError::Log { value, reason: "not a level".to_owned() });
    }
    let filter = EnvFilter::builder()
        .parse(without_resolver(&value))
        .map_err(|error| DaemonError::Log { value: value.clone(), reason: error.to_string() })?;
    let (filter, handle) = reload::Layer::new(filter);
    // A second filter in the same process changes nothing.
    let _ = ACTIVE_FILTER.set(ActiveFilter { handle, text: Mutex::new(value) });
    Ok(filter)
}

/// The filter `text` without the resolver, unless `text` is `trace` or names the resolver. Its lines have no rate limit,
/// so a peer that sends wrong answers would fill the log.
fn without_resolver(text: &str) -> String {
    let first = if text == "trace" { "" } else { "hickory=off," };
    format!("{first}{text}")
}

/// The level in use, or the filter from the environment.
pub(in crate::daemon) fn current_level() -> String {
    ACTIVE_FILTER.get().map_or_else(String::new, |current| lock(&current.text).clone())
}

/// Logs lines of `level` and of all more severe levels from now on.
pub(in crate::daemon) fn set_level(level: &str) -> Result<(), String> {
    let level = LEVELS.into_iter().find(|known| *known == level);
    let level = level.ok_or_else(|| format!("the level is one of {}", LEVELS.join(", ")))?;
    let current = ACTIVE_FILTER.get().ok_or("the daemon has no log")?;
    let mut text = lock(&current.text);
    current
        .handle
        .reload(EnvFilter::new(without_resolver(level)))
        .map_err(|error| error.to_string())?;
    let old = std::mem::replace(&mut *text, level.to_owned());
    log_event!(LOG_LEVEL, level, old, "log level changed: {level}, {old} before");
    Ok(())
}
