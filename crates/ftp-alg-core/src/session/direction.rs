//! One direction of a control connection: the bytes seen so far, the unfinished line, the bytes that are held back, and
//! the sequence adjustment.
//!
//! A line that may become an announcement is held back until it is complete. Its bytes are stored here, delivered as
//! nothing for now, and delivered with the segment that completes the line. Held bytes are acknowledged to their
//! sender, so that it neither waits (Nagle's algorithm) nor retransmits. The acknowledgement is sent only after the
//! receiver has acknowledged everything before the held bytes, because an acknowledgement covers all earlier bytes.
//!
//! # Sequence numbers
//!
//! [`SequenceSpace`] has the sequence numbers (RFC 9293 section 3.3.1): bytes seen, bytes acknowledged, gaps; and a
//! [`SequenceMap`], which maps the numbers before our rewrites to those after them, and back.
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
//!
//! # Urgent data
//!
//! RFC 9293 section 3.8.5; RFC 6093.
//!
//! Most servers read the urgent byte in the stream (SO_OOBINLINE); others read the stream without it. A server may take
//! the byte before the urgent pointer as the urgent byte (Linux, BSD), or the byte after it. So a line could be one
//! command for us and another for the server. The gateway therefore clears the URG bit, and the byte is in the stream
//! for everybody.
//!
//! One use is legitimate: the Telnet Synch (RFC 854), an urgent byte among the Telnet commands before `ABOR`, `STAT` or
//! `QUIT` (RFC 959 section 4.1.3). It makes some servers read the command during a transfer. URG stays there if the
//! urgent byte precedes the first readable byte of its line. The line is then held back until it is complete. If it is
//! another known command without the urgent byte, it is crossed out. A server has no legitimate use. A retransmission
//! is treated alike, because the urgent pointer is stored with its sequence number.

use std::{borrow::Cow, ops::Range};

use serde::{Deserialize, Serialize, Serializer};

