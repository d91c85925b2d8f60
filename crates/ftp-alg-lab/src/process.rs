//! Child processes that cannot outlive the lab, and the registry of what it must remove.
//!
//! Every child leads a process group of its own and is ended by that group's number, never by name:
//! other labs may run beside this one. A signal handler has no stack to unwind, so what must be
//! removed is also written down in one place, [`remove_everything`].

use std::{
    fs::{self, File},
    io::{Read, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process_group};

use super::{LabError, Result};

/// What exists because of this process.
#[derive(Default)]
struct Registry {
    groups: Vec<u32>,
    namespaces: Vec<String>,
    directories: Vec<PathBuf>,
}

static REGISTRY: Mutex<Registry> =
    Mutex::new(Registry { groups: Vec::new(), namespaces: Vec::new(), directories: Vec::new() });

fn registry<T>(f: impl FnOnce(&mut Registry) -> T) -> T {
    // A panic elsewhere must not keep the lab from being removed.
    f(&mut REGISTRY.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
}

/// Ends every process and removes every namespace and directory of this process's labs.
///
/// For signal handlers' threads; a [`super::Lab`] that goes out of scope does so by itself.
pub fn remove_everything() {
    let (groups, namespaces, directories) = registry(|all| {
        (
            std::mem::take(&mut all.groups),
            std::mem::take(&mut all.namespaces),
            std::mem::take(&mut all.directories),
        )
    });
    for group in groups {
        signal_group(group, Signal::KILL);
    }
    for namespace in namespaces {
        delete_namespace(&namespace);
    }
    for directory in directories {
        let _ = fs::remove_dir_all(directory);
    }
}

/// Takes note of a namespace and a directory before they are made.
pub(super) fn register(namespaces: &[String], directory: &Path) {
    registry(|all| {
        all.namespaces.extend_from_slice(namespaces);
        all.directories.push(directory.to_owned());
    });
}

/// Removes namespaces and a directory, and what still runs in those namespaces.
pub(super) fn remove(namespaces: &[String], directory: &Path) {
    for namespace in namespaces {
        kill_inhabitants(namespace);
        delete_namespace(namespace);
    }
    // `FTP_ALG_LAB_KEEP` leaves captures and logs for whoever looks into a failure.
    if std::env::var_os("FTP_ALG_LAB_KEEP").is_none() {
        let _ = fs::remove_dir_all(directory);
    }
    registry(|all| {
        all.namespaces.retain(|name| !namespaces.contains(name));
        all.directories.retain(|path| path != directory);
    });
}

fn delete_namespace(name: &str) {
    let _ = Command::new(system_program("ip"))
        .args(["netns", "del", name])
        .stderr(Stdio::null())
        .status();
}

/// Ends what runs in `namespace`: servers fork children into sessions of their own, which their
/// process group does not reach.
fn kill_inhabitants(namespace: &str) {
    let Ok(listed) = Command::new(system_program("ip"))
        .args(["netns", "pids", namespace])
        .stderr(Stdio::null())
        .output()
    else {
        return;
    };
    for pid in String::from_utf8_lossy(&listed.stdout).lines() {
        if let Some(pid) = pid.trim().parse().ok().and_then(Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
    }
}

/// Removes labs whose process is gone without cleaning up (it was killed hard).
pub(super) fn remove_abandoned(base: &Path) {
    for name in abandoned(Path::new("/run/netns")) {
        kill_inhabitants(&name);
        delete_namespace(&name);
    }
    for name in abandoned(base) {
        let _ = fs::remove_dir_all(base.join(name));
    }
}

/// Names in `directory` that carry the number of a process that is gone.
fn abandoned(directory: &Path) -> Vec<String> {
    let names = fs::read_dir(directory).into_iter().flatten().flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    let is_abandoned = |name: &String| {
        let owner = name.strip_prefix("fa-").and_then(|rest| rest.split('-').next());
        let owner = owner.and_then(|pid| pid.parse::<u32>().ok());
        owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
    };
    names.filter(is_abandoned).collect()
}

fn signal_group(group: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(group).ok().and_then(Pid::from_raw) {
        let _ = kill_process_group(pid, signal);
    }
}

/// What a program left behind.
#[derive(Debug)]
pub struct ProgramOutput {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
    /// How long it ran.
    pub elapsed: Duration,
    program: String,
}

impl ProgramOutput {
    /// Standard output as text.
    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Itself if the program succeeded, else an error that quotes what it said.
    pub fn success(self) -> Result<Self> {
        if self.status.success() {
            return Ok(self);
        }
        let said = format!("{}{}", self.stdout_text(), self.stderr_text());
        Err(LabError::Failed {
            status: self.status.to_string(),
            output: tail(&said),
            program: self.program,
        })
    }
}

/// The end of a program's output, enough to see what went wrong.
pub(super) fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}

fn describe(command: &Command) -> String {
    // Whoever reads a failure knows that it ran in a namespace: leave `nsenter --net=... --` out.
    let mut words: Vec<String> = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|arg| arg.to_string_lossy().into_owned()));
    let start = if words[0].ends_with("nsenter") {
        words.iter().position(|word| word == "--")
    } else {
        None
    };
    let line = words[start.map_or(0, |at| at + 1)..].join(" ");
    if line.len() > 200 {
        format!("{}...", line.chars().take(200).collect::<String>())
    } else {
        line
    }
}

