//! What bounds the sessions: their number, each client's share of it, their memory, and how long one is watched.

pub(crate) mod admission;
pub(crate) mod client_shares;
pub(crate) mod memory;
pub(crate) mod watched;

use std::time::Instant;

use crate::{
    engine::{Kernel, Sessions, table::entry::Head},
    session::Session,
};

/// Whether a session counts for the memory budget or for its client's share, or must.
#[inline]
pub(crate) fn is_counted(head: &Head, session: &Session) -> bool {
    memory::should_count(head, session) || client_shares::should_count(head, session)
}

impl Sessions {
    /// Counts the session at `index`, and enforces the limits.
    pub(crate) fn update_counts(&mut self, now: Instant, index: u32, kernel: &mut dyn Kernel) {
        if self.record_memory(index) {
            self.enforce_memory_budget(now, kernel);
        }
        self.count_session(now, index, kernel);
    }
}
