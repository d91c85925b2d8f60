//! The sequence numbers of one direction (RFC 9293 section 3.3.1): bytes seen, bytes acknowledged, gaps; and the sequence
//! adjustment, which maps the numbers before our rewrites to those after them, and back.
//!
//! *Sent* sequence numbers are those of the sending end, *delivered* ones those of the receiving end. A [`Rewrite`]
//! says that the sent bytes `[start, start + len)` are delivered as `new`. Between rewrites the two differ by a
//! constant. Both mappings are monotone and cover the stream without gaps, so segments with any boundaries, first sent
//! or retransmitted, are delivered as one consistent stream:
//! - A segment that ends inside a rewritten range delivers as many bytes of `new` as it covers of the range. The
//!   segment that covers the end of the range delivers the rest.
//! - An acknowledgement becomes the highest sent sequence number whose delivered number it covers.
//!
//! A FIN occupies one sequence number, like a byte. In a rewritten range it is a placeholder byte of `new`.

use serde::{Deserialize, Serialize};

use super::compact::{self, CompactVec, SmallBytes, serialize_bytes};
use crate::packet::{Packet, Seq};

/// One rewritten range.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Rewrite {
    /// First sent sequence number of the range.
    start: Seq,
    /// Length of the range in sent sequence numbers; at least 1.
    len: u32,
    /// Where the replacement starts, in delivered sequence numbers.
    delivered: Seq,
    /// The bytes that are delivered.
    new: Replacement,
}

/// The bytes that are delivered in place of a range.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Replacement {
    Bytes(#[serde(serialize_with = "serialize_bytes")] SmallBytes),
    /// This many [`CROSS_OUT_BYTE`] bytes: a refused line may be as long as a packet.
    CrossedOut(u32),
}

/// The byte that replaces each byte of a crossed out command: one that the server must refuse.
pub const CROSS_OUT_BYTE: u8 = b'X';

impl Replacement {
    fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::CrossedOut(count) => *count as usize,
        }
    }

    /// The bytes that are stored.
    fn stored(&self) -> &[u8] {
        if let Self::Bytes(bytes) = self { bytes } else { &[] }
    }

    /// Heap memory in bytes.
    fn heap_size(&self) -> usize {
        if let Self::Bytes(bytes) = self { compact::bytes_heap_size(bytes) } else { 0 }
    }

    /// Appends the replacement's bytes from `first` up to `last` to `out`.
    fn render(&self, first: usize, last: usize, out: &mut Vec<u8>) {
        match self {
            Self::Bytes(bytes) => out.extend_from_slice(&bytes[first..last]),
            Self::CrossedOut(_) => out.resize(out.len() + last - first, CROSS_OUT_BYTE),
        }
    }
}

impl From<&[u8]> for Replacement {
    fn from(new: &[u8]) -> Self {
        if new.len() > size_of::<Self>() && new.iter().all(|byte| *byte == CROSS_OUT_BYTE) {
            Self::CrossedOut(new.len() as u32) // at most a packet and the held bytes before it
        } else {
            Self::Bytes(new.into())
        }
    }
}

impl Rewrite {
    fn end(&self) -> Seq {
        self.start + self.len
    }

    fn delivered_end(&self) -> Seq {
        self.delivered + self.new.len() as u32 // at most the longest line
    }
}

/// Limit of unacknowledged rewrites in a direction. At the limit nothing more is read until the receiver acknowledges.
pub const MAX_REWRITES: usize = 64;
/// Limit of the replacement bytes in all unacknowledged rewrites of a direction, with the same effect.
pub const MAX_REWRITTEN_BYTES: usize = 4096;

/// The mapping of one direction. Rewrites that the receiver has acknowledged are
/// forgotten; only the sum of their offsets stays.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SequenceMap {
    /// Delivered minus sent sequence number before the oldest rewrite in the list.
    base: u32,
    rewrites: CompactVec<Rewrite>,
}

impl SequenceMap {
    /// Whether sent and delivered sequence numbers are equal everywhere.
    pub fn is_identity(&self) -> bool {
        self.base == 0 && self.rewrites.is_empty()
    }

    /// Delivered minus sent sequence number of what comes next.
    pub fn offset(&self) -> i32 {
        let growth = |rewrite: &Rewrite| (rewrite.new.len() as u32).wrapping_sub(rewrite.len);
        let sum = |sum: u32, rewrite: &Rewrite| sum.wrapping_add(growth(rewrite));
        self.rewrites.iter().fold(self.base, sum).cast_signed()
    }

