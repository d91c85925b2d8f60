//! When each thread that packets wait for was last seen to work.
//!
//! Every pass of such a thread's loop is noted, also one that waited for nothing, so that a time that is long ago
//! means that the thread hangs, or that the whole process was stopped.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// The last pass of each thread.
#[derive(Debug)]
pub(super) struct Progress {
    start: Instant,
    /// In milliseconds since the start.
    passes: Vec<AtomicU64>,
}

impl Progress {
    /// Of `threads` threads, all of which are taken to work now.
    pub(super) fn new(threads: usize) -> Self {
        let passes = std::iter::repeat_with(AtomicU64::default).take(threads).collect();
        Self { start: Instant::now(), passes }
    }

    /// A pass of thread `index`.
    pub(super) fn note(&self, index: usize, now: Instant) {
        if let Some(pass) = self.passes.get(index) {
            let millis = now.saturating_duration_since(self.start).as_millis();
            pass.store(millis as u64, Ordering::Release); // of an uptime
        }
    }

    /// When the thread that has worked least was last seen to work.
    pub(super) fn oldest(&self) -> Instant {
        let passes = self.passes.iter().map(|pass| pass.load(Ordering::Acquire));
        self.start + Duration::from_millis(passes.min().unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_that_of_the_thread_that_hangs() {
        let progress = Progress::new(3);
        let start = progress.oldest();
        let at = |millis| start + Duration::from_millis(millis);
        for (index, millis) in [(0, 900), (1, 40), (2, 700), (9, 1)] {
            progress.note(index, at(millis));
        }
        assert_eq!(progress.oldest(), at(40));
        progress.note(1, at(800));
        assert_eq!(progress.oldest(), at(700));
    }
}
