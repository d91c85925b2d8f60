//! Reading whole lines: what each says, and what of it is changed.

use std::{net::SocketAddr, ops::Range};

use super::{
    Dialogue, Judge, Limit, Phase, Refused, Ruling,
    dialogue::{Meaning, Step},
};
use crate::ftp::{Announcement, Command, Kind, Text, Verb};

/// What reading a line changes about the connection.
pub enum Read {
    /// Nothing.
    Nothing,
    /// It is not FTP.
    NotFtp,
    /// It is encrypted from here on.
    Encrypted,
}

/// A range of the line and what takes its place.
pub type LineEdit = Option<(Range<usize>, Vec<u8>)>;

/// Reads a complete line of the client, `delivered` bytes of which have been forwarded already. Where it is
/// `overtaken` by what follows it, it keeps its length.
pub fn client_line(
    dialogue: &mut Dialogue,
    line: &[u8],
    delivered: usize,
    overtaken: bool,
    judge: &mut impl Judge,
    read: &mut Read,
) -> LineEdit {
    let text = Text::new(line);
    let command = Command::parse(&text).filter(|_| !is_no_beginning(dialogue, line));
    // The start of a line that may announce was held back, unless it could not be.
    let whole = delivered == 0 || text.bytes().is_empty() || text.origin(0..1).start >= delivered;
    let cut = !whole && dialogue.phase() != Phase::Joined;
    match (dialogue.client_line(command.as_ref()), command) {
        (Step::Announces, _) if cut => {
            dialogue.announced(false);
            None
        }
        (Step::Announces, _) if overtaken => {
            dialogue.announced(false);
            judge.refused(Refused::Overtaken);
            whole.then(|| refusal(&text, line))
        }
        (Step::NotFtp, _) => {
            *read = Read::NotFtp;
            None
        }
        (Step::Announces, Some(command)) => {
            let start = command.argument_start;
            let (kind, parsed) = match command.verb {
                Verb::Eprt => (Kind::Eprt, Announcement::eprt(command.argument, start)),
                _ => (Kind::Port, Announcement::port(command.argument, start)),
            };
            let ruling = judge.announcement(kind, parsed.as_ref(), true, dialogue, &text);
            dialogue.announced(matches!(ruling, Ruling::Open(_)));
            match ruling {
                Ruling::Pass => None,
                Ruling::Open(endpoint) => rewrite(&text, &parsed.ok()?, endpoint),
                Ruling::Refuse => whole.then(|| refusal(&text, line)),
            }
        }
        (Step::Auth, _) => {
            let refused = judge.refuses_auth() && whole;
            dialogue.auth(!refused);
            refused.then(|| {
                judge.refused(Refused::Auth);
                refusal(&text, line)
            })
        }
        _ => None,
    }
}

/// Whether no FTP client begins with `bytes`: a message whose length stands before it may go on as FTP
/// would.
pub fn is_no_beginning(dialogue: &Dialogue, bytes: &[u8]) -> bool {
    dialogue.phase() == Phase::Greeted && bytes.contains(&0)
}

/// Reads a complete line of the server, `delivered` bytes of which have been forwarded already. Where it is
/// `overtaken` by what follows it, it keeps its length.
pub fn server_line(
    dialogue: &mut Dialogue,
    line: &[u8],
    delivered: usize,
    overtaken: bool,
    judge: &mut impl Judge,
    read: &mut Read,
) -> LineEdit {
    let text = Text::new(line);
    match dialogue.server_line(&text) {
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
                return None; // `227 Logout.`
            }
            if overtaken {
                judge.refused(Refused::Overtaken);
                return None;
            }
            if delivered > 0 && dialogue.phase() != Phase::Joined {
                judge.limit(Limit::Reply);
                return None;
            }
            let ruling = judge.announcement(kind, parsed.as_ref(), asked, dialogue, &text);
            if let (Ruling::Open(endpoint), Ok(announcement)) = (ruling, parsed) {
                return rewrite(&text, &announcement, endpoint);
            }
        }
        Meaning::Notable(note) => judge.note(note),
        Meaning::Encrypted => *read = Read::Encrypted,
    }
    None
}

/// Replaces the endpoint alone, and only if another one is named.
fn rewrite(text: &Text<'_>, announcement: &Announcement, endpoint: SocketAddr) -> LineEdit {
    let same = announcement.port == endpoint.port()
        && announcement.address.is_none_or(|address| address == endpoint.ip());
    if same {
        return None;
    }
    let new = announcement.rewritten(endpoint)?;
    Some((text.origin(announcement.endpoint.clone()), new.into_bytes()))
}

/// A line of the same length that every server must refuse (RFC 959: 500), so that replies stay
/// in the order of the commands and no number changes.
fn refusal(text: &Text<'_>, line: &[u8]) -> (Range<usize>, Vec<u8>) {
    let range = text.origin(0..text.bytes().len());
    let crossed = |b: &u8| if matches!(b, b' ' | b'\t') { *b } else { b'X' };
    let new = line[range.clone()].iter().map(crossed).collect();
    (range, new)
}
