//! Why packets are dropped, by names that `ftp-alg status` has.

use std::fmt;

/// Why a packet was dropped. TCP retransmits what its receiver still needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum DropReason {
    /// Its predecessors have not arrived, and it may not wait for them any longer.
    OutOfOrder,
    /// Its sequence number is too far from the next one.
    OutOfWindow,
    /// It overlaps what arrived while it waited in the reorder queue.
    Overlap,
    /// The connection has as many unacknowledged rewrites, or as much unacknowledged data, as it may.
    LimitReached,
    /// Packets of its connection may have passed unread, and the server has not said yet what it has.
    Unacknowledged,
    /// Data after a FIN.
    AfterFin,
    /// The connection was ended at a limit.
    SessionEnded,
    /// Its segments are injected one by one in its place.
    Resegmented,
    /// The kernel refused what must be in effect before it goes on.
    KernelRefused,
    /// Others of its connection may have passed unread while it was queued.
    Stale,
    /// Its session waits for the kernel, and too many packets wait with it.
    Overflow,
}

impl DropReason {
    /// All of them.
    pub const ALL: [Self; 11] = [
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
    ];

    /// Its name in `ftp-alg status`.
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
        }
    }
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
