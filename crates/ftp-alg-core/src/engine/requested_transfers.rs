//! Transfers that are examined when they have been pending for a while: their data connections may not come about.
//!
//! Invariant: memory is bounded, whatever peers do.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::engine::questions::effects::SessionRef;

/// After so long without an end, a transfer is examined. The SYN of its data connection was sent four times by then:
/// Linux repeats it after 1, 3 and 7 seconds (RFC 6298).
const PATIENCE: Duration = Duration::from_secs(10);
/// Limit of transfers that are examined. Further ones are reported at their ends only.
const MAX_EXAMINED: usize = 1 << 16;

/// The transfers, in the order in which they were requested.
#[derive(Default)]
pub struct RequestedTransfers(VecDeque<RequestedTransfer>);

/// A transfer that a client has requested.
pub struct RequestedTransfer {
    due: Instant,
    /// Its session.
    pub session: SessionRef,
    /// When it was requested, since the connection's first packet.
    pub requested: Duration,
}

impl RequestedTransfers {
    /// Adds a transfer of `session` that was requested `now`, which is the time `requested` since the first packet.
    pub fn add(&mut self, now: Instant, session: SessionRef, requested: Duration) {
        if self.0.len() < MAX_EXAMINED {
            self.0.push_back(RequestedTransfer { due: now + PATIENCE, session, requested });
        }
    }

    /// Takes the next transfer that is to be examined `now`.
    pub fn take_due(&mut self, now: Instant) -> Option<RequestedTransfer> {
        self.0.front().filter(|oldest| oldest.due <= now)?;
        self.0.pop_front()
    }
}
