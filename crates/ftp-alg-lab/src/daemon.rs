//! `ftp-alg run` in the gateway's namespace, asked things as a user would ask.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::ExitStatus,
    time::Duration,
};

use serde_json::Value;

use super::{
    BackgroundProcess, Host, LabError, ProgramOutput, Result, Script,
    process::{scaled_timeout, wait_for},
};

/// A running `ftp-alg run`.
#[derive(Debug)]
pub struct Daemon {
    executable: PathBuf,
    gateway: Host,
    home: PathBuf,
    process: BackgroundProcess,
}

impl Daemon {
    /// Starts the daemon with `configuration` (TOML) and waits until it gives verdicts.
    pub fn start(executable: &Path, gateway: &Host, configuration: &str) -> Result<Self> {
        let daemon = Self::launch(executable, gateway, configuration)?;
        daemon.wait_ready()
    }

    /// Starts the daemon without waiting.
    pub fn launch(executable: &Path, gateway: &Host, configuration: &str) -> Result<Self> {
        let home = gateway.directory().join(format!("{}-ftp-alg", gateway.role()));
        let state = home.join("state");
        let file = home.join("ftp-alg.toml");
        fs::create_dir_all(&state)
            .and_then(|()| fs::write(&file, with_fast_path(configuration)))
            .map_err(LabError::file(&file))?;
        let mut command = gateway.command(executable);
        command.arg("run").arg("--config").arg(file).arg("--state-dir").arg(state);
        command.arg("--socket").arg(home.join("socket"));
        let process = gateway.start(command, "ftp-alg")?;
        Ok(Self { executable: executable.to_owned(), gateway: gateway.clone(), home, process })
    }

    fn wait_ready(mut self) -> Result<Self> {
        let limit = scaled_timeout(Duration::from_secs(10));
        let ready = self.ask(&["status", "--wait", &limit.as_secs().to_string()])?;
        if ready.status.success() {
            return Ok(self);
        }
        // The daemon's own words say more than "not ready".
        let status = match self.process.exit_status() {
            Some(status) => status.to_string(),
            None => format!("not ready after {limit:?}"),
        };
        Err(LabError::Failed {
            program: self.process.program().to_owned(),
            status,
            output: format!("{}{}", self.log(), ready.stderr_text()),
        })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// How much memory it has in use, in KiB.
    pub fn resident_kib(&self) -> Result<u64> {
        let path = PathBuf::from(format!("/proc/{}/status", self.id()));
        let status = fs::read_to_string(&path).map_err(LabError::file(&path))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let size = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
        size.ok_or(LabError::File { path, source: io::ErrorKind::InvalidData.into() })
    }

    /// Its control socket.
    pub fn socket(&self) -> PathBuf {
        self.home.join("socket")
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Runs `ftp-alg ARGUMENTS --socket S` on the gateway, whatever comes of it.
    pub fn ask(&self, arguments: &[&str]) -> Result<ProgramOutput> {
        let mut command = self.gateway.command(&self.executable);
        command.args(arguments).arg("--socket").arg(self.socket());
        self.gateway.finish(command, b"", Duration::from_secs(20))
    }

    fn ask_json(&self, command: &str) -> Result<Value> {
        let done = self.ask(&[command, "--json"])?;
        // `status` fails where there is a problem, and tells all the same.
        let is_told = command == "status" && done.stdout_text().contains("\"sessions\":");
        let text = if is_told { done.stdout_text() } else { done.success()?.stdout_text() };
        serde_json::from_str(&text)
            .map_err(|error| LabError::Unexpected(format!("{command} --json: {error}: {text}")))
    }

    /// `pinholes --json`.
    pub fn pinholes(&self) -> Result<Vec<Value>> {
        as_array("pinholes", self.ask_json("pinholes")?)
    }

    /// `sessions --json`.
    pub fn sessions(&self) -> Result<Vec<Value>> {
        as_array("sessions", self.ask_json("sessions")?)
    }

    /// `status --json`.
    pub fn status(&self) -> Result<Value> {
        self.ask_json("status")
    }

    /// A counter of `status --json`; 0 if it is missing.
    pub fn counter(&self, name: &str) -> Result<u64> {
        Ok(self.status()?.get(name).and_then(Value::as_u64).unwrap_or(0))
    }

    /// Waits until no pinhole is open, at most for `limit`: closing follows the end of a control
    /// connection by a moment.
    pub fn wait_for_no_pinholes(&self, limit: Duration) -> Result<()> {
        wait_for("closing every pinhole", limit, || {
            let open = self.pinholes()?;
            Ok((!open.is_empty()).then(|| format!("{open:?}")))
        })
    }

    /// Elements of its table's sets, pinholes of the fast path, and expectations of conntrack, by which a new connection could
    /// pass, one line each.
    ///
    /// Translations (`targets`, `sources`) open nothing: they only hold for connections that a
    /// pinhole admitted, and stay for those. Control ports are configuration.
    pub fn open_pinholes(&self) -> Result<Vec<String>> {
        let mut command = self.gateway.command("nft");
        command.args(["-j", "list", "table", "inet", "ftp_alg"]);
        let listed = self.gateway.finish(command, b"", Duration::from_secs(10))?;
        let expected = self.gateway.run("conntrack", &["-L", "expect"])?.stdout_text();
        let judged = self.gateway.script(Script::Pinholes, &[], Duration::from_secs(10))?;
        if !judged.status.success() {
            return Err(LabError::Unexpected(format!("holes.py: {}", judged.stdout_text())));
        }
        let mut openings: Vec<String> =
            expected.lines().chain(judged.stdout_text().lines()).map(str::to_owned).collect();
        if !listed.status.success() {
            return Ok(openings);
        }
        let value: Value = serde_json::from_str(&listed.stdout_text())
            .map_err(|error| LabError::Unexpected(format!("nft -j: {error}")))?;
        let objects = value.get("nftables").and_then(Value::as_array).into_iter().flatten();
        let sets = objects.filter_map(|object| object.get("set"));
        for set in sets {
            let name = set.get("name").and_then(Value::as_str).unwrap_or_default();
            if name.starts_with("pinholes") {
                let members = set.get("elem").and_then(Value::as_array).into_iter().flatten();
                openings.extend(members.map(|element| format!("{name}: {element}")));
            }
        }
        Ok(openings)
    }

    /// How it ended, if it has.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        self.process.exit_status()
    }

    /// Ends it cleanly, as a service manager does.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.process.terminate(Duration::from_secs(5))
    }

    /// Ends it without warning.
    pub fn kill(&mut self) {
        self.process.kill();
    }
}

fn as_array(command: &str, value: Value) -> Result<Vec<Value>> {
    match value {
        Value::Array(array) => Ok(array),
        other => Err(LabError::Unexpected(format!("{command} --json is no array: {other}"))),
    }
}

/// A configuration with `queue.fast-path` as `FTP_ALG_LAB_FAST_PATH` says, where it says nothing of it itself.
fn with_fast_path(configuration: &str) -> String {
    let Ok(value) = std::env::var("FTP_ALG_LAB_FAST_PATH") else { return configuration.to_owned() };
    if configuration.contains("fast-path") {
        return configuration.to_owned();
    }
    match configuration.split_once("[queue]\n") {
        Some((before, rest)) => format!("{before}[queue]\nfast-path = \"{value}\"\n{rest}"),
        None => format!("queue.fast-path = \"{value}\"\n{configuration}"),
    }
}
