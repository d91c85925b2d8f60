//! From segments to lines: bytes are read in the order of their numbers, each once, whether they were queued or took the
//! fast path.

use super::{
    Limit, Note, Side,
    reading::{Ends, Reading},
};
use crate::packet::Seq;

impl Reading<'_> {
    /// Reads what is new of `payload` at `seq`, which was queued and has what passed ahead in it, as far as limits allow;
    /// a FIN follows it if `fin`. What passed is read as whole as it passed.
    #[inline(always)]
    pub(super) fn queued(&mut self, seq: Seq, payload: &[u8], fin: bool) {
        let (next, end) = (self.direction.space.next, seq + payload.len() as u32);
        if self.direction.fast_path().is_some_and(|fast_path| fast_path.has_passed()) {
            self.between_passed(seq, payload, fin);
        } else if next.is_before(end) {
            self.new_bytes(next, &payload[(next - seq) as usize..], fin);
        }
        if fin && self.direction.space.next == end {
            self.direction.finish(end);
        }
    }

    /// The same, where something passed ahead.
    #[cold]
    fn between_passed(&mut self, seq: Seq, payload: &[u8], fin: bool) {
        let end = seq + payload.len() as u32;
        self.ahead();
        while self.direction.space.next.is_before(end) {
            let next = self.direction.space.next;
            let fast_path = self.direction.fast_path();
            let stop = fast_path.map_or(end, |fast_path| fast_path.next_start(next, end));
            let new = &payload[(next - seq) as usize..(stop - seq) as usize];
            self.new_bytes(next, new, fin && stop == end);
            if self.direction.space.next.is_before(stop) {
                return; // the rest waits
            }
            self.ahead();
        }
    }

    /// Reads what is new of `payload` at `seq`, which has passed, and what had passed ahead of it.
    pub(super) fn passed(&mut self, seq: Seq, payload: &[u8]) {
        self.passed_alone(seq, payload);
        self.ahead();
    }

    fn passed_alone(&mut self, seq: Seq, payload: &[u8]) {
        let new = (self.direction.space.next - seq) as usize;
        let Some(payload) = payload.get(new..).filter(|new| !new.is_empty()) else { return };
        self.has_passed = true;
        self.new_bytes(seq + new as u32, payload, false);
        self.has_passed = false;
        self.direction.space.end_gap();
    }

    /// What precedes was read up to a line that had passed before, or to the FIN.
    fn ahead(&mut self) {
        while let Some((seq, payload)) = self.direction.take_ahead() {
            self.pushed = Default::default(); // that of another packet
            self.passed_alone(seq, &payload);
        }
        if self.direction.fast_path().and_then(|fast_path| fast_path.fin())
            == Some(self.direction.space.next)
        {
            self.direction.finish(self.direction.space.next);
        }
    }

    /// Lines up to `end` have passed, and of those of which no copy came nothing is known.
    #[cold]
    pub(super) fn skip_lines(&mut self, end: Seq) {
        while self.direction.space.next.is_before(end) {
            let next = self.direction.space.next;
            let fast_path = self.direction.fast_path();
            let stop = fast_path.map_or(end, |fast_path| fast_path.next_start(next, end));
            self.direction.skip_to(stop);
            self.direction.fast_path_mut().skipped_to(stop);
            self.dialogue.miss(self.from);
            self.ahead();
        }
        if self.from == Side::Client {
            self.direction.forget_acknowledged(self.unacknowledged);
        }
    }

    /// A line begins at `seq`, as its segment ended the fast path. The server's are not waited for: a retransmission of
    /// them opens nothing. Of the client's it must be known that the server has them, lest another takes their place.
    pub(super) fn begins_line(&mut self, seq: Seq) {
        let next = self.direction.space.next;
        if seq.is_after(next) || self.direction.fast_path().is_some() {
            self.direction.fast_path_mut().begins_line(seq, next);
        }
        let is_missed = self.from == Side::Server && self.standing.lacks_lines_of(self.from);
        if is_missed && self.direction.space.is_near(seq) {
            self.skip_lines(seq);
        }
    }

    /// Reads `new`, which is next and starts at `seq`; a FIN follows it if `fin`. Line by line, and only up to the one
    /// for which there is no room, or that asks: that waits, with what follows it.
    #[inline(always)]
    fn new_bytes(&mut self, mut seq: Seq, mut new: &[u8], fin: bool) {
        while !new.is_empty() {
            let is_text = self.standing.reads(self.direction);
            let end = if is_text { memchr::memchr(b'\n', new) } else { None };
            let (line, rest) = new.split_at(end.map_or(new.len(), |end| end + 1));
            let mut keeps = self.from == Side::Client && is_text;
            match self.limit(keeps, line.len()) {
                // It has passed, and is not compared with a retransmission.
                Some(_) if self.has_passed => {
                    if self.from == Side::Client {
                        self.direction.fast_path_mut().bar(seq + line.len() as u32);
                    }
                    keeps = false;
                }
                Some(limit) => return self.pass.limit(limit),
                None => {}
            }
            let read = if is_text {
                self.line(
                    seq,
                    line,
                    Ends { segment: rest.is_empty(), stream: fin && rest.is_empty() },
                );
                if self.pass.request.is_some() {
                    return;
                }
                line.len()
            } else {
                self.text_start(seq, new).unwrap_or(new.len())
            };
            if keeps {
                self.unacknowledged.keep(seq, line);
            }
            (seq, new) = (seq + read as u32, &new[read..]);
            self.direction.space.next = seq;
        }
    }

    /// Why `more` bytes may not be read now, which are kept until they are acknowledged if the session `keeps` them.
    fn limit(&self, keeps: bool, more: usize) -> Option<Limit> {
        if self.direction.space.map.is_full() {
            Some(Limit::Rewrites)
        } else {
            (keeps && !self.unacknowledged.has_room(more)).then_some(Limit::Kept)
        }
    }

    /// Where in the bytes `new` at `seq`, which begin as something else, text begins again; `None`
    /// if it does not.
    #[cold]
    fn text_start(&mut self, seq: Seq, new: &[u8]) -> Option<usize> {
        let was_holding = self.direction.is_holding();
        if was_holding {
            self.direction.let_go(seq, *new.first()?);
        }
        if self.standing.is_off() {
            return None;
        }
        let records = self.direction.records_mut()?;
        let start = records.follow(new)?;
        let is_complete = records.is_complete();
        if was_holding && start == 0 {
            // It goes on a line whose start went with its first byte.
            self.stop_reading();
            return None;
        }
        match self.other.records() {
            Some(others) => {
                self.dialogue.resume(is_complete && others.is_complete());
                self.pass.note(Note::Readable);
            }
            None => self.standing.follow(),
        }
        self.direction.decrypt();
        Some(start)
    }
}
