//! Follows TLS records without decrypting them, to find where encryption begins, and where plain text starts again.
//!
//! After `CCC` (RFC 4217 section 12) both ends stop TLS at a record boundary and continue in plain text. No FTP line
//! starts with a byte that is a TLS content type, so the first byte after a boundary shows which it is.

use serde::{Deserialize, Serialize};

use super::Side;

const CONTENT_TYPES: std::ops::RangeInclusive<u8> = 20..=24;
/// Length of a record's header, and of the type of its message.
const HEADER_LEN: usize = 5 + 1;
/// The first bytes of an SSLv2 hello, with which old clients begin TLS (RFC 5246, appendix E.2): the top bit, and the rest
/// of its length, which is at most 4095 here. The length's second byte follows, and the type of the message.
const SSLV2_STARTS: std::ops::RangeInclusive<u8> = 0x80..=0x8f;
const SSLV2_HEADER_LEN: usize = 2 + 1;
/// The content types of alerts, handshake messages, and application data.
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
/// The types of the messages with which client and server begin (RFC 8446, section 4). An SSLv2 hello has the client's, too.
const CLIENT_HELLO: u8 = 1;
const SERVER_HELLO: u8 = 2;

/// Whether TLS of this end may begin with `byte`. No FTP line does. A server may warn first.
pub fn is_tls_byte(from: Side, byte: u8) -> bool {
    byte == HANDSHAKE
        || match from {
            Side::Client => SSLV2_STARTS.contains(&byte),
            Side::Server => byte == ALERT,
        }
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
    /// Whether a record began with the hello of its end, before any application data.
    pub has_hello: bool,
}

impl TlsRecords {
    /// No record so far.
    pub const NONE: Self = Self {
        header: [0; HEADER_LEN],
        header_len: 0,
        remaining: 0,
        has_application_data: false,
        has_hello: false,
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
            self.read_header(from);
        }
        None
    }

    /// Reads the header so far, which ends with the type of a message, or without one if its record is empty.
    fn read_header(&mut self, from: Side) {
        let is_old = SSLV2_STARTS.contains(&self.header[0]);
        let (header, kind) =
            self.header.split_at(if is_old { SSLV2_HEADER_LEN } else { HEADER_LEN } - 1);
        let Some(length) = header.last_chunk().map(|length| u16::from_be_bytes(*length)) else {
            return;
        };
        let length = if is_old { length & 0x0fff } else { length };
        let read = usize::from(self.header_len);
        if read < header.len() || read == header.len() && length > 0 {
            return;
        }
        let hello = if from == Side::Client { CLIENT_HELLO } else { SERVER_HELLO };
        let is_handshake = is_old || self.header[0] == HANDSHAKE;
        self.has_application_data |= self.header[0] == APPLICATION_DATA && length > 0;
        self.has_hello |=
            is_handshake && length > 0 && kind[0] == hello && !self.has_application_data;
        self.remaining = length.saturating_sub(1);
        self.header_len = 0;
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
    fn the_hello_of_each_end_is_found_behind_warnings() {
        let client = [b"\x16\x03\x01\x00\x04\x01abc".as_slice(), b"\x80\x04\x01abc"];
        let old = [b"\x81\x04\x01", &[b'a'; 259][..]].concat();
        let server = [
            b"\x16\x03\x03\x00\x04\x02abc".as_slice(),
            b"\x15\x03\x03\0\x02\x01\x70\x16\x03\x03\0\x04\0\0\0\0\x16\x03\x03\0\0\x16\x03\x03\0\x01\x02",
        ];
        let other = [
            b"\x15\x03\x03\x00\x02\x02\x28".as_slice(),
            b"\x15\x03\x03\x00\x03\x16\x01\x02",
            b"\x17\x03\x03\x00\x01\x01\x16\x03\x03\0\x01\x02\x16\x03\x03\0\x01\x01",
        ];
        let hellos = |stream: &[u8], cut: usize| {
            [Side::Client, Side::Server].map(|side| {
                let mut records = TlsRecords::NONE;
                let (first, second) = stream.split_at(cut);
                let text = records.follow(side, first).or_else(|| records.follow(side, second));
                (text.is_none() && records.header_len == 0 && records.remaining == 0)
                    .then_some(records.has_hello)
            })
        };
        for stream in client.into_iter().chain([&old[..]]) {
            for cut in 0..stream.len() {
                assert_eq!(hellos(stream, cut)[0], Some(true), "{stream:?} cut at {cut}");
                assert_ne!(hellos(stream, cut)[1], Some(true), "{stream:?} cut at {cut}");
            }
        }
        for (streams, expected) in [(&server[..], [false, true]), (&other, [false; 2])] {
            for stream in streams {
                for cut in 0..stream.len() {
                    assert_eq!(hellos(stream, cut), expected.map(Some), "{stream:?} cut at {cut}");
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
                .follow(Side::Client, first)
                .or_else(|| records.follow(Side::Client, second).map(|i| i + cut))
                .map(|i| &stream[i..]);
            assert_eq!(found, Some(&b"PORT 1"[..]), "cut at {cut}");
        }
    }
}
