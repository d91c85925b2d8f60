//! Reads segments and whole lines. Bytes are read in the order of their sequence numbers, each once, and an unfinished
//! line may be held back. The dialogue reads each whole line, the engine decides about its announcement, and an edit
//! may change the line. After an edit that changes the length, all packets are queued (`Session::needs_all_queued`).
//! `direction` stores and delivers the bytes.
//!
//! # Complete replies
//!
//! [`PushState`] says whether a line that looks like an announcement is a reply of its own, or the tail of an earlier one.
//!
//! A server repeats file names, which may contain line ends, and a client can stop the server at any byte by its
//! receive window. The bytes sent so far then end like a reply, with PSH (`tcp_write_wakeup`), and the rest begins like
//! the next reply. So once a reply may contain such a name, or the ends may disagree about line ends, a 227 or 229
//! counts only if the server could have sent more, and had nothing more:
//! - the reply fills one segment with PSH, or its line end fills another, as with servers that write line ends alone;
//!   and the reply acknowledges its command;
//! - the packets of that command acknowledged everything before, and let the server send more than the reply.
//!
//! Bytes that waited in the server's TCP would have come with the reply, because TCP sends what fits as soon as a
//! packet opens the window (`tcp_data_snd_check`). If those bytes are one line, it ends as no announcement does
//! (`is_end_of_reply`). Acknowledgements without data can close the window again, so they are queued as well. An
//! acknowledgement with a sequence number past the client's next one is dropped: after it the server would ignore the
//! windows of earlier packets, unless they acknowledge something new (`tcp_may_update_window`).
//!
//! The client's window scale is unknown: its SYN is not queued, and conntrack's scale may be of a SYN that the server
//! has not received. A window field of 31 means 31 bytes without a scale, and 63 KB with a scale of 11. So a small
//! field is raised to [`RAISED_WINDOW`] before the packet is forwarded, if the connection scales windows. Then the
//! server may send as much, whatever the scale. An honest client does not notice: its window is larger than a reply, or
//! the server retransmits what did not fit.

use std::ops::Range;

use super::{
    Action, Activity, AnnouncedLine, Dialogue, DialogueEvent, DialogueHandler, Direction, MAX_HELD,
    MAX_LINE, Phase, RefusalReason, RefusedLine, Session, SessionLimit, Side, UnacknowledgedData,
    activity::{named_directory, named_file},
    compact::SmallBytes,
    dialogue::{CommandMeaning, ReplyMeaning},
    direction::{CROSS_OUT_BYTE, LineEdit},
    interfaces::DOUBTFUL_INTERFACE,
    protocols::{TlsRecords, proxy_header_len},
    state::{Inspection, Read, State, Tls},
};
use crate::{
    ftp::{
        Announcement, AnnouncementKind, Command, LineEnd, MalformedAnnouncement, Text, Verb,
        VerbScanner, VerbSearch, begins_subnegotiation, has_control_bytes, line_end,
        may_end_or_skip, reply_line_end, without_nuls,
    },
    packet::{Packet, Seq, flags},
};

/// Length of the verbs of announcements.
const VERB_LENGTH: usize = 4;

/// A complete line.
struct Line<'a> {
    bytes: &'a [u8],
    /// The parsed bytes.
    text: &'a Text<'a>,
    /// Number of bytes that have been forwarded.
    delivered: usize,
}

impl Line<'_> {
    /// Whether no readable byte has been forwarded. NULs that some servers send behind a line were delivered with that
    /// line.
    fn is_undelivered(&self) -> bool {
        self.delivered <= self.text.line_range(0..1).start
    }
}

/// Reads one direction, and borrows everything that a line may change.
pub struct DirectionReader<'a> {
    /// The end that sends this direction.
    pub from: Side,
    pub direction: &'a mut Direction,
    pub opposite: &'a mut Direction,
    /// The client's unacknowledged data.
    pub unacknowledged: &'a mut UnacknowledgedData,
    pub dialogue: &'a mut Dialogue,
    pub handler: &'a mut dyn DialogueHandler,
    pub refuses_auth: bool,
    /// Whether packets of an end arrive on an interface to which no route to that end leads.
    pub has_doubtful_interface: bool,
    /// The PSH state of the packet.
    pub push_state: PushState,
}

/// Number of bytes at the end of `lead` that affect what follows: an unfinished Telnet command, or a CR that may end a
/// line, together with the Telnet command that it may belong to.
fn affecting_tail_len(lead: &[u8]) -> usize {
    match lead {
        [.., 0xff, _, b'\r'] => 3,
        [.., 0xff, _] => 2,
        [.., 0xff | b'\r'] => 1,
        _ => 0,
    }
}

/// Whether the segment and the stream end with a part of a line.
#[derive(Clone, Copy)]
struct LineBoundary {
    /// Whether the segment ends there.
    ends_segment: bool,
    /// Whether the stream ends there.
    ends_stream: bool,
}

/// Where the line end of `line` begins, if it has one.
fn text_end(line: &[u8]) -> usize {
    line.len() - if line.ends_with(b"\r\n") { 2 } else { usize::from(line.ends_with(b"\n")) }
}

