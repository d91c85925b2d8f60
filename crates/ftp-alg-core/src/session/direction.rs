//! One direction of a control connection: the bytes seen so far, the unfinished line, the bytes that are held back, and
//! the sequence adjustment.
//!
//! A line that may become an announcement is held back until it is complete. Its bytes are stored here, delivered as
//! nothing for now, and delivered with the segment that completes the line. Held bytes are acknowledged to their
//! sender, so that it neither waits (Nagle's algorithm) nor retransmits. The acknowledgement is sent only after the
//! receiver has acknowledged everything before the held bytes, because an acknowledgement covers all earlier bytes.

use std::{borrow::Cow, ops::Range};

use serde::{Deserialize, Serialize, Serializer};

use super::{
    MAX_HELD, MAX_LINE,
    compact::{self, SmallBytes, allocation_size, serialize_bytes},
    sequence::CROSS_OUT_BYTE,
    sequence::SequenceSpace,
    tls::TlsRecords,
    urgent::UrgentPointer,
};
use crate::{
    ftp::{VerbScanner, without_nuls},
    packet::Seq,
};

/// A range of a line and its replacement.
pub type LineEdit = Option<(Range<usize>, SmallBytes)>;

/// One direction.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Direction {
    /// Sequence numbers and sequence adjustment.
    pub space: SequenceSpace,
    extra: Option<Box<Extra>>,
}

/// State that few directions need. It is boxed so that a session fits into few cache lines.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Extra {
    /// The unfinished line; if it is not held back, at most its first [`MAX_LINE`] bytes.
    #[serde(serialize_with = "serialize_bytes")]
    line: Vec<u8>,
    /// The state of the scan behind the client's unfinished line, if more of it was forwarded than is stored.
    pub scanner: Option<VerbScanner>,
    /// Whether the client has begun a Telnet subnegotiation, on any line.
    pub has_subnegotiation: bool,
    /// Whether the whole unfinished line is held back.
    is_held_back: bool,
    /// Whether bytes were missed, according to the receiver's acknowledgements. A receiver may lie, so the bytes may
    /// never have been sent.
    has_missed_bytes: bool,
    /// TLS records, while the direction is encrypted.
    pub tls_records: TlsRecords,
    /// Whether so much data is unacknowledged that pure acknowledgements must be queued.
    pub has_much_unacknowledged: bool,
    /// Whether the client's data is blocked until the server's acknowledgement shows which bytes it has.
    pub is_blocked: bool,
    /// The urgent pointer that was forwarded last.
    pub urgent: Option<UrgentPointer>,
    /// Up to which sequence number of the server the packets of the pending commands let it send.
    #[serde(skip)]
    pub window_end: Option<Seq>,
    /// The end of a packet of the server that is a reply line of its own, except for its line end.
    #[serde(skip)]
    pub line_without_end: Option<Seq>,
}

impl Extra {
    const fn nothing() -> Self {
        Self {
            line: Vec::new(),
            scanner: None,
            has_subnegotiation: false,
            is_held_back: false,
            has_missed_bytes: false,
            tls_records: TlsRecords::NONE,
            has_much_unacknowledged: false,
            is_blocked: false,
            urgent: None,
            window_end: None,
            line_without_end: None,
        }
    }

    fn is_empty(&self) -> bool {
        self.line.is_empty()
            && !(self.is_held_back
                || self.has_missed_bytes
                || self.has_much_unacknowledged
                || self.is_blocked
                || self.has_subnegotiation)
            && self.scanner.is_none()
            && self.tls_records.is_fresh()
            && self.urgent.is_none()
            && self.window_end.is_none()
    }
}

impl Direction {
    /// A direction whose first byte has the sequence number `first`.
    pub fn new(first: Seq) -> Self {
        Self { space: SequenceSpace::new(first), extra: None }
    }

    /// Forgets everything except the sequence numbers.
    pub fn reset(&mut self) {
        self.space.reset();
        self.extra = None;
    }

    /// Whether sequence numbers differ, or bytes are held back.
    #[inline]
    pub fn changes_packets(&self) -> bool {
        self.space.map.changes_numbers() || self.is_holding()
    }

    /// Whether pure acknowledgements must be queued, because much data is unacknowledged.
    #[inline]
    pub fn has_much_unacknowledged(&self) -> bool {
        self.extra.as_ref().is_some_and(|extra| extra.has_much_unacknowledged)
    }

    /// The state that few directions have; empty if there is none.
    #[inline]
    pub fn extra(&self) -> &Extra {
        static NOTHING: Extra = Extra::nothing();
        self.extra.as_deref().unwrap_or(&NOTHING)
    }

    /// The state that few directions have, to set some of it.
    pub fn extra_mut(&mut self) -> &mut Extra {
        self.extra.get_or_insert_with(|| Box::new(Extra::nothing()))
    }

