//! From bytes to whole lines, and how much of an unfinished line is held back.
//!
//! `line_decisions` decides about whole lines; `direction` stores and delivers their bytes.

use super::{
    Dialogue, DialogueEvent, Inspection, PendingLine, Phase, ReadEffect, RefusedLine, SessionLimit,
    Side,
    adjust::BLANK,
    direction::Direction,
    inspection_state::InspectionState,
    limits::{MAX_HELD, MAX_LINE, VERB_LENGTH},
    line_decisions::{
        BLANKED_LINE, LineRead, ReplyContext, cannot_begin_ftp, client_line, finish_line,
        may_need_decision, refuse_ambiguous_line, server_line,
    },
    push_state::PushState,
    unacknowledged::UnacknowledgedData,
    urgent::UrgentPointer,
};
use crate::{
    ftp::{Command, LineEnd, Text, VerbScanner, may_end_or_skip},
    packet::Seq,
};

/// Number of bytes at the end of `lead` that affect what follows: an unfinished Telnet command, or a CR that may end a
/// line, together with the Telnet command that it may belong to.
fn may_go_on(lead: &[u8]) -> usize {
    match lead {
        [.., 0xff, _, b'\r'] => 3,
        [.., 0xff, _] => 2,
        [.., 0xff | b'\r'] => 1,
        _ => 0,
    }
}

/// One direction while it is read, with everything that a line may change.
pub(super) struct DirectionReader<'a> {
    /// The end that sends this direction.
    pub(super) from: Side,
    pub(super) direction: &'a mut Direction,
    pub(super) other: &'a mut Direction,
    /// The client's unacknowledged data.
    pub(super) unacknowledged: &'a mut UnacknowledgedData,
    pub(super) dialogue: &'a mut Dialogue,
    pub(super) standing: &'a mut InspectionState,
    pub(super) pass: &'a mut Inspection,
    /// The PSH state of the packet.
    pub(super) pushed: PushState,
}

/// What else ends at the end of a line or of its start.
#[derive(Clone, Copy)]
pub(super) struct LineEnds {
    /// Whether the segment ends there.
    pub(super) segment: bool,
    /// Whether the stream ends there.
    pub(super) stream: bool,
}

/// The state before a line was read, to restore it if the line needs a decision.
struct Snapshot {
    dialogue: Dialogue,
    mark: Option<UrgentPointer>,
    line: usize,
    notes: usize,
}

