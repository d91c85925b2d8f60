//! The contestants: what can be put on the gateway.

use std::path::PathBuf;

/// What is measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Contestant {
    /// `ftp-alg`: `ours`, `one-worker`, `flowtable`, or another build, `other`.
    Daemon {
        /// Which of them.
        name: &'static str,
        /// The program.
        executable: PathBuf,
        /// Its configuration.
        configuration: String,
    },
    /// `nf_conntrack_ftp` and `nf_nat_ftp`.
    KernelHelper,
    /// Every control packet through a queue whose reader accepts all; the kernel's helper beside it where there are
    /// transfers.
    AcceptLoop,
    /// SuSE's ftp-proxy, dialled in the server's place.
    SuseProxy {
        /// Whether its clients acknowledge at once, as clients usually do not. It lets the last
        /// reply of a transfer wait for the acknowledgement of the one before, for 40 ms.
        hurried: bool,
    },
    /// ProFTPD with mod_proxy, likewise.
    Proftpd,
    /// The firewall that drops by default, and nothing that reads FTP.
    Firewall,
    /// Nothing that reads FTP, and nothing dropped.
    NoHelper,
}

impl Contestant {
    /// The name of `ftp-alg` with one worker.
    pub const ONE_WORKER: &str = "one-worker";
    /// The name of `ftp-alg` beside its recipe for flowtables.
    pub const FLOWTABLE: &str = "flowtable";

    /// Its name in the table and on the command line.
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

    /// What the table calls it.
    pub fn title(&self) -> &'static str {
        match self {
            Self::Daemon { name: Self::ONE_WORKER, .. } => "ours, one worker",
            Self::Daemon { name: Self::FLOWTABLE, .. } => "ours, flowtable",
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
