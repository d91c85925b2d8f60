//! Whether the kernel has tables of legacy iptables.

use std::{fs, io};

use ftp_alg_firewall::IpVersion;

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
