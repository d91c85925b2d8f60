//! How much of something there was of late.

use std::time::{Duration, Instant};

/// A count of what happened within the last one to two halves of a window.
#[derive(Debug)]
pub(super) struct Recent {
    window: Duration,
    total: u64,
    now: u64,
    before: u64,
    turned: Instant,
}

impl Recent {
    pub(super) fn new(now: Instant, window: Duration) -> Self {
        Self { window, total: 0, now: 0, before: 0, turned: now }
    }

    /// There were `total` of it since the start. Gives how many of these of late.
    pub(super) fn note(&mut self, now: Instant, total: u64) -> u64 {
        let age = now.saturating_duration_since(self.turned);
        if age >= self.window / 2 {
            self.before = if age < self.window { self.now } else { 0 };
            (self.now, self.turned) = (0, now);
        }
        self.now += total.saturating_sub(self.total);
        self.total = total;
        self.now + self.before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_long_ago_counts_no_more() {
        let start = Instant::now();
        let at = |minutes: u64| start + Duration::from_secs(60 * minutes);
        let mut recent = Recent::new(start, Duration::from_secs(600));
        assert_eq!(recent.note(at(0), 3), 3);
        assert_eq!(recent.note(at(4), 5), 5);
        assert_eq!(recent.note(at(5), 6), 6, "another half begins");
        assert_eq!(recent.note(at(9), 6), 6);
        assert_eq!(recent.note(at(10), 6), 1);
        assert_eq!(recent.note(at(15), 6), 0);
        assert_eq!(recent.note(at(16), 9), 3);
        assert_eq!(recent.note(at(60), 9), 0);
    }
}
