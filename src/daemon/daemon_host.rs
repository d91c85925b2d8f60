//! The daemon as an engine's host: its journal, its queue, and who wants to hear of events.

use std::time::Instant;

use ftp_alg_core::engine::{Batch, DropReason, Event, Host, KernelError, Released, Verdict};

use super::{shared_state::SharedState, state_dir::Journal};
use crate::kernel::{
    RuleParameters,
    queue::{QueueVerdict, Verdicts},
};

/// The host for one batch.
pub(super) struct DaemonHost<'a> {
    pub(super) shared: &'a SharedState,
    pub(super) journal: &'a mut Journal,
    /// The queue with the packets of the batch, if it has any.
    pub(super) queue: Option<OwnQueue<'a>>,
    /// How many packets were dropped because other packets may have passed unread.
    pub(super) stale_drops: u64,
}

/// The queue of a worker.
pub(super) struct OwnQueue<'a> {
    pub(super) verdicts: Verdicts<'a>,
    pub(super) parameters: &'a RuleParameters,
    /// Whether to check, before the verdicts are given, whether the heartbeat lapsed.
    pub(super) checks_downtime: bool,
}

impl Host for DaemonHost<'_> {
    fn had_downtime(&mut self) -> bool {
        self.queue.as_ref().is_some_and(|queue| queue.checks_downtime)
            && self.shared.progress.has_lapsed(Instant::now())
    }

    /// If a journal cannot be written, packets are forwarded all the same. FTP works, but a restart loses sessions.
    ///
    /// Events are stored before anybody learns what they tell: a kill leaves none uncounted, and the peer that gets the
    /// packet causes none that is stored before them.
    fn record(&mut self, batch: &Batch) {
        self.shared.store_events(batch.events(), batch.ended_transfers());
        if let Err(error) = self.journal.write(batch.records()) {
            self.shared.report_error(&self.journal.describe_write_failure(&error));
        }
    }

    fn give(&mut self, batch: &Batch) {
        let Some(OwnQueue { verdicts, parameters, .. }) = &mut self.queue else { return };
        for Released { token, verdict, .. } in &batch.verdicts {
            let decision = match verdict {
                Verdict::Accept => QueueVerdict::Accept,
                Verdict::Drop(reason) => {
                    self.stale_drops += u64::from(*reason == DropReason::Stale);
                    QueueVerdict::Drop
                }
                Verdict::Replace(_) => {
                    QueueVerdict::Replace(verdict.replacement(&batch.replacements))
                }
            };
            let mark = parameters.clear_own_mark_bits(token.mark);
            self.shared.report(verdicts.verdict(token.id, decision, mark));
            if verdicts.is_full() {
                self.shared.report(verdicts.flush());
            }
        }
        self.shared.report(verdicts.flush());
    }

    fn report_error(&mut self, error: &KernelError) {
        self.shared.log.log_error(Instant::now(), error);
    }

    fn store_late_events(&mut self, events: &[Event]) {
        self.shared.store_events(events, 0);
    }
}
