//! Follows TLS records without decrypting them, to find where plain text starts again.
//!
//! After `CCC` (RFC 4217 section 12) both ends stop TLS at a record boundary and continue in plain text. No FTP line
//! starts with a byte that is a TLS content type, so the first byte after a boundary shows which it is.

use serde::{Deserialize, Serialize};

use super::Side;

const CONTENT_TYPES: std::ops::RangeInclusive<u8> = 20..=24;
const HEADER_LEN: usize = 5;
/// The first byte of an SSLv2 hello, with which old clients begin TLS (RFC 5246, appendix E.2). The second byte is its
/// length.
const SSLV2_START: u8 = 0x80;
const SSLV2_HEADER_LEN: usize = 2;
/// The content types of handshake messages, and of application data.
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
/// The types of the messages with which client and server begin (RFC 8446, section 4). An SSLv2 hello has the client's, too.
const CLIENT_HELLO: u8 = 1;
const SERVER_HELLO: u8 = 2;

/// Whether `byte` may be the first of a TLS record. No FTP line begins with it.
pub fn is_record_start(byte: u8) -> bool {
    CONTENT_TYPES.contains(&byte) || byte == SSLV2_START
}

/// Whether no line begins with `byte`, neither text nor a Telnet command.
pub fn is_binary_start(byte: u8) -> bool {
    !matches!(byte, 0 | b'\t'..=b'\r' | b' '..=b'~' | 0xf0..)
}

/// Whether `bytes` begin with a TLS record of any version.
pub fn is_tls_start(bytes: &[u8]) -> bool {
    matches!(bytes, [kind, 3, ..] if CONTENT_TYPES.contains(kind))
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
    /// The first byte of the first record: the type of its message, if it is of the handshake.
    first: Option<u8>,
}

impl TlsRecords {
    /// No record so far.
    pub const NONE: Self = Self {
        header: [0; HEADER_LEN],
        header_len: 0,
        remaining: 0,
        has_application_data: false,
        first: None,
    };

    /// Those of an end that has sent `start`, of which the last record is complete by now.
    pub fn behind(start: &[u8]) -> Self {
        let mut begun = Self::NONE;
        begun.follow(start);
        Self { first: begun.first, ..Self::NONE }
    }

    /// Reads the next bytes of the stream. Returns the index at which plain text starts, if it does.
    pub fn follow(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while at < bytes.len() {
            let skipped = usize::from(self.remaining).min(bytes.len() - at);
            if skipped > 0 && self.first.is_none() {
                let is_handshake = matches!(self.header[0], HANDSHAKE | SSLV2_START);
                self.first = Some(if is_handshake { bytes[at] } else { 0 });
            }
            self.remaining -= skipped as u16; // at most itself
            at += skipped;
            let Some(&byte) = bytes.get(at) else { break };
            if self.header_len == 0 && !is_record_start(byte) {
                return Some(at);
            }
            self.header[usize::from(self.header_len)] = byte;
            self.header_len += 1;
            at += 1;
            let header_len = usize::from(self.header_len);
            if self.header[0] == SSLV2_START && header_len == SSLV2_HEADER_LEN {
                self.remaining = self.header[1].into();
                self.header_len = 0;
            } else if header_len == HEADER_LEN {
                self.remaining = u16::from_be_bytes([self.header[3], self.header[4]]);
                self.has_application_data |=
                    self.header[0] == APPLICATION_DATA && self.remaining > 0;
                self.header_len = 0;
            }
        }
        None
    }

    /// Whether `side`, which sends these, has begun with its hello.
    pub fn has_hello(&self, side: Side) -> bool {
        self.first == Some(if side == Side::Client { CLIENT_HELLO } else { SERVER_HELLO })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_message_of_each_end_is_its_hello() {
        let client = [b"\x16\x03\x01\x00\x04\x01abc".as_slice(), b"\x80\x04\x01abc"];
        let server = [b"\x16\x03\x03\x00\x04\x02abc".as_slice()];
        let other = [b"\x15\x03\x03\x00\x02\x02\x28".as_slice(), b"\x17\x03\x03\x00\x01\x01"];
        let hellos = |stream: &[u8], cut: usize| {
            let mut records = TlsRecords::NONE;
            // What follows counts no more.
            for part in [&stream[..cut], &stream[cut..], b"\x16\x03\x01\x00\x01\x02"] {
                assert_eq!(records.follow(part), None);
            }
            [Side::Client, Side::Server].map(|side| records.has_hello(side))
        };
        let cases = [(&client[..], [true, false]), (&server, [false, true]), (&other, [false; 2])];
        for (streams, expected) in cases {
            for stream in streams {
                for cut in 0..stream.len() {
                    assert_eq!(hellos(stream, cut), expected, "{stream:?} cut at {cut}");
                }
            }
        }
    }

    #[test]
    fn plain_text_is_found_at_a_record_boundary_with_any_segments() {
        let stream = b"\x16\x03\x01\x00\x04PORT\x15\x03\x03\x00\x02\x01\x00PORT 1";
        for cut in 0..stream.len() {
            let mut records = TlsRecords::NONE;
            let (first, second) = stream.split_at(cut);
            let found = records
                .follow(first)
                .or_else(|| records.follow(second).map(|i| i + cut))
                .map(|i| &stream[i..]);
            assert_eq!(found, Some(&b"PORT 1"[..]), "cut at {cut}");
        }
    }
}
