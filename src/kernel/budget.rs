//! Bounds the time that a thread may spend on some work.
//!
//! Knows nothing of the work.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// The part of the time that the work may take.
const SHARE: u32 = 10;
/// The time that it may take at once.
const BURST: Duration = Duration::from_millis(100);

/// The time that the work took, less its share of the time since.
#[derive(Debug)]
pub struct Budget {
    debt: Duration,
    since: Instant,
}

impl Budget {
    pub fn new(now: Instant) -> Self {
        Self { debt: Duration::ZERO, since: now }
    }

    /// Whether the work may begin. It may take longer than the time that remains, which delays the next work.
    pub fn allows(&mut self, now: Instant) -> bool {
        let earned = now.saturating_duration_since(self.since) / SHARE;
        (self.debt, self.since) = (self.debt.saturating_sub(earned), now);
        self.debt < BURST
    }

    /// Charges what the work took.
    pub fn charge(&mut self, took: Duration) {
        self.debt = self.debt.saturating_add(took);
    }
}

/// Measures how long work keeps its thread.
#[derive(Debug)]
pub struct Stopwatch {
    start: Instant,
    thread_start: Duration,
}

impl Stopwatch {
    pub fn start() -> Self {
        Self { start: Instant::now(), thread_start: thread_time() }
    }

    /// The time since the start. Time in which other threads ran counts up to a limit, because otherwise a busy machine
    /// would make cheap work dear.
    pub fn elapsed(&self) -> Duration {
        let computed = thread_time().saturating_sub(self.thread_start);
        self.start.elapsed().min(computed.saturating_mul(SHARE))
    }
}

/// The processor time of this thread.
fn thread_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn work_that_took_long_delays_the_next() {
        let now = Instant::now();
        let mut budget = Budget::new(now);
        assert!(budget.allows(now));
        budget.charge(Duration::from_millis(500));
        assert!(!budget.allows(now + Duration::from_millis(3990)));
        assert!(budget.allows(now + Duration::from_millis(4010)));
        // What is not used does not add up.
        let later = now + Duration::from_secs(1000);
        assert!(budget.allows(later));
        budget.charge(BURST);
        assert!(!budget.allows(later));
    }

    proptest! {
        #[test]
        fn any_second_has_a_bounded_amount_of_work(
            steps in proptest::collection::vec((0u64..200, 0u64..300), 1..200),
        ) {
            let mut now = Instant::now();
            let mut budget = Budget::new(now);
            let mut done: Vec<(Instant, Duration)> = Vec::new();
            for (pause, took) in steps.into_iter().map(|(a, b)| (ms(a), ms(b))) {
                now += pause;
                if budget.allows(now) {
                    budget.charge(took);
                    done.push((now, took));
                }
            }
            for (at, (first, _)) in done.iter().enumerate() {
                let second = done[at..].iter().take_while(|(n, _)| *n - *first <= ms(1000));
                let took: Duration = second.map(|(_, took)| *took).sum();
                prop_assert!(took <= BURST + ms(1000) / SHARE + ms(300), "{took:?}");
            }
        }
    }

    fn ms(number: u64) -> Duration {
        Duration::from_millis(number)
    }
}