    /// Whether all sequence numbers differ by one constant and no bytes are replaced.
    pub fn is_constant_offset(&self) -> bool {
        self.rewrites.is_empty()
    }

    /// Whether sent and delivered sequence numbers differ anywhere.
    #[inline]
    pub fn changes_numbers(&self) -> bool {
        self.base != 0
            || self.rewrites.iter().any(|rewrite| rewrite.len as usize != rewrite.new.len())
    }

    /// Whether one of the two limits of unacknowledged rewrites is reached.
    pub fn is_full(&self) -> bool {
        let stored = self.rewrites.iter().map(|rewrite| rewrite.new.stored().len());
        self.rewrites.len() >= MAX_REWRITES || stored.sum::<usize>() >= MAX_REWRITTEN_BYTES
    }

    /// Heap memory in bytes.
    #[inline]
    pub fn heap_size(&self) -> usize {
        if self.rewrites.is_empty() {
            return 0;
        }
        let stored = self.rewrites.iter().map(|rewrite| rewrite.new.heap_size());
        compact::heap_size(&self.rewrites) + stored.sum::<usize>()
    }

    /// Whether half of [`MAX_REWRITES`] are in the list. Optional rewrites are then not made.
    pub fn is_half_full(&self) -> bool {
        self.rewrites.len() >= MAX_REWRITES / 2
    }

    /// The delivered sequence number of the sent number `seq`.
    pub fn to_delivered(&self, seq: Seq) -> Seq {
        let mut offset = self.base;
        for rewrite in &*self.rewrites {
            if seq.is_before(rewrite.start) {
                break;
            }
            if seq.is_before(rewrite.end()) {
                return rewrite.delivered
                    + (seq - rewrite.start).min(rewrite.delivered_end() - rewrite.delivered);
            }
            offset = rewrite.delivered_end() - rewrite.end();
        }
        seq + offset
    }

    /// The highest sent sequence number that the delivered number `seq` covers. An acknowledgement of `seq` becomes
    /// this.
    pub fn to_sent(&self, seq: Seq) -> Seq {
        let mut offset = self.base;
        for rewrite in &*self.rewrites {
            if seq.is_before(rewrite.delivered) {
                break;
            }
            if seq.is_before(rewrite.delivered_end()) {
                return rewrite.start + (seq - rewrite.delivered).min(rewrite.len - 1);
            }
            offset = rewrite.delivered_end() - rewrite.end();
        }
        seq - offset
    }

    /// The lowest sent sequence number whose delivered number is at or after `seq`. This is the left edge of a SACK
    /// block, which must not claim bytes that have not arrived.
    pub fn to_sent_left_edge(&self, seq: Seq) -> Seq {
        let covered = self.to_sent(seq);
        if self.to_delivered(covered).is_before(seq) {
            // Inside a replacement: the range counts as received only from its end on.
            self.rewrites
                .iter()
                .find(|r| seq.is_before(r.delivered_end()))
                .map_or(covered, |r| r.end())
        } else {
            covered
        }
    }

    /// Delivers the sent bytes `[start, start + len)` as `new` from now on. `start` must not be before the end of an
    /// earlier rewrite. If a range delivered as nothing continues the previous one, the two are merged.
    pub fn replace(&mut self, start: Seq, len: u32, new: &[u8]) {
        debug_assert!(len > 0);
        if let Some(last) = self.rewrites.last_mut()
            && last.new.len() == 0
            && new.is_empty()
            && last.end() == start
        {
            last.len += len;
            return;
        }
        let offset = self.rewrites.last().map_or(self.base, |r| r.delivered_end() - r.end());
        let delivered = start + offset;
        compact::push(&mut self.rewrites, Rewrite { start, len, delivered, new: new.into() });
    }

    /// Forgets rewrites that end before the sent sequence number `seq`, because the receiver has acknowledged them; not
    /// the newest one if `keeps_last`.
    pub fn forget_before(&mut self, seq: Seq, keeps_last: bool) {
        let count = self.rewrites.len() - usize::from(keeps_last && !self.rewrites.is_empty());
        let gone = self.rewrites[..count].iter().take_while(|r| !r.end().is_after(seq)).count();
        if gone > 0 {
            let last = &self.rewrites[gone - 1];
            self.base = last.delivered_end() - last.end();
            compact::drop_front(&mut self.rewrites, gone);
        }
    }

