//! Ambiguous client lines: positions at which some server may see another command start.
//!
//! RFC 959 ends lines with CR LF and allows Telnet commands anywhere. Servers differ: some end a line at a bare LF,
//! others at a bare CR or a NUL. Some skip two bytes for a Telnet command, others three, one or none. To *open* a
//! pinhole, both ends must agree, so [`line_end`] recognises lines that every server reads alike. To *refuse* a
//! command, every reading counts, so [`VerbScanner`] follows all of them at once, as a set of positions in a verb.
//! Some servers compare the start of a line only (`PORT10,0,0,5,0,22`), some remove control bytes or quotes first
//! (`PO"RT`). So the letters alone count: a line is that command if its first letters are, and plain if it has the form
//! of RFC 959.
//!
//! ProFTPD takes the byte after `IAC WILL` as an option even if it is an LF. A verb may then continue in the next line,
//! so a verb that is interrupted there counts as a verb. So does one that a subnegotiation (`IAC SB`) interrupts: it may
//! end lines later. Where one ends (`IAC SE`), a server that skipped it may be at the start of a line.

use serde::{Deserialize, Serialize};

use super::text::{Text, is_blank};

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
    let Some(line) = line.strip_suffix(b"\n") else { return LineEnd::Ambiguous };
    let end = if line.ends_with(b"\r") { LineEnd::Plain } else { LineEnd::Lf };
    let has_control = text.has_control_bytes(); // rare
    if has_control && is_ambiguous(without_crs(line)) { LineEnd::Ambiguous } else { end }
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
    may_end(bytes) || begins_subnegotiation(bytes)
}

/// The verbs to find.
const WORDS: [&[u8; 4]; 4] = [b"PORT", b"EPRT", b"LPRT", b"AUTH"];
/// Some server is between two lines.
const START: u16 = 1;

/// The bit for `letters` letters of the verb with index `word`, one to three.
const fn bit(word: usize, letters: usize) -> u16 {
    START << (word * 3 + letters)
}

/// What a [`VerbScanner`] looks for.
#[derive(Clone, Copy, Debug, Default)]
pub struct VerbSearch {
    /// Whether `AUTH` is one of the verbs.
    pub auth: bool,
    /// Whether the client has begun a subnegotiation. Otherwise two letters of a name in another character set that look
    /// like `IAC SE` end none.
    pub subnegotiates: bool,
}

/// Whether a subnegotiation begins within `bytes`.
pub fn begins_subnegotiation(bytes: &[u8]) -> bool {
    bytes.windows(2).any(|two| two == [IAC, SB])
}

