//! Reading whole lines: what each says, and what of it is changed.

use std::{net::SocketAddr, ops::Range};

use super::{
    Announced, Dialogue, Inspection, Known, Limit, Phase, Question, Read, Reason, Refusal, Refused,
    Request, Ruling, Side, Then,
    adjust::CROSSED_OUT,
    dialogue::{Meaning, Step},
    few::Bytes,
    limits::{MAX_HELD, VERB},
};
use crate::ftp::{Announcement, Command, Hidden, Kind, Malformed, Text, Verb, Zeros, is_plain};

/// A range of the line and what takes its place.
pub type LineEdit = Option<(Range<usize>, Bytes)>;

/// What reading a line comes to.
pub enum LineRead {
    /// It was read, and is delivered so.
    Done(LineEdit),
    /// It is read on once something is known.
    Asks(Box<Request>),
}

/// Reads a complete line of the client, `delivered` bytes of which have been forwarded already.
pub fn client_line(
    dialogue: &mut Dialogue,
    line: &[u8],
    delivered: usize,
    pass: &mut Inspection,
    read: &mut Read,
) -> LineRead {
    let text = Text::new(line);
    dialogue.client_line_ended(is_plain(line, &text));
    let hidden = if text.is_odd() { hidden(dialogue, line, pass) } else { None };
    if hidden.is_none() && is_crossed_start(line, delivered) && dialogue.phase() == Phase::Verified
    {
        dialogue.refused(Reason::TooLong);
        return LineRead::Done(None);
    }
    let Some(end) = hidden else {
        return plain_line(dialogue, (line, &text), delivered, false, pass, read);
    };
    plain_line(dialogue, (line, &text), delivered, true, pass, read);
    hidden_line(dialogue, line, (delivered, end), pass)
}

/// Reads a line that some server sees as an announcement whose verb ends at `end`: it is refused, unless that would be
/// allowed, whoever sees it.
#[cold]
fn hidden_line(
    dialogue: &Dialogue,
    line: &[u8],
    (delivered, end): (usize, usize),
    pass: &mut Inspection,
) -> LineRead {
    let text = Text::new(&line[verb_start(line, end)..]);
    // Nothing else hides behind it.
    let command = Command::parse(&text).filter(|_| !Hidden::may_be_in(&line[end..]));
    let Some((kind, parsed)) = command.and_then(|command| announcement(&command)) else {
        pass.refused(Refused::Hidden);
        return LineRead::Done(cross_out_from(line, delivered, end));
    };
    let announced = Announced::new(kind, parsed, true, dialogue, &text);
    LineRead::Asks(Request::new(Question::Announcement(announced), Then::Hidden { end }))
}

/// Reads on with a line that asked, as what it asked is `known`.
pub fn answered_line(
    dialogue: &mut Dialogue,
    (line, delivered): (&[u8], usize),
    request: &Request,
    known: Known,
) -> LineRead {
    let text = || Text::new(line);
    LineRead::Done(match (&request.then, known) {
        (Then::Longer(range, new), Known::Lengthen(true)) => Some((range.clone(), new.clone())),
        (Then::Hidden { end }, Known::Ruling(Ruling::Refuse(_))) => {
            cross_out_from(line, delivered, *end)
        }
        (Then::Reply(Some(refusal)), Known::Ruling(Ruling::Refuse(reason))) => {
            return refused(&text(), (reason, true), *refusal);
        }
        (Then::Command { whole }, Known::Ruling(Ruling::Refuse(reason))) => {
            cross_out(dialogue, &text(), line, reason, *whole)
        }
        (Then::Command { .. }, Known::Ruling(Ruling::Pass)) => {
            dialogue.announced(false);
            None
        }
        (
            then @ (Then::Command { .. } | Then::Reply(_)),
            Known::Ruling(Ruling::Open { endpoint, zeros }),
        ) => {
            if let Then::Command { .. } = then {
                dialogue.announced(true);
            }
            request.question.announcement().and_then(|read| rewrite(read, endpoint, zeros))
        }
        _ => None,
    })
}

