//! The sequence space of a direction (RFC 9293 section 3.3.1): bytes seen, bytes acknowledged, gaps, and the sequence
//! adjustment.

use serde::{Deserialize, Serialize};

use super::{limits::DEFAULT_MSS, sequence_map::SequenceMap};
use crate::packet::{Packet, Seq};

/// Number of consecutive segments past a gap after which the receiver is probed.
const PROBE_AFTER: u8 = 2;

/// Maximum distance of an acceptable sequence number from the next expected one.
const MAX_DISTANCE: u32 = 1 << 20;

/// Maximum number of bytes that may have passed unread, for example during downtime.
const MAX_MISSED: u32 = 1 << 16;

/// The sequence numbers of one direction.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SequenceSpace {
    /// First sequence number.
    pub first: Seq,
    /// Next expected sequence number, as sent.
    pub next: Seq,
    /// Highest acknowledgement number of the receiver, as delivered.
    pub acked: Seq,
    /// The sender's clock in the last timestamps option, if `has_clock`.
    clock: u32,
    has_clock: bool,
    /// Rewrites and sequence offsets.
    pub map: SequenceMap,
    /// The sender's window as last advertised.
    pub window: u16,
    /// Whether the window field is the window: the SYN-ACK has no window scale. Set for the client.
    #[serde(skip)]
    pub has_plain_window: bool,
    /// Longest payload of a segment from the sender.
    largest_segment: u16,
    /// Number of consecutive segments that started past `next`.
    gap_segments: u8,
    /// Whether the sender has sent a FIN.
    pub finished: bool,
}

impl SequenceSpace {
    /// The sequence space of a direction whose first byte has the sequence number `first`.
    pub fn new(first: Seq) -> Self {
        Self {
            first,
            next: first,
            acked: first,
            clock: 0,
            has_clock: false,
            map: SequenceMap::default(),
            window: u16::MAX,
            has_plain_window: false,
            largest_segment: 0,
            gap_segments: 0,
            finished: false,
        }
    }

    /// Forgets everything except the first and the next sequence number.
    pub fn reset(&mut self) {
        *self = Self { first: self.first, ..Self::new(self.next) };
    }

    /// Records the window, the clock and the segment length of a packet from the sender.
    #[inline(always)]
    pub fn observe(&mut self, packet: &Packet<'_>) {
        self.window = packet.window();
        if let Some((value, _)) = packet.timestamps() {
            (self.clock, self.has_clock) = (value, true);
        }
        if !packet.offload().is_super_packet {
            self.largest_segment = self.largest_segment.max(packet.payload().len() as u16); // an IP packet's
        }
    }

    /// The sender's clock in the last timestamps option.
    pub fn clock(&self) -> Option<u32> {
        self.has_clock.then_some(self.clock)
    }

    /// Whether `seq` is close enough to the next expected sequence number.
    pub fn is_in_window(&self, seq: Seq) -> bool {
        seq.distance_from(self.next).unsigned_abs() <= MAX_DISTANCE
    }

    /// Whether everything before the delivered number `ack` was seen here; `None` if `ack` is out of window.
    pub fn is_all_seen(&self, ack: Seq) -> Option<bool> {
        let distance = ack.distance_from(self.map.to_delivered(self.next));
        (distance.unsigned_abs() <= MAX_DISTANCE).then_some(distance <= 0)
    }

    /// Whether sequence numbers or bytes differ from what was sent.
    pub fn is_adjusted(&self) -> bool {
        !self.map.is_identity()
    }

    /// Counts a segment that started past a gap or was blocked. Returns whether the receiver is to be probed.
    pub fn count_gap(&mut self) -> bool {
        self.gap_segments = self.gap_segments.saturating_add(1);
        self.is_probing()
    }

    /// Ends the gap, because the expected bytes have arrived.
    pub fn end_gap(&mut self) {
        self.gap_segments = 0;
    }

    /// Whether a segment past a gap arrived and did not wait in the reorder queue.
    pub fn has_gap(&self) -> bool {
        self.gap_segments > 0
    }

    /// Whether the receiver was probed.
    #[inline]
    pub fn is_probing(&self) -> bool {
        self.gap_segments >= PROBE_AFTER
    }

    /// Makes the next gap probe the receiver.
    pub fn probe_at_next_gap(&mut self) {
        self.gap_segments = PROBE_AFTER - 1;
    }

    /// Stops waiting for the answer to a probe. The next segment past a gap sends another one.
    pub fn stop_probing(&mut self) {
        self.gap_segments = self.gap_segments.min(PROBE_AFTER - 1);
    }

    /// Whether the receiver may accept a reset with number `seq`: only with the exact number that it expects (RFC 5961
    /// section 3.2), which it has not acknowledged.
    pub fn accepts_reset(&self, seq: Seq) -> bool {
        !seq.is_before(self.unacknowledged()) && !seq.is_after(self.next)
    }

    /// Whether all data is acknowledged.
    pub fn is_acknowledged(&self) -> bool {
        self.unacknowledged() == self.next
    }

    /// Whether `ack` is acceptable: it acknowledges data that was sent, and is not before the last acknowledgement.
    pub fn is_acceptable_ack(&self, ack: Seq) -> bool {
        !ack.is_before(self.acked) && !ack.is_after(self.map.to_delivered(self.next))
    }

    /// The first sent sequence number that is not known to be acknowledged (SND.UNA).
    pub fn unacknowledged(&self) -> Seq {
        self.map.to_sent(self.acked)
    }

    /// Whether the receiver accepts a segment with number `seq`, even if some bytes passed unread (RFC 9293 section
    /// 3.10.7.4). A keep-alive is one before what the receiver has.
    #[inline]
    pub fn is_acceptable(&self, seq: Seq) -> bool {
        if seq == self.next {
            return true;
        }
        let first = self.unacknowledged() - 1;
        !seq.is_before(first) && !seq.is_after(self.next + MAX_MISSED)
    }

    /// Maximum length of a delivered segment.
    pub fn mss(&self) -> usize {
        usize::from(self.largest_segment).max(DEFAULT_MSS)
    }
}
