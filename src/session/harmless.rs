//! Lines that concern no gateway, told by their form alone.
//!
//! What is told apart here is told apart by the packet selection as well, with the same tables: a payload
//! that is exactly one line of printable ASCII and CR LF. Everything else waits until it is read, so that nothing can
//! hide: no second line, no line that is cut, no Telnet command, no NUL.
//!
//! Segments may overlap, and a server may then read pieces of several. A command's only blank stands behind its verb,
//! so that no pieces of harmless commands, in whatever order, make up one with an argument and another verb.

/// The longest line that is told by its form, CR LF included.
pub const MAX_LINE: usize = 128;
/// The shortest: four characters and CR LF.
pub const MIN_LINE: usize = 6;

/// Commands that open, move or encrypt nothing by themselves, in lower case. One blank and an argument
/// without blanks may follow.
pub const COMMANDS: [[u8; 4]; 13] = [
    *b"retr", *b"stor", *b"appe", *b"list", *b"nlst", *b"mlsd", *b"rest", *b"type", *b"size",
    *b"mdtm", *b"noop", *b"pasv", *b"epsv",
];

/// First digits of replies (RFC 959 section 4.2).
pub const REPLIES: [u8; 5] = *b"12345";

/// Replies that announce, and may have to be changed.
pub const ANNOUNCING: [[u8; 4]; 2] = [*b"227 ", *b"229 "];

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

/// Whether `payload` is one command of [`COMMANDS`].
pub fn is_harmless_command(payload: &[u8]) -> bool {
    is_plain(payload)
        && COMMANDS.contains(&first_four(payload).map(|b| b | 0x20))
        && (payload.len() == MIN_LINE || payload[4] == b' ' && !payload[5..].contains(&b' '))
}

/// Whether `payload` is one reply, of one line, that announces nothing.
pub fn is_harmless_reply(payload: &[u8]) -> bool {
    let code = first_four(payload);
    is_plain(payload)
        && REPLIES.contains(&code[0])
        && code[3] == b' '
        && !ANNOUNCING.contains(&code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_single_lines_of_plain_text_are_harmless() {
        for line in
            ["RETR a,b\r\n", "retr x\r\n", "LIST\r\n", "TYPE I\r\n", "PASV\r\n", "epsv 1\r\n"]
        {
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
            "CWD x\r\n",
            "LIST\rx\r\n",
        ] {
            assert!(!is_harmless_command(line.as_bytes()), "{line:?}");
        }
        let long = format!("RETR {}\r\n", "x".repeat(MAX_LINE));
        assert!(!is_harmless_command(long.as_bytes()));
    }

    #[test]
    fn replies_that_announce_or_go_on_are_read() {
        for line in ["226 done\r\n", "150 here\r\n", "550 no\r\n", "230 in\r\n"] {
            assert!(is_harmless_reply(line.as_bytes()), "{line:?}");
        }
        for line in [
            "226-more\r\n",
            "227 x\r\n",
            "229 x\r\n",
            "000 x\r\n",
            "627 x\r\n",
            "226 a\r\n227 b\r\n",
            " 226 x\r\n",
            "226\r\n",
            "226 x\n",
        ] {
            assert!(!is_harmless_reply(line.as_bytes()), "{line:?}");
        }
    }
}
