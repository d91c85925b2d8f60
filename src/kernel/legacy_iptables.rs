//! Whether the kernel has tables of legacy iptables.

use std::{fs, io};

use ftp_alg_firewall::IpVersion;

const MODULES: &str = "/proc/modules";

/// Whether legacy tables are in use. Calling `iptables-legacy` would create them.
pub(super) fn uses_legacy(ip: IpVersion) -> io::Result<bool> {
    let file = match ip {
        IpVersion::V4 => "/proc/thread-self/net/ip_tables_names",
        IpVersion::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    match fs::read_to_string(file) {
        Ok(names) => Ok(!names.trim().is_empty()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        // It is root's alone, and with the package's unit the daemon is not root. systemd loads ip_tables at each boot.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let modules = fs::read_to_string(MODULES).unwrap_or_default();
            if lacks_tables(ip, &modules) { Ok(false) } else { Err(error) }
        }
        Err(error) => Err(error),
    }
}

/// Whether the tables of legacy iptables are modules, of which none is loaded, according to the text of
/// `/proc/modules`.
fn lacks_tables(ip: IpVersion, modules: &str) -> bool {
    let (core, table) = match ip {
        IpVersion::V4 => ("ip_tables", "iptable_"),
        IpVersion::V6 => ("ip6_tables", "ip6table_"),
    };
    let mut names = modules.lines().filter_map(|line| line.split(' ').next());
    // A table that is built in needs this to be built in.
    names.clone().any(|name| name == core) && !names.any(|name| name.starts_with(table))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_the_module_of_a_table_no_legacy_table_is_in_use() {
        let booted = "nft_compat 20480 2 - Live 0x0\nx_tables 65536 2 nft_compat,ip_tables, Live 0x0\n\
                      ip_tables 36864 0 - Live 0x0\n";
        let nat = "iptable_nat 12288 1 - Live 0x0\n";
        for (modules, lacks) in [
            (booted.to_owned(), [true, false]),
            (format!("{booted}ip6_tables 36864 0 - Live 0x0\n"), [true, true]),
            (format!("{booted}{nat}"), [false, false]),
            (
                format!("{booted}ip6_tables 36864 0 - Live\nip6table_raw 1 0 - Live\n"),
                [true, false],
            ),
            // Built in, or without modules: nobody knows.
            (nat.to_owned(), [false, false]),
            (String::new(), [false, false]),
        ] {
            assert_eq!(IpVersion::BOTH.map(|ip| lacks_tables(ip, &modules)), lacks, "{modules}");
        }
    }
}
