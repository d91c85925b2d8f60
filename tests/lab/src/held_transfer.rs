//! A transfer that stops between its announcement and its data connection, so that a test can check the open pinhole.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use super::{BackgroundProcess, Host, LabError, Mode, Result, Script, Server};

/// The time limit for each step of the transfer.
const LIMIT: Duration = Duration::from_secs(15);

/// A download that waits to be released.
#[derive(Debug)]
pub struct HeldClient {
    process: BackgroundProcess,
    gate: PathBuf,
}

impl HeldClient {
    /// Logs in, announces a data connection, and stops.
    pub fn start(
        host: &Host,
        server: &Server,
        address: IpAddr,
        mode: Mode,
        name: &str,
    ) -> Result<Self> {
        let (user, password) = server.login();
        let number = std::fs::read_dir(host.directory()).map_or(0, Iterator::count);
        let gate = host.directory().join(format!("gate-{number}"));
        let path = format!("pub/{name}");
        let (address, mode) = (address.to_string(), mode.to_string());
        let arguments = [&address, user, password, &mode, &path, &*gate.to_string_lossy()];
        let command = host.script_command(Script::HeldClient, &arguments)?;
        let mut process = host.start(command, &format!("held-{number}"))?;
        process.wait_until("announcement", LIMIT, |held| Ok(held.log().contains("announced")))?;
        Ok(Self { process, gate })
    }

    /// Continues the transfer, and returns the number of bytes received.
    pub fn release(mut self) -> Result<usize> {
        std::fs::write(&self.gate, b"").map_err(LabError::file(&self.gate))?;
        let mut bytes = None;
        self.process.wait_until("end of transfer", LIMIT, |held| {
            let log = held.log();
            bytes = log.lines().find_map(|line| line.strip_prefix("bytes ")?.parse().ok());
            Ok(bytes.is_some())
        })?;
        bytes.ok_or_else(|| LabError::Unexpected("no number of bytes in the output".to_owned()))
    }
}
