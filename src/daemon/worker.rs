//! The thread of one queue: packets in, verdicts out.

use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use ftp_alg_core::engine::{Arrival, Effects, Queued, Token, carry_out};

use super::{
    host::{DaemonHost, OwnQueue},
    shard::lock,
    shard_map::ShardMap,
    shared_state::SharedState,
};
use crate::gateway::{GatewayError, LinuxKernel, MAXIMUM_WAITING, Queue, RuleParameters};

/// How long a worker waits for a packet before it looks at what has expired.
const TICK: Duration = Duration::from_secs(1);
/// It waits at least this long where a packet of the reorder queue has waited for long enough by then.
const MIN_WAIT: Duration = Duration::from_millis(1);

/// One queue, and its way to the shards.
pub(super) struct Worker {
    pub(super) queue: Queue,
    shard_map: ShardMap,
    /// The shard of which this worker drops what is over, and its queue among all.
    pub(super) index: usize,
    pub(super) kernel: LinuxKernel,
    parameters: RuleParameters,
    pub(super) shared: Arc<SharedState>,
    /// The shard of each packet of a batch. Kept, so that a packet allocates nothing.
    packet_shards: Vec<usize>,
    /// Of each shard.
    effects: Vec<Effects>,
}

impl Worker {
    pub(super) fn new(
        queue: Queue,
        homes: ShardMap,
        own: usize,
        kernel: LinuxKernel,
        parameters: RuleParameters,
        shared: Arc<SharedState>,
    ) -> Self {
        let effects = shared.new_effects();
        Self {
            queue,
            shard_map: homes,
            index: own,
            kernel,
            parameters,
            shared,
            packet_shards: Vec::new(),
            effects,
        }
    }

    /// Works until `end` is set; who sets it wakes this one.
    pub(super) fn run(mut self, end: &AtomicBool) -> Result<(), Box<dyn Error>> {
        let (mut patience, mut has_lapsed) = (TICK, false);
        self.queue.set_patience(patience)?;
        let mut next_tick = Instant::now();
        while !end.load(Ordering::Acquire) {
            let mut packets = self.queue.wait()?;
            let mut now = Instant::now();
            let had_lapsed = has_lapsed;
            has_lapsed = self.shared.progress.has_lapsed(now);
            if has_lapsed {
                if !had_lapsed {
                    if let Ok(judged) = &self.shared.fast_path {
                        judged.take_back_all(&self.shared, &mut self.kernel);
                    }
                    self.shared.record_downtime();
                }
                self.clear_after_downtime()?;
                (packets, now) = (0, Instant::now());
            }
            self.shared.progress.record_pass(self.index, now);
            if packets > 0 {
                self.decide_batch(now, false);
            }
            let mail = &self.shared.forwarded_verdicts[self.index];
            if let Err(error) = mail.give_all(self.queue.verdicts(), &self.parameters) {
                self.shared.report_error(&error);
            }
            let due = self.effects.iter().filter_map(|effects| effects.waits_until).min();
            if now >= next_tick || due.is_some_and(|due| now >= due) {
                self.expire(now);
            }
            if now >= next_tick {
                self.tick(now);
                next_tick = now + TICK;
            }
            let left = due.map_or(TICK, |due| due.saturating_duration_since(now).max(MIN_WAIT));
            if left.min(TICK) != patience {
                patience = left.min(TICK);
                self.queue.set_patience(patience)?;
            }
        }
        Ok(())
    }

