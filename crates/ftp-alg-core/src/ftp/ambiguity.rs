//! Ambiguous client lines: positions at which some server may see another command start.
//!
//! RFC 959 ends lines with CR LF and allows Telnet commands anywhere. Servers differ: some end a line at a bare LF,
//! others at a bare CR or a NUL. Some skip two bytes for a Telnet command, others three, one or none. To *open* a
//! pinhole, both ends must agree, so [`line_end`] recognises lines that every server reads alike. To *refuse* a
//! command, every reading counts, so [`VerbScanner`] follows all of them at once, as a set of positions in a verb.
//! ProFTPD takes the byte after `IAC WILL` as an option even if it is an LF. A verb may then continue in the next line,
//! so a verb that is interrupted there counts as a verb. So does one that a subnegotiation (`IAC SB`) interrupts: it may
//! end lines later. Where one ends (`IAC SE`), a server that skipped it may be at the start of a line.

use serde::{Deserialize, Serialize};

use super::text::{Text, has_control_bytes, is_blank};

const IAC: u8 = 0xff;
const SB: u8 = 0xfa;
const SE: u8 = 0xf0;

/// How a line ends, and whether all servers read it alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineEnd {
    /// CR LF, perhaps behind more CRs, and no byte in the line that a server may take as a line end. Programs that
    /// write in text mode on Windows end lines with CR CR LF.
    Plain,
    /// LF alone, and otherwise as `Plain`.
    Lf,
    /// Anything else: it is unclear where servers see line ends.
    Ambiguous,
}

/// How a client's `line`, parsed as `text`, ends. All servers read it as one line if it ends with CR LF, contains no
/// other CR, LF or NUL, and no Telnet command that could include one of the final two bytes. A CR directly before the
/// CR LF ends the line, or an empty one.
pub fn line_end(line: &[u8], text: &Text<'_>) -> LineEnd {
    let touches_end = |text: &[u8]| text.iter().rev().take(2).any(|byte| *byte == IAC);
    end_unless(line, text, |text| may_end_or_skip(text) || touches_end(text))
}

/// How a server's `line`, parsed as `text`, ends. Names in it may contain any byte, also those of Telnet commands. The
/// server knows where its lines end. Some send a NUL behind each.
pub fn reply_line_end(line: &[u8], text: &Text<'_>) -> LineEnd {
    end_unless(line, text, |text| may_end(without_nuls(text)))
}

fn end_unless(line: &[u8], text: &Text<'_>, is_ambiguous: impl Fn(&[u8]) -> bool) -> LineEnd {
    let (start, end) = match line.strip_suffix(b"\r\n") {
        Some(start) => (start, LineEnd::Plain),
        None => match line.strip_suffix(b"\n") {
            Some(start) => (start, LineEnd::Lf),
            None => return LineEnd::Ambiguous,
        },
    };
    let has_control = text.has_control_bytes(); // rare
    if has_control && is_ambiguous(without_crs(start)) { LineEnd::Ambiguous } else { end }
}

/// `text` without the CRs at its end.
fn without_crs(mut text: &[u8]) -> &[u8] {
    while let [rest @ .., b'\r'] = text {
        text = rest;
    }
    text
}

/// `text` without the NULs at its start.
pub fn without_nuls(mut text: &[u8]) -> &[u8] {
    while let [0, rest @ ..] = text {
        text = rest;
    }
    text
}

/// Whether some end may end a line within `bytes`.
fn may_end(bytes: &[u8]) -> bool {
    bytes.iter().any(|byte| matches!(byte, 0 | b'\r' | b'\n'))
}

