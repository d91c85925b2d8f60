//! How tests wait: for a condition, with a time limit that only a failure reaches.

use std::{
    thread,
    time::{Duration, Instant},
};

use super::{process, scaled_timeout};

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
/// If this takes more than `seconds`, multiplied as [`scaled_timeout`] does.
#[track_caller]
pub fn wait_at_most(seconds: u64, what: &str, mut ready: impl FnMut() -> bool) {
    let limit = scaled_timeout(Duration::from_secs(seconds));
    let deadline = Instant::now() + limit;
    for pause in process::pauses() {
        if ready() {
            return;
        }
        assert!(Instant::now() < deadline, "{what} did not come within {limit:?}");
        thread::sleep(pause);
    }
}
