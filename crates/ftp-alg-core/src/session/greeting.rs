//! What a dialogue makes of the server's lines before and during the login.

use super::{PendingKind, Phase, ReplyEffect};
use crate::ftp::{Reply, Text};

/// How the first lines of other protocols' servers begin: SSH, VNC, POP3, IMAP, rsync, and those of HTTP's form.
const OTHER_PROTOCOLS: [&[u8]; 10] = [
    b"SSH-",
    b"RFB ",
    b"+",
    b"-ERR",
    b"* OK",
    b"* PREAUTH",
    b"* BYE",
    b"@RSYNCD",
    b"HTTP",
    b"RTSP",
];

/// Whether a server may write `text` before its greeting: a warning of its loader, or a banner. It is printable, and
/// not the first line of another protocol.
fn may_precede_greeting(text: &[u8]) -> bool {
    let first = text.split(|byte| *byte == b' ').next().unwrap_or_default();
    let is_versioned = first.contains(&b'/') && first.last().is_some_and(u8::is_ascii_digit);
    text.iter().all(|byte| matches!(byte, b'\t' | b' '..=b'~'))
        && !is_versioned
        && !text.first().is_some_and(u8::is_ascii_digit)
        && !OTHER_PROTOCOLS.iter().any(|start| text.starts_with(start))
}

/// Reads a line of the greeting: it ends with `reply`, or `open_code` is the code of the unfinished one. Returns the
/// phase, what is pending from now on, and the effect.
pub(super) fn read_greeting_line(
    phase: Phase,
    open_code: Option<u16>,
    text: &Text<'_>,
    reply: Option<Reply>,
) -> (Phase, Option<PendingKind>, ReplyEffect) {
    let is_greeting = phase == Phase::NotGreeted;
    match reply {
        Some(reply) if reply.is_preliminary() => (phase, None, ReplyEffect::Nothing), // 120: ready in a while
        Some(_) if is_greeting => (Phase::Greeted, None, ReplyEffect::Nothing),
        Some(Reply { code: 220 }) if phase == Phase::FeatFirst => {
            (Phase::Verified, None, ReplyEffect::Nothing)
        }
        Some(Reply { code: 220 }) => (Phase::NotFtp, None, ReplyEffect::Nothing),
        Some(_) => (phase, None, ReplyEffect::NotFtp),
        // Some clients do not wait for the last line.
        None if is_greeting && open_code == Some(220) => {
            (Phase::Greeted, Some(PendingKind::Greeting), ReplyEffect::Nothing)
        }
        // First or middle line of a multi-line greeting.
        None if open_code.is_some() => (phase, None, ReplyEffect::Nothing),
        None if is_greeting && may_precede_greeting(text.bytes()) => {
            (phase, None, ReplyEffect::Nothing)
        }
        None => (phase, None, ReplyEffect::NotFtp),
    }
}

/// Whether `text` is a whole reply that a server gives to a login.
pub(super) fn is_login_reply(text: &Text<'_>) -> bool {
    matches!(text.bytes(), [b'2' | b'3', _, _, rest @ ..] if rest.first() != Some(&b'-'))
}
