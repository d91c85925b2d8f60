//! The placement: on which cores the processes of a measurement run.

use std::{env, path::PathBuf, process::Command};

use ftp_alg_lab::{LabError, Result};

/// The placement of client, server and gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// The kernel chooses the cores, as for users.
    Free,
    /// All on the first core.
    Together,
    /// Client and server on the first core, the gateway's program on the second.
    Apart,
}

impl Placement {
    /// The program that a host runs: this one, or `taskset`, which starts this one on a core.
    pub fn program(self) -> PathBuf {
        match self {
            Self::Free => own_program(),
            _ => "taskset".into(),
        }
    }

    /// The placement of so many clients and their server. A single client that moves between idle cores would measure how
    /// long they take to wake.
    pub fn for_clients(self, clients: Option<usize>) -> Self {
        if (self, clients) == (Self::Free, Some(1)) { Self::Apart } else { self }
    }

    /// Adds the arguments that start this program in a role. `command` runs [`Placement::program`].
    pub fn traffic_command(self, mut command: Command, role: &[&str]) -> Command {
        if self != Self::Free {
            command.args(["-c", "0"]).arg(own_program());
        }
        command.arg(ROLE).args(role);
        command
    }

    /// Moves a program of the gateway, with all its threads, to its core.
    pub fn pin_gateway(self, id: u32) -> Result<()> {
        let core = match self {
            Self::Free => return Ok(()),
            Self::Together => "0",
            Self::Apart => "1",
        };
        let status = Command::new("taskset")
            .args(["-a", "-c", "-p", core, &id.to_string()])
            .stdout(std::process::Stdio::null())
            .status()
            .map_err(|source| LabError::Start { program: "taskset".to_owned(), source })?;
        if status.success() { Ok(()) } else { Err(LabError::Unexpected("taskset failed".into())) }
    }
}

/// The first argument of this program if it plays a role in a measurement.
pub const ROLE: &str = "--role";

fn own_program() -> PathBuf {
    env::current_exe().unwrap_or_else(|_| "/proc/self/exe".into())
}
