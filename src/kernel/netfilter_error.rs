//! Errors of this crate's kernel interface, as an operator needs them.

use std::io;

/// Each message names the object, the reason, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum NetfilterError {
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
        "queue {number} is taken by another program{owner}; if it is ftp-alg, `ftp-alg run --takeover` ends it and \
         continues in its place; otherwise stop it, or set another number in [queue]"
    )]
    QueueTaken {
        number: u16,
        /// ` (name, pid 1234)`, or empty.
        owner: String,
    },
    #[error("{what}: the kernel has no {feature}; {remedy}")]
    FeatureMissing { what: String, feature: &'static str, remedy: &'static str },
    /// A failure that may not occur on the next attempt.
    #[error(
        "table inet ftp_alg cannot be loaded while another program changes the rules: {message}"
    )]
    ConcurrentChange { message: String },
    #[error(
        "table inet ftp_alg is that of another ftp-alg, which reads queue {number}{owner}: stop one of the two, or \
         `ftp-alg run --takeover`: one can serve all control ports"
    )]
    OtherDaemon {
        /// Number of a queue that the table uses.
        number: u16,
        /// ` (name, pid 1234)`, or empty.
        owner: String,
    },
    #[error("{0}")]
    Parameters(String),
    #[error("{what}: {source}")]
    System { what: String, source: io::Error },
}

impl NetfilterError {
    /// The object of errors about rules that queue packets.
    pub const QUEUE_RULES: &str = "queue rules";

    /// Selects the variant for `source`, so that the message says what to do.
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
