//! Renews the heartbeat in the kernel while every worker makes progress.
//!
//! If the heartbeat was missing, the rules bypassed the queue meanwhile. The engines then record a downtime, because
//! packets with any contents may have passed unread.

use std::time::{Duration, Instant};

use super::shared_state::SharedState;
use crate::gateway::{Commits, GatewayError, HEARTBEAT_TIMEOUT, Heartbeat};

/// How much later the new deadline must be to justify a transaction of nf_tables.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(1);
/// How long connections wait for the next start, if the daemon ends and leaves its table.
pub(super) const RESTART_GRACE: Duration = Duration::from_secs(2);

/// The heartbeat, with its deadline.
pub(super) struct HeartbeatRenewer {
    heartbeat: Heartbeat,
    /// The heartbeat's deadline.
    expires: Instant,
    /// When the heartbeat was last renewed.
    renewed: Instant,
}

impl HeartbeatRenewer {
    /// Takes over an earlier daemon's heartbeat, if packets `have_waited` since that daemon ended and the heartbeat has
    /// not expired. Otherwise records a downtime, and sets a new heartbeat.
    pub(super) fn start(
        commits: &Commits,
        shared: &SharedState,
        have_waited: bool,
    ) -> Result<Self, GatewayError> {
        let now = Instant::now();
        let heartbeat = Heartbeat::new(commits)?;
        let mut renewer = Self { heartbeat, expires: now + HEARTBEAT_TIMEOUT, renewed: now };
        if !have_waited || !renewer.heartbeat.renew(HEARTBEAT_TIMEOUT)? {
            shared.record_downtime();
            renewer.heartbeat.start(HEARTBEAT_TIMEOUT)?;
        }
        set_deadline(shared, now, renewer.expires);
        Ok(renewer)
    }

    /// Renews the heartbeat if all workers have made progress since the last renewal.
    pub(super) fn renew_if_due(&mut self, shared: &SharedState) -> Result<(), GatewayError> {
        let now = Instant::now();
        let expires = shared.progress.oldest_pass() + HEARTBEAT_TIMEOUT;
        let left = expires.saturating_duration_since(now);
        if left.is_zero() || expires < self.expires + RENEWAL_INTERVAL {
            return Ok(());
        }
        if !self.heartbeat.renew(left)? {
            shared.record_downtime();
            self.heartbeat.start(left)?;
            let seconds = now.saturating_duration_since(self.renewed).as_secs_f64();
            tracing::warn!(
                event = "downtime",
                seconds,
                "ftp-alg did not run for {seconds:.1} s, or its table was loaded again: after {} s, packets of control \
                 connections bypassed the queue unread. No pinhole is opened any more for connections that carried \
                 data then: their clients must log in again",
                HEARTBEAT_TIMEOUT.as_secs()
            );
        }
        (self.expires, self.renewed) = (expires, now);
        set_deadline(shared, now, expires);
        Ok(())
    }

    /// Renews the heartbeat for the last time. A daemon that starts before its deadline finds that no packet bypassed
    /// the queue.
    pub(super) fn stop(&mut self, shared: &SharedState) -> Result<(), GatewayError> {
        let now = Instant::now();
        set_deadline(shared, now, now + RESTART_GRACE);
        self.heartbeat.renew(RESTART_GRACE).map(drop)
    }
}

/// Sets the deadline for the engines, and for the fast path's program.
fn set_deadline(shared: &SharedState, now: Instant, deadline: Instant) {
    shared.progress.set_deadline(deadline);
    if let Ok(reader) = &shared.fast_path {
        reader.flows().set_heartbeat(deadline.saturating_duration_since(now));
    }
}
