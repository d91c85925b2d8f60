//! Commands: the client's lines.
//!
//! Some lines no FTP client sends: another protocol is in use, whatever the first word is. A browser can be made to send
//! a request whose method is an FTP verb (`USER / HTTP/1.1`), then header lines, then a body that looks like commands. So
//! request lines and header lines are recognised by their form. Free text in FTP is excluded: the argument of `PASS`, and
//! names with blanks.

use super::{Text, text::is_blank};

/// The commands that matter to a gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// `PORT`: the client announces an IPv4 host-port (RFC 959).
    Port,
    /// `EPRT`: the client announces an address and port of any family (RFC 2428).
    Eprt,
    /// `PASV`: asks the server for a 227.
    Pasv,
    /// `EPSV`: asks the server for a 229.
    Epsv,
    /// `EPSV ALL`: the client uses only EPSV from now on (RFC 2428 section 4).
    EpsvAll,
    /// `USER`: starts a login and ends the previous one (RFC 959 section 4.1.1).
    User,
    /// `PASS`, `ACCT`: a further step of a login.
    Login,
    /// `REIN`: ends the login.
    Reinitialize,
    /// `AUTH`: asks for TLS or another security mechanism (RFC 2228, RFC 4217).
    Auth,
    /// `CCC`: returns to plain text (RFC 4217 section 12).
    ClearCommandChannel,
    /// A command that uses a data connection.
    Transfer,
    /// A command whose reply may contain file names or contents: the reply to `STAT` with a directory is a listing.
    Listing,
    /// `NOOP`, `TYPE`, `MODE`, `STRU`, `SYST`: the reply contains nothing that anybody chose but, perhaps, the argument.
    Plain,
    /// `CWD`, `CDUP`, `PWD`, and their forms with X (RFC 775): the reply tells the client's directory.
    Directory,
    /// Another FTP command.
    Other,
    /// Not a command of any FTP specification.
    Unknown,
}

/// One command line.
#[derive(Clone, Copy, Debug)]
pub struct Command<'t> {
    /// The command.
    pub verb: Verb,
    /// The first word of the line.
    pub word: &'t [u8],
    /// The text after the verb, without surrounding blanks.
    pub argument: &'t [u8],
    /// Position of the argument in the text.
    pub argument_start: usize,
}

impl<'t> Command<'t> {
    /// Parses a client's line. `None` for an empty line, which servers ignore.
    pub fn parse(text: &'t Text<'_>) -> Option<Self> {
        let bytes = text.bytes();
        if bytes.is_empty() {
            return None;
        }
        let end = bytes.iter().position(|b| is_blank(*b)).unwrap_or(bytes.len());
        let (verb, rest) = bytes.split_at(end);
        let blanks = rest.iter().position(|b| !is_blank(*b)).unwrap_or(rest.len());
        let argument = &rest[blanks..];
        let argument_start = end + blanks;
        Some(Self { verb: classify(verb, argument), word: verb, argument, argument_start })
    }

    /// Whether `text`, the start of an unfinished line, may become an announcement (of RFC 1639, too) or, with `auth`, a
    /// request for encryption.
    pub fn may_announce(text: &Text<'_>, auth: bool) -> bool {
        let start = text.bytes();
        let verb = &start[..start.len().min(4)];
        let could_be =
            |name: &[u8]| name.len() >= verb.len() && name[..verb.len()].eq_ignore_ascii_case(verb);
        // A fifth byte other than a blank makes it another verb.
        let other_verb = start.get(4).is_some_and(|b| !is_blank(*b));
        let announces = could_be(b"PORT") || could_be(b"EPRT") || could_be(b"LPRT");
        !other_verb && (announces || auth && could_be(b"AUTH"))
    }
}

/// The verbs of RFC 959 and its extensions (RFC 775, 1123, 1639, 2228, 2389, 2428, 2640, 3659, 4217, 7151, and those of
/// common clients and servers), padded with NUL. Text contains no NUL.
#[rustfmt::skip]
fn classify(verb: &[u8], argument: &[u8]) -> Verb {
    let mut name = match *verb {
        [a, b, c, d] => [a, b, c, d],
        [a, b, c] => [a, b, c, 0],
        _ => return Verb::Unknown,
    };
    name.make_ascii_uppercase();
    match &name {
        b"PORT" => Verb::Port,
        b"EPRT" => Verb::Eprt,
        // Some routers change it to `P@SW`; servers accept that.
        b"PASV" | b"P@SW" => Verb::Pasv,
        b"EPSV" if argument.eq_ignore_ascii_case(b"ALL") => Verb::EpsvAll,
        b"EPSV" => Verb::Epsv,
        b"USER" => Verb::User,
        b"PASS" | b"ACCT" => Verb::Login,
        b"REIN" => Verb::Reinitialize,
        b"AUTH" => Verb::Auth,
        b"CCC\0" => Verb::ClearCommandChannel,
        b"APPE" | b"LIST" | b"MLSD" | b"NLST" | b"RETR" | b"STOR" | b"STOU" => Verb::Transfer,
        // Clients pipeline these with other commands, and the replies contain no names.
        b"SITE" if has_first_word(argument, b"CHMOD") || has_first_word(argument, b"UTIME") => Verb::Other,
        // Without an argument the reply names the current directory.
        b"MLST" => Verb::Listing,
        // The reply may contain one line of a file that the server shows. The next line may then belong to that file.
        b"QUIT" => Verb::Listing,
        b"HELP" | b"SITE" | b"STAT" if !argument.is_empty() => Verb::Listing,
        b"MODE" | b"NOOP" | b"STRU" | b"SYST" | b"TYPE" => Verb::Plain,
        b"CDUP" | b"CWD\0" | b"PWD\0" | b"XCUP" | b"XCWD" | b"XPWD" => Verb::Directory,
        b"ABOR" | b"ADAT" | b"ALLO" | b"AVBL" | b"CLNT" | b"CONF" | b"COMB" | b"CSID"
        | b"DELE" | b"DSIZ" | b"ENC\0" | b"ESTA" | b"ESTP" | b"FEAT" | b"HELP"
        | b"HOST" | b"LANG" | b"LPRT" | b"LPSV" | b"MACB" | b"MDTM" | b"MFCT" | b"MFF\0" | b"MFMT"
        | b"MIC\0" | b"MKD\0" | b"OPEN" | b"OPTS" | b"PBSZ" | b"PROT" | b"RANG"
        | b"REST" | b"RMD\0" | b"RNFR" | b"RNTO" | b"SITE" | b"SIZE" | b"SMNT" | b"STAT" | b"XCRC"
        | b"XMKD" | b"XRMD" => Verb::Other,
        _ => Verb::Unknown,
    }
}

