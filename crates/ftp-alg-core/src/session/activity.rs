//! What the client does, for reports only: the user that it names, its directory, its transfers.

use serde::{Deserialize, Serialize};

use crate::ftp::{AnnouncementKind, Command, Verb, escape_name};

/// A command that uses a data connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TransferVerb {
    /// `APPE`: the client appends to a file.
    Appe,
    /// `LIST`: the server lists a directory for people.
    List,
    /// `MLSD`: the server lists a directory for programs (RFC 3659).
    Mlsd,
    /// `NLST`: the server lists names.
    Nlst,
    /// `RETR`: the server sends a file.
    Retr,
    /// `STOR`: the client sends a file.
    Stor,
    /// `STOU`: the client sends a file, and the server names it.
    Stou,
    /// One that cannot be read, and whether it sends a file to the server, if that is known.
    Unread(Option<bool>),
}

impl TransferVerb {
    /// All that can be read, with their names.
    pub const ALL: [(&str, Self); 7] = [
        ("RETR", Self::Retr),
        ("STOR", Self::Stor),
        ("LIST", Self::List),
        ("MLSD", Self::Mlsd),
        ("NLST", Self::Nlst),
        ("APPE", Self::Appe),
        ("STOU", Self::Stou),
    ];

    fn of(word: &[u8]) -> Option<Self> {
        let is_meant = |(name, _): &&(&str, Self)| name.as_bytes().eq_ignore_ascii_case(word);
        Self::ALL.iter().find(is_meant).map(|(_, verb)| *verb)
    }

    /// The command's word; empty if it cannot be read.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, verb)| *verb == self).map_or("", |(name, _)| name)
    }

    /// Whether servers take words that begin with `-` for options.
    fn takes_options(self) -> bool {
        matches!(self, Self::List | Self::Nlst)
    }

    /// Whether the client sends the data.
    pub fn is_upload(self) -> bool {
        matches!(self, Self::Appe | Self::Stor | Self::Stou | Self::Unread(Some(true)))
    }

    /// Whether the target of the data connection sends the data, not its initiator, after an announcement of this kind.
    pub fn is_sent_by_target(self, kind: AnnouncementKind) -> bool {
        self.is_upload() == kind.is_active()
    }
}

/// The activity that a client's command shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Activity {
    /// `USER`, with the name.
    User(Box<str>),
    /// A transfer, with its argument, escaped.
    Transfer(TransferVerb, Box<str>),
    /// `CWD`, or `CDUP` as `..`.
    ChangeDirectory(Box<str>),
    /// `RNFR`, with what is to be renamed.
    Rename(Box<str>),
}

impl Activity {
    /// The activity of `command`, if it is one. Behind its verb the line has the bytes `rest`. Some servers take all of
    /// them for the name: also blanks at its end, and Telnet commands.
    pub fn of(command: &Command<'_>, rest: &[u8]) -> Option<Self> {
        let name = || escape_name(raw_argument(rest));
        Some(match command.verb {
            Verb::User => Self::User(name()),
            Verb::Transfer => {
                let verb = TransferVerb::of(command.word)?;
                let path = if verb.takes_options() {
                    escape_name(without_options(raw_argument(rest)))
                } else {
                    name()
                };
                Self::Transfer(verb, path)
            }
            Verb::Directory => match command.word {
                [b'X' | b'x', word @ ..] | word if word.eq_ignore_ascii_case(b"CWD") => {
                    Self::ChangeDirectory(name())
                }
                [.., b'P' | b'p'] => Self::ChangeDirectory("..".into()),
                _ => return None,
            },
            Verb::Other if command.word.eq_ignore_ascii_case(b"RNFR") => Self::Rename(name()),
            _ => return None,
        })
    }
}

/// The argument in `rest`, the bytes behind the verb: without one blank and the line's end.
fn raw_argument(rest: &[u8]) -> &[u8] {
    let rest = rest.strip_prefix(b" ").unwrap_or(rest);
    let rest = rest.strip_suffix(b"\n").unwrap_or(rest);
    rest.strip_suffix(b"\r").unwrap_or(rest)
}

/// The `argument` of a listing without its first words that begin with `-`, as in `LIST -la /pub`.
fn without_options(mut argument: &[u8]) -> &[u8] {
    while argument.trim_ascii_start().starts_with(b"-") {
        let options = argument.trim_ascii_start();
        let end = options.iter().position(|byte| *byte == b' ');
        argument = end.map_or(&[], |end| &options[end + 1..]);
    }
    argument
}

