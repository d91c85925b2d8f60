//! IP versions, and whether the kernel has legacy iptables tables for them.

use std::{fs, io};

/// The version of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, strum::Display)]
pub enum IpVersion {
    #[strum(to_string = "IPv4")]
    V4,
    #[strum(to_string = "IPv6")]
    V6,
}

impl IpVersion {
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];
}

/// Whether legacy tables are in use. Calling `iptables-legacy` would create them.
pub(super) fn uses_legacy(ip: IpVersion) -> io::Result<bool> {
    let file = match ip {
        IpVersion::V4 => "/proc/thread-self/net/ip_tables_names",
        IpVersion::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    match fs::read_to_string(file) {
        Ok(names) => Ok(!names.trim().is_empty()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
