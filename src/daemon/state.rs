//! The state directory: what a daemon that is started again must know, after a crash too.
//!
//! Each worker has a journal of its sessions, `queue-N.sessions`: records of the engine, each behind its
//! length and checksum, appended before the verdicts that they belong to, and written anew when most of
//! them are superseded. `table.json` says which rules are loaded, `backend` what holds the pinholes. All hold for one boot of
//! one network namespace; what is of another, or damaged, is put aside, and nothing of it is believed.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use ftp_alg_core::engine::{Engine, RECORD_FORMAT, Restored};
use rustix::time::{ClockId, clock_gettime};

use crate::{
    config::Fanout,
    gateway::{Backend, Imprint},
};

/// Which rules are loaded, and what holds the pinholes.
const IMPRINT: &str = "table.json";
const BACKEND: &str = "backend";
/// What each journal begins with, up to its format.
const MAGIC: &str = "ftp-alg sessions, format ";
/// Length and checksum of a record, both as 32 bits, little end first.
const FRAME: usize = 8;
/// A journal is written anew when it is this much longer than twice what it then was.
const SLACK: u64 = 4 << 20;
/// No journal is as long; to read one that is would take memory that others need.
const LONGEST: u64 = 1 << 30;
/// So much of it is put together before it is written.
const CHUNK: usize = 1 << 20;

/// The state directory, as far as it concerns this boot and this network namespace.
#[derive(Debug)]
pub(super) struct StateDir {
    path: PathBuf,
    /// First line of every journal: what it is, and where it holds.
    origin: String,
    /// The moment that the kernel's monotonic clock counts from.
    epoch: Instant,
}

/// Why a journal is not believed.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("it is no journal of ftp-alg")]
    Foreign,
    #[error("it is of another version of ftp-alg, whose records have another form")]
    Version,
    #[error("it is of another boot or network namespace, or of other queues")]
    Elsewhere,
    #[error("it is damaged at byte {0}")]
    Damaged(usize),
    #[error("it is damaged: {0}")]
    Record(#[from] ftp_alg_core::engine::BadRecord),
}

