//! Which protocol the ends speak, by what they send first: how a dialogue begins.
//!
//! The server speaks first, and its greeting is a reply. Two beginnings differ:
//! - The client does not wait, and sends commands before the greeting. Then only a 220 is the greeting, because another
//!   reply may be an answer of another protocol.
//! - The server sends text: a warning or a banner before the greeting, or a greeting with other bytes before its code,
//!   such as a byte order mark. Some clients take that for the greeting and log in. Then the reply to `USER`, `PASS` or
//!   `AUTH` shows that the server speaks FTP.

use super::state::{Phase, Read};
use crate::{
    ftp::{Command, Reply, Text, Verb},
    session::tls::is_tls_start,
};

/// How the first lines of other protocols' servers begin: SSH, VNC, POP3, IMAP, rsync, and those of HTTP's form.
const OTHER_PROTOCOLS: [&[u8]; 10] = [
    b"SSH-",
    b"RFB ",
    b"+OK",
    b"-ERR",
    b"* OK",
    b"* PREAUTH",
    b"* BYE",
    b"@RSYNCD",
    b"HTTP",
    b"RTSP",
];

/// What the client's `command` is read as in this `phase`, before it is known to speak FTP. Another client sends its next
/// line at once behind one that FTP does not know.
pub fn read_command(phase: Phase, command: &Command<'_>, follows_unknown: bool) -> Option<Read> {
    let is_other = match phase {
        Phase::NotGreeted | Phase::TextFirst if may_precede_replies(command) => {
            return Some(Read::FirstCommand);
        }
        Phase::NotGreeted | Phase::TextFirst => true,
        Phase::CommandFirst | Phase::CommandAfterText => command.is_not_ftp(false),
        Phase::Greeted => follows_unknown || command.is_not_ftp(true),
        _ => return None,
    };
    match is_other {
        true => Some(Read::OtherClient),
        false => (command.verb != Verb::Unknown).then_some(Read::Command),
    }
}

/// What a line of the server is read as before its greeting has ended. If it ends a reply, that is `reply`; if it is
/// inside one, that has the `open_code`.
pub fn read_greeting_line(
    phase: Phase,
    text: &Text<'_>,
    reply: Option<Reply>,
    open_code: Option<u16>,
    may_be_logged_in: bool,
) -> Option<Read> {
    match reply {
        Some(reply) if reply.is_preliminary() => None, // 120: ready in a while
        Some(Reply { code: 220 }) => Some(Read::Reply220),
        Some(_) => Some(Read::Reply),
        None if open_code == Some(220) && phase.expects_greeting() => Some(Read::GreetingStart),
        // First or middle line of a multi-line reply.
        None if open_code.is_some() => None,
        // A server that has accepted a login speaks FTP. It may show a file.
        None if phase == Phase::CommandAfterText && may_be_logged_in => None,
        None if may_precede_greeting(text) => Some(Read::Banner),
        None => Some(Read::OtherServer),
    }
}

/// The commands that an FTP client may send first, without waiting for the greeting. No other protocol begins so.
const FIRST_COMMANDS: [&[u8]; 7] = [b"USER", b"AUTH", b"FEAT", b"HOST", b"CLNT", b"OPTS", b"LANG"];

/// Whether a client that sends this command first speaks FTP, although the server has not sent its greeting.
fn may_precede_replies(command: &Command<'_>) -> bool {
    let mut first = FIRST_COMMANDS.iter();
    first.any(|verb| command.word.eq_ignore_ascii_case(verb)) && !command.is_not_ftp(true)
}

/// Whether a server may write `text` before its greeting: a warning of its loader, or a banner, in any character set
/// and with escape sequences. It is not the first line of another protocol.
fn may_precede_greeting(text: &Text<'_>) -> bool {
    let is_binary = text.contains_nul();
    let text = text.bytes();
    let first = text.split(|byte| *byte == b' ').next().unwrap_or_default();
    let is_versioned = first.first().is_some_and(u8::is_ascii_alphabetic)
        && first.contains(&b'/')
        && first.last().is_some_and(u8::is_ascii_digit);
    !is_binary
        && !is_versioned
        && !is_tls_start(text)
        && !OTHER_PROTOCOLS.iter().any(|start| text.starts_with(start))
}
