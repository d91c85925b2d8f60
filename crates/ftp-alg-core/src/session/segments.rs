//! From segments to lines: bytes are read in the order of their sequence numbers, each once.

use super::{
    DialogueEvent, SessionLimit, Side,
    reading::{DirectionReader, LineBoundary},
    tls::is_binary_start,
};
use crate::{
    ftp::{Text, without_nuls},
    packet::Seq,
};

impl DirectionReader<'_> {
    /// Reads the new part of `payload` at `seq`, as far as limits allow; a FIN follows it if `fin`.
    #[inline(always)]
    pub(super) fn read_segment(&mut self, seq: Seq, payload: &[u8], fin: bool) {
        let (next, end) = (self.direction.space.next, seq + payload.len() as u32);
        if next.is_before(end) {
            self.read_new_bytes(next, &payload[(next - seq) as usize..], fin);
        }
        if fin && self.direction.space.next == end {
            self.direction.finish_stream(end);
        }
    }

    /// Reads `new`, the next bytes, which start at `seq`; a FIN follows if `fin`. Stops before a line that exceeds a
    /// limit or needs a decision; that line and the rest are not forwarded yet.
    #[inline(always)]
    fn read_new_bytes(&mut self, mut seq: Seq, mut new: &[u8], fin: bool) {
        while !new.is_empty() {
            let is_text =
                self.inspection_state.reads_text(self.direction) && !self.begins_encryption(new[0]);
            // Most segments are one line, and then scanned once. One whose decision has arrived was parsed before.
            let may_be_line = is_text
                && new.ends_with(b"\n")
                && self.direction.line().is_empty()
                && self.inspection.answer.is_none();
            let text = if may_be_line { Text::of_plain(new) } else { None };
            let is_line = !is_text || text.is_some();
            let end = if is_line { None } else { memchr::memchr(b'\n', new) };
            let (line, rest) = new.split_at(end.map_or(new.len(), |end| end + 1));
            let stores = self.from == Side::Client && is_text;
            if let Some(limit) = self.reached_limit(stores, line.len()) {
                return self.inspection.push_limit(limit);
            }
            let read = if is_text {
                self.read_line_part(
                    seq,
                    (line, text.as_ref()),
                    LineBoundary {
                        ends_segment: without_nuls(rest).is_empty(),
                        ends_stream: fin && rest.is_empty(),
                    },
                );
                if self.inspection.pending.is_some() {
                    return;
                }
                line.len()
            } else {
                self.find_text_start(seq, new).unwrap_or(new.len())
            };
            if stores {
                self.unacknowledged.push(seq, line);
            }
            (seq, new) = (seq + read as u32, &new[read..]);
            self.direction.space.next = seq;
        }
    }

    /// The limit that does not allow `more` bytes now. If `stores` is set, they are stored until they are
    /// acknowledged.
    fn reached_limit(&self, stores: bool, more: usize) -> Option<SessionLimit> {
        if self.direction.space.map.is_full() {
            Some(SessionLimit::Rewrites)
        } else {
            (stores && !self.unacknowledged.has_room(more))
                .then_some(SessionLimit::UnacknowledgedData)
        }
    }

    /// Index in `new`, which starts at `seq` as other data, at which text starts again; `None` if it does not.
    #[cold]
    fn find_text_start(&mut self, seq: Seq, new: &[u8]) -> Option<usize> {
        let was_holding = self.direction.is_holding();
        if was_holding {
            self.direction.release_before(seq, *new.first()?);
        }
        if self.inspection_state.is_off() {
            return None;
        }
        let records = self.direction.tls_records_mut()?;
        let start = records.follow(new)?;
        if records.is_fresh() && is_binary_start(new[start]) {
            // The server has accepted `AUTH`, and this is neither TLS nor text.
            self.end_inspection();
            return None;
        }
        let is_complete = records.is_complete();
        if was_holding && start == 0 {
            // It continues a line whose start was delivered with its first byte.
            self.stop_reading();
            return None;
        }
        match self.opposite.tls_records() {
            Some(opposite_records) => {
                self.dialogue.resume_plaintext(is_complete && opposite_records.is_complete());
                self.inspection.push_event(DialogueEvent::PlaintextResumed);
            }
            None => self.inspection_state.return_to_inline(),
        }
        self.direction.end_tls();
        Some(start)
    }
}
