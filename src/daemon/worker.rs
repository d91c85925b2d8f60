//! The worker: a thread that reads the packets of one netfilter queue and gives their verdicts.
//!
//! Invariants:
//! - The engine of a shard reads the fast path's lines before it decides about a packet of that shard, so it knows
//!   every earlier line.
//! - After the heartbeat has lapsed, the worker decides about the waiting packets before it records progress. The
//!   heartbeat is not renewed before that, so no other packet is queued meanwhile.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::Receiver,
    },
    time::{Duration, Instant},
};

use ftp_alg_core::engine::{Effects, PacketMeta, QueuedPacket, Token, carry_out};

use super::{
    ServiceError,
    counted::counted,
    daemon_host::{DaemonHost, OwnQueue},
    forwarded_verdicts::{ForwardedVerdict, give_forwarded},
    shard::lock,
    shard_map::ShardMap,
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
/// The shortest wait, if a packet in a reorder queue is about to reach its time limit.
const MIN_WAIT: Duration = Duration::from_millis(1);

/// The reader of one queue, with access to all shards.
pub(super) struct Worker {
    pub(super) queue: Queue,
    /// The verdicts that other workers reached on packets of this queue.
    pub(super) forwarded: Receiver<ForwardedVerdict>,
    pub(super) shard_map: ShardMap,
    /// The position of its queue, and of the shard whose sessions this worker expires.
    pub(super) index: usize,
    pub(super) kernel: LinuxKernel,
    pub(super) parameters: RuleParameters,
    pub(super) shared: Arc<SharedState>,
    /// The shard of each packet of a batch. The memory is reused, so a packet allocates nothing.
    pub(super) packet_shards: Vec<usize>,
    /// The effects of a batch, by shard.
    pub(super) effects: Vec<Effects>,
}

impl Worker {
    /// Works until `end` is set. The thread that sets it also wakes this one.
    pub(super) fn run(mut self, end: &AtomicBool) -> Result<(), ServiceError> {
        let (mut timeout, mut has_lapsed) = (TICK, false);
        self.queue.set_receive_timeout(timeout)?;
        let mut next_tick = Instant::now();
        let mut next_expiry = next_tick;
        while !end.load(Ordering::Acquire) {
            let mut packets = self.queue.wait()?;
            let mut now = Instant::now();
            let had_lapsed = has_lapsed;
            has_lapsed = self.shared.progress.has_lapsed(now);
            if has_lapsed {
                if !had_lapsed {
                    if let Some(mut fast_path) = self.shared.fast_path_control(&mut self.kernel) {
                        fast_path.take_back(None);
                    }
                    self.shared.record_downtime();
                }
                self.clear_after_downtime()?;
                (packets, now) = (0, Instant::now());
            }
            self.shared.progress.record_pass(self.index, now);
            if packets > 0 {
                self.decide_batch(now, false);
                if let Some(times) = &self.shared.decision_times {
                    times.record(now.elapsed());
                }
            }
            let report = |error: &NetfilterError| self.shared.report_error(error);
            give_forwarded(&self.forwarded, self.queue.verdicts(), &self.parameters, report);
            let due = self.effects.iter().filter_map(|effects| effects.reorder_deadline).min();
            if now >= next_expiry || due.is_some_and(|due| now >= due) {
                next_expiry = now + self.expire(now);
            }
            if now >= next_tick {
                self.tick(now);
                next_tick = now + TICK;
            }
            let due = due.map_or(next_expiry, |due| due.min(next_expiry));
            let left = due.saturating_duration_since(now).max(MIN_WAIT);
            if left.min(TICK) != timeout {
                timeout = left.min(TICK);
                self.queue.set_receive_timeout(timeout)?;
            }
        }
        Ok(())
    }

    /// Decides about the packets that were read. If they are `late`, other packets of their connections may have passed
    /// unread. Returns how many packets were dropped as stale because of that.
    fn decide_batch(&mut self, now: Instant, late: bool) -> u64 {
        let Self {
            queue,
            shard_map,
            index,
            kernel,
            parameters,
            shared,
            packet_shards,
            effects,
            ..
        } = self;
        let (packets, verdicts) = queue.batch();
        packet_shards.clear();
        for packet in packets.clone() {
            packet_shards.push(shard_map.shard_of_packet(packet.payload));
            if parameters.is_unrecorded_end(packet.mark) {
                shared.unnoted_ends.fetch_add(1, Ordering::Relaxed);
            }
        }
        let queue_index = *index as u16; // as many as there are queues
        shared.fetch_lines();
        for (shard, effects) in effects.iter_mut().enumerate() {
            if packet_shards.contains(&shard) {
                let own = packets.clone().zip(packet_shards.iter()).filter(|(_, of)| **of == shard);
                let arrivals = own.map(|(packet, _)| QueuedPacket {
                    token: Token { queue: queue_index, id: packet.id, mark: packet.mark },
                    bytes: packet.payload,
                    meta: PacketMeta {
                        input: packet.indev,
                        output: if packet.outdev == LOOPBACK { 0 } else { packet.outdev },
                        mark: packet.mark & !parameters.mask(),
                        ..parameters.packet_meta(packet.mark, packet.offload, late)
                    },
                });
                shared.engine_in_step(shard, effects).take(now, arrivals, effects);
            }
        }
        let own =
            OwnQueue { checks_downtime: !late, ..OwnQueue::new(*index, verdicts, parameters) };
        let mut host = DaemonHost { shared, kernel, own_queue: Some(own), now };
        carry_out(&mut host, now, effects);
        host.own_queue.map_or(0, |own| own.stale_drops)
    }

    /// Decides about the packets that waited while the heartbeat lapsed. Other packets of their connections may have
    /// bypassed the queue meanwhile, except on adjusted connections, whose packets never bypass it. The engine accepts
    /// packets without payload, and a client's data waits for its server's. It drops all other data, and their senders
    /// retransmit what is missing. The heartbeat is not renewed before this worker records progress, and without it no
    /// other packet is queued, so there are at most as many packets as the queue has room for.
    #[cold]
    fn clear_after_downtime(&mut self) -> Result<(), NetfilterError> {
        let (mut dropped, mut seen) = (0, 0);
        loop {
            dropped += self.decide_batch(Instant::now(), true);
            let read = self.queue.receive()? as u32; // a batch
            seen += read;
            if read == 0 || seen >= MAXIMUM_WAITING {
                break;
            }
        }
        if dropped > 0 {
            let number = self.queue.number();
            tracing::warn!(
                event = "stale-dropped",
                queue = number,
                packets = dropped,
                "queue {number}: dropped {} that had waited too long; the senders retransmit",
                counted(dropped, "packet")
            );
        }
        Ok(())
    }

    /// Expires sessions and pinholes, and decides about packets whose time in a reorder queue is over. Returns when to
    /// do that again.
    fn expire(&mut self, now: Instant) -> Duration {
        let Self { queue, index, kernel, parameters, shared, effects, .. } = self;
        shared.fetch_lines();
        let mut interval = TICK;
        for (shard, effects) in effects.iter_mut().enumerate() {
            if shard == *index || effects.reorder_deadline.is_some_and(|until| now >= until) {
                let mut engine = shared.engine_in_step(shard, effects);
                engine.expire(now, effects);
                interval = interval.min(engine.sessions.expiry_interval());
            }
        }
        let own = OwnQueue::new(*index, queue.verdicts(), parameters);
        carry_out(&mut DaemonHost { shared, kernel, own_queue: Some(own), now }, now, effects);
        interval
    }

    /// Does the work of each second: the journal, and the counts for the log.
    fn tick(&mut self, now: Instant) {
        let Some(shard) = self.shared.shards.get(self.index) else { return };
        let mut engine = lock(&shard.engine);
        let mut journal = lock(&shard.journal);
        let was_written = journal.is_writable();
        match journal.maintain(&mut engine) {
            Ok(()) if was_written => {}
            Ok(()) => tracing::info!(
                event = "journal-recovered",
                path = %journal.path().display(),
                "journal {}: writing works again",
                journal.path().display()
            ),
            // The first failure is in the log.
            Err(_) if !was_written => {}
            Err(error) => self.shared.report_error(&journal.describe_write_failure(&error)),
        }
        drop((engine, journal));
        self.shared.log.log_skipped_if_due(now);
        let (number, counts) = (self.queue.number(), self.queue.counts());
        let before = std::mem::replace(&mut lock(&self.shared.queue_counts)[self.index], counts);
        let more = counts.overruns.saturating_sub(before.overruns);
        if more > 0 {
            tracing::warn!(
                event = "queue-full",
                queue = number,
                packets = more,
                "queue {number} was full: the kernel dropped {}, which the senders retransmit. If this repeats, raise [queue] \
                 workers",
                counted(more, "packet")
            );
        }
    }
}