fn has_first_word(argument: &[u8], word: &[u8]) -> bool {
    argument
        .split(|byte| *byte == b' ')
        .next()
        .is_some_and(|first| first.eq_ignore_ascii_case(word))
}

impl Command<'_> {
    /// Whether no FTP client sends this line; `first` is set for the client's first line. An unknown word alone does not
    /// show that: programs try words of their own, and a person may type any (`cd..`, `LIST-la`, `?`). The server refuses
    /// them.
    pub fn is_not_ftp(&self, first: bool) -> bool {
        let is_unknown = self.verb == Verb::Unknown;
        is_unknown && (is_of_other_protocol(self.word) || first && is_target(self.argument))
            || memchr::memchr(b' ', self.argument).is_some() && self.is_request_line(first)
    }

    /// Whether the line is `METHOD target NAME/1.1` of a protocol whose requests look like that: three words, the
    /// second of which is a path, an asterisk or an address. A file name with one blank that ends in `HTTP/1.1` matches
    /// if it is absolute. The second word of a `USER` has any form.
    fn is_request_line(&self, first: bool) -> bool {
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

    #[test]
    fn only_prefixes_of_announcing_verbs_may_announce() {
        let may = |start: &[u8]| Command::may_announce(&Text::new(start), false);
        for start in [&b""[..], b"P", b"po", b" EPR", b"PORT", b"eprt |1", b"\xff\xf4PO"] {
            assert!(may(start), "{start:?}");
        }
        for start in [&b"PA"[..], b"POS", b"PORTX", b"A", b"RETR PORT"] {
            assert!(!may(start), "{start:?}");
        }
        assert!(Command::may_announce(&Text::new(b"AU"), true));
    }

    fn is_not_ftp(line: &str, first: bool) -> bool {
        Command::parse(&Text::new(line.as_bytes())).unwrap().is_not_ftp(first)
    }

    #[test]
    fn request_and_header_lines_are_not_ftp_whatever_their_verb() {
        let requests = "USER / HTTP/1.1 | USER x HTTP/1.1 | USER x http/2 | RETR / HTTP/1.1 | stat * HTTP/2 | \
             QUIT http://10.0.0.2:21/ HTTP/1.0 | NOOP rtsp://10.0.0.2/x RTSP/1.0 | HELP sip:a@b SIP/2.0 | \
             OPTS icap://10.0.0.2/x ICAP/1.0 | Host: 10.0.0.2:21 | Connection: keep-alive | Content-Length:4 | \
             {\"a\": 1} | ------WebKitFormBoundary | a=b&c=d | <a> | 229 x (|||3306|) | \u{1}\u{2}";
        for line in requests.split(" | ") {
            assert!(is_not_ftp(line, false), "{line}");
        }
        for line in ["PASS / HTTP/1.1", "GET /", "GET /PORT 10,0,0,2,4,1", "OPTIONS *", "HELO a:b"]
        {
            assert!(is_not_ftp(line, true), "{line}");
        }
    }

    #[test]
    fn lines_of_ftp_clients_are_ftp() {
        let lines = "USER anonymous | USER a b | USER a b/1 | USER / x/1.0 | USER a HTTP/ | PASS / HTTP/1.1 | PASS x: y HTTP/1.1 | \
             RETR notes HTTP/1.1 | STOR a/b HTTP/1.1 notes | CWD /My Music/2020 | STOR /Front Door/1 | RNFR /Scan Job/0001 | \
             CWD C:/Program Files/7 | DELE /Old Files/3.14 | SIZE a:b c/1 | RETR /pub/x HTTP/1.1.txt | SITE CHMOD 755 /x | \
             XSHA512 x | P@SW | MFMT 20200101000000 x | HOST ftp.example.net | HOST [::1] | CLNT a/1.0 | CLNT client 1/1.0 | \
             OPTS UTF8 ON | AUTH TLS | LANG en | WHAT | ? | LIST-la | cd.. | CWD/ | RETR/file | !ls | größe | DIRECTORY | \
             X_1 a | PROPPATCH /";
        for line in lines.split(" | ") {
            assert!(!is_not_ftp(line, false), "{line}");
        }
        // The remainder of a Telnet interrupt.
        assert!(!Command::parse(&Text::new(b"\xf2ABOR")).unwrap().is_not_ftp(false));
    }
}
