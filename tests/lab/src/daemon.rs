//! Runs `ftp-alg run` in the namespace of a gateway, and sends it requests as a user would.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::ExitStatus,
    thread,
    time::Duration,
};

use serde_json::Value;

use super::{
    BackgroundProcess, Host, LabError, ProgramOutput, Result, Script,
    process::{patience, wait_for},
};

/// How often a command is repeated that the daemon did not answer in its time, on a busy machine.
const REPETITIONS: usize = 5;

/// A running `ftp-alg run`.
#[derive(Debug)]
pub struct Daemon {
    executable: PathBuf,
    gateway: Host,
    home: PathBuf,
    process: BackgroundProcess,
}

impl Daemon {
    /// Starts the daemon with `configuration` (TOML), and waits until it gives verdicts, and has loaded the fast path.
    pub fn start(executable: &Path, gateway: &Host, configuration: &str) -> Result<Self> {
        let mut daemon = Self::launch(executable, gateway, configuration)?;
        daemon.wait_until_ready().map(|()| daemon)
    }

    /// Starts the daemon, and does not wait until it is ready.
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

    /// Waits until it gives verdicts, and has loaded the fast path.
    pub fn wait_until_ready(&mut self) -> Result<()> {
        let limit = patience(Duration::from_secs(20));
        let ask = || self.ask(&["status", "--json", "--wait", &limit.as_secs().to_string()]);
        let mut ready = ask()?;
        while ready.stdout_text().contains("is being loaded") {
            thread::sleep(Duration::from_millis(5));
            ready = ask()?;
        }
        if ready.status.success() {
            return Ok(());
        }
        // The log of the daemon explains more than "not ready".
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

    /// The process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// The resident memory in KiB.
    pub fn resident_kib(&self) -> Result<u64> {
        let path = PathBuf::from(format!("/proc/{}/status", self.id()));
        let status = fs::read_to_string(&path).map_err(LabError::file(&path))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let size = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
        size.ok_or(LabError::File { path, source: io::ErrorKind::InvalidData.into() })
    }

    /// The path of the control socket.
    pub fn socket(&self) -> PathBuf {
        self.home.join("socket")
    }

    /// The log so far.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// The log so far, behind those of earlier daemons of the gateway.
    pub fn log_of_all(&self) -> String {
        self.process.log_of_all()
    }

    /// Runs `ftp-alg ARGUMENTS --socket S` on the gateway. A failure of the command is no error.
    pub fn ask(&self, arguments: &[&str]) -> Result<ProgramOutput> {
        let mut command = self.gateway.command(&self.executable);
        command.args(arguments).arg("--socket").arg(self.socket());
        self.gateway.finish(command, b"", Duration::from_secs(60))
    }

    fn ask_json(&self, command: &str) -> Result<Value> {
        let mut done = self.ask(&[command, "--json"])?;
        for _ in 0..REPETITIONS {
            if !done.stderr_text().contains("does not answer within") {
                break;
            }
            done = self.ask(&[command, "--json"])?;
        }
        // `status` fails if there is a problem, but prints the status nevertheless.
        let has_status = command == "status" && done.stdout_text().contains("\"sessions\":");
        let text = if has_status { done.stdout_text() } else { done.success()?.stdout_text() };
        serde_json::from_str(&text)
            .map_err(|error| LabError::Unexpected(format!("{command} --json: {error}: {text}")))
    }

    /// The output of `pinholes --json`.
    pub fn pinholes(&self) -> Result<Vec<Value>> {
        as_array("pinholes", self.ask_json("pinholes")?)
    }

    /// The output of `sessions --json`.
    pub fn sessions(&self) -> Result<Vec<Value>> {
        as_array("sessions", self.ask_json("sessions")?)
    }

    /// The output of `status --json`.
    pub fn status(&self) -> Result<Value> {
        self.ask_json("status")
    }

    /// A counter of `status --json`; 0 if it does not exist.
    pub fn counter(&self, name: &str) -> Result<u64> {
        Ok(self.status()?.get(name).and_then(Value::as_u64).unwrap_or(0))
    }

    /// Waits until no pinhole is open, neither for the daemon nor in the kernel, at most for `limit`. The daemon closes
    /// them after the verdict on the packet that ended the control connection, and lists them no more before that.
    pub fn wait_for_no_pinholes(&self, limit: Duration) -> Result<()> {
        wait_for("closing all pinholes", limit, || {
            let listed = self.pinholes()?;
            let open = self.open_pinholes()?;
            Ok((!listed.is_empty() || !open.is_empty()).then(|| format!("{listed:?} {open:?}")))
        })
    }

    /// Everything that could admit a new connection, one line each: elements of the pinhole sets, clients of encrypted
    /// sessions, pinholes of the fast path, and expectations of conntrack.
    ///
    /// The sets of translations (`targets`, `sources`) are not included: they admit nothing, and their elements remain
    /// for connections that a pinhole admitted. The set of control ports is configuration.
    pub fn open_pinholes(&self) -> Result<Vec<String>> {
        let expected = self.gateway.run("conntrack", &["-L", "expect"])?.stdout_text();
        let fast_path = self.gateway.script(Script::Pinholes, &[], Duration::from_secs(60))?;
        if !fast_path.status.success() {
            return Err(LabError::Unexpected(format!("pinholes.py: {}", fast_path.stdout_text())));
        }
        let mut openings: Vec<String> =
            expected.lines().chain(fast_path.stdout_text().lines()).map(str::to_owned).collect();
        // Not the whole table: other sets may have 65,536 elements.
        for (kind, name) in [
            ("set", "pinholes4"),
            ("set", "pinholes6"),
            ("map", "encrypted4"),
            ("map", "encrypted6"),
        ] {
            let listed =
                self.gateway.try_run("nft", &["-j", "list", kind, "inet", "ftp_alg", name])?;
            if !listed.status.success() {
                continue;
            }
            let value: Value = serde_json::from_str(&listed.stdout_text())
                .map_err(|error| LabError::Unexpected(format!("nft -j: {error}")))?;
            let objects = value.get("nftables").and_then(Value::as_array).into_iter().flatten();
            let sets = objects.filter_map(|object| object.get(kind)?.get("elem")?.as_array());
            openings.extend(sets.flatten().map(|element| format!("{name}: {element}")));
        }
        Ok(openings)
    }

    /// The exit status, if the daemon has ended.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        self.process.exit_status()
    }

    /// Ends the daemon with SIGTERM, as a service manager does.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.process.terminate(Duration::from_secs(20))
    }

    /// Ends the daemon with SIGKILL.
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

/// Adds the value of the variable `FTP_ALG_LAB_FAST_PATH` as `queue.fast-path`, unless the configuration has this key.
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
