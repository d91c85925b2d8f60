//! Ambiguous client lines: positions at which some server may see another command start.
//!
//! RFC 959 ends lines with CR LF and allows Telnet commands anywhere. Servers differ: some end a line at a bare LF,
//! others at a bare CR or a NUL. Some skip two bytes for a Telnet command, others three, one or none. To *open* a
//! pinhole, both ends must agree, so [`is_plain`] recognises lines that every server reads alike. To *refuse* a
//! command, every reading counts, so [`VerbScanner`] follows all of them at once, as a set of positions in a verb.
//! ProFTPD takes the byte after `IAC WILL` as an option even if it is an LF. A verb may then continue in the next line,
//! so a verb that is interrupted there counts as a verb.

use super::text::{Text, has_control_bytes, is_blank};

const IAC: u8 = 0xff;
const SB: u8 = 0xfa;
const SE: u8 = 0xf0;

/// How a line ends, and whether all servers read it alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineEnd {
    /// CR LF, and no byte in the line that a server may take as a line end.
    Plain,
    /// Anything else: it is unclear where servers see line ends.
    Odd,
}

/// Whether all servers read `line`, parsed as `text`, as one line: it ends with CR LF, contains no other CR, LF or NUL,
/// and no Telnet command that could include one of the final two bytes.
pub fn is_plain(line: &[u8], text: &Text<'_>) -> LineEnd {
    let is_odd = text.is_odd(); // mostly there is nothing of these
    let Some(text) = line.strip_suffix(b"\r\n") else { return LineEnd::Odd };
    if !is_odd {
        return LineEnd::Plain;
    }
    let touches = text.iter().rev().take(2).any(|byte| *byte == IAC);
    if may_end_or_skip(text) || touches { LineEnd::Odd } else { LineEnd::Plain }
}

/// Whether some server may end a line within `bytes`, or skip more of them than others (`IAC SB`).
pub fn may_end_or_skip(bytes: &[u8]) -> bool {
    bytes.iter().any(|byte| matches!(byte, 0 | b'\r' | b'\n'))
        || bytes.windows(2).any(|two| two == [IAC, SB])
}

/// The verbs to find.
const WORDS: [&[u8; 4]; 3] = [b"PORT", b"EPRT", b"AUTH"];
/// Some server is between two lines.
const START: u16 = 1;

/// The bit for `letters` letters of the verb with index `word`.
fn bit(word: usize, letters: usize) -> u16 {
    1 << (word * 4 + letters)
}

/// The positions in a line at which servers may be. Each set has a bit for the start of a line, and one for each prefix
/// of a verb.
#[derive(Clone, Copy, Debug)]
pub struct VerbScanner {
    now: u16,
    /// The positions of servers for which the next byte belongs to a Telnet command.
    skips: u16,
    last: u8,
}

impl VerbScanner {
    /// End of the verb `PORT`, `EPRT`, or with `auth` `AUTH`, that some server sees in `line` followed by a blank or
    /// LF; `line` may be incomplete. A verb that may continue in the next line counts as well: if a Telnet command
    /// takes the LF as its option, or a subnegotiation starts.
    pub fn find(line: &[u8], auth: bool) -> Option<usize> {
        let mut state = Self { now: START, skips: 0, last: 0 };
        let (mut at, mut interrupted) = (0, 0);
        while let Some(&byte) = line.get(at) {
            if byte == b'\n' && state.is_interrupted(auth) {
                return Some(interrupted);
            }
            if byte >= SE && state.last < SE {
                interrupted = at;
            }
            if state.step(byte, auth) {
                // This byte may also belong to the Telnet command.
                return Some(if state.is_interrupted(auth) { interrupted } else { at });
            }
            at += 1;
            if state.now | state.skips == 0 {
                // Skips text up to the next possible line end.
                at += memchr::memchr3(0, b'\r', b'\n', &line[at..])?;
            }
        }
        (!line.ends_with(b"\n") && state.is_interrupted(auth)).then_some(interrupted)
    }

    /// Whether a verb continues for a server that takes the next byte as part of a Telnet command.
    fn is_interrupted(&self, auth: bool) -> bool {
        let words = if auth { 3 } else { 2 };
        (0..words).any(|word| (1..=4).any(|letters| self.skips & bit(word, letters) != 0))
    }

    /// Whether `line` contains bytes that need the scan. All other lines have one possible start.
    pub fn may_be_in(line: &[u8]) -> bool {
        has_control_bytes(line)
    }

