//! The worker: a thread that reads the packets of one netfilter queue and gives their verdicts.
//!
//! Invariants:
//! - Before its engine handles a packet, the fast path inspects no more lines of that connection, and the engine has
//!   read those that it did inspect. So it knows every earlier line, and none passes meanwhile.
//! - After the heartbeat has lapsed, the worker handles the waiting packets before it records progress. The
//!   heartbeat is not renewed before that, so no other packet is queued meanwhile.

use std::{
    mem::take,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use ftp_alg_core::engine::{Event, PacketMeta, QueuedPacket, Token};

use super::{
    ServiceError,
    counted::counted,
    daemon_host::WorkerQueue,
    pair::Pair,
    records::Records as _,
    shard::{Shard, lock},
    shared_state::SharedState,
};
use crate::kernel::{
    LinuxKernel, NetfilterError, RuleParameters,
    queue::{MAXIMUM_WAITING, Queue},
};

/// Index of the interface `lo`. What leaves by it stays on this machine.
const LOOPBACK: u32 = 1;
/// How long a worker waits for a packet, at most, before it expires sessions and pinholes.
const TICK: Duration = Duration::from_secs(1);
/// A longer wait is a multiple of this, so that it is seldom set again.
const WAIT_STEP: Duration = Duration::from_millis(16);
/// The shortest wait, if a packet in a reorder queue is about to reach its time limit.
const MIN_WAIT: Duration = Duration::from_millis(1);

/// How long packets wait for a standby to become active. Their senders have retransmitted older ones.
const MAX_EARLY: Duration = Duration::from_secs(10);

/// The reader of one queue, with its shard.
pub(super) struct Worker {
    pub(super) queue: Queue,
    /// The position of its queue, and of its shard.
    pub(super) index: usize,
    pub(super) kernel: LinuxKernel,
    pub(super) parameters: RuleParameters,
    pub(super) shared: Arc<SharedState>,
    /// When the time of the first packet in the reorder queue is over.
    pub(super) reorder_deadline: Option<Instant>,
    /// Memory for the events of the next batch.
    pub(super) events: Vec<Event>,
}

impl Worker {
    /// Works until `end` is set. The thread that sets it also wakes this one.
    pub(super) fn run(mut self, end: &AtomicBool) -> Result<(), ServiceError> {
        let (mut timeout, mut has_lapsed) = (TICK, false);
        self.queue.set_receive_timeout(timeout)?;
        let mut next_tick = Instant::now();
        let mut next_expiry = next_tick;
        while !end.load(Ordering::Acquire) {
            if let Some(pair) = self.shared.pair.clone().filter(|pair| pair.is_standby()) {
                self.stand_by(&pair, end);
                continue;
            }
            let mut packets = self.queue.wait()?;
            let mut now = Instant::now();
            let had_lapsed = has_lapsed;
            has_lapsed = self.shared.progress.has_lapsed(now);
            if has_lapsed {
                if !had_lapsed {
                    if let Some(mut fast_path) = self.shared.fast_path_control(&mut self.kernel) {
                        fast_path.take_back(None);
                    }
                    self.shared.note_downtime();
                }
                self.clear_after_downtime()?;
                (packets, now) = (0, Instant::now());
            }
            self.shared.progress.note_pass(self.index, now);
            if packets > 0 {
                self.handle_batch(now, false);
                if let Some(times) = &self.shared.decision_times {
                    times.observe(now.elapsed());
                }
            }
            let due = self.reorder_deadline;
            if now >= next_expiry || due.is_some_and(|due| now >= due) {
                next_expiry = now + self.expire(now);
            }
            if now >= next_tick {
                self.tick();
                next_tick = now + TICK;
            }
            let due = self.reorder_deadline.map_or(next_expiry, |due| due.min(next_expiry));
            let wait = wait_until(due, now);
            if wait != timeout {
                timeout = wait;
                self.queue.set_receive_timeout(timeout)?;
            }
        }
        Ok(())
    }

    /// Leaves the sessions to the other gateway, and reads no packets until this one is active.
    #[cold]
    fn stand_by(&mut self, pair: &Pair, end: &AtomicBool) {
        let Self { queue, index, kernel, parameters, shared, .. } = self;
        let now = Instant::now();
        let mut shard = lock(shared.shard_of(*index));
        shard.leave_sessions(now, kernel);
        let verdicts = queue.verdicts();
        let waiting = WorkerQueue { verdicts, parameters, checks_downtime: false };
        shard.finish(now, shared, kernel, Some(waiting));
        shard.engine.take_events(Vec::new());
        drop(shard);
        let mut waiting_since = None;
        pair.park(end, || {
            let now = Instant::now();
            shared.progress.note_pass(*index, now);
            let are_waiting = queue.counts().waiting.is_some_and(|packets| packets > 0);
            let since = waiting_since.filter(|_| are_waiting).unwrap_or(now);
            waiting_since = Some(since);
            if now.saturating_duration_since(since) > MAX_EARLY {
                shared.report(queue.drop_waiting());
            }
        });
        self.reorder_deadline = None;
    }

    /// Handles the packets that were read. If they are `late`, other packets of their connections may have passed
    /// unread. Returns how many packets were dropped as stale because of that.
    fn handle_batch(&mut self, now: Instant, late: bool) -> u64 {
        let Self { queue, index, kernel, parameters, shared, reorder_deadline, events } = self;
        let (packets, verdicts) = queue.batch();
        for packet in packets.clone() {
            if parameters.overflowed_closing_set(packet.mark) {
                shared.closing_set_overflows.fetch_add(1, Ordering::Relaxed);
            }
        }
        let arrivals = packets.map(|packet| QueuedPacket {
            token: Token { id: packet.id, mark: packet.mark },
            bytes: packet.payload,
            meta: PacketMeta {
                offload: packet.offload,
                may_wait: true,
                from: parameters.sender(packet.mark),
                queues_all: parameters.queues_all(packet.mark),
                is_late: late,
                input: packet.indev,
                output: if packet.outdev == LOOPBACK { 0 } else { packet.outdev },
                mark: packet.mark & !parameters.mask(),
            },
        });
        let mut guard = lock(shared.shard_of(*index));
        let shard = &mut *guard;
        // Before any lines are read: adoption writes records, and the events of lines must be stored before their records.
        if shared.restored_remaining.load(Ordering::Relaxed) > 0 {
            shared.adopt(shard, arrivals.clone().map(|packet| packet.bytes), now);
        }
        shard.engine.stop_fast_path(arrivals.clone(), kernel);
        shared.read_lines_of(&mut shard.engine, kernel);
        shard.engine.take(now, arrivals, kernel);
        let queue = WorkerQueue { verdicts, parameters, checks_downtime: !late };
        let stale_drops = shard.finish(now, shared, kernel, Some(queue));
        *reorder_deadline = shard.engine.reorder_deadline();
        let (found, omitted) = shard.engine.take_events(take(events));
        drop(guard);
        shared.report_events(now, &found, omitted);
        *events = found;
        stale_drops
    }

    /// Decides about the packets that waited while the heartbeat lapsed. Other packets of their connections may have
    /// bypassed the queue meanwhile, except on adjusted connections, whose packets never bypass it. The engine accepts
    /// packets without payload, and a client's data waits for its server's. It drops all other data, and their senders
    /// retransmit what is missing. The heartbeat is not renewed before this worker records progress, and without it no
    /// other packet is queued, so there are at most as many packets as the queue has room for.
    #[cold]
    fn clear_after_downtime(&mut self) -> Result<(), NetfilterError> {
        let mut dropped = 0;
        handle_each_batch(
            self,
            MAXIMUM_WAITING as usize,
            |worker| dropped += worker.handle_batch(Instant::now(), true),
            |worker| worker.queue.receive(),
        )?;
        if dropped > 0 {
            let number = self.queue.number();
            log_event!(
                STALE_DROPPED,
                queue = number,
                packets = dropped,
                "queue {number}: dropped {} that had waited too long; the senders retransmit",
                counted(dropped, "packet")
            );
        }
        Ok(())
    }

    /// Expires sessions and pinholes, and handles packets whose time in the reorder queue is over. Returns when to do
    /// that again.
    fn expire(&mut self, now: Instant) -> Duration {
        let Self { queue, index, kernel, parameters, shared, reorder_deadline, events } = self;
        let mut guard = lock(shared.shard_of(*index));
        let shard = &mut *guard;
        shared.read_lines_of(&mut shard.engine, kernel);
        shard.engine.expire(now, kernel);
        let verdicts = queue.verdicts();
        let queue = WorkerQueue { verdicts, parameters, checks_downtime: false };
        shard.finish(now, shared, kernel, Some(queue));
        *reorder_deadline = shard.engine.reorder_deadline();
        let interval = shard.engine.sessions.expiry_interval();
        let (found, omitted) = shard.engine.take_events(take(events));
        drop(guard);
        shared.report_events(now, &found, omitted);
        *events = found;
        if *index == 0 {
            shared.finish_shard(shared.restored(), kernel, |engine, kernel| {
                engine.expire(now, kernel);
            });
        }
        interval.min(TICK)
    }

    fn maintain_records(&self, Shard { engine, journal, store }: &mut Shard) {
        if let Some(store) = store {
            self.shared.report(store.maintain(engine));
        }
        let was_written = journal.is_writable();
        // Of a series of failures the first one is in the log.
        if let Err(error) = journal.maintain(engine)
            && was_written
        {
            self.shared.report_error(&error);
        }
    }

    /// Does the work of each second: the journal, and the counts for the log.
    fn tick(&mut self) {
        self.maintain_records(&mut lock(self.shared.shard_of(self.index)));
        if self.index == 0 {
            self.maintain_records(&mut lock(self.shared.restored()));
            self.shared.log.log_skipped();
        }
        let (number, counts) = (self.queue.number(), self.queue.counts());
        let before = std::mem::replace(&mut lock(&self.shared.queue_counts)[self.index], counts);
        let more = counts.overruns.saturating_sub(before.overruns);
        if more > 0 {
            log_event!(
                QUEUE_FULL,
                queue = number,
                packets = more,
                "queue {number} was full: the kernel dropped {}, which the senders retransmit. If this repeats, raise [queue] \
                 workers",
                counted(more, "packet")
            );
        }
    }
}

/// Decides about the batch that was read, and about further batches that `receive` reads, until there is none or
/// `limit` packets were read. No batch is read after that, because the next read would discard it without verdicts.
fn handle_each_batch<R, E>(
    reader: &mut R,
    limit: usize,
    mut handle: impl FnMut(&mut R),
    mut receive: impl FnMut(&mut R) -> Result<usize, E>,
) -> Result<(), E> {
    let mut read = 0;
    loop {
        handle(reader);
        if read >= limit {
            return Ok(());
        }
        match receive(reader)? {
            0 => return Ok(()),
            packets => read += packets,
        }
    }
}

/// How long to wait for a packet, if something is due at `due`. A long wait ends early, and a short one follows.
fn wait_until(due: Instant, now: Instant) -> Duration {
    let remaining = due.saturating_duration_since(now).clamp(MIN_WAIT, TICK);
    let steps = remaining.as_nanos() / WAIT_STEP.as_nanos();
    if steps == 0 { remaining } else { WAIT_STEP * steps as u32 } // at most TICK / WAIT_STEP
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A queue that never becomes empty: packets that were read, those of them without a verdict, and how many were
    /// discarded without one.
    #[derive(Debug, Default, PartialEq, Eq)]
    struct Flood {
        read: usize,
        unhandled: usize,
        discarded: usize,
    }

    impl Flood {
        fn receive(&mut self) -> Result<usize, NetfilterError> {
            self.discarded += std::mem::replace(&mut self.unhandled, 64);
            self.read += 64;
            Ok(64)
        }
    }

    #[test]
    fn each_packet_of_a_flood_after_downtime_gets_a_verdict() {
        let mut flood = Flood::default();
        let handle = |flood: &mut Flood| flood.unhandled = 0;
        handle_each_batch(&mut flood, 1000, handle, Flood::receive).unwrap();
        assert_eq!(flood, Flood { read: 1024, unhandled: 0, discarded: 0 });
    }
}
