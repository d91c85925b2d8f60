//! The readable text of a line: without Telnet commands and NUL bytes, with trimmed ends.
//!
//! RFC 959 section 2.3.4 allows Telnet commands on the control connection (`IAC IP`, `IAC DM` before `ABOR`). They are
//! skipped when a line is read. Forwarded bytes stay unchanged, so every position in the text can be mapped to the
//! line. Options are always refused (RFC 1123 section 4.1.2.12), so nothing is negotiated, and servers read the content
//! of `IAC SB` as text. `ambiguity` handles the differences between servers.

use std::{borrow::Cow, ops::Range};

const IAC: u8 = 0xff;
const WILL: u8 = 0xfb;
const DONT: u8 = 0xfe;
/// The lowest Telnet command byte (RFC 854: SE).
const LOWEST_TELNET: u8 = 0xf0;

/// The readable part of one line, without its line end.
#[derive(Debug)]
pub struct Text<'a> {
    bytes: Cow<'a, [u8]>,
    /// Position of each byte in the line; empty if the text is contiguous from `start`.
    positions: Vec<usize>,
    start: usize,
    indented: bool,
    has_control: bool,
    unfinished: usize,
}

impl<'a> Text<'a> {
    /// Parses `line`, with or without its CR LF (or bare LF).
    pub fn new(line: &'a [u8]) -> Self {
        let has_control = has_control_bytes(line);
        if has_control && line.iter().any(|byte| matches!(*byte, IAC | 0)) {
            return Self::without_telnet(line);
        }
        let end = trimmed_end(line);
        let start = line[..end].iter().position(|b| !is_blank(*b)).unwrap_or(end);
        let indented = line.first().is_some_and(|b| is_blank(*b));
        Self {
            bytes: Cow::Borrowed(&line[start..end]),
            positions: Vec::new(),
            start,
            indented,
            has_control,
            unfinished: 0,
        }
    }

    fn without_telnet(line: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(line.len());
        let mut positions = Vec::with_capacity(line.len());
        let (mut i, mut unfinished) = (0, 0);
        while let Some(&byte) = line.get(i) {
            let skip = match (byte, line.get(i + 1)) {
                (0, _) => 1,
                (IAC, Some(&IAC)) => 0,
                // No option has the code of a letter, so the next byte starts a word.
                (IAC, Some(&(WILL..=DONT))) if is_graphic(line.get(i + 2)) => 2,
                (IAC, Some(&(WILL..=DONT))) => 3,
                (IAC, Some(&(LOWEST_TELNET..))) => 2,
                (IAC, _) => 1,
                _ => 0,
            };
            if skip == 0 {
                bytes.push(byte);
                positions.push(i);
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
        positions.truncate(end);
        bytes.drain(..start);
        positions.drain(..start);
        Self {
            bytes: Cow::Owned(bytes),
            positions,
            start: 0,
            indented,
            has_control: true,
            unfinished,
        }
    }

    /// The readable bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether blanks precede the readable bytes.
    pub fn is_indented(&self) -> bool {
        self.indented
    }

    /// Whether some server may skip a byte of the line, or end the line at it.
    pub fn has_control_bytes(&self) -> bool {
        self.has_control
    }

    /// Number of bytes at the end that start an unfinished Telnet command.
    pub fn incomplete_telnet_len(&self) -> usize {
        self.unfinished
    }

    /// The range of the line that `range` of the readable bytes comes from. `range` must not be empty.
    pub fn line_range(&self, range: Range<usize>) -> Range<usize> {
        match (self.positions.get(range.start), self.positions.get(range.end.saturating_sub(1))) {
            (Some(first), Some(last)) => *first..*last + 1,
            _ => self.start + range.start..self.start + range.end,
        }
    }
}

/// Whether `byte` is white space in C. Some servers skip it before a verb, and end a verb at it.
pub(super) fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | 0x0b | 0x0c | b'\r')
}

/// Whether some server may skip `byte`, or end a line at it.
pub(super) const fn is_control(byte: u8) -> bool {
    byte >= LOWEST_TELNET || matches!(byte, 0 | b'\r' | b'\n')
}

/// Whether `line` has a [control byte](is_control) before its end.
pub(super) fn has_control_bytes(line: &[u8]) -> bool {
    let text = line.strip_suffix(b"\n").unwrap_or(line);
    let text = text.strip_suffix(b"\r").unwrap_or(text);
    // Without stopping at the first, because most lines have none.
    let (words, rest) = text.as_chunks();
    let in_words = |found, word: &[u8; 8]| found | has_control_byte(u64::from_ne_bytes(*word));
    words.iter().fold(false, in_words) | rest.iter().any(|byte| is_control(*byte))
}

/// Whether one of the eight bytes of `word` is a [control byte](is_control).
fn has_control_byte(word: u64) -> bool {
    const ONES: u64 = u64::MAX / 0xff;
    const HIGHEST_BITS: u64 = ONES << 7;
    let has_zero = |word: u64| word.wrapping_sub(ONES) & !word & HIGHEST_BITS;
    let has = |byte: u8| has_zero(word ^ (ONES * u64::from(byte)));
    // The four highest bits are set.
    let telnet = word & word << 1 & word << 2 & word << 3 & HIGHEST_BITS;
    (has(0) | has(b'\r') | has(b'\n') | telnet) != 0
}

fn is_graphic(byte: Option<&u8>) -> bool {
    byte.is_some_and(u8::is_ascii_graphic)
}

/// The length without the line end and trailing blanks.
fn trimmed_end(line: &[u8]) -> usize {
    let line = line.strip_suffix(b"\r\n").unwrap_or(line);
    line.iter().rposition(|b| *b != b'\n' && !is_blank(*b)).map_or(0, |i| i + 1)
}

/// Whether the Telnet command at the start of `bytes` is unfinished.
fn is_unfinished(bytes: &[u8]) -> bool {
    matches!(bytes, [IAC, WILL..=DONT] | [IAC])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_bytes_are_found_wherever_they_are() {
        for length in 1..20 {
            for at in 0..length {
                for byte in 0..=255 {
                    // The bytes before it may carry into it.
                    for others in [b'x', 1, 0xef] {
                        let mut line = vec![others; length];
                        line[at] = byte;
                        line.extend(b"x\r\n");
                        assert_eq!(has_control_bytes(&line), is_control(byte), "{line:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn telnet_commands_are_skipped_and_positions_mapped() {
        let line = b"\xff\xf4\xff\xf2 PO\xff\xfd\x06RT 1\r\n";
        let text = Text::new(line);
        assert_eq!(text.bytes(), b"PORT 1");
        assert_eq!(text.line_range(0..4), 5..12);
        assert_eq!(&line[text.line_range(5..6)], b"1");
    }

    #[test]
    fn a_doubled_iac_is_one_byte_and_unfinished_telnet_ends_the_text() {
        assert_eq!(Text::new(b"a\xff\xffb\xff").bytes(), b"a\xffb");
        assert_eq!(Text::new(b"a\xff\xfa1\xff\xf0b").bytes(), b"a1b");
        assert_eq!(Text::new(b"\xff\xfd").bytes(), b"");
        for (line, unfinished) in
            [(&b"\xff\xf4\xff"[..], 1), (b"\xff\xfd", 2), (b"\xff\xfd\x06", 0), (b"\xff\xfa", 0)]
        {
            assert_eq!(Text::new(line).incomplete_telnet_len(), unfinished, "{line:?}");
        }
    }

    #[test]
    fn line_ends_blanks_and_nul_bytes_are_removed() {
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
