//! What the client does, for reports: which user it names, in which directory it is, what it transfers. Nothing is
//! decided by it.

use serde::{Deserialize, Serialize};

use crate::ftp::{Command, Text, Verb, escape_name};

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
}

impl TransferVerb {
    const ALL: [(&str, Self); 7] = [
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

    /// The command's word.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, verb)| *verb == self).map_or("", |(name, _)| name)
    }

    /// Whether the client sends the data.
    pub fn is_upload(self) -> bool {
        matches!(self, Self::Appe | Self::Stor | Self::Stou)
    }
}

/// A requested transfer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferCommand {
    /// The command.
    pub verb: TransferVerb,
    /// The argument, escaped.
    pub path: Box<str>,
}

/// What a client's command says about its activity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Activity {
    /// `USER`, with the name.
    User(Box<str>),
    /// A transfer.
    Transfer(TransferCommand),
    /// `CWD`, or `CDUP` as `..`.
    ChangeDirectory(Box<str>),
}

impl Activity {
    /// The activity of `command`, if it is one.
    pub fn of(command: &Command<'_>) -> Option<Self> {
        let name = || escape_name(command.argument);
        Some(match command.verb {
            Verb::User => Self::User(name()),
            Verb::Transfer => {
                let verb = TransferVerb::of(command.word)?;
                Self::Transfer(TransferCommand { verb, path: name() })
            }
            Verb::Directory => match command.word {
                [b'X' | b'x', word @ ..] | word if word.eq_ignore_ascii_case(b"CWD") => {
                    Self::ChangeDirectory(name())
                }
                [.., b'P' | b'p'] => Self::ChangeDirectory("..".into()),
                _ => return None,
            },
            _ => return None,
        })
    }
}

/// The directory that a 257 names: what is between the first quotes, where quotes are doubled (RFC 959 appendix II).
pub(super) fn named_directory(text: &Text<'_>) -> Option<Box<str>> {
    let bytes = text.bytes();
    let start = bytes.iter().position(|byte| *byte == b'"')? + 1;
    let (mut name, mut rest) = (Vec::new(), bytes[start..].iter());
    while let Some(byte) = rest.next() {
        if *byte == b'"' && rest.next() != Some(&b'"') {
            return Some(escape_name(&name));
        }
        name.push(*byte);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn activity(line: &str) -> Option<Activity> {
        Activity::of(&Command::parse(&Text::new(line.as_bytes())).unwrap())
    }

    #[test]
    fn commands_say_what_the_client_does() {
        let transfer = |verb, path: &str| {
            Some(Activity::Transfer(TransferCommand { verb, path: path.into() }))
        };
        assert_eq!(activity("stor q3 final.csv\r\n"), transfer(TransferVerb::Stor, "q3 final.csv"));
        assert_eq!(activity("MLSD\r\n"), transfer(TransferVerb::Mlsd, ""));
        assert_eq!(activity("USER bob\r\n"), Some(Activity::User("bob".into())));
        assert_eq!(activity("xcup\r\n"), Some(Activity::ChangeDirectory("..".into())));
        assert_eq!(activity("PASS secret\r\n"), None);
        for (word, verb) in TransferVerb::ALL {
            assert_eq!(activity(&format!("{word} x\r\n")), transfer(verb, "x"));
            assert_eq!(verb.name(), word);
        }
    }

    #[test]
    fn a_257_names_a_directory() {
        for (line, expected) in [
            ("257 \"/pub\" is the current directory", Some("/pub")),
            ("257 \"/a\"\"b\" created", Some("/a\"b")),
            ("257 \"\"", Some("")),
            ("257 \"/open", None),
            ("257 none", None),
        ] {
            assert_eq!(named_directory(&Text::new(line.as_bytes())).as_deref(), expected, "{line}");
        }
    }
}