    /// Forgets the newest rewrite: its range was delivered unchanged.
    pub fn forget_last(&mut self) {
        self.rewrites.pop();
        if self.rewrites.is_empty() {
            self.rewrites = CompactVec::new();
        }
    }

    /// Appends to `out` what is delivered for the sent `bytes`, which start at `seq`.
    pub fn render(&self, seq: Seq, bytes: &[u8], out: &mut Vec<u8>) {
        let end = seq + bytes.len() as u32; // a segment
        let index = |s: Seq| (s - seq) as usize;
        let mut at = seq;
        for rewrite in &*self.rewrites {
            if !rewrite.end().is_after(seq) {
                continue;
            }
            if !rewrite.start.is_before(end) {
                break;
            }
            if rewrite.start.is_after(at) {
                out.extend_from_slice(&bytes[index(at)..index(rewrite.start)]);
            }
            let skipped = |s: Seq| (s.max(rewrite.start) - rewrite.start) as usize;
            let first = skipped(seq).min(rewrite.new.len());
            let last = if end.is_before(rewrite.end()) {
                skipped(end).min(rewrite.new.len())
            } else {
                rewrite.new.len()
            };
            rewrite.new.render(first, last, out);
            at = rewrite.end().min(end);
        }
        out.extend_from_slice(&bytes[index(at)..]);
    }
}

/// MSS of a sender that has sent no longer segment yet: RFC 879's default for IPv4.
const DEFAULT_MSS: usize = 536;

/// Number of consecutive segments past a gap after which the receiver is probed.
const PROBE_AFTER: u8 = 2;

/// Maximum distance of an acceptable sequence number from the next expected one.
const MAX_DISTANCE: u32 = 1 << 20;

/// Maximum number of bytes that may have passed unread, for example during downtime.
const MAX_MISSED: u32 = 1 << 16;

