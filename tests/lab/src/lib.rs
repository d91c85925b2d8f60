//! The lab: a client, a gateway and a server in network namespaces, with real FTP software.
//!
//! `ftp-alg demo` and the end-to-end tests use it. The lab knows the product only as a program: [`Daemon`] starts it
//! and sends requests as a user would. So the results are those that a user gets.
//!
//! Invariants:
//! - The lab changes nothing outside its own namespaces: no sysctl, no firewall and no interface of the machine.
//! - Dropping the [`Lab`] removes everything, also during a panic. On a signal, [`remove_everything`] does it, because
//!   a signal does not unwind the stack.
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
//! All hosts also have IPv6. One more namespace has the switches. [`Topology`] lists the topologies, and [`LabSpec`]
//! describes a lab to build.

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
mod unpacked;
mod wait;

use std::{io, path::PathBuf, time::Duration};

pub use capture::{Capture, CaptureAnalysis, ControlLine};
pub use client::{ClientProgram, ClientTls, Family, Mode, Transfer, Verb};
pub use daemon::Daemon;
pub use firewall::{Admission, FirewallKind, KERNEL_HELPER};
pub use held_transfer::HeldClient;
pub use host::Host;
pub use network::{Lab, has_tcx, mount_bpf};
pub use process::{BackgroundProcess, ProgramOutput, remove_everything, scaled_timeout};
pub use script::Script;
pub use server::{Server, ServerKind, ServerTls};
pub use topology::{AddressPlan, DualAddress, LabSpec, SecondRouter, Topology};
pub use unpacked::{UnpackedProgram, with_programs};
pub use wait::{wait_at_most, wait_for};

/// An error of the lab or of a program in it.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The user is not root, who is needed to make namespaces.
    #[error("the lab needs root to make network namespaces: run it with sudo")]
    NotRoot,
    /// Programs are not installed.
    #[error(
        "missing programs: {0}: install them, or run `packaging/provision` as root (`make demo` does so)"
    )]
    Missing(String),
    /// A program could not be started.
    #[error("cannot start {program}: {source}")]
    Start {
        /// The command line.
        program: String,
        /// The error of the system.
        source: io::Error,
    },
    /// A program failed.
    #[error("{program} failed ({status}): {output}")]
    Failed {
        /// The command line.
        program: String,
        /// The exit status.
        status: String,
        /// The last lines of the output.
        output: String,
    },
    /// A program or a condition took too long.
    #[error("{what} took more than {limit:?}: {output}")]
    Timeout {
        /// The command line or the condition.
        what: String,
        /// The time limit.
        limit: Duration,
        /// The state at the time limit.
        output: String,
    },
    /// A file of the lab could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The software under test gave a wrong result.
    #[error("{0}")]
    Unexpected(String),
}

impl LabError {
    /// A function that makes a lab error of an I/O error with the file at `path`.
    pub fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }
}

/// A result of the lab.
pub type Result<T> = std::result::Result<T, LabError>;

/// The programs that the lab runs, and their Debian packages.
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
    ("openssl", "openssl"),
    ("curl", "curl"),
    ("wget", "wget"),
    ("lftp", "lftp"),
    ("ncftpget", "ncftp"),
    ("tnftp", "tnftp"),
    ("inetutils-ftp", "inetutils-ftp"),
    ("python3", "python3"),
];

/// Checks whether the lab can run: the user is root, and all programs and servers are installed.
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
            .filter(|kind| !kind.program().exists())
            .map(|kind| format!("{kind} (package {})", kind.package())),
    );
    if missing.is_empty() { Ok(()) } else { Err(LabError::Missing(missing.join(", "))) }
}
