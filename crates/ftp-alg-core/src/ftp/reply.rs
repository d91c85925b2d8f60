//! Replies: the server's lines (RFC 959 section 4.2).

use std::num::NonZeroU16;

use serde::{Deserialize, Serialize};

use super::Text;

/// The last line of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The three-digit reply code.
    pub code: u16,
}

impl Reply {
    /// Whether this is a preliminary reply (1yz): another reply follows.
    pub fn is_preliminary(self) -> bool {
        (100..200).contains(&self.code)
    }

    /// Whether this is a completion reply (2yz).
    pub fn is_success(self) -> bool {
        (200..300).contains(&self.code)
    }

    /// Whether the reply reports a failure (4yz or 5yz). RFC 2228's protected replies (6yz) are neither success nor
    /// failure.
    pub fn is_failure(self) -> bool {
        (400..600).contains(&self.code)
    }

    /// Whether this is 50z or 53z: the reply to an unknown command, or to one that needs a login.
    pub fn is_unknown_command(self) -> bool {
        matches!(self.code / 10, 50 | 53)
    }
}

/// Follows multi-line replies, so that text inside one is not taken as a reply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplyTracker {
    /// Code of the unfinished reply plus one, to fit into two bytes.
    open: Option<NonZeroU16>,
}

impl ReplyTracker {
    /// Reads one complete line; returns the reply if this line ends one.
    pub fn read_line(&mut self, text: &Text<'_>) -> Option<Reply> {
        let parsed = parse(text);
        match (self.open_code(), parsed) {
            (None, Some((code, true))) => {
                self.open = NonZeroU16::new(code + 1); // at most 999
                None
            }
            (None, Some((code, false))) => Some(Reply { code }),
            (None, None) => code_without_blank(text).map(|code| Reply { code }),
            (Some(open), Some((code, false))) if open == code => {
                self.open = None;
                Some(Reply { code })
            }
            _ => None,
        }
    }

    /// The reply that `text` would end if no multi-line reply were unfinished.
    pub fn other_end(&self, text: &Text<'_>) -> Option<Reply> {
        self.open?;
        let (code, continues) = parse(text)?;
        (!continues).then_some(Reply { code })
    }

    /// Code of an unfinished multi-line reply.
    pub fn open_code(&self) -> Option<u16> {
        self.open.map(|code| code.get() - 1)
    }

    /// Whether `text`, the start of an unfinished line, may end the reply to an unknown command
    /// ([`Reply::is_unknown_command`]).
    pub fn may_refuse_command(&self, text: &Text<'_>) -> bool {
        let start = text.bytes();
        let is_of_open = |code: u16| {
            Reply { code }.is_unknown_command()
                && code.to_string().as_bytes().starts_with(&start[..start.len().min(3)])
        };
        let may_begin = match start {
            [] | [b'5'] | [b'5', b'0' | b'3'] => true,
            [b'5', b'0' | b'3', digit, rest @ ..] => {
                digit.is_ascii_digit() && rest.first() != Some(&b'-')
            }
            _ => false,
        };
        !text.is_indented() && may_begin && self.open_code().is_none_or(is_of_open)
    }

    /// Whether `text`, the start of an unfinished line, may end a 227 or 229.
    pub fn may_announce(&self, text: &Text<'_>) -> bool {
        if text.is_indented() || self.open_code().is_some_and(|code| code != 227 && code != 229) {
            return false;
        }
        let start = text.bytes();
        let digits = &start[..start.len().min(3)];
        let continues = start.get(3) == Some(&b'-');
        !continues && (b"227".starts_with(digits) || b"229".starts_with(digits))
    }
}

/// The code, and whether more lines of the reply follow.
fn parse(text: &Text<'_>) -> Option<(u16, bool)> {
    let (code, rest) = split_code(text)?;
    match rest.first() {
        None | Some(b' ' | b'\t') => Some((code, false)),
        Some(b'-') => Some((code, true)),
        Some(_) => None,
    }
}

/// The code of a reply that some servers write without a blank behind it (`220VxWorks ready`, `230: ok`). Clients that
/// read only the digits take it for one. Not if it announces an endpoint.
fn code_without_blank(text: &Text<'_>) -> Option<u16> {
    match split_code(text)? {
        (227..=229, _) => None,
        (code @ 100..=599, [b':' | b'A'..=b'Z' | b'a'..=b'z', ..]) => Some(code),
        _ => None,
    }
}

/// The code at the start, and the text behind it. A line with blanks before the code is text: that is how a server
/// marks text that looks like the end of its reply (RFC 959 section 4.2).
fn split_code<'a>(text: &'a Text<'_>) -> Option<(u16, &'a [u8])> {
    let (digits, rest) = text.bytes().split_at_checked(3)?;
    if text.is_indented() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some((digits.iter().fold(0, |n, d| n * 10 + u16::from(d - b'0')), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_prefixes_of_227_and_229_may_announce() {
        let tracker = ReplyTracker::default();
        for (start, may) in
            [(&b"2"[..], true), (b"22", true), (b"229 E", true), (b"227-", false), (b"220", false)]
        {
            assert_eq!(tracker.may_announce(&Text::new(start)), may, "{start:?}");
        }
        let mut inside = ReplyTracker::default();
        inside.read_line(&Text::new(b"211-Status"));
        assert!(!inside.may_announce(&Text::new(b"227 (1")));
    }
}
