//! From segments to lines: bytes are read in the order of their numbers, each once.

use super::{
    Limit, Note, Side,
    reading::{Ends, Reading},
};
use crate::packet::Seq;

impl Reading<'_> {
    /// Reads what is new of `payload` at `seq`, as far as limits allow; a FIN follows it if `fin`.
    #[inline(always)]
    pub(super) fn segment(&mut self, seq: Seq, payload: &[u8], fin: bool) {
        let (next, end) = (self.direction.space.next, seq + payload.len() as u32);
        if next.is_before(end) {
            self.new_bytes(next, &payload[(next - seq) as usize..], fin);
        }
        if fin && self.direction.space.next == end {
            self.direction.finish(end);
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
            let keeps = self.from == Side::Client && is_text;
            if let Some(limit) = self.limit(keeps, line.len()) {
                return self.pass.limit(limit);
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
