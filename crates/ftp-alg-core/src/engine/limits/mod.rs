//! What bounds the sessions: their number, each client's share of it, their memory, and how long one is watched.

pub(crate) mod admission;
pub(crate) mod client_shares;
pub(crate) mod memory;
pub(crate) mod watched;

use std::time::Instant;

use crate::engine::{Effects, Entry, Sessions};

/// Whether a session counts for the memory budget or for its client's share, or must.
#[inline]
pub(crate) fn is_counted(entry: &Entry) -> bool {
    memory::should_count(entry) || client_shares::should_count(entry)
}

impl Sessions {
    /// Counts the session at `index`, and enforces the limits.
    pub(crate) fn update_counts(&mut self, now: Instant, index: u32, effects: &mut Effects) {
        if self.record_memory(index) {
            self.enforce_memory_budget(effects);
        }
        self.count_session(now, index, effects);
    }
}