/// The positions in a line at which servers may be. Each set has a bit for the start of a line, and one for each prefix
/// of a verb. Only letters lead from one to the next, because some server may skip any other byte.
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
    /// End of the verb `PORT`, `EPRT`, `LPRT`, or if it is searched `AUTH`, with which the letters of some server's `line`
    /// begin, whatever follows; `line` may be incomplete. A verb that may continue in the next line counts as well: if a
    /// Telnet command takes the LF as its option, or a subnegotiation starts inside the verb.
    pub fn find_verb_end(line: &[u8], search: VerbSearch) -> Option<usize> {
        Self::default().continue_to_verb_end(line, search)
    }

    /// As [`find_verb_end`](Self::find_verb_end), for the `bytes` that continue a line.
    pub fn continue_to_verb_end(&mut self, bytes: &[u8], search: VerbSearch) -> Option<usize> {
        let (mut at, mut interrupted) = (0, 0);
        while let Some(&byte) = bytes.get(at) {
            let begins_subnegotiation = self.last_byte == IAC && byte == SB;
            if (byte == b'\n' || begins_subnegotiation) && self.is_interrupted() {
                return Some(interrupted);
            }
            if byte >= SE && self.last_byte < SE {
                interrupted = at;
            }
            at += 1;
            if self.step(byte, search) {
                return Some(at);
            }
            if self.states | self.states_after_skip == 0 {
                // Skips text up to the next possible start.
                let may_start = |byte: &u8| matches!(*byte, 0 | b'\r' | b'\n' | SE);
                at += bytes[at..].iter().position(may_start)?;
                self.last_byte = bytes[at - 1];
            }
        }
        (!bytes.ends_with(b"\n") && self.is_interrupted()).then_some(interrupted)
    }

    /// Whether a verb continues for a server that takes the next byte as part of a Telnet command.
    fn is_interrupted(&self) -> bool {
        self.states_after_skip & !START != 0
    }

    /// Whether what the next line says depends on what precedes it: some server may be inside a verb, or skip a byte.
    pub fn is_inside_verb(&self) -> bool {
        self.states & !START | self.states_after_skip != 0
    }

    /// Whether the first word of `text`, in which is no control byte, is one of the verbs, for everybody.
    pub fn is_first_word(text: &[u8]) -> bool {
        let is_verb = |word: &[u8]| WORDS.iter().any(|verb| verb.eq_ignore_ascii_case(word));
        text.split(|byte| is_blank(*byte)).next().is_some_and(is_verb)
    }

    /// Whether a `line` without control bytes may begin with one of the verbs.
    pub fn may_begin(line: &[u8]) -> bool {
        line.first().is_some_and(|byte| {
            !byte.is_ascii_alphabetic() || b"PELA".contains(&byte.to_ascii_uppercase())
        })
    }

    /// Reads one byte. Returns whether it ends a verb.
    fn step(&mut self, byte: u8, search: VerbSearch) -> bool {
        let before = self.states;
        let last = std::mem::replace(&mut self.last_byte, byte);
        // A server that takes this byte as part of a Telnet command stays at its position.
        self.states = std::mem::take(&mut self.states_after_skip);
        if !byte.is_ascii_alphabetic() {
            self.states |= before;
            let ends_subnegotiation = search.subnegotiates && last == IAC && byte == SE;
            if matches!(byte, 0 | b'\r' | b'\n') || ends_subnegotiation {
                self.states |= START;
            }
            if byte == IAC || last == IAC && byte >= SE {
                self.states_after_skip = before;
            }
            return false;
        }
        let words = if search.auth { &WORDS[..] } else { &WORDS[..3] };
        for (word, verb) in words.iter().enumerate() {
            for (at, letter) in verb.iter().enumerate() {
                let from = if at == 0 { START } else { bit(word, at) };
                if before & from != 0 && byte.eq_ignore_ascii_case(letter) {
                    if at == 3 {
                        return true;
                    }
                    self.states |= bit(word, at + 1);
                }
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::script::words;

    fn find(line: &[u8], auth: bool) -> Option<usize> {
        let subnegotiates = begins_subnegotiation(line);
        VerbScanner::find_verb_end(line, VerbSearch { auth, subnegotiates })
    }

    #[test]
    fn a_line_is_plain_if_all_servers_read_it_alike() {
        let mut plain = words(
            b"RETR a b\r\n|\r\n|\xff\xf4\xff\xf2ABOR\r\n|STOR \xf0\x9f\x98\x80.jpg\r\n|RETR a\r\r\n|\r\r\r\n",
        );
        plain.push(b"229 x (|||5|)\r\n");
        let lf = words(b"RETR a\n|\n");
        let ambiguous = words(
            b"RETR a\r\n\r\n|RETR a\rb\r\r\n|RETR a\rb\r\n|RETR \xff\r\r\n|RETR a\0\r\r\n|RETR a\r\0\r\n|\0RETR a\r\n|\
            RETR a\0\r\n|RETR a\nb\r\n|RETR \xff\r\n|RETR \xff\xfb\r\n|\xff\xfax\r\n|RETR a\0\n|RETR \xff\xfb\n|RETR a|",
        );
        for (lines, end) in
            [(plain, LineEnd::Plain), (lf, LineEnd::Lf), (ambiguous, LineEnd::Ambiguous)]
        {
            for line in lines {
                assert_eq!(line_end(line, &Text::new(line)), end, "{line:?}");
            }
        }
    }

    #[test]
    fn text_is_not_a_verb() {
        // One is in Windows-1251.
        for line in words(
            b"RETR PORT 1|RETR \xfcr PORT 1|XPORT 1|XPO\rRT 1|POR|PO 1|STOR \xff PORT 1|PO\r\n|PO\n|STOR P\xff|STOR -port|\
            STOR \xf0\x9f\x9a\xa2 Portugal.pdf|STOR \xd8\xea\xee\xeb\xff\xf0 Portfolio.doc|PASV|EPSV|LIST port|ALLO 1",
        ) {
            assert_eq!(find(line, true), None, "{line:?}");
        }
    }

    /// What clients send: each verb with names of any bytes but line ends and NUL, which no name can have.
    #[test]
    fn real_command_lines_hide_no_verb() {
        const VERBS: &str = "USER PASS ACCT CWD CDUP SMNT QUIT REIN PASV EPSV TYPE STRU MODE RETR STOR STOU APPE ALLO \
            REST RNFR RNTO ABOR DELE RMD MKD PWD LIST NLST MLST MLSD SITE SYST STAT HELP NOOP FEAT OPTS SIZE MDTM MFMT \
            LPSV LANG PBSZ PROT ADAT AVBL CLNT CSID ENC ESTA ESTP EPSV P@SW PROT XPWD XSHA512";
        let mut state = 1_u64;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % below
        };
        let verbs: Vec<&str> = VERBS.split_whitespace().collect();
        for _ in 0..20_000 {
            let verb = verbs[random(verbs.len() as u64) as usize];
            let length = random(40);
            let byte = |_| match random(255) as u8 + 1 {
                b'\r' | b'\n' => b' ',
                byte => byte,
            };
            let name: Vec<u8> = (0..length).map(byte).collect();
            for lead in [&b""[..], b"\xff\xf4\xff\xf2", b" "] {
                let line = [lead, verb.as_bytes(), b" ", &name, b"\r\n"].concat();
                assert_eq!(find(&line, true), None, "{}", line.escape_ascii());
            }
        }
    }

    #[test]
    fn an_interrupted_verb_counts_as_a_verb() {
        for line in words(b"PO\xff\xfb\nRT 1|P\xff|eprt\xff\xfb\n|P\xff\xfax\n|NOOP\rP\xff") {
            assert!(find(line, false).is_some(), "{line:?}");
            assert!(find(&line[..1], false).is_none(), "{line:?}");
        }
    }

    /// `docs/what-opens.md` says how often a TLS record looks like a hidden verb.
    #[test]
    fn random_bytes_are_rarely_taken_for_a_verb() {
        let mut state = 1_u64;
        let mut random_byte = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        };
        let looks_like_a_verb = |record: &[u8]| {
            let mut lines = record.split_inclusive(|byte| *byte == b'\n');
            lines.any(|line| find(line, false).is_some())
        };
        let records = (0..200_000).map(|_| std::array::from_fn::<u8, 100, _>(|_| random_byte()));
        let count = records.filter(|record| looks_like_a_verb(record)).count();
        assert!(count <= 12, "{count} of 200,000 records");
    }
}
