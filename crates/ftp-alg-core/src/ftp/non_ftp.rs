//! Lines that no FTP client sends: another protocol is in use, whatever the first word is.
//!
//! A browser can be made to send a request whose method is an FTP verb (`USER / HTTP/1.1`), then header lines, then a
//! body that looks like commands. So request lines and header lines are recognised by their form. Free text in FTP is
//! excluded: the argument of `PASS`, and names with blanks.

use super::{Command, Verb};

/// The longest verb of any known extension has seven characters (`XSHA512`).
const LONGEST_VERB: usize = 8;

impl Command<'_> {
    /// Whether no FTP client sends this line; `first` is set for the client's first line.
    pub fn is_not_ftp(&self, first: bool) -> bool {
        self.verb == Verb::Unknown && !is_verb(self.word)
            || self.is_request_line(first)
            || first && self.verb == Verb::Unknown && is_target(self.argument)
    }

    /// Whether no FTP client sends this line after others, and after a login if `is_logged_in`: from then on a person may
    /// type any word (`cd..`, `LIST-la`, `?`), which the server refuses.
    pub fn is_not_ftp_after(&self, is_logged_in: bool) -> bool {
        self.is_not_ftp(false)
            && (!is_logged_in || self.is_request_line(false) || is_of_other_protocol(self.word))
    }

    /// Whether the line is `METHOD target NAME/1.1` of a protocol whose requests look like that: three words, the
    /// second of which is a path, an asterisk or an address. A file name with one blank that ends in `HTTP/1.1` matches
    /// if it is absolute. The second word of a `USER` has any form.
    fn is_request_line(&self, first: bool) -> bool {
        if memchr::memchr(b' ', self.argument).is_none() {
            return false; // most have one word or none
        }
        let mut words = self.argument.split(|byte| *byte == b' ');
        let (Some(target), Some(version), None) = (words.next(), words.next(), words.next()) else {
            return false;
        };
        is_version(version)
            && match self.verb {
                Verb::Login => first,
                Verb::User => true,
                _ => is_target(target),
            }
    }
}

/// Whether `argument` starts like the target of a request.
fn is_target(argument: &[u8]) -> bool {
    argument.starts_with(b"/") || argument == b"*" || argument.contains(&b':')
}

/// Whether `word` has only letters and digits, at most as many as a verb. Parts of a Telnet interrupt may precede them.
fn is_verb(word: &[u8]) -> bool {
    let telnet = word.iter().take_while(|byte| **byte >= 0xf0).count();
    let word = &word[telnet..];
    // A line that we crossed out because it was too long says nothing about the client.
    let is_crossed_out = word.iter().all(|byte| *byte == b'X');
    is_crossed_out
        || word.len() <= LONGEST_VERB
            && word.first().is_some_and(u8::is_ascii_alphabetic)
            && word.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'@') // P@SW
}

/// Whether `word` begins a header line, a reply, a form, JSON, XML, or binary data.
fn is_of_other_protocol(word: &[u8]) -> bool {
    let begins = |byte: &u8| byte.is_ascii_digit() || byte.is_ascii_control() || *byte == b'-';
    word.first().is_none_or(begins) || word.iter().any(|byte| b":={}<>&\"".contains(byte))
}

/// The protocols whose request lines end with their name and version (RFC 9112, 7826, 3261, 3507). Names of folders and
/// files may end in the same form, as in `/My Music/2020`.
const PROTOCOLS: [&[u8]; 4] = [b"HTTP", b"RTSP", b"SIP", b"ICAP"];

