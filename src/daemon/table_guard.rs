//! Keeps our table in the kernel, whatever other programs do to the rules.
//!
//! Nothing of that ends the daemon. What cannot be put right at once is tried again, at growing intervals, for as long
//! as the daemon runs. A table in the place of ours is most likely a copy that an operator saved and loaded again, and is
//! replaced; only while another daemon reads that table's queues is it left alone, as two that take turns would serve
//! nobody.

use std::{
    sync::mpsc::Sender,
    thread,
    time::{Duration, Instant},
};

use ftp_alg_core::engine::Pinhole;

use super::{DaemonEvent, ServiceError, shard::lock, shared_state::SharedState};
use crate::gateway::{Backend, Condition, GatewayError, Notices, Table, used_pinholes};

/// How often a table is tried at once that another program is in the way of.
const IMMEDIATE_ATTEMPTS: usize = 5;
/// Until a table that could not be loaded is tried again: at first, and at most.
const RETRY_PAUSE: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(5)];
/// A table that held this long is not one that another program keeps on replacing.
const SETTLED_AFTER: Duration = Duration::from_secs(60);

/// What has become of the attempts to keep the table.
#[derive(Debug, Default)]
pub(super) struct TableGuard {
    /// Attempts that failed since the table was last intact.
    failures: u32,
    /// Times that another table was replaced, each less than [`SETTLED`] after the one before.
    replacements: u32,
    /// When that was last.
    last_replaced: Option<Instant>,
    /// Not to be tried before.
    next_attempt: Option<Instant>,
}

impl TableGuard {
    /// Looks at the table, and loads it again if it has to be. Says whether it has.
    pub(super) fn check_table(
        &mut self,
        now: Instant,
        table: &mut Table,
        shared: &SharedState,
    ) -> bool {
        if self.next_attempt.is_some_and(|next| now < next) {
            return false;
        }
        self.next_attempt = None;
        let what = match table.condition() {
            Ok(Condition::Intact) => {
                self.record_intact(shared);
                return false;
            }
            Ok(Condition::Gone) => "removed",
            Ok(Condition::Changed) => "changed",
            Ok(Condition::Replaced) => {
                if self.leaves_other_table(now, table, shared) {
                    return false;
                }
                "replaced"
            }
            Err(error) => {
                self.record_failure(now, &error, shared);
                return false;
            }
        };
        // Said when it is done: each millisecond counts.
        let is_first = self.failures == 0;
        let restored = restore_table(table);
        if is_first {
            let lasted = now.elapsed().as_secs_f64() * 1000.0;
            let said = |outcome: &str| {
                format!(
                    "table inet ftp_alg was {what} by another program: {outcome}; what passed \
                     meanwhile was not seen"
                )
            };
            match &restored {
                Ok(()) => shared.report_repair(&said(&format!(
                    "it is loaded again, {lasted:.1} ms after that was noticed"
                ))),
                Err(_) => shared.report_error(&said("it is to be loaded again")),
            }
        }
        match restored {
            Ok(()) => {
                self.record_intact(shared);
                true
            }
            Err(error) => {
                self.record_failure(now, &error, shared);
                false
            }
        }
    }

    /// Whether another table is to stay for now: another daemon's, or one of a program that puts it there
    /// again and again.
    fn leaves_other_table(&mut self, now: Instant, table: &Table, shared: &SharedState) -> bool {
        match table.rival_now() {
            Ok(None) => {}
            Ok(Some(error)) | Err(error) => {
                self.record_failure(now, &error, shared);
                return true;
            }
        }
        let since = self.last_replaced.map(|at| now.saturating_duration_since(at));
        if since.is_none_or(|since| since > SETTLED_AFTER) {
            self.replacements = 0;
        }
        let waits = self.replacements > 0
            && since.is_some_and(|since| since < retry_pause(self.replacements));
        if !waits {
            self.replacements += 1;
            self.last_replaced = Some(now);
        }
        waits
    }

    fn record_intact(&mut self, shared: &SharedState) {
        if self.failures > 0 {
            tracing::info!(
                "table inet ftp_alg is as it should be, after {} attempts",
                self.failures
            );
        }
        self.failures = 0;
        shared.health.set_table(None);
    }

    /// The first failure is said, and each that comes after ten times as many.
    fn record_failure(&mut self, now: Instant, error: &GatewayError, shared: &SharedState) {
        let said = self.failures == 0 || self.failures.is_multiple_of(100);
        self.next_attempt = Some(now + retry_pause(self.failures));
        self.failures = self.failures.saturating_add(1);
        shared.health.set_table(Some(error.to_string()));
        if said {
            shared.report_error(&format!("{error}; ftp-alg goes on, and tries again"));
        }
    }
}

/// Loads it again; at once again while other programs are in the way.
fn restore_table(table: &mut Table) -> Result<(), GatewayError> {
    for _ in 1..IMMEDIATE_ATTEMPTS {
        match table.restore() {
            Err(GatewayError::Disturbed { .. }) => thread::sleep(Duration::from_millis(1)),
            other => return other,
        }
    }
    table.restore()
}

/// How long to wait after this many failures.
fn retry_pause(failures: u32) -> Duration {
    let [first, most] = RETRY_PAUSE;
    first.saturating_mul(1 << failures.min(16)).min(most)
}

/// Opens the pinholes again that went with the table, but for those that were used.
pub(super) fn reopen_pinholes(table: &Table, shared: &SharedState) {
    if table.parameters().backend() != Backend::Nftables {
        return; // expectations are in no table
    }
    let mut kernel = lock(&shared.kernel);
    let known = used_pinholes(table.parameters())
        .and_then(|used| kernel.list_open().map(|open| (used, open)));
    let (used, open) = match known {
        Ok(known) => known,
        Err(error) => return shared.report_error(&error),
    };
    let is_missing = |&Pinhole { initiator, arrival, .. }: &Pinhole| {
        !used.contains(&(initiator, arrival))
            && open.iter().all(|open| (open.initiator, open.arrival) != (initiator, arrival))
    };
    shared.reopen_pinholes(&mut kernel, is_missing);
}

/// Has the table looked at as soon as another program changes nf_tables, for as long as the process lives.
pub(super) fn watch_nf_tables(events: Sender<DaemonEvent>) -> Result<(), ServiceError> {
    let mut notices = Notices::open()?;
    let watch = move || {
        while notices.wait().is_ok() && events.send(DaemonEvent::NfTablesChanged).is_ok() {}
    };
    thread::Builder::new().name("notices".into()).spawn(watch)?;
    Ok(())
}