/// The sequence numbers of one direction.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
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
        Self { first, next: first, acked: first, window: u16::MAX, ..Self::default() }
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
        if !packet.offload.is_super_packet {
            self.largest_segment = self.largest_segment.max(packet.payload().len() as u16); // an IP packet's
        }
    }

    /// The sender's clock in the last timestamps option.
    pub fn clock(&self) -> Option<u32> {
        self.has_clock.then_some(self.clock)
    }

    /// Whether `seq`, a sent number, is close enough to the next expected sequence number.
    pub fn is_in_window(&self, seq: Seq) -> bool {
        seq.distance_from(self.next).unsigned_abs() <= MAX_DISTANCE
    }

    /// Whether everything before the delivered number `ack` was seen here; `None` if `ack` is out of window.
    pub fn is_all_seen(&self, ack: Seq) -> Option<bool> {
        let distance = ack.distance_from(self.map.to_delivered(self.next));
        (distance.unsigned_abs() <= MAX_DISTANCE).then_some(distance <= 0)
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rendered(map: &SequenceMap, seq: Seq, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        map.render(seq, bytes, &mut out);
        out
    }

    #[test]
    fn a_longer_replacement_shifts_what_follows() {
        let mut map = SequenceMap::default();
        map.replace(Seq(5), 3, b"abcde");
        assert_eq!(rendered(&map, Seq(0), b"01234567890"), b"01234abcde890");
        assert_eq!((map.to_delivered(Seq(5)), map.to_delivered(Seq(8))), (Seq(5), Seq(10)));
        assert_eq!((map.to_sent(Seq(10)), map.to_sent(Seq(9))), (Seq(8), Seq(7)));
        map.forget_before(Seq(7), false);
        assert!(!map.is_constant_offset());
        map.forget_before(Seq(8), false);
        assert!(map.is_constant_offset() && map.changes_numbers());
        assert_eq!(map.to_sent(Seq(12)), Seq(10));
    }

    #[test]
    fn a_held_range_is_acknowledged_with_its_predecessors() {
        let mut map = SequenceMap::default();
        map.replace(Seq(10), 1, &[]);
        map.replace(Seq(11), 1, &[]);
        assert_eq!(map.rewrites.len(), 1);
        assert_eq!(map.to_sent(Seq(9)), Seq(9));
        assert_eq!(map.to_sent(Seq(10)), Seq(12));
        map.replace(Seq(12), 2, b"PORT");
        assert_eq!(rendered(&map, Seq(12), b"RT\r\n"), b"PORT\r\n");
        assert_eq!(rendered(&map, Seq(10), b"PORT\r\n"), b"PORT\r\n");
        assert_eq!(map.to_delivered(Seq(14)), Seq(14));
    }

    #[test]
    fn a_sack_block_never_covers_part_of_a_replacement() {
        let mut map = SequenceMap::default();
        map.replace(Seq(10), 4, b"abcdefgh");
        assert_eq!(map.to_sent_left_edge(Seq(12)), Seq(12));
        assert_eq!(map.to_sent_left_edge(Seq(16)), Seq(14));
        assert_eq!(map.to_sent_left_edge(Seq(18)), Seq(14));
        assert_eq!(map.to_sent_left_edge(Seq(10)), Seq(10));
    }

    #[test]
    fn a_crossed_out_line_needs_constant_memory() {
        let mut map = SequenceMap::default();
        map.replace(Seq(5), 60_000, &[CROSS_OUT_BYTE; 60_000]);
        assert!(map.heap_size() < 100, "{}", map.heap_size());
        let line = rendered(&map, Seq(3), &[b'1'; 60_010]);
        let is_crossed_out = |range: std::ops::Range<usize>| line[range].iter().all(|b| *b == b'X');
        assert!(is_crossed_out(2..60_002) && line[..2] == *b"11" && line[60_002..] == [b'1'; 8]);
        assert_eq!(rendered(&map, Seq(100), b"0123"), b"XXXX");
    }

    #[test]
    fn a_sequence_map_is_full_by_number_or_by_bytes() {
        let mut map = SequenceMap::default();
        for number in 0..MAX_REWRITES as u32 {
            assert!(!map.is_full(), "{number}");
            map.replace(Seq(10 * number), 1, &[b'x'; 2]);
        }
        assert!(map.is_full());
        let mut map = SequenceMap::default();
        for number in 0..(MAX_REWRITTEN_BYTES / 512) as u32 {
            assert!(!map.is_full(), "{number}");
            map.replace(Seq(1000 * number), 512, &[b'x'; 512]);
        }
        assert!(map.is_full());
    }

    /// Distance from the previous rewrite, length of the range, replacement.
    type Replaced = (usize, usize, Vec<u8>);

    /// A stream with rewrites: start (across the wrap), sent bytes, rewrites.
    fn streams() -> impl Strategy<Value = (u32, Vec<u8>, Vec<Replaced>)> {
        let bytes = proptest::collection::vec(any::<u8>(), 1..60);
        let start = prop_oneof![Just(u32::MAX - 20), any::<u32>()];
        let rewrites = proptest::collection::vec(
            (0usize..8, 1usize..8, proptest::collection::vec(any::<u8>(), 0..12)),
            0..5,
        );
        (start, bytes, rewrites)
    }

    proptest! {
        #[test]
        fn segments_tile_the_delivered_stream((start, bytes, gaps) in streams(),
                                              cuts in proptest::collection::vec(0usize..60, 0..6)) {
            let mut map = SequenceMap::default();
            let mut expected: Vec<u8> = Vec::new();
            let mut at = 0;
            for (gap, len, new) in gaps {
                if at + gap + len > bytes.len() {
                    break;
                }
                expected.extend(&bytes[at..at + gap]);
                expected.extend(&new);
                map.replace(Seq(start) + (at + gap) as u32, len as u32, &new);
                at += gap + len;
            }
            expected.extend(&bytes[at..]);

            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut delivered = Vec::new();
            for pair in cuts.windows(2) {
                let seq = Seq(start) + pair[0] as u32;
                prop_assert_eq!(map.to_delivered(seq) - map.to_delivered(Seq(start)), delivered.len() as u32);
                map.render(seq, &bytes[pair[0]..pair[1]], &mut delivered);
            }
            prop_assert_eq!(&delivered, &expected);

            // Everything that an acknowledgement covers has been delivered, and all of it is acknowledged.
            for n in 0..=expected.len() as u32 {
                let y = map.to_delivered(Seq(start)) + n;
                let sent = map.to_sent(y);
                prop_assert!(!map.to_delivered(sent).is_after(y));
                prop_assert!(map.to_delivered(sent + 1).is_after(y));
                let left = map.to_sent_left_edge(y);
                prop_assert!(!map.to_delivered(left).is_before(y));
            }
        }
    }
}
