//! From segments to lines: bytes are read in the order of their sequence numbers, each once.

use super::{
    DialogueEvent, SessionLimit, Side,
    reading::{DirectionReader, LineEnds},
};
use crate::packet::Seq;

impl DirectionReader<'_> {
    /// Reads the new part of `payload` at `seq`, as far as limits allow; a FIN follows it if `fin`.
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

    /// Reads `new`, the next bytes, which start at `seq`; a FIN follows if `fin`. Stops before a line that exceeds a
    /// limit or needs a decision; that line and the rest are not forwarded yet.
    #[inline(always)]
    fn new_bytes(&mut self, mut seq: Seq, mut new: &[u8], fin: bool) {
        while !new.is_empty() {
            let is_text = self.standing.reads_text(self.direction);
            let end = if is_text { memchr::memchr(b'\n', new) } else { None };
            let (line, rest) = new.split_at(end.map_or(new.len(), |end| end + 1));
            let keeps = self.from == Side::Client && is_text;
            if let Some(limit) = self.limit(keeps, line.len()) {
                return self.pass.push_limit(limit);
            }
            let read = if is_text {
                self.line(
                    seq,
                    line,
                    LineEnds { segment: rest.is_empty(), stream: fin && rest.is_empty() },
                );
                if self.pass.pending.is_some() {
                    return;
                }
                line.len()
            } else {
                self.text_start(seq, new).unwrap_or(new.len())
            };
            if keeps {
                self.unacknowledged.push(seq, line);
            }
            (seq, new) = (seq + read as u32, &new[read..]);
            self.direction.space.next = seq;
        }
    }

    /// The limit that does not allow `more` bytes now. If the session `keeps` them, they are stored until they are
    /// acknowledged.
    fn limit(&self, keeps: bool, more: usize) -> Option<SessionLimit> {
        if self.direction.space.map.is_full() {
            Some(SessionLimit::Rewrites)
        } else {
            (keeps && !self.unacknowledged.has_room(more))
                .then_some(SessionLimit::UnacknowledgedData)
        }
    }

    /// Index in `new`, which starts at `seq` as other data, at which text starts again; `None` if it does not.
    #[cold]
    fn text_start(&mut self, seq: Seq, new: &[u8]) -> Option<usize> {
        let was_holding = self.direction.is_holding();
        if was_holding {
            self.direction.release_before(seq, *new.first()?);
        }
        if self.standing.is_off() {
            return None;
        }
        let records = self.direction.records_mut()?;
        let start = records.follow(new)?;
        let is_complete = records.is_complete();
        if was_holding && start == 0 {
            // It continues a line whose start was delivered with its first byte.
            self.stop_reading();
            return None;
        }
        match self.other.records() {
            Some(others) => {
                self.dialogue.resume(is_complete && others.is_complete());
                self.pass.push_event(DialogueEvent::Readable);
            }
            None => self.standing.return_to_inline(),
        }
        self.direction.decrypt();
        Some(start)
    }
}
