//! How a rewritten announcement keeps its length.

use serde::{Deserialize, Serialize};

/// By what a rewritten announcement may keep its length (docs/studies/lengths.md).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Padding {
    /// Nothing: the length may change.
    #[default]
    None,
    /// Blanks in a 227, and another external port in a `PORT`.
    Blanks,
    /// In a `PORT` also leading zeros, up to four digits in each number of its port. Only for a server that is known to
    /// read them as decimal: others take such a number for octal.
    Zeros,
}

/// Servers that read numbers of any length in a `PORT` as decimal, by the start of their greeting text
/// (docs/studies/lengths.md).
const DECIMAL_GREETINGS: [&[u8]; 5] = [
    b"(vsFTPd ",
    b"ProFTPD ",
    b"--------- Welcome to Pure-FTPd",
    b"FileZilla Server",
    b"pyftpdlib ",
];

impl Padding {
    /// Whether `line`, of a greeting, names a server that reads leading zeros as decimal.
    pub fn accepts_zeros(line: &[u8]) -> bool {
        let text = line.strip_prefix(b"220").and_then(|rest| rest.get(1..)).unwrap_or_default();
        DECIMAL_GREETINGS.iter().any(|name| text.starts_with(name))
    }

    /// Maximum number of digits to pad a number to; 0 if the length may change.
    pub fn digits(self) -> usize {
        match self {
            Self::None => 0,
            Self::Blanks => 1,
            Self::Zeros => 4,
        }
    }

    /// The padding to this many digits.
    pub fn from_digits(digits: usize) -> Self {
        match digits {
            0 => Self::None,
            1 => Self::Blanks,
            _ => Self::Zeros,
        }
    }

    /// Length of the longest port in this form.
    pub(super) fn longest(self) -> usize {
        2 * self.digits().max(3) + 1
    }
}
