//! The state directory: what a daemon that is started again must know, after a crash too.
//!
//! Each engine has a journal of its sessions, `queue-N.sessions`: records of the engine, each behind its
//! length and checksum, appended before the verdicts that they belong to, and written anew when most of
//! them are superseded. A daemon with more workers or fewer goes on with them, too. `table.json` says which
//! rules are loaded, `backend` what holds the pinholes. All hold for one boot of one network namespace; what is of
//! another, or damaged, is put aside, and nothing of it is believed.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use ftp_alg_core::engine::{Engine, RECORD_FORMAT, Restored, SavedSessions};
use rustix::time::{ClockId, clock_gettime};

use super::shard_map::ShardMap;
use crate::gateway::{Backend, Imprint};

/// Which rules are loaded, and what holds the pinholes.
const IMPRINT: &str = "table.json";
const BACKEND: &str = "backend";
/// All sessions, while a daemon starts.
const ALL_SESSIONS: &str = "all.sessions";
/// What each journal begins with, up to its format.
const MAGIC: &str = "ftp-alg sessions, format ";
/// Length and checksum of a record, both as 32 bits, little end first.
const FRAME_HEADER: usize = 8;
/// A journal is written anew when it is this much longer than twice what it then was.
const SLACK: u64 = 4 << 20;
/// No journal is as long; to read one that is would take memory that others need.
const MAX_JOURNAL: u64 = 1 << 30;
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
enum JournalError {
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("it is no journal of ftp-alg")]
    NotAJournal,
    #[error("it is of another version of ftp-alg, whose records have another form")]
    OtherFormat,
    #[error("it is of another boot or network namespace")]
    OtherOrigin,
    #[error("it is damaged at byte {0}")]
    Damaged(usize),
    #[error("it is damaged: {0}")]
    Record(#[from] ftp_alg_core::engine::BadRecord),
}

impl StateDir {
    /// The directory at `path`.
    pub(super) fn new(path: &Path) -> io::Result<Self> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let namespace = fs::metadata("/proc/thread-self/ns/net")?;
        let (device, inode) = (namespace.dev(), namespace.ino());
        let since_boot = Duration::try_from(clock_gettime(ClockId::Monotonic)).unwrap_or_default();
        let now = Instant::now();
        Ok(Self {
            path: path.to_owned(),
            origin: format!(
                "{MAGIC}{RECORD_FORMAT}; boot {}, namespace {device}:{inode}\n",
                boot.trim_end()
            ),
            epoch: now.checked_sub(since_boot).unwrap_or(now),
        })
    }

    /// A journal for each of `queues`, of one of `engines` each. These go on with all that is kept, however many wrote it: each
    /// connection in the engine that is its home.
    pub(super) fn open_journals(
        &self,
        queues: &[u16],
        engines: &mut [Engine],
    ) -> io::Result<Vec<Journal>> {
        let (whole, left) = (self.path.join(ALL_SESSIONS), self.find_journals()?);
        let mut saved = SavedSessions::default();
        // That of a start that did not come to its end has all of them.
        let believed = if whole.exists() { std::slice::from_ref(&whole) } else { &left[..] };
        for journal in believed {
            match self.read_journal(journal) {
                Ok(sessions) => saved.add(sessions),
                Err(why) => put_aside(journal, &why)?,
            }
        }
        let mut all = Restored::default();
        let homes = ShardMap(engines.len());
        let parts =
            saved.divide(engines.len(), |client, server| homes.shard_of_connection(client, server));
        for (engine, part) in engines.iter_mut().zip(parts) {
            let restored = engine.sessions.go_on_with(part, Instant::now(), self.epoch);
            all.sessions += restored.sessions;
            all.adjusted += restored.adjusted;
            engine.sessions.note_changes(self.epoch);
        }
        if let Restored { sessions: 1.., adjusted } = all {
            tracing::info!(
                "{}: {} control connections of before go on, {adjusted} of them adjusted",
                self.path.display(),
                all.sessions
            );
        }
        // Until each journal has its part, one has all. Where there is no room for it the others are tried all the same.
        let _ = write_checkpoint(&whole, &self.origin, engines, &mut Vec::new());
        let mut journals = Vec::new();
        for (number, engine) in queues.iter().zip(engines) {
            let path = self.path.join(format!("queue-{number}.sessions"));
            journals.push(self.create_journal(path, engine)?);
        }
        let is_ours = |path: &PathBuf| journals.iter().any(|journal| journal.path == *path);
        for old in left.iter().filter(|path| !is_ours(path)).chain([&whole]) {
            remove_journal(old)?;
        }
        Ok(journals)
    }

    /// The journal at `path`, with what `engine` knows.
    fn create_journal(&self, path: PathBuf, engine: &mut Engine) -> io::Result<Journal> {
        let mut journal = Journal {
            path,
            origin: self.origin.clone(),
            file: None,
            length: 0,
            checkpoint_at: 0,
            buffer: Vec::new(),
        };
        // Without room FTP goes on, as in a daemon that runs.
        if let Err(error) = journal.checkpoint(engine) {
            remove_journal(&journal.path)?;
            tracing::error!("{}", journal.describe_write_failure(&error));
        }
        Ok(journal)
    }

    /// Where there are journals, whoever wrote them.
    fn find_journals(&self) -> io::Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix("queue-"));
            let number =
                number.and_then(|name| name.strip_suffix(".sessions")?.parse::<u16>().ok());
            if number.is_some() {
                found.push(entry.path());
            }
        }
        Ok(found)
    }

    /// The sessions of a journal.
    fn read_journal(&self, path: &Path) -> Result<SavedSessions, JournalError> {
        if fs::metadata(path)?.len() > MAX_JOURNAL {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge).into());
        }
        Ok(SavedSessions::read(self.split_records(&fs::read(path)?)?.into_iter())?)
    }

    /// The records of a journal. What a crash cut off at its end had not taken effect either.
    fn split_records<'c>(&self, content: &'c [u8]) -> Result<Vec<&'c [u8]>, JournalError> {
        if !content.starts_with(MAGIC.as_bytes()) {
            return Err(JournalError::NotAJournal);
        }
        let format = format!("{MAGIC}{RECORD_FORMAT};");
        let Some(mut rest) = content.strip_prefix(self.origin.as_bytes()) else {
            let same = content.starts_with(format.as_bytes());
            return Err(if same { JournalError::OtherOrigin } else { JournalError::OtherFormat });
        };
        let mut records = Vec::new();
        while let Some((frame, after)) = rest.split_first_chunk::<FRAME_HEADER>() {
            let [a, b, c, d, sum @ ..] = *frame;
            let length = u32::from_le_bytes([a, b, c, d]) as usize;
            let Some((record, after)) = after.split_at_checked(length) else { break };
            // Zeros have a checksum of zero.
            if length == 0 || crc32fast::hash(record) != u32::from_le_bytes(sum) {
                return Err(JournalError::Damaged(content.len() - rest.len()));
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
        self.save(IMPRINT, &text, "will load the rules again, too")
    }

    /// The back end of an earlier daemon; `None` if there was none here.
    pub(super) fn backend(&self) -> Option<Backend> {
        let text = fs::read_to_string(self.path.join(BACKEND)).ok()?;
        text.strip_prefix(&self.origin)?.trim_end().parse().ok()
    }

    /// Remembers which back end is in use.
    pub(super) fn set_backend(&self, backend: Backend) -> Result<(), String> {
        let text = format!("{}{backend}\n", self.origin);
        self.save(BACKEND, &text, "may take another back end")
    }

    fn save(&self, file: &str, text: &str, otherwise: &str) -> Result<(), String> {
        let path = self.path.join(file);
        replace_file(&path, |file| file.write_all(text.as_bytes())).map(drop).map_err(|error| {
            format!("{}: {error}; a daemon that is started again {otherwise}", path.display())
        })
    }
}

