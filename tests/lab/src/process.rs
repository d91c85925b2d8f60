//! Runs child processes that cannot outlive the lab, and registers everything that the lab must remove.
//!
//! Invariants:
//! - Every child leads its own process group and is ended by the number of this group, never by name, because other
//!   labs may run at the same time.
//! - Everything that must be removed is in one registry, because a signal handler cannot unwind the stack. See
//!   [`remove_everything`].

use std::{
    fs::{self, File},
    io::{Read, Write},
    num::NonZero,
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process_group};

use super::{LabError, Result};

/// Everything that this process made and must remove.
#[derive(Default)]
struct Registry {
    groups: Vec<u32>,
    namespaces: Vec<String>,
    directories: Vec<PathBuf>,
}

static REGISTRY: Mutex<Registry> =
    Mutex::new(Registry { groups: Vec::new(), namespaces: Vec::new(), directories: Vec::new() });

fn registry<T>(f: impl FnOnce(&mut Registry) -> T) -> T {
    // After a panic in another thread, the lab must still be removed.
    f(&mut REGISTRY.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
}

/// Ends all processes and removes all namespaces and directories of this process's labs.
///
/// Call it from the thread of a signal handler. A [`super::Lab`] that goes out of scope removes itself.
pub fn remove_everything() {
    let Registry { groups, namespaces, directories } = registry(std::mem::take);
    for group in groups {
        signal_group(group, Signal::KILL);
    }
    remove_namespaces(&namespaces);
    for directory in directories {
        let _ = fs::remove_dir_all(directory);
    }
}

/// Registers namespaces and a directory before they are made.
pub(super) fn register(namespaces: &[String], directory: &Path) {
    registry(|all| {
        all.namespaces.extend_from_slice(namespaces);
        all.directories.push(directory.to_owned());
    });
}

/// Removes namespaces and a directory, and ends the processes in these namespaces.
pub(super) fn remove(namespaces: &[String], directory: &Path) {
    remove_namespaces(namespaces);
    // With `FTP_ALG_LAB_KEEP`, captures and logs stay for the analysis of a failure.
    if std::env::var_os("FTP_ALG_LAB_KEEP").is_none() {
        let _ = fs::remove_dir_all(directory);
    }
    registry(|all| {
        all.namespaces.retain(|name| !namespaces.contains(name));
        all.directories.retain(|path| path != directory);
    });
}

fn remove_namespaces(names: &[String]) {
    kill_inhabitants(names);
    let batch: String = names.iter().map(|name| format!("netns del {name}\n")).collect();
    let mut command = Command::new(system_program("ip"));
    // One that does not exist does not keep the others.
    command.args(["-force", "-batch", "-"]);
    if !names.is_empty() {
        let _ = run(command, batch.as_bytes(), Duration::from_secs(30));
    }
}

/// Ends all processes in these namespaces. The process group is not enough, because servers fork children into new
/// sessions.
fn kill_inhabitants(names: &[String]) {
    let identity = |path: PathBuf| fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    let place = Path::new("/run/netns");
    let namespaces: Vec<_> = names.iter().filter_map(|name| identity(place.join(name))).collect();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = process.file_name().to_str().and_then(|name| name.parse().ok());
        let Some(pid) = pid.and_then(Pid::from_raw) else { continue };
        if identity(process.path().join("ns/net")).is_some_and(|of| namespaces.contains(&of)) {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
    }
}

/// Removes labs whose process ended without cleaning up, because it was killed.
pub(super) fn remove_abandoned(base: &Path) {
    remove_namespaces(&abandoned(Path::new("/run/netns")));
    for name in abandoned(base) {
        let _ = fs::remove_dir_all(base.join(name));
    }
}

/// Names in `directory` with the number of a process that does not exist any more.
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

/// The result of a program that has ended.
#[derive(Debug)]
pub struct ProgramOutput {
    /// The exit status.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// The running time.
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

    /// The output if the program succeeded, otherwise an error with the end of its output.
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

/// The last lines of a program's output.
pub(super) fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}

fn describe(command: &Command) -> String {
    // All programs run in namespaces, so `nsenter --net=... --` is left out.
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

/// `limit`, multiplied by the variable FTP_ALG_LAB_PATIENCE if it is set, because emulated machines are slow.
pub fn scaled_timeout(limit: Duration) -> Duration {
    let factor = std::env::var("FTP_ALG_LAB_PATIENCE").ok().and_then(|factor| factor.parse().ok());
    let seconds = limit.as_secs_f64() * factor.unwrap_or(1.0);
    Duration::try_from_secs_f64(seconds).unwrap_or(limit)
}

/// The limit of a wait that only a failure should reach: longer than `limit` on a machine that is busy now.
pub(super) fn patience(limit: Duration) -> Duration {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: f64 = load.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(1.0);
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    scaled_timeout(limit).mul_f64((load / processors as f64).clamp(1.0, 8.0))
}

/// Calls `missing` repeatedly until it returns `None`. It is an error if this takes longer than `limit`.
pub(super) fn wait_for(
    what: &str,
    limit: Duration,
    mut missing: impl FnMut() -> Result<Option<String>>,
) -> Result<()> {
    let limit = patience(limit);
    let deadline = Instant::now() + limit;
    for pause in pauses() {
        let Some(output) = missing()? else { break };
        if Instant::now() >= deadline {
            return Err(LabError::Timeout { what: what.to_owned(), limit, output });
        }
        thread::sleep(pause);
    }
    Ok(())
}

/// The pauses between two looks: soon at first, and then seldom, because a look may start programs.
fn pauses() -> impl Iterator<Item = Duration> {
    let next = |pause: &Duration| Some((*pause * 3 / 2).min(Duration::from_millis(60)));
    std::iter::successors(Some(Duration::from_millis(3)), next)
}

/// Runs `command` to its end, at most for `limit`, with `input` as standard input.
pub(super) fn run(mut command: Command, input: &[u8], limit: Duration) -> Result<ProgramOutput> {
    let program = describe(&command);
    let limit = patience(limit);
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
    // Grandchildren may keep the pipes open, so the whole process group is ended.
    signal_group(group, Signal::KILL);
    let _ = child.wait();
    registry(|all| all.groups.retain(|other| *other != group));
    let _ = feeder.join();
    let stdout = stdout.join().unwrap_or_default();
    let stderr = stderr.join().unwrap_or_default();
    match status {
        Some(status) => {
            Ok(ProgramOutput { status, stdout, stderr, elapsed: start.elapsed(), program })
        }
        None => {
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

/// A program that runs in the background until it is stopped or dropped.
#[derive(Debug)]
pub struct BackgroundProcess {
    child: Child,
    program: String,
    log: PathBuf,
    /// Where its output begins in the log, which has that of earlier programs of the same name.
    begin: u64,
}

impl BackgroundProcess {
    /// Starts `command` with its output at the end of the file `log`.
    pub(super) fn start(mut command: Command, log: PathBuf) -> Result<Self> {
        let program = describe(&command);
        let file = |path: &Path| {
            let out = File::options().create(true).append(true).open(path)?;
            Ok((out.metadata()?.len(), out.try_clone()?, out))
        };
        let (begin, out, err) = file(&log).map_err(LabError::file(&log))?;
        command.stdin(Stdio::null()).stdout(out).stderr(err).process_group(0);
        let child = command
            .spawn()
            .map_err(|source| LabError::Start { program: program.clone(), source })?;
        registry(|all| all.groups.push(child.id()));
        Ok(Self { child, program, log, begin })
    }

    /// The process id. Network namespaces do not change it.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The command line.
    pub fn program(&self) -> &str {
        &self.program
    }

    /// The output so far.
    pub fn log(&self) -> String {
        self.log_from(self.begin)
    }

    /// The output so far, behind that of earlier programs of the same name.
    pub fn log_of_all(&self) -> String {
        self.log_from(0)
    }

    fn log_from(&self, begin: u64) -> String {
        let bytes = fs::read(&self.log).unwrap_or_default();
        let part = bytes.get(begin as usize..).unwrap_or_default();
        String::from_utf8_lossy(part).into_owned()
    }

    /// The exit status, if the program has ended.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Ends the program with SIGTERM and waits for its end. It is an error if this takes longer than `limit`.
    pub fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        signal_group(self.child.id(), Signal::TERM);
        let limit = patience(limit);
        wait(&mut self.child, Instant::now() + limit).ok_or_else(|| LabError::Timeout {
            what: format!("ending {}", self.program),
            limit,
            output: tail(&self.log()),
        })
    }

    /// Sends a signal to the program.
    pub fn signal(&self, signal: Signal) {
        signal_group(self.child.id(), signal);
    }

    /// Ends the program with SIGKILL.
    pub fn kill(&mut self) {
        signal_group(self.child.id(), Signal::KILL);
        let _ = self.child.wait();
    }

    /// Waits until `ready` returns true. It is an error if this takes longer than `limit`, or if the program ends.
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

/// The path of a program, or its plain name if it does not exist, so that the error has the name.
pub(super) fn system_program(program: &str) -> PathBuf {
    find_program(program).unwrap_or_else(|| program.into())
}

/// The path of a program. It searches PATH as a shell does, then the system directories.
pub(super) fn find_program(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}
