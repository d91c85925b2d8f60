//! The lab: a client, a gateway and a server in network namespaces, with real FTP software.
//!
//! `ftp-alg demo` and the end-to-end tests stand on it. It knows the product only as a program
//! ([`Daemon`] starts it and asks it things as a user would), so that what it shows is what a user
//! gets. Nothing outside its own namespaces is touched: no sysctl, no firewall, no interface of the
//! machine; everything is removed when the [`Lab`] is dropped, also while unwinding, and by
//! [`remove_everything`] on a signal.
//!
//! ```text
//!   client, client2          gateway           server, third        (masquerade, SNAT pool, routed)
//!   192.168.150.80 ...  --- .1 | 198.51.100.1 --- 198.51.100.10 ...
//!
//!   server                   gateway           client, client2, third    (published server)
//!   192.168.150.90      --- .1 | 198.51.100.1 --- 198.51.100.20 ...
//!
//!   client              gateway           third           far                 server   (both sides)
//!   192.168.150.80 --- .1 | 198.51.100.1 --- 198.51.100.2 | 192.168.160.1 --- .90
//!
//!   server              gateway           far                     client, third            (1:1 NAT)
//!   192.168.150.90 --- .1 | 10.9.0.2 --- 10.9.0.1 | 198.51.100.1 --- 198.51.100.20 ...
//!
//!   gateway, which is the server or the client, and the others outside              (on the host)
//!   198.51.100.1 --- 198.51.100.20 ...
//! ```
//!
//! All have IPv6 as well. One more namespace holds the switches. [`Topology`] is what there is,
//! [`Spec`] what to build.

mod capture;
mod client;
mod daemon;
mod firewall;
mod held_transfer;
mod host;
mod network;
mod process;
mod script;
mod server;
mod topology;

use std::{io, path::PathBuf, time::Duration};

pub use capture::{Capture, CaptureAnalysis, ControlLine};
pub use client::{ClientProgram, Family, Mode, Transfer, Verb};
pub use daemon::Daemon;
pub use firewall::{Admission, FirewallKind, KERNEL_HELPER};
pub use held_transfer::HeldTransfer;
pub use host::Host;
pub use network::{Lab, mount_bpf};
pub use process::{BackgroundProcess, ProgramOutput, remove_everything, scaled_timeout};
pub use script::Script;
pub use server::{Server, ServerKind};
pub use topology::{AddressPlan, DualAddress, LabSpec, SecondRouter, Topology};

/// Why the lab could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// Namespaces need root.
    #[error("the lab builds network namespaces, which needs root: run it with sudo")]
    NotRoot,
    /// Programs are not installed.
    #[error(
        "missing {0}: install them, or run `packaging/provision` (`make demo` does so) as root"
    )]
    Missing(String),
    /// A program could not be started.
    #[error("cannot start {program}: {source}")]
    Start {
        /// The command line.
        program: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A program ended with an error.
    #[error("{program} failed ({status}): {output}")]
    Failed {
        /// The command line.
        program: String,
        /// How it ended.
        status: String,
        /// What it said last.
        output: String,
    },
    /// A program or a condition took too long.
    #[error("{what} took more than {limit:?}: {output}")]
    Timeout {
        /// The command line, or what was waited for.
        what: String,
        /// How long it was given.
        limit: Duration,
        /// What was known by then.
        output: String,
    },
    /// A file of the lab could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The software under test answered with something else than it should.
    #[error("{0}")]
    Unexpected(String),
}

impl LabError {
    /// What becomes of an error with the file at `path`.
    pub fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }
}

/// A result of the lab.
pub type Result<T> = std::result::Result<T, LabError>;

/// What the lab calls, and the Debian package that brings it.
const PROGRAMS: &[(&str, &str)] = &[
    ("ip", "iproute2"),
    ("nsenter", "util-linux"),
    ("nft", "nftables"),
    ("iptables", "iptables"),
    ("conntrack", "conntrack"),
    ("ethtool", "ethtool"),
    ("tshark", "tshark"),
    ("tcpdump", "tcpdump"),
    ("nmap", "nmap"),
    ("curl", "curl"),
    ("wget", "wget"),
    ("lftp", "lftp"),
    ("ncftpget", "ncftp"),
    ("tnftp", "tnftp"),
    ("inetutils-ftp", "inetutils-ftp"),
    ("python3", "python3"),
];

/// Says whether the lab can work here: root, and every program and server present.
pub fn requirements() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Err(LabError::NotRoot);
    }
    let mut missing: Vec<String> = PROGRAMS
        .iter()
        .filter(|(program, _)| process::find_program(program).is_none())
        .map(|(program, package)| format!("{program} (package {package})"))
        .collect();
    missing.extend(
        ServerKind::ALL
            .iter()
            .filter(|kind| !kind.is_installed())
            .map(|kind| format!("{kind} (package {})", kind.package())),
    );
    if missing.is_empty() { Ok(()) } else { Err(LabError::Missing(missing.join(", "))) }
}
