//! One direction of a control connection: which bytes have been seen, the unfinished line, what
//! of it is held back, and how sent numbers become delivered ones.
//!
//! A line that may become an announcement is held back until it is complete: its bytes are kept
//! here, delivered as nothing for now, and delivered with the segment that completes the line. Held
//! bytes are acknowledged to their sender, so that it neither waits (Nagle's algorithm) nor sends
//! them again; but only once everything before them has been acknowledged by the receiver, as an
//! acknowledgement covers all that precedes it.

use std::mem;

use serde::{Deserialize, Serialize};

use super::{
    SequenceMap,
    adjust::CROSSED_OUT,
    few::{self, Few, save_bytes},
};
use crate::packet::{Packet, Seq};

/// The longest line start that is held back. Announcements are far shorter: RFC 2428's longest is
/// an `EPRT` of 63 bytes.
pub const MAX_HELD: usize = 512;

/// How much of an unfinished line that passes is kept for reading; more of it is read as cut.
pub const MAX_LINE: usize = 1024;

/// A joined segment may grow to this length; an IP packet holds little more.
pub const MAX_JOINED: usize = 65_000;

/// A delivered segment may always be this long (RFC 879's default for IPv4), and as long as the
/// longest that its sender sent.
const SAFE_SEGMENT: usize = 536;

/// One direction.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Stream {
    /// The first sent number that was not seen yet.
    pub next: Seq,
    /// The highest acknowledgement of the receiver, in delivered numbers.
    pub acked: Seq,
    /// Rewrites.
    pub map: SequenceMap,
    /// The unfinished line; of one that is not held back the first [`MAX_LINE`] bytes.
    #[serde(serialize_with = "save_bytes")]
    line: Few<u8>,
    /// Whether the unfinished line is held back, all of it.
    held: bool,
    /// The sender's window as last advertised.
    pub window: u16,
    /// The sender's clock as last seen in a timestamps option.
    pub clock: Option<u32>,
    /// The longest payload that the sender sent in one segment.
    largest: u16,
    /// A segment started past `next`; how often in a row.
    pub gaps: u8,
    /// Bytes were missed, if the receiver did not lie: what it acknowledged may never have been sent.
    skipped: bool,
    /// Whether the sender has sent a FIN.
    pub finished: bool,
}

impl Stream {
    /// A direction whose first byte has number `first`.
    pub fn new(first: Seq) -> Self {
        Self {
            next: first,
            acked: first,
            map: SequenceMap::default(),
            line: Few::default(),
            held: false,
            window: u16::MAX,
            clock: None,
            largest: 0,
            gaps: 0,
            skipped: false,
            finished: false,
        }
    }

    /// Takes note of what every packet of the sender says of it.
    pub fn observe(&mut self, packet: &Packet<'_>) {
        self.window = packet.window();
        self.clock = packet.timestamps().map_or(self.clock, |(value, _)| Some(value));
        if !packet.offload().joined {
            self.largest = self.largest.max(packet.payload().len() as u16); // an IP packet's
        }
    }

    /// Whether bytes are held back.
    pub fn is_holding(&self) -> bool {
        self.held
    }

    /// The first sent number that the receiver is not known to have acknowledged.
    pub fn unacknowledged(&self) -> Seq {
        self.map.acknowledge(self.acked)
    }

    /// Whether the receiver looks at a segment of number `seq` although `missed` bytes may have passed
    /// unseen (RFC 9293 section 3.10.7.4); a keep-alive is by one before what it has.
    pub fn expects(&self, seq: Seq, missed: u32) -> bool {
        let first = self.unacknowledged() - 1;
        !seq.is_before(first) && !seq.is_after(self.next + missed)
    }

    /// Whether the byte `seq` is held back.
    pub fn is_held(&self, seq: Seq) -> bool {
        self.held
            && seq.is_before(self.next)
            && self.map.deliver(seq) == self.map.deliver(self.next)
    }

    /// What is held back may be acknowledged to its sender now.
    pub fn may_acknowledge_held(&self) -> bool {
        self.held && !self.skipped && self.unacknowledged() == self.next
    }

    /// The receiver has acknowledged what precedes delivered `ack`. Rewrites before it are forgotten, but not what is
    /// held back: its sender may still send it again.
    pub fn acknowledged(&mut self, ack: Seq) {
        self.acked = self.acked.max(ack);
        let Some(last) = self.map.last_start() else { return };
        let acknowledged = self.unacknowledged();
        self.map.forget_before(if self.held { acknowledged.min(last) } else { acknowledged });
    }

    /// Whether it is between two lines, and goes on.
    pub fn is_idle(&self) -> bool {
        self.line.is_empty() && !self.held && !self.finished
    }

    /// Bytes were missed up to `next`: the unfinished line is lost.
    pub fn skip_to(&mut self, next: Seq) {
        self.next = next;
        self.line = Few::default();
        self.held = false;
        self.gaps = 0;
        self.skipped = true;
    }

    /// What is held back has reached the receiver all the same.
    pub fn stop_holding(&mut self) {
        if self.held {
            self.map.forget_last();
            self.held = false;
        }
    }

    /// Drops what is kept for reading, but for what is held back and still to be delivered.
    pub fn stop_reading(&mut self) {
        if !self.held {
            self.line = Few::default();
        }
    }

