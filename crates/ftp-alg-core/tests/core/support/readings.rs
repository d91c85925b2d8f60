//! What servers make of a client's bytes: where each ends a line, and what each does about Telnet commands. Knows nothing
//! of the product.

/// Where a server ends a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    Lf,
    CrLf,
    CrOrLf,
    NulToo,
}

/// What a server does about Telnet commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Telnet {
    Keeps,
    /// Passes over what is no text at the start of a line.
    SkipsLead,
    /// Passes over `IAC` and one more byte.
    TakesTwo,
    /// And over an option, whatever byte that is, before it looks for the end of the line, as ProFTPD does.
    TakesOptions,
    /// And over one byte behind any command.
    TakesThree,
    /// Passes over each byte that may be a command.
    TakesEach,
    /// As `TakesTwo`, and over a whole subnegotiation, with the lines in it.
    TakesSubnegotiations,
}

/// How a server compares the start of a line with a verb.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verbs {
    /// A blank must follow.
    Words,
    /// Anything may follow, as with bftpd.
    Prefixes,
    /// As `Prefixes`, without what is no letter: bftpd removes control bytes, ftp-srv quotes, others bytes that are no
    /// text. Such servers read lines to their LF.
    Letters,
}

impl Verbs {
    /// What follows `verb` in `line`, if the line begins with it.
    fn argument<'l>(self, line: &'l [u8], verb: &[u8]) -> Option<&'l [u8]> {
        match self {
            Self::Words => line
                .strip_prefix(verb)
                .filter(|rest| rest.first().is_some_and(u8::is_ascii_whitespace)),
            Self::Prefixes => line.strip_prefix(verb),
            Self::Letters => {
                let letters =
                    || line.iter().enumerate().filter(|(_, byte)| byte.is_ascii_alphabetic());
                let begins = letters().map(|(_, byte)| byte).take(verb.len()).eq(verb);
                let (last, _) = letters().nth(verb.len() - 1).filter(|_| begins)?;
                Some(&line[last + 1..])
            }
        }
    }
}

/// The lines that such a server reads.
fn lines(bytes: &[u8], ends: Ends, telnet: Telnet) -> Vec<Vec<u8>> {
    let mut said: Vec<u8> = Vec::new();
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let next = bytes.get(at + 1).copied().unwrap_or_default();
        let is_command = byte == 0xff && next >= 0xf0;
        at += match telnet {
            Telnet::Keeps | Telnet::SkipsLead => 0,
            Telnet::TakesEach => usize::from(byte >= 0xf0),
            _ if !is_command => 0,
            Telnet::TakesSubnegotiations if next == 0xfa => {
                let end = bytes[at..].windows(2).position(|two| two == [0xff, 0xf0]);
                end.map_or(bytes.len() - at, |end| end + 2)
            }
            Telnet::TakesSubnegotiations => 2,
            Telnet::TakesTwo => 2,
            Telnet::TakesOptions if next < 0xfb => 2,
            Telnet::TakesOptions | Telnet::TakesThree => 3,
        };
        if matches!(telnet, Telnet::Keeps | Telnet::SkipsLead)
            || !(is_command || matches!(telnet, Telnet::TakesEach) && byte >= 0xf0)
        {
            said.push(byte);
            at += 1;
        }
    }
    let mut lines = vec![Vec::new()];
    for (at, byte) in said.iter().enumerate() {
        let is_end = match ends {
            Ends::Lf => *byte == b'\n',
            Ends::CrLf => *byte == b'\n' && at > 0 && said[at - 1] == b'\r',
            Ends::CrOrLf => matches!(byte, b'\n' | b'\r'),
            Ends::NulToo => matches!(byte, b'\n' | b'\r' | 0),
        };
        if is_end {
            lines.push(Vec::new());
        } else if let Some(line) = lines.last_mut()
            && *byte != 0
            && !(matches!(telnet, Telnet::SkipsLead) && line.is_empty() && *byte >= 0xf0)
        {
            line.push(*byte);
        }
    }
    lines
}

/// A line of `bytes` that some server takes for one of `verbs` with an argument that `is` looked for.
pub fn command(
    bytes: &[u8],
    verbs: &[&[u8]],
    is: impl Fn(&[u8]) -> bool,
) -> Option<(Ends, Telnet, Vec<u8>)> {
    for ends in [Ends::Lf, Ends::CrLf, Ends::CrOrLf, Ends::NulToo] {
        for telnet in [
            Telnet::Keeps,
            Telnet::SkipsLead,
            Telnet::TakesTwo,
            Telnet::TakesOptions,
            Telnet::TakesThree,
            Telnet::TakesEach,
            Telnet::TakesSubnegotiations,
        ] {
            let commands = |line: &Vec<u8>| {
                let line = line.trim_ascii_start().to_ascii_uppercase();
                let read = |how: Verbs| {
                    let argument = verbs.iter().find_map(|verb| how.argument(&line, verb))?;
                    // What else stands before the argument makes it none.
                    let is_skipped = |b: &u8| match how {
                        Verbs::Letters => !b.is_ascii_alphanumeric(),
                        _ => b.is_ascii_whitespace() || *b >= 0xf0,
                    };
                    let start = argument.iter().position(|b| !is_skipped(b))?;
                    is(&argument[start..]).then_some(())
                };
                let all = [Verbs::Words, Verbs::Prefixes, Verbs::Letters];
                let mut all =
                    all.iter().filter(|how| **how != Verbs::Letters || ends != Ends::CrLf);
                all.any(|how| read(*how).is_some())
            };
            if let Some(line) = lines(bytes, ends, telnet).into_iter().find(commands) {
                return Some((ends, telnet, line));
            }
        }
    }
    None
}
