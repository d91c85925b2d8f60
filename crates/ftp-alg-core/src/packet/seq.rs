//! Sequence numbers, modulo 2^32 (RFC 9293 section 3.4).

use std::ops::{Add, Sub};

use serde::{Deserialize, Serialize};

/// A TCP sequence number. Comparisons hold for numbers less than 2^31 apart. Peers choose these numbers, so no
/// operation can panic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Seq(pub u32);

impl Seq {
    /// Whether `self` is before `other`.
    pub fn is_before(self, other: Self) -> bool {
        self.distance_from(other) < 0
    }

    /// Whether `self` is after `other`.
    pub fn is_after(self, other: Self) -> bool {
        self.distance_from(other) > 0
    }

    /// Distance from `other` to `self`; negative if `self` is before it.
    pub fn distance_from(self, other: Self) -> i32 {
        self.0.wrapping_sub(other.0).cast_signed()
    }

    /// The later of the two.
    pub fn max(self, other: Self) -> Self {
        if other.is_after(self) { other } else { self }
    }

    /// The earlier of the two.
    pub fn min(self, other: Self) -> Self {
        if other.is_before(self) { other } else { self }
    }
}

impl Add<u32> for Seq {
    type Output = Self;

    fn add(self, n: u32) -> Self {
        Self(self.0.wrapping_add(n))
    }
}

impl Sub<u32> for Seq {
    type Output = Self;

    fn sub(self, n: u32) -> Self {
        Self(self.0.wrapping_sub(n))
    }
}

/// Number of bytes from `other` to `self`, modulo 2^32.
impl Sub for Seq {
    type Output = u32;

    fn sub(self, other: Self) -> u32 {
        self.0.wrapping_sub(other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequence_numbers_are_ordered_across_the_wrap() {
        let last = Seq(u32::MAX);
        assert!((last + 1).is_after(last) && last.is_before(last + 1));
        assert_eq!((last + 6) - last, 6);
        assert_eq!((last + 3).distance_from(last + 5), -2);
        assert_eq!(last.max(Seq(2)), Seq(2));
        assert_eq!(last.min(Seq(2)), last);
    }
}