impl StateDir {
    /// The directory at `path`, for workers of `queues`.
    pub(super) fn new(path: &Path, queues: &[u16], fanout: Fanout) -> io::Result<Self> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let namespace = fs::metadata("/proc/thread-self/ns/net")?;
        let (device, inode) = (namespace.dev(), namespace.ino());
        let since_boot = Duration::try_from(clock_gettime(ClockId::Monotonic)).unwrap_or_default();
        let now = Instant::now();
        put_aside_others(path, queues)?;
        Ok(Self {
            path: path.to_owned(),
            origin: format!(
                "{MAGIC}{RECORD_FORMAT}; boot {}, namespace {device}:{inode}, queues {queues:?} by {}\n",
                boot.trim_end(),
                fanout
            ),
            epoch: now.checked_sub(since_boot).unwrap_or(now),
        })
    }

    /// The journal of the worker of queue `number`. `engine` goes on with what is in it.
    pub(super) fn open(&self, number: u16, engine: &mut Engine) -> io::Result<Journal> {
        let path = self.path.join(format!("queue-{number}.sessions"));
        let name = path.display();
        match self.restore(&path, engine) {
            Ok(Restored { sessions: 0, .. }) => {}
            Ok(Restored { sessions, adjusted }) => tracing::info!(
                "{name}: {sessions} control connections of before go on, {adjusted} of them adjusted"
            ),
            Err(why) => put_aside(&path, &why)?,
        }
        engine.sessions.note_changes(self.epoch);
        let mut journal = Journal {
            path,
            origin: self.origin.clone(),
            file: None,
            length: 0,
            limit: 0,
            buffer: Vec::new(),
        };
        // Without room FTP goes on, as in a daemon that runs. An old journal must not be believed later.
        if let Err(error) = journal.rewrite(engine) {
            match fs::remove_file(&journal.path) {
                Err(other) if other.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => tracing::error!("{}", journal.not_kept(&error)),
            }
        }
        Ok(journal)
    }

    fn restore(&self, path: &Path, engine: &mut Engine) -> Result<Restored, Refusal> {
        if fs::metadata(path).is_ok_and(|file| file.len() > LONGEST) {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge).into());
        }
        let content = match fs::read(path) {
            Ok(content) => content,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Restored::default()),
            Err(error) => return Err(error.into()),
        };
        let records = self.records(&content)?;
        Ok(engine.sessions.restore(records.into_iter(), Instant::now(), self.epoch)?)
    }

    /// The records of a journal. What a crash cut off at its end had not taken effect either.
    fn records<'c>(&self, content: &'c [u8]) -> Result<Vec<&'c [u8]>, Refusal> {
        if !content.starts_with(MAGIC.as_bytes()) {
            return Err(Refusal::Foreign);
        }
        let format = format!("{MAGIC}{RECORD_FORMAT};");
        let Some(mut rest) = content.strip_prefix(self.origin.as_bytes()) else {
            let same = content.starts_with(format.as_bytes());
            return Err(if same { Refusal::Elsewhere } else { Refusal::Version });
        };
        let mut records = Vec::new();
        while let Some((frame, after)) = rest.split_first_chunk::<FRAME>() {
            let [a, b, c, d, sum @ ..] = *frame;
            let length = u32::from_le_bytes([a, b, c, d]) as usize;
            let Some((record, after)) = after.split_at_checked(length) else { break };
            // Zeros have a checksum of zero.
            if length == 0 || crc32fast::hash(record) != u32::from_le_bytes(sum) {
                return Err(Refusal::Damaged(content.len() - rest.len()));
            }
            records.push(record);
            rest = after;
        }
        Ok(records)
    }

    /// The rules that an earlier daemon loaded; `None` if none did here, or that cannot be read, as then
    /// they are loaded again.
    pub(super) fn imprint(&self) -> Option<Imprint> {
        let text = fs::read_to_string(self.path.join(IMPRINT)).ok()?;
        let (origin, imprint): (String, Imprint) = serde_json::from_str(&text).ok()?;
        (origin == self.origin).then_some(imprint)
    }

    /// Remembers which rules are loaded.
    pub(super) fn set_imprint(&self, imprint: Option<&Imprint>) -> Result<(), String> {
        let text = serde_json::to_string(&(&self.origin, imprint)).unwrap_or_default();
        self.remember(IMPRINT, &text, "will load the rules again, too")
    }

    /// The back end of an earlier daemon; `None` if there was none here.
    pub(super) fn backend(&self) -> Option<Backend> {
        let text = fs::read_to_string(self.path.join(BACKEND)).ok()?;
        text.strip_prefix(&self.origin)?.trim_end().parse().ok()
    }

    /// Remembers which back end is in use.
    pub(super) fn set_backend(&self, backend: Backend) -> Result<(), String> {
        let text = format!("{}{backend}\n", self.origin);
        self.remember(BACKEND, &text, "may take another back end")
    }

    fn remember(&self, file: &str, text: &str, otherwise: &str) -> Result<(), String> {
        let path = self.path.join(file);
        replace_with(&path, |file| file.write_all(text.as_bytes())).map(drop).map_err(|error| {
            format!("{}: {error}; a daemon that is started again {otherwise}", path.display())
        })
    }
}

/// Journals of queues that are not among `queues`: nobody writes them, so that a daemon which has those queues
/// again would believe what is long over.
fn put_aside_others(path: &Path, queues: &[u16]) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("queue-"));
        let number = number.and_then(|name| name.strip_suffix(".sessions")?.parse().ok());
        if number.is_some_and(|number| !queues.contains(&number)) {
            put_aside(&entry.path(), &Refusal::Elsewhere)?;
        }
    }
    Ok(())
}

fn put_aside(journal: &Path, why: &Refusal) -> io::Result<()> {
    let aside = journal.with_extension("refused");
    tracing::warn!(
        "{} is not used, and now called {}: {why}. Connections whose numbers were adjusted before \
         this start end; nothing is opened on the others",
        journal.display(),
        aside.display()
    );
    fs::rename(journal, aside)
}

