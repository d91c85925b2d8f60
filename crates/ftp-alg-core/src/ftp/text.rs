//! A line as FTP reads it: Telnet commands and NUL bytes left out, ends trimmed.
//!
//! RFC 959 section 2.3.4 lets a client put Telnet commands (`IAC IP`, `IAC DM` before `ABOR`)
//! into the control connection. They are skipped for reading; the bytes that are forwarded stay
//! as they are, so every position in the text can be traced to its place in the line. Options are
//! refused (RFC 1123 section 4.1.2.12), so nothing is ever negotiated further: what `IAC SB` begins
//! is text, as servers take it. What servers take otherwise is the matter of `hidden`.

use std::{borrow::Cow, ops::Range};

const IAC: u8 = 0xff;
const WILL: u8 = 0xfb;
const DONT: u8 = 0xfe;
/// The lowest Telnet command (RFC 854: SE).
const LOWEST: u8 = 0xf0;

/// The readable part of one line, without its line end.
#[derive(Debug)]
pub struct Text<'a> {
    bytes: Cow<'a, [u8]>,
    /// Where each byte stood in the line; empty when they stand as they stood from `start`.
    origins: Vec<usize>,
    start: usize,
    indented: bool,
    odd: bool,
    unfinished: usize,
}

impl<'a> Text<'a> {
    /// Reads `line`, with or without its CR LF (or bare LF).
    pub fn new(line: &'a [u8]) -> Self {
        let odd = has_odd(line);
        if odd && line.iter().any(|byte| matches!(*byte, IAC | 0)) {
            return Self::cleaned(line);
        }
        let end = trimmed_end(line);
        let start = line[..end].iter().position(|b| !is_blank(*b)).unwrap_or(end);
        let indented = line.first().is_some_and(|b| is_blank(*b));
        Self {
            bytes: Cow::Borrowed(&line[start..end]),
            origins: Vec::new(),
            start,
            indented,
            odd,
            unfinished: 0,
        }
    }

    fn cleaned(line: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(line.len());
        let mut origins = Vec::with_capacity(line.len());
        let (mut i, mut unfinished) = (0, 0);
        while let Some(&byte) = line.get(i) {
            let skip = match (byte, line.get(i + 1)) {
                (0, _) => 1,
                (IAC, Some(&IAC)) => 0,
                // No option has the number of a letter: what follows is the start of a word.
                (IAC, Some(&(WILL..=DONT))) if is_graphic(line.get(i + 2)) => 2,
                (IAC, Some(&(WILL..=DONT))) => 3,
                (IAC, Some(&(LOWEST..))) => 2,
                (IAC, _) => 1,
                _ => 0,
            };
            if skip == 0 {
                bytes.push(byte);
                origins.push(i);
                i += if byte == IAC { 2 } else { 1 };
            } else {
                if byte == IAC && is_unfinished(&line[i..]) {
                    unfinished = line.len() - i;
                }
                i += skip;
            }
        }
        let indented = bytes.first().is_some_and(|b| is_blank(*b));
        let end = trimmed_end(&bytes);
        let start = bytes[..end].iter().position(|b| !is_blank(*b)).unwrap_or(end);
        bytes.truncate(end);
        origins.truncate(end);
        bytes.drain(..start);
        origins.drain(..start);
        Self { bytes: Cow::Owned(bytes), origins, start: 0, indented, odd: true, unfinished }
    }

    /// The readable bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether blanks stand before the readable bytes.
    pub fn is_indented(&self) -> bool {
        self.indented
    }

    /// Whether the line has a byte in it that is left out, or ends a line, for some server.
    pub fn is_odd(&self) -> bool {
        self.odd
    }

    /// How many bytes at the end are the start of a Telnet command that goes on.
    pub fn unfinished(&self) -> usize {
        self.unfinished
    }

    /// Where `range` of the readable bytes stands in the line. `range` must not be empty.
    pub fn origin(&self, range: Range<usize>) -> Range<usize> {
        match (self.origins.get(range.start), self.origins.get(range.end.saturating_sub(1))) {
            (Some(first), Some(last)) => *first..*last + 1,
            _ => self.start + range.start..self.start + range.end,
        }
    }
}

/// What some servers pass over before a verb, and take for its end: what C calls white space.
pub(super) fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | 0x0b | 0x0c | b'\r')
}

/// Whether `byte` may be left out, or end a line, for some server.
pub(super) const fn is_odd(byte: u8) -> bool {
    byte >= LOWEST || matches!(byte, 0 | b'\r' | b'\n')
}

/// Whether `line` has such a byte before its end.
pub(super) fn has_odd(line: &[u8]) -> bool {
    let text = line.strip_suffix(b"\n").unwrap_or(line);
    let text = text.strip_suffix(b"\r").unwrap_or(text);
    // Lines are short: looking every byte up costs less than comparing, or stopping at the first.
    text.iter().fold(false, |found, byte| found | ODD[usize::from(*byte)])
}

/// Which bytes [are odd](is_odd).
static ODD: [bool; 256] = {
    let mut odd = [false; 256];
    let mut byte = 0;
    while byte < odd.len() {
        odd[byte] = is_odd(byte as u8);
        byte += 1;
    }
    odd
};

fn is_graphic(byte: Option<&u8>) -> bool {
    byte.is_some_and(u8::is_ascii_graphic)
}

/// The length without the line end and trailing blanks.
fn trimmed_end(line: &[u8]) -> usize {
    line.iter().rposition(|b| *b != b'\n' && !is_blank(*b)).map_or(0, |i| i + 1)
}

/// Whether the Telnet command at the start of `bytes` goes on after them.
fn is_unfinished(bytes: &[u8]) -> bool {
    matches!(bytes, [IAC, WILL..=DONT] | [IAC])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn telnet_commands_are_skipped_and_positions_kept() {
        let line = b"\xff\xf4\xff\xf2 PO\xff\xfd\x06RT 1\r\n";
        let text = Text::new(line);
        assert_eq!(text.bytes(), b"PORT 1");
        assert_eq!(text.origin(0..4), 5..12);
        assert_eq!(&line[text.origin(5..6)], b"1");
    }

    #[test]
    fn doubled_iac_is_one_byte_and_unfinished_commands_end_the_text() {
        assert_eq!(Text::new(b"a\xff\xffb\xff").bytes(), b"a\xffb");
        assert_eq!(Text::new(b"a\xff\xfa1\xff\xf0b").bytes(), b"a1b");
        assert_eq!(Text::new(b"\xff\xfd").bytes(), b"");
        for (line, unfinished) in
            [(&b"\xff\xf4\xff"[..], 1), (b"\xff\xfd", 2), (b"\xff\xfd\x06", 0), (b"\xff\xfa", 0)]
        {
            assert_eq!(Text::new(line).unfinished(), unfinished, "{line:?}");
        }
    }

    #[test]
    fn line_ends_blanks_and_nul_bytes_are_not_read() {
        for line in [
            &b" \tPORT 1 \r\n"[..],
            b"PORT 1\n",
            b"\0PORT 1\r\0\n",
            b"PORT 1\r\r\n",
            b"\r\x0b\x0cPORT 1\n",
        ] {
            assert_eq!(Text::new(line).bytes(), b"PORT 1", "{line:?}");
        }
        assert_eq!(Text::new(b" \r\n").bytes(), b"");
        assert_eq!(Text::new(b"").bytes(), b"");
    }
}
