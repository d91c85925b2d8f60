//! Renews the heartbeat in the kernel while every worker makes progress.
//!
//! If the heartbeat was missing, the rules bypassed the queue meanwhile. The engines then record a downtime, because
//! packets with any contents may have passed unread.

use std::time::{Duration, Instant};

use super::shared_state::SharedState;
use crate::kernel::{
    NetfilterError,
    table::{Commits, HEARTBEAT_TIMEOUT, Heartbeat},
};

/// Interval between two renewals, each of which costs a transaction of nf_tables.
const RENEWAL_INTERVAL: Duration = Duration::from_millis(750);
/// A worker without packets makes a pass each second. One whose last pass is longer ago may hang.
const PASS_LIMIT: Duration = Duration::from_millis(1500);
/// How long connections wait for the next start, if the daemon ends and leaves its table.
pub(super) const RESTART_GRACE: Duration = Duration::from_secs(2);

/// The heartbeat.
pub(super) struct HeartbeatRenewer {
    heartbeat: Heartbeat,
    /// When the heartbeat was last renewed.
    renewed: Instant,
}

/// Whether the next renewal is due. No renewal is due while a worker may hang. If the heartbeat `has_lapsed`, each
/// worker must first make a pass, which notices the lapse.
fn is_renewal_due(renewed: Instant, now: Instant, oldest_pass: Instant, has_lapsed: bool) -> bool {
    now.saturating_duration_since(oldest_pass) < PASS_LIMIT
        && match has_lapsed {
            true => oldest_pass >= renewed + HEARTBEAT_TIMEOUT,
            false => now >= renewed + RENEWAL_INTERVAL,
        }
}

impl HeartbeatRenewer {
    /// Takes over an earlier daemon's heartbeat, if packets `have_waited` since that daemon ended and the heartbeat has
    /// not expired. Otherwise records a downtime, and sets a new heartbeat.
    pub(super) fn start(
        commits: &Commits,
        shared: &SharedState,
        have_waited: bool,
    ) -> Result<Self, NetfilterError> {
        let now = Instant::now();
        let heartbeat = Heartbeat::new(commits)?;
        let mut renewer = Self { heartbeat, renewed: now };
        if !have_waited || !renewer.heartbeat.renew(HEARTBEAT_TIMEOUT)? {
            shared.note_downtime();
            renewer.heartbeat.start(HEARTBEAT_TIMEOUT)?;
        }
        set_deadline(shared, now + HEARTBEAT_TIMEOUT);
        Ok(renewer)
    }

    /// Renews the heartbeat if that is due.
    pub(super) fn renew_if_due(&mut self, shared: &SharedState) -> Result<(), NetfilterError> {
        let now = Instant::now();
        let progress = &shared.progress;
        if !is_renewal_due(self.renewed, now, progress.oldest_pass(), progress.has_lapsed(now)) {
            return Ok(());
        }
        if !self.heartbeat.renew(HEARTBEAT_TIMEOUT)? {
            shared.note_downtime();
            self.heartbeat.start(HEARTBEAT_TIMEOUT)?;
            let seconds = now.saturating_duration_since(self.renewed).as_secs_f64();
            log_event!(
                DOWNTIME,
                seconds,
                "ftp-alg did not run for up to {seconds:.1} s, or its table was loaded again: packets of control \
                 connections bypassed the queue unread. No pinhole is opened for connections that carried data then, \
                 until they are in step again, or their clients log in again",
            );
        }
        self.renewed = now;
        set_deadline(shared, now + HEARTBEAT_TIMEOUT);
        Ok(())
    }

    /// Renews the heartbeat for the last time. A daemon that starts before its deadline finds that no packet bypassed
    /// the queue.
    pub(super) fn stop(&mut self, shared: &SharedState) -> Result<(), NetfilterError> {
        let now = Instant::now();
        set_deadline(shared, now + RESTART_GRACE);
        self.heartbeat.renew(RESTART_GRACE).map(drop)
    }
}

/// Sets the deadline for the engines, and for the fast path's program.
fn set_deadline(shared: &SharedState, deadline: Instant) {
    shared.progress.set_deadline(deadline);
    if let Ok(reader) = &shared.fast_path {
        reader.offload.set_heartbeat(deadline);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_stop_of_four_seconds_never_outlasts_the_heartbeat() {
        // Two workers without packets, whose passes are so far apart.
        for apart in (0..1000).step_by(50) {
            let start = Instant::now();
            let oldest_pass = |now: u64| now - (now % 1000).max((now + apart) % 1000);
            let mut renewed = start + millis(2000);
            // The main thread looks each 100 ms. The daemon stops just before it does.
            for now in (2100..12_000).step_by(100) {
                let stopped = start + millis(now);
                let remaining = (renewed + HEARTBEAT_TIMEOUT).saturating_duration_since(stopped);
                assert!(
                    remaining >= millis(4100),
                    "{remaining:?} at {now}, {apart}: and the kernel rounds"
                );
                if is_renewal_due(renewed, stopped, start + millis(oldest_pass(now)), false) {
                    renewed = stopped;
                }
            }
        }
    }

    #[test]
    fn a_heartbeat_is_not_renewed_for_a_worker_that_hangs() {
        let start = Instant::now();
        let is_due = |now, oldest_pass, has_lapsed| {
            let at = |after| start + millis(after);
            is_renewal_due(start, at(now), at(oldest_pass), has_lapsed)
        };
        assert!(is_due(800, 0, false));
        assert!(is_due(1400, 0, false));
        assert!(!is_due(1500, 0, false));
        // After the deadline each worker has to notice it first.
        assert!(!is_due(5200, 4990, true));
        assert!(is_due(5200, 5000, true));
        assert!(!is_due(7000, 5000, true));
    }
}
