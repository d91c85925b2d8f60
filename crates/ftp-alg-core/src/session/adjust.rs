//! Sequence adjustment: where a byte of one direction's stream stands before and after our rewrites.
//!
//! *Sent* numbers are those of the end that sends, *delivered* numbers those of the end that
//! receives. A [`Rewrite`] says that sent bytes `[start, start + len)` are delivered as `new`.
//! Between and around rewrites the numbers differ by a constant. Both mappings are monotone and
//! tile the stream, so segments with any boundaries, first sent or sent again, are delivered as one
//! consistent stream:
//!
//! - a segment that ends inside a rewritten range delivers as many bytes of `new` as it covers of
//!   the range; the one that covers its end delivers the rest;
//! - an acknowledgement becomes the highest sent number whose delivered number it covers.
//!
//! A FIN occupies a number like a byte; in a rewritten range it is a placeholder byte of `new`.

use serde::{Deserialize, Serialize};

use super::few::{self, Bytes, Few, save_bytes};
use crate::packet::Seq;

/// One replaced range.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Rewrite {
    /// First sent number that is replaced.
    start: Seq,
    /// How many sent numbers are replaced; at least 1.
    len: u32,
    /// Where the replacement starts in delivered numbers.
    delivered: Seq,
    /// What is delivered instead.
    new: Replacement,
}

/// What is delivered in place of a range.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Replacement {
    Bytes(#[serde(serialize_with = "save_bytes")] Bytes),
    /// So many times [`CROSSED_OUT`]: a refused line may be as long as a packet.
    CrossedOut(u32),
}

/// Each byte of what is crossed out as a whole.
pub const CROSSED_OUT: u8 = b'X';

impl Replacement {
    fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::CrossedOut(count) => *count as usize,
        }
    }

    /// Writes those of its bytes from `first` up to `last` to `out`.
    fn render(&self, first: usize, last: usize, out: &mut Vec<u8>) {
        match self {
            Self::Bytes(bytes) => out.extend_from_slice(&bytes[first..last]),
            Self::CrossedOut(_) => out.resize(out.len() + last - first, CROSSED_OUT),
        }
    }

    fn heap(&self) -> usize {
        match self {
            Self::Bytes(bytes) => few::heap_of_bytes(bytes),
            Self::CrossedOut(_) => 0,
        }
    }
}

impl From<&[u8]> for Replacement {
    fn from(new: &[u8]) -> Self {
        if new.len() > size_of::<Self>() && new.iter().all(|byte| *byte == CROSSED_OUT) {
            Self::CrossedOut(new.len() as u32) // at most a packet and what was held before it
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
        self.delivered + self.new.len() as u32 // bounded by the longest line that is read
    }
}

/// How many rewrites that are not acknowledged yet a direction remembers. When they are as many,
/// nothing more is read until the receiver acknowledges.
pub const MAX_REWRITES: usize = 64;
/// Likewise, how many bytes that are delivered in place of others.
pub const MAX_REWRITTEN: usize = 4096;

/// The mapping of one direction, with a bounded history: rewrites that the receiver has
/// acknowledged are forgotten, only their sum is kept.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SequenceMap {
    /// Delivered minus sent before the first rewrite that is remembered.
    base: u32,
    rewrites: Few<Rewrite>,
}

impl SequenceMap {
    /// Whether sent and delivered numbers are the same everywhere.
    pub fn is_identity(&self) -> bool {
        self.base == 0 && self.rewrites.is_empty()
    }

    /// Whether all numbers differ by one constant, with nothing to replace.
    pub fn is_shift(&self) -> bool {
        self.rewrites.is_empty()
    }

    /// Whether numbers before the last rewrite and after it differ, or ever did.
    #[inline]
    pub fn shifts(&self) -> bool {
        self.base != 0 || !self.rewrites.is_empty() && self.has_shift()
    }

    fn has_shift(&self) -> bool {
        self.rewrites.iter().any(|rewrite| rewrite.len as usize != rewrite.new.len())
    }

    /// Whether the history is full.
    pub fn is_full(&self) -> bool {
        self.rewrites.len() >= MAX_REWRITES || self.rewritten() >= MAX_REWRITTEN
    }

    /// How many bytes are remembered that are delivered in place of others.
    fn rewritten(&self) -> usize {
        let kept = |rewrite: &Rewrite| match &rewrite.new {
            Replacement::Bytes(bytes) => bytes.len(),
            Replacement::CrossedOut(_) => 0,
        };
        self.rewrites.iter().map(kept).sum()
    }

    /// How much memory it takes besides its own size.
    #[inline]
    pub fn heap(&self) -> usize {
        if self.rewrites.is_empty() {
            return 0;
        }
        few::heap(&self.rewrites) + self.rewrites.iter().map(|r| r.new.heap()).sum::<usize>()
    }

    /// Whether half of the history is full: what need not be rewritten is not.
    pub fn is_half_full(&self) -> bool {
        self.rewrites.len() >= MAX_REWRITES / 2
    }

    /// Where the last range that is remembered starts, in sent numbers.
    pub fn last_start(&self) -> Option<Seq> {
        self.rewrites.last().map(|r| r.start)
    }

