//! Leading zeros of port numbers, by which a rewritten `PORT` keeps its length.

use serde::{Deserialize, Serialize};

/// How many leading zeros a rewritten `PORT` may have to keep its length. Both numbers of its port are padded to at
/// most this many digits (docs/studies/lengths.md).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ZeroPadding {
    /// No zeros: the length may change.
    #[default]
    None,
    /// Three digits, which every server accepts.
    Three,
    /// Four digits, which servers with certain greetings accept.
    Four,
}

/// Servers that read numbers of any length in a `PORT`, by the start of their greeting text (docs/studies/lengths.md).
const TOLERANT_GREETINGS: [&[u8]; 5] = [
    b"(vsFTPd ",
    b"ProFTPD ",
    b"--------- Welcome to Pure-FTPd",
    b"FileZilla Server",
    b"pyftpdlib ",
];

impl ZeroPadding {
    /// Whether `line`, of a greeting, names a server that accepts four digits.
    pub fn accepts_four(line: &[u8]) -> bool {
        let text = line.strip_prefix(b"220").and_then(|rest| rest.get(1..)).unwrap_or_default();
        TOLERANT_GREETINGS.iter().any(|name| text.starts_with(name))
    }

    /// Maximum number of digits; 0 without zeros.
    pub fn digits(self) -> usize {
        match self {
            Self::None => 0,
            Self::Three => 3,
            Self::Four => 4,
        }
    }

    /// The setting for at most this many digits; `None` unless servers accept as many.
    pub fn from_digits(digits: usize) -> Self {
        match digits {
            3 => Self::Three,
            4 => Self::Four,
            _ => Self::None,
        }
    }

    /// Length of the longest port in this form.
    pub(super) fn longest(self) -> usize {
        2 * self.digits().max(3) + 1
    }
}
