//! The state directory: what a restarted daemon needs to continue, after a crash too.
//!
//! - `queue-N.sessions` is the journal of a worker's engine: its records, each with length and checksum.
//! - `restored.sessions` is the journal of the sessions that were restored, until a worker adopts them.
//! - `table.json` says which rules are loaded.
//! - `backend` says which back end has the pinholes.
//! - `last-session` has the number of the last session, and when this boot began by the clock that was most ahead.
//!
//! Invariants:
//! - Records are written before the verdicts that they belong to, so a restarted daemon knows every change that a
//!   packet has shown to a peer.
//! - When most records are superseded, the journal is replaced by a checkpoint.
//! - The sessions of all journals are restored together, so a daemon with more or fewer workers can continue with them. If
//!   a session is in two, a worker has adopted it, and the worker's journal is newer.
//! - All files are valid for one boot of one network namespace. A journal of another one, or a damaged one, is renamed,
//!   and no record of it is used.
//! - No link, pipe or device is followed.

use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    net::SocketAddr,
    os::unix::fs::{FileExt as _, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use ftp_alg_core::engine::{
    Batch, Engine, RECORD_FORMAT, RestoredCounts, SessionRecords, Translation,
};

use super::{
    counted::counted,
    records::{Frame, Need, Records, append_frame},
};
use crate::kernel::{
    clocks::{monotonic_zero, since_1970},
    parameters::Backend,
    table::TableRecord,
};

/// The file that says which rules are loaded.
const TABLE_RECORD: &str = "table.json";
/// The file that says which back end has the pinholes.
const BACKEND: &str = "backend";
/// The file with the number of the last session, and the boot's beginning in microseconds since 1970: eight bytes each.
const LAST_SESSION: &str = "last-session";
/// The journal of the sessions that were restored.
const RESTORED: &str = "restored.sessions";
/// The start of every journal, before the number of its format.
const MAGIC: &str = "ftp-alg sessions, format ";
/// How much longer than twice its last checkpoint a journal may be before it gets the next.
const SLACK: u64 = 4 << 20;
/// Longer files are refused. No journal is as long, and reading one would take too much memory.
const MAX_LENGTH: u64 = 1 << 30;
/// Saved numbers are less: a reader of JSON may compute with floating-point numbers.
const MAX_NUMBER: u64 = 1 << 53;
/// How many bytes of a checkpoint are collected before they are written.
const CHUNK: usize = 1 << 20;

/// The state directory, for this boot and this network namespace.
#[derive(Clone, Debug)]
pub(super) struct StateDir {
    path: PathBuf,
    /// The first line of every journal: the format, the boot and the network namespace.
    origin: String,
}

/// The number of the last session with an event, so that numbers count on over a restart.
pub(super) struct LastSession {
    number: u64,
    first_event: u64,
    file: Option<File>,
}

impl LastSession {
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// The ID of this daemon's first event: the time in microseconds since 1970, or more if the clock was put back in this boot.
    pub(super) fn first_event(&self) -> u64 {
        self.first_event
    }

    /// Saves the number if it has changed.
    pub(super) fn set(&mut self, number: u64) {
        if self.number != number {
            self.number = number;
            let bytes = number.to_le_bytes();
            let _ = self.file.as_ref().map(|file| file.write_all_at(&bytes, 0));
        }
    }
}

/// Whether a path is that of a queue's journal.
fn is_journal(path: &Path) -> bool {
    let name =
        path.file_name().and_then(OsStr::to_str).and_then(|name| name.strip_prefix("queue-"));
    let number = name.and_then(|name| name.strip_suffix(".sessions"));
    number.is_some_and(|number| number.parse::<u16>().is_ok())
}

/// Reads a state file. Refuses anything but a regular file, because opening a pipe may wait for ever, and a device may
/// have no end.
fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let found = fs::symlink_metadata(path)?;
    if !found.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    if found.len() > MAX_LENGTH {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    fs::read(path)
}

impl StateDir {
    /// The directory at `path`.
    pub(super) fn new(path: &Path) -> io::Result<Self> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let namespace = fs::metadata("/proc/thread-self/ns/net")?;
        let (device, inode) = (namespace.dev(), namespace.ino());
        Ok(Self {
            path: path.to_owned(),
            origin: format!(
                "{MAGIC}{RECORD_FORMAT}; boot {}, namespace {device}:{inode}\n",
                boot.trim_end()
            ),
        })
    }

    /// Restores the sessions of all journals at these control ports into the first of `engines`, unless they are another
    /// gateway's by now. Then starts a new journal for each engine: the one of the restored sessions, and those of `queues`.
    pub(super) fn open_journals(
        &self,
        control_ports: &[u16],
        queues: &[u16],
        engines: &mut [Engine],
        restores: bool,
    ) -> io::Result<Vec<Journal>> {
        let (restored_path, found) = (self.path.join(RESTORED), self.find_journals()?);
        let mut saved = SessionRecords::default();
        let found_here = found.iter().filter(|_| restores);
        // The journal of a worker is newer for the sessions that the worker has adopted.
        let leftover = Some(&restored_path).filter(|path| restores && path.exists());
        for journal in leftover.into_iter().chain(found_here) {
            match self.read_journal(journal) {
                Ok(sessions) => saved.add(sessions),
                Err(why) => put_aside(journal, &why)?,
            }
        }
        saved.mark_unqueued(|server, translation| is_queued(control_ports, server, translation));
        let mut all = RestoredCounts::default();
        if let [restored, ..] = engines {
            all = restored.sessions.restore_sessions(saved, Instant::now(), monotonic_zero());
        }
        engines.iter_mut().for_each(|engine| engine.sessions.track_changes(monotonic_zero()));
        let RestoredCounts { sessions, adjusted, transferring } = all;
        if sessions > 0 {
            log_event!(
                RESTORED,
                sessions,
                adjusted,
                "restored {} ({adjusted} with sequence adjustment) from {}",
                counted(sessions as u64, "session"),
                self.path.display()
            );
        }
        if transferring > 0 {
            log_event!(
                TRANSFERS_INTERRUPTED,
                sessions = transferring,
                "a transfer was under way in {} when the last daemon ended: what has ended since was not seen, and is \
                 reported as unseen with the next command or the end of its session",
                counted(transferring as u64, "session")
            );
        }
        let of_queue = |number: &u16| self.path.join(format!("queue-{number}.sessions"));
        let paths: Vec<_> =
            [restored_path].into_iter().chain(queues.iter().map(of_queue)).collect();
        // The restored sessions first: a start that is interrupted then has each in one journal at least.
        let mut journals = Vec::new();
        for (path, engine) in paths.iter().zip(engines.iter_mut()) {
            journals.push(self.create_journal(path.clone(), engine)?);
        }
        // There may be room now that the old journals are replaced.
        if let ([restored, ..], [engine, ..]) = (&mut journals[..], engines)
            && !restored.is_writable()
        {
            let _ = restored.maintain(engine); // the first failure is in the log
        }
        for old in found.iter().filter(|path| !paths.contains(path)) {
            remove_journal(old)?;
        }
        Ok(journals)
    }

    /// Creates the journal at `path`, with the sessions of `engine`.
    fn create_journal(&self, path: PathBuf, engine: &mut Engine) -> io::Result<Journal> {
        let mut journal = Journal {
            path,
            origin: self.origin.clone(),
            file: None,
            length: 0,
            checkpoint_at: 0,
            buffer: Vec::new(),
        };
        // Without room, FTP works all the same.
        if let Err(error) = journal.checkpoint(engine) {
            remove_journal(&journal.path)?;
            let (path, text) = (journal.path.display(), journal.describe_failure(&error));
            log_event!(ERROR, %path, "{text}");
        }
        Ok(journal)
    }

    /// The paths of all journals, also those of queues that this daemon does not have.
    fn find_journals(&self) -> io::Result<Vec<PathBuf>> {
        let all = fs::read_dir(&self.path)?.map(|entry| entry.map(|entry| entry.path()));
        all.filter(|path| path.as_ref().map_or(true, |path| is_journal(path))).collect()
    }

    /// Reads the sessions of a journal. The error says why it is not used.
    fn read_journal(&self, path: &Path) -> Result<SessionRecords, String> {
        let content = read_file(path).map_err(|error| format!("it cannot be read: {error}"))?;
        SessionRecords::read(self.split_records(&content)?.into_iter())
            .map_err(|error| format!("it is damaged: {error}"))
    }

    /// The records of a journal. A crash may cut off the last record. No verdict was given for it, so it is left out.
    fn split_records<'c>(&self, content: &'c [u8]) -> Result<Vec<&'c [u8]>, String> {
        if !content.starts_with(MAGIC.as_bytes()) {
            return Err("it is not a journal of ftp-alg".to_owned());
        }
        let format = format!("{MAGIC}{RECORD_FORMAT};");
        let Some(mut rest) = content.strip_prefix(self.origin.as_bytes()) else {
            let why = match content.starts_with(format.as_bytes()) {
                true => "it is of another boot or network namespace",
                false => "it is of another version of ftp-alg, whose records have another format",
            };
            return Err(why.to_owned());
        };
        let mut records = Vec::new();
        loop {
            match Frame::read(rest) {
                Frame::Whole(record, after) => {
                    records.push(record);
                    rest = after;
                }
                Frame::Cut => break,
                Frame::Damaged => {
                    return Err(format!("it is damaged at byte {}", content.len() - rest.len()));
                }
            }
        }
        Ok(records)
    }

    /// The rules that an earlier daemon loaded. `None` if there were none, or the file cannot be read: then the rules
    /// are loaded again.
    pub(super) fn table_record(&self) -> Option<TableRecord> {
        let text = read_file(&self.path.join(TABLE_RECORD)).ok()?;
        let (origin, record): (String, TableRecord) = serde_json::from_slice(&text).ok()?;
        (origin == self.origin).then_some(record)
    }

    /// Saves which rules are loaded.
    pub(super) fn set_table_record(&self, record: Option<&TableRecord>) -> Result<(), String> {
        let text = serde_json::to_string(&(&self.origin, record)).unwrap_or_default();
        self.save(TABLE_RECORD, &text, "loads the rules again")
    }

    /// The back end of an earlier daemon. `None` if there was none.
    pub(super) fn backend(&self) -> Option<Backend> {
        let text = String::from_utf8(read_file(&self.path.join(BACKEND)).ok()?).ok()?;
        text.strip_prefix(&self.origin)?.trim_end().parse().ok()
    }

    /// Saves which back end is in use.
    pub(super) fn set_backend(&self, backend: Backend) -> Result<(), String> {
        let text = format!("{}{backend}\n", self.origin);
        self.save(BACKEND, &text, "may take another back end")
    }

    /// The number of the last session, from its file. If the file cannot be read or made, numbers begin again.
    pub(super) fn last_session(&self) -> LastSession {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        options.custom_flags(libc::O_NOFOLLOW);
        let file = options.open(self.path.join(LAST_SESSION)).ok();
        let saved = |at| {
            let mut bytes = [0; 8];
            file.as_ref()?.read_exact_at(&mut bytes, at).ok()?;
            Some(u64::from_le_bytes(bytes)).filter(|number| *number < MAX_NUMBER)
        };
        let micros = |span: Duration| u64::try_from(span.as_micros()).unwrap_or_default();
        let since_boot = micros(monotonic_zero().elapsed());
        let boot = saved(8).unwrap_or(0).max(micros(since_1970()).saturating_sub(since_boot));
        let _ = file.as_ref().map(|file| file.write_all_at(&boot.to_le_bytes(), 8));
        let (number, first_event) = (saved(0).unwrap_or(0), boot.saturating_add(since_boot));
        LastSession { number, first_event, file }
    }

    fn save(&self, file: &str, text: &str, otherwise: &str) -> Result<(), String> {
        let path = self.path.join(file);
        replace_file(&path, |file| file.write_all(text.as_bytes())).map(drop).map_err(|error| {
            format!(
                "cannot write {}: {error}; after a restart, ftp-alg {otherwise}",
                path.display()
            )
        })
    }
}

