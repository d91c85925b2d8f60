//! What was counted in the last 10 s, minute and hour: a bounded history of samples of the counters.
//!
//! The history begins with the daemon. Its clock is monotonic, so neither a change of the time nor a suspend counts. A
//! sample is late if its thread is busy; then the windows cover less, and say so.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::snapshot::{Rates, Status, WindowCounts};

/// How many of the newest samples are stored: those of a minute.
const RECENT: usize = 61;
/// The interval between two older samples, and for how long samples are stored.
const INTERVAL: Duration = Duration::from_secs(30);
const STORED: Duration = Duration::from_secs(3600);

/// A time, and what was counted until then.
type Sample = (Instant, WindowCounts);

/// The samples of the last hour.
#[derive(Debug)]
pub(super) struct CounterHistory {
    pub(super) started: Instant,
    /// The samples, oldest first. There is always one.
    samples: VecDeque<Sample>,
}

impl CounterHistory {
    /// The history of a daemon that started at `started`, with all counters at zero.
    pub(super) fn new(started: Instant) -> Self {
        Self { started, samples: [(started, WindowCounts::default())].into() }
    }

    /// Notes what was counted until `now`. Called each second.
    pub(super) fn note(&mut self, now: Instant, counts: WindowCounts) {
        let age = |sample: &Sample| now.saturating_duration_since(sample.0);
        self.samples.push_back((now, counts));
        let is_near = |samples: &VecDeque<Sample>, at: usize| {
            samples[at].0.saturating_duration_since(samples[at - 1].0) < INTERVAL
        };
        if let Some(older @ 1..) = self.samples.len().checked_sub(RECENT + 1)
            && is_near(&self.samples, older)
        {
            self.samples.remove(older);
        }
        while self.samples.front().is_some_and(|oldest| age(oldest) > STORED) {
            self.samples.pop_front();
        }
    }

    /// What was counted in each window until `now`, if these are the counts until then.
    pub(super) fn rates(&self, now: Instant, counts: WindowCounts) -> Rates {
        let age = |sample: &Sample| now.saturating_duration_since(sample.0);
        let window = |seconds| {
            let is_inside = |sample: &&Sample| age(sample) <= Duration::from_secs(seconds);
            let start = self.samples.iter().find(is_inside).or(self.samples.back());
            start.map_or(counts, |start| counts.since(start.1, age(start)))
        };
        Rates { ten_seconds: window(10), minute: window(60), hour: window(3600) }
    }
}

/// What was counted since the daemon's start. Transfers are unknown unless they are reported.
pub(super) fn counts(status: &Status, reports_transfers: bool) -> WindowCounts {
    let Status { counters, transfers, .. } = status;
    let modes = [transfers.active, transfers.passive, transfers.unknown];
    let ended: u64 = modes.into_iter().flat_map(|mode| mode.by_result()).map(|one| one.1).sum();
    let complete: u64 = modes.iter().map(|mode| mode.complete).sum();
    let reported = |count| reports_transfers.then_some(count);
    // The segments of a super-packet that was dropped were sent one by one: no loss.
    let lost = counters.drops.by_name().filter(|(reason, _)| *reason != "resegmented");
    WindowCounts {
        seconds: 0.0,
        sessions: counters.sessions_started,
        transfers: reported(ended),
        failed_transfers: reported(ended - complete),
        bytes_up: reported(transfers.bytes_up),
        bytes_down: reported(transfers.bytes_down),
        refusals: counters.pinholes_refused + counters.commands_refused + counters.logins_refused,
        drops: lost.map(|(_, count)| count).sum::<u64>()
            + status.daemon.overruns
            + status.daemon.queue_drops,
        decisions: counters.packets + counters.fast_path_lines,
    }
}

impl WindowCounts {
    /// What was counted in the time `covered` since `start`.
    fn since(self, start: Self, covered: Duration) -> Self {
        let known = |end: Option<u64>, start: Option<u64>| {
            end.map(|end| end.saturating_sub(start.unwrap_or_default()))
        };
        Self {
            seconds: covered.as_millis() as f64 / 1000.0,
            sessions: self.sessions.saturating_sub(start.sessions),
            transfers: known(self.transfers, start.transfers),
            failed_transfers: known(self.failed_transfers, start.failed_transfers),
            bytes_up: known(self.bytes_up, start.bytes_up),
            bytes_down: known(self.bytes_down, start.bytes_down),
            refusals: self.refusals.saturating_sub(start.refusals),
            drops: self.drops.saturating_sub(start.drops),
            decisions: self.decisions.saturating_sub(start.decisions),
        }
    }
}

