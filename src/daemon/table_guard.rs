//! Loads the table again if another program removes, changes or replaces it.
//!
//! A failure never ends the daemon. It tries again at growing intervals, as long as it runs. A table of the same name
//! is most likely a copy that an operator saved and loaded again, so it is replaced. It is left alone only while
//! another daemon reads its queues, because two daemons that replace each other's table serve nobody.

use std::{
    collections::HashSet,
    sync::mpsc::Sender,
    thread,
    time::{Duration, Instant},
};

use ftp_alg_core::engine::PinholeEnds;

use super::{
    DaemonEvent, ServiceError, health::ProblemName, shard::lock, shared_state::SharedState,
};
use crate::kernel::{
    NetfilterError,
    conntrack::consumed_pinholes,
    parameters::Backend,
    table::{ChangeNotices, OpenPinhole, Table, TableCondition},
};

/// How many times in a row to load the table while other programs change nf_tables.
const IMMEDIATE_ATTEMPTS: usize = 5;
/// The first and the longest pause before the next attempt, after the table could not be loaded.
const RETRY_PAUSE: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(5)];
/// After this time without a replacement, the next one is not taken for one of a series.
const SETTLED_AFTER: Duration = Duration::from_secs(60);

/// How the table was loaded again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TableChange {
    /// It was not there, or another one: packets may have passed unread, and nothing is open in it.
    Restored,
    /// In place of an intact one, with all that was open.
    Updated,
}

/// The history of failures and replacements.
#[derive(Debug, Default)]
pub(super) struct TableGuard {
    /// Attempts that failed since the table was last intact.
    failures: u32,
    /// How many times in a row another table was replaced, each less than [`SETTLED_AFTER`] after the previous one.
    replacements: u32,
    /// When another table was last replaced.
    last_replaced: Option<Instant>,
    /// When to try again, after a failure.
    next_attempt: Option<Instant>,
}

impl TableGuard {
    /// Checks the table, and loads it again if necessary. Returns what was done.
    pub(super) fn check_table(
        &mut self,
        now: Instant,
        table: &mut Table,
        shared: &SharedState,
    ) -> Option<TableChange> {
        if self.next_attempt.is_some_and(|next| now < next) {
            return None;
        }
        self.next_attempt = None;
        self.check_now(now, table, shared).unwrap_or_else(|error| {
            self.note_failure(now, &error, shared);
            None
        })
    }

    fn check_now(
        &mut self,
        now: Instant,
        table: &mut Table,
        shared: &SharedState,
    ) -> Result<Option<TableChange>, NetfilterError> {
        let what = match table.condition()? {
            TableCondition::Intact => {
                let change =
                    if table.is_outdated() { Some(update_table(table, shared)?) } else { None };
                self.note_intact(shared);
                return Ok(change);
            }
            TableCondition::Gone => "removed",
            TableCondition::Changed => "changed",
            TableCondition::Replaced if self.leaves_other_table(now, table)? => return Ok(None),
            TableCondition::Replaced => "replaced",
        };
        // The log comes second, because adjusted connections need the table within milliseconds.
        let is_first = self.failures == 0;
        let restored = load_again(table, Table::restore);
        if is_first {
            let lasted = now.elapsed().as_secs_f64() * 1000.0;
            let text = |outcome: &str| {
                format!(
                    "table inet ftp_alg was {what} by another program: {outcome}; packets that passed \
                     meanwhile were not inspected"
                )
            };
            match &restored {
                // It is no error: a firewall's reload may remove the table each time.
                Ok(()) => shared.log.log_repair(
                    now,
                    &text(&format!("it is loaded again, {lasted:.1} ms after ftp-alg noticed")),
                ),
                Err(_) => shared.report_error(&text("loading it failed")),
            }
        }
        restored?;
        self.note_intact(shared);
        Ok(Some(TableChange::Restored))
    }

    /// Whether to leave another table for now, because its program replaces ours each time. An error if it belongs to
    /// another daemon.
    fn leaves_other_table(&mut self, now: Instant, table: &Table) -> Result<bool, NetfilterError> {
        if let Some(error) = Table::other_daemon(table.parameters())? {
            return Err(error);
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
        Ok(waits)
    }

    fn note_intact(&mut self, shared: &SharedState) {
        self.failures = 0;
        shared.health.set(ProblemName::Table, None);
    }

    /// Logs the first failure, and then each hundredth.
    fn note_failure(&mut self, now: Instant, error: &NetfilterError, shared: &SharedState) {
        let is_logged = self.failures == 0 || self.failures.is_multiple_of(100);
        self.next_attempt = Some(now + retry_pause(self.failures));
        self.failures = self.failures.saturating_add(1);
        shared.health.set(ProblemName::Table, Some(error.to_string()));
        if is_logged {
            shared.report_error(&format!("{error}; ftp-alg tries again by itself"));
        }
    }
}

/// Loads the table. Repeats this at once if other programs change nf_tables meanwhile.
fn load_again(
    table: &mut Table,
    load: fn(&mut Table) -> Result<(), NetfilterError>,
) -> Result<(), NetfilterError> {
    for _ in 1..IMMEDIATE_ATTEMPTS {
        match load(table) {
            Err(NetfilterError::ConcurrentChange { .. }) => thread::sleep(Duration::from_millis(1)),
            other => return other,
        }
    }
    load(table)
}

/// Loads the table with what was learned of the operator's rules since, in place of itself and with what is open. Closes
/// what was consumed meanwhile, because the new one may have that open nevertheless.
fn update_table(table: &mut Table, shared: &SharedState) -> Result<TableChange, NetfilterError> {
    let before = consumed_pinholes(table.parameters())?;
    load_again(table, Table::update)?;
    let consumed = consumed_pinholes(table.parameters())?;
    if table.parameters().backend == Backend::Nftables {
        let consumed = consumed.difference(&before).copied();
        shared.close_pinholes_of_table(&mut lock(&shared.kernel), consumed);
    }
    log_event!(
        TABLE_UPDATED,
        "the operator's rules demand more of table inet ftp_alg than it had: it was loaded again"
    );
    let is_lossless = table.has_retained_elements();
    Ok(if is_lossless { TableChange::Updated } else { TableChange::Restored })
}

/// The pause after this many failures.
fn retry_pause(failures: u32) -> Duration {
    let [first, most] = RETRY_PAUSE;
    first.saturating_mul(1 << failures.min(16)).min(most)
}

/// Opens the pinholes again that the old table had, except those that were consumed.
pub(super) fn reopen_pinholes(table: &Table, shared: &SharedState) {
    let mut kernel = lock(&shared.kernel);
    let Some(open) = shared.report(kernel.list_open()) else { return };
    let open: HashSet<_> = open.iter().map(OpenPinhole::key).collect();
    let is_missing = |pinhole: &PinholeEnds| !open.contains(&pinhole.key());
    shared.report(shared.reopen_unused_pinholes(table.parameters(), &mut kernel, is_missing));
    shared.reopen_ranges(&mut kernel);
}

/// Sends an event whenever another program changes nf_tables, until the process ends.
pub(super) fn watch_nf_tables(events: Sender<DaemonEvent>) -> Result<(), ServiceError> {
    let mut notices = ChangeNotices::open()?;
    let watch = move || {
        while notices.wait().is_ok() && events.send(DaemonEvent::NfTablesChanged).is_ok() {}
    };
    thread::Builder::new().name("notices".into()).spawn(watch)?;
    Ok(())
}