/// Whether the rules queue a connection: by the server's own port, or by the port that its clients dialled. While the
/// translation is unknown, the dialled port may be any.
pub(super) fn is_queued(
    control_ports: &[u16],
    server: SocketAddr,
    translation: Option<&Translation>,
) -> bool {
    control_ports.contains(&server.port())
        || translation.is_none_or(|ends| control_ports.contains(&ends.server_external.port()))
}

/// Removes a journal, so that no later start uses it.
fn remove_journal(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Renames a journal that is not used. Refuses anything but a regular file, because landlock forbids to rename that.
fn put_aside(journal: &Path, why: &str) -> io::Result<()> {
    if !fs::symlink_metadata(journal)?.is_file() {
        return Err(io::Error::other(format!("{} is not a regular file", journal.display())));
    }
    let aside = journal.with_extension("refused");
    fs::rename(journal, &aside)?;
    let (path, renamed) = (journal.display(), aside.display());
    log_event!(
        JOURNAL_REFUSED,
        %path,
        %renamed,
        "journal {path} is not used, and is renamed {renamed}: {why}. Connections whose sequence numbers were adjusted \
         before this start break, and no pinhole is opened for the others: their clients must connect again"
    );
    Ok(())
}

/// Replaces the file at `path`, atomically, by a file with the contents that `write` writes. Returns it, positioned at
/// its end.
fn replace_file(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<File> {
    let new = path.with_extension("new");
    // A crash may have left it, or it is a pipe, which would hold up the daemon.
    let _ = fs::remove_file(&new);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    if let Err(error) = write(&mut file).and_then(|()| fs::rename(&new, path)) {
        // If there was no room for it, it takes room that other files need.
        let _ = fs::remove_file(new);
        return Err(error);
    }
    Ok(file)
}

/// The journal of one engine.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    origin: String,
    /// The open file. `None` while it cannot be written: then the old file is removed, because it must not be restored.
    file: Option<File>,
    length: u64,
    /// The length at which the next checkpoint is due.
    checkpoint_at: u64,
    buffer: Vec<u8>,
}

impl Records for Journal {
    fn write(&mut self, batch: &Batch, _: Need) -> Result<(), String> {
        self.append(batch.records().map(|record| record.bytes))
    }

    /// Writes a checkpoint if one is due, if the journal could not be written before, or if its file was removed.
    fn maintain(&mut self, engine: &mut Engine) -> Result<(), String> {
        let own = self.file.as_ref().and_then(|file| file.metadata().ok());
        let there = fs::metadata(&self.path).ok();
        let is_in_place = own.zip(there).is_some_and(|(own, there)| own.ino() == there.ino());
        let written = match is_in_place {
            true if !self.needs_checkpoint() => Ok(()),
            // If the checkpoint fails, the present file is still valid.
            true => {
                self.checkpoint(engine).inspect_err(|_| self.checkpoint_at = self.length + SLACK)
            }
            false => self.checkpoint(engine).inspect_err(|_| self.file = None),
        };
        written.map_err(|error| self.describe_failure(&error))
    }
}

impl Journal {
    /// Appends records. What is in the page cache survives a crash of the daemon.
    fn append<'r>(&mut self, records: impl Iterator<Item = &'r [u8]>) -> Result<(), String> {
        self.buffer.clear();
        records.for_each(|record| append_frame(record, &mut self.buffer));
        let Some(file) = self.file.as_mut().filter(|_| !self.buffer.is_empty()) else {
            return Ok(());
        };
        if let Err(error) = file.write_all(&self.buffer) {
            self.file = None;
            // So that no later start uses it.
            let _ = fs::remove_file(&self.path);
            return Err(self.describe_failure(&error));
        }
        self.length += self.buffer.len() as u64;
        Ok(())
    }

    /// Whether a checkpoint is due, because most records are superseded.
    pub(super) fn needs_checkpoint(&self) -> bool {
        self.length > self.checkpoint_at
    }

    /// Whether the last write succeeded.
    pub(super) fn is_writable(&self) -> bool {
        self.file.is_some()
    }

    /// As [`maintain`](Records::maintain), with a checkpoint in any case.
    pub(super) fn replace(&mut self, engine: &mut Engine) -> Result<(), String> {
        self.checkpoint(engine).map_err(|error| self.describe_failure(&error))
    }

    /// Replaces the journal by a checkpoint: all sessions of `engine`.
    fn checkpoint(&mut self, engine: &mut Engine) -> io::Result<()> {
        let Self { path, origin, buffer, .. } = self;
        buffer.clear();
        buffer.extend_from_slice(origin.as_bytes());
        let mut length = 0;
        let file = replace_file(path, |file| {
            let mut written = Ok(());
            let read = engine.sessions.write_all_records(|record| {
                append_frame(record.bytes, buffer);
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
        // Not before: if this fails, they are appended to the present file.
        engine.sessions.forget_changes();
        buffer.shrink_to(2 * CHUNK);
        (self.file, self.length, self.checkpoint_at) = (Some(file), length, 2 * length + SLACK);
        Ok(())
    }

    /// The text for a journal that cannot be written.
    fn describe_failure(&self, error: &io::Error) -> String {
        let remedy = match error.kind() {
            // Landlock allows the directory that was there at the start, not one that took its place.
            io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => {
                "if its directory was removed or replaced, restart ftp-alg"
            }
            _ => "ftp-alg tries again each second",
        };
        format!(
            "cannot write journal {}: {error}; until this works, no session survives a restart; {remedy}",
            self.path.display()
        )
    }

    /// The path of its file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
