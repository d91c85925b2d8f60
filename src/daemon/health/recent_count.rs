//! Counts events of the recent past.

use std::time::{Duration, Instant};

/// A count of the events in the present and the previous half of a window.
#[derive(Debug)]
pub(super) struct RecentCount {
    window: Duration,
    total: u64,
    this_half: u64,
    previous_half: u64,
    half_began: Instant,
}

impl RecentCount {
    pub(super) fn new(now: Instant, window: Duration) -> Self {
        Self { window, total: 0, this_half: 0, previous_half: 0, half_began: now }
    }

    /// Records that there were `total` events since the start. Returns how many of them are recent.
    pub(super) fn record(&mut self, now: Instant, total: u64) -> u64 {
        let age = now.saturating_duration_since(self.half_began);
        if age >= self.window / 2 {
            self.previous_half = if age < self.window { self.this_half } else { 0 };
            (self.this_half, self.half_began) = (0, now);
        }
        self.this_half += total.saturating_sub(self.total);
        self.total = total;
        self.this_half + self.previous_half
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_events_are_not_counted() {
        let start = Instant::now();
        let at = |minutes: u64| start + Duration::from_secs(60 * minutes);
        let mut recent = RecentCount::new(start, Duration::from_secs(600));
        assert_eq!(recent.record(at(0), 3), 3);
        assert_eq!(recent.record(at(4), 5), 5);
        assert_eq!(recent.record(at(5), 6), 6, "another half begins");
        assert_eq!(recent.record(at(9), 6), 6);
        assert_eq!(recent.record(at(10), 6), 1);
        assert_eq!(recent.record(at(15), 6), 0);
        assert_eq!(recent.record(at(16), 9), 3);
        assert_eq!(recent.record(at(60), 9), 0);
    }
}
