//! How much is logged: what the command line and the environment say at the start, and a change of it later.

use std::sync::{Mutex, OnceLock};

use tracing_subscriber::{EnvFilter, Registry, filter::LevelFilter, reload};

use crate::daemon::{DaemonError, shard::lock};

/// The environment variable with the filter, in the words of `RUST_LOG`.
pub(in crate::daemon) const LEVEL_VARIABLE: &str = "FTP_ALG_LOG";
/// From little to much.
pub const LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];
const DEFAULT: &str = "info";

/// The filter in use.
struct ActiveFilter {
    handle: reload::Handle<EnvFilter, Registry>,
    text: Mutex<String>,
}

static ACTIVE_FILTER: OnceLock<ActiveFilter> = OnceLock::new();

/// The filter of the log. `level` is what the command line says; without it the environment decides.
pub(super) fn filter(
    level: Option<&str>,
) -> Result<reload::Layer<EnvFilter, Registry>, DaemonError> {
    let variable = || std::env::var(LEVEL_VARIABLE).ok().filter(|value| !value.is_empty());
    let value = level.map(str::to_owned).or_else(variable);
    let value = value.unwrap_or_else(|| DEFAULT.to_owned());
    // A single word that is no level would be a module's name, and silence all others.
    if value.parse::<LevelFilter>().is_err() && !value.contains('=') {
        return Err(DaemonError::Log { value, reason: "not a level".to_owned() });
    }
    let filter = EnvFilter::builder()
        .parse(&value)
        .map_err(|error| DaemonError::Log { value: value.clone(), reason: error.to_string() })?;
    let (filter, handle) = reload::Layer::new(filter);
    // A second log in one process changes nothing.
    let _ = ACTIVE_FILTER.set(ActiveFilter { handle, text: Mutex::new(value) });
    Ok(filter)
}

/// The level, or the filter of the environment.
pub(in crate::daemon) fn current_level() -> String {
    ACTIVE_FILTER.get().map_or_else(String::new, |current| lock(&current.text).clone())
}

/// From now on `level` is logged, and what weighs more.
pub(in crate::daemon) fn set_level(level: &str) -> Result<(), String> {
    let level = LEVELS.into_iter().find(|known| *known == level);
    let level = level.ok_or_else(|| format!("the level is one of {}", LEVELS.join(", ")))?;
    let current = ACTIVE_FILTER.get().ok_or("nothing is logged")?;
    let mut text = lock(&current.text);
    current.handle.reload(EnvFilter::new(level)).map_err(|error| error.to_string())?;
    let old = std::mem::replace(&mut *text, level.to_owned());
    tracing::info!("log level: {level}, {old} before");
    Ok(())
}
