//! Packets that concern no gateway, told by the form of what they say alone. The packet selection tells them apart by
//! rules that are made from the same tables.
//!
//! A command is a payload that is exactly one line, so that nothing can hide in it: no second line, no Telnet command, no
//! NUL. Segments may overlap, and a server may then read pieces of several. The only blank of a command
//! stands behind its verb, so that no pieces of harmless commands, in whatever order, make up one with an
//! argument and another verb. A reply is exactly one line, too, so that no announcement follows another one unseen.

/// The longest command that is told by its form, CR LF included.
pub const MAX_COMMAND: usize = 48;
/// The longest reply.
pub const MAX_REPLY: usize = 80;

/// Commands of four letters that open, move or encrypt nothing by themselves. One blank and an argument without blanks
/// may follow.
pub const COMMANDS: [[u8; 4]; 23] = [
    *b"USER", *b"PASS", *b"SYST", *b"FEAT", *b"QUIT", *b"RETR", *b"STOR", *b"APPE", *b"LIST",
    *b"NLST", *b"MLSD", *b"MLST", *b"REST", *b"TYPE", *b"SIZE", *b"MDTM", *b"CDUP", *b"DELE",
    *b"RNFR", *b"RNTO", *b"NOOP", *b"PASV", *b"EPSV",
];
/// The same of three letters.
pub const SHORT_COMMANDS: [[u8; 3]; 4] = [*b"CWD", *b"PWD", *b"MKD", *b"RMD"];

/// Bytes of an argument: printable ASCII but for the blank (and DEL).
pub const ARGUMENT: std::ops::RangeInclusive<u8> = 0x21..=0x7f;

/// Those of either length.
fn verbs() -> impl Iterator<Item = &'static [u8]> {
    COMMANDS.iter().map(|verb| &verb[..]).chain(SHORT_COMMANDS.iter().map(|verb| &verb[..]))
}

/// Whether `payload` is one command of [`COMMANDS`] or [`SHORT_COMMANDS`].
pub fn is_harmless_command(payload: &[u8]) -> bool {
    let end = payload.iter().position(|byte| matches!(byte, b' ' | b'\r')).unwrap_or(payload.len());
    let (verb, rest) = payload.split_at(end);
    payload.len() <= MAX_COMMAND
        && verbs().any(|known| verb.eq_ignore_ascii_case(known))
        && match rest {
            b"\r\n" => true,
            [b' ', argument @ .., b'\r', b'\n'] => argument.iter().all(|b| ARGUMENT.contains(b)),
            _ => false,
        }
}

/// Whether `payload` is one reply of one line, and announces nothing, nor would any part of it.
pub fn is_harmless_reply(payload: &[u8]) -> bool {
    payload.len() <= MAX_REPLY
        && matches!(payload, [b'1'..=b'5', _, _, b' ', text @ .., b'\r', b'\n']
            if !text.contains(&b'\n'))
        && !payload.windows(3).any(|code| matches!(code, b"227" | b"229"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ftp::{Command, Text, Verb};

    #[test]
    fn only_whole_single_commands_without_blanks_are_harmless() {
        for line in [
            "RETR a,b\r\n",
            "retr x\r\n",
            "LIST\r\n",
            "Type I\r\n",
            "PASV\r\n",
            "epsv 1\r\n",
            "LIST \r\n",
            "USER anonymous\r\n",
            "PASS a@b\r\n",
            "QUIT\r\n",
            "PWD\r\n",
            "cwd /a/b\r\n",
        ] {
            assert!(is_harmless_command(line.as_bytes()), "{line:?}");
        }
        for line in [
            "PORT 10,0,0,1,4,5\r\n",
            "RETR a b\r\n",
            "RETR  a\r\n",
            "RETR a \r\n",
            "RETR x\n",
            "RETR x",
            "RETR x\r\nSTAT\r\n",
            "RETR x\r\r\n",
            "RETR \u{e4}\r\n",
            "RETRO x\r\n",
            "STAT\r\n",
            " RETR x\r\n",
            "\r\n",
            "",
            "RETR x\0\r\n",
            "AUTH TLS\r\n",
            "REIN\r\n",
            "CWD a b\r\n",
            "CWD  a\r\n",
            "CWD\0a\r\n",
            "CWDX a\r\n",
            "CW\r\n",
            "CWD",
            "LIST\rx\r\n",
        ] {
            assert!(!is_harmless_command(line.as_bytes()), "{line:?}");
        }
        let of_length = |length: usize| format!("RETR {}\r\n", "x".repeat(length - 7));
        assert!(is_harmless_command(of_length(MAX_COMMAND).as_bytes()));
        assert!(!is_harmless_command(of_length(MAX_COMMAND + 1).as_bytes()));
    }

    #[test]
    fn harmless_commands_are_ftp() {
        for verb in verbs() {
            let text = Text::new(verb);
            let verb = Command::parse(&text).unwrap().verb;
            assert!(!matches!(verb, Verb::Unknown | Verb::Port | Verb::Eprt | Verb::Auth));
        }
    }

    #[test]
    fn replies_that_announce_or_go_on_are_not() {
        for line in ["226 done\r\n", "150 here\r\n", "550 no\r\n", "230 in\r\n", "200 \r\n"] {
            assert!(is_harmless_reply(line.as_bytes()), "{line:?}");
        }
        for line in [
            "226-more\r\n",
            "227 x\r\n",
            "229 x\r\n",
            "000 x\r\n",
            "627 x\r\n",
            " 226 x\r\n",
            "226\r\n",
            "226 cut",
            "226 x\n",
            "226 x\r\n227 y\r\n",
            "550 a227 (10,0,0,5,13,5)\r\n",
            "550 ab229 (|||3306|)\r\n",
            "550 227\r\n",
            "550 x229\r\n",
            "226",
        ] {
            assert!(!is_harmless_reply(line.as_bytes()), "{line:?}");
        }
    }
}
