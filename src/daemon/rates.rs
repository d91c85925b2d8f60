//! What was counted in the last 10 s, minute and hour: a bounded history of samples of the counters.
//!
//! The history begins with the daemon. Its clock is monotonic, so neither a change of the time nor a suspend counts. A
//! sample is late if its thread is busy; then the windows cover less, and say so.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::snapshot::{Rates, Status, WindowCounts};

/// Intervals between two samples, and for how long they are stored: a minute, and an hour.
const RECENT: Span = Span { interval: Duration::from_millis(900), stored: Duration::from_secs(60) };
const OLDER: Span = Span { interval: Duration::from_secs(30), stored: Duration::from_secs(3600) };

/// How often samples are taken, and for how long they are stored.
#[derive(Clone, Copy, Debug)]
struct Span {
    interval: Duration,
    stored: Duration,
}

/// The counters of one moment.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    sessions: u64,
    transfers: u64,
    failed_transfers: u64,
    bytes_up: u64,
    bytes_down: u64,
    refusals: u64,
    drops: u64,
    decisions: u64,
}

impl Counts {
    pub(super) fn of(status: &Status) -> Self {
        let Status { counters, transfers, .. } = status;
        let modes = [transfers.active, transfers.passive, transfers.unknown];
        let ended: u64 = modes.into_iter().flat_map(|mode| mode.by_result()).map(|one| one.1).sum();
        let complete: u64 = modes.iter().map(|mode| mode.complete).sum();
        // The segments of a super-packet that was dropped were sent one by one: no loss.
        let lost = counters.drops.by_name().filter(|(reason, _)| *reason != "resegmented");
        Self {
            sessions: counters.sessions_started,
            transfers: ended,
            failed_transfers: ended - complete,
            bytes_up: transfers.bytes_up,
            bytes_down: transfers.bytes_down,
            refusals: counters.pinholes_refused
                + counters.commands_refused
                + counters.logins_refused,
            drops: lost.map(|(_, count)| count).sum::<u64>()
                + status.daemon.overruns
                + status.daemon.queue_drops,
            decisions: counters.packets + counters.fast_path_lines,
        }
    }
}

/// Counters at a time.
#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Instant,
    counts: Counts,
}

/// The samples of a span, oldest first. There is always one.
#[derive(Debug)]
struct Samples {
    span: Span,
    samples: VecDeque<Sample>,
}

impl Samples {
    fn new(span: Span, first: Sample) -> Self {
        Self { span, samples: [first].into() }
    }

    /// Stores `sample` if it is due, and removes those that are too old.
    fn record(&mut self, sample: Sample) {
        let age = |of: &Sample| sample.at.saturating_duration_since(of.at);
        if self.samples.back().is_some_and(|last| age(last) < self.span.interval) {
            return;
        }
        while self.samples.front().is_some_and(|oldest| age(oldest) > self.span.stored) {
            self.samples.pop_front();
        }
        self.samples.push_back(sample);
    }

    /// The oldest sample that is not older than `window`, else the last one.
    fn start_of(&self, window: Duration, now: Instant) -> Option<Sample> {
        let is_inside = |sample: &&Sample| now.saturating_duration_since(sample.at) <= window;
        self.samples.iter().find(is_inside).or(self.samples.back()).copied()
    }
}

/// The samples of the last hour.
#[derive(Debug)]
pub(super) struct CounterHistory {
    pub(super) started: Instant,
    recent: Samples,
    older: Samples,
}

impl Default for CounterHistory {
    fn default() -> Self {
        Self::new(Instant::now())
    }
}

impl CounterHistory {
    /// The history of a daemon that started at `started`, with all counters at zero.
    fn new(started: Instant) -> Self {
        let first = Sample { at: started, counts: Counts::default() };
        Self { started, recent: Samples::new(RECENT, first), older: Samples::new(OLDER, first) }
    }

    /// Records the counters of `now`. Called each second.
    pub(super) fn record(&mut self, now: Instant, counts: Counts) {
        let sample = Sample { at: now, counts };
        self.recent.record(sample);
        self.older.record(sample);
    }

    /// What was counted in each window until `now`. Transfers are unknown unless they are reported.
    pub(super) fn rates(&self, now: Instant, counts: Counts, reports_transfers: bool) -> Rates {
        let window = |samples: &Samples, seconds| {
            let start = samples.start_of(Duration::from_secs(seconds), now);
            let start = start.unwrap_or(Sample { at: now, counts });
            window_counts(start, Sample { at: now, counts }, reports_transfers)
        };
        Rates {
            ten_seconds: window(&self.recent, 10),
            minute: window(&self.recent, 60),
            hour: window(&self.older, 3600),
        }
    }
}

fn window_counts(start: Sample, end: Sample, reports_transfers: bool) -> WindowCounts {
    let grown = |count: fn(&Counts) -> u64| count(&end.counts).saturating_sub(count(&start.counts));
    let of_transfers = |count| reports_transfers.then(|| grown(count));
    let millis = end.at.saturating_duration_since(start.at).as_millis();
    WindowCounts {
        seconds: millis as f64 / 1000.0,
        sessions: grown(|counts| counts.sessions),
        transfers: of_transfers(|counts| counts.transfers),
        failed_transfers: of_transfers(|counts| counts.failed_transfers),
        bytes_up: of_transfers(|counts| counts.bytes_up),
        bytes_down: of_transfers(|counts| counts.bytes_down),
        refusals: grown(|counts| counts.refusals),
        drops: grown(|counts| counts.drops),
        decisions: grown(|counts| counts.decisions),
    }
}