/// Whether some server may end a line within `bytes`, or skip more of them than others (`IAC SB`).
pub fn may_end_or_skip(bytes: &[u8]) -> bool {
    may_end(bytes) || bytes.windows(2).any(|two| two == [IAC, SB])
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
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct VerbScanner {
    states: u16,
    /// The positions of servers for which the next byte belongs to a Telnet command.
    states_after_skip: u16,
    last_byte: u8,
}

impl Default for VerbScanner {
    /// At the start of a line.
    fn default() -> Self {
        Self { states: START, states_after_skip: 0, last_byte: 0 }
    }
}

impl VerbScanner {
    /// End of the verb `PORT`, `EPRT`, or with `auth` `AUTH`, that some server sees in `line` followed by a blank or
    /// LF; `line` may be incomplete. A verb that may continue in the next line counts as well: if a Telnet command
    /// takes the LF as its option, or a subnegotiation starts inside the verb.
    pub fn find_verb_end(line: &[u8], auth: bool) -> Option<usize> {
        Self::default().continue_to_verb_end(line, auth)
    }

    /// As [`find_verb_end`](Self::find_verb_end), for the `bytes` that continue a line. The verb may end directly before
    /// them.
    pub fn continue_to_verb_end(&mut self, bytes: &[u8], auth: bool) -> Option<usize> {
        let (mut at, mut interrupted) = (0, 0);
        while let Some(&byte) = bytes.get(at) {
            if byte == b'\n' && self.is_interrupted(auth) {
                return Some(interrupted);
            }
            if byte >= SE && self.last_byte < SE {
                interrupted = at;
            }
            if self.step(byte, auth) {
                // This byte may also belong to the Telnet command.
                return Some(if self.is_interrupted(auth) { interrupted } else { at });
            }
            at += 1;
            if self.states | self.states_after_skip == 0 {
                // Skips text up to the next possible start.
                let may_start = |byte: &u8| matches!(*byte, 0 | b'\r' | b'\n' | SE);
                at += bytes[at..].iter().position(may_start)?;
            }
        }
        (!bytes.ends_with(b"\n") && self.is_interrupted(auth)).then_some(interrupted)
    }

    /// Whether a verb continues for a server that takes the next byte as part of a Telnet command.
    fn is_interrupted(&self, auth: bool) -> bool {
        let words = if auth { 3 } else { 2 };
        (0..words)
            .any(|word| (1..=4).any(|letters| self.states_after_skip & bit(word, letters) != 0))
    }

    /// Whether `line` contains bytes that need the scan. All other lines have one possible start.
    pub fn is_needed(line: &[u8]) -> bool {
        has_control_bytes(line)
    }

    /// Reads one byte. Returns whether a verb ended before it.
    fn step(&mut self, byte: u8, auth: bool) -> bool {
        let before = self.states;
        let words = if auth { 3 } else { 2 };
        // A server that ends lines at CR LF may take an LF as a blank.
        let ends_word = is_blank(byte) || byte == b'\n';
        let is_verb = ends_word && (0..words).any(|word| before & bit(word, 4) != 0);
        let last = std::mem::replace(&mut self.last_byte, byte);
        let begins_inside_verb = last == IAC && byte == SB && self.is_interrupted(auth);
        if is_verb || begins_inside_verb {
            return true;
        }
        // A server that takes this byte as part of a Telnet command stays at its position.
        let mut states = std::mem::take(&mut self.states_after_skip);
        if is_blank(byte) {
            states |= before & START;
        }
        if matches!(byte, 0 | b'\r' | b'\n') {
            states |= START | before;
        } else if byte >= SE {
            states |= if byte == SE { before | START } else { before };
            if byte == IAC || last == IAC {
                self.states_after_skip = before;
            }
        }
        for (word, letters) in WORDS.iter().enumerate() {
            for (at, letter) in letters.iter().enumerate() {
                let from = if at == 0 { START } else { bit(word, at) };
                if before & from != 0 && byte.eq_ignore_ascii_case(letter) {
                    states |= bit(word, at + 1);
                }
            }
        }
        self.states = states;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unambiguous_line_is_plain() {
        for line in [
            &b"RETR a b\r\n"[..],
            b"\r\n",
            b"\xff\xf4\xff\xf2ABOR\r\n",
            b"STOR \xf0\x9f\x98\x80.jpg\r\n",
            b"RETR a\r\r\n",
            b"\r\r\r\n",
            b"229 x (|||5|)\r\n",
        ] {
            assert_eq!(line_end(line, &Text::new(line)), LineEnd::Plain, "{line:?}");
        }
        for line in [
            &b"RETR a\r\n\r\n"[..],
            b"RETR a\rb\r\r\n",
            b"RETR a\rb\r\n",
            b"RETR \xff\r\r\n",
            b"RETR a\0\r\r\n",
            b"RETR a\r\0\r\n",
            b"\0RETR a\r\n",
            b"RETR a\0\r\n",
            b"RETR a\nb\r\n",
            b"RETR \xff\r\n",
            b"RETR \xff\xfb\r\n",
            b"\xff\xfax\r\n",
            b"RETR a",
            b"",
        ] {
            assert_eq!(line_end(line, &Text::new(line)), LineEnd::Ambiguous, "{line:?}");
        }
        for (line, end) in [
            (&b"RETR a\n"[..], LineEnd::Lf),
            (b"\n", LineEnd::Lf),
            (b"RETR a\0\n", LineEnd::Ambiguous),
            (b"RETR \xff\xfb\n", LineEnd::Ambiguous),
        ] {
            assert_eq!(line_end(line, &Text::new(line)), end, "{line:?}");
        }
    }

    #[test]
    fn a_verb_is_found_after_anything_that_a_server_skips() {
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
                assert_eq!(
                    VerbScanner::find_verb_end(&line, false),
                    Some(line.len() - 1),
                    "{line:?}"
                );
            }
            assert!(VerbScanner::find_verb_end(&[lead, b"AUTH "].concat(), false).is_none());
            assert!(VerbScanner::find_verb_end(&[lead, b"AUTH "].concat(), true).is_some());
        }
    }

    #[test]
    fn text_is_not_a_verb() {
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
            assert_eq!(VerbScanner::find_verb_end(line, true), None, "{line:?}");
        }
    }

    #[test]
    fn an_interrupted_verb_counts_as_a_verb() {
        for line in
            [&b"PO\xff\xfb\nRT 1"[..], b"P\xff", b"eprt\xff\xfb\n", b"P\xff\xfax\n", b"NOOP\rP\xff"]
        {
            assert!(VerbScanner::find_verb_end(line, false).is_some(), "{line:?}");
            assert!(VerbScanner::find_verb_end(&line[..1], false).is_none(), "{line:?}");
        }
    }

    /// `docs/refusals.md` says how often a TLS record looks like a hidden verb.
    #[test]
    fn random_bytes_are_rarely_taken_for_a_verb() {
        let mut state = 1_u64;
        let mut random_byte = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        };
        let looks_like_a_verb = |record: &[u8]| {
            let mut lines = record.split_inclusive(|byte| *byte == b'\n');
            lines.any(|line| VerbScanner::find_verb_end(line, false).is_some())
        };
        let records = (0..200_000).map(|_| std::array::from_fn::<u8, 100, _>(|_| random_byte()));
        let count = records.filter(|record| looks_like_a_verb(record)).count();
        assert!(count <= 2, "{count} of 200,000 records");
    }
}
