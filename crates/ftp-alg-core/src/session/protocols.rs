//! Which protocol the ends speak: how a dialogue begins, TLS, and the header of the PROXY protocol.
//!
//! The server speaks first, and its greeting is a reply. Two beginnings differ:
//! - The client does not wait, and sends commands before the greeting. Then only a 220 is the greeting, because another
//!   reply may be an answer of another protocol.
//! - The server sends text: a warning or a banner before the greeting, or a greeting with other bytes before its code,
//!   such as a byte order mark. Some clients take that for the greeting and log in. Then the reply to `USER`, `PASS` or
//!   `AUTH` shows that the server speaks FTP.
//!
//! # TLS
//!
//! [`TlsRecords`] follows TLS records without decrypting them, to find where encryption begins, and where plain text starts again.
//!
//! After `CCC` (RFC 4217 section 12) both ends stop TLS at a record boundary and continue in plain text. No FTP line
//! starts with a byte that is a TLS content type, so the first byte after a boundary shows which it is.
//!
//! # The PROXY protocol
//!
//! The header of the PROXY protocol, versions 1 and 2 (haproxy.org, `proxy-protocol.txt`), which a load balancer sends
//! before the client's first byte. It names the client; here it is only skipped.
//!
//! A server that does not know the protocol reads the header as lines of its client, so a client may hide a command in a
//! header. A header of version 1 is one line with a verb of its own. A header of version 2 begins with a line `QUIT`, for
//! servers that end lines at LF. Other servers read lines behind the header, so these lines count.

use serde::{Deserialize, Serialize};

use super::{
    Side,
    state::{Phase, Read},
};
use crate::ftp::{Command, Reply, Text, Verb};

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

/// What the client's `command` shows in this `phase`, before the client is known to speak FTP. A client of another
/// protocol sends its next line at once behind one that FTP does not know.
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

/// What a line of the server shows before the greeting has ended. `reply` is the reply that the line ends; `open_code`
/// is the code of the reply that the line is in.
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

const CONTENT_TYPES: std::ops::RangeInclusive<u8> = 20..=24;
const HEADER_LEN: usize = 5;
/// The first bytes of an SSLv2 hello, with which old clients begin TLS (RFC 5246, appendix E.2): the top bit, and the rest
/// of its length, which is at most 4095 here. The length's second byte follows.
const SSLV2_STARTS: std::ops::RangeInclusive<u8> = 0x80..=0x8f;
const SSLV2_HEADER_LEN: usize = 2;
/// The content types of alerts, handshake messages, and application data.
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;

/// Whether TLS of this end may begin with `byte`. No FTP line does. A server may warn first.
pub fn is_tls_byte(from: Side, byte: u8) -> bool {
    byte == HANDSHAKE
        || match from {
            Side::Client => SSLV2_STARTS.contains(&byte),
            Side::Server => byte == ALERT,
        }
}

/// Whether `bytes` begin with a TLS record of any version.
fn is_tls_start(bytes: &[u8]) -> bool {
    matches!(bytes, [kind, 3, ..] if CONTENT_TYPES.contains(kind))
}

/// The length of the header that begins with `kind`.
fn header_len(kind: u8) -> usize {
    if SSLV2_STARTS.contains(&kind) { SSLV2_HEADER_LEN } else { HEADER_LEN }
}

/// The TLS records of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsRecords {
    header: [u8; HEADER_LEN],
    header_len: u8,
    /// Remaining bytes of the current record.
    remaining: u16,
    /// Whether a record carried application data: the handshake is complete.
    has_application_data: bool,
    /// Whether a record is of the handshake.
    pub has_handshake: bool,
}

impl TlsRecords {
    /// No record so far.
    pub const NONE: Self = Self {
        header: [0; HEADER_LEN],
        header_len: 0,
        remaining: 0,
        has_application_data: false,
        has_handshake: false,
    };

    /// Reads the next bytes of the stream, which `from` sends. Returns the index at which plain text starts, if it does.
    pub fn follow(&mut self, from: Side, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while at < bytes.len() {
            let skipped = usize::from(self.remaining).min(bytes.len() - at);
            self.remaining -= skipped as u16; // at most itself
            at += skipped;
            let Some(&byte) = bytes.get(at) else { break };
            let may_begin = CONTENT_TYPES.contains(&byte) || is_tls_byte(from, byte);
            if self.header_len == 0 && !may_begin {
                return Some(at);
            }
            self.header[usize::from(self.header_len)] = byte;
            self.header_len += 1;
            at += 1;
            let [kind, second, .., high, low] = self.header;
            let is_old = SSLV2_STARTS.contains(&kind);
            if usize::from(self.header_len) == header_len(kind) {
                let length = if is_old { [kind & 0x0f, second] } else { [high, low] };
                self.remaining = u16::from_be_bytes(length);
                let is_begun = is_old || kind == HANDSHAKE && second == 3;
                self.has_handshake |= is_begun && self.remaining > 0;
                self.has_application_data |= kind == APPLICATION_DATA && self.remaining > 0;
                self.header_len = 0;
            }
        }
        None
    }