    /// The state that few directions have, if there is any.
    pub fn existing_extra_mut(&mut self) -> Option<&mut Extra> {
        self.extra.as_deref_mut()
    }

    /// Drops the part of `data` that the receiver has acknowledged.
    #[inline]
    pub fn forget_acknowledged(&mut self, data: &mut UnacknowledgedData) {
        let is_empty = data.bytes.is_empty() || data.forget_before(self.space.unacknowledged());
        if is_empty && let Some(extra) = &mut self.extra {
            extra.has_much_unacknowledged = false;
        }
    }

    /// Unblocks the client's data if the server was probed: its acknowledgement has arrived.
    #[inline]
    pub fn unblock(&mut self) {
        if self.extra().is_blocked && self.space.is_probing() {
            self.extra_mut().is_blocked = false;
        }
    }

    /// Sets where in the TLS records the direction is; fresh ones if plain text follows, or the first record.
    pub fn set_records(&mut self, records: TlsRecords) {
        if self.extra.is_some() || !records.is_fresh() {
            self.extra_mut().tls_records = records;
        }
        self.release_unused();
    }

    /// Sets the urgent pointer that was forwarded last.
    pub fn set_urgent(&mut self, pointer: Option<UrgentPointer>) {
        if self.extra.is_some() || pointer.is_some() {
            self.extra_mut().urgent = pointer;
        }
    }

    /// Sets up to which sequence number of the server the packets of the pending commands let it send.
    pub fn set_window_end(&mut self, end: Option<Seq>) {
        if self.extra.as_ref().and_then(|extra| extra.window_end) != end {
            self.extra_mut().window_end = end;
            self.release_unused();
        }
    }

    /// Frees the boxed state if it is empty.
    fn release_unused(&mut self) {
        self.extra.take_if(|extra| extra.is_empty());
    }

    fn take_line(&mut self) -> Vec<u8> {
        let Some(extra) = &mut self.extra else { return Vec::new() };
        let line = std::mem::take(&mut extra.line);
        (extra.scanner, extra.is_held_back) = (None, false);
        self.release_unused();
        line
    }

    fn set_line(&mut self, line: Vec<u8>) {
        if self.extra.is_some() || !line.is_empty() {
            let extra = self.extra_mut();
            (extra.line, extra.scanner) = (line, None);
            self.release_unused();
        }
    }

    /// Whether bytes are held back.
    #[inline]
    pub fn is_holding(&self) -> bool {
        self.extra.as_ref().is_some_and(|extra| extra.is_held_back) // for every packet
    }

    /// Whether the byte with sequence number `seq` is held back.
    pub fn is_held(&self, seq: Seq) -> bool {
        self.is_holding()
            && seq.is_before(self.space.next)
            && self.space.map.to_delivered(seq) == self.space.map.to_delivered(self.space.next)
    }

    /// Whether the held bytes may be acknowledged to their sender now.
    pub fn may_acknowledge_held(&self) -> bool {
        self.is_holding() && !self.extra().has_missed_bytes && self.space.is_acknowledged()
    }

    /// The receiver has acknowledged everything before the delivered sequence number `ack`. Rewrites before it are
    /// forgotten, except held bytes, which their sender may still retransmit.
    #[inline]
    pub fn record_acknowledgement(&mut self, ack: Seq) {
        self.space.acked = self.space.acked.max(ack);
        if !self.space.map.is_constant_offset() {
            self.space.map.forget_before(self.space.unacknowledged(), self.is_holding());
        }
    }

    /// Whether no line is unfinished and no FIN was sent.
    pub fn is_idle(&self) -> bool {
        self.line().is_empty() && !self.is_holding() && !self.space.finished
    }

    /// Whether no line is unfinished, apart from NULs that some send behind a line, and no FIN was sent.
    pub fn is_between_lines(&self) -> bool {
        without_nuls(self.line()).is_empty() && !self.is_holding() && !self.space.finished
    }

    /// Whether there is no state of the kind that few directions have.
    pub fn has_no_extra(&self) -> bool {
        self.extra.is_none()
    }

    /// Bytes up to `next` were missed. Drops the unfinished line.
    pub fn skip_missed(&mut self, next: Seq) {
        self.space.next = next;
        self.space.end_gap();
        let extra = self.extra_mut();
        (extra.line, extra.scanner, extra.is_held_back) = (Vec::new(), None, false);
        extra.has_missed_bytes = true;
    }

    /// The held bytes have reached the receiver without us: forgets them.
    pub fn stop_holding(&mut self) {
        if self.is_holding() {
            self.space.map.forget_last();
            self.extra_mut().is_held_back = false;
        }
    }

    /// Drops the unfinished line, unless it is held back and still has to be delivered.
    pub fn stop_reading(&mut self) {
        if !self.is_holding() {
            self.take_line();
        }
    }