use super::{
    MAX_HELD, MAX_LINE,
    compact::{self, CompactVec, SmallBytes, allocation_size, serialize_bytes},
    protocols::TlsRecords,
};
use crate::{
    ftp::{Command, Text, Verb, VerbScanner, without_nuls},
    packet::{Packet, Seq},
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

/// State that few directions need, boxed so that a session fits into few cache lines.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Extra {
    /// The unfinished line; if it is not held back, at most its first [`MAX_LINE`] bytes.
    #[serde(serialize_with = "serialize_bytes")]
    line: Vec<u8>,
    /// The state of the scan of the client's unfinished line, if more of the line was forwarded than is stored.
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
    /// The server's highest sequence number that the windows in the packets of the pending commands allow.
    #[serde(skip)]
    pub window_end: Option<Seq>,
    /// The end of a packet of the server that holds one whole reply line, except for its line end.
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

    fn is_consistent(&self) -> bool {
        self.line.len() <= MAX_LINE
            && self.tls_records.is_consistent()
            && self.urgent.as_ref().is_none_or(UrgentPointer::is_consistent)
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

    /// Whether it is as this module leaves it. A record may say anything.
    pub fn is_consistent(&self) -> bool {
        self.space.map.is_consistent(self.space.next, self.is_holding())
            && self.extra.as_ref().is_none_or(|extra| extra.is_consistent())
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

    /// Sets the place in the TLS records; a fresh one if plain text follows, or the first record.
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

    /// Sets the server's highest sequence number that the windows in the packets of the pending commands allow.
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
    pub fn note_acknowledgement(&mut self, ack: Seq) {
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

    /// Forgets the held bytes, which have reached the receiver on another path.
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

    /// `chunk` at `seq` completes the line `whole`, which is delivered unchanged except for `edit`: a range of the line
    /// and its replacement. The first `delivered` bytes of the line have been delivered.
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
        if chunk.is_empty() {
            return; // the line is as it was, also if it is held back
        }
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
    /// crossed out, spaces too, so that nothing later in the line is a command. We read the crossed out line as well.
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
#[derive(Clone, Debug, Deserialize)]
pub struct UnacknowledgedData {
    /// The data.
    pub bytes: SmallBytes,
    /// Sequence number of the first byte.
    first_seq: Seq,
    /// How many bytes at the front come from a record: a NUL among them stands for any byte of an argument. Records do
    /// not have users, passwords and paths.
    masked_len: u32,
}

impl UnacknowledgedData {
    /// No data, for a direction whose first sequence number is `first`.
    pub fn new(first: Seq) -> Self {
        Self { bytes: SmallBytes::default(), first_seq: first, masked_len: 0 }
    }

    /// Whether a record can have it.
    pub fn is_consistent(&self) -> bool {
        self.bytes.len() <= MAX_LINE && self.masked_len as usize <= self.bytes.len()
    }

    /// Stores `bytes` at `seq`.
    pub fn push(&mut self, seq: Seq, bytes: &[u8]) {
        if self.bytes.is_empty() || self.first_seq + self.bytes.len() as u32 != seq {
            *self = Self::new(seq);
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

    /// Drops the older half of the data, because the server's acknowledgements are not seen.
    pub fn forget_older_half(&mut self) {
        self.forget_before(self.first_seq + self.bytes.len() as u32 / 2);
    }

    /// Whether the data at `seq` precedes what is stored.
    pub fn is_forgotten(&self, seq: Seq) -> bool {
        !self.bytes.is_empty() && seq.is_before(self.first_seq)
    }

    /// Drops the data before `acknowledged`. Returns whether no data remains.
    pub fn forget_before(&mut self, acknowledged: Seq) -> bool {
        let acknowledged_len = acknowledged.distance_from(self.first_seq).max(0) as usize;
        self.masked_len = self.masked_len.saturating_sub(acknowledged_len as u32); // less than half of the number space
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
        let mut read = [&bytes[..start], stored, &bytes[end..]].concat();
        let masked_len = self.masked_len as usize;
        let masked_end = end.min(start + masked_len.saturating_sub(skipped(self.first_seq, seq)));
        for (read, sent) in read[start..masked_end].iter_mut().zip(&bytes[start..]) {
            if *read == MASK {
                *read = if is_maskable(*sent) { *sent } else { UNKNOWN };
            }
        }
        Cow::Owned(read)
    }

    /// Notes what was delivered at `seq` in the place of masked bytes, so that nothing else is delivered there later.
    pub fn unmask(&mut self, seq: Seq, delivered: &[u8]) {
        let offset = self.first_seq.distance_from(seq).max(0) as usize;
        let skipped = seq.distance_from(self.first_seq).max(0) as usize;
        let delivered = delivered.get(offset..).unwrap_or_default();
        let masked = self.bytes.iter_mut().take(self.masked_len as usize).skip(skipped);
        for (byte, delivered) in masked.zip(delivered) {
            *byte = if *byte == MASK { *delivered } else { *byte };
        }
    }
}

/// A byte of an argument that is in no record.
const MASK: u8 = 0;
/// What is delivered in the place of a masked byte if the retransmission has a byte there that no argument had.
const UNKNOWN: u8 = b'?';

/// The verbs whose arguments change nothing that the gateway does: users, passwords, paths.
const MASKED_VERBS: [&[u8]; 25] = [
    b"USER", b"PASS", b"ACCT", b"CWD", b"XCWD", b"SMNT", b"RETR", b"STOR", b"STOU", b"APPE",
    b"LIST", b"NLST", b"MLSD", b"MLST", b"SIZE", b"MDTM", b"MFMT", b"DELE", b"RNFR", b"RNTO",
    b"MKD", b"XMKD", b"RMD", b"XRMD", b"STAT",
];

/// Whether a byte ends no line, begins no Telnet command, and is no NUL.
fn is_maskable(byte: u8) -> bool {
    matches!(byte, 0x20..=0x7e | 0x80..=0xfe)
}

/// Masks the arguments of the lines in `bytes`. Those of unusual lines stay.
fn mask(bytes: &mut [u8]) {
    for line in bytes.split_inclusive_mut(|byte| *byte == b'\n') {
        let line_end = line.iter().rev().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        let text_end = line.len() - line_end;
        let text = &mut line[..text_end];
        if let Some(space) = text.iter().position(|byte| *byte == b' ')
            && MASKED_VERBS.iter().any(|verb| text[..space].eq_ignore_ascii_case(verb))
            && text[space..].iter().all(|byte| is_maskable(*byte) || *byte == MASK)
        {
            text[space + 1..].fill(MASK);
        }
    }
}

/// Records contain at most one line of the data, with masked arguments. More would be written with every packet. So the
/// retransmission of a longer one is not compared after a restart. Data with NULs of its own is not masked.
impl Serialize for UnacknowledgedData {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Recorded<'a>(#[serde(serialize_with = "serialize_bytes")] &'a [u8], Seq, u32);
        let bytes = if self.bytes.len() <= MAX_LINE { &self.bytes[..] } else { &[] };
        let mut masked_len = bytes.len().min(self.masked_len as usize);
        let mut recorded = SmallBytes::from(bytes);
        if !bytes[masked_len..].contains(&MASK) {
            mask(&mut recorded);
            masked_len = bytes.len();
        }
        Recorded(&recorded, self.first_seq, masked_len as u32).serialize(serializer) // at most a line
    }
}

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
const MAX_REWRITES: usize = 64;
/// Limit of the replacement bytes in all unacknowledged rewrites of a direction, with the same effect.
const MAX_REWRITTEN_BYTES: usize = 4096;

/// No list is longer, although some rewrites are made at [`MAX_REWRITES`].
const LONGEST_LIST: usize = 4 * MAX_REWRITES;
/// No rewrite is of more bytes, or has more: a packet and the line that is held back before it.
const LONGEST_REWRITE: u32 = 1 << 17;
/// No rewrite in the list is farther away: TCP's largest window (RFC 7323 section 2.3).
const FARTHEST_REWRITE: u32 = 1 << 30;

/// The mapping of one direction. Rewrites that the receiver has acknowledged are
/// forgotten; only the sum of their offsets stays.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct SequenceMap {
    /// Delivered minus sent sequence number before the oldest rewrite in the list.
    base: u32,
    rewrites: CompactVec<Rewrite>,
}

impl SequenceMap {
    /// Makes it one that no rewrite leads to.
    #[cfg(test)]
    pub fn forge(&mut self) {
        self.replace(Seq(1 << 31), 1, b"x");
    }

    /// Whether the rewrites are in order, adjoin each other as delivered, and end before the sent number `next`, or there
    /// if bytes are held back.
    fn is_consistent(&self, next: Seq, is_holding: bool) -> bool {
        let (mut before, mut offset) = (FARTHEST_REWRITE, self.base);
        let mut is_next = |rewrite: &Rewrite| {
            let (start, end) = (next - rewrite.start, next - rewrite.end());
            let lengths = [rewrite.len, rewrite.new.len().try_into().unwrap_or(u32::MAX)];
            let is_next = rewrite.len > 0
                && lengths.iter().all(|length| *length <= LONGEST_REWRITE)
                && end < start
                && start <= before
                && rewrite.delivered == rewrite.start + offset;
            (before, offset) = (end, rewrite.delivered_end() - rewrite.end());
            is_next
        };
        let is_held = |last: &Rewrite| last.new.len() == 0 && last.end() == next;
        self.rewrites.len() <= LONGEST_LIST
            && self.rewrites.iter().all(&mut is_next)
            && (!is_holding || self.rewrites.last().is_some_and(is_held))
    }

    /// Whether sent and delivered sequence numbers are equal everywhere.
    pub fn is_identity(&self) -> bool {
        self.base == 0 && self.rewrites.is_empty()
    }

    /// Delivered minus sent sequence number of the next byte.
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

    /// Whether the list holds half of [`MAX_REWRITES`], so that optional rewrites are not made.
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

    /// Forgets rewrites that end before the sent sequence number `seq`, because the receiver has acknowledged them. Keeps
    /// the newest one if `keeps_last` is set.
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

    /// Notes the window, the clock and the segment length of a packet from the sender.
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

/// A client's urgent pointer that was forwarded.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UrgentPointer {
    /// The sequence number that the pointer names: one after the urgent byte.
    end: Seq,
    /// The line with the urgent byte, until it is complete.
    line: Option<UrgentLine>,
}

/// A line with an urgent byte.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct UrgentLine {
    /// The bytes read so far, including Telnet commands.
    bytes: Vec<u8>,
    /// Index of the urgent byte.
    urgent: usize,
}

impl UrgentPointer {
    /// The urgent pointer `end`, if it belongs to a Telnet Synch. `new` are the new bytes of its packet from `next` on,
    /// and `known` is the start of its line that was read before. The urgent byte must be new, in this packet, and
    /// before everything readable in its line.
    pub fn from_telnet_synch(end: Seq, next: Seq, new: &[u8], known: &[u8]) -> Option<Self> {
        let urgent = end - 1;
        if urgent.is_before(next) {
            return None;
        }
        let at = (urgent - next) as usize;
        let (before, from) = (new.get(..at)?, new.get(at..).filter(|from| !from.is_empty())?);
        let start = memchr::memrchr(b'\n', before).map_or(0, |at| at + 1);
        let stop = at + memchr::memchr(b'\n', from).unwrap_or(from.len());
        let known = if start == 0 { known } else { &[] };
        let line = [known, &new[start..stop]].concat();
        let urgent = known.len() + at - start;
        let text = Text::new(&line);
        let lead = match text.bytes() {
            [] => line.len(),
            _ => text.line_range(0..1).start,
        };
        let line = UrgentLine { bytes: known.to_vec(), urgent };
        (line.urgent < lead).then_some(Self { end, line: Some(line) })
    }

    fn is_consistent(&self) -> bool {
        let is_short = |line: &UrgentLine| {
            line.bytes.len() <= MAX_LINE && line.urgent <= LONGEST_REWRITE as usize
        };
        self.line.as_ref().is_none_or(is_short)
    }

    /// The sequence number that the pointer names.
    pub fn end(&self) -> Seq {
        self.end
    }

    /// Whether its line is incomplete. A line may have one urgent byte.
    pub fn has_open_line(&self) -> bool {
        self.line.is_some()
    }

    /// Reads `chunk` at `seq`, which continues or completes a line. Returns whether that line has the urgent byte.
    pub fn continues(&mut self, seq: Seq, chunk: &[u8]) -> bool {
        let Self { end, line: Some(line) } = self else { return false };
        if (*end - 1).is_before(seq + chunk.len() as u32) {
            let room = (MAX_HELD + 1).saturating_sub(line.bytes.len());
            line.bytes.extend(&chunk[..chunk.len().min(room)]);
            return true;
        }
        false
    }

    /// Reads `chunk` at `seq`, which completes a line. Returns whether the line is another command for servers that
    /// read the stream without the urgent byte.
    pub fn ends_ambiguously(&mut self, seq: Seq, chunk: &[u8]) -> bool {
        let is_urgent = self.continues(seq, chunk);
        let line = if is_urgent { self.line.take_if(|line| !line.may_continue()) } else { None };
        line.is_some_and(|line| line.is_ambiguous())
    }
}

impl UrgentLine {
    /// Whether the line feed at the end of the line may be the urgent byte, so that this line and the next are one.
    fn may_continue(&self) -> bool {
        self.urgent + 2 == self.bytes.len() && self.bytes.ends_with(b"\n")
    }

    /// Whether the line without the urgent byte is another known command, whichever byte that is.
    fn is_ambiguous(&self) -> bool {
        let read = Text::new(last_line(&self.bytes));
        let is_other = |at: usize| {
            let mut bytes = self.bytes.clone();
            bytes.remove(at);
            let other = from_first_letter(last_line(&bytes));
            other != read.bytes() && is_known_command(&other)
        };
        let end = self.bytes.len().min(self.urgent + 2);
        self.bytes.len() > MAX_HELD || (self.urgent..end).any(is_other)
    }
}

/// The last line of `bytes`, which may end with its line feed.
fn last_line(bytes: &[u8]) -> &[u8] {
    let complete = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    memchr::memrchr(b'\n', complete).map_or(bytes, |at| &bytes[at + 1..])
}

/// The part of a line that remains for a server which skips everything that cannot start a command.
fn from_first_letter(line: &[u8]) -> Vec<u8> {
    let text = Text::new(line);
    text.bytes().iter().copied().skip_while(|byte| !byte.is_ascii_alphabetic()).collect()
}

fn is_known_command(line: &[u8]) -> bool {
    Command::parse(&Text::new(line)).is_some_and(|command| command.verb != Verb::Unknown)
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
    fn a_recorded_map_that_no_rewrites_lead_to_is_inconsistent() {
        let mut map = SequenceMap::default();
        map.replace(Seq(5), 3, b"abcde");
        map.replace(Seq(10), 2, &[]);
        let is_consistent = |map: &SequenceMap| map.is_consistent(Seq(12), true);
        assert!(is_consistent(&map) && map.is_consistent(Seq(20), false));
        assert!(!map.is_consistent(Seq(20), true) && !map.is_consistent(Seq(11), false));
        let changes: [fn(&mut Rewrite); 6] = [
            |last| last.len = 0,
            |last| last.len = u32::MAX,
            |last| last.start = Seq(7),
            |last| last.start = Seq(1 << 31),
            |last| last.delivered = Seq(11),
            |last| last.new = Replacement::CrossedOut(u32::MAX),
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let mut forged = map.clone();
            change(forged.rewrites.last_mut().unwrap());
            assert!(!forged.is_consistent(Seq(12), false), "change {number}");
        }
        let one = map.rewrites.remove(1);
        (0..LONGEST_LIST).for_each(|_| map.rewrites.push(one.clone()));
        assert!(!is_consistent(&map));
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
            prop_assert!(map.is_consistent(Seq(start) + bytes.len() as u32, false));

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