    /// Whether the header is incomplete, or there is none. A record may say anything.
    pub fn is_consistent(&self) -> bool {
        usize::from(self.header_len) < header_len(self.header[0])
    }

    /// Whether no record was seen.
    pub fn is_fresh(&self) -> bool {
        *self == Self::NONE
    }

    /// Whether the handshake was completed, as far as this direction shows, and the last record is complete.
    pub fn is_complete(&self) -> bool {
        self.has_application_data && self.header_len == 0 && self.remaining == 0
    }
}

/// The first bytes of a header of version 2.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// Limit of a header of version 1.
const MAX_V1: usize = 107;

/// Length of the header at the start of `bytes`, if all of it is there. The protocol asks its sender for one segment.
pub fn proxy_header_len(bytes: &[u8]) -> Option<usize> {
    if bytes.starts_with(SIGNATURE) { v2_len(bytes) } else { v1_len(bytes) }
}

fn v1_len(bytes: &[u8]) -> Option<usize> {
    let end = memchr::memchr(b'\n', &bytes[..bytes.len().min(MAX_V1)])? + 1;
    let text = bytes[..end].strip_suffix(b"\r\n")?;
    let families: [&[u8]; 3] = [b"TCP4 ", b"TCP6 ", b"UNKNOWN"];
    let rest = text.strip_prefix(b"PROXY ")?;
    let is_header = families.iter().any(|family| rest.starts_with(family));
    let is_plain = text.iter().all(|byte| (b' '..=b'~').contains(byte));
    (is_header && is_plain).then_some(end)
}

fn v2_len(bytes: &[u8]) -> Option<usize> {
    let [version_and_command, _family, high, low, ..] = bytes[SIGNATURE.len()..] else {
        return None;
    };
    let end = SIGNATURE.len() + 4 + usize::from(u16::from_be_bytes([high, low]));
    (matches!(version_and_command, 0x20 | 0x21) && end <= bytes.len()).then_some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v2(command: u8, behind: &[u8]) -> Vec<u8> {
        let length = (behind.len() as u16).to_be_bytes();
        [SIGNATURE, &[command, 0x11][..], &length, behind].concat()
    }

    #[test]
    fn a_recorded_record_header_is_never_longer_than_its_kind() {
        for (kind, length) in [(HANDSHAKE, HEADER_LEN), (0x80, SSLV2_HEADER_LEN)] {
            for header_len in 0..=u8::MAX {
                let mut records = TlsRecords { header_len, ..TlsRecords::NONE };
                records.header[0] = kind;
                assert_eq!(records.is_consistent(), usize::from(header_len) < length);
            }
        }
    }

    #[test]
    fn a_whole_header_is_recognised() {
        for header in [
            b"PROXY TCP4 203.0.113.7 198.51.100.9 40000 21\r\n".to_vec(),
            b"PROXY TCP6 2001:db8::7 2001:db8::9 40000 21\r\n".to_vec(),
            b"PROXY UNKNOWN\r\n".to_vec(),
            v2(0x21, &[203, 0, 113, 7, 198, 51, 100, 9, 0x9c, 0x40, 0, 21]),
            // The address 10.0.0.13, with a TLV behind it.
            v2(0x21, b"\x0a\0\0\x0d\xc6\x33\x64\x09\x9c\x40\0\x15\x05\0\x04abcd"),
            v2(0x20, b""),
            v2(0x21, &[10, 13, 10, 1, 198, 51, 100, 9, 13, 10, 0, 21]),
        ] {
            let length = header.len();
            assert_eq!(proxy_header_len(&header), Some(length), "{}", header.escape_ascii());
            assert_eq!(proxy_header_len(&[&header[..], b"USER joe\r\n"].concat()), Some(length));
            for cut in 0..length {
                assert_eq!(proxy_header_len(&header[..cut]), None, "{}", header.escape_ascii());
            }
        }
    }

    #[test]
    fn other_bytes_are_no_header() {
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(MAX_V1));
        for bytes in [
            b"PROXY / HTTP/1.1\r\n".to_vec(),
            b"PROXY TCP4 203.0.113.7\n".to_vec(),
            b"PROXY TCP4 \rPORT 10,0,0,5,0,22\r\n".to_vec(),
            b"PROXY TCP4 \0PORT 10,0,0,5,0,22\r\n".to_vec(),
            b" PROXY TCP4 x\r\n".to_vec(),
            b"proxy TCP4 x\r\n".to_vec(),
            b"USER joe\r\n".to_vec(),
            long.into_bytes(),
            v2(0x11, b""),
        ] {
            assert_eq!(proxy_header_len(&bytes), None, "{}", bytes.escape_ascii());
        }
    }
}