/// What follows the blanks and Telnet commands at the start of `line`, parsed as `text`.
fn from_verb<'l>(line: &'l [u8], text: &Text<'_>) -> &'l [u8] {
    if text.bytes().is_empty() { &[] } else { &line[text.line_range(0..1).start..] }
}

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
    /// limit; that line and the rest are not forwarded.
    #[inline(always)]
    fn read_new_bytes(&mut self, mut seq: Seq, mut new: &[u8], fin: bool) {
        if self.from == Side::Client && self.dialogue.expects_first_command() {
            let skipped = self.skip_proxy_header(seq, new);
            (seq, new) = (seq + skipped as u32, &new[skipped..]);
        }
        while !new.is_empty() {
            let mut is_text = self.dialogue.state.reads_lines(self.from);
            if is_text && self.direction.line().is_empty() {
                let before = self.dialogue.state;
                self.dialogue.read_first_byte(self.from, new[0]);
                self.apply_state_change(before);
                is_text = self.dialogue.state.reads_lines(self.from);
            }
            // Most segments are one line, which is then scanned once.
            let may_be_line = is_text && new.ends_with(b"\n") && self.direction.line().is_empty();
            let text = if may_be_line { Text::of_plain(new) } else { None };
            let is_line = !is_text || text.is_some();
            let end = if is_line { None } else { memchr::memchr(b'\n', new) };
            let (line, rest) = new.split_at(end.map_or(new.len(), |end| end + 1));
            let stores = self.from == Side::Client && is_text;
            if let Some(limit) = self.reached_limit(stores, line.len()) {
                return self.report(DialogueEvent::LimitReached(limit));
            }
            let read = if is_text {
                self.read_line_part(
                    seq,
                    line,
                    text.as_ref(),
                    LineBoundary {
                        ends_segment: without_nuls(rest).is_empty(),
                        ends_stream: fin && rest.is_empty(),
                    },
                );
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

    /// Length of the PROXY header at the start of `new`, the client's bytes at `seq`, if they are its first ones. The
    /// session goes on behind it as if the client had sent nothing.
    #[cold]
    fn skip_proxy_header(&mut self, seq: Seq, new: &[u8]) -> usize {
        let is_first = seq == self.direction.space.first && self.direction.line().is_empty();
        let Some(length) = proxy_header_len(new).filter(|_| is_first) else { return 0 };
        self.note_subnegotiation(&new[..length]);
        let (header, mut scanner) = (&new[..length], VerbScanner::default());
        let search = self.verb_search();
        if scanner.continue_to_verb_end(header, search).is_some() {
            return 0;
        }
        if scanner.is_inside_verb() {
            // For a server that does not know the protocol, the client's first line continues behind the header.
            self.direction.extra_mut().scanner = Some(scanner);
        }
        self.dialogue.note_proxy_header();
        self.unacknowledged.push(seq, header);
        self.direction.space.next = seq + length as u32;
        length
    }

    /// The limit that does not allow `more` bytes now. With `stores`, the bytes are stored until they are acknowledged.
    fn reached_limit(&mut self, stores: bool, more: usize) -> Option<SessionLimit> {
        if self.direction.space.map.is_full() {
            return Some(SessionLimit::Rewrites);
        }
        let has_room = !stores || self.unacknowledged.has_room(more);
        if !has_room && self.dialogue.phase() == Phase::PickedUp {
            // An asymmetric route may hide the server's acknowledgements.
            self.unacknowledged.forget_older_half();
            return None;
        }
        (!has_room).then_some(SessionLimit::UnacknowledgedData)
    }

    /// Index at which text starts again in `new`, the bytes at `seq`; `None` if no text starts.
    #[cold]
    fn find_text_start(&mut self, seq: Seq, new: &[u8]) -> Option<usize> {
        if self.direction.is_holding() {
            self.direction.release_before(seq, *new.first()?);
        }
        self.dialogue.state.encryption()?;
        let start = self.direction.extra_mut().tls_records.follow(self.from, new);
        self.find_handshakes();
        let (start, before) = (start?, self.dialogue.state);
        if before.encryption() == Some(true) {
            let directions = [&*self.direction, &*self.opposite];
            let are_complete = directions.iter().all(|one| one.extra().tls_records.is_complete());
            self.dialogue.end_tls(self.from, are_complete);
            self.direction.set_records(TlsRecords::NONE);
            self.apply_state_change(before);
        } else {
            self.advance(Read::NoTls);
        }
        self.dialogue.state.reads_lines(self.from).then_some(start)
    }

    /// Notes that encryption has begun if both ends have sent handshake records.
    fn find_handshakes(&mut self) {
        let directions = [&*self.direction, &*self.opposite];
        if self.dialogue.has_records_of_both()
            && directions.iter().all(|one| one.extra().tls_records.has_handshake)
        {
            self.advance(Read::TlsOfBoth);
        }
    }

    fn advance(&mut self, read: Read) {
        let before = self.dialogue.state;
        self.dialogue.advance(read);
        self.apply_state_change(before);
    }

    /// Applies a change of the state since `before`, if any.
    fn apply_state_change(&mut self, before: State) {
        if self.dialogue.state != before {
            self.handle_change(before);
        }
    }

    #[cold]
    fn handle_change(&mut self, before: State) {
        let state = self.dialogue.state;
        let was = before.tls();
        match (was, state.inspection) {
            (_, Inspection::Records) => {
                self.direction.stop_reading();
                self.opposite.stop_reading();
            }
            (Tls::No, Inspection::Lines { tls: Tls::ByClient, .. })
            | (Tls::ByClient, Inspection::Lines { tls: Tls::ByBoth, .. }) => {
                self.direction.set_records(TlsRecords::NONE);
            }
            (Tls::ByClient, Inspection::Lines { tls: Tls::No, .. }) => {
                for direction in [&mut *self.direction, &mut *self.opposite] {
                    direction.set_records(TlsRecords::NONE);
                    if direction.line().ends_with(b"\n") {
                        direction.stop_reading();
                    }
                }
            }
            (Tls::No | Tls::ByClient | Tls::StillOf(_), Inspection::Lines { .. }) => {}
            // The server has begun TLS, too, or nothing is inspected any more.
            _ => {
                for direction in [&mut *self.direction, &mut *self.opposite] {
                    direction.stop_reading();
                    direction.set_records(TlsRecords::NONE);
                }
            }
        }
        if let Some(event) = before.event_of_change(state) {
            self.report(event);
        }
    }

    /// Reads `line`, new bytes at `seq`: a whole line, with its `text` if that was parsed, or a part of a line.
    fn read_line_part(
        &mut self,
        mut seq: Seq,
        mut line: &[u8],
        mut text: Option<&Text<'_>>,
        boundary: LineBoundary,
    ) {
        let before = self.dialogue.state;
        if self.from == Side::Client && self.dialogue.may_be_tls() {
            return self.forward_possible_tls(seq, line, boundary);
        }
        if self.from == Side::Server
            && line.starts_with(b"\r")
            && self.direction.line().is_empty()
            && self.dialogue.may_end_greeting_with_cr()
        {
            // The CRs pass, and the next line begins behind them.
            let crs = line.iter().take_while(|byte| **byte == b'\r').count();
            (seq, line, text) = (seq + crs as u32, &line[crs..], None);
            if line.is_empty() {
                return;
            }
        }
        if line.ends_with(b"\n") {
            self.end_line(seq, line, text);
            if self.from == Side::Server
                && self.push_state != PushState::NotPushed
                && boundary.ends_segment
            {
                self.dialogue.note_pause(self.push_state == PushState::CompleteReply);
            }
            return self.apply_state_change(before);
        }
        if self.from == Side::Client && cannot_begin_ftp(self.dialogue, line) {
            self.dialogue.mark_client_not_ftp();
            self.apply_state_change(before);
        }
        self.continue_line(seq, line, boundary.ends_stream);
    }

    /// Reads `chunk` at `seq`, which completes a line. `text` is set if `chunk` is the whole line, and plain.
    fn end_line(&mut self, mut seq: Seq, mut chunk: &[u8], mut text: Option<&Text<'_>>) {
        let is_client = self.from == Side::Client;
        let is_long = self.direction.line().len() + chunk.len() > MAX_LINE;
        let stored = self.direction.line();
        let is_lf_alone = chunk == b"\n"
            && !matches!(stored, [] | [.., b'\r'])
            && !stored.starts_with(CROSSED_OUT_START);
        if is_client {
            self.note_subnegotiation(chunk);
        }
        if is_client && is_long {
            self.dialogue.note_long_line();
        }
        if is_client && (is_long || is_lf_alone || self.direction.extra().scanner.is_some()) {
            // The stored part of the line may be truncated, a PROXY header may precede it, or its argument may follow it.
            let end = text_end(chunk);
            if !self.direction.is_holding()
                && let Some(end) = self.cross_out_ambiguous_tail(seq, chunk, end)
            {
                (seq, chunk, text) = (seq + end as u32, &chunk[end..], None);
                if chunk.is_empty() {
                    return;
                }
            }
        }
        let is_ambiguous = is_client && self.ends_ambiguously(seq, chunk);
        let stored = self.direction.line().len();
        let delivered = if self.direction.is_holding() { 0 } else { stored };
        let (whole, parsed);
        let bytes = if stored == 0 {
            chunk
        } else {
            whole = self.direction.whole_line(chunk);
            &whole
        };
        let text = match text {
            Some(text) => text,
            None => {
                parsed = Text::new(bytes);
                &parsed
            }
        };
        let line = Line { bytes, text, delivered };
        let edit = if is_ambiguous {
            self.refuse_ambiguous_line(&line)
        } else if is_client {
            self.read_client_line(&line)
        } else {
            self.read_server_line(&line)
        };
        self.direction.end_line(seq, chunk, bytes, delivered, edit);
        if std::mem::take(&mut self.dialogue.has_forgotten) {
            self.report(DialogueEvent::LimitReached(SessionLimit::PendingCommands));
        }
    }

    /// Whether an urgent byte in the client's line, which `chunk` at `seq` completes, makes it another command for some
    /// servers.
    fn ends_ambiguously(&mut self, seq: Seq, chunk: &[u8]) -> bool {
        let extra = self.direction.existing_extra_mut();
        let Some(pointer) = extra.and_then(|extra| extra.urgent.as_mut()) else { return false };
        let is_ambiguous = pointer.ends_ambiguously(seq, chunk);
        let (end, has_open_line) = (pointer.end(), pointer.has_open_line());
        if !has_open_line && end.is_before(self.direction.space.unacknowledged()) {
            self.direction.set_urgent(None);
        }
        is_ambiguous
    }

    /// Reads `chunk` at `seq`, which belongs to an incomplete line; a FIN follows it if `fin`.
    fn continue_line(&mut self, mut seq: Seq, mut chunk: &[u8], fin: bool) {
        let is_client = self.from == Side::Client;
        if is_client {
            self.note_subnegotiation(chunk);
        }
        let extra = self.direction.existing_extra_mut().filter(|_| is_client);
        let pointer = extra.and_then(|extra| extra.urgent.as_mut());
        let is_urgent = pointer.is_some_and(|pointer| pointer.continues(seq, chunk));
        if is_client && !self.direction.is_holding() {
            let lead = self.forward_lead(chunk);
            (seq, chunk) = (seq + lead as u32, &chunk[lead..]);
            if chunk.is_empty() {
                return;
            }
            if is_urgent {
                self.direction.forward_unread_start(Vec::new(), 0); // the rest is held back on its own
            }
        }
        let before = self.direction.line().len();
        let (mut hold, mut may_be_plain) = (is_urgent, false);
        let is_start = self.direction.is_holding() || before == 0;
        if !hold && is_start {
            let line = [self.direction.line(), chunk].concat();
            let text = Text::new(&line);
            hold = match self.from {
                Side::Client => Command::may_announce(&text, self.refuses_auth),
                Side::Server => self.dialogue.may_announce(&text),
            };
            let verb = from_verb(&line, &text);
            let is_longer = verb.len() > VERB_LENGTH && text.bytes().len() >= VERB_LENGTH;
            may_be_plain = hold && !is_longer && !has_control_bytes(verb);
            // Before the greeting, the start of a line is forwarded until it is longer than a verb, because the server
            // of another protocol may wait for it. The rest of a refused command is crossed out later, so the outcome
            // does not depend on how the line is cut. The same holds if the client does not speak FTP: the server may
            // not either. Nothing of a picked up connection is held back, because held bytes are acknowledged, and
            // earlier bytes may be missing.
            let phase = self.dialogue.phase();
            let is_ftp = phase.has_greeted() && phase != Phase::NotFtp;
            hold &= (is_ftp || is_longer) && phase != Phase::PickedUp;
        }
        if hold && before + chunk.len() > MAX_HELD {
            if is_client {
                self.report(DialogueEvent::LineRefused(RefusedLine::Overlong));
                self.direction.cross_out_held_line(seq, chunk);
                return;
            }
            hold = false;
        }
        let scans = is_client && !hold && !may_be_plain;
        let end = chunk.len() - usize::from(chunk.ends_with(b"\r"));
        if scans && self.cross_out_ambiguous_tail(seq, chunk, end).is_some() {
            return;
        }
        if is_client {
            self.continue_client_line(seq, chunk, hold && !fin);
        } else {
            self.direction.continue_line(seq, chunk, hold && !fin);
        }
    }

    /// Forwards the client's `chunk` at `seq`, which belongs to an incomplete line, or holds it back.
    fn continue_client_line(&mut self, seq: Seq, chunk: &[u8], hold: bool) {
        let is_long = self.direction.line().len() + chunk.len() > MAX_LINE;
        let keeps_state = is_long || self.direction.extra().scanner.is_some();
        let scanner = keeps_state.then(|| self.scan_for_verb(chunk).1);
        self.direction.continue_line(seq, chunk, hold);
        if scanner.is_some() {
            self.direction.extra_mut().scanner = scanner;
        }
    }

    /// Notes whether the client begins a Telnet subnegotiation with `chunk`, which continues its line.
    fn note_subnegotiation(&mut self, chunk: &[u8]) {
        let has_command = chunk.iter().any(|byte| *byte >= 0xf0);
        if has_command && begins_subnegotiation(&[self.direction.line(), chunk].concat()) {
            self.direction.extra_mut().has_subnegotiation = true;
        }
    }

    /// The end of a verb that some server may see, in `chunk`, which continues the line; and the scanner's state after
    /// `chunk`.
    fn scan_for_verb(&self, chunk: &[u8]) -> (Option<usize>, VerbScanner) {
        if self.dialogue.phase() == Phase::PickedUp {
            return (self.find_plain_verb_end(chunk), VerbScanner::default());
        }
        let mut scanner = self.direction.extra().scanner.unwrap_or_default();
        let before = match self.direction.extra().scanner {
            Some(_) => &[],
            None => self.direction.line(),
        };
        let line = [before, chunk].concat();
        let end = scanner.continue_to_verb_end(&line, self.verb_search());
        (end.map(|end| end.saturating_sub(before.len())), scanner)
    }

    /// The end, in `chunk`, of the verb with which the line begins, if the command is refused whatever follows. On a
    /// connection that may not be FTP only a command in plain form is refused, and none is held back.
    fn find_plain_verb_end(&self, chunk: &[u8]) -> Option<usize> {
        let before = self.direction.line();
        let line = [before, chunk].concat();
        let text = Text::new(&line);
        let is_verb = from_verb(&line, &text).len() > VERB_LENGTH
            && text.bytes().len() >= VERB_LENGTH
            && Command::may_announce(&text, self.refuses_auth);
        let command = Command::parse(&text).filter(|_| is_verb)?;
        let is_refused = match announcement(&command) {
            Some((kind, parsed)) => !self.handler.may_begin(kind, &parsed, command.argument),
            None => command.verb == Verb::Auth,
        };
        is_refused.then(|| text.line_range(0..VERB_LENGTH).end.saturating_sub(before.len()))
    }

    /// Crosses out the line that `chunk` at `seq` continues: from the verb that some server may see, up to the line end
    /// at `end`. Returns the end of the crossed out bytes in `chunk`, or `None` if there is no such verb.
    fn cross_out_ambiguous_tail(&mut self, seq: Seq, chunk: &[u8], end: usize) -> Option<usize> {
        let verb_end = self.scan_for_verb(chunk).0?;
        let is_crossed_out = self.direction.line().starts_with(CROSSED_OUT_START);
        // A bare LF alone: some server may read an argument behind it.
        let end = if chunk == b"\n" && !is_crossed_out { 1 } else { end };
        let chunk = chunk.get(..end).filter(|chunk| !chunk.is_empty())?;
        // The complete line might have shown that the client does not speak FTP.
        self.dialogue.note_client_line_end(LineEnd::Ambiguous);
        if !is_crossed_out {
            self.report(DialogueEvent::LineRefused(RefusedLine::Ambiguous));
        }
        if self.direction.is_holding() {
            self.direction.cross_out_held_line(seq, chunk);
        } else {
            let unchanged = verb_end.saturating_sub(1); // its last letter changes
            let (unchanged, rest) = chunk.split_at(unchanged);
            self.direction.space.map.replace(
                seq + unchanged.len() as u32,
                rest.len() as u32,
                &vec![CROSS_OUT_BYTE; rest.len()],
            );
        }
        self.direction.forward_unread_start(CROSSED_OUT_START.to_vec(), CROSSED_OUT_START.len());
        Some(end)
    }

    /// Forwards Telnet commands (above all urgent ones) and blanks before a command at once. Returns their length in
    /// `chunk`. Stores them if they may change how servers read the following bytes.
    fn forward_lead(&mut self, chunk: &[u8]) -> usize {
        let line = [self.direction.line(), chunk].concat();
        let text = Text::new(&line);
        let start = match text.bytes() {
            [] => line.len(),
            _ => text.line_range(0..1).start,
        };
        let Some(lead) = start.checked_sub(self.direction.line().len()) else { return 0 };
        let is_all = lead == chunk.len();
        if !is_all && !self.begins_alike_for_all(&line[..start], &text) {
            return 0;
        }
        let mut unfinished =
            if is_all { text.incomplete_telnet_len().max(affecting_tail_len(&line)) } else { 0 };
        let forwarded = &line[..start - unfinished];
        let is_cut = is_all && Text::new(forwarded).incomplete_telnet_len() > 0; // within a Telnet command
        if is_cut || may_end_or_skip(forwarded) {
            self.dialogue.note_client_line_end(LineEnd::Ambiguous);
        }
        if is_cut {
            unfinished = text.incomplete_telnet_len();
        }
        self.direction.forward_unread_start(line[..start].to_vec(), unfinished);
        lead
    }

    /// Whether every server sees `text`, a possible announcement, start right after `lead`. Some servers count one more
    /// byte as part of a Telnet command and may see a verb after that byte.
    fn begins_alike_for_all(&self, lead: &[u8], text: &Text<'_>) -> bool {
        let may_announce = |text: &Text<'_>| Command::may_announce(text, self.refuses_auth);
        let is_option = lead.last().is_some_and(|byte| *byte >= 0xf0);
        may_announce(text) && !(is_option && may_announce(&Text::new(&text.bytes()[1..])))
    }

    /// Forwards the client's `bytes` at `seq` at once, but crosses out announcements that a server without TLS would
    /// see. If the server has begun TLS, text behind a record begins a line.
    #[cold]
    fn forward_possible_tls(&mut self, mut seq: Seq, bytes: &[u8], boundary: LineBoundary) {
        let mut records = self.direction.extra().tls_records;
        let text = records.follow(self.from, bytes).filter(|_| self.dialogue.has_records_of_both());
        let (mut bytes, text) = bytes.split_at(text.unwrap_or(bytes.len()));
        self.note_subnegotiation(bytes);
        if let Some(end) = self.cross_out_ambiguous_tail(seq, bytes, text_end(bytes)) {
            (seq, bytes) = (seq + end as u32, &bytes[end..]);
        }
        self.continue_client_line(seq, bytes, false);
        self.direction.set_records(records);
        self.find_handshakes();
        if !text.is_empty() && self.dialogue.has_records_of_both() {
            self.advance(Read::NoTls);
            self.read_line_part(seq + bytes.len() as u32, text, None, boundary);
        }
    }
}

impl DirectionReader<'_> {
    fn report(&mut self, event: DialogueEvent) {
        self.handler.on_event(event, self.dialogue);
    }

    /// The verbs that a scan of the client's bytes looks for.
    fn verb_search(&self) -> VerbSearch {
        let subnegotiates = self.direction.extra().has_subnegotiation;
        VerbSearch { auth: self.refuses_auth, subnegotiates }
    }

    fn report_refused(&mut self, line: RefusedLine) {
        self.report(DialogueEvent::LineRefused(line));
    }

    /// The announcement in `text`, which the dialogue has read. Its ranges in the text are converted to ranges in the
    /// line.
    fn announced_line(
        &self,
        kind: AnnouncementKind,
        mut parsed: Result<Announcement, MalformedAnnouncement>,
        was_requested: bool,
        text: &Text<'_>,
    ) -> AnnouncedLine {
        if let Ok(Announcement { endpoint, has_parenthesis, .. }) = &mut parsed {
            let with_parenthesis = text.line_range(endpoint.start.saturating_sub(1)..endpoint.end);
            *endpoint = text.line_range(endpoint.clone());
            *has_parenthesis &= with_parenthesis.len() == endpoint.len() + 1;
        }
        let doubt = self.has_doubtful_interface.then_some(DOUBTFUL_INTERFACE);
        AnnouncedLine {
            kind,
            was_requested,
            unread_text: parsed.is_err().then(|| escape_and_cut(text.bytes())),
            parsed,
            blocked_because: self.dialogue.blocked_because(kind.is_active()).or(doubt),
            phase: self.dialogue.phase(),
            is_logged_in: self.dialogue.is_logged_in(),
            is_epsv_only: self.dialogue.epsv_all,
            padding: self.dialogue.padding,
        }
    }

    /// Reads a line of the client. Returns its edit, or `None` to forward the line unchanged.
    fn read_client_line(&mut self, line: &Line<'_>) -> LineEdit {
        if let Some(event) = self.dialogue.end_open_reply() {
            self.report(event);
        }
        let &Line { bytes, text, delivered } = line;
        let end = line_end(bytes, text);
        // An empty line is a command for no server, and does not change the next line for servers that ignore it.
        if !(end == LineEnd::Lf && text.bytes().is_empty()) {
            self.dialogue.note_client_line_end(end);
        }
        let verb_end = if text.has_control_bytes()
            || VerbScanner::may_begin(bytes) && !VerbScanner::is_first_word(text.bytes())
        {
            ambiguous_verb_end(self.dialogue, bytes, text, self.verb_search())
        } else {
            None
        };
        if verb_end.is_none()
            && is_crossed_out_start(bytes, delivered)
            && self.dialogue.phase() == Phase::Verified
        {
            self.dialogue.note_crossed_out(RefusalReason::TooLong);
            return None;
        }
        let Some(end) = verb_end else { return self.read_command_line(line, false) };
        self.read_command_line(line, true);
        self.refuse_ambiguous_announcement(bytes, delivered, end)
    }

    /// Reads a line in which some server sees an announcement whose verb ends at `end`. Refuses the line unless the
    /// announcement would be allowed for every reader.
    #[cold]
    fn refuse_ambiguous_announcement(
        &mut self,
        line: &[u8],
        delivered: usize,
        end: usize,
    ) -> LineEdit {
        let text = Text::new(&line[verb_start(line, end)..]);
        // Without control bytes behind the verb, no other verb is hidden there.
        let command = Command::parse(&text).filter(|_| !has_control_bytes(&line[end..]));
        let is_refused = match command.and_then(|command| announcement(&command)) {
            None => {
                self.report_refused(RefusedLine::Ambiguous);
                true
            }
            Some((kind, parsed)) => {
                let announced = self.announced_line(kind, parsed, true, &text);
                matches!(self.handler.on_announcement(&announced), Action::Refuse(_))
            }
        };
        if is_refused { cross_out_from(line, delivered, end) } else { None }
    }

    /// Reads a line as one command. If it `is_ambiguous`, the caller refuses the whole line.
    fn read_command_line(&mut self, line: &Line<'_>, is_ambiguous: bool) -> LineEdit {
        let &Line { bytes, text, delivered } = line;
        let is_binary = cannot_begin_ftp(self.dialogue, bytes);
        if is_binary {
            self.dialogue.mark_client_not_ftp();
        }
        let command = if is_binary { None } else { Command::parse(text) };
        let meaning = self.dialogue.read_command(command.as_ref());
        let verb = text.line_range(0..command?.word.len());
        match meaning {
            CommandMeaning::Nothing if is_ambiguous => None,
            CommandMeaning::Nothing => {
                let activity = Activity::of(&command?, &bytes[verb.end..])?;
                self.report(DialogueEvent::Requested(activity));
                None
            }
            _ if is_ambiguous => {
                self.dialogue.note_announcement(false);
                None
            }
            CommandMeaning::Auth if !self.refuses_auth => {
                self.dialogue.note_auth();
                None
            }
            // The server refuses an announcement without argument, for its own reason.
            CommandMeaning::Announcement
                if command?.argument.is_empty() && line_end(bytes, text) == LineEnd::Plain =>
            {
                self.dialogue.note_announcement(false);
                None
            }
            // The delivered part of the announcement may name the client.
            CommandMeaning::Announcement
                if !line.is_undelivered()
                    && self.dialogue.phase() == Phase::PickedUp
                    && bytes[..delivered] != *CROSSED_OUT_START =>
            {
                self.dialogue.note_announcement(false);
                self.refuse_ambiguous_announcement(bytes, delivered, verb.end)
            }
            // The start of the line was delivered, because it could not be held back.
            _ if !line.is_undelivered() => {
                self.dialogue.note_announcement(false);
                if bytes[..delivered] != *CROSSED_OUT_START {
                    self.report_refused(RefusedLine::Ambiguous);
                }
                cross_out_from(bytes, delivered, verb.end)
            }
            CommandMeaning::Announcement => {
                let (kind, parsed) = announcement(&command?)?;
                let announced = self.announced_line(kind, parsed, true, text);
                match self.handler.on_announcement(&announced) {
                    Action::Refuse(reason) => cross_out_command(self.dialogue, text, bytes, reason),
                    Action::Pass => {
                        self.dialogue.note_announcement(false);
                        None
                    }
                    Action::Open { endpoint, padding } => {
                        self.dialogue.note_announcement(true);
                        announced.parsed.ok()?.edit(endpoint, padding)
                    }
                }
            }
            CommandMeaning::Auth => {
                self.report_refused(RefusedLine::Auth);
                cross_out_command(self.dialogue, text, bytes, RefusalReason::AuthTls)
            }
        }
    }

    /// Reads a line of the server. Returns its edit, or `None` to forward the line unchanged.
    fn read_server_line(&mut self, line: &Line<'_>) -> LineEdit {
        let &Line { bytes, text, .. } = line;
        // The first lines of a multi-line reply were forwarded, so the last one must have the same code (RFC 959 section
        // 4.2).
        let code = self.dialogue.replies.open_code();
        self.dialogue.note_server_line_end(reply_line_end(bytes, text), text);
        match self.dialogue.read_reply_line(text) {
            ReplyMeaning::Event(DialogueEvent::DirectoryAnswered(true, _))
                if text.bytes().starts_with(b"257") =>
            {
                self.report(DialogueEvent::DirectoryAnswered(true, named_directory(bytes)));
            }
            ReplyMeaning::Event(DialogueEvent::TransferStarted(_)) => {
                self.report(DialogueEvent::TransferStarted(named_file(bytes)));
            }
            ReplyMeaning::Event(event) => self.report(event),
            ReplyMeaning::Nothing => {}
            ReplyMeaning::Passive { was_requested } => {
                return self.read_passive_reply(line, was_requested, code);
            }
            ReplyMeaning::ReplyToCrossedOut(reason) => {
                return self.refuse_reply(line, reason, false, code);
            }
        }
        None
    }

    /// Reads a 227 or 229. If the engine refuses it, an error reply with this `code` replaces it.
    fn read_passive_reply(
        &mut self,
        line: &Line<'_>,
        was_requested: bool,
        code: Option<u16>,
    ) -> LineEdit {
        let text = line.text;
        let (kind, parsed) = if text.bytes().starts_with(b"229") {
            (AnnouncementKind::Epsv, Announcement::parse_229(text))
        } else {
            (AnnouncementKind::Pasv, Announcement::parse_227(text))
        };
        if parsed.is_err() && !was_requested {
            return None; // `227 Logout.`
        }
        if !line.is_undelivered() {
            self.report(DialogueEvent::LimitReached(SessionLimit::HeldReply));
            return None;
        }
        let is_end = parsed.as_ref().is_ok_and(|parsed| is_end_of_reply(text, parsed));
        if self.push_state != PushState::CompleteReply || !is_end {
            self.dialogue.note_partial_reply();
        }
        let announced = self.announced_line(kind, parsed, was_requested, text);
        match self.handler.on_announcement(&announced) {
            Action::Refuse(reason) => self.refuse_reply(line, reason, true, code),
            Action::Pass => None,
            Action::Open { endpoint, padding } => announced.parsed.ok()?.edit(endpoint, padding),
        }
    }

    /// Replaces a reply by an error reply with `reason`; `passive` is set for a 227 or 229. If the error reply is longer
    /// and the connection must not be adjusted, the original reply stays.
    fn refuse_reply(
        &mut self,
        line: &Line<'_>,
        reason: RefusalReason,
        passive: bool,
        code: Option<u16>,
    ) -> LineEdit {
        if !line.is_undelivered() || self.direction.space.map.is_half_full() {
            return None;
        }
        let range = line.text.line_range(0..line.text.bytes().len());
        let new = reason.reply(passive, code, range.len());
        let may_grow = self.opposite.space.window > 0 && !self.dialogue.has_many_pending();
        let may_replace = new.len() == range.len() || may_grow && self.handler.may_renumber();
        may_replace.then_some((range, new))
    }

    /// Refuses the client's line, which is another command for some servers.
    fn refuse_ambiguous_line(&mut self, line: &Line<'_>) -> LineEdit {
        self.report_refused(RefusedLine::Urgent);
        self.dialogue.note_crossed_out(RefusedLine::Urgent.reason());
        if line.text.bytes().is_empty() {
            return None;
        }
        let (range, new) = refused_command_text(line.text, line.bytes);
        let skipped = line.delivered.saturating_sub(range.start).min(range.len());
        (skipped < range.len()).then(|| (range.start + skipped..range.end, new[skipped..].into()))
    }
}

/// A peer's bytes for a log line: escaped, and cut to 80 bytes.
fn escape_and_cut(text: &[u8]) -> String {
    const LIMIT: usize = 80;
    let cut = if text.len() > LIMIT { "..." } else { "" };
    format!("{}{cut}", text[..text.len().min(LIMIT)].escape_ascii())
}

/// The announcement in a `PORT` or `EPRT`.
fn announcement(
    command: &Command<'_>,
) -> Option<(AnnouncementKind, Result<Announcement, MalformedAnnouncement>)> {
    let Command { verb, argument, argument_start, .. } = *command;
    match verb {
        Verb::Port => {
            Some((AnnouncementKind::Port, Announcement::parse_port(argument, argument_start)))
        }
        Verb::Eprt => {
            Some((AnnouncementKind::Eprt, Announcement::parse_eprt(argument, argument_start)))
        }
        _ => None,
    }
}

/// Start of the verb that ends at `end` of `line`.
fn verb_start(line: &[u8], end: usize) -> usize {
    line[..end].iter().rposition(|byte| !byte.is_ascii_alphabetic()).map_or(0, |at| at + 1)
}

/// End of the verb that some server sees in the client's `line`. `None` if there is no such verb, or if the line is
/// that command in its plain form.
fn ambiguous_verb_end(
    dialogue: &Dialogue,
    line: &[u8],
    text: &Text<'_>,
    search: VerbSearch,
) -> Option<usize> {
    if dialogue.phase() == Phase::PickedUp {
        return None;
    }
    let end = VerbScanner::find_verb_end(line, search)?;
    let is_plain = Command::parse(text).is_some_and(|command| {
        // No byte from the verb on may be skipped.
        let all = text.line_range(0..command.argument_start + command.argument.len());
        let is_contiguous = all.start + VERB_LENGTH == end
            && all.len() == text.bytes().len()
            && !(text.has_control_bytes()
                && (command.argument.is_empty() || has_control_bytes(&line[all])));
        command.word.len() == VERB_LENGTH && is_contiguous
    });
    (!is_plain || cannot_begin_ftp(dialogue, line)).then_some(end)
}

/// Crosses out `line` from the verb that ends at `end` on, except the bytes that were `delivered`.
fn cross_out_from(line: &[u8], delivered: usize, end: usize) -> LineEdit {
    // The letters of the verb, and the bytes between them that a server may skip.
    let mut letters = 0;
    let is_verb = |byte: &&u8| {
        let is_more = letters < VERB_LENGTH && !matches!(byte, b'\r' | b'\n');
        letters += usize::from(byte.is_ascii_alphabetic());
        is_more
    };
    let verb = line[..end].iter().rev().take_while(is_verb).count();
    let start = (end - verb).max(delivered);
    let stop = line.len() - line.iter().rev().take_while(|b| matches!(b, b'\r' | b'\n')).count();
    if start < end || line[..delivered] == *CROSSED_OUT_START {
        return (start < stop).then(|| (start..stop, crossed_out(&line[start..stop])));
    }
    // The verb was delivered. The rest of the line makes it longer, with a bare LF, because some servers read an
    // argument behind a bare LF.
    let stop = if start < stop || line.ends_with(b"\r\n") { stop } else { line.len() };
    (start < stop).then(|| (start..stop, (start..stop).map(|_| CROSS_OUT_BYTE).collect()))
}

/// The stored start of a line whose rest is crossed out as it arrives. No client begins an announcement like this.
const CROSSED_OUT_START: &[u8] = b"PORT X";

/// The crossed out form of `bytes`.
fn crossed_out(bytes: &[u8]) -> SmallBytes {
    bytes.iter().map(|b| if matches!(b, b' ' | b'\t') { *b } else { b'X' }).collect()
}

/// Whether the start of the line was crossed out because it was too long to be held back. A client that sends as many X
/// itself gets the same reply.
fn is_crossed_out_start(line: &[u8], delivered: usize) -> bool {
    delivered > MAX_HELD && line.starts_with(&[b'X'; MAX_HELD])
}

/// Whether no FTP client starts with `bytes`. A binary message with a length prefix may continue like FTP.
fn cannot_begin_ftp(dialogue: &Dialogue, bytes: &[u8]) -> bool {
    dialogue.expects_first_command() && bytes.contains(&0)
}

/// Whether only punctuation follows the announced endpoint. The tail of another reply ends differently, for example
/// with `" is the current directory`.
fn is_end_of_reply(text: &Text<'_>, announcement: &Announcement) -> bool {
    let behind = text.bytes().get(announcement.endpoint.end..).unwrap_or_default();
    !behind.iter().any(|byte| byte.is_ascii_alphanumeric() || *byte == b'"')
}

/// Crosses out the client's line, of which nothing was forwarded. The client's error reply will have the `reason`.
fn cross_out_command(
    dialogue: &mut Dialogue,
    text: &Text<'_>,
    line: &[u8],
    reason: RefusalReason,
) -> LineEdit {
    dialogue.note_crossed_out(reason);
    Some(refused_command_text(text, line))
}

/// A line of the same length that every server must refuse (RFC 959: 500). Replies stay in the order of the commands,
/// and sequence numbers stay the same.
fn refused_command_text(text: &Text<'_>, line: &[u8]) -> (Range<usize>, SmallBytes) {
    let range = text.line_range(0..text.bytes().len());
    let new = crossed_out(&line[range.clone()]);
    (range, new)
}

/// The lowest window field of forwarded commands while a server's announcement must be a complete reply of its own.
const RAISED_WINDOW: u16 = 256;

/// What the PSH bit of a packet shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum PushState {
    /// More data may follow at once.
    #[default]
    NotPushed,
    /// The sender's TCP has nothing more to send for now.
    Pushed,
    /// As `Pushed`, and the packet is exactly one reply line without its line end.
    ReplyWithoutEnd,
    /// As `Pushed`, and the packet is exactly one reply line, or the line end of one.
    CompleteReply,
}

