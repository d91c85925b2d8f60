//! Packets that wait for packets before them.
//!
//! A segment past a gap is not forwarded, because every byte that reaches a peer must have been read. If a host sends
//! from two processors, or the gateway receives on two, packets arrive out of order although none is missing. Dropping
//! the first of them would mean dropping all that follow. No acknowledgement would tell the sender, because the
//! receiver sees no gap, and both ends would wait for the sender's timeout. So such a packet may wait until its
//! predecessors have arrived. For the same reason a client's segment waits until there is room for its unacknowledged
//! data, with all that follow it.
//!
//! The session stores nothing about the queue: a waiting segment was not read and has changed nothing.

use std::time::{Duration, Instant};

use crate::{
    engine::{
        DropReason, Engine, Kernel, PacketMeta, QueuedPacket, Released, Token, Verdict,
        packets::PacketContext,
    },
    packet::{self, Endpoint, Packet, Readiness, ReorderResult, Seq},
};

/// Limit of packets in the reorder queue. At the limit, packets are handled as if none could wait.
const MAX_PACKETS: usize = 256;
/// Limit of their bytes.
const MAX_BYTES: usize = 4 << 20;
/// After this time a missing predecessor is lost: TCP retransmits after 200 ms (Linux) to a second (RFC 6298).
const MAX_WAIT: Duration = Duration::from_millis(500);

/// A packet in the queue.
#[derive(Clone, Debug)]
pub(crate) struct ReorderedPacket {
    token: Token,
    bytes: Vec<u8>,
    meta: PacketMeta,
    since: Instant,
}

impl ReorderedPacket {
    fn queued_packet(&self) -> QueuedPacket<'_> {
        QueuedPacket { token: self.token, bytes: &self.bytes, meta: self.meta }
    }

    fn has_waited_long(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= MAX_WAIT
    }
}

impl AsRef<[u8]> for ReorderedPacket {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The outcome of an insertion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Insertion {
    /// The packet is in the queue.
    Queued,
    /// There is no room.
    Full,
    /// The packet is a retransmission of a queued one. So its sender does not consider its predecessor missing, and the
    /// receiver may have that.
    Retransmission,
}

/// The queued packets, those of a flow in the order of their sequence numbers.
pub(crate) type ReorderQueue =
    packet::ReorderQueue<ReorderedPacket, MAX_PACKETS, MAX_BYTES, Endpoints>;

/// A packet in the queue, with its sequence numbers.
type ReorderItem = packet::ReorderItem<ReorderedPacket, Endpoints>;

/// Sender and receiver.
type Endpoints = (Endpoint, Endpoint);

/// Inserts a packet.
fn enqueue(queue: &mut ReorderQueue, now: Instant, queued: &QueuedPacket<'_>) -> Insertion {
    let QueuedPacket { token, bytes, meta } = *queued;
    let Ok(packet) = Packet::parse(bytes) else { return Insertion::Full };
    let (flow, seq) = (packet.endpoints(), packet.seq());
    if queue.starts_at(&flow, seq) {
        return Insertion::Retransmission;
    }
    let end = seq + packet.payload().len() as u32;
    let item = ReorderedPacket { token, bytes: bytes.to_vec(), meta, since: now };
    if queue.insert(ReorderItem { flow, seq, end, item }) {
        Insertion::Queued
    } else {
        Insertion::Full
    }
}

/// When the oldest packet has waited for [`MAX_WAIT`].
pub(crate) fn next_deadline(queue: &ReorderQueue) -> Option<Instant> {
    Some(queue.iter().map(|waiting| waiting.item.since).min()? + MAX_WAIT)
}

impl Engine {
    /// Puts an out-of-order packet into the queue.
    #[cold]
    pub(crate) fn queue_out_of_order(
        &mut self,
        now: Instant,
        packet: &QueuedPacket<'_>,
        kernel: &mut dyn Kernel,
    ) {
        let without_wait =
            QueuedPacket { meta: PacketMeta { may_wait: false, ..packet.meta }, ..*packet };
        let without_wait = &without_wait;
        match enqueue(&mut self.reorder_queue, now, packet) {
            Insertion::Queued => {}
            Insertion::Full => self.handle_packet(now, without_wait, kernel),
            Insertion::Retransmission => {
                // The same outcome as for the first copy.
                self.handle_packet(now, without_wait, kernel);
                let is_drop = |released: &mut Released| {
                    released.token == packet.token && matches!(released.verdict, Verdict::Drop(_))
                };
                if let Some(Released { verdict: Verdict::Drop(reason), .. }) =
                    self.sessions.batch.verdicts.pop_if(is_drop)
                {
                    self.sessions.counters.drops.uncount(reason);
                    self.handle_packet(now, without_wait, kernel);
                }
            }
        }
    }

