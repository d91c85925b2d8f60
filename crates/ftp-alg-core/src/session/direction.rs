//! One direction of a control connection: which bytes have been seen, the unfinished line, what
//! of it is held back, and how sent numbers become delivered ones.
//!
//! A line that may become an announcement is held back until it is complete: its bytes are kept
//! here, delivered as nothing for now, and delivered with the segment that completes the line. Held
//! bytes are acknowledged to their sender, so that it neither waits (Nagle's algorithm) nor sends
//! them again; but only once everything before them has been acknowledged by the receiver, as an
//! acknowledgement covers all that precedes it.

use serde::{Deserialize, Serialize};

use super::{
    adjust::CROSSED_OUT,
    few::{allocated, save_bytes},
    limits::{MAX_HELD, MAX_LINE},
    lines::LineEdit,
    sequence_space::SequenceSpace,
    tls::TlsRecords,
    unacknowledged::Unacknowledged,
    urgent::Mark,
};
use crate::packet::Seq;

/// One direction.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Direction {
    /// Where it is.
    pub space: SequenceSpace,
    rare: Option<Box<Rare>>,
}

/// What few directions have: in one place, as a packet's session is to be in few cache lines.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Rare {
    /// The unfinished line; of one that is not held back the first [`MAX_LINE`] bytes.
    #[serde(serialize_with = "save_bytes")]
    line: Vec<u8>,
    /// Whether the unfinished line is held back, all of it.
    held: bool,
    /// Bytes were missed, if the receiver did not lie: what it acknowledged may never have been sent.
    skipped: bool,
    /// What is sent while it is encrypted.
    records: Option<TlsRecords>,
    /// Whether much of what the client said waits for its acknowledgement.
    is_much: bool,
    /// Whether nothing of the client goes on until the server has said what it has.
    is_barred: bool,
    /// The last urgent pointer that was forwarded.
    mark: Option<Mark>,
    /// The smallest window that the packets of the pending command offered, if they acknowledged all that was said.
    #[serde(skip)]
    offered: u16,
}

impl Rare {
    fn is_nothing(&self) -> bool {
        self.line.is_empty()
            && !(self.held || self.skipped || self.is_much || self.is_barred)
            && self.records.is_none()
            && self.mark.is_none()
            && self.offered == 0
    }
}

impl Direction {
    /// A direction whose first byte has number `first`.
    pub fn new(first: Seq) -> Self {
        Self { space: SequenceSpace::new(first), rare: None }
    }

    /// Forgets all but where it is.
    pub fn forget(&mut self) {
        self.space.forget();
        self.rare = None;
    }

    /// Whether numbers differ from here on, or bytes are held.
    #[inline]
    pub fn changes_packets(&self) -> bool {
        self.space.map.shifts() || self.is_holding()
    }

