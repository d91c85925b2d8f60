//! Whole lines: what a line says, what the engine decides about its announcement, and the edit with which it is
//! forwarded. An edit that changes its length has all later packets queued (`wanted_queue_mode` in `engine/decision`).

use std::ops::Range;

use super::{
    Activity, AnnouncedLine, Decide, Dialogue, DialogueEvent, Direction, Effect, MAX_HELD, Phase,
    RefusalReason, RefusedLine, SessionLimit, Side, UnacknowledgedData,
    activity::{named_directory, named_file},
    compact::SmallBytes,
    dialogue::{CommandEffect, ReplyEffect},
    direction::LineEdit,
    interfaces::DOUBTFUL_INTERFACE,
    push_state::PushState,
    sequence::CROSS_OUT_BYTE,
};
use crate::ftp::{
    Announcement, AnnouncementKind, Command, LineEnd, MalformedAnnouncement, Text, Verb,
    VerbScanner, VerbSearch, has_control_bytes, line_end, reply_line_end,
};

/// Length of the verbs of announcements.
pub const VERB_LENGTH: usize = 4;

/// A complete line.
pub struct Line<'a> {
    pub bytes: &'a [u8],
    /// The same, parsed.
    pub text: &'a Text<'a>,
    /// How many of the bytes have been forwarded.
    pub delivered: usize,
}

impl Line<'_> {
    /// Whether no byte of what its reader sees has been forwarded. NULs that some send behind a line were delivered with
    /// it.
    fn is_undelivered(&self) -> bool {
        self.delivered <= self.text.line_range(0..1).start
    }
}

/// One direction while it is read, with everything that a line may change.
pub struct DirectionReader<'a> {
    /// The end that sends this direction.
    pub from: Side,
    pub direction: &'a mut Direction,
    pub opposite: &'a mut Direction,
    /// The client's unacknowledged data.
    pub unacknowledged: &'a mut UnacknowledgedData,
    pub dialogue: &'a mut Dialogue,
    pub decide: &'a mut dyn Decide,
    /// Whether `AUTH` is refused.
    pub refuses_auth: bool,
    /// Whether packets of an end arrive where no route to it leads.
    pub has_doubtful_interface: bool,
    /// The PSH state of the packet.
    pub push_state: PushState,
}

