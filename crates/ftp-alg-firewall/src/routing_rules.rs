//! Rules of policy routing (`ip rule`) that compare the packet mark.

use std::fmt;

use super::model::{Comparison, Field};

/// A rule that compares the packet mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoutingRule {
    /// The priority, by which `ip rule` names the rule.
    pub priority: u32,
    /// The mark under `mask`.
    pub mark: u32,
    /// The bits that are compared.
    pub mask: u32,
    /// Whether the rule applies to all other packets (`not`).
    pub is_inverted: bool,
}

impl RoutingRule {
    /// The comparison of the packet mark.
    pub(crate) fn comparison(&self) -> Comparison {
        Comparison {
            field: Field::PacketMark,
            mask: self.mask,
            ranges: [(self.mark, self.mark)].into(),
            negated: self.is_inverted,
        }
    }
}

impl fmt::Display for RoutingRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { priority, mark, mask, is_inverted } = self;
        let not = if *is_inverted { "not " } else { "" };
        write!(f, "{priority}: {not}fwmark {mark:#x}")?;
        if *mask == u32::MAX { Ok(()) } else { write!(f, "/{mask:#x}") }
    }
}

#[cfg(test)]
impl RoutingRule {
    pub(crate) fn sample(mark: u32, mask: u32, is_inverted: bool) -> Self {
        Self { priority: 100, mark, mask, is_inverted }
    }
}
