//! From bytes to whole lines, and what of an unfinished line is held back.
//!
//! What a whole line says is read in `lines`; where its bytes are kept, and how they are delivered, is the matter of
//! `direction`.

use super::{
    Dialogue, Inspection, Limit, Note, Phase, Read, Refused, Request, Side,
    adjust::CROSSED_OUT,
    apart::Pushed,
    direction::Direction,
    limits::{MAX_HELD, MAX_LINE, VERB},
    lines::{
        CROSSED_LINE, Limits, LineRead, ambiguous_line, answered_line, client_line,
        is_no_beginning, may_ask, server_line,
    },
    standing::Standing,
    unacknowledged::Unacknowledged,
    urgent::Mark,
};
use crate::{
    ftp::{Command, Hidden, LineEnd, Text, may_end_or_skip},
    packet::Seq,
};

/// How many bytes at the end of `lead` bear on what follows: a Telnet command that may go on, or a CR that may end a line,
/// with the Telnet command of which it may be a part.
fn may_go_on(lead: &[u8]) -> usize {
    match lead {
        [.., 0xff, _, b'\r'] => 3,
        [.., 0xff, _] => 2,
        [.., 0xff | b'\r'] => 1,
        _ => 0,
    }
}

/// One direction as it is read, with what a line of it may change.
pub(super) struct Reading<'a> {
    /// Whose direction it is.
    pub(super) from: Side,
    pub(super) direction: &'a mut Direction,
    pub(super) other: &'a mut Direction,
    /// The client's.
    pub(super) unacknowledged: &'a mut Unacknowledged,
    pub(super) dialogue: &'a mut Dialogue,
    pub(super) standing: &'a mut Standing,
    pub(super) pass: &'a mut Inspection,
    /// Of the packet that is read.
    pub(super) pushed: Pushed,
}

/// What ends with a line, or with its start.
#[derive(Clone, Copy)]
pub(super) struct Ends {
    /// Whether its segment does.
    pub(super) segment: bool,
    /// Whether the stream does.
    pub(super) stream: bool,
}

/// What a line changes as it is read, as it was before.
struct Before {
    dialogue: Dialogue,
    mark: Option<Mark>,
    line: usize,
    notes: usize,
}

