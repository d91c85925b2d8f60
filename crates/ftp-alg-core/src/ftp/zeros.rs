//! Zeros before the numbers of a port, by which a rewritten `PORT` keeps its length.

use serde::{Deserialize, Serialize};

/// How a rewritten `PORT` keeps its length: by zeros before both numbers of its port, so that each has so many digits at most
/// (docs/studies/lengths.md).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Zeros {
    /// It need not.
    #[default]
    None,
    /// As every server reads them.
    Three,
    /// As servers of well-known names read them.
    Four,
}

impl Zeros {
    /// The most digits of each number; 0 without zeros.
    pub fn digits(self) -> usize {
        match self {
            Self::None => 0,
            Self::Three => 3,
            Self::Four => 4,
        }
    }

    /// Those with so many digits at most; none unless servers take as many.
    pub fn of_digits(digits: usize) -> Self {
        match digits {
            3 => Self::Three,
            4 => Self::Four,
            _ => Self::None,
        }
    }

    /// The longest port that is written so.
    pub(super) fn longest(self) -> usize {
        2 * self.digits().max(3) + 1
    }
}
