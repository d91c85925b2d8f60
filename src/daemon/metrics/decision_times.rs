//! How long batches of packets took, as a histogram that all workers record to.
//!
//! Recording is two additions to atomic numbers. A reader may see one of them without the other, which no query notices.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// The upper bounds of the buckets, in microseconds.
const BOUNDS_US: [u64; 14] =
    [5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 25_000, 50_000, 100_000];

/// A histogram of the times from the receipt of a batch to its verdicts.
#[derive(Debug, Default)]
pub(in crate::daemon) struct DecisionTimes {
    /// Batches within each bound and above the one before; the last has those above all bounds.
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
    /// The sum of all times.
    nanoseconds: AtomicU64,
}

/// What a [`DecisionTimes`] had at one moment.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Histogram {
    /// The sum of all times in seconds.
    pub(super) sum: f64,
    /// The upper bound of each bucket in seconds, and the batches between it and the one before.
    pub(super) buckets: Vec<(f64, u64)>,
}

impl DecisionTimes {
    /// Notes that a batch took `time`.
    pub(in crate::daemon) fn observe(&self, time: Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_US.partition_point(|bound| bound * 1000 < nanoseconds);
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.nanoseconds.fetch_add(nanoseconds, Relaxed);
    }

    /// What was recorded so far.
    pub(super) fn read(&self) -> Histogram {
        let bound = |index| match BOUNDS_US.get(index) {
            Some(bound) => *bound as f64 / 1e6,
            None => f64::INFINITY,
        };
        let buckets = self.buckets.iter().enumerate();
        Histogram {
            sum: self.nanoseconds.load(Relaxed) as f64 / 1e9,
            buckets: buckets.map(|(index, count)| (bound(index), count.load(Relaxed))).collect(),
        }
    }
}
