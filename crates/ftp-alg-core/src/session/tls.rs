//! Follows TLS records without decrypting them, to find where encryption begins, and where plain text starts again.
//!
//! After `CCC` (RFC 4217 section 12) both ends stop TLS at a record boundary and continue in plain text. No FTP line
//! starts with a byte that is a TLS content type, so the first byte after a boundary shows which it is.

use serde::{Deserialize, Serialize};

use super::Side;

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
            let length = if is_old { SSLV2_HEADER_LEN } else { HEADER_LEN };
            if usize::from(self.header_len) == length {
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
    fn a_handshake_is_found_behind_warnings() {
        let old = [b"\x81\x04\x01", &[b'a'; 259][..]].concat();
        let warned = b"\x15\x03\x03\0\x02\x01\x70\x16\x03\x03\0\0\x16\x03\x03\0\x01\x02";
        for (stream, side, expected) in [
            (&b"\x16\x03\x01\x00\x04\x01abc"[..], Side::Client, true),
            (b"\x80\x04\x01abc", Side::Client, true),
            (&old, Side::Client, true),
            (warned, Side::Server, true),
            (b"\x15\x03\x03\x00\x03\x16\x03\x03", Side::Server, false),
            (b"\x17\x03\x03\x00\x01\x16", Side::Server, false),
        ] {
            for cut in 0..stream.len() {
                let mut records = TlsRecords::NONE;
                let (first, second) = stream.split_at(cut);
                assert_eq!(records.follow(side, first), None);
                assert_eq!(records.follow(side, second), None);
                assert_eq!((records.header_len, records.remaining), (0, 0), "{stream:?}");
                assert_eq!(records.has_handshake, expected, "{stream:?} cut at {cut}");
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