    /// Whether much of what the client said waits for its acknowledgement.
    #[inline]
    pub fn is_much(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| rare.is_much)
    }

    /// Much of it does.
    pub fn note_much(&mut self) {
        self.rare_mut().is_much = true;
    }

    /// Of `data`, what was read of this direction, only what is not acknowledged is kept.
    #[inline]
    pub fn forget_acknowledged(&mut self, data: &mut Unacknowledged) {
        let is_empty = data.len() == 0 || data.forget_before(self.space.unacknowledged());
        if is_empty && let Some(rare) = &mut self.rare {
            rare.is_much = false;
        }
    }

    /// Whether nothing of the client goes on until the server has said what it has.
    #[inline]
    pub fn is_barred(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| rare.is_barred)
    }

    /// Nothing of the client does.
    pub fn bar(&mut self) {
        self.rare_mut().is_barred = true;
    }

    /// The server has said what it has, if it was asked.
    #[inline]
    pub fn unbar(&mut self) {
        if self.is_barred() && self.space.is_asked() {
            self.rare_mut().is_barred = false;
        }
    }

    /// What is sent while it is encrypted; nothing if that is plain text.
    pub fn records(&self) -> Option<&TlsRecords> {
        self.rare.as_ref()?.records.as_ref()
    }

    /// The same, to change.
    pub fn records_mut(&mut self) -> Option<&mut TlsRecords> {
        self.rare.as_mut()?.records.as_mut()
    }

    /// It is encrypted from here on.
    pub fn encrypt(&mut self) {
        self.stop_reading();
        self.rare_mut().records = Some(TlsRecords::default());
    }

    /// It is plain text again.
    pub fn decrypt(&mut self) {
        if let Some(rare) = &mut self.rare {
            rare.records = None;
        }
        self.tidy();
    }

    /// The last urgent pointer that was forwarded.
    pub fn mark(&self) -> Option<&Mark> {
        self.rare.as_ref()?.mark.as_ref()
    }

    /// The same, to change.
    pub fn mark_mut(&mut self) -> Option<&mut Mark> {
        self.rare.as_mut()?.mark.as_mut()
    }

    /// The last urgent pointer is this one.
    pub fn set_mark(&mut self, mark: Option<Mark>) {
        if self.rare.is_some() || mark.is_some() {
            self.rare_mut().mark = mark;
        }
    }

    /// Whether a line with an urgent byte is not complete.
    pub fn is_in_marked_line(&self) -> bool {
        self.mark().is_some_and(Mark::is_in_line)
    }

    /// The smallest window that the packets of the pending command offered.
    pub fn offered(&self) -> u16 {
        self.rare.as_ref().map_or(0, |rare| rare.offered)
    }

    /// They offered this one.
    pub fn set_offered(&mut self, window: u16) {
        self.rare_mut().offered = window;
    }

    fn rare_mut(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    /// Gives memory back that nothing needs.
    fn tidy(&mut self) {
        self.rare.take_if(|rare| rare.is_nothing());
    }

    fn line_mut(&mut self) -> &mut Vec<u8> {
        &mut self.rare_mut().line
    }

    fn take_line(&mut self) -> Vec<u8> {
        let Some(rare) = &mut self.rare else { return Vec::new() };
        let line = std::mem::take(&mut rare.line);
        rare.held = false;
        self.tidy();
        line
    }

    fn set_line(&mut self, line: Vec<u8>) {
        if self.rare.is_some() || !line.is_empty() {
            *self.line_mut() = line;
            self.tidy();
        }
    }

    /// Whether bytes are held back.
    #[inline]
    pub fn is_holding(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| rare.held)
    }

    fn set_held(&mut self, held: bool) {
        if self.is_holding() != held {
            self.rare_mut().held = held;
        }
    }

    /// Whether the byte `seq` is held back.
    pub fn is_held(&self, seq: Seq) -> bool {
        self.is_holding()
            && seq.is_before(self.space.next)
            && self.space.map.deliver(seq) == self.space.map.deliver(self.space.next)
    }

    /// What is held back may be acknowledged to its sender now.
    pub fn may_acknowledge_held(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| rare.held && !rare.skipped)
            && self.space.is_acknowledged()
    }

    /// The receiver has acknowledged what precedes delivered `ack`. Rewrites before it are forgotten, but not what is
    /// held back: its sender may still send it again.
    #[inline]
    pub fn acknowledged(&mut self, ack: Seq) {
        self.space.acked = self.space.acked.max(ack);
        let Some(last) = self.space.map.last_start() else { return };
        let acknowledged = self.space.unacknowledged();
        self.space.map.forget_before(if self.is_holding() {
            acknowledged.min(last)
        } else {
            acknowledged
        });
    }

    /// Whether it is between two lines, and goes on.
    pub fn is_idle(&self) -> bool {
        self.line().is_empty() && !self.is_holding() && !self.space.finished
    }

    /// Whether it has nothing of what few directions have.
    pub fn has_nothing_rare(&self) -> bool {
        self.rare.is_none()
    }

    /// Bytes were missed up to `next`: the unfinished line is lost.
    pub fn skip_to(&mut self, next: Seq) {
        self.space.next = next;
        self.space.end_gap();
        let rare = self.rare_mut();
        (rare.line, rare.held) = (Vec::new(), false);
        rare.skipped = true;
    }

    /// What is held back has reached the receiver all the same.
    pub fn stop_holding(&mut self) {
        if self.is_holding() {
            self.space.map.forget_last();
            self.set_held(false);
        }
    }

    /// Drops what is kept for reading, but for what is held back and still to be delivered.
    pub fn stop_reading(&mut self) {
        if !self.is_holding() {
            self.take_line();
        }
    }

    /// What is held back is delivered before `first`, the byte at `seq`, as nobody reads on.
    pub fn let_go(&mut self, seq: Seq, first: u8) {
        self.line_mut().push(first);
        self.release(seq);
    }

    /// The unfinished line says nothing yet, and is delivered; of its last bytes `unfinished` are
    /// the start of a Telnet command.
    pub fn pass_over(&mut self, mut line: Vec<u8>, unfinished: usize) {
        line.drain(..line.len() - unfinished);
        line.truncate(MAX_LINE);
        line.shrink_to_fit();
        self.set_line(line);
    }

    /// The whole unfinished line with `chunk`, which completes or continues it, and how many of
    /// its bytes have been delivered already.
    pub fn line_with<'a>(&'a mut self, chunk: &'a [u8]) -> (&'a [u8], usize) {
        let length = self.line().len();
        if length == 0 {
            return (chunk, 0);
        }
        self.lengthen_line(chunk);
        (self.line(), if self.is_holding() { 0 } else { length })
    }

    /// What was added to the unfinished line behind `length` is to be added again.
    pub fn shorten_line(&mut self, length: usize) {
        if let Some(rare) = &mut self.rare {
            rare.line.truncate(length);
        }
    }

    /// `chunk` at `seq` ended its line, which is delivered as it is but for `edit`: a range of the
    /// whole line, and what takes its place. `delivered` of the line's bytes have been delivered.
    pub fn end_line(&mut self, seq: Seq, chunk: &[u8], delivered: usize, edit: LineEdit) {
        // A refused line longer than can be held: all of it, blanks as well, as what is as long is not kept.
        let is_long = |new: &[u8]| new.len() > MAX_HELD;
        if self.is_holding() {
            let mut line = self.take_line();
            match edit {
                Some((range, new)) if is_long(&new) => line[..range.end].fill(CROSSED_OUT),
                Some((range, new)) => drop(line.splice(range, new)),
                None => {}
            }
            self.release_line(seq, chunk, line);
        } else if let Some((range, mut new)) = edit
            && let Some(start) = range.start.checked_sub(delivered)
        {
            if is_long(&new) {
                new.fill(CROSSED_OUT);
            }
            self.space.map.replace(seq + start as u32, range.len() as u32, &new);
        }
        self.take_line();
    }

    /// `line` is delivered in place of `chunk` at `seq`, or in place of its start where both end alike.
    fn release_line(&mut self, seq: Seq, chunk: &[u8], mut line: Vec<u8>) {
        let ends = line.iter().rev().zip(chunk.iter().skip(1).rev());
        let alike = ends.take_while(|(one, other)| one == other).count();
        line.truncate(line.len() - alike);
        self.space.map.replace(seq, (chunk.len() - alike) as u32, &line);
        self.set_held(false);
    }

    /// `chunk` at `seq` continues a line that is not complete. With `hold` it is held back, if all
    /// of the line can be; otherwise it is delivered, after what was held.
    pub fn continue_line(&mut self, seq: Seq, chunk: &[u8], hold: bool) {
        let starts = self.line().is_empty();
        if hold && (starts || self.is_holding()) {
            self.lengthen_line(chunk);
            self.set_held(true);
            self.space.map.replace(seq, chunk.len() as u32, &[]);
            return;
        }
        if self.is_holding() {
            self.release_line(seq, chunk, [self.line(), chunk].concat());
        }
        self.lengthen_line(chunk);
    }

    /// Adds `chunk` to the line; if that is held back all of it, however long, as it is still to be
    /// delivered.
    fn lengthen_line(&mut self, chunk: &[u8]) {
        let is_held = self.is_holding();
        let line = self.line_mut();
        let room = if is_held { chunk.len() } else { MAX_LINE.saturating_sub(line.len()) };
        let chunk = &chunk[..chunk.len().min(room)];
        if line.capacity() - line.len() < chunk.len() {
            // Many lines may be unfinished, and few go on in many pieces.
            line.reserve_exact(chunk.len().max(line.len() / 4));
        }
        line.extend_from_slice(chunk);
    }

    /// The line so far is delivered in place of the byte at `seq`.
    fn release(&mut self, seq: Seq) {
        let line = self.take_line();
        self.space.map.replace(seq, 1, &line);
        self.set_held(false);
    }

    /// `chunk` at `seq` makes the line that is held back longer than can be held: what there is of
    /// it is delivered with every byte crossed out, blanks as well, so that whatever follows in the
    /// line is no command; and is read as that.
    pub fn cross_out(&mut self, seq: Seq, chunk: &[u8]) {
        let line = self.line_mut();
        let count = line.len() + chunk.len();
        line.resize(count.min(MAX_LINE), CROSSED_OUT);
        line.fill(CROSSED_OUT);
        self.space.map.replace(seq, chunk.len() as u32, &vec![CROSSED_OUT; count]);
        self.set_held(false);
    }

    /// A FIN at `seq` ends the stream: what is held back is delivered before it. The placeholder
    /// for the FIN's own number follows the held bytes.
    pub fn finish(&mut self, seq: Seq) {
        if self.is_holding() {
            self.line_mut().push(0);
            self.release(seq);
        }
        self.space.finished = true;
        self.space.next = seq + 1;
    }

    /// How much memory it takes besides its own size.
    #[inline]
    pub fn heap(&self) -> usize {
        let map = self.space.map.heap();
        self.rare.as_ref().map_or(map, |rare| {
            map + allocated(size_of::<Rare>()) + allocated(rare.line.capacity())
        })
    }

    /// The unfinished line.
    pub fn line(&self) -> &[u8] {
        self.rare.as_ref().map_or(&[], |rare| &rare.line)
    }
}