#[cfg(test)]
mod tests {
    use ftp_alg_core::{engine::DropReason, session::RefusalReason};

    use super::*;
    use crate::daemon::snapshot::{ResultCounts, TransferTotals};

    fn counts(number: u64) -> WindowCounts {
        WindowCounts {
            sessions: number,
            transfers: Some(2 * number),
            drops: 3 * number,
            ..WindowCounts::default()
        }
    }

    /// A daemon that ran for `seconds`, with one more session each second.
    fn history(started: Instant, seconds: u64) -> CounterHistory {
        let mut history = CounterHistory::new(started);
        for second in 1..=seconds {
            history.note(started + Duration::from_secs(second), counts(second));
        }
        history
    }

    #[test]
    fn a_young_daemon_covers_its_age() {
        let started = Instant::now();
        let now = started + Duration::from_millis(5250);
        let rates = history(started, 5).rates(now, counts(6));
        for window in [rates.ten_seconds, rates.minute, rates.hour] {
            assert_eq!((window.seconds, window.sessions, window.drops), (5.25, 6, 18));
            assert_eq!((window.transfers, window.bytes_up), (Some(12), None));
        }
    }

    #[test]
    fn each_window_counts_what_is_inside() {
        let started = Instant::now();
        let history = history(started, 10_000);
        let now = started + Duration::from_secs(10_000);
        let rates = history.rates(now, counts(10_000));
        let of = |window: WindowCounts| (window.seconds, window.sessions);
        assert_eq!(of(rates.ten_seconds), (10.0, 10));
        assert_eq!(of(rates.minute), (60.0, 60));
        assert_eq!(of(rates.hour), (3580.0, 3580));
        // Between two samples.
        let rates = history.rates(now + Duration::from_millis(700), counts(10_001));
        assert_eq!(of(rates.ten_seconds), (9.7, 10));
        assert_eq!(of(rates.hour), (3580.7, 3581));
    }

    #[test]
    fn the_history_is_bounded() {
        let started = Instant::now();
        let mut history = CounterHistory::new(started);
        for tenth in 0..100_000 {
            history.note(started + Duration::from_millis(100 * tenth), counts(tenth));
        }
        assert!(history.samples.len() <= RECENT + 121, "{}", history.samples.len());
    }

    #[test]
    fn a_gap_without_samples_is_not_covered() {
        let started = Instant::now();
        let mut history = history(started, 100);
        let later = started + Duration::from_secs(130);
        // Nothing since: the last sample, and what it covers.
        let rates = history.rates(later, counts(200));
        assert_eq!((rates.ten_seconds.seconds, rates.ten_seconds.sessions), (30.0, 100));
        history.note(later, counts(200));
        let rates = history.rates(later + Duration::from_secs(2), counts(203));
        assert_eq!((rates.ten_seconds.seconds, rates.ten_seconds.sessions), (2.0, 3));
        assert_eq!((rates.minute.seconds, rates.minute.sessions), (60.0, 131));
    }

    #[test]
    fn a_counter_or_a_clock_that_goes_back_counts_nothing() {
        let started = Instant::now() + Duration::from_secs(100);
        let mut history = history(started, 5);
        history.note(started - Duration::from_secs(50), counts(9));
        let rates = history.rates(started - Duration::from_secs(90), counts(0));
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
        let counted = WindowCounts {
            seconds: 0.0,
            sessions: 3,
            transfers: Some(7),
            failed_transfers: Some(3),
            bytes_up: Some(7),
            bytes_down: Some(8),
            refusals: 43,
            drops: 321,
            decisions: 15,
        };
        assert_eq!(super::counts(&status, true), counted);
        let unreported = super::counts(&status, false);
        assert_eq!((unreported.sessions, unreported.transfers), (3, None));
    }
}
