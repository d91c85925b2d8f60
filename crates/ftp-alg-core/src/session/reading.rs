//! From segments to whole lines: bytes are read in the order of their sequence numbers, each once. How much of an
//! unfinished line is held back.
//!
//! `line_decisions` decides about whole lines; `direction` stores and delivers their bytes.

use super::{
    DialogueEvent, MAX_HELD, MAX_LINE, Phase, RefusedLine, SessionLimit, Side,
    line_decisions::{
        CROSSED_OUT_START, DirectionReader, Line, VERB_LENGTH, announcement, cannot_begin_ftp,
    },
    proxy_header,
    push_state::PushState,
    sequence::CROSS_OUT_BYTE,
    state::{Inspection, Read, State, Tls},
    tls::TlsRecords,
};
use crate::{
    ftp::{
        Command, LineEnd, Text, Verb, VerbScanner, begins_subnegotiation, has_control_bytes,
        may_end_or_skip, without_nuls,
    },
    packet::Seq,
};

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

/// What else ends at the end of a line or of its start.
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
                self.follow(before);
                is_text = self.dialogue.state.reads_lines(self.from);
            }
            // Most segments are one line, and then scanned once.
            let may_be_line = is_text && new.ends_with(b"\n") && self.direction.line().is_empty();
            let text = if may_be_line { Text::of_plain(new) } else { None };
            let is_line = !is_text || text.is_some();
            let end = if is_line { None } else { memchr::memchr(b'\n', new) };
            let (line, rest) = new.split_at(end.map_or(new.len(), |end| end + 1));
            let stores = self.from == Side::Client && is_text;
            if let Some(limit) = self.reached_limit(stores, line.len()) {
                return self.found(DialogueEvent::LimitReached(limit));
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
        let Some(length) = proxy_header::header_len(new).filter(|_| is_first) else { return 0 };
        self.record_subnegotiation(&new[..length]);
        let (header, mut scanner) = (&new[..length], VerbScanner::default());
        let search = self.verb_search();
        if scanner.continue_to_verb_end(header, search).is_some() {
            return 0;
        }
        if scanner.is_inside_verb() {
            // For a server that does not know the protocol, the client's first line goes on behind it.
            self.direction.extra_mut().scanner = Some(scanner);
        }
        self.dialogue.record_proxy_header();
        self.unacknowledged.push(seq, header);
        self.direction.space.next = seq + length as u32;
        length
    }

    /// The limit that does not allow `more` bytes now. If `stores` is set, they are stored until they are
    /// acknowledged.
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

    /// Index in `new`, which starts at `seq` as other data, at which text starts again; `None` if it does not.
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
            self.follow(before);
        } else {
            self.advance(Read::NoTls);
        }
        self.dialogue.state.reads_lines(self.from).then_some(start)
    }

    /// Encryption has begun if both ends have sent records of a handshake.
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
        self.follow(before);
    }

    /// Does what a change of the state since `before` requires, if there was one.
    fn follow(&mut self, before: State) {
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
        if let Some(event) = before.effect(state) {
            self.found(event);
        }
    }

    /// Reads `line` at `seq`, which is new: a whole line, with its `text` if that is known, or a part of one.
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
            // They pass, and the next line begins behind them.
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
                self.dialogue.record_pause(self.push_state == PushState::CompleteReply);
            }
            return self.follow(before);
        }
        if self.from == Side::Client && cannot_begin_ftp(self.dialogue, line) {
            self.dialogue.mark_client_not_ftp();
            self.follow(before);
        }
        self.continue_line(seq, line, boundary.ends_stream);
    }

    /// Reads `chunk` at `seq`, which completes a line. A `text` says that it is the whole line, and plain.
    fn end_line(&mut self, mut seq: Seq, mut chunk: &[u8], mut text: Option<&Text<'_>>) {
        let is_client = self.from == Side::Client;
        let is_long = self.direction.line().len() + chunk.len() > MAX_LINE;
        let stored = self.direction.line();
        let is_lf_alone = chunk == b"\n"
            && !matches!(stored, [] | [.., b'\r'])
            && !stored.starts_with(CROSSED_OUT_START);
        if is_client {
            self.record_subnegotiation(chunk);
        }
        if is_client && is_long {
            self.dialogue.record_long_line();
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
            self.found(DialogueEvent::LimitReached(SessionLimit::PendingCommands));
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
            self.record_subnegotiation(chunk);
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
            // does not depend on how the line is cut. The same if the client is not FTP: the server may not be either.
            // Nothing is held back of a connection that was picked up: what is held back is acknowledged, and earlier
            // bytes may be missing.
            let phase = self.dialogue.phase();
            let is_ftp = phase.has_greeted() && phase != Phase::NotFtp;
            hold &= (is_ftp || is_longer) && phase != Phase::PickedUp;
        }
        if hold && before + chunk.len() > MAX_HELD {
            if is_client {
                self.found(DialogueEvent::LineRefused(RefusedLine::Overlong));
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
    fn record_subnegotiation(&mut self, chunk: &[u8]) {
        let has_command = chunk.iter().any(|byte| *byte >= 0xf0);
        if has_command && begins_subnegotiation(&[self.direction.line(), chunk].concat()) {
            self.direction.extra_mut().has_subnegotiation = true;
        }
    }

    /// Where in `chunk`, which continues the line, a verb ends that some server may see, and the state of the scan
    /// behind `chunk`.
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

    /// Where in `chunk`, which continues the line, the verb ends with which the line begins, if the command is refused
    /// whatever follows. Of a connection that may be no FTP only a command in plain form is, and nothing of it is held back.
    fn find_plain_verb_end(&self, chunk: &[u8]) -> Option<usize> {
        let before = self.direction.line();
        let line = [before, chunk].concat();
        let text = Text::new(&line);
        let is_verb = from_verb(&line, &text).len() > VERB_LENGTH
            && text.bytes().len() >= VERB_LENGTH
            && Command::may_announce(&text, self.refuses_auth);
        let command = Command::parse(&text).filter(|_| is_verb)?;
        let is_refused = match announcement(&command) {
            Some((kind, parsed)) => !self.decide.may_begin(kind, &parsed, command.argument),
            None => command.verb == Verb::Auth,
        };
        is_refused.then(|| text.line_range(0..VERB_LENGTH).end.saturating_sub(before.len()))
    }

    /// Crosses out the line that `chunk` at `seq` continues from the point at which some server may see an announcement,
    /// up to the line end at `end`. Returns where in `chunk` that ends, if there is such a point.
    fn cross_out_ambiguous_tail(&mut self, seq: Seq, chunk: &[u8], end: usize) -> Option<usize> {
        let verb_end = self.scan_for_verb(chunk).0?;
        let is_crossed_out = self.direction.line().starts_with(CROSSED_OUT_START);
        // A bare LF alone: some server may read an argument behind it.
        let end = if chunk == b"\n" && !is_crossed_out { 1 } else { end };
        let chunk = chunk.get(..end).filter(|chunk| !chunk.is_empty())?;
        // The complete line might have shown that the client does not speak FTP; that is now unknown.
        self.dialogue.record_client_line_end(LineEnd::Ambiguous);
        if !is_crossed_out {
            self.found(DialogueEvent::LineRefused(RefusedLine::Ambiguous));
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
    /// `chunk`. They are stored if they may change how servers read what follows.
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
            self.dialogue.record_client_line_end(LineEnd::Ambiguous);
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

    /// Forwards the client's `bytes` at `seq` at once, except for what a server without TLS would take for an
    /// announcement. If the server has begun TLS, text behind a record begins a line.
    #[cold]
    fn forward_possible_tls(&mut self, mut seq: Seq, bytes: &[u8], boundary: LineBoundary) {
        let mut records = self.direction.extra().tls_records;
        let text = records.follow(self.from, bytes).filter(|_| self.dialogue.has_records_of_both());
        let (mut bytes, text) = bytes.split_at(text.unwrap_or(bytes.len()));
        self.record_subnegotiation(bytes);
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