/// `limit`, or FTP_ALG_LAB_PATIENCE times as long: an emulated machine takes its time.
pub fn scaled_timeout(limit: Duration) -> Duration {
    let factor = std::env::var("FTP_ALG_LAB_PATIENCE").ok().and_then(|factor| factor.parse().ok());
    limit.saturating_mul(factor.unwrap_or(1))
}

/// Looks again and again what is `missing`, until that is nothing; an error if it takes longer than `limit`.
pub(super) fn wait_for(
    what: &str,
    limit: Duration,
    mut missing: impl FnMut() -> Result<Option<String>>,
) -> Result<()> {
    let limit = scaled_timeout(limit);
    let deadline = Instant::now() + limit;
    while let Some(output) = missing()? {
        if Instant::now() >= deadline {
            return Err(LabError::Timeout { what: what.to_owned(), limit, output });
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Runs `command` to its end, at most for `limit`, with `input` on its standard input.
pub(super) fn run(mut command: Command, input: &[u8], limit: Duration) -> Result<ProgramOutput> {
    let program = describe(&command);
    let limit = scaled_timeout(limit);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let start = Instant::now();
    let mut child =
        command.spawn().map_err(|source| LabError::Start { program: program.clone(), source })?;
    let group = child.id();
    registry(|all| all.groups.push(group));
    let stdin = child.stdin.take();
    let input = input.to_vec();
    let feeder = thread::spawn(move || {
        if let Some(mut stdin) = stdin {
            let _ = stdin.write_all(&input);
        }
    });
    let stdout = drain(child.stdout.take());
    let stderr = drain(child.stderr.take());
    let status = wait(&mut child, start + limit);
    // Grandchildren may hold the pipes open; nothing of a finished program may stay.
    signal_group(group, Signal::KILL);
    let reaped = if status.is_none() { child.wait().ok() } else { status };
    registry(|all| all.groups.retain(|other| *other != group));
    let _ = feeder.join();
    let stdout = stdout.join().unwrap_or_default();
    let stderr = stderr.join().unwrap_or_default();
    match (status, reaped) {
        (Some(status), _) => {
            Ok(ProgramOutput { status, stdout, stderr, elapsed: start.elapsed(), program })
        }
        (None, _) => {
            let said =
                format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
            Err(LabError::Timeout { what: program, limit, output: tail(&said) })
        }
    }
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        bytes
    })
}

fn wait(child: &mut Child, deadline: Instant) -> Option<ExitStatus> {
    let mut pause = Duration::from_micros(500);
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        if Instant::now() >= deadline {
            return None;
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

/// A program that runs beside the lab until it is stopped or dropped.
#[derive(Debug)]
pub struct BackgroundProcess {
    child: Child,
    program: String,
    log: PathBuf,
}

impl BackgroundProcess {
    /// Starts `command` with its output in the file `log`.
    pub(super) fn start(mut command: Command, log: PathBuf) -> Result<Self> {
        let program = describe(&command);
        let file = |path: &Path| {
            let out = File::options().create(true).append(true).open(path)?;
            Ok((out.try_clone()?, out))
        };
        let (out, err) = file(&log).map_err(LabError::file(&log))?;
        command.stdin(Stdio::null()).stdout(out).stderr(err).process_group(0);
        let child = command
            .spawn()
            .map_err(|source| LabError::Start { program: program.clone(), source })?;
        registry(|all| all.groups.push(child.id()));
        Ok(Self { child, program, log })
    }

    /// Its process id (in a namespace as outside).
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The command line.
    pub fn program(&self) -> &str {
        &self.program
    }

    /// Everything it said until now.
    pub fn log(&self) -> String {
        let bytes = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// How it ended, if it has.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Asks it to end (SIGTERM) and waits; an error if it did not within `limit`.
    pub fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        signal_group(self.child.id(), Signal::TERM);
        let limit = scaled_timeout(limit);
        wait(&mut self.child, Instant::now() + limit).ok_or_else(|| LabError::Timeout {
            what: format!("ending {}", self.program),
            limit,
            output: tail(&self.log()),
        })
    }

    /// Ends it at once (SIGKILL).
    pub fn kill(&mut self) {
        signal_group(self.child.id(), Signal::KILL);
        let _ = self.child.wait();
    }

    /// Waits until `ready`; an error if it takes longer than `limit` or the program ends.
    pub(super) fn wait_until(
        &mut self,
        what: &str,
        limit: Duration,
        mut ready: impl FnMut(&Self) -> Result<bool>,
    ) -> Result<()> {
        let what = format!("{what} of {}", self.program);
        wait_for(&what, limit, || {
            if ready(self)? {
                return Ok(None);
            }
            let output = tail(&self.log());
            match self.exit_status() {
                None => Ok(Some(output)),
                Some(status) => Err(LabError::Failed {
                    program: self.program.clone(),
                    status: status.to_string(),
                    output,
                }),
            }
        })
    }
}

impl Drop for BackgroundProcess {
    fn drop(&mut self) {
        let group = self.child.id();
        if self.exit_status().is_none() {
            signal_group(group, Signal::TERM);
            wait(&mut self.child, Instant::now() + Duration::from_millis(500));
        }
        signal_group(group, Signal::KILL);
        let _ = self.child.wait();
        registry(|all| all.groups.retain(|other| *other != group));
    }
}

/// [`find_program`], or the bare name for the error that names it.
pub(super) fn system_program(program: &str) -> PathBuf {
    find_program(program).unwrap_or_else(|| program.into())
}

/// Where `program` is, looked for as the shell does and in the system directories.
pub(super) fn find_program(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}