/// Puts a file with what `write` writes in the place of the one at `path`, at once. Gives it, at its end.
fn replace_with(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<File> {
    let new = path.with_extension("new");
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    if let Err(error) = write(&mut file).and_then(|()| fs::rename(&new, path)) {
        // There may be no room for it, and then it takes what others need.
        let _ = fs::remove_file(new);
        return Err(error);
    }
    Ok(file)
}

/// The sessions of one worker, as a file.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    origin: String,
    /// `None` while it cannot be written; then there is no file, rather than an old one.
    file: Option<File>,
    length: u64,
    /// From which length on it is written anew.
    limit: u64,
    buffer: Vec<u8>,
}

impl Journal {
    /// Writes records; to be called before the verdicts that they belong to are given.
    pub(super) fn write<'r>(&mut self, records: impl Iterator<Item = &'r [u8]>) -> io::Result<()> {
        self.buffer.clear();
        records.for_each(|record| frame(record, &mut self.buffer));
        let Some(file) = self.file.as_mut().filter(|_| !self.buffer.is_empty()) else {
            return Ok(());
        };
        if let Err(error) = file.write_all(&self.buffer) {
            self.file = None;
            // Lest it be believed.
            let _ = fs::remove_file(&self.path);
            return Err(error);
        }
        self.length += self.buffer.len() as u64;
        Ok(())
    }

    /// Writes it anew if most of it is superseded, or that failed before, or the file is not there any more. To be called
    /// about once a second.
    pub(super) fn recover(&mut self, engine: &mut Engine) -> io::Result<()> {
        let kept = match &self.file {
            Some(file) => {
                let there = fs::metadata(&self.path).map(|there| there.ino());
                there.ok() == Some(file.metadata()?.ino())
            }
            None => false,
        };
        match kept {
            true if !self.is_outgrown() => Ok(()),
            // If that fails, this one is still right.
            true => self.rewrite(engine).inspect_err(|_| self.limit = self.length + SLACK),
            false => self.rewrite(engine).inspect_err(|_| self.file = None),
        }
    }

    /// Whether most of it is superseded.
    pub(super) fn is_outgrown(&self) -> bool {
        self.length > self.limit
    }

    /// Whether it can be written, as far as is known.
    pub(super) fn is_written(&self) -> bool {
        self.file.is_some()
    }

    /// Writes all sessions to a new file, which takes the place of the old one.
    fn rewrite(&mut self, engine: &mut Engine) -> io::Result<()> {
        let Self { path, origin, buffer, .. } = self;
        buffer.clear();
        buffer.extend_from_slice(origin.as_bytes());
        let mut length = 0;
        let file = replace_with(path, |file| {
            let mut written = Ok(());
            let read = engine.sessions.records(|record| {
                frame(record, buffer);
                if buffer.len() >= CHUNK && written.is_ok() {
                    length += buffer.len() as u64;
                    written = file.write_all(buffer);
                    buffer.clear();
                }
            });
            read.map_err(io::Error::other)?;
            written?;
            length += buffer.len() as u64;
            file.write_all(buffer)
        })?;
        self.file = Some(file);
        self.length = length;
        self.limit = 2 * length + SLACK;
        self.buffer.shrink_to(2 * CHUNK);
        Ok(())
    }

    /// What to say where it cannot be written.
    pub(super) fn not_kept(&self, error: &io::Error) -> String {
        let remedy = match error.kind() {
            // The right to write there is one to that directory, whatever took its place.
            io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => {
                "was its directory removed or replaced? Then start ftp-alg again"
            }
            _ => "it is tried again each second",
        };
        format!(
            "{}: {error}; until this works, no session survives a restart; {remedy}",
            self.path.display()
        )
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

fn frame(record: &[u8], buffer: &mut Vec<u8>) {
    buffer.extend_from_slice(&(record.len() as u32).to_le_bytes()); // of bounded queues
    buffer.extend_from_slice(&crc32fast::hash(record).to_le_bytes());
    buffer.extend_from_slice(record);
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