#[cfg(test)]
mod tests {
    use ftp_alg_core::{engine::DropReason, session::RefusalReason};

    use super::*;
    use crate::daemon::snapshot::{ResultCounts, TransferTotals};

    fn counts(number: u64) -> Counts {
        Counts { sessions: number, transfers: 2 * number, drops: 3 * number, ..Counts::default() }
    }

    /// A daemon that ran for `seconds`, with one more session each second.
    fn history(started: Instant, seconds: u64) -> CounterHistory {
        let mut history = CounterHistory::new(started);
        for second in 1..=seconds {
            history.record(started + Duration::from_secs(second), counts(second));
        }
        history
    }

    #[test]
    fn a_young_daemon_covers_its_age() {
        let started = Instant::now();
        let now = started + Duration::from_millis(5250);
        let rates = history(started, 5).rates(now, counts(6), true);
        for window in [rates.ten_seconds, rates.minute, rates.hour] {
            assert_eq!((window.seconds, window.sessions, window.drops), (5.25, 6, 18));
            assert_eq!(window.transfers, Some(12));
        }
        let unreported = history(started, 5).rates(now, counts(6), false).minute;
        assert_eq!((unreported.transfers, unreported.bytes_up), (None, None));
        assert_eq!(unreported.sessions, 6);
    }

    #[test]
    fn each_window_counts_what_is_inside() {
        let started = Instant::now();
        let history = history(started, 10_000);
        let now = started + Duration::from_secs(10_000);
        let rates = history.rates(now, counts(10_000), true);
        let of = |window: WindowCounts| (window.seconds, window.sessions);
        assert_eq!(of(rates.ten_seconds), (10.0, 10));
        assert_eq!(of(rates.minute), (60.0, 60));
        assert_eq!(of(rates.hour), (3580.0, 3580));
        // Between two samples.
        let rates = history.rates(now + Duration::from_millis(700), counts(10_001), true);
        assert_eq!(of(rates.ten_seconds), (9.7, 10));
        assert_eq!(of(rates.hour), (3580.7, 3581));
    }

    #[test]
    fn the_history_is_bounded() {
        let started = Instant::now();
        let mut history = CounterHistory::new(started);
        for tenth in 0..100_000 {
            history.record(started + Duration::from_millis(100 * tenth), counts(tenth));
        }
        assert!(history.recent.samples.len() <= 68, "{}", history.recent.samples.len());
        assert!(history.older.samples.len() <= 122, "{}", history.older.samples.len());
    }

    #[test]
    fn a_gap_without_samples_is_not_covered() {
        let started = Instant::now();
        let mut history = history(started, 100);
        let later = started + Duration::from_secs(130);
        // Nothing since: the last sample, and what it covers.
        let rates = history.rates(later, counts(200), true);
        assert_eq!((rates.ten_seconds.seconds, rates.ten_seconds.sessions), (30.0, 100));
        history.record(later, counts(200));
        let rates = history.rates(later + Duration::from_secs(2), counts(203), true);
        assert_eq!((rates.ten_seconds.seconds, rates.ten_seconds.sessions), (2.0, 3));
        assert_eq!((rates.minute.seconds, rates.minute.sessions), (60.0, 131));
    }

    #[test]
    fn a_counter_or_a_clock_that_goes_back_counts_nothing() {
        let started = Instant::now() + Duration::from_secs(100);
        let mut history = history(started, 5);
        history.record(started - Duration::from_secs(50), counts(9));
        let rates = history.rates(started - Duration::from_secs(90), counts(0), true);
        assert_eq!((rates.minute.seconds, rates.minute.sessions), (0.0, 0));
    }

    #[test]
    fn counts_are_sums_of_the_status() {
        let mut status = Status::default();
        let counters = &mut status.counters;
        (counters.packets, counters.fast_path_lines, counters.sessions_started) = (10, 5, 3);
        (counters.pinholes_refused, counters.commands_refused, counters.logins_refused) =
            (2, 1, 40);
        counters.refusals.count(RefusalReason::LowPort);
        counters.drops.count(DropReason::Overlap);
        counters.drops.count(DropReason::Resegmented);
        (status.daemon.overruns, status.daemon.queue_drops) = (20, 300);
        status.transfers = TransferTotals {
            active: ResultCounts { complete: 4, reset: 1, ..ResultCounts::default() },
            unknown: ResultCounts { refused: 2, ..ResultCounts::default() },
            bytes_up: 7,
            bytes_down: 8,
            ..TransferTotals::default()
        };
        let Counts { sessions, transfers, failed_transfers, bytes_up, bytes_down, .. } =
            Counts::of(&status);
        assert_eq!((sessions, transfers, failed_transfers), (3, 7, 3));
        assert_eq!((bytes_up, bytes_down), (7, 8));
        let Counts { refusals, drops, decisions, .. } = Counts::of(&status);
        assert_eq!((refusals, drops, decisions), (43, 321, 15));
    }
}