/// Removes a journal that must not be believed later.
fn remove_journal(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn put_aside(journal: &Path, why: &JournalError) -> io::Result<()> {
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
fn replace_file(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<File> {
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

/// Puts a file with all sessions of `engines` in the place of the one at `path`. Gives it, at its end, and its length.
fn write_checkpoint(
    path: &Path,
    origin: &str,
    engines: &mut [Engine],
    buffer: &mut Vec<u8>,
) -> io::Result<(File, u64)> {
    buffer.clear();
    buffer.extend_from_slice(origin.as_bytes());
    let mut length = 0;
    let file = replace_file(path, |file| {
        let mut written = Ok(());
        for engine in engines {
            let read = engine.sessions.records(|record| {
                append_frame(record, buffer);
                if buffer.len() >= CHUNK && written.is_ok() {
                    length += buffer.len() as u64;
                    written = file.write_all(buffer);
                    buffer.clear();
                }
            });
            read.map_err(io::Error::other)?;
        }
        written?;
        length += buffer.len() as u64;
        file.write_all(buffer)
    })?;
    Ok((file, length))
}

/// The sessions of one engine, as a file.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    origin: String,
    /// `None` while it cannot be written; then there is no file, rather than an old one.
    file: Option<File>,
    length: u64,
    /// From which length on it is written anew.
    checkpoint_at: u64,
    buffer: Vec<u8>,
}

impl Journal {
    /// Writes records; to be called before the verdicts that they belong to are given.
    pub(super) fn write<'r>(&mut self, records: impl Iterator<Item = &'r [u8]>) -> io::Result<()> {
        self.buffer.clear();
        records.for_each(|record| append_frame(record, &mut self.buffer));
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
    pub(super) fn maintain(&mut self, engine: &mut Engine) -> io::Result<()> {
        let kept = match &self.file {
            Some(file) => {
                let there = fs::metadata(&self.path).map(|there| there.ino());
                there.ok() == Some(file.metadata()?.ino())
            }
            None => false,
        };
        match kept {
            true if !self.needs_checkpoint() => Ok(()),
            // If that fails, this one is still right.
            true => {
                self.checkpoint(engine).inspect_err(|_| self.checkpoint_at = self.length + SLACK)
            }
            false => self.checkpoint(engine).inspect_err(|_| self.file = None),
        }
    }

    /// Whether most of it is superseded.
    pub(super) fn needs_checkpoint(&self) -> bool {
        self.length > self.checkpoint_at
    }

    /// Whether it can be written, as far as is known.
    pub(super) fn is_writable(&self) -> bool {
        self.file.is_some()
    }

    /// Writes all sessions to a new file, which takes the place of the old one.
    fn checkpoint(&mut self, engine: &mut Engine) -> io::Result<()> {
        let engines = std::slice::from_mut(engine);
        let (file, length) = write_checkpoint(&self.path, &self.origin, engines, &mut self.buffer)?;
        self.file = Some(file);
        self.length = length;
        self.checkpoint_at = 2 * length + SLACK;
        self.buffer.shrink_to(2 * CHUNK);
        Ok(())
    }

    /// What to say where it cannot be written.
    pub(super) fn describe_write_failure(&self, error: &io::Error) -> String {
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

fn append_frame(record: &[u8], buffer: &mut Vec<u8>) {
    buffer.extend_from_slice(&(record.len() as u32).to_le_bytes()); // of bounded queues
    buffer.extend_from_slice(&crc32fast::hash(record).to_le_bytes());
    buffer.extend_from_slice(record);
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
