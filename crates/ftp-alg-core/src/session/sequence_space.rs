//! The sequence space of a direction (RFC 9293 section 3.3.1): what was seen, what is acknowledged, what is missing, and how
//! sent numbers become delivered ones.

use serde::{Deserialize, Serialize};

use super::{adjust::SequenceMap, limits::SAFE_SEGMENT};
use crate::packet::{Packet, Seq};

/// After how many segments past a gap, one after the other, the receiver is asked what it has.
const ASKED_AFTER: u8 = 2;

/// How far numbers may be from those that come next.
const MAX_DISTANCE: u32 = 1 << 20;

/// How much of a direction may have passed unseen, as while the daemon was away.
const MAX_MISSED: u32 = 1 << 16;

/// Where a direction is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SequenceSpace {
    /// Its first sequence number.
    pub first: Seq,
    /// The first sent number that was not seen yet.
    pub next: Seq,
    /// The highest acknowledgement of the receiver, in delivered numbers.
    pub acked: Seq,
    /// The sender's clock as last seen in a timestamps option, if `has_clock`.
    clock: u32,
    has_clock: bool,
    /// Rewrites.
    pub map: SequenceMap,
    /// The sender's window as last advertised.
    pub window: u16,
    /// The longest payload that the sender sent in one segment.
    largest: u16,
    /// A segment started past `next`; how often in a row.
    gaps: u8,
    /// Whether the sender has sent a FIN.
    pub finished: bool,
}

impl SequenceSpace {
    /// That of a direction whose first byte has number `first`.
    pub fn new(first: Seq) -> Self {
        Self {
            first,
            next: first,
            acked: first,
            clock: 0,
            has_clock: false,
            map: SequenceMap::default(),
            window: u16::MAX,
            largest: 0,
            gaps: 0,
            finished: false,
        }
    }

    /// Forgets all but where it is.
    pub fn forget(&mut self) {
        *self = Self { first: self.first, ..Self::new(self.next) };
    }

    /// Takes note of what every packet of the sender says of it.
    #[inline]
    pub fn observe(&mut self, packet: &Packet<'_>) {
        self.window = packet.window();
        if let Some((value, _)) = packet.timestamps() {
            (self.clock, self.has_clock) = (value, true);
        }
        if !packet.offload().joined {
            self.largest = self.largest.max(packet.payload().len() as u16); // an IP packet's
        }
    }

    /// The sender's clock as last seen in a timestamps option.
    pub fn clock(&self) -> Option<u32> {
        self.has_clock.then_some(self.clock)
    }

    /// Whether `seq` is near what comes next.
    pub fn is_near(&self, seq: Seq) -> bool {
        seq.distance_from(self.next).unsigned_abs() <= MAX_DISTANCE
    }

    /// Whether all that precedes delivered `ack` was seen here; nothing if that is far from what comes next.
    pub fn is_received(&self, ack: Seq) -> Option<bool> {
        let distance = ack.distance_from(self.map.deliver(self.next));
        (distance.unsigned_abs() <= MAX_DISTANCE).then_some(distance <= 0)
    }

    /// Whether numbers or bytes are not delivered as they are sent.
    pub fn is_adjusted(&self) -> bool {
        !self.map.is_identity()
    }

    /// One more segment started past what was seen, or waits. Whether the receiver is to be asked what it has.
    pub fn count_gap(&mut self) -> bool {
        self.gaps = self.gaps.saturating_add(1);
        self.is_asked()
    }

    /// What comes next has come.
    pub fn end_gap(&mut self) {
        self.gaps = 0;
    }

    /// Whether segments past a gap came, and none waited.
    pub fn has_gap(&self) -> bool {
        self.gaps > 0
    }

    /// Whether the receiver was asked what it has.
    #[inline]
    pub fn is_asked(&self) -> bool {
        self.gaps >= ASKED_AFTER
    }

    /// The receiver is asked at the next gap.
    pub fn ask_at_next_gap(&mut self) {
        self.gaps = ASKED_AFTER - 1;
    }

    /// The receiver's answer is not waited for any longer. The next segment past a gap asks again.
    pub fn stop_asking(&mut self) {
        self.gaps = self.gaps.min(ASKED_AFTER - 1);
    }

    /// Whether the receiver of a reset by number `seq` may obey it: only by the number that it expects (RFC 5961
    /// section 3.2), which is one that it has not acknowledged.
    pub fn obeys_reset(&self, seq: Seq) -> bool {
        !seq.is_before(self.unacknowledged()) && !seq.is_after(self.next)
    }

    /// Whether all of it is acknowledged.
    pub fn is_acknowledged(&self) -> bool {
        self.unacknowledged() == self.next
    }

    /// Whether `ack` is of something that was sent and is not known to be acknowledged, or of the last that is.
    pub fn may_be_acknowledged(&self, ack: Seq) -> bool {
        !ack.is_before(self.acked) && !ack.is_after(self.map.deliver(self.next))
    }

    /// The first sent number that the receiver is not known to have acknowledged.
    pub fn unacknowledged(&self) -> Seq {
        self.map.acknowledge(self.acked)
    }

    /// Whether the receiver looks at a segment of number `seq` although some bytes may have passed unseen (RFC 9293
    /// section 3.10.7.4); a keep-alive is by one before what it has.
    #[inline]
    pub fn expects(&self, seq: Seq) -> bool {
        if seq == self.next {
            return true;
        }
        let first = self.unacknowledged() - 1;
        !seq.is_before(first) && !seq.is_after(self.next + MAX_MISSED)
    }

    /// How long a delivered segment may be.
    pub fn longest_segment(&self) -> usize {
        usize::from(self.largest).max(SAFE_SEGMENT)
    }
}
