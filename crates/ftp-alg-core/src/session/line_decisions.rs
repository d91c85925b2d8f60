//! Decisions about whole lines: what a line says, and how it is changed.

use std::{net::SocketAddr, ops::Range};

use super::{
    Activity, AnnouncedLine, Answer, Continuation, DecisionRequest, Dialogue, DialogueEvent,
    Effect, Inspection, MAX_HELD, Phase, ReadEffect, RefusalReason, RefusedLine, ReplyLimits,
    SessionLimit, Side,
    activity::{named_directory, named_file},
    compact::SmallBytes,
    dialogue::{CommandEffect, ReplyEffect},
    sequence::CROSS_OUT_BYTE,
};
use crate::ftp::{
    Announcement, AnnouncementKind, Command, LineEnd, MalformedAnnouncement, Padding, Text, Verb,
    VerbScanner, has_control_bytes, line_end, reply_line_end,
};

/// Length of the verbs of announcements.
pub const VERB_LENGTH: usize = 4;

/// A range of the line and its replacement.
pub type LineEdit = Option<(Range<usize>, SmallBytes)>;

/// The result of reading a line.
pub enum LineRead {
    /// The line was read and is delivered with this edit.
    Done(LineEdit),
    /// Reading continues after a decision.
    NeedsDecision(DecisionRequest, Continuation),
}