    /// Delivers the held bytes before `first`, the byte at `seq`, because inspection ends.
    pub fn release_before(&mut self, seq: Seq, first: u8) {
        self.extra_mut().line.push(first);
        self.release_line_at(seq);
    }

    /// Delivers the unfinished line, which cannot become an announcement. Its last `unfinished` bytes are the start of
    /// a Telnet command and stay.
    pub fn forward_unread_start(&mut self, mut line: Vec<u8>, unfinished: usize) {
        line.drain(..line.len() - unfinished);
        line.truncate(MAX_LINE);
        line.shrink_to_fit();
        self.set_line(line);
    }

    /// The line that `chunk` completes, as far as it is stored.
    pub fn whole_line(&self, chunk: &[u8]) -> Vec<u8> {
        let stored = self.line();
        let room =
            if self.is_holding() { usize::MAX } else { MAX_LINE.saturating_sub(stored.len()) };
        [stored, &chunk[..chunk.len().min(room)]].concat()
    }

    /// `chunk` at `seq` completes the line `whole`. That is delivered unchanged except for `edit`, a range of it and its
    /// replacement. `delivered` bytes of it have been delivered.
    pub fn end_line(
        &mut self,
        seq: Seq,
        chunk: &[u8],
        whole: &[u8],
        delivered: usize,
        edit: LineEdit,
    ) {
        // A refused line may be longer than the limit of held bytes. All of it is crossed out, spaces too, because a
        // replacement of that length is not stored.
        let is_long = |new: &[u8]| new.len() > MAX_HELD;
        if self.is_holding() {
            let mut line = whole.to_vec();
            match edit {
                Some((range, new)) if is_long(&new) => line[..range.end].fill(CROSS_OUT_BYTE),
                Some((range, new)) => drop(line.splice(range, new)),
                None => {}
            }
            self.release_line(seq, chunk, line);
        } else if let Some((range, mut new)) = edit
            && let Some(start) = range.start.checked_sub(delivered)
        {
            if is_long(&new) {
                new.fill(CROSS_OUT_BYTE);
            }
            self.space.map.replace(seq + start as u32, range.len() as u32, &new);
        }
        self.take_line();
    }

    /// Delivers `line` in place of `chunk` at `seq`, or in place of the start of `chunk` if both end alike.
    fn release_line(&mut self, seq: Seq, chunk: &[u8], mut line: Vec<u8>) {
        let ends = line.iter().rev().zip(chunk.iter().skip(1).rev());
        let alike = ends.take_while(|(one, other)| one == other).count();
        line.truncate(line.len() - alike);
        self.space.map.replace(seq, (chunk.len() - alike) as u32, &line);
    }

    /// `chunk` at `seq` continues an incomplete line. With `hold` it is held back if the whole line can be; otherwise
    /// it is delivered, after the bytes held so far.
    pub fn continue_line(&mut self, seq: Seq, chunk: &[u8], hold: bool) {
        let starts = self.line().is_empty();
        if hold && (starts || self.is_holding()) {
            self.append_to_line(chunk);
            self.extra_mut().is_held_back = true;
            self.space.map.replace(seq, chunk.len() as u32, &[]);
            return;
        }
        if self.is_holding() {
            self.release_line(seq, chunk, [self.line(), chunk].concat());
            self.extra_mut().is_held_back = false;
        }
        self.append_to_line(chunk);
    }

    /// Appends `chunk` to the unfinished line. A line that is held back is stored in full, because it has to be
    /// delivered later.
    fn append_to_line(&mut self, chunk: &[u8]) {
        let is_held = self.is_holding();
        let line = &mut self.extra_mut().line;
        let room = if is_held { chunk.len() } else { MAX_LINE.saturating_sub(line.len()) };
        let chunk = &chunk[..chunk.len().min(room)];
        if line.capacity() - line.len() < chunk.len() {
            // Many lines may be unfinished, and few grow in many steps.
            line.reserve_exact(chunk.len().max(line.len() / 4));
        }
        line.extend_from_slice(chunk);
    }

    /// Delivers the unfinished line in place of the byte at `seq`.
    fn release_line_at(&mut self, seq: Seq) {
        let line = self.take_line();
        self.space.map.replace(seq, 1, &line);
    }

    /// `chunk` at `seq` makes the held line longer than the limit. The line so far is delivered with every byte
    /// crossed out, spaces too, so that nothing later in the line is a command. It is also read like that.
    pub fn cross_out_held_line(&mut self, seq: Seq, chunk: &[u8]) {
        let extra = self.extra_mut();
        extra.is_held_back = false;
        let line = &mut extra.line;
        let count = line.len() + chunk.len();
        line.resize(count.min(MAX_LINE), CROSS_OUT_BYTE);
        line.fill(CROSS_OUT_BYTE);
        self.space.map.replace(seq, chunk.len() as u32, &vec![CROSS_OUT_BYTE; count]);
    }

