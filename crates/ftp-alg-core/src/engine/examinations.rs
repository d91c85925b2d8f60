//! What is examined after a while, because its data connection may not have come about.
//!
//! Invariant: memory is bounded, whatever peers do.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::engine::questions::effects::SessionRef;

/// The SYN of a data connection was sent four times by then: Linux repeats it after 1, 3 and 7 seconds (RFC 6298).
pub const PATIENCE: Duration = Duration::from_secs(10);
/// Limit of what is to be examined. The rest is reported at its end only.
const MAX_EXAMINATIONS: usize = 1 << 17;

/// What is to be examined, in the order in which it began.
#[derive(Default)]
pub struct Examinations(VecDeque<Examination>);

/// Something of a session that is to be examined.
pub struct Examination {
    due: Instant,
    /// The session.
    pub session: SessionRef,
    /// What it is.
    pub subject: Subject,
}

/// What is examined.
#[derive(Clone, Copy)]
pub enum Subject {
    /// The transfer that was requested at this time since the connection's first packet.
    Transfer(Duration),
    /// The pinhole with this serial number. Some clients connect before they request a transfer.
    Pinhole(u64),
}

impl Examinations {
    /// Adds what began `now`.
    pub fn add(&mut self, now: Instant, session: SessionRef, subject: Subject) {
        if self.0.len() < MAX_EXAMINATIONS {
            self.0.push_back(Examination { due: now + PATIENCE, session, subject });
        }
    }

    /// Takes the next examination that is due.
    pub fn take_due(&mut self, now: Instant) -> Option<Examination> {
        self.0.front().filter(|oldest| oldest.due <= now)?;
        self.0.pop_front()
    }
}