/// Reads a complete line of the client. `delivered` bytes of it have been forwarded.
pub fn read_client_line(
    dialogue: &mut Dialogue,
    (line, text): (&[u8], &Text<'_>),
    delivered: usize,
    inspection: &mut Inspection,
    line_effect: &mut ReadEffect,
) -> LineRead {
    inspection.events.extend(dialogue.end_open_reply());
    let end = line_end(line, text);
    // An empty line is no command for anybody, and the next one is whole for those who ignore it.
    if !(end == LineEnd::Lf && text.bytes().is_empty()) {
        dialogue.record_client_line_end(end);
    }
    let verb_end = if text.has_control_bytes() || VerbScanner::may_begin(line) {
        ambiguous_verb_end(dialogue, (line, text), inspection)
    } else {
        None
    };
    if verb_end.is_none()
        && is_crossed_out_start(line, delivered)
        && dialogue.phase == Phase::Verified
    {
        dialogue.record_crossed_out(RefusalReason::TooLong);
        return LineRead::Done(None);
    }
    let Some(end) = verb_end else {
        let line = (line, text);
        return read_command_line(dialogue, line, delivered, false, inspection, line_effect);
    };
    read_command_line(dialogue, (line, text), delivered, true, inspection, line_effect);
    refuse_ambiguous_announcement(dialogue, line, (delivered, end), inspection)
}

/// Reads a line in which some server sees an announcement whose verb ends at `end`. It is refused, unless the
/// announcement would be allowed for every reader.
#[cold]
fn refuse_ambiguous_announcement(
    dialogue: &Dialogue,
    line: &[u8],
    (delivered, end): (usize, usize),
    inspection: &mut Inspection,
) -> LineRead {
    let text = Text::new(&line[verb_start(line, end)..]);
    // No other verb is hidden after it.
    let command = Command::parse(&text).filter(|_| !has_control_bytes(&line[end..]));
    let Some((kind, parsed)) = command.and_then(|command| announcement(&command)) else {
        inspection.push_refused(RefusedLine::Ambiguous);
        return LineRead::Done(cross_out_from(line, delivered, end));
    };
    let announced = AnnouncedLine::new(kind, parsed, true, dialogue, &text);
    LineRead::NeedsDecision(
        DecisionRequest::Announcement(announced),
        Continuation::AmbiguousAnnouncement { verb_end: end },
    )
}

/// Continues with a line after the `answer` to its `request`.
pub fn finish_line(
    dialogue: &mut Dialogue,
    (line, delivered): (&[u8], usize),
    (request, continuation): (&DecisionRequest, Continuation),
    answer: Answer,
) -> LineRead {
    let text = || Text::new(line);
    let effect = match answer {
        Answer::Effect(effect) => effect,
        Answer::AdjustSequence(may) => {
            return LineRead::Done(match continuation {
                Continuation::LongerReply(range, new) if may => Some((range, new)),
                _ => None,
            });
        }
    };
    LineRead::Done(match (continuation, effect) {
        (Continuation::AmbiguousAnnouncement { verb_end }, Effect::Refuse(_)) => {
            cross_out_from(line, delivered, verb_end)
        }
        (Continuation::ServerAnnouncement(Some(refusal)), Effect::Refuse(reason)) => {
            return refuse_reply(&text(), (reason, true), refusal);
        }
        (Continuation::ClientAnnouncement, Effect::Refuse(reason)) => {
            cross_out_command(dialogue, &text(), line, reason)
        }
        (Continuation::ClientAnnouncement, Effect::Pass) => {
            dialogue.record_announcement(false);
            None
        }
        (
            continuation @ (Continuation::ClientAnnouncement | Continuation::ServerAnnouncement(_)),
            Effect::Open { endpoint, padding },
        ) => {
            if let Continuation::ClientAnnouncement = continuation {
                dialogue.record_announcement(true);
            }
            match request {
                DecisionRequest::Announcement(AnnouncedLine { parsed: Ok(read), .. }) => {
                    rewrite(read, endpoint, padding)
                }
                _ => None,
            }
        }
        _ => None,
    })
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

/// Whether `line` may need a [decision](super::PendingLine): an announcement, or the reply to a crossed out command.
/// `is_plain` says that it is known to have no control bytes.
pub fn may_need_decision(dialogue: &Dialogue, from: Side, (line, is_plain): (&[u8], bool)) -> bool {
    match (from, line) {
        (Side::Client, [b'A'..=b'Z' | b'a'..=b'z', ..]) => {
            let verb = &line[..line.len().min(VERB_LENGTH)];
            verb.eq_ignore_ascii_case(b"PORT")
                || verb.eq_ignore_ascii_case(b"EPRT")
                || !is_plain && has_control_bytes(line)
        }
        (Side::Server, [b'0'..=b'9', b'0'..=b'9', b'0'..=b'9', ..]) => {
            matches!(line, [b'2', b'2', b'7' | b'9', ..]) || dialogue.expects_crossed_out_reply()
        }
        _ => true,
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
    (line, text): (&[u8], &Text<'_>),
    inspection: &Inspection,
) -> Option<usize> {
    if dialogue.phase == Phase::PickedUp {
        return None;
    }
    let end = VerbScanner::find_verb_end(line, inspection.verb_search())?;
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

/// Stands for the start of a line whose rest is crossed out as it arrives.
pub const CROSSED_OUT_START: &[u8] = b"PORT ";

/// The crossed out form of `bytes`.
pub fn crossed_out(bytes: &[u8]) -> SmallBytes {
    bytes.iter().map(|b| if matches!(b, b' ' | b'\t') { *b } else { b'X' }).collect()
}

/// Reads a line as one command. If it `is_ambiguous`, the caller refuses the whole line.
fn read_command_line(
    dialogue: &mut Dialogue,
    (line, text): (&[u8], &Text<'_>),
    delivered: usize,
    is_ambiguous: bool,
    inspection: &mut Inspection,
    line_effect: &mut ReadEffect,
) -> LineRead {
    let phase = dialogue.phase;
    let is_binary = cannot_begin_ftp(dialogue, line);
    if is_binary {
        dialogue.mark_client_not_ftp();
    }
    let command = if is_binary { None } else { Command::parse(text) };
    // The start of a possible announcement was held back, unless it could not be.
    let is_undelivered =
        delivered == 0 || text.bytes().is_empty() || text.line_range(0..1).start >= delivered;
    let effect = dialogue.read_command(command.as_ref());
    let activity = command.filter(|_| !is_ambiguous).and_then(|command| {
        let verb = text.line_range(0..command.word.len());
        Activity::of(&command, &line[verb.end..])
    });
    inspection.events.extend(activity.map(DialogueEvent::Requested));
    if dialogue.phase == Phase::NotFtp && phase != Phase::NotFtp {
        *line_effect = ReadEffect::NotFtpClient;
    }
    LineRead::Done(match (effect, command) {
        (CommandEffect::Announcement | CommandEffect::Auth, _) if is_ambiguous => {
            dialogue.record_announcement(false);
            None
        }
        (CommandEffect::Auth, _) if !inspection.refuses_auth => {
            dialogue.record_auth();
            None
        }
        (CommandEffect::Announcement | CommandEffect::Auth, Some(command)) if !is_undelivered => {
            dialogue.record_announcement(false);
            if line[..delivered] != *CROSSED_OUT_START {
                inspection.push_refused(RefusedLine::Ambiguous);
            }
            cross_out_from(line, delivered, text.line_range(0..command.word.len()).end)
        }
        // The server refuses it, for its own reason.
        (CommandEffect::Announcement, Some(command))
            if command.argument.is_empty() && line_end(line, text) == LineEnd::Plain =>
        {
            dialogue.record_announcement(false);
            None
        }
        (CommandEffect::Announcement, Some(command)) => {
            let Some((kind, parsed)) = announcement(&command) else { return LineRead::Done(None) };
            let announced = AnnouncedLine::new(kind, parsed, true, dialogue, text);
            let request = DecisionRequest::Announcement(announced);
            return LineRead::NeedsDecision(request, Continuation::ClientAnnouncement);
        }
        (CommandEffect::Auth, _) => {
            inspection.push_refused(RefusedLine::Auth);
            cross_out_command(dialogue, text, line, RefusalReason::AuthTls)
        }
        _ => None,
    })
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

/// What may happen to a line of the server.
#[derive(Clone, Copy)]
pub struct ReplyContext {
    /// Whether another reply may replace it.
    pub may_replace: bool,
    /// Whether the replacement may be longer.
    pub may_grow: bool,
    /// Whether the line is everything that the server had to send.
    pub is_complete_reply: bool,
}

/// Reads a complete line of the server. `delivered` bytes of it have been forwarded.
pub fn read_server_line(
    dialogue: &mut Dialogue,
    (line, text): (&[u8], &Text<'_>),
    delivered: usize,
    context: ReplyContext,
    inspection: &mut Inspection,
    line_effect: &mut ReadEffect,
) -> LineRead {
    let phase = dialogue.phase;
    // The first lines of a multi-line reply were forwarded, so the last one must have the same code (RFC 959 section
    // 4.2).
    let code = dialogue.replies.open_code();
    let ReplyContext { may_replace, may_grow, is_complete_reply } = context;
    // NULs that some servers send behind a line were delivered with it.
    let is_undelivered = delivered <= text.line_range(0..1).start;
    let refusal = |dialogue: &Dialogue| {
        (may_replace && is_undelivered).then(|| ReplyLimits {
            may_grow: may_grow && !dialogue.has_many_pending(),
            reply_code: code,
        })
    };
    dialogue.record_server_line_end(reply_line_end(line, text), text);
    let effect = dialogue.read_reply_line(text);
    if dialogue.phase == Phase::NotFtp && phase != Phase::NotFtp {
        *line_effect = ReadEffect::NotFtpClient;
    }
    match effect {
        ReplyEffect::Event(DialogueEvent::DirectoryAnswered(true, _))
            if text.bytes().starts_with(b"257") =>
        {
            let named = named_directory(line);
            inspection.events.push(DialogueEvent::DirectoryAnswered(true, named));
        }
        ReplyEffect::Event(DialogueEvent::TransferStarted(_)) => {
            inspection.events.push(DialogueEvent::TransferStarted(named_file(line)));
        }
        ReplyEffect::Nothing => {}
        ReplyEffect::NotFtp => *line_effect = ReadEffect::NotFtp,
        ReplyEffect::Passive { was_requested } => {
            let extended = text.bytes().starts_with(b"229");
            let (kind, parsed) = if extended {
                (AnnouncementKind::Epsv, Announcement::parse_229(text))
            } else {
                (AnnouncementKind::Pasv, Announcement::parse_227(text))
            };
            if parsed.is_err() && !was_requested {
                return LineRead::Done(None); // `227 Logout.`
            }
            if !is_undelivered {
                inspection.push_limit(SessionLimit::HeldReply);
                return LineRead::Done(None);
            }
            if !(is_complete_reply
                && parsed.as_ref().is_ok_and(|parsed| is_end_of_reply(text, parsed)))
            {
                dialogue.record_partial_reply();
            }
            let announced = AnnouncedLine::new(kind, parsed, was_requested, dialogue, text);
            let continuation = Continuation::ServerAnnouncement(refusal(dialogue));
            return LineRead::NeedsDecision(DecisionRequest::Announcement(announced), continuation);
        }
        ReplyEffect::ReplyToCrossedOut(reason) => {
            if let Some(refusal) = refusal(dialogue) {
                return refuse_reply(text, (reason, false), refusal);
            }
        }
        ReplyEffect::Event(note) => inspection.events.push(note),
        ReplyEffect::Encrypted => *line_effect = ReadEffect::Encrypted,
    }
    LineRead::Done(None)
}

/// Whether only punctuation follows the announced endpoint. The tail of another reply ends differently, for example
/// with `" is the current directory`.
fn is_end_of_reply(text: &Text<'_>, announcement: &Announcement) -> bool {
    let behind = text.bytes().get(announcement.endpoint.end..).unwrap_or_default();
    !behind.iter().any(|byte| byte.is_ascii_alphanumeric() || *byte == b'"')
}

/// Replaces only the endpoint, and only if it changes.
fn rewrite(announcement: &Announcement, endpoint: SocketAddr, padding: Padding) -> LineEdit {
    let same = announcement.port == endpoint.port()
        && announcement.address.is_none_or(|address| address == endpoint.ip());
    if same {
        return None;
    }
    announcement.edit(endpoint, padding)
}

/// Replaces a reply by an error reply with `reason`; `passive` is set for a 227 or 229. If the error reply is longer
/// and the connection must not be adjusted, the original reply stays.
fn refuse_reply(
    text: &Text<'_>,
    (reason, passive): (RefusalReason, bool),
    refusal: ReplyLimits,
) -> LineRead {
    let range = text.line_range(0..text.bytes().len());
    let new = reason.reply(passive, refusal.reply_code, range.len());
    if new.len() == range.len() {
        LineRead::Done(Some((range, new)))
    } else if refusal.may_grow {
        LineRead::NeedsDecision(
            DecisionRequest::AdjustSequence,
            Continuation::LongerReply(range, new),
        )
    } else {
        LineRead::Done(None)
    }
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

/// Refuses the client's line, which is another command for some servers. `delivered` bytes of it were forwarded.
pub fn refuse_ambiguous_line(
    dialogue: &mut Dialogue,
    line: &[u8],
    delivered: usize,
    inspection: &mut Inspection,
) -> LineEdit {
    inspection.push_refused(RefusedLine::Urgent);
    dialogue.record_crossed_out(RefusedLine::Urgent.reason());
    let text = Text::new(line);
    if text.bytes().is_empty() {
        return None;
    }
    let (range, new) = refused_command_text(&text, line);
    let skipped = delivered.saturating_sub(range.start).min(range.len());
    (skipped < range.len()).then(|| (range.start + skipped..range.end, new[skipped..].into()))
}
