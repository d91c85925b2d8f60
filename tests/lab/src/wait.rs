//! How tests wait: for a condition, with a time limit that only a failure reaches.

use std::time::Duration;

use super::process;

/// Waits until `ready` returns true.
///
/// # Panics
///
/// If this takes more than a minute; see [`wait_at_most`].
#[track_caller]
pub fn wait_for(what: &str, ready: impl FnMut() -> bool) {
    wait_at_most(60, what, ready);
}

/// Waits until `ready` returns true.
///
/// # Panics
///
/// If this takes more than `seconds`. On a busy machine the limit is longer.
#[track_caller]
pub fn wait_at_most(seconds: u64, what: &str, mut ready: impl FnMut() -> bool) {
    let missing = || Ok((!ready()).then(String::new));
    if let Err(late) = process::wait_for(what, Duration::from_secs(seconds), missing) {
        panic!("{late}");
    }
}
