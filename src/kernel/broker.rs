//! The broker: a helper process that does what the confined daemon may no longer do.
//!
//! It runs programs, and reads files that others replace by renaming (the configuration, `/etc/resolv.conf`), because
//! landlock's right to read belongs to the file, not to its name. It is started before the daemon is confined, and ends
//! with it. It does not trust the daemon: it runs only the command lines in [`COMMANDS`], and reads only the files that
//! it was started for.
//!
//! Another process, the keeper, starts the broker, and starts it again if it ends. The keeper has the same rights.
//! While there is no broker, the keeper refuses the daemon's requests, so that none waits and none is carried out late.
//! Keeper and broker report by a byte whether there is a broker. If the keeper ends, so does the broker, and the daemon
//! sees the end of its connection.
//!
//! Each request has its own connection, because a request may take long: the daemon creates a socket pair and passes
//! one socket to the broker. Request and answer are JSON values up to the end of the stream.

use std::{
    fs,
    io::{self, IoSlice, IoSliceMut, Read as _, Write as _},
    mem::MaybeUninit,
    net::Shutdown,
    os::{
        fd::AsFd,
        unix::{
            fs::{FileTypeExt as _, PermissionsExt as _},
            net::UnixStream,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
    },
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::config;

/// The command lines that the daemon may run.
const COMMANDS: [&[&str]; 13] = [
    &["nft", "--file", "-"],
    &["nft", "--check", "--file", "-"],
    &["nft", "--json", "--file", "-"],
    &["nft", "--stateless", "--handle", "--file", "-"],
    &["nft", "list", "chain", "ip", "mangle", "FTP_ALG_CONTROL"],
    &["iptables-nft-save"],
    &["iptables-legacy-save"],
    &["iptables-save"],
    &["iptables", "--version"],
    &["ip6tables-nft-save"],
    &["ip6tables-legacy-save"],
    &["ip6tables-save"],
    &["ip6tables", "--version"],
];

/// Directories that are searched for programs. Never `PATH`: if the binary has file capabilities (`setcap`), the user who
/// starts it chooses `PATH`, and so would choose which program gets them.
const DIRECTORIES: [&str; 6] = [
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
    "/usr/local/sbin",
    "/run/current-system/sw/bin", // NixOS
];

// From linux/capability.h; libc lacks them.
pub(super) const CAP_NET_ADMIN: u32 = 12;
pub(super) const CAP_NET_RAW: u32 = 13;

/// The least time between two starts of the broker.
const START_INTERVAL: Duration = Duration::from_secs(60);
/// What is reported to the daemon: the broker has ended, or serves.
const ENDED: u8 = 0;
const SERVES: u8 = 1;

/// Output and exit status of a program.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ChildOutput {
    pub(super) success: bool,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

/// The daemon's connection to the broker.
#[derive(Debug)]
pub struct Broker {
    connection: UnixStream,
    files: Vec<PathBuf>,
    /// Whether the broker has ended, and no new one serves yet.
    has_ended: AtomicBool,
}

static BROKER: OnceLock<Broker> = OnceLock::new();

/// From now on this process uses the broker at the other end of `connection` for programs and `files`. May be called
/// once, because the process gives up these rights for good.
pub fn use_broker(connection: UnixStream, files: Vec<PathBuf>) {
    let set = BROKER.set(Broker { connection, files, has_ended: AtomicBool::new(false) });
    debug_assert!(set.is_ok(), "a process has one broker");
}

/// Whether this process has a broker that has ended, and no new one serves yet.
pub fn has_ended() -> bool {
    BROKER.get().is_some_and(|broker| broker.has_ended.load(Ordering::Relaxed))
}

/// Watches whether the broker has ended or serves again, until its keeper ends.
pub fn watch() {
    let Some(Broker { connection, has_ended, .. }) = BROKER.get() else { return };
    let mut state = [SERVES];
    while (&*connection).read_exact(&mut state).is_ok() {
        has_ended.store(state == [ENDED], Ordering::Relaxed);
    }
}

/// The text of a file. If there is a broker, it must have been started for this file.
pub fn read(path: &Path) -> io::Result<String> {
    match BROKER.get() {
        Some(broker) => broker.read(path),
        None => config::read_text(path),
    }
}

/// Whether the broker gave no answer: it has ended, or this process has no free file descriptor to ask with.
pub fn gave_no_answer(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotConnected
}

/// Runs `program` (`nft`, `iptables-save` and its variants) to its end, with `input` on its standard input: here, or by
/// the broker if this process may not start programs.
pub(super) fn run(program: &str, arguments: &[&str], input: &str) -> io::Result<ChildOutput> {
    match BROKER.get() {
        Some(broker) => broker.run(program, arguments, input),
        None => run_child(program, arguments, input),
    }
}

/// The standard output of a program if it succeeds, otherwise its error output.
pub fn run_for_output(program: &str, arguments: &[&str]) -> io::Result<String> {
    run_with_input(program, arguments, "")
}

/// As [`run_for_output`], for a program that reads `input`.
pub(super) fn run_with_input(program: &str, arguments: &[&str], input: &str) -> io::Result<String> {
    let finished = run(program, arguments, input).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            io::Error::new(error.kind(), format!("{program} is not installed"))
        }
        _ => error,
    })?;
    if finished.success {
        return Ok(finished.stdout);
    }
    let said = finished.stderr.lines().next().unwrap_or("it gave no reason").trim();
    Err(io::Error::other(format!("{program} failed: {said}")))
}