/// What a `PORT` or `EPRT` announces.
fn announcement(command: &Command<'_>) -> Option<(Kind, Result<Announcement, Malformed>)> {
    let Command { verb, argument, argument_start, .. } = *command;
    match verb {
        Verb::Port => Some((Kind::Port, Announcement::port(argument, argument_start))),
        Verb::Eprt => Some((Kind::Eprt, Announcement::eprt(argument, argument_start))),
        _ => None,
    }
}

/// Whether the line that `chunk` ends, of which `known` was read before, may [ask](super::Request): an announcement may,
/// and the answer to a command that was crossed out.
pub fn may_ask(dialogue: &Dialogue, from: Side, known: &[u8], chunk: &[u8]) -> bool {
    match (from, chunk) {
        _ if !known.is_empty() => true,
        (Side::Client, [b'A'..=b'Z' | b'a'..=b'z', ..]) => {
            let verb = &chunk[..chunk.len().min(VERB)];
            verb.eq_ignore_ascii_case(b"PORT")
                || verb.eq_ignore_ascii_case(b"EPRT")
                || Hidden::may_be_in(chunk)
        }
        (Side::Server, [b'0'..=b'9', b'0'..=b'9', b'0'..=b'9', ..]) => {
            matches!(chunk, [b'2', b'2', b'7' | b'9', ..]) || dialogue.awaits_refusal()
        }
        _ => true,
    }
}

/// Where the verb that ends at `end` of `line` begins.
fn verb_start(line: &[u8], end: usize) -> usize {
    line[..end].iter().rposition(|byte| !byte.is_ascii_alphabetic()).map_or(0, |at| at + 1)
}

/// Where the verb ends of what is an announcement for some server, and is not known to be the same for all.
#[cold]
fn hidden(dialogue: &Dialogue, line: &[u8], pass: &Inspection) -> Option<usize> {
    if dialogue.phase() == Phase::Joined {
        return None;
    }
    let end = Hidden::find(line, pass.refuses_auth)?;
    let text = Text::new(line);
    let known = Command::parse(&text).filter(|command| {
        matches!(command.verb, Verb::Port | Verb::Eprt) && !command.argument.is_empty()
    });
    // It is the one that is judged, if nothing is left out within it.
    let is_judged = known.is_some_and(|command| {
        let start = text.origin(0..1).start;
        let all = text.origin(0..command.argument_start + command.argument.len());
        all.len() == text.bytes().len()
            && start + command.word.len() == end
            && !Hidden::may_be_in(&line[all])
    });
    (!is_judged || is_no_beginning(dialogue, line)).then_some(end)
}

/// All of `line` that goes on from the verb that ends at `end`, or as much of it as was not `delivered`.
fn cross_out_from(line: &[u8], delivered: usize, end: usize) -> LineEdit {
    // With what may be left out within the verb.
    let is_word = |byte: &u8| byte.is_ascii_alphabetic() || *byte == 0 || *byte >= 0xf0;
    let word = line[..end].iter().rev().take_while(|byte| is_word(byte)).count();
    let start = (end - word).max(delivered);
    let stop = line.len() - line.iter().rev().take_while(|b| matches!(b, b'\r' | b'\n')).count();
    if start < end || line[..delivered] == *CROSSED_LINE {
        return (start < stop).then(|| (start..stop, crossed(&line[start..stop])));
    }
    // The verb goes on. What stands behind it becomes a part of it; where that is a bare LF alone that does, as some servers
    // read an argument behind it.
    let stop = if start < stop || line.ends_with(b"\r\n") { stop } else { line.len() };
    (start < stop).then(|| (start..stop, (start..stop).map(|_| CROSSED_OUT).collect()))
}

/// What stands for the start of a line whose rest is crossed out as it comes.
pub const CROSSED_LINE: &[u8] = b"PORT ";

/// What servers get in place of `bytes`.
pub fn crossed(bytes: &[u8]) -> Bytes {
    bytes.iter().map(|b| if matches!(b, b' ' | b'\t') { *b } else { b'X' }).collect()
}

