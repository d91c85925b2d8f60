//! What rules write into the ct mark and the packet mark.

/// A write into a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MarkWrite {
    pub(crate) target: MarkTarget,
    /// The bits that may change.
    pub(crate) bits: u32,
    /// The bits of the packet mark that come from the ct mark.
    pub(crate) restored: u32,
    pub(crate) value: WrittenMark,
}

/// The mark that a rule writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MarkTarget {
    CtMark,
    PacketMark,
}

/// What a rule writes into a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WrittenMark {
    Constant(u32),
    /// The same bits of the other mark.
    OtherMark,
    Unknown,
}

/// The bits of the marks that rules of others may change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ChangedMarkBits {
    pub(crate) ct_mark: u32,
    pub(crate) mark: u32,
    /// Those of the packet mark that are set from the ct mark.
    pub(crate) restored: u32,
}

impl ChangedMarkBits {
    /// Adds what `write` changes.
    pub(crate) fn add(&mut self, write: &MarkWrite) {
        match write.target {
            MarkTarget::CtMark => self.ct_mark |= write.bits,
            MarkTarget::PacketMark => self.mark |= write.bits,
        }
        self.restored |= write.restored;
    }
}