/// The file that a 150 or 125 names (RFC 1123, section 4.1.2.9).
pub(super) fn named_file(line: &[u8]) -> Option<Box<str>> {
    let name = line.get(4..)?.strip_prefix(b"FILE: ")?.trim_ascii_end();
    (!name.is_empty()).then(|| escape_name(name))
}

/// The directory that a 257 names: what is between the first quotes, where quotes are doubled (RFC 959 appendix II), and
/// by some servers 0xff as well, as for Telnet. `None` if they may not be doubled, as in those of Pure-FTPd.
pub(super) fn named_directory(line: &[u8]) -> Option<Box<str>> {
    let start = line.iter().position(|byte| *byte == b'"')? + 1;
    let (mut name, mut rest) = (Vec::new(), line[start..].iter());
    while let Some(byte) = rest.next() {
        let is_doubled = rest.as_slice().first() == Some(byte);
        match byte {
            b'"' if !is_doubled => {
                let ends = rest.as_slice().first().is_none_or(u8::is_ascii_whitespace);
                return ends.then(|| escape_name(&name));
            }
            b'"' | 0xff if is_doubled => _ = rest.next(),
            _ => {}
        }
        name.push(*byte);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ftp::Text;

    fn activity(line: impl AsRef<[u8]>) -> Option<Activity> {
        let line = line.as_ref();
        let text = Text::new(line);
        let command = Command::parse(&text).unwrap();
        Activity::of(&command, &line[text.line_range(0..command.word.len()).end..])
    }

    #[test]
    fn a_name_is_as_in_the_line() {
        let path = |line: &[u8]| match activity(line) {
            Some(Activity::Transfer(_, path)) => path.to_string(),
            other => panic!("{other:?}"),
        };
        for (line, expected) in [
            (&b"STOR a\xffb\r\n"[..], "a\\xffb"),
            (b"STOR c\xff\xffd\r\n", "c\\xff\\xffd"),
            (b"RETR a  \r\n", "a  "),
            (b"RETR  a\n", " a"),
            (b" \xff\xf4\xff\xf2retr a\0\r\r\n", "a\\0\\r"),
            (b"RETR", ""),
            (b"RETR -la\r\n", "-la"),
            (b"LIST -la\r\n", ""),
            (b"LIST -l -a /pub -x\r\n", "/pub -x"),
            (b"NLST -l  a b\r\n", " a b"),
            (b"LIST a -l\r\n", "a -l"),
            (b"LIST -\r\n", ""),
            (b"LIST  \r\n", " "),
            (b"MLSD -x\r\n", "-x"),
        ] {
            assert_eq!(path(line), expected, "{line:?}");
        }
    }

    #[test]
    fn commands_say_what_the_client_does() {
        let transfer = |verb, path: &str| Some(Activity::Transfer(verb, path.into()));
        assert_eq!(activity("stor q3 final.csv\r\n"), transfer(TransferVerb::Stor, "q3 final.csv"));
        assert_eq!(activity("MLSD\r\n"), transfer(TransferVerb::Mlsd, ""));
        assert_eq!(activity("USER bob\r\n"), Some(Activity::User("bob".into())));
        assert_eq!(activity("xcup\r\n"), Some(Activity::ChangeDirectory("..".into())));
        assert_eq!(activity("PASS secret\r\n"), None);
        for (word, verb) in TransferVerb::ALL {
            assert_eq!(activity(format!("{word} x\r\n")), transfer(verb, "x"));
            assert_eq!(verb.name(), word);
        }
    }

    #[test]
    fn a_257_names_a_directory() {
        assert_eq!(named_directory(b"257 \"/a\xffb\xff\xffc\"").as_deref(), Some("/a\\xffb\\xffc"));
        for (line, expected) in [
            ("257 \"/pub\" is the current directory", Some("/pub")),
            ("257 \"/a\"\"b\" created", Some("/a\"b")),
            ("257 \"/a\"b\" is it", None),
            ("257 \"\"", Some("")),
            ("257 \"/open", None),
            ("257 none", None),
        ] {
            assert_eq!(named_directory(line.as_bytes()).as_deref(), expected, "{line}");
        }
    }
}