#[derive(Debug, Serialize, Deserialize)]
enum Request {
    Run {
        words: Vec<String>,
        input: String,
    },
    /// Reads the file with this index.
    Read(usize),
}

/// Why the broker refused or failed.
#[derive(Debug, Serialize, Deserialize)]
struct Refusal {
    errno: Option<i32>,
    message: String,
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self { errno: error.raw_os_error(), message: error.to_string() }
    }
}

impl From<Refusal> for io::Error {
    fn from(Refusal { errno, message }: Refusal) -> Self {
        errno.map_or_else(|| Self::other(message), Self::from_raw_os_error)
    }
}

impl Broker {
    fn run(&self, program: &str, arguments: &[&str], input: &str) -> io::Result<ChildOutput> {
        let words = [program].iter().chain(arguments).map(|&word| word.to_owned()).collect();
        self.request(&Request::Run { words, input: input.to_owned() })
    }

    fn read(&self, path: &Path) -> io::Result<String> {
        let number = self.files.iter().position(|file| file == path);
        let number = number.ok_or_else(|| {
            io::Error::other(format!("the broker was not started for {}", path.display()))
        })?;
        self.request(&Request::Read(number))
    }

    fn request<T: DeserializeOwned>(&self, request: &Request) -> io::Result<T> {
        let answer = self
            .ask(&serde_json::to_vec(request)?)
            .map_err(|error| io::Error::new(io::ErrorKind::NotConnected, error))?;
        Ok(serde_json::from_slice::<Result<T, Refusal>>(&answer)??)
    }

    fn ask(&self, request: &[u8]) -> io::Result<Vec<u8>> {
        let (mut mine, theirs) = UnixStream::pair()?;
        let passed = [theirs.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&passed));
        sendmsg(&self.connection, &[IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL)?;
        drop(theirs);
        let mut answer = Vec::new();
        let asked = mine.write_all(request).and_then(|()| mine.shutdown(Shutdown::Write));
        let answered = asked.and_then(|()| mine.read_to_end(&mut answer)).or_else(|error| {
            // It ended, or refused before it read the request.
            let has_ended =
                matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset);
            if has_ended { Ok(0) } else { Err(error) }
        });
        if answered? == 0 {
            return Err(io::Error::other("the daemon's broker has ended"));
        }
        Ok(answer)
    }
}

/// Serves the daemon at the other end of `connection` until it ends. `confine` confines the calling thread to what a
/// program may do.
pub fn serve(
    connection: &UnixStream,
    files: Vec<PathBuf>,
    confine: fn() -> io::Result<()>,
) -> io::Result<()> {
    let files = Arc::new(files);
    report(connection, SERVES);
    while let Some(stream) = next_request(connection)? {
        let files = Arc::clone(&files);
        // Not waited for: without a daemon nobody needs the answer.
        thread::Builder::new().name("request".into()).spawn(move || {
            // A daemon that sends a malformed request, or is gone, gets no answer.
            let _ = serve_request(stream, &files, confine);
        })?;
    }
    Ok(())
}