    /// The delivered number of sent `seq`.
    pub fn deliver(&self, seq: Seq) -> Seq {
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

    /// The highest sent number that delivered `seq` covers: what an acknowledgement of `seq`
    /// acknowledges to the sender.
    pub fn acknowledge(&self, seq: Seq) -> Seq {
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

    /// The lowest sent number whose delivered number is at or after `seq`: the left edge of a SACK
    /// block, which must not claim bytes that have not arrived.
    pub fn acknowledge_left(&self, seq: Seq) -> Seq {
        let covered = self.acknowledge(seq);
        if self.deliver(covered).is_before(seq) {
            // Inside a replacement: all of its range is claimed only from its end on.
            self.rewrites
                .iter()
                .find(|r| seq.is_before(r.delivered_end()))
                .map_or(covered, |r| r.end())
        } else {
            covered
        }
    }

    /// From now on sent `[start, start + len)` is delivered as `new`. `start` must not be before
    /// the end of an earlier rewrite. A range delivered as nothing that goes on where the last one
    /// ended is joined to it.
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
        few::push(&mut self.rewrites, Rewrite { start, len, delivered, new: new.into() });
    }

    /// Forgets what was replaced wholly before sent `seq`: its receiver has acknowledged it.
    pub fn forget_before(&mut self, seq: Seq) {
        let gone = self.rewrites.iter().take_while(|r| !r.end().is_after(seq)).count();
        if gone > 0 {
            let last = &self.rewrites[gone - 1];
            self.base = last.delivered_end() - last.end();
            few::drop_front(&mut self.rewrites, gone);
        }
    }

    /// The last range that is remembered was delivered as it was sent.
    pub fn forget_last(&mut self) {
        self.rewrites.pop();
        if self.rewrites.is_empty() {
            self.rewrites = Few::new();
        }
    }

    /// Writes to `out` what is delivered for the sent bytes `bytes`, which start at `seq`.
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
    fn a_grown_rewrite_shifts_what_follows() {
        let mut map = SequenceMap::default();
        map.replace(Seq(5), 3, b"abcde");
        assert_eq!(rendered(&map, Seq(0), b"01234567890"), b"01234abcde890");
        assert_eq!((map.deliver(Seq(5)), map.deliver(Seq(8))), (Seq(5), Seq(10)));
        assert_eq!((map.acknowledge(Seq(10)), map.acknowledge(Seq(9))), (Seq(8), Seq(7)));
        map.forget_before(Seq(7));
        assert!(!map.is_shift());
        map.forget_before(Seq(8));
        assert!(map.is_shift() && map.shifts());
        assert_eq!(map.acknowledge(Seq(12)), Seq(10));
    }

    #[test]
    fn a_held_range_is_acknowledged_with_what_came_before_it() {
        let mut map = SequenceMap::default();
        map.replace(Seq(10), 1, &[]);
        map.replace(Seq(11), 1, &[]);
        assert_eq!(map.rewrites.len(), 1);
        assert_eq!(map.acknowledge(Seq(9)), Seq(9));
        assert_eq!(map.acknowledge(Seq(10)), Seq(12));
        map.replace(Seq(12), 2, b"PORT");
        assert_eq!(rendered(&map, Seq(12), b"RT\r\n"), b"PORT\r\n");
        assert_eq!(rendered(&map, Seq(10), b"PORT\r\n"), b"PORT\r\n");
        assert_eq!(map.deliver(Seq(14)), Seq(14));
    }

    #[test]
    fn a_sack_block_never_claims_a_part_of_a_replacement() {
        let mut map = SequenceMap::default();
        map.replace(Seq(10), 4, b"abcdefgh");
        assert_eq!(map.acknowledge_left(Seq(12)), Seq(12));
        assert_eq!(map.acknowledge_left(Seq(16)), Seq(14));
        assert_eq!(map.acknowledge_left(Seq(18)), Seq(14));
        assert_eq!(map.acknowledge_left(Seq(10)), Seq(10));
    }

    #[test]
    fn a_line_that_is_crossed_out_takes_no_memory_of_its_length() {
        let mut map = SequenceMap::default();
        map.replace(Seq(5), 60_000, &[CROSSED_OUT; 60_000]);
        assert!(map.heap() < 100, "{}", map.heap());
        let line = rendered(&map, Seq(3), &[b'1'; 60_010]);
        let crossed = |range: std::ops::Range<usize>| line[range].iter().all(|b| *b == b'X');
        assert!(crossed(2..60_002) && line[..2] == *b"11" && line[60_002..] == [b'1'; 8]);
        assert_eq!(rendered(&map, Seq(100), b"0123"), b"XXXX");
    }

    #[test]
    fn a_history_is_full_by_number_or_by_bytes() {
        let mut map = SequenceMap::default();
        for number in 0..MAX_REWRITES as u32 {
            assert!(!map.is_full(), "{number}");
            map.replace(Seq(10 * number), 1, &[b'x'; 2]);
        }
        assert!(map.is_full());
        let mut map = SequenceMap::default();
        for number in 0..(MAX_REWRITTEN / 512) as u32 {
            assert!(!map.is_full(), "{number}");
            map.replace(Seq(1000 * number), 512, &[b'x'; 512]);
        }
        assert!(map.is_full());
    }

    /// The distance from the last one, the length, and what takes its place.
    type Replaced = (usize, usize, Vec<u8>);

    /// A stream, some of its ranges replaced: start (across the wrap), sent bytes, rewrites.
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
                prop_assert_eq!(map.deliver(seq) - map.deliver(Seq(start)), delivered.len() as u32);
                map.render(seq, &bytes[pair[0]..pair[1]], &mut delivered);
            }
            prop_assert_eq!(&delivered, &expected);

            // What an acknowledgement acknowledges has been delivered, and all of it is.
            for n in 0..=expected.len() as u32 {
                let y = map.deliver(Seq(start)) + n;
                let sent = map.acknowledge(y);
                prop_assert!(!map.deliver(sent).is_after(y));
                prop_assert!(map.deliver(sent + 1).is_after(y));
                let left = map.acknowledge_left(y);
                prop_assert!(!map.deliver(left).is_before(y));
            }
        }
    }
}