/// Whether `word` is the version of one of the [`PROTOCOLS`], such as `HTTP/1.1`.
fn is_version(word: &[u8]) -> bool {
    let Some(slash) = word.iter().position(|byte| *byte == b'/') else { return false };
    let (name, number) = (&word[..slash], &word[slash + 1..]);
    let digits = |part: &[u8]| !part.is_empty() && part.iter().all(u8::is_ascii_digit);
    let mut parts = number.split(|byte| *byte == b'.');
    PROTOCOLS.iter().any(|protocol| name.eq_ignore_ascii_case(protocol))
        && parts.next().is_some_and(digits)
        && parts.next().is_none_or(digits)
        && parts.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ftp::Text;

    fn is_not_ftp(line: &str, first: bool) -> bool {
        Command::parse(&Text::new(line.as_bytes())).unwrap().is_not_ftp(first)
    }

    #[test]
    fn request_and_header_lines_are_not_ftp_whatever_their_verb() {
        for line in [
            "USER / HTTP/1.1",
            "USER x HTTP/1.1",
            "USER x http/2",
            "RETR / HTTP/1.1",
            "stat * HTTP/2",
            "QUIT http://10.0.0.2:21/ HTTP/1.0",
            "NOOP rtsp://10.0.0.2/x RTSP/1.0",
            "HELP sip:a@b SIP/2.0",
            "OPTS icap://10.0.0.2/x ICAP/1.0",
            "Host: 10.0.0.2:21",
            "Connection: keep-alive",
            "Content-Length:4",
            "{\"a\": 1}",
            "------WebKitFormBoundary",
            "a=b&c=d",
            "229 x (|||3306|)",
            "PROPPATCH /",
            "\u{1}\u{2}",
        ] {
            assert!(is_not_ftp(line, false), "{line}");
        }
        for line in ["PASS / HTTP/1.1", "GET /", "GET /PORT 10,0,0,2,4,1", "OPTIONS *", "HELO a:b"]
        {
            assert!(is_not_ftp(line, true), "{line}");
        }
    }

    #[test]
    fn after_a_login_a_person_may_type_any_word() {
        let is_not_ftp_after = |line: &str, is_logged_in| {
            Command::parse(&Text::new(line.as_bytes())).unwrap().is_not_ftp_after(is_logged_in)
        };
        for line in
            ["?", "LIST-la", "cd..", "CWD/", "RETR/file", "!ls", "größe", "DIRECTORY", "X_1 a"]
        {
            assert!(is_not_ftp_after(line, false), "{line}");
            assert!(!is_not_ftp_after(line, true), "{line}");
        }
        for line in [
            "USER / HTTP/1.1",
            "Host: 10.0.0.2:21",
            "{\"a\": 1}",
            "------WebKitFormBoundary",
            "a=b&c=d",
            "<a>",
            "229 x (|||3306|)",
            "\u{1}\u{2}",
        ] {
            assert!(is_not_ftp_after(line, true), "{line}");
        }
    }

    #[test]
    fn lines_of_ftp_clients_are_ftp() {
        for line in [
            "USER anonymous",
            "USER a b",
            "USER a b/1",
            "USER / x/1.0",
            "USER a HTTP/",
            "PASS / HTTP/1.1",
            "PASS x: y HTTP/1.1",
            "RETR notes HTTP/1.1",
            "STOR a/b HTTP/1.1 notes",
            "CWD /My Music/2020",
            "STOR /Front Door/1",
            "RNFR /Scan Job/0001",
            "CWD C:/Program Files/7",
            "DELE /Old Files/3.14",
            "SIZE a:b c/1",
            "RETR /pub/x HTTP/1.1.txt",
            "SITE CHMOD 755 /x",
            "XSHA512 x",
            "P@SW",
            "MFMT 20200101000000 x",
            "HOST ftp.example.net",
            "HOST [::1]",
            "CLNT a/1.0",
            "CLNT client 1/1.0",
            "OPTS UTF8 ON",
            "AUTH TLS",
            "LANG en",
            "WHAT",
        ] {
            assert!(!is_not_ftp(line, false), "{line}");
        }
        // The remainder of a Telnet interrupt.
        assert!(!Command::parse(&Text::new(b"\xf2ABOR")).unwrap().is_not_ftp(false));
    }
}
