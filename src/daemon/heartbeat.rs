//! Keeps the sign of life in the kernel for as long as every worker makes progress, and tells the engines when it was
//! missing: what passed meanwhile may have been anything.

use std::time::{Duration, Instant};

use super::shared_state::SharedState;
use crate::gateway::{Commits, DEADLINE, GatewayError, Heartbeat};

/// So much later the deadline is to be for a renewal to be worth a transaction of nf_tables.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(1);
/// How long connections wait for a daemon that was told to end, and leaves its table, to be started again.
pub(super) const RESTART_GRACE: Duration = Duration::from_secs(2);

/// The sign of life.
pub(super) struct HeartbeatRenewer {
    heartbeat: Heartbeat,
    /// Until when it lasts, and since when it is given without a break.
    expires: Instant,
    renewed: Instant,
}

impl HeartbeatRenewer {
    /// Takes over the sign of life that an earlier daemon left, if packets `have_waited` as long as it was there, and it has
    /// lasted until now. Otherwise engines are told, and it begins.
    pub(super) fn start(
        commits: &Commits,
        shared: &SharedState,
        have_waited: bool,
    ) -> Result<Self, GatewayError> {
        let now = Instant::now();
        let heartbeat = Heartbeat::new(commits)?;
        let mut heart = Self { heartbeat, expires: now + DEADLINE, renewed: now };
        if !have_waited || !heart.heartbeat.renew(DEADLINE)? {
            shared.record_downtime();
            heart.heartbeat.begin(DEADLINE)?;
        }
        shared.progress.set_deadline(heart.expires);
        Ok(heart)
    }

    /// Renews it if the workers have made progress since it was renewed the last time.
    pub(super) fn renew_if_due(&mut self, shared: &SharedState) -> Result<(), GatewayError> {
        let now = Instant::now();
        let expires = shared.progress.oldest_pass() + DEADLINE;
        let left = expires.saturating_duration_since(now);
        if left.is_zero() || expires < self.expires + RENEWAL_INTERVAL {
            return Ok(());
        }
        if !self.heartbeat.renew(left)? {
            shared.record_downtime();
            self.heartbeat.begin(left)?;
            tracing::warn!(
                "ftp-alg did not run for {:.1} s, or its table was loaded anew: packets of control connections passed by \
                 unread after {} s; nothing more is opened on those that said something then",
                now.saturating_duration_since(self.renewed).as_secs_f64(),
                DEADLINE.as_secs()
            );
        }
        (self.expires, self.renewed) = (expires, now);
        shared.progress.set_deadline(expires);
        Ok(())
    }

    /// The last one: a daemon that is started again within that time finds that nothing has passed by.
    pub(super) fn stop(&mut self, shared: &SharedState) -> Result<(), GatewayError> {
        shared.progress.set_deadline(Instant::now() + RESTART_GRACE);
        self.heartbeat.renew(RESTART_GRACE).map(drop)
    }
}