    /// Continues with queued packets whose predecessors have arrived, or that have waited too long.
    pub(crate) fn release_ordered(&mut self, now: Instant, kernel: &mut dyn Kernel) {
        while !self.reorder_queue.is_empty() {
            let mut queue = std::mem::take(&mut self.reorder_queue);
            let ReorderResult { due, late, over } = queue.take(
                |waiting, before| self.readiness(waiting, before),
                |waiting| waiting.has_waited_long(now),
            );
            self.reorder_queue = queue;
            for ReorderItem { item, .. } in over {
                let verdict = Verdict::Drop(DropReason::Overlap);
                self.release(&item.queued_packet(), verdict, PacketContext::UNKNOWN);
            }
            let has_more = !due.is_empty();
            for ReorderItem { item, .. } in due {
                self.handle_packet(now, &item.queued_packet(), kernel);
            }
            for ReorderItem { mut item, .. } in late {
                item.meta.may_wait = false;
                self.handle_packet(now, &item.queued_packet(), kernel);
            }
            if !has_more {
                return;
            }
        }
    }

    /// Whether a queued packet can leave the queue, `before` being the end of the one that leaves it before.
    fn readiness(&mut self, waiting: &ReorderItem, before: Option<Seq>) -> Readiness {
        let Ok(packet) = Packet::parse(&waiting.item.bytes) else { return Readiness::Overlaps };
        let Some(entry) = self.sessions.table.find_packet(&packet) else {
            return Readiness::Overlaps;
        };
        let from = entry.head.side_of(packet.endpoints().0);
        if entry.session.awaits_probe_answer(from, &packet)
            || entry.session.lacks_room(from, waiting.end)
        {
            return Readiness::NotYet;
        }
        Readiness::from_seqs(waiting.seq, before.unwrap_or(entry.session.next_seq(from)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A segment of five bytes to a server.
    fn segment(port: u16, seq: u32) -> Vec<u8> {
        let builder = etherparse::PacketBuilder::ipv4([10, 0, 0, 2], [192, 0, 2, 9], 64)
            .tcp(port, 21, seq, 512)
            .ack(7);
        let mut bytes = Vec::new();
        builder.write(&mut bytes, b"NOOP\r").unwrap();
        bytes
    }

    #[test]
    fn the_queue_reports_limits_retransmissions_and_late_packets() {
        let (mut waiting, now) = (ReorderQueue::default(), Instant::now());
        let enqueue = |queue: &mut ReorderQueue, port, seq| {
            let (token, meta) = (Token::default(), PacketMeta::FORWARDED);
            super::enqueue(queue, now, &QueuedPacket { token, bytes: &segment(port, seq), meta })
        };
        for count in 0..MAX_PACKETS {
            assert_eq!(enqueue(&mut waiting, 1035, 10 * count as u32), Insertion::Queued);
        }
        assert_eq!(enqueue(&mut waiting, 1035, 100), Insertion::Retransmission);
        assert_eq!(enqueue(&mut waiting, 1036, 100), Insertion::Full);
        assert_eq!(next_deadline(&waiting), Some(now + MAX_WAIT));
        let mut late =
            |at| waiting.take(|_, _| Readiness::NotYet, |item| item.has_waited_long(at)).late.len();
        assert_eq!(late(now + MAX_WAIT / 2), 0);
        assert_eq!(late(now + MAX_WAIT), MAX_PACKETS);
        assert_eq!(enqueue(&mut waiting, 1036, 100), Insertion::Queued);
    }
}
