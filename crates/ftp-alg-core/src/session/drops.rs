//! Drop reasons: why a packet was dropped. `ftp-alg status` and docs/counters.md use the same names.

use std::fmt;

/// Why a packet was dropped. Its sender retransmits it if the receiver still needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum DropReason {
    /// An earlier segment is missing, and the reorder queue cannot hold this one, or has held it too long.
    OutOfOrder,
    /// The sequence number is too far from the next expected one.
    OutOfWindow,
    /// The segment overlaps data that arrived while it was in the reorder queue.
    Overlap,
    /// A limit of unacknowledged rewrites or unacknowledged data is reached.
    LimitReached,
    /// Packets of the connection may have passed unread, and the server has not yet shown which bytes it has.
    Unacknowledged,
    /// Data after a FIN.
    AfterFin,
    /// The gateway reset the connection because of a limit.
    SessionEnded,
    /// The super-packet was split; its segments are injected in its place.
    Resegmented,
    /// The kernel refused a change that must take effect before the packet is forwarded.
    KernelRefused,
    /// Other packets of the connection may have passed unread while this one was queued.
    Stale,
    /// The session waits for the kernel, and too many packets wait behind it.
    Overflow,
    /// The packet has the client's address, but arrived where no route to the client leads.
    Elsewhere,
}

impl DropReason {
    /// Every drop reason.
    pub const ALL: [Self; 12] = [
        Self::OutOfOrder,
        Self::OutOfWindow,
        Self::Overlap,
        Self::LimitReached,
        Self::Unacknowledged,
        Self::AfterFin,
        Self::SessionEnded,
        Self::Resegmented,
        Self::KernelRefused,
        Self::Stale,
        Self::Overflow,
        Self::Elsewhere,
    ];

    /// Name in `ftp-alg status`.
    pub fn name(self) -> &'static str {
        match self {
            Self::OutOfOrder => "out_of_order",
            Self::OutOfWindow => "out_of_window",
            Self::Overlap => "overlap",
            Self::LimitReached => "limit_reached",
            Self::Unacknowledged => "unacknowledged",
            Self::AfterFin => "after_fin",
            Self::SessionEnded => "session_ended",
            Self::Resegmented => "resegmented",
            Self::KernelRefused => "kernel_refused",
            Self::Stale => "stale",
            Self::Overflow => "overflow",
            Self::Elsewhere => "elsewhere",
        }
    }
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
