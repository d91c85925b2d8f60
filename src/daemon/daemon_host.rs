//! The daemon as the host of its engines: how a batch is carried out with a shard's journal and queue, and how other threads
//! have engines do something.

use std::{
    sync::{Mutex, atomic::Ordering},
    time::Instant,
};

use ftp_alg_core::engine::{
    Batch, DropReason, Engine, Event, Host, KernelError, Released, Verdict,
};

use super::{
    records::{Need, Records as _},
    shard::{Shard, lock},
    shared_state::SharedState,
    state_dir::Journal,
    store::StoreWriter,
};
use crate::kernel::{
    LinuxKernel, RuleParameters,
    queue::{QueueVerdict, Verdicts},
};

/// The host for one batch.
struct DaemonHost<'a> {
    shared: &'a SharedState,
    journal: &'a mut Journal,
    store: Option<&'a mut StoreWriter>,
    /// The queue with the packets of the batch, if it has any.
    queue: Option<WorkerQueue<'a>>,
    /// How many packets were dropped because other packets may have passed unread.
    stale_drops: u64,
}

/// The queue of a worker.
pub(super) struct WorkerQueue<'a> {
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
    /// Events are stored before a packet shows them to a peer. So a kill leaves no event uncounted, and no later event
    /// of that peer is stored before them.
    fn record(&mut self, batch: &Batch) {
        self.shared.store_events(batch.events());
        let need = match self.queue {
            Some(_) if !batch.verdicts.is_empty() => Need::Confirmed,
            _ => Need::Written,
        };
        self.shared.report(self.journal.write(batch, need));
        if let Some(store) = &mut self.store {
            self.shared.report(store.write(batch, need));
        }
    }

    fn give(&mut self, batch: &Batch) {
        let Some(WorkerQueue { verdicts, parameters, .. }) = &mut self.queue else { return };
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
        self.shared.store_events(events);
    }
}

impl Shard {
    /// Carries out the engine's decisions, and writes a checkpoint if one is due. `queue` has the packets of the batch,
    /// if there are any. Returns how many packets were dropped because other packets may have passed unread.
    pub(super) fn finish(
        &mut self,
        now: Instant,
        shared: &SharedState,
        kernel: &mut LinuxKernel,
        queue: Option<WorkerQueue<'_>>,
    ) -> u64 {
        let Self { engine, journal, store } = self;
        let store = store.as_mut();
        let mut host = DaemonHost { shared, journal, store, queue, stale_drops: 0 };
        engine.finish(now, kernel, &mut host);
        let stale_drops = host.stale_drops;
        if journal.needs_checkpoint() {
            shared.report(journal.maintain(engine));
        }
        stale_drops
    }
}

impl SharedState {
    /// Passes the lines that the fast path has inspected by now to the engine of their sessions. Called before the
    /// engine handles a packet.
    pub(super) fn read_lines_of(&self, engine: &mut Engine, kernel: &mut LinuxKernel) {
        if let Ok(reader) = &self.fast_path {
            reader.fetch_lines();
            reader.feed_engine(engine, kernel);
        }
    }

    /// Moves the restored sessions whose packets a worker has got to the worker's shard. Writes the records at once,
    /// the worker's first, so that a crash in between loses none: a start prefers the worker's journal. At
    /// `max-sessions` restored sessions make room for new ones.
    pub(super) fn adopt<'p>(
        &self,
        shard: &mut Shard,
        packets: impl Iterator<Item = &'p [u8]>,
        now: Instant,
    ) {
        let mut is_unknown = |packet: &&[u8]| !shard.engine.sessions.knows(packet);
        let unknown: Vec<_> = packets.filter(|packet| is_unknown(packet)).collect();
        if unknown.is_empty() {
            return;
        }
        let mut guard = lock(self.restored());
        let restored = &mut *guard;
        let mut has_adopted = false;
        for packet in &unknown {
            let from = &mut restored.engine.sessions;
            has_adopted |= shard.engine.sessions.adopt(from, packet);
        }
        if has_adopted {
            for shard in [shard, &mut *restored] {
                self.report(shard.write_records());
            }
        }
        // The next look at the restored sessions carries out the ends of evicted ones.
        restored.engine.sessions.make_room_for(now, unknown.into_iter());
        self.restored_remaining.store(restored.engine.sessions.count(), Ordering::Relaxed);
    }

    /// Calls `work` with the engine of each shard, one after another, and carries out the engine's decisions.
    pub(super) fn finish_each(
        &self,
        kernel: &mut LinuxKernel,
        mut work: impl FnMut(&mut Engine, &mut LinuxKernel),
    ) {
        for shard in &self.shards {
            self.finish_shard(shard, kernel, &mut work);
        }
    }

    /// Calls `work` with each engine, one after another. `work` must leave nothing to carry out.
    pub(super) fn with_each(&self, mut work: impl FnMut(&mut Engine)) {
        self.shards.iter().for_each(|shard| work(&mut lock(shard).engine));
    }

    /// As [`finish_each`](Self::finish_each), with one shard.
    pub(super) fn finish_shard(
        &self,
        shard: &Mutex<Shard>,
        kernel: &mut LinuxKernel,
        work: impl FnOnce(&mut Engine, &mut LinuxKernel),
    ) {
        let now = Instant::now();
        let mut shard = lock(shard);
        work(&mut shard.engine, kernel);
        shard.finish(now, self, kernel, None);
        let (events, omitted) = shard.engine.take_events(Vec::new());
        drop(shard);
        self.report_events(now, &events, omitted);
    }

    /// Closes the pinholes that the policy forbids, after it was set, or after sessions were restored.
    pub(super) fn close_forbidden_pinholes(&self, kernel: &mut LinuxKernel) {
        self.finish_each(kernel, |engine, _| engine.sessions.close_forbidden_pinholes());
    }
}
