//! The capabilities of this thread.

use std::fs;

// From linux/capability.h.
pub(in crate::kernel) const CAP_NET_ADMIN: u32 = 12;
pub(in crate::kernel) const CAP_NET_RAW: u32 = 13;

/// Whether this thread has a capability.
pub(in crate::kernel) fn has_capability(capability: u32) -> bool {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok())
        .is_some_and(|effective| effective & 1 << capability != 0)
}