/// Keeps a broker, which `start` starts, for the daemon at the other end of `connection` until that daemon ends.
pub fn keep(connection: &UnixStream, start: impl Fn() -> io::Result<Child>) -> io::Result<()> {
    loop {
        let started = Instant::now();
        // If it cannot be started, it has ended at once.
        if let Ok(mut broker) = start() {
            let _ = broker.wait();
        }
        report(connection, ENDED);
        if !refuse_requests(connection, started + START_INTERVAL)? {
            return Ok(());
        }
    }
}

/// Refuses requests until `end`. Returns `false` if the daemon has ended.
fn refuse_requests(connection: &UnixStream, end: Instant) -> io::Result<bool> {
    loop {
        let remaining = Timespec::try_from(end.saturating_duration_since(Instant::now()));
        match poll(&mut [PollFd::new(connection, PollFlags::IN)], remaining.as_ref().ok()) {
            Ok(0) => return Ok(true),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            // The end of its connection is the refusal.
            Ok(_) if next_request(connection)?.is_none() => return Ok(false),
            Ok(_) => {}
        }
    }
}

/// Reports to the daemon whether there is a broker. A daemon that is gone need not know.
fn report(mut connection: &UnixStream, state: u8) {
    let _ = connection.write_all(&[state]);
}

/// The connection of the next request; `None` when the daemon has ended.
fn next_request(connection: &UnixStream) -> io::Result<Option<UnixStream>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    loop {
        let flags = RecvFlags::CMSG_CLOEXEC;
        match recvmsg(connection, &mut [IoSliceMut::new(&mut byte)], &mut control, flags) {
            Ok(message) if message.bytes == 0 => return Ok(None),
            Ok(message) if message.flags.contains(ReturnFlags::CTRUNC) => {
                return Err(io::ErrorKind::InvalidData.into());
            }
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            // It has ended before it read the last report.
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let passed = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut passed) => passed.next(),
            _ => None,
        });
        if let Some(passed) = passed {
            return Ok(Some(UnixStream::from(passed)));
        }
    }
}

fn serve_request(
    mut stream: UnixStream,
    files: &[PathBuf],
    confine: fn() -> io::Result<()>,
) -> io::Result<()> {
    let mut request = Vec::new();
    stream.read_to_end(&mut request)?;
    let answer = match serde_json::from_slice(&request)? {
        Request::Run { words, input } => encode_answer(run_listed(&words, &input, confine)),
        Request::Read(number) => encode_answer(match files.get(number) {
            // The open of a pipe may wait for ever.
            Some(file) if fs::metadata(file).is_ok_and(|found| found.file_type().is_fifo()) => {
                Err(io::Error::other("it is a pipe, which cannot be read again"))
            }
            Some(file) => config::read_text(file),
            None => Err(io::ErrorKind::InvalidInput.into()),
        }),
    };
    stream.write_all(&answer?)
}

fn encode_answer<T: Serialize>(outcome: io::Result<T>) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&outcome.map_err(Refusal::from))
}

fn run_listed(
    words: &[String],
    input: &str,
    confine: fn() -> io::Result<()>,
) -> io::Result<ChildOutput> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.split_first() {
        Some((program, arguments)) if COMMANDS.contains(&words.as_slice()) => {
            confine()?;
            run_child(program, arguments, input)
        }
        _ => Err(io::Error::other(format!("the broker does not run `{}`", words.join(" ")))),
    }
}