impl DirectionReader<'_> {
    pub fn found(&mut self, event: DialogueEvent) {
        self.decide.found(event, self.dialogue);
    }

    /// What a scan of the client's bytes looks for.
    pub fn verb_search(&self) -> VerbSearch {
        let subnegotiates = self.direction.extra().has_subnegotiation;
        VerbSearch { auth: self.refuses_auth, subnegotiates }
    }

    fn found_refused(&mut self, line: RefusedLine) {
        self.found(DialogueEvent::LineRefused(line));
    }

    /// The announcement in `text`, which the dialogue has read. Its ranges, of the text until now, become ranges of the
    /// line.
    fn announced(
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

    /// Reads a line of the client. Returns its edit; without one it is forwarded as it is.
    pub fn read_client_line(&mut self, line: &Line<'_>) -> LineEdit {
        if let Some(event) = self.dialogue.end_open_reply() {
            self.found(event);
        }
        let &Line { bytes, text, delivered } = line;
        let end = line_end(bytes, text);
        // An empty line is no command for anybody, and the next one is whole for those who ignore it.
        if !(end == LineEnd::Lf && text.bytes().is_empty()) {
            self.dialogue.record_client_line_end(end);
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
            self.dialogue.record_crossed_out(RefusalReason::TooLong);
            return None;
        }
        let Some(end) = verb_end else { return self.read_command_line(line, false) };
        self.read_command_line(line, true);
        self.refuse_ambiguous_announcement(bytes, delivered, end)
    }

    /// Reads a line in which some server sees an announcement whose verb ends at `end`. It is refused, unless the
    /// announcement would be allowed for every reader.
    #[cold]
    fn refuse_ambiguous_announcement(
        &mut self,
        line: &[u8],
        delivered: usize,
        end: usize,
    ) -> LineEdit {
        let text = Text::new(&line[verb_start(line, end)..]);
        // No other verb is hidden after it.
        let command = Command::parse(&text).filter(|_| !has_control_bytes(&line[end..]));
        let is_refused = match command.and_then(|command| announcement(&command)) {
            None => {
                self.found_refused(RefusedLine::Ambiguous);
                true
            }
            Some((kind, parsed)) => {
                let announced = self.announced(kind, parsed, true, &text);
                matches!(self.decide.announcement(&announced), Effect::Refuse(_))
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
        let effect = self.dialogue.read_command(command.as_ref());
        let verb = text.line_range(0..command?.word.len());
        match effect {
            CommandEffect::Nothing if is_ambiguous => None,
            CommandEffect::Nothing => {
                let activity = Activity::of(&command?, &bytes[verb.end..])?;
                self.found(DialogueEvent::Requested(activity));
                None
            }
            _ if is_ambiguous => {
                self.dialogue.record_announcement(false);
                None
            }
            CommandEffect::Auth if !self.refuses_auth => {
                self.dialogue.record_auth();
                None
            }
            // The server refuses it, for its own reason.
            CommandEffect::Announcement
                if command?.argument.is_empty() && line_end(bytes, text) == LineEnd::Plain =>
            {
                self.dialogue.record_announcement(false);
                None
            }
            // What was delivered of it may name the client.
            CommandEffect::Announcement
                if !line.is_undelivered()
                    && self.dialogue.phase() == Phase::PickedUp
                    && bytes[..delivered] != *CROSSED_OUT_START =>
            {
                self.dialogue.record_announcement(false);
                self.refuse_ambiguous_announcement(bytes, delivered, verb.end)
            }
            // The start of a possible announcement was held back, unless it could not be.
            _ if !line.is_undelivered() => {
                self.dialogue.record_announcement(false);
                if bytes[..delivered] != *CROSSED_OUT_START {
                    self.found_refused(RefusedLine::Ambiguous);
                }
                cross_out_from(bytes, delivered, verb.end)
            }
            CommandEffect::Announcement => {
                let (kind, parsed) = announcement(&command?)?;
                let announced = self.announced(kind, parsed, true, text);
                self.decide_command(announced, text, bytes)
            }
            CommandEffect::Auth => {
                self.found_refused(RefusedLine::Auth);
                cross_out_command(self.dialogue, text, bytes, RefusalReason::AuthTls)
            }
        }
    }

    /// The edit of a client's announcement, of which no byte has been forwarded. If it is refused, it is crossed out.
    fn decide_command(
        &mut self,
        announced: AnnouncedLine,
        text: &Text<'_>,
        line: &[u8],
    ) -> LineEdit {
        match self.decide.announcement(&announced) {
            Effect::Refuse(reason) => cross_out_command(self.dialogue, text, line, reason),
            Effect::Pass => {
                self.dialogue.record_announcement(false);
                None
            }
            Effect::Open { endpoint, padding } => {
                self.dialogue.record_announcement(true);
                announced.parsed.ok()?.edit(endpoint, padding)
            }
        }
    }

    /// Reads a line of the server. Returns its edit; without one it is forwarded as it is.
    pub fn read_server_line(&mut self, line: &Line<'_>) -> LineEdit {
        let &Line { bytes, text, .. } = line;
        // The first lines of a multi-line reply were forwarded, so the last one must have the same code (RFC 959 section
        // 4.2).
        let code = self.dialogue.replies.open_code();
        self.dialogue.record_server_line_end(reply_line_end(bytes, text), text);
        match self.dialogue.read_reply_line(text) {
            ReplyEffect::Event(DialogueEvent::DirectoryAnswered(true, _))
                if text.bytes().starts_with(b"257") =>
            {
                self.found(DialogueEvent::DirectoryAnswered(true, named_directory(bytes)));
            }
            ReplyEffect::Event(DialogueEvent::TransferStarted(_)) => {
                self.found(DialogueEvent::TransferStarted(named_file(bytes)));
            }
            ReplyEffect::Event(event) => self.found(event),
            ReplyEffect::Nothing => {}
            ReplyEffect::Passive { was_requested } => {
                return self.read_passive_reply(line, was_requested, code);
            }
            ReplyEffect::ReplyToCrossedOut(reason) => {
                return self.refuse_reply(line, reason, false, code);
            }
        }
        None
    }

    /// Reads a 227 or 229. If it is refused, an error reply with this `code` replaces it.
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
            self.found(DialogueEvent::LimitReached(SessionLimit::HeldReply));
            return None;
        }
        let is_end = parsed.as_ref().is_ok_and(|parsed| is_end_of_reply(text, parsed));
        if self.push_state != PushState::CompleteReply || !is_end {
            self.dialogue.record_partial_reply();
        }
        let announced = self.announced(kind, parsed, was_requested, text);
        match self.decide.announcement(&announced) {
            Effect::Refuse(reason) => self.refuse_reply(line, reason, true, code),
            Effect::Pass => None,
            Effect::Open { endpoint, padding } => announced.parsed.ok()?.edit(endpoint, padding),
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
        let may_replace = new.len() == range.len() || may_grow && self.decide.may_renumber();
        may_replace.then_some((range, new))
    }

    /// Refuses the client's line, which is another command for some servers.
    pub fn refuse_ambiguous_line(&mut self, line: &Line<'_>) -> LineEdit {
        self.found_refused(RefusedLine::Urgent);
        self.dialogue.record_crossed_out(RefusedLine::Urgent.reason());
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
pub fn announcement(
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

/// End of the verb that some server sees in the client's `line`, unless the line is that command in its plain form, or
/// has no such verb.
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
        // No byte behind what precedes the verb may be skipped.
        let all = text.line_range(0..command.argument_start + command.argument.len());
        let is_contiguous = all.start + VERB_LENGTH == end
            && all.len() == text.bytes().len()
            && !(text.has_control_bytes()
                && (command.argument.is_empty() || has_control_bytes(&line[all])));
        command.word.len() == VERB_LENGTH && is_contiguous
    });
    (!is_plain || cannot_begin_ftp(dialogue, line)).then_some(end)
}

/// Crosses out `line` from the verb that ends at `end`, as far as it was not `delivered`.
fn cross_out_from(line: &[u8], delivered: usize, end: usize) -> LineEdit {
    // The letters of the verb, and what a server may skip between them.
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
    // The verb is longer. What follows becomes part of it. That includes a bare LF, because some servers read an
    // argument after it.
    let stop = if start < stop || line.ends_with(b"\r\n") { stop } else { line.len() };
    (start < stop).then(|| (start..stop, (start..stop).map(|_| CROSS_OUT_BYTE).collect()))
}

/// Stands for the start of a line whose rest is crossed out as it arrives. No client begins an announcement like this.
pub const CROSSED_OUT_START: &[u8] = b"PORT X";

/// The crossed out form of `bytes`.
pub fn crossed_out(bytes: &[u8]) -> SmallBytes {
    bytes.iter().map(|b| if matches!(b, b' ' | b'\t') { *b } else { b'X' }).collect()
}

/// Whether the start of the line was crossed out because it was too long to be held back. A client that sends that many
/// X itself gets the same reply.
fn is_crossed_out_start(line: &[u8], delivered: usize) -> bool {
    delivered > MAX_HELD && line.starts_with(&[b'X'; MAX_HELD])
}

/// Whether no FTP client starts with `bytes`. A binary message with a length prefix may continue like FTP.
pub fn cannot_begin_ftp(dialogue: &Dialogue, bytes: &[u8]) -> bool {
    dialogue.expects_first_command() && bytes.contains(&0)
}

/// Whether only punctuation follows the announced endpoint. The tail of another reply ends differently, for example
/// with `" is the current directory`.
fn is_end_of_reply(text: &Text<'_>, announcement: &Announcement) -> bool {
    let behind = text.bytes().get(announcement.endpoint.end..).unwrap_or_default();
    !behind.iter().any(|byte| byte.is_ascii_alphanumeric() || *byte == b'"')
}

/// Crosses out the client's line, of which nothing was forwarded, and gives the client the `reason`.
fn cross_out_command(
    dialogue: &mut Dialogue,
    text: &Text<'_>,
    line: &[u8],
    reason: RefusalReason,
) -> LineEdit {
    dialogue.record_crossed_out(reason);
    Some(refused_command_text(text, line))
}

/// A line of the same length that every server must refuse (RFC 959: 500). Replies stay in the order of the commands,
/// and sequence numbers stay the same.
pub fn refused_command_text(text: &Text<'_>, line: &[u8]) -> (Range<usize>, SmallBytes) {
    let range = text.line_range(0..text.bytes().len());
    let new = crossed_out(&line[range.clone()]);
    (range, new)
}