    /// What is held back is delivered before `first`, the byte at `seq`, as nobody reads on.
    pub fn let_go(&mut self, seq: Seq, first: u8) {
        self.line.push(first);
        self.release(seq, 1);
        self.line = Few::default();
    }

    /// The unfinished line says nothing yet, and is delivered; of its last bytes `unfinished` are
    /// the start of a Telnet command.
    pub fn pass_over(&mut self, mut line: Vec<u8>, unfinished: usize) {
        line.drain(..line.len() - unfinished);
        line.truncate(MAX_LINE);
        self.line = line.into();
    }

    /// The whole unfinished line with `chunk`, which completes or continues it, and how many of
    /// its bytes have been delivered already.
    pub fn line_with<'a>(&'a mut self, chunk: &'a [u8]) -> (&'a [u8], usize) {
        if self.line.is_empty() {
            return (chunk, 0);
        }
        let delivered = if self.held { 0 } else { self.line.len() };
        self.lengthen_line(chunk);
        (&self.line, delivered)
    }

    /// `chunk` at `seq` ended its line, which is delivered as it is but for `edit`: a range of the
    /// whole line, and what takes its place. `delivered` of the line's bytes have been delivered.
    pub fn end_line(
        &mut self,
        seq: Seq,
        chunk: &[u8],
        delivered: usize,
        edit: Option<(std::ops::Range<usize>, Vec<u8>)>,
    ) {
        // A refused line longer than can be held: all of it, blanks as well, as what is as long is not kept.
        let is_long = |new: &[u8]| new.len() > MAX_HELD;
        if self.held {
            let mut line = mem::take(&mut self.line);
            match edit {
                Some((range, new)) if is_long(&new) => line[..range.end].fill(CROSSED_OUT),
                Some((range, new)) => drop(line.splice(range, new)),
                None => {}
            }
            self.release_line(seq, chunk, &line);
        } else if let Some((range, mut new)) = edit
            && let Some(start) = range.start.checked_sub(delivered)
        {
            if is_long(&new) {
                new.fill(CROSSED_OUT);
            }
            self.map.replace(seq + start as u32, range.len() as u32, new);
        }
        self.line = Few::default();
    }

    /// `line` is delivered in place of `chunk` at `seq`, or in place of its start where both end alike.
    fn release_line(&mut self, seq: Seq, chunk: &[u8], line: &[u8]) {
        let ends = line.iter().rev().zip(chunk.iter().skip(1).rev());
        let alike = ends.take_while(|(one, other)| one == other).count();
        let new = line[..line.len() - alike].to_vec();
        self.map.replace(seq, (chunk.len() - alike) as u32, new);
        self.held = false;
    }

    /// `chunk` at `seq` continues a line that is not complete. With `hold` it is held back, if all
    /// of the line can be; otherwise it is delivered, after what was held.
    pub fn continue_line(&mut self, seq: Seq, chunk: &[u8], hold: bool) {
        let starts = self.line.is_empty();
        if hold && (starts || self.held) {
            self.lengthen_line(chunk);
            self.held = true;
            self.map.replace(seq, chunk.len() as u32, Vec::new());
            return;
        }
        if self.held {
            self.release_line(seq, chunk, &[&self.line, chunk].concat());
        }
        self.lengthen_line(chunk);
    }

    /// Adds `chunk` to the line; if that is held back all of it, however long, as it is still to be
    /// delivered.
    fn lengthen_line(&mut self, chunk: &[u8]) {
        let room = if self.held { chunk.len() } else { MAX_LINE.saturating_sub(self.line.len()) };
        let chunk = &chunk[..chunk.len().min(room)];
        let line = &mut self.line;
        if line.capacity() - line.len() < chunk.len() {
            // Many lines may be unfinished, and few go on in many pieces.
            line.reserve_exact(chunk.len().max(line.len() / 4));
        }
        line.extend_from_slice(chunk);
    }

    /// The line so far is delivered in place of the `len` numbers at `seq`.
    fn release(&mut self, seq: Seq, len: u32) {
        self.map.replace(seq, len, self.line.to_vec());
        self.held = false;
    }

    /// `chunk` at `seq` makes the line that is held back longer than can be held: what there is of
    /// it is delivered with every byte crossed out, blanks as well, so that whatever follows in the
    /// line is no command; and is read as that.
    pub fn cross_out(&mut self, seq: Seq, chunk: &[u8]) {
        let line = &mut self.line;
        let count = line.len() + chunk.len();
        line.resize(count.min(MAX_LINE), CROSSED_OUT);
        line.fill(CROSSED_OUT);
        self.map.replace(seq, chunk.len() as u32, vec![CROSSED_OUT; count]);
        self.held = false;
    }

    /// A FIN at `seq` ends the stream: what is held back is delivered before it. The placeholder
    /// for the FIN's own number follows the held bytes.
    pub fn finish(&mut self, seq: Seq) {
        if self.held {
            self.line.push(0);
            self.release(seq, 1);
            self.line = Few::default();
        }
        self.finished = true;
    }

    /// How much memory it takes besides its own size.
    #[inline]
    pub fn heap(&self) -> usize {
        self.map.heap() + few::heap(&self.line)
    }

    /// How long a delivered segment may be.
    pub fn longest_segment(&self) -> usize {
        usize::from(self.largest).max(SAFE_SEGMENT)
    }

    /// The unfinished line.
    pub fn line(&self) -> &[u8] {
        &self.line
    }
}