    /// Reads one byte. Returns whether a verb ended before it.
    fn step(&mut self, byte: u8, auth: bool) -> bool {
        let before = self.now;
        let words = if auth { 3 } else { 2 };
        // A server that ends lines at CR LF may take an LF as a blank.
        let ends_word = is_blank(byte) || byte == b'\n';
        let is_verb = ends_word && (0..words).any(|word| before & bit(word, 4) != 0);
        let last = std::mem::replace(&mut self.last, byte);
        if is_verb || last == IAC && byte == SB && before & START != 0 {
            return true;
        }
        // A server that takes this byte as part of a Telnet command stays at its position.
        let mut now = std::mem::take(&mut self.skips);
        if is_blank(byte) {
            now |= before & START;
        }
        if matches!(byte, 0 | b'\r' | b'\n') {
            now |= START | before;
        } else if byte >= SE {
            now |= before;
            self.skips = before;
        }
        for (word, letters) in WORDS.iter().enumerate() {
            for (at, letter) in letters.iter().enumerate() {
                let from = if at == 0 { START } else { bit(word, at) };
                if before & from != 0 && byte.eq_ignore_ascii_case(letter) {
                    now |= bit(word, at + 1);
                }
            }
        }
        self.now = now;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_everybody_reads_alike_is_plain() {
        for line in [
            &b"RETR a b\r\n"[..],
            b"\r\n",
            b"\xff\xf4\xff\xf2ABOR\r\n",
            b"STOR \xf0\x9f\x98\x80.jpg\r\n",
            b"229 x (|||5|)\r\n",
        ] {
            assert_eq!(is_plain(line, &Text::new(line)), LineEnd::Plain, "{line:?}");
        }
        for line in [
            &b"RETR a\n"[..],
            b"RETR a\r\r\n",
            b"RETR a\rb\r\n",
            b"RETR a\0\r\n",
            b"RETR a\nb\r\n",
            b"RETR \xff\r\n",
            b"RETR \xff\xfb\r\n",
            b"\xff\xfax\r\n",
            b"RETR a",
            b"",
        ] {
            assert_eq!(is_plain(line, &Text::new(line)), LineEnd::Odd, "{line:?}");
        }
    }

    #[test]
    fn a_verb_is_found_behind_whatever_any_server_leaves_out() {
        for lead in [
            &b""[..],
            b"NOOP\r",
            b"NOOP\n",
            b"NOOP\0",
            b"SIZE a\r\0",
            b"\xff",
            b"\xff\xff",
            b"\xf4",
            b"\xff\xf4",
            b"\xff\xf4x",
            b"\xff\xfb",
            b"\xff\xfb\x01",
            b"\xff\xfbx",
            b"\xff\xff\xf4",
            b" \t\x0b\x0c",
            b"\0",
            b"\xff\xf4\xff\xf2",
            b"\xff\xfb\x01\xff\xfdz",
            b"RETR x\0\xff\xf4x",
            b"NOOP\xff\xfb\n",
        ] {
            for verb in [
                &b"PORT "[..],
                b"eprt\t",
                b"P\0ORT ",
                b"PO\xff\xf1RT ",
                b"PO\xff\xfb\x01RT\r",
                b"PO\xffRT ",
                b"PORT\xff\xff\0\n",
            ] {
                let line = [lead, verb].concat();
                assert_eq!(VerbScanner::find(&line, false), Some(line.len() - 1), "{line:?}");
            }
            assert!(VerbScanner::find(&[lead, b"AUTH "].concat(), false).is_none());
            assert!(VerbScanner::find(&[lead, b"AUTH "].concat(), true).is_some());
        }
    }

    #[test]
    fn text_is_no_verb() {
        for line in [
            &b"RETR PORT 1"[..],
            b"RETR \xfcr PORT 1",
            b"XPORT 1",
            b"PORTX 1",
            b"PORT",
            b"P ORT 1",
            b"STOR \xff PORT 1",
            b"\xe9PORT 1",
            b"xPORT 1",
            b"PORT192,1 ",
            b"PO\r\n",
            b"STOR P\xff",
        ] {
            assert_eq!(VerbScanner::find(line, true), None, "{line:?}");
        }
    }

    #[test]
    fn a_verb_that_is_interrupted_is_one() {
        for line in
            [&b"PO\xff\xfb\nRT 1"[..], b"P\xff", b"eprt\xff\xfb\n", b"\xff\xfa\n", b"NOOP\rP\xff"]
        {
            assert!(VerbScanner::find(line, false).is_some(), "{line:?}");
            assert!(VerbScanner::find(&line[..1], false).is_none(), "{line:?}");
        }
    }
}
