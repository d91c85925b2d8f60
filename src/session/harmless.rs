//! Lines that a gateway need not read once it knows a dialogue, told by their form alone.
//!
//! What is told apart here is told apart by the packet selection as well, with the same tables: a payload
//! that is exactly one line of printable ASCII and CR LF. Everything else is read, so that nothing can
//! hide: no second line, no line that is cut, no Telnet command, no NUL.

/// The longest line that is told by its form, CR LF included.
pub const MAX_LINE: usize = 128;
/// The shortest: four characters and CR LF.
pub const MIN_LINE: usize = 6;

/// First four characters, in lower case, of commands that open, move or encrypt nothing, and that servers
/// answer with lines of no one's making but their own. A blank or the line's end follows.
pub const COMMANDS: [[u8; 4]; 11] = [
    *b"retr", *b"stor", *b"appe", *b"list", *b"nlst", *b"mlsd", *b"rest", *b"type", *b"size",
    *b"mdtm", *b"noop",
];

/// Whole lines, in lower case, that ask the server for an announcement.
pub const QUESTIONS: [[u8; 4]; 2] = [*b"pasv", *b"epsv"];

/// First digits of replies that need not be read: nothing failed, and nothing is announced.
pub const REPLIES: [u8; 3] = *b"123";

/// Of these, what must be read all the same: whole codes, and first two digits (logins).
pub const ANNOUNCING: [[u8; 4]; 2] = [*b"227 ", *b"229 "];
/// As [`ANNOUNCING`].
pub const LOGINS: [[u8; 2]; 2] = [*b"23", *b"33"];

/// Whether `payload` is one line of printable ASCII, whole and not too long.
fn is_plain(payload: &[u8]) -> bool {
    (MIN_LINE..=MAX_LINE).contains(&payload.len())
        && payload
            .strip_suffix(b"\r\n")
            .is_some_and(|line| line.iter().all(|b| (0x20..0x80).contains(b)))
}

fn first_four(payload: &[u8]) -> [u8; 4] {
    payload.first_chunk().copied().unwrap_or_default()
}

/// Whether `payload` is one command of [`COMMANDS`] or [`QUESTIONS`].
pub fn is_harmless_command(payload: &[u8]) -> bool {
    let verb = first_four(payload).map(|b| b | 0x20);
    is_plain(payload)
        && (COMMANDS.contains(&verb) && matches!(payload.get(4), Some(b' ' | b'\r'))
            || is_question(payload))
}

/// Whether `payload` is one of [`QUESTIONS`].
pub fn is_question(payload: &[u8]) -> bool {
    payload.len() == MIN_LINE
        && payload.ends_with(b"\r\n")
        && QUESTIONS.contains(&first_four(payload).map(|b| b | 0x20))
}

/// Whether `payload` is one reply, of one line, that need not be read.
pub fn is_harmless_reply(payload: &[u8]) -> bool {
    let code = first_four(payload);
    is_plain(payload)
        && REPLIES.contains(&code[0])
        && code[3] == b' '
        && !ANNOUNCING.contains(&code)
        && !LOGINS.contains(&[code[0], code[1]])
}

/// Whether `payload` is one reply, of one line, that announces.
pub fn is_announcement(payload: &[u8]) -> bool {
    is_plain(payload) && ANNOUNCING.contains(&first_four(payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_single_lines_of_plain_text_are_harmless() {
        for line in ["RETR a b\r\n", "retr x\r\n", "LIST\r\n", "TYPE I\r\n", "PASV\r\n", "epsv\r\n"]
        {
            assert!(is_harmless_command(line.as_bytes()), "{line:?}");
        }
        for line in [
            "PORT 10,0,0,1,4,5\r\n",
            "RETR x\n",
            "RETR x",
            "RETR x\r\nSTAT\r\n",
            "RETR x\r\r\n",
            "RETR \u{e4}\r\n",
            "RETRO x\r\n",
            "STAT\r\n",
            "EPSV ALL\r\n",
            " RETR x\r\n",
            "\r\n",
            "",
            "RETR x\0\r\n",
            "AUTH TLS\r\n",
            "CWD x\r\n",
            "LIST\rx\r\n",
            "PASV \r\n",
        ] {
            assert!(!is_harmless_command(line.as_bytes()), "{line:?}");
        }
        let long = format!("RETR {}\r\n", "x".repeat(MAX_LINE));
        assert!(!is_harmless_command(long.as_bytes()));
    }

    #[test]
    fn replies_that_fail_announce_or_go_on_are_read() {
        for line in ["226 done\r\n", "150 here\r\n", "200 x\r\n", "213 5\r\n"] {
            assert!(is_harmless_reply(line.as_bytes()), "{line:?}");
        }
        for line in [
            "226-more\r\n",
            "227 x\r\n",
            "229 x\r\n",
            "230 in\r\n",
            "234 go\r\n",
            "550 no\r\n",
            "425 no\r\n",
            "331 x\r\n",
            "226 a\r\n227 b\r\n",
            " 226 x\r\n",
            "226\r\n",
            "226 x\n",
        ] {
            assert!(!is_harmless_reply(line.as_bytes()), "{line:?}");
        }
        assert!(is_announcement(b"227 Entering Passive Mode (1,2,3,4,5,6)\r\n"));
        assert!(!is_announcement(b"227-x\r\n"));
    }
}
