//! On which cores the processes of a measurement run.

use std::{env, path::PathBuf, process::Command};

use ftp_alg_lab::{LabError, Result};

/// Where processes run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Where the kernel puts them, as a user has it.
    Free,
    /// All on the first core.
    Together,
    /// Client and server on the first core, the gateway's program on the second.
    Apart,
}

impl Placement {
    /// What a host is to run: this program, or one that starts it on a core.
    pub fn program(self) -> PathBuf {
        match self {
            Self::Free => own_program(),
            _ => "taskset".into(),
        }
    }

    /// Where the only client runs: on one core.
    pub fn for_one_client(self) -> Self {
        if self == Self::Free { Self::Apart } else { self }
    }

    /// `command`, which is of [`Pin::program`], with what makes it this program in a role.
    pub fn traffic_command(self, mut command: Command, role: &[&str]) -> Command {
        if self != Self::Free {
            command.args(["-c", "0"]).arg(own_program());
        }
        command.arg(ROLE).args(role);
        command
    }

    /// Puts a program of the gateway, with all its threads, in its place.
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

/// The first argument of this program when it is an end of the measurement.
pub const ROLE: &str = "--role";

fn own_program() -> PathBuf {
    env::current_exe().unwrap_or_else(|_| "/proc/self/exe".into())
}