impl PushState {
    /// The PSH state of any packet.
    pub(super) fn from_packet(packet: &Packet<'_>) -> Self {
        if packet.has(flags::PSH) { Self::Pushed } else { Self::NotPushed }
    }

    /// The PSH state of a server's packet in an ambiguous dialogue.
    pub(super) fn from_reply_packet(
        packet: &Packet<'_>,
        client: &Direction,
        server: &Direction,
    ) -> Self {
        match Self::from_packet(packet) {
            Self::Pushed if is_all_there_was(packet, client, server) => {
                Self::from_reply_bytes(packet.payload(), server)
            }
            push_state => push_state,
        }
    }

    /// The PSH state of `payload`, which is everything that the server had to send.
    fn from_reply_bytes(payload: &[u8], server: &Direction) -> Self {
        let nuls = payload.iter().rev().take_while(|byte| **byte == 0).count();
        let payload = &payload[..payload.len() - nuls];
        // Some servers send an empty line after each reply.
        let line =
            payload.strip_suffix(b"\r\n").filter(|line| line.ends_with(b"\n")).unwrap_or(payload);
        let begins = server.is_between_lines();
        match memchr::memchr(b'\n', line) {
            None if begins => Self::ReplyWithoutEnd,
            Some(at) if at + 1 == line.len() && (begins || is_rest_of_line(line, server)) => {
                Self::CompleteReply
            }
            _ => Self::Pushed,
        }
    }
}

