//! When each thread that packets wait for was last seen to work, and until when the kernel has a sign of life.
//!
//! Every pass of such a thread's loop is noted, also one that waited for nothing, so that a time that is long ago
//! means that the thread hangs, or that the whole process was stopped. The sign of life is not renewed before each thread
//! has worked again. So what a thread took from its queue before the sign lapsed is never decided by it after another
//! one was given, unless the thread has seen that it lapsed.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// So much before its deadline the sign of life is taken to be over, as the kernel rounds.
const KERNEL_ROUNDING: Duration = Duration::from_millis(100);

/// The last pass of each thread.
#[derive(Debug)]
pub(super) struct WorkerProgress {
    start: Instant,
    /// In milliseconds since the start.
    passes: Vec<AtomicU64>,
    /// When the sign of life ends, likewise.
    deadline: AtomicU64,
}

impl WorkerProgress {
    /// Of `threads` threads, all of which are taken to work now.
    pub(super) fn new(threads: usize) -> Self {
        let passes = std::iter::repeat_with(AtomicU64::default).take(threads).collect();
        Self { start: Instant::now(), passes, deadline: AtomicU64::default() }
    }

    /// The kernel has a sign of life until `deadline`.
    pub(super) fn set_deadline(&self, deadline: Instant) {
        self.deadline.store(self.millis(deadline), Ordering::Release);
    }

    /// Whether packets of connections that are not adjusted may have passed by the queue, or will in a moment.
    pub(super) fn has_lapsed(&self, now: Instant) -> bool {
        self.millis(now + KERNEL_ROUNDING) >= self.deadline.load(Ordering::Acquire)
    }

    fn millis(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.start).as_millis() as u64 // of an uptime
    }

    /// A pass of thread `index`.
    pub(super) fn record_pass(&self, index: usize, now: Instant) {
        if let Some(pass) = self.passes.get(index) {
            pass.store(self.millis(now), Ordering::Release);
        }
    }

    /// When the thread that has worked least was last seen to work.
    pub(super) fn oldest_pass(&self) -> Instant {
        let passes = self.passes.iter().map(|pass| pass.load(Ordering::Acquire));
        self.start + Duration::from_millis(passes.min().unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_that_of_the_thread_that_hangs() {
        let progress = WorkerProgress::new(3);
        let start = progress.oldest_pass();
        let at = |millis| start + Duration::from_millis(millis);
        for (index, millis) in [(0, 900), (1, 40), (2, 700), (9, 1)] {
            progress.record_pass(index, at(millis));
        }
        assert_eq!(progress.oldest_pass(), at(40));
        progress.record_pass(1, at(800));
        assert_eq!(progress.oldest_pass(), at(700));
    }

    #[test]
    fn the_sign_of_life_lapses_a_little_before_its_deadline() {
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
