//! Why the kernel's edge could not do its work. Knows no more than what to tell an operator.

use std::io;

/// Each message names the thing, why it failed, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The process lacks a capability.
    #[error("{what}: not permitted; run as root, or with CAP_NET_ADMIN and CAP_NET_RAW")]
    NotPermitted {
        /// What was asked for.
        what: String,
    },
    /// The program `nft` is not there.
    #[error(
        "nft not found in /usr/sbin, /usr/bin and the like; install nftables, which loads the rules"
    )]
    NftMissing,
    /// `nft` did not load our rules.
    #[error(
        "nft refused the rules: {message}; `ftp-alg rules nftables | nft --check --file -` shows \
         where: is it older than nftables 1.0?"
    )]
    RulesRefused {
        /// What nft printed.
        message: String,
    },
    /// Someone else reads our queue.
    #[error(
        "queue {number} is taken by another program{owner}; stop it, or set another number in \
         [queue]"
    )]
    QueueTaken {
        /// The queue's number.
        number: u16,
        /// ` (name, pid 1234)`, or nothing.
        owner: String,
    },
    /// The kernel was built without something, or its module is missing.
    #[error("{what}: the kernel has no {feature}; {remedy}")]
    FeatureMissing {
        /// What was asked for.
        what: String,
        /// What the kernel lacks.
        feature: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// Another program changed the rules at the same moment; what failed may work the next time.
    #[error(
        "table inet ftp_alg cannot be loaded while another program changes the rules: {message}"
    )]
    Disturbed {
        /// What failed at last.
        message: String,
    },
    /// Another daemon's table is loaded, and that daemon runs.
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
    /// The rules cannot be made with these values.
    #[error("{0}")]
    Parameters(String),
    /// Anything else that the system answered.
    #[error("{what}: {source}")]
    System {
        /// What was asked for.
        what: String,
        /// The system's answer.
        source: io::Error,
    },
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
