//! The readable text of a line: without Telnet commands and NUL bytes, with trimmed ends.
//!
//! RFC 959 section 2.3.4 allows Telnet commands on the control connection (`IAC IP`, `IAC DM` before `ABOR`). They are
//! skipped when a line is read. Forwarded bytes stay unchanged, so every position in the text can be mapped to the
//! line. Options are always refused (RFC 1123 section 4.1.2.12), so nothing is negotiated, and servers read the content
//! of `IAC SB` as text. `ambiguity` handles the differences between servers.

use std::ops::Range;

const IAC: u8 = 0xff;
const WILL: u8 = 0xfb;
const DONT: u8 = 0xfe;
/// The lowest Telnet command byte (RFC 854: SE).
const LOWEST_TELNET: u8 = 0xf0;

/// The readable part of one line, without its line end.
#[derive(Debug)]
pub struct Text<'a> {
    /// The readable bytes, unless some of the line are skipped.
    bytes: &'a [u8],
    /// Position of the first one in the line.
    start: usize,
    skipping: Option<Box<Skipping>>,
    indented: bool,
    has_control: bool,
}

/// The readable part of a line in which Telnet commands or NUL bytes are skipped.
#[derive(Debug, Default)]
struct Skipping {
    bytes: Vec<u8>,
    /// Position of each byte in the line.
    positions: Vec<usize>,
    /// Number of bytes at the end of the line that start an unfinished Telnet command.
    unfinished: usize,
    /// Whether a NUL follows a byte that is not skipped.
    contains_nul: bool,
}

impl<'a> Text<'a> {
    /// Parses `line`, with or without its CR LF (or bare LF).
    pub fn new(line: &'a [u8]) -> Self {
        if let Some(text) = Self::of_plain(line) {
            return text;
        }
        if line.iter().any(|byte| matches!(*byte, IAC | 0)) {
            return Self::without_telnet(line);
        }
        Self { has_control: true, ..Self::without_skipping(line) }
    }

    /// Parses `line` if it has no [control bytes](Self::has_control_bytes).
    #[inline]
    pub fn of_plain(line: &'a [u8]) -> Option<Self> {
        (!has_control_bytes(line)).then(|| Self::without_skipping(line))
    }

    #[inline]
    fn without_skipping(line: &'a [u8]) -> Self {
        let Range { start, end } = readable_range(line);
        let indented = line.first().is_some_and(|b| is_blank(*b));
        Self { bytes: &line[start..end], start, skipping: None, indented, has_control: false }
    }

    #[cold]
    fn without_telnet(line: &[u8]) -> Self {
        let mut skipping = Skipping::of(line);
        let Skipping { bytes, positions, .. } = &mut skipping;
        let indented = bytes.first().is_some_and(|b| is_blank(*b));
        let Range { start, end } = readable_range(bytes);
        bytes.truncate(end);
        positions.truncate(end);
        bytes.drain(..start);
        positions.drain(..start);
        let skipping = Some(Box::new(skipping));
        Self { bytes: &[], start: 0, skipping, indented, has_control: true }
    }

    /// The readable bytes.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        self.skipping.as_ref().map_or(self.bytes, |skipping| &skipping.bytes)
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
        self.skipping.as_ref().map_or(0, |skipping| skipping.unfinished)
    }

    /// Whether there is a NUL behind the first byte that is not skipped.
    pub fn contains_nul(&self) -> bool {
        self.skipping.as_ref().is_some_and(|skipping| skipping.contains_nul)
    }

    /// The range of the line that `range` of the readable bytes comes from. `range` must not be empty.
    pub fn line_range(&self, range: Range<usize>) -> Range<usize> {
        let positions = self.skipping.as_ref().map_or(&[][..], |skipping| &skipping.positions);
        match (positions.get(range.start), positions.get(range.end.saturating_sub(1))) {
            (Some(first), Some(last)) => *first..*last + 1,
            _ => self.start + range.start..self.start + range.end,
        }
    }
}

impl Skipping {
    /// All bytes of `line` that are not skipped.
    fn of(line: &[u8]) -> Self {
        let mut text = Self::default();
        let mut i = 0;
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
                text.bytes.push(byte);
                text.positions.push(i);
                i += if byte == IAC { 2 } else { 1 };
            } else {
                text.contains_nul |= byte == 0 && !text.bytes.is_empty();
                if byte == IAC && is_unfinished(&line[i..]) {
                    text.unfinished = line.len() - i;
                }
                i += skip;
            }
        }
        text
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

/// Whether `line` has a byte before its end that some server may skip, or end the line at.
#[inline]
pub fn has_control_bytes(line: &[u8]) -> bool {
    let text = match line {
        [text @ .., b'\r', b'\n'] | [text @ .., b'\r' | b'\n'] => text,
        text => text,
    };
    // All of it, because most lines have none, and a loop without an early end handles many bytes at once.
    text.iter().fold(false, |found, byte| found | is_control(*byte))
}

fn is_graphic(byte: Option<&u8>) -> bool {
    byte.is_some_and(u8::is_ascii_graphic)
}

/// The range of `line` without its line end and the blanks at both ends.
#[inline]
fn readable_range(line: &[u8]) -> Range<usize> {
    let is_readable = |byte: &u8| *byte != b'\n' && !is_blank(*byte);
    let end = line.iter().rposition(is_readable).map_or(0, |last| last + 1);
    let start = line[..end].iter().position(|byte| !is_blank(*byte)).unwrap_or(end);
    start..end
}

/// Whether the Telnet command at the start of `bytes` is unfinished.
fn is_unfinished(bytes: &[u8]) -> bool {
    matches!(bytes, [IAC, WILL..=DONT] | [IAC])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_bytes_are_found_before_the_line_end() {
        for byte in 0..=255 {
            for at in 0..20 {
                let mut line = [b'x'; 22];
                (line[at], line[20], line[21]) = (byte, b'\r', b'\n');
                assert_eq!(has_control_bytes(&line), is_control(byte), "{line:?}");
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