/// Whether `line` is only a line end, and the server sent the rest of that line in a packet of its own.
fn is_rest_of_line(line: &[u8], server: &Direction) -> bool {
    matches!(line, b"\r\n" | b"\n") && server.extra().line_without_end == Some(server.space.next)
}

/// Whether `packet`, which has PSH, is everything that the server had to send.
fn is_all_there_was(packet: &Packet<'_>, client: &Direction, server: &Direction) -> bool {
    let end = packet.seq() + packet.payload().len() as u32; // an IP packet's
    packet.seq() == server.space.next
        && client.extra().window_end.is_some_and(|window_end| end.is_before(window_end))
        && client.space.is_acknowledged()
}

impl Session {
    /// The window field with which the client's `packet` is forwarded, if it carries data after which a server's
    /// announcement must be a complete reply of its own. A line that ends with LF alone makes the dialogue ambiguous
    /// when it is read; so do a packet that shows missed bytes, and the first text after TLS. The reply to a command in
    /// a pipeline may do so, or the reply to a login, behind which some clients send `PASV` at once.
    #[inline]
    pub(super) fn window_to_offer(&self, from: Side, packet: &Packet<'_>) -> Option<u16> {
        let payload = packet.payload();
        if from == Side::Server {
            return None;
        }
        let line = payload.strip_suffix(b"\r\n").unwrap_or(payload);
        let shows_missed = || self.server.space.is_all_seen(packet.ack()) == Some(false);
        let is_required = match payload.is_empty() {
            true => self.needs_acknowledgements(),
            false => {
                self.dialogue.is_ambiguous()
                    || self.dialogue.has_pending_commands()
                    || self.dialogue.may_log_in()
                    || self.is_encrypted()
                    || line.contains(&b'\n')
                    || shows_missed()
            }
        };
        if !is_required {
            return None;
        }
        let window = packet.window();
        let is_raised = window > 0 && !self.client.space.has_plain_window;
        Some(if is_raised { window.max(RAISED_WINDOW) } else { window })
    }
}

/// Notes how far the client's `packet`, with this `window`, lets the server send.
#[cold]
pub(super) fn note_offered_window(
    packet: &Packet<'_>,
    window: u16,
    client: &mut Direction,
    server: &Direction,
    dialogue: &Dialogue,
) {
    if packet.payload().is_empty() {
        // The server may not have received a packet that offers more. The worst case counts.
        let end = server.space.map.to_sent(packet.ack()) + u32::from(window);
        let known = client.extra().window_end.map(|known| known.min(end));
        return client.set_window_end(known);
    }
    let sent = server.space.next;
    let acknowledges_all = packet.ack() == server.space.map.to_delivered(sent);
    let end = if acknowledges_all { sent + u32::from(window) } else { sent };
    // The server has read every earlier command, with the window of its packets. The server takes no window from
    // retransmitted bytes.
    let is_first = client.is_idle()
        && packet.seq() == client.space.next
        && (!dialogue.has_pending_commands() || client.space.is_acknowledged());
    let end =
        if is_first { end } else { client.extra().window_end.map_or(sent, |known| known.min(end)) };
    client.set_window_end(Some(end));
}
