//! Why the kernel's edge could not do its work. Knows no more than what to tell an operator.

use std::io;

/// Each message names the thing, why it failed, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    #[error("{what}: not permitted; run as root, or with CAP_NET_ADMIN and CAP_NET_RAW")]
    NotPermitted { what: String },
    #[error(
        "nft not found in /usr/sbin, /usr/bin and the like; install nftables, which loads the rules"
    )]
    NftMissing,
    #[error(
        "nft refused the rules: {message}; `ftp-alg rules nftables | nft --check --file -` shows \
         where: is it older than nftables 1.0?"
    )]
    RulesRefused { message: String },
    #[error(
        "queue {number} is taken by another program{owner}; stop it, or set another number in \
         [queue]"
    )]
    QueueTaken {
        number: u16,
        /// ` (name, pid 1234)`, or nothing.
        owner: String,
    },
    #[error("{what}: the kernel has no {feature}; {remedy}")]
    FeatureMissing { what: String, feature: &'static str, remedy: &'static str },
    /// What failed may work the next time.
    #[error(
        "table inet ftp_alg cannot be loaded while another program changes the rules: {message}"
    )]
    Disturbed { message: String },
    #[error(
        "table inet ftp_alg is that of another ftp-alg, which reads queue {number}{owner}: stop one of the two; one can \
         serve all control ports"
    )]
    Rival {
        /// A queue that the table puts packets into.
        number: u16,
        /// ` (name, pid 1234)`, or nothing.
        owner: String,
    },
    #[error("{0}")]
    Parameters(String),
    #[error("{what}: {source}")]
    System { what: String, source: io::Error },
}

impl GatewayError {
    /// What a failure is about when packets cannot be queued.
    pub const QUEUE_RULES: &str = "queue rules";

    /// Sorts `source` into the variants that say what to do.
    pub(super) fn system(what: impl Into<String>, source: io::Error) -> Self {
        let what = what.into();
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::NotPermitted { what },
            Some(libc::EPROTONOSUPPORT) => Self::FeatureMissing {
                what,
                feature: "nfnetlink",
                remedy: "load it with `modprobe nfnetlink`",
            },
            _ => Self::System { what, source },
        }
    }
}
