//! The broker: a helper process that does for the confined daemon what it may no longer do.
//!
//! It runs programs, and reads files that others replace by renaming (the configuration, `/etc/resolv.conf`), because
//! landlock's right to read belongs to the file, not to its name. It is started before the daemon is confined, and ends
//! with it. It does not trust the daemon: it runs only the command lines in [`COMMANDS`], and reads only the files that
//! it was started for.
//!
//! Each request has its own connection, because a request may take long: the daemon creates a socket pair and passes
//! one socket to the broker. Request and answer are JSON values up to the end of the stream.

mod child;
pub mod programs;
pub(super) mod rights;

use std::{
    io::{self, IoSlice, IoSliceMut, Read as _, Write as _},
    mem::MaybeUninit,
    net::Shutdown,
    os::{fd::AsFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    thread,
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::config;
use child::ChildOutput;

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

/// The daemon's connection to the broker.
#[derive(Debug)]
pub struct Broker {
    connection: UnixStream,
    files: Vec<PathBuf>,
}

static BROKER: OnceLock<Broker> = OnceLock::new();

/// This process's broker, if it has one.
pub(super) fn own_broker() -> Option<&'static Broker> {
    BROKER.get()
}

/// From now on this process uses the broker at the other end of `connection` for programs and `files`. May be called
/// once, because the process gives up these rights for good.
pub fn use_broker(connection: UnixStream, files: Vec<PathBuf>) {
    let set = BROKER.set(Broker { connection, files });
    debug_assert!(set.is_ok(), "a process has one broker");
}

/// The text of a file. If there is a broker, it must have been started for this file.
pub fn read(path: &Path) -> io::Result<String> {
    match own_broker() {
        Some(broker) => broker.read(path),
        None => config::read_text(path),
    }
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
    pub(super) fn run(
        &self,
        program: &str,
        arguments: &[&str],
        input: &str,
    ) -> io::Result<ChildOutput> {
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
        let (mut mine, theirs) = UnixStream::pair()?;
        let passed = [theirs.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&passed));
        sendmsg(&self.connection, &[IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL)?;
        drop(theirs);
        mine.write_all(&serde_json::to_vec(request)?)?;
        mine.shutdown(Shutdown::Write)?;
        let mut answer = Vec::new();
        mine.read_to_end(&mut answer)?;
        if answer.is_empty() {
            return Err(io::Error::other("the daemon's broker has ended"));
        }
        Ok(serde_json::from_slice::<Result<T, Refusal>>(&answer)??)
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
        Request::Run { words, input } => encode_answer(run(&words, &input, confine)),
        Request::Read(number) => encode_answer(match files.get(number) {
            Some(file) => config::read_text(file),
            None => Err(io::ErrorKind::InvalidInput.into()),
        }),
    };
    stream.write_all(&answer?)
}

fn encode_answer<T: Serialize>(outcome: io::Result<T>) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&outcome.map_err(Refusal::from))
}

fn run(words: &[String], input: &str, confine: fn() -> io::Result<()>) -> io::Result<ChildOutput> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.split_first() {
        Some((program, arguments)) if COMMANDS.contains(&words.as_slice()) => {
            confine()?;
            child::run(program, arguments, input)
        }
        _ => Err(io::Error::other(format!("the broker does not run `{}`", words.join(" ")))),
    }
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
        (Broker { connection, files }, thread)
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
        assert_eq!(broker.read(&file).unwrap_err().kind(), io::ErrorKind::NotFound);
        for text in ["one", "two"] {
            std::fs::write(&other, text).unwrap();
            std::fs::rename(&other, &file).unwrap();
            assert_eq!(broker.read(&file).unwrap(), text);
        }
        std::fs::write(&other, "secret").unwrap();
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
        let alone = Broker { connection: gone, files: Vec::new() };
        assert_eq!(alone.run("id", &[], "").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