impl DirectionReader<'_> {
    /// Reads `line` at `seq`, which is new: a whole line or the start of one.
    pub(super) fn line(&mut self, seq: Seq, line: &[u8], ends: LineEnds) {
        if line.ends_with(b"\n") {
            self.end_line(seq, line);
            if self.from == Side::Server && self.pushed != PushState::NotPushed && ends.segment {
                self.dialogue.settled();
            }
            return;
        }
        if self.from == Side::Client && cannot_begin_ftp(self.dialogue, line) {
            self.dialogue.leave_ftp();
            self.pass.push_event(DialogueEvent::NotFtpClient);
        }
        self.continue_line(seq, line, ends.stream);
    }

    /// Reads `chunk` at `seq`, which completes a line.
    fn end_line(&mut self, mut seq: Seq, mut chunk: &[u8]) {
        let is_client = self.from == Side::Client;
        if is_client && self.direction.line().len() + chunk.len() > MAX_LINE {
            // The stored part of the line may be truncated.
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
        let mut read = ReadEffect::Nothing;
        let (dialogue, pass) = (&mut *self.dialogue, &mut *self.pass);
        let done = if let Some((mut request, known)) = answered {
            read = request.effect;
            pass.events.append(&mut request.events);
            finish_line(dialogue, (line, delivered), &request, known)
        } else if is_ambiguous {
            LineRead::Done(refuse_ambiguous_line(dialogue, line, delivered, pass))
        } else if is_client {
            client_line(dialogue, line, delivered, pass, &mut read)
        } else {
            let (grow, apart) =
                (self.other.space.window > 0, self.pushed == PushState::CompleteReply);
            let limits = ReplyContext { replace, grow, apart };
            server_line(dialogue, line, delivered, limits, pass, &mut read)
        };
        let edit = match (done, before) {
            (LineRead::Done(edit), _) => edit,
            (LineRead::Asks(mut request), Some(before)) => {
                (request.seq, request.effect) = (seq, read);
                return self.ask(request, before);
            }
            (LineRead::Asks(_), None) => {
                debug_assert!(false, "asks: {}", chunk.escape_ascii());
                None
            }
        };
        self.direction.end_line(seq, chunk, delivered, edit);
        if self.dialogue.has_forgotten() {
            self.pass.push_limit(SessionLimit::Commands);
        }
        match read {
            ReadEffect::Nothing => {}
            ReadEffect::NotFtp => self.stop_reading(),
            ReadEffect::NotFtpClient => self.pass.push_event(DialogueEvent::NotFtpClient),
            ReadEffect::Encrypted => {
                self.standing.encrypt();
                self.direction.encrypt();
                self.other.encrypt();
                self.pass.push_event(DialogueEvent::Encrypted);
            }
        }
    }

    /// A snapshot of the state before the line that `chunk` completes, if the line may need a decision. A line whose
    /// decision has arrived continues from there.
    fn before(&mut self, chunk: &[u8], asked: Option<&mut PendingLine>) -> Option<Snapshot> {
        let line = self.direction.line();
        let dialogue = match asked {
            Some(asked) => std::mem::replace(self.dialogue, std::mem::take(&mut asked.dialogue)),
            None if may_need_decision(self.dialogue, self.from, line, chunk) => {
                self.dialogue.clone()
            }
            None => return None,
        };
        let (mark, notes) = (self.direction.urgent().cloned(), self.pass.events.len());
        Some(Snapshot { dialogue, mark, line: line.len(), notes })
    }

    /// A line needs a decision: restores the snapshot and stores the line as pending.
    fn ask(&mut self, mut request: Box<PendingLine>, before: Snapshot) {
        request.dialogue = std::mem::replace(self.dialogue, before.dialogue);
        self.direction.set_urgent(before.mark);
        self.direction.shorten_line(before.line);
        request.events = self.pass.events.split_off(before.notes);
        self.pass.pending = Some(request);
    }

    /// Whether an urgent byte in the client's line, which `chunk` at `seq` completes, makes it another command for some
    /// servers.
    fn ends_ambiguously(&mut self, seq: Seq, chunk: &[u8]) -> bool {
        let Some(mark) = self.direction.urgent_mut() else { return false };
        let is_ambiguous = mark.ends_ambiguously(seq, chunk);
        let (end, is_in_line) = (mark.end(), mark.is_in_line());
        if !is_in_line && end.is_before(self.direction.space.unacknowledged()) {
            self.direction.set_urgent(None);
        }
        is_ambiguous
    }

    /// Reads `chunk` at `seq`, which belongs to an incomplete line; a FIN follows it if `fin`.
    fn continue_line(&mut self, mut seq: Seq, mut chunk: &[u8], fin: bool) {
        let is_client = self.from == Side::Client;
        let is_marked =
            is_client && self.direction.urgent_mut().is_some_and(|mark| mark.continues(seq, chunk));
        if is_client && !self.direction.is_holding() {
            let lead = self.pass_lead(chunk);
            (seq, chunk) = (seq + lead as u32, &chunk[lead..]);
            if chunk.is_empty() {
                return;
            }
            if is_marked {
                self.direction.forward_unread_start(Vec::new(), 0); // what follows is held back by itself
            }
        }
        let before = self.direction.line().len();
        let mut hold = is_marked;
        let is_start = self.direction.is_holding() || before == 0;
        if !hold && is_start && self.dialogue.phase() != Phase::PickedUp {
            let line = [self.direction.line(), chunk].concat();
            let text = Text::new(&line);
            hold = match self.from {
                Side::Client => Command::may_announce(&text, self.pass.refuses_auth),
                Side::Server => self.dialogue.may_announce(&text),
            };
            // Before the greeting, the start of a line is forwarded until it is longer than a verb, because the server
            // of another protocol may wait for it. The rest of a refused command is blanked later, so the outcome does
            // not depend on how the line is cut.
            hold &= self.dialogue.phase().has_greeted() || text.bytes().len() > VERB_LENGTH;
        }
        if hold && before + chunk.len() > MAX_HELD {
            if is_client {
                self.pass.push_refused(RefusedLine::Overlong);
                self.direction.blank_held_line(seq, chunk);
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

    /// Whether some server may see an announcement in the line that `chunk` at `seq` continues. If so, the line is
    /// blanked from there on.
    fn hides(&mut self, seq: Seq, chunk: &[u8]) -> bool {
        if self.dialogue.phase() == Phase::PickedUp {
            return false;
        }
        let before = self.direction.line().len();
        let line = [self.direction.line(), chunk].concat();
        let Some(end) = VerbScanner::find(&line, self.pass.refuses_auth) else { return false };
        // The complete line might have shown that the client does not speak FTP; that is now unknown.
        self.dialogue.client_line_ended(LineEnd::Odd);
        if !self.direction.line().starts_with(BLANKED_LINE) {
            self.pass.push_refused(RefusedLine::Ambiguous);
        }
        if self.direction.is_holding() {
            self.direction.blank_held_line(seq, chunk);
        } else {
            let kept = end.saturating_sub(before).min(chunk.len() - 1);
            let (kept, rest) = chunk.split_at(kept);
            self.direction.space.map.replace(
                seq + kept.len() as u32,
                rest.len() as u32,
                &vec![BLANK; rest.len()],
            );
        }
        self.direction.forward_unread_start(BLANKED_LINE.to_vec(), BLANKED_LINE.len());
        true
    }

    /// In an unfinished line longer than the limit, stores the last position at which some server may see another line
    /// start.
    fn keep_last_start(&mut self, chunk: &[u8]) {
        if let Some(at) = chunk.iter().rposition(|byte| matches!(byte, 0 | b'\r')) {
            self.direction.forward_unread_start(chunk[at..].to_vec(), chunk.len() - at);
        }
    }

    /// Forwards Telnet commands (above all urgent ones) and blanks before a command at once. Returns their length in
    /// `chunk`. They are stored if they may change how servers read what follows.
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
        self.direction.forward_unread_start(line[..start].to_vec(), unfinished);
        lead
    }

    /// Whether every server sees `text`, a possible announcement, start right after `lead`. Some servers count one more
    /// byte as part of a Telnet command and may see a verb after that byte.
    fn begins_alike(&self, lead: &[u8], text: &Text<'_>) -> bool {
        let may_announce = |text: &Text<'_>| Command::may_announce(text, self.pass.refuses_auth);
        let is_option = lead.last().is_some_and(|byte| *byte >= 0xf0);
        may_announce(text) && !(is_option && may_announce(&Text::new(&text.bytes()[1..])))
    }

    /// Ends inspection: the connection is not FTP.
    pub(super) fn stop_reading(&mut self) {
        self.standing.turn_off();
        self.direction.stop_reading();
        self.other.stop_reading();
        self.pass.push_event(DialogueEvent::NotFtp);
    }
}