/// Runs `program` to its end, with `input` on its standard input. Its environment is empty and its locale is C.
fn run_child(program: &str, arguments: &[&str], input: &str) -> io::Result<ChildOutput> {
    let absent = || io::Error::from_raw_os_error(libc::ENOENT);
    let path = find(program, &DIRECTORIES.map(Path::new)).ok_or_else(absent)?;
    let mut child = Command::new(path)
        .env_clear()
        .env("PATH", DIRECTORIES.join(":"))
        .env("LC_ALL", "C")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    // A program that ends before it has read everything reports the reason on its standard error.
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output()?;
    if output.status.success() {
        written?;
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(ChildOutput {
        success: output.status.success(),
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
    })
}

/// The path of `program`. A directory in which others than its owner may create files is skipped.
fn find(program: &str, directories: &[&Path]) -> Option<PathBuf> {
    let is_safe = |directory: &&&Path| {
        directory.metadata().is_ok_and(|found| found.permissions().mode() & 0o022 == 0)
    };
    let candidates = directories.iter().filter(is_safe).map(|directory| directory.join(program));
    candidates.into_iter().find(|candidate| candidate.is_file())
}

/// Whether this thread has a capability.
pub(super) fn has_capability(capability: u32) -> bool {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok())
        .is_some_and(|effective| effective & 1 << capability != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A broker in a thread, for these files.
    fn broker(files: &[&Path]) -> (Broker, thread::JoinHandle<io::Result<()>>) {
        let (connection, theirs) = UnixStream::pair().unwrap();
        let files: Vec<PathBuf> = files.iter().map(|&file| file.to_owned()).collect();
        let served = files.clone();
        let thread = thread::spawn(move || serve(&theirs, served, || Ok(())));
        (Broker { connection, files, has_ended: AtomicBool::new(false) }, thread)
    }

    #[test]
    fn it_runs_what_is_listed_and_nothing_else() {
        let (broker, thread) = broker(&[]);
        for (program, arguments) in [
            ("id", &[][..]),
            ("nft", &["--file", "/etc/shadow"]),
            ("nft", &[]),
            ("./nft", &["--file", "-"]),
        ] {
            let refused = broker.run(program, arguments, "").unwrap_err().to_string();
            assert!(refused.starts_with("the broker does not run"), "{refused}");
        }
        let nonsense = broker.run("nft", &["--check", "--file", "-"], "nonsense").unwrap();
        assert!(!nonsense.success && nonsense.stderr.contains("nonsense"), "{nonsense:?}");
        drop(broker);
        thread.join().unwrap().unwrap();
    }

    #[test]
    fn it_reads_the_files_that_it_was_started_for_also_when_they_are_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let (file, other) = (directory.path().join("a"), directory.path().join("b"));
        let (broker, _thread) = broker(&[&file]);
        let absent = broker.read(&file).unwrap_err();
        assert!(absent.kind() == io::ErrorKind::NotFound && !gave_no_answer(&absent));
        for text in ["one", "two"] {
            fs::write(&other, text).unwrap();
            fs::rename(&other, &file).unwrap();
            assert_eq!(broker.read(&file).unwrap(), text);
        }
        fs::write(&other, "secret").unwrap();
        let refused = broker.read(&other).unwrap_err().to_string();
        assert!(refused.contains("was not started for"), "{refused}");
        assert!(broker.request::<String>(&Request::Read(1)).is_err());
    }

    #[test]
    fn nonsense_gets_no_answer_and_ends_nothing() {
        let (broker, _thread) = broker(&[]);
        (&broker.connection).write_all(b"no descriptor").unwrap();
        assert!(broker.run("id", &[], "").unwrap_err().to_string().contains("does not run"));
        let (gone, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        let (files, has_ended) = (Vec::new(), AtomicBool::new(false));
        let alone = Broker { connection: gone, files, has_ended };
        assert!(gave_no_answer(&alone.run("id", &[], "").unwrap_err()));
    }

    #[test]
    fn programs_get_nothing_of_the_environment() {
        let printed = run_child("env", &[], "").unwrap().stdout;
        let mut names: Vec<_> = printed.lines().filter_map(|line| line.split('=').next()).collect();
        names.sort_unstable();
        assert_eq!(names, ["LC_ALL", "PATH"], "{printed}");
    }

    #[test]
    fn a_directory_that_others_may_write_to_is_passed_over() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("nft"), "").unwrap();
        for (mode, is_found) in [(0o755, true), (0o775, false), (0o1777, false)] {
            fs::set_permissions(directory.path(), fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(find("nft", &[directory.path()]).is_some(), is_found, "{mode:o}");
        }
    }

    #[test]
    fn what_a_program_prints_and_what_it_says_of_a_failure() {
        assert_eq!(run_with_input("cat", &[], "a\n").unwrap(), "a\n");
        let failed = run_for_output("sh", &["-c", "echo why >&2; exit 1"]).unwrap_err();
        assert_eq!(failed.to_string(), "sh failed: why");
        let absent = run_for_output("no-such-program", &[]).unwrap_err();
        assert_eq!(absent.to_string(), "no-such-program is not installed");
    }
}
