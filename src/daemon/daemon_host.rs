//! The daemon as the engines' host: [`carry_out`] uses it to reach the shards, the kernel, the journals and the queues.

use std::time::Instant;

use ftp_alg_core::engine::{
    DropReason, Effects, Engine, Event, Host, KernelError, OmittedEvents, Released, Verdict,
    carry_out,
};

use super::{
    forwarded_verdicts::{ForwardedVerdict, give_verdict},
    shard::lock,
    shared_state::SharedState,
};
use crate::kernel::{LinuxKernel, RuleParameters, queue::Verdicts};

/// The host for one thread and one batch.
pub(super) struct DaemonHost<'a> {
    pub(super) shared: &'a SharedState,
    pub(super) kernel: &'a mut LinuxKernel,
    /// The queue that the thread reads, if it reads one.
    pub(super) own_queue: Option<OwnQueue<'a>>,
    /// When the decision about the batch began.
    pub(super) now: Instant,
}

/// The queue with the packets of the batch.
pub(super) struct OwnQueue<'a> {
    /// The position among the daemon's queues.
    pub(super) index: u16,
    pub(super) verdicts: Verdicts<'a>,
    pub(super) parameters: &'a RuleParameters,
    /// Whether to check, before the verdicts are given, whether the heartbeat lapsed.
    pub(super) checks_downtime: bool,
    /// How many packets were dropped because other packets may have passed unread.
    pub(super) stale_drops: u64,
}

/// Closes the pinholes that the policy forbids, after it was set, or after sessions were restored.
pub(super) fn close_forbidden_pinholes(shared: &SharedState, kernel: &mut LinuxKernel) {
    carry_out_effects(shared, kernel, |_, all| {
        for (shard, effects) in shared.shards.iter().zip(all) {
            lock(&shard.engine).sessions.close_forbidden_pinholes(effects);
        }
    });
}

/// Runs `work`, and carries out its effects. For work that concerns no packet of a queue.
pub(super) fn carry_out_effects(
    shared: &SharedState,
    kernel: &mut LinuxKernel,
    work: impl FnOnce(Instant, &mut [Effects]),
) {
    let (now, mut effects) = (Instant::now(), shared.new_effects());
    work(now, &mut effects);
    carry_out(&mut DaemonHost { shared, kernel, own_queue: None, now }, now, &mut effects);
}

impl Host for DaemonHost<'_> {
    type Kernel = LinuxKernel;

    fn kernel(&mut self) -> &mut LinuxKernel {
        self.kernel
    }

    fn with_engine<R>(&mut self, shard: usize, work: impl FnOnce(&mut Engine) -> R) -> R {
        work(&mut lock(&self.shared.shards[shard].engine))
    }

    fn had_downtime(&mut self) -> bool {
        self.own_queue.as_ref().is_some_and(|own| own.checks_downtime)
            && self.shared.progress.has_lapsed(Instant::now())
    }

    /// If a journal cannot be written, packets are forwarded all the same. FTP works, but a restart loses sessions.
    ///
    /// Events are stored before anybody learns what they tell: a kill leaves none uncounted, and the peer that gets the
    /// packet causes none that is stored before them.
    fn conclude(&mut self, effects: &mut Effects) {
        self.shared.store_events(effects.events(), effects.ended_transfers());
        let shard = &self.shared.shards[effects.shard];
        if let Err(error) = shard.conclude(effects) {
            self.shared.report_error(&shard.describe_write_failure(&error));
        }
    }

    fn give_verdicts(&mut self, all: &[Effects]) {
        let Self { shared, own_queue: own, .. } = self;
        for effects in all {
            for released in &effects.verdicts {
                match own {
                    Some(own) if own.index == released.token.queue => {
                        own.give(released, &effects.replacements, shared);
                    }
                    _ => shared.verdict_senders[usize::from(released.token.queue)]
                        .send(ForwardedVerdict::from_released(released, &effects.replacements)),
                }
            }
        }
        if let Some(own) = own {
            shared.report(own.verdicts.flush());
        }
    }

    fn report_error(&mut self, _shard: usize, error: &KernelError) {
        self.shared.report_error(error);
    }

    fn report_events(&mut self, events: &mut Vec<Event>, concluded: usize, omitted: OmittedEvents) {
        self.shared.store_events(events.get(concluded..).unwrap_or_default(), 0);
        self.shared.report_events(self.now, events, omitted);
    }
}

impl<'a> OwnQueue<'a> {
    /// The worker's queue with this index, with no packet dropped yet.
    pub(super) fn new(
        index: usize,
        verdicts: Verdicts<'a>,
        parameters: &'a RuleParameters,
    ) -> Self {
        let index = index as u16; // as many as there are queues
        Self { index, verdicts, parameters, checks_downtime: false, stale_drops: 0 }
    }

    fn give(&mut self, released: &Released, replacements: &[u8], shared: &SharedState) {
        let Released { token, verdict, .. } = released;
        self.stale_drops += u64::from(*verdict == Verdict::Drop(DropReason::Stale));
        let (verdicts, replacement) = (&mut self.verdicts, verdict.replacement(replacements));
        give_verdict(verdicts, self.parameters, *token, verdict, replacement, |error| {
            shared.report_error(error);
        });
    }
}
