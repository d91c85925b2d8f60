//! When each worker last finished a pass of its loop, and when the heartbeat in the kernel expires.
//!
//! Invariants:
//! - A worker records each pass, also a pass without packets. So an old time means that the worker hangs, or that the
//!   whole process was stopped.
//! - The heartbeat is not renewed before each worker has recorded another pass. So a worker that took packets from its
//!   queue before the heartbeat lapsed notices the lapse before it handles them.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// How much earlier than its deadline the heartbeat counts as lapsed, because the kernel rounds timeouts.
const KERNEL_ROUNDING: Duration = Duration::from_millis(100);

/// The last pass of each worker, and the heartbeat's deadline.
#[derive(Debug)]
pub(super) struct WorkerProgress {
    start: Instant,
    /// The last pass of each worker, in milliseconds since the start.
    passes: Vec<AtomicU64>,
    /// The heartbeat's deadline, in milliseconds since the start.
    deadline: AtomicU64,
}

impl WorkerProgress {
    /// Starts with a pass of each of `workers` workers now.
    pub(super) fn new(workers: usize) -> Self {
        let passes = std::iter::repeat_with(AtomicU64::default).take(workers).collect();
        Self { start: Instant::now(), passes, deadline: AtomicU64::default() }
    }

    /// Notes that the heartbeat expires at `deadline`.
    pub(super) fn set_deadline(&self, deadline: Instant) {
        self.deadline.store(self.millis(deadline), Ordering::Release);
    }

    /// Whether the heartbeat has lapsed, or is about to: packets of connections that are not adjusted may bypass the
    /// queue.
    pub(super) fn has_lapsed(&self, now: Instant) -> bool {
        self.millis(now + KERNEL_ROUNDING) >= self.deadline.load(Ordering::Acquire)
    }

    fn millis(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.start).as_millis() as u64 // of an uptime
    }

    /// Notes a pass of worker `index`.
    pub(super) fn note_pass(&self, index: usize, now: Instant) {
        if let Some(pass) = self.passes.get(index) {
            pass.store(self.millis(now), Ordering::Release);
        }
    }

    /// The oldest of the workers' last passes.
    pub(super) fn oldest_pass(&self) -> Instant {
        let passes = self.passes.iter().map(|pass| pass.load(Ordering::Acquire));
        self.start + Duration::from_millis(passes.min().unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_pass_is_of_the_worker_that_hangs() {
        let progress = WorkerProgress::new(3);
        let start = progress.oldest_pass();
        let at = |millis| start + Duration::from_millis(millis);
        for (index, millis) in [(0, 900), (1, 40), (2, 700), (9, 1)] {
            progress.note_pass(index, at(millis));
        }
        assert_eq!(progress.oldest_pass(), at(40));
        progress.note_pass(1, at(800));
        assert_eq!(progress.oldest_pass(), at(700));
    }

    #[test]
    fn the_heartbeat_lapses_a_little_before_its_deadline() {
        let progress = WorkerProgress::new(1);
        let at = |millis| progress.start + Duration::from_millis(millis);
        assert!(progress.has_lapsed(at(0)), "none was given");
        progress.set_deadline(at(5000));
        assert!(!progress.has_lapsed(at(4800)));
        assert!(progress.has_lapsed(at(4900)));
        progress.set_deadline(at(6000));
        assert!(!progress.has_lapsed(at(5800)));
    }
}