/// Reads a line as one. Where something is `hidden` in it, all of it is refused by whoever asks.
fn plain_line(
    dialogue: &mut Dialogue,
    (line, text): (&[u8], &Text<'_>),
    delivered: usize,
    hidden: bool,
    pass: &mut Inspection,
    read: &mut Read,
) -> LineRead {
    let is_command = !is_no_beginning(dialogue, line);
    let command = if is_command { Command::parse(text) } else { None };
    let phase = dialogue.phase();
    // The start of a line that may announce was held back, unless it could not be.
    let whole = delivered == 0 || text.bytes().is_empty() || text.origin(0..1).start >= delivered;
    let cut = !whole && dialogue.phase() != Phase::Joined;
    let step = dialogue.client_line(command.as_ref());
    if dialogue.phase() == Phase::NotFtp && phase != Phase::NotFtp {
        *read = Read::NotFtpClient;
    }
    LineRead::Done(match (step, command) {
        (Step::Announces | Step::Auth, _) if hidden => {
            dialogue.announced(false);
            None
        }
        (Step::Auth, _) if !pass.refuses_auth || phase == Phase::Joined => {
            dialogue.auth();
            None
        }
        (Step::Announces | Step::Auth, Some(command)) if cut => {
            dialogue.announced(false);
            if line[..delivered] != *CROSSED_LINE {
                pass.refused(Refused::Hidden);
            }
            cross_out_from(line, delivered, text.origin(0..command.word.len()).end)
        }
        (Step::Announces, Some(command)) => {
            let Some((kind, parsed)) = announcement(&command) else { return LineRead::Done(None) };
            let announced = Announced::new(kind, parsed, true, dialogue, text);
            let question = Question::Announcement(announced);
            return LineRead::Asks(Request::new(question, Then::Command { whole }));
        }
        (Step::Auth, _) => {
            pass.refused(Refused::Auth);
            cross_out(dialogue, text, line, Reason::Auth, whole)
        }
        _ => None,
    })
}

/// Whether a line is one whose start was crossed out, as it was too long to be held back. (A client that says so many
/// X itself hears the same.)
fn is_crossed_start(line: &[u8], delivered: usize) -> bool {
    delivered > MAX_HELD && line.starts_with(&[b'X'; MAX_HELD])
}

/// Whether no FTP client begins with `bytes`: a message whose length stands before it may go on as FTP
/// would.
pub fn is_no_beginning(dialogue: &Dialogue, bytes: &[u8]) -> bool {
    dialogue.phase() == Phase::Greeted && bytes.contains(&0)
}

/// What may become of a line of the server.
#[derive(Clone, Copy)]
pub struct Limits {
    /// Whether it may be replaced by another reply.
    pub replace: bool,
    /// Whether that may be longer.
    pub grow: bool,
    /// Whether it is all that the server had to say.
    pub apart: bool,
}

/// Reads a complete line of the server, `delivered` bytes of which have been forwarded already.
pub fn server_line(
    dialogue: &mut Dialogue,
    line: &[u8],
    delivered: usize,
    limits: Limits,
    pass: &mut Inspection,
    read: &mut Read,
) -> LineRead {
    let text = Text::new(line);
    let phase = dialogue.phase();
    // The first lines of a multi-line reply have gone on: the last one must have the same code (RFC 959 section 4.2).
    let code = dialogue.open_reply();
    let Limits { replace, grow, apart } = limits;
    let refusal = |dialogue: &Dialogue| {
        (replace && delivered == 0).then(|| Refusal { grow: grow && !dialogue.is_flooded(), code })
    };
    dialogue.server_line_ended(is_plain(line, &text));
    let meaning = dialogue.server_line(&text);
    if dialogue.phase() == Phase::NotFtp && phase != Phase::NotFtp {
        *read = Read::NotFtpClient;
    }
    match meaning {
        Meaning::Nothing => {}
        Meaning::NotFtp => *read = Read::NotFtp,
        Meaning::Passive { asked } => {
            let extended = text.bytes().starts_with(b"229");
            let (kind, parsed) = if extended {
                (Kind::Epsv, Announcement::extended_passive(&text))
            } else {
                (Kind::Pasv, Announcement::passive(&text))
            };
            if parsed.is_err() && !asked {
                return LineRead::Done(None); // `227 Logout.`
            }
            if delivered > 0 && dialogue.phase() != Phase::Joined {
                pass.limit(Limit::Reply);
                return LineRead::Done(None);
            }
            if !(apart && parsed.as_ref().is_ok_and(|parsed| is_last(&text, parsed))) {
                dialogue.may_be_rest();
            }
            let announced = Announced::new(kind, parsed, asked, dialogue, &text);
            let then = Then::Reply(refusal(dialogue));
            return LineRead::Asks(Request::new(Question::Announcement(announced), then));
        }
        Meaning::Refused(reason) => {
            if let Some(refusal) = refusal(dialogue) {
                return refused(&text, (reason, false), refusal);
            }
        }
        Meaning::Notable(note) => pass.note(note),
        Meaning::Encrypted => *read = Read::Encrypted,
    }
    LineRead::Done(None)
}

/// Whether nothing but punctuation follows what is announced: the rest of another reply has an end of its own, as
/// `" is the current directory`.
fn is_last(text: &Text<'_>, announcement: &Announcement) -> bool {
    let behind = text.bytes().get(announcement.endpoint.end..).unwrap_or_default();
    !behind.iter().any(|byte| byte.is_ascii_alphanumeric() || *byte == b'"')
}

/// Replaces the endpoint alone, and only if another one is named.
fn rewrite(announcement: &Announcement, endpoint: SocketAddr, zeros: Zeros) -> LineEdit {
    let same = announcement.port == endpoint.port()
        && announcement.address.is_none_or(|address| address == endpoint.ip());
    if same {
        return None;
    }
    announcement.edit(endpoint, zeros)
}

/// The `reason` in place of a reply, `passive` for a 227 or 229. A reply that would be longer stays if the connection
/// must not be adjusted.
fn refused(text: &Text<'_>, (reason, passive): (Reason, bool), refusal: Refusal) -> LineRead {
    let range = text.origin(0..text.bytes().len());
    let new = reason.reply(passive, refusal.code, range.len());
    if new.len() == range.len() {
        LineRead::Done(Some((range, new)))
    } else if refusal.grow {
        LineRead::Asks(Request::new(Question::Lengthen, Then::Longer(range, new)))
    } else {
        LineRead::Done(None)
    }
}

/// The client's line is crossed out, if none of it was forwarded, and its client hears the `reason`.
fn cross_out(
    dialogue: &mut Dialogue,
    text: &Text<'_>,
    line: &[u8],
    reason: Reason,
    whole: bool,
) -> LineEdit {
    if !whole {
        dialogue.announced(false);
        return None;
    }
    dialogue.refused(reason);
    Some(refusal(text, line))
}

/// A line of the same length that every server must refuse (RFC 959: 500), so that replies stay
/// in the order of the commands and no number changes.
pub fn refusal(text: &Text<'_>, line: &[u8]) -> (Range<usize>, Bytes) {
    let range = text.origin(0..text.bytes().len());
    let new = crossed(&line[range.clone()]);
    (range, new)
}

/// The client's line, which is another command for some servers and of which `delivered` bytes were forwarded, is refused.
pub fn ambiguous_line(
    dialogue: &mut Dialogue,
    line: &[u8],
    delivered: usize,
    pass: &mut Inspection,
) -> LineEdit {
    pass.refused(Refused::Urgent);
    dialogue.refused(Refused::Urgent.reason());
    let text = Text::new(line);
    if text.bytes().is_empty() {
        return None;
    }
    let (range, new) = refusal(&text, line);
    let skipped = delivered.saturating_sub(range.start).min(range.len());
    (skipped < range.len()).then(|| (range.start + skipped..range.end, new[skipped..].into()))
}
