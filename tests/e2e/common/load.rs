//! FTP sessions that transfer at the same time while something happens to the gateway.

use std::{fmt, fs, path::PathBuf};

use ftp_alg_lab::{BackgroundProcess, Family, Lab, Script, Server, wait_at_most, wait_for};
use serde_json::Value;

/// What the sessions do; `load.py` describes each argument.
#[derive(Clone, Copy, Debug)]
pub struct LoadSpec {
    /// The name, which tells it from others in the same lab.
    pub name: &'static str,
    /// The family of the server's address.
    pub family: Family,
    /// The modes, used in turn.
    pub modes: &'static str,
    /// The number of sessions at a time.
    pub sessions: u64,
    /// The transfers of a session; with 0 it continues to the end.
    pub transfers: u64,
    /// After so many seconds the sessions end by themselves.
    pub seconds: u64,
    /// The time limit of a data connection, in seconds.
    pub data_seconds: u64,
    /// The time limit of everything else, in seconds. TCP waits twice as long each time that it retransmits.
    pub patience: u64,
}

impl Default for LoadSpec {
    fn default() -> Self {
        Self {
            name: "load",
            family: Family::V4,
            modes: "passive,active,passive+ext,active+ext",
            sessions: 8,
            transfers: 0,
            seconds: 7200,
            data_seconds: 150,
            patience: 150,
        }
    }
}

/// Running sessions.
pub struct Load {
    process: BackgroundProcess,
    until: PathBuf,
    patience: u64,
}

impl Load {
    /// Starts the sessions, and waits until each has transferred once.
    pub fn start(lab: &Lab, server: &Server, spec: LoadSpec) -> Self {
        let LoadSpec { name, modes, sessions, transfers, seconds, data_seconds, .. } = spec;
        let (user, password) = server.login();
        let host = lab.server_address(spec.family).to_string();
        let until = lab.directory().join(format!("{name}-is-over"));
        let numbers = [sessions, transfers, seconds, data_seconds, spec.patience];
        let [sessions, transfers, seconds, data, limit] = numbers.map(|number| number.to_string());
        let stop = until.display().to_string();
        let arguments =
            [&host, user, password, modes, &sessions, &transfers, &seconds, &stop, &data, &limit];
        let command = lab.client.script_command(Script::Load, &arguments).unwrap();
        let process = lab.client.start(command, name).unwrap();
        wait_for("the load", || process.log().contains("ready"));
        Self { process, until, patience: spec.patience }
    }

    /// Waits until each session has made another transfer, or the load has ended.
    pub fn wait_for_transfers(&mut self) {
        let path = self.until.with_extension("counts");
        let count = || -> Vec<u64> {
            let counts = fs::read(&path).unwrap();
            counts.as_chunks().0.iter().copied().map(u64::from_le_bytes).collect()
        };
        let before = count();
        wait_for("a transfer of each session", || {
            count().iter().zip(&before).all(|(now, before)| now > before) || self.has_ended()
        });
    }

    pub fn has_ended(&mut self) -> bool {
        self.process.exit_status().is_some()
    }

    /// Ends the sessions.
    pub fn end(mut self) -> LoadReport {
        fs::write(&self.until, b"").unwrap();
        wait_at_most(60.max(2 * self.patience), "the load's end", || self.has_ended());
        LoadReport(serde_json::from_str(self.process.log().lines().last().unwrap()).unwrap())
    }
}

/// What became of the transfers.
pub struct LoadReport(Value);

impl LoadReport {
    pub fn count(&self, key: &str) -> u64 {
        self.0[key].as_u64().unwrap()
    }

    /// The numbers of transfers with wrong bytes, of broken control connections, and of failed transfers.
    pub fn bad(&self) -> [u64; 3] {
        ["damaged", "lost", "failed"].map(|key| self.count(key))
    }
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