    /// A FIN at `seq` ends the stream. The held bytes are delivered before it, followed by a placeholder for the FIN's
    /// own sequence number.
    pub fn finish_stream(&mut self, seq: Seq) {
        if self.is_holding() {
            self.extra_mut().line.push(0);
            self.release_line_at(seq);
        }
        self.space.finished = true;
        self.space.next = seq + 1;
    }

    /// Heap memory in bytes.
    #[inline]
    pub fn heap_size(&self) -> usize {
        let map = self.space.map.heap_size();
        self.extra.as_ref().map_or(map, |extra| {
            map + allocation_size(size_of::<Extra>()) + allocation_size(extra.line.capacity())
        })
    }

    /// The unfinished line.
    pub fn line(&self) -> &[u8] {
        self.extra.as_ref().map_or(&[], |extra| &extra.line) // for every packet
    }
}

/// Limit of the client's unacknowledged data in bytes. Beyond it nothing is forwarded until some data is acknowledged.
const MAX_UNACKNOWLEDGED: usize = 1 << 17;

/// Beyond this many bytes, pure acknowledgements must be queued, too. Up to it there is room for any packet.
const MUCH_UNACKNOWLEDGED: usize = 1 << 14;

/// The client's data that was read and is not known to be acknowledged. A retransmission is replaced by the bytes that
/// were read first, so that no other command can take their place.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UnacknowledgedData {
    /// The data.
    #[serde(serialize_with = "serialize_short")]
    pub bytes: SmallBytes,
    /// Sequence number of the first byte.
    first_seq: Seq,
}

impl UnacknowledgedData {
    /// No data, for a direction whose first sequence number is `first`.
    pub fn new(first: Seq) -> Self {
        Self { bytes: SmallBytes::default(), first_seq: first }
    }

    /// Stores `bytes` at `seq`.
    pub fn push(&mut self, seq: Seq, bytes: &[u8]) {
        if self.bytes.is_empty() || self.first_seq + self.bytes.len() as u32 != seq {
            self.bytes = SmallBytes::default();
            self.first_seq = seq;
        }
        compact::extend_bytes(&mut self.bytes, bytes);
    }

    /// Whether the limit allows `more` bytes.
    pub fn has_room(&self, more: usize) -> bool {
        self.bytes.is_empty() || self.bytes.len() + more <= MAX_UNACKNOWLEDGED
    }

    /// Whether there is so much data that pure acknowledgements must be queued.
    pub fn is_large(&self) -> bool {
        self.bytes.len() > MUCH_UNACKNOWLEDGED
    }

    /// Drops the older half of the data: no acknowledgement of the server is seen.
    pub fn forget_older_half(&mut self) {
        self.forget_before(self.first_seq + self.bytes.len() as u32 / 2);
    }

    /// Whether the data at `seq` precedes what is stored.
    pub fn is_forgotten(&self, seq: Seq) -> bool {
        !self.bytes.is_empty() && seq.is_before(self.first_seq)
    }

    /// Drops the data before `acknowledged`. Returns whether nothing is left.
    pub fn forget_before(&mut self, acknowledged: Seq) -> bool {
        let acknowledged_len = acknowledged.distance_from(self.first_seq).max(0) as usize;
        if acknowledged_len >= self.bytes.len() {
            self.bytes = SmallBytes::default();
        } else if acknowledged_len > 0 {
            compact::drop_front_bytes(&mut self.bytes, acknowledged_len);
            self.first_seq = self.first_seq + acknowledged_len as u32;
        }
        self.bytes.is_empty()
    }

    /// Returns `bytes` at `seq`, with the part that was read before replaced by what was read then. An attacker sends
    /// other bytes, and some keep-alives send one byte of garbage (RFC 1122 section 4.2.3.6).
    pub fn with_read_bytes<'a>(&self, seq: Seq, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        let skipped = |from: Seq, to: Seq| to.distance_from(from).max(0) as usize;
        let stored = self.bytes.get(skipped(self.first_seq, seq)..).unwrap_or_default();
        if stored.is_empty() {
            return Cow::Borrowed(bytes); // all bytes are new
        }
        let start = skipped(seq, self.first_seq).min(bytes.len());
        let end = bytes.len().min(start + stored.len());
        let stored = &stored[..end - start];
        if bytes[start..end] == *stored {
            return Cow::Borrowed(bytes);
        }
        Cow::Owned([&bytes[..start], stored, &bytes[end..]].concat())
    }
}

/// Records contain at most one line of the data. More would be written with every packet. So the retransmission of a
/// longer one is not compared after a restart.
fn serialize_short<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serialize_bytes(if bytes.len() <= MAX_LINE { bytes } else { &[] }, serializer)
}