    /// Decides about the packets that were read. If they are `late`, others of their connections may have passed
    /// unread. Returns how many of those were dropped for that.
    fn decide_batch(&mut self, now: Instant, late: bool) -> u64 {
        let Self {
            queue,
            shard_map: homes,
            index: own,
            kernel,
            parameters,
            shared,
            packet_shards: shards,
            effects,
        } = self;
        let (packets, verdicts) = queue.batch();
        shards.clear();
        for packet in packets.clone() {
            shards.push(homes.shard_of_packet(packet.payload));
            if parameters.is_unnoted_end(packet.mark) {
                shared.unnoted_ends.fetch_add(1, Ordering::Relaxed);
            }
        }
        let index = *own as u16; // as many as there are queues
        let judged = shared.fast_path.as_ref().ok();
        if let Some(judged) = judged {
            judged.fetch_steps();
        }
        for (shard, effects) in effects.iter_mut().enumerate() {
            if shards.contains(&shard) {
                let own = packets.clone().zip(shards.iter()).filter(|(_, home)| **home == shard);
                let arrivals = own.map(|(packet, _)| Arrival {
                    token: Token { queue: index, id: packet.id, mark: packet.mark },
                    bytes: packet.payload,
                    how: Queued {
                        is_local: packet.indev == 0 || packet.outdev == 0,
                        ..parameters.queued(packet.mark, packet.offload, late)
                    },
                });
                let mut engine = lock(&shared.shards[shard].engine);
                if let Some(judged) = judged {
                    judged.feed_engine(shard, &mut engine, effects);
                }
                engine.take(now, arrivals, effects);
            }
        }
        let own = OwnQueue { index, verdicts, parameters, checks_downtime: !late, stale_drops: 0 };
        let mut hands = DaemonHost { shared, kernel, own_queue: Some(own), now };
        carry_out(&mut hands, now, effects);
        hands.own_queue.map_or(0, |own| own.stale_drops)
    }

    /// Decides about the packets that wait after the sign of life has lapsed, so that others of their connections may have
    /// passed by. Those of adjusted connections never do. What says nothing goes on as well, and what a client says waits
    /// until its server has said what it has. All else is dropped: TCP sends what is still missing again. Until progress is
    /// noted, no sign of life is given, and nothing else is queued; so there are at
    /// most as many as the queue has room for.
    #[cold]
    fn clear_after_downtime(&mut self) -> Result<(), GatewayError> {
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
                "queue {number}: {dropped} packets that waited too long are dropped, and come again"
            );
        }
        Ok(())
    }

    /// Drops what is over, and goes on with what has waited for long enough.
    fn expire(&mut self, now: Instant) {
        let Self { queue, index: own, kernel, parameters, shared, effects, .. } = self;
        let judged = shared.fast_path.as_ref().ok();
        if let Some(judged) = judged {
            judged.fetch_steps();
        }
        for (shard, effects) in effects.iter_mut().enumerate() {
            if shard == *own || effects.waits_until.is_some_and(|until| now >= until) {
                let mut engine = lock(&shared.shards[shard].engine);
                if let Some(judged) = judged {
                    judged.feed_engine(shard, &mut engine, effects);
                }
                engine.expire(now, effects);
            }
        }
        let (index, verdicts) = (*own as u16, queue.verdicts()); // as many as there are queues
        let own = OwnQueue { index, verdicts, parameters, checks_downtime: false, stale_drops: 0 };
        carry_out(&mut DaemonHost { shared, kernel, own_queue: Some(own), now }, now, effects);
    }

    /// What is to be done about once a second.
    fn tick(&mut self, now: Instant) {
        let Some(shard) = self.shared.shards.get(self.index) else { return };
        let mut engine = lock(&shard.engine);
        let mut journal = lock(&shard.journal);
        let was_written = journal.is_writable();
        match journal.maintain(&mut engine) {
            Ok(()) if was_written => {}
            Ok(()) => tracing::info!("{} is written again", journal.path().display()),
            // Said once.
            Err(_) if !was_written => {}
            Err(error) => self.shared.report_error(&journal.describe_write_failure(&error)),
        }
        drop((engine, journal));
        self.shared.log.log_skipped_if_due(now);
        let (number, counts) = (self.queue.number(), self.queue.counts());
        let before = std::mem::replace(&mut lock(&self.shared.queue_counts)[self.index], counts);
        let more = counts.overruns.saturating_sub(before.overruns);
        if more > 0 {
            tracing::warn!("queue {number} was full: the kernel dropped {more} packets");
        }
    }
}
