//! The contestants: programs and configurations that can run on the gateway.

use std::path::PathBuf;

/// A contestant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Contestant {
    /// `ftp-alg`: `ours`, another build, `other`, or `conntrack`, `ours` with that back end.
    Daemon {
        /// The name of the build.
        name: &'static str,
        /// The path of the program.
        executable: PathBuf,
        /// Its configuration.
        configuration: String,
    },
    /// `nf_conntrack_ftp` and `nf_nat_ftp`.
    KernelHelper,
    /// A queue with every control packet, whose reader accepts them all; with the kernel's helper if there are
    /// transfers.
    AcceptLoop,
    /// SuSE's ftp-proxy. Clients connect to it instead of the server.
    SuseProxy {
        /// Whether clients acknowledge at once, unlike usual clients. The proxy delays the last reply of a transfer
        /// until the previous reply is acknowledged, which takes 40 ms with delayed acknowledgements.
        hurried: bool,
    },
    /// ProFTPD with mod_proxy. Clients connect to it instead of the server.
    Proftpd,
    /// A firewall that drops by default, without a helper for FTP.
    Firewall,
    /// A firewall that accepts everything, without a helper for FTP.
    NoHelper,
}

impl Contestant {
    /// The name in results and on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Daemon { name, .. } => name,
            Self::KernelHelper => "helper",
            Self::AcceptLoop => "loop",
            Self::SuseProxy { hurried: false } => "suse",
            Self::SuseProxy { hurried: true } => "hurried",
            Self::Proftpd => "proftpd",
            Self::Firewall => "firewall",
            Self::NoHelper => "none",
        }
    }

    /// Whether it is `ftp-alg` with the back end `conntrack`.
    pub fn expects(&self) -> bool {
        self.name() == "conntrack"
    }

    /// The title in the table.
    pub fn title(&self) -> &'static str {
        match self {
            Self::Daemon { name, .. } => name,
            Self::KernelHelper => "kernel helper",
            Self::AcceptLoop => "C loop",
            Self::SuseProxy { hurried: false } => "SuSE ftp-proxy",
            Self::SuseProxy { hurried: true } => "SuSE ftp-proxy, hurried",
            Self::Proftpd => "ProFTPD mod_proxy",
            Self::Firewall => "firewall alone",
            Self::NoHelper => "no helper",
        }
    }
}