impl Reading<'_> {
    /// Reads `line` at `seq`, which was not seen before: a whole one, or the start of one.
    pub(super) fn line(&mut self, seq: Seq, line: &[u8], ends: Ends) {
        if line.ends_with(b"\n") {
            self.end_line(seq, line);
            if self.from == Side::Server && self.pushed != Pushed::Not && ends.segment {
                self.dialogue.settled();
            }
            return;
        }
        if self.from == Side::Client && is_no_beginning(self.dialogue, line) {
            self.dialogue.leave_ftp();
            self.pass.note(Note::NotFtpClient);
        }
        self.continue_line(seq, line, ends.stream);
    }

    /// `chunk` at `seq` ends a line.
    fn end_line(&mut self, mut seq: Seq, mut chunk: &[u8]) {
        let is_client = self.from == Side::Client;
        if is_client && self.direction.line().len() + chunk.len() > MAX_LINE {
            // Not all of the line is kept until it is read.
            let end = chunk.len() - if chunk.ends_with(b"\r\n") { 2 } else { 1 };
            if end > 0 && !self.direction.is_holding() && self.hides(seq, &chunk[..end]) {
                (seq, chunk) = (seq + end as u32, &chunk[end..]);
            }
        }
        let mut answered = self.pass.answer.take().filter(|(request, _)| request.seq == seq);
        let before = self.before(chunk, answered.as_mut().map(|(request, _)| &mut **request));
        let is_ambiguous = is_client && self.ends_ambiguously(seq, chunk);
        let replace = !self.direction.space.map.is_half_full();
        let (line, delivered) = self.direction.line_with(chunk);
        let mut read = Read::Nothing;
        let (dialogue, pass) = (&mut *self.dialogue, &mut *self.pass);
        let done = if let Some((mut request, known)) = answered {
            read = request.read;
            pass.notes.append(&mut request.notes);
            answered_line(dialogue, (line, delivered), &request, known)
        } else if is_ambiguous {
            LineRead::Done(ambiguous_line(dialogue, line, delivered, pass))
        } else if is_client {
            client_line(dialogue, line, delivered, pass, &mut read)
        } else {
            let (grow, apart) = (self.other.space.window > 0, self.pushed == Pushed::Apart);
            let limits = Limits { replace, grow, apart };
            server_line(dialogue, line, delivered, limits, pass, &mut read)
        };
        let edit = match (done, before) {
            (LineRead::Done(edit), _) => edit,
            (LineRead::Asks(mut request), Some(before)) => {
                (request.seq, request.read) = (seq, read);
                return self.ask(request, before);
            }
            (LineRead::Asks(_), None) => {
                debug_assert!(false, "asks: {}", chunk.escape_ascii());
                None
            }
        };
        self.direction.end_line(seq, chunk, delivered, edit);
        if self.dialogue.has_forgotten() {
            self.pass.limit(Limit::Commands);
        }
        match read {
            Read::Nothing => {}
            Read::NotFtp => self.stop_reading(),
            Read::NotFtpClient => self.pass.note(Note::NotFtpClient),
            Read::Encrypted => {
                self.standing.encrypt();
                self.direction.encrypt();
                self.other.encrypt();
                self.pass.note(Note::Encrypted);
            }
        }
    }

    /// How things are before the line that `chunk` ends is read, if that may ask. One that asked is read on from there.
    fn before(&mut self, chunk: &[u8], asked: Option<&mut Request>) -> Option<Before> {
        let line = self.direction.line();
        let dialogue = match asked {
            Some(asked) => std::mem::replace(self.dialogue, std::mem::take(&mut asked.dialogue)),
            None if may_ask(self.dialogue, self.from, line, chunk) => self.dialogue.clone(),
            None => return None,
        };
        let (mark, notes) = (self.direction.mark().cloned(), self.pass.notes.len());
        Some(Before { dialogue, mark, line: line.len(), notes })
    }

    /// A line asks, and waits; what it has changed so far is taken back.
    fn ask(&mut self, mut request: Box<Request>, before: Before) {
        request.dialogue = std::mem::replace(self.dialogue, before.dialogue);
        self.direction.set_mark(before.mark);
        self.direction.shorten_line(before.line);
        request.notes = self.pass.notes.split_off(before.notes);
        self.pass.request = Some(request);
    }

    /// The client's `chunk` at `seq` ends a line. Whether an urgent byte makes it another command for some servers.
    fn ends_ambiguously(&mut self, seq: Seq, chunk: &[u8]) -> bool {
        let Some(mark) = self.direction.mark_mut() else { return false };
        let is_ambiguous = mark.ends_ambiguously(seq, chunk);
        let (end, is_in_line) = (mark.end(), mark.is_in_line());
        if !is_in_line && end.is_before(self.direction.space.unacknowledged()) {
            self.direction.set_mark(None);
        }
        is_ambiguous
    }

    /// `chunk` at `seq` belongs to a line that is not complete; a FIN follows it if `fin`.
    fn continue_line(&mut self, mut seq: Seq, mut chunk: &[u8], fin: bool) {
        let is_client = self.from == Side::Client;
        let is_marked =
            is_client && self.direction.mark_mut().is_some_and(|mark| mark.continues(seq, chunk));
        if is_client && !self.direction.is_holding() {
            let lead = self.pass_lead(chunk);
            (seq, chunk) = (seq + lead as u32, &chunk[lead..]);
            if chunk.is_empty() {
                return;
            }
            if is_marked {
                self.direction.pass_over(Vec::new(), 0); // what follows is held back by itself
            }
        }
        let before = self.direction.line().len();
        let mut hold = is_marked;
        let is_start = self.direction.is_holding() || before == 0;
        if !hold && is_start && self.dialogue.phase() != Phase::Joined {
            let line = [self.direction.line(), chunk].concat();
            let text = Text::new(&line);
            hold = match self.from {
                Side::Client => Command::may_announce(&text, self.pass.refuses_auth),
                Side::Server => self.dialogue.may_announce(&text),
            };
            // Before the greeting a start goes on until it is more than a verb, as the server of another protocol may wait
            // for it. Of what is refused the rest is crossed out then, so what is obeyed does not depend on the cuts.
            hold &= self.dialogue.phase().has_greeted() || text.bytes().len() > VERB;
        }
        if hold && before + chunk.len() > MAX_HELD {
            if is_client {
                self.pass.refused(Refused::Overlong);
                self.direction.cross_out(seq, chunk);
                return;
            }
            hold = false;
        }
        if !hold && is_client && self.hides(seq, chunk) {
            return;
        }
        self.direction.continue_line(seq, chunk, hold && !fin);
        if is_client && before + chunk.len() > MAX_LINE {
            self.keep_last_start(chunk);
        }
    }

    /// Whether some server may see an announcement in what goes on with `chunk` at `seq`: it is crossed out from there on.
    fn hides(&mut self, seq: Seq, chunk: &[u8]) -> bool {
        if self.dialogue.phase() == Phase::Joined {
            return false;
        }
        let before = self.direction.line().len();
        let line = [self.direction.line(), chunk].concat();
        let Some(end) = Hidden::find(&line, self.pass.refuses_auth) else { return false };
        // What the line would have shown as a whole, as that it is none of FTP, is not known.
        self.dialogue.client_line_ended(LineEnd::Odd);
        if !self.direction.line().starts_with(CROSSED_LINE) {
            self.pass.refused(Refused::Hidden);
        }
        if self.direction.is_holding() {
            self.direction.cross_out(seq, chunk);
        } else {
            let kept = end.saturating_sub(before).min(chunk.len() - 1);
            let (kept, rest) = chunk.split_at(kept);
            self.direction.space.map.replace(
                seq + kept.len() as u32,
                rest.len() as u32,
                &vec![CROSSED_OUT; rest.len()],
            );
        }
        self.direction.pass_over(CROSSED_LINE.to_vec(), CROSSED_LINE.len());
        true
    }

    /// Of an unfinished line that is longer than is kept, the last place where some server may see another one begin.
    fn keep_last_start(&mut self, chunk: &[u8]) {
        if let Some(at) = chunk.iter().rposition(|byte| matches!(byte, 0 | b'\r')) {
            self.direction.pass_over(chunk[at..].to_vec(), chunk.len() - at);
        }
    }

    /// Telnet commands (urgent ones above all) and blanks before a command need not wait: gives how
    /// much of `chunk` they are. They are kept where servers may read what follows otherwise.
    fn pass_lead(&mut self, chunk: &[u8]) -> usize {
        let line = [self.direction.line(), chunk].concat();
        let text = Text::new(&line);
        let start = match text.bytes() {
            [] => line.len(),
            _ => text.origin(0..1).start,
        };
        let Some(lead) = start.checked_sub(self.direction.line().len()) else { return 0 };
        let is_all = lead == chunk.len();
        if !is_all && !self.begins_alike(&line[..start], &text) {
            return 0;
        }
        let mut unfinished = if is_all { text.unfinished().max(may_go_on(&line)) } else { 0 };
        let passed = &line[..start - unfinished];
        let is_cut = is_all && Text::new(passed).unfinished() > 0; // within a Telnet command
        if is_cut || may_end_or_skip(passed) {
            self.dialogue.client_line_ended(LineEnd::Odd);
        }
        if is_cut {
            unfinished = text.unfinished();
        }
        self.direction.pass_over(line[..start].to_vec(), unfinished);
        lead
    }

    /// Whether `text`, which may announce, begins behind `lead` for all servers: some take one byte more for a part of a
    /// Telnet command, and may see a verb behind that.
    fn begins_alike(&self, lead: &[u8], text: &Text<'_>) -> bool {
        let may_announce = |text: &Text<'_>| Command::may_announce(text, self.pass.refuses_auth);
        let is_option = lead.last().is_some_and(|byte| *byte >= 0xf0);
        may_announce(text) && !(is_option && may_announce(&Text::new(&text.bytes()[1..])))
    }

    /// The connection is not FTP: from here on nothing is read.
    pub(super) fn stop_reading(&mut self) {
        self.standing.turn_off();
        self.direction.stop_reading();
        self.other.stop_reading();
        self.pass.note(Note::NotFtp);
    }
}
