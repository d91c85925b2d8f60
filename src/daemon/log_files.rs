//! The files of `log.events` and `log.transfers`: a line for each event, for each transfer. A file that cannot be written costs
//! lines, which are counted, and nothing else.

use std::{
    borrow::Cow,
    fs::{self, File, Metadata, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use jiff::tz::TimeZone;
use rustix::fs::{FallocateFlags, OFlags, fallocate};

use super::{
    catalogue,
    counted::{counted, was_or_were},
    events::{StoredEvent, Unwritten},
    log::{LineLimiter, SkippedLines, daemon_lines},
    transfers::xferlog,
};
use crate::config::{LineFormat, LogSettings};

/// The interval between two looks whether a path leads to its file.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Bytes of free space with which a file counts as writable again.
const ROOM: u64 = 1 << 16;
/// The key of the file with all events.
const EVENTS: &str = "log.events";
/// The key of the file with the transfers.
const TRANSFERS: &str = "log.transfers";

/// The files.
#[derive(Debug)]
pub(super) struct LogFiles {
    pub events: Option<LineFile>,
    pub transfers: Option<LineFile>,
    format: LineFormat,
    /// The machine's time zone, which a confined daemon could not read.
    zone: TimeZone,
    /// When [`Self::maintain`] last did its work.
    maintained: Instant,
}

impl LogFiles {
    /// Opens the files that the configuration names.
    pub fn open(settings: &LogSettings) -> Self {
        let LogSettings { events, transfer_file, transfer_format, .. } = settings;
        Self {
            events: events.as_deref().map(|path| LineFile::open(path, EVENTS)),
            transfers: transfer_file.as_deref().map(|path| LineFile::open(path, TRANSFERS)),
            format: *transfer_format,
            zone: TimeZone::system(),
            maintained: Instant::now(),
        }
    }

    /// The directories in which the files are made again.
    pub fn directories(&self) -> Vec<&Path> {
        let files = [&self.events, &self.transfers];
        files.into_iter().flatten().map(LineFile::directory).collect()
    }

    /// Opens the files again, because logrotate has renamed them, or because they could not be opened.
    pub fn reopen(&mut self) {
        let files = [&mut self.events, &mut self.transfers];
        files.into_iter().flatten().for_each(LineFile::reopen);
    }

    /// Logs how many lines of clients were left out, and tries files that could not be written. Does this once in each
    /// [`CHECK_INTERVAL`], and at the end.
    pub fn maintain(&mut self, is_end: bool) {
        if is_end || self.maintained.elapsed() >= CHECK_INTERVAL {
            self.maintained = Instant::now();
            for file in [&mut self.events, &mut self.transfers].into_iter().flatten() {
                file.log_left_out();
                file.look_for_room();
            }
        }
    }

    /// Appends events of sessions to the file of events, and before them those of the daemon.
    pub fn append_events(&mut self, Unwritten { events, left_out }: &Unwritten) {
        let Some(file) = &mut self.events else { return };
        let of_daemon = daemon_lines::take();
        let mut lines = of_daemon.lines.concat().into_bytes();
        let now = Instant::now();
        let admitted = events.iter().filter(|event| file.admits(now, event));
        admitted.for_each(|event| event.write_line(&mut lines));
        file.unwritten += left_out + of_daemon.left_out;
        file.append(&lines);
        if file.unwritten > file.reported && file.failure.is_none() {
            let events = file.unwritten - std::mem::replace(&mut file.reported, file.unwritten);
            log_event!(
                EVENTS_MISSING,
                events,
                "log.events: written again, but {events} are missing"
            );
        }
    }

    /// Appends the transfers among these events to their file.
    pub fn append_transfers(&mut self, events: &[StoredEvent]) {
        let Some(file) = &mut self.transfers else { return };
        let (mut lines, now) = (Vec::new(), Instant::now());
        for seen in events {
            let Some(transfer) = seen.event().kind.ended_transfer() else { continue };
            if !file.admits(now, seen) {
                continue;
            }
            match self.format {
                LineFormat::Json => seen.write_line(&mut lines),
                LineFormat::Xferlog => {
                    let line = xferlog::line(seen.at(), seen.event(), transfer, &self.zone);
                    lines.extend(line.unwrap_or_default().into_bytes());
                }
            }
        }
        file.append(&lines);
    }
}

/// A file to which lines are appended.
#[derive(Debug)]
pub(super) struct LineFile {
    path: PathBuf,
    /// The configuration key that names it.
    key: &'static str,
    file: Option<File>,
    /// Whether the file ends with a part of a line.
    is_torn: bool,
    /// Why lines are not written now. The health checks log it.
    pub failure: Option<String>,
    /// Lines that were not written.
    pub unwritten: u64,
    /// How many unwritten lines an event has reported.
    reported: u64,
    /// The last look whether the path leads to the file.
    checked: Instant,
    /// The share of each client, so that none of them fills the disk.
    shares: LineLimiter,
}

impl LineFile {
    /// Opens `path`, or makes it, readable for its owner and group.
    pub fn open(path: &Path, key: &'static str) -> Self {
        let path = path.to_owned();
        let mut this = Self {
            path,
            key,
            file: None,
            is_torn: false,
            failure: None,
            unwritten: 0,
            reported: 0,
            checked: Instant::now(),
            shares: LineLimiter::default(),
        };
        // An earlier daemon was killed, or the machine lost power. A confined daemon cannot read it.
        this.is_torn = has_torn_line(&this.path).unwrap_or(false);
        this.reopen();
        this
    }

    /// The directory in which the file is made again.
    pub fn directory(&self) -> &Path {
        self.path.parent().unwrap_or(&self.path)
    }

    /// Whether the path leads to another file, or to none: somebody has renamed or removed it.
    fn is_moved(&self) -> bool {
        let identity = |found: Metadata| (found.dev(), found.ino());
        let own = self.file.as_ref().and_then(|file| file.metadata().ok()).map(identity);
        own.is_some() && own != fs::metadata(&self.path).ok().map(identity)
    }

    /// Opens the path again, because logrotate has renamed the file, or because it could not be opened.
    pub fn reopen(&mut self) {
        self.checked = Instant::now();
        self.is_torn &= !self.is_moved();
        (self.file, self.failure) = (None, None);
        match open(&self.path) {
            Ok(file) => self.file = Some(file),
            Err(error) => self.fail(&error),
        }
    }

    /// Appends lines, each with its end.
    pub fn append(&mut self, lines: &[u8]) {
        if lines.is_empty() {
            return;
        }
        if self.checked.elapsed() >= CHECK_INTERVAL {
            self.checked = Instant::now();
            if self.is_moved() {
                self.reopen();
            }
        }
        let bytes = match self.is_torn {
            true => Cow::Owned([b"\n", lines].concat()),
            false => Cow::Borrowed(lines),
        };
        let written = match self.file.as_mut().map(|file| file.write(&bytes)) {
            Some(Ok(written)) if written == bytes.len() => {
                (self.is_torn, self.failure) = (false, None);
                return;
            }
            Some(Ok(written)) => {
                self.fail(&io::ErrorKind::StorageFull.into());
                written
            }
            Some(Err(error)) => {
                self.fail(&error);
                0
            }
            None => 0,
        };
        let there = &bytes[..written];
        let missing = &lines[written.saturating_sub(usize::from(self.is_torn))..];
        if !there.is_empty() {
            let torn = there.iter().rev().take_while(|byte| **byte != b'\n').count() as u64;
            self.is_torn = torn > 0 && !self.shorten_by(torn);
        }
        self.unwritten += missing.iter().filter(|byte| **byte == b'\n').count() as u64;
    }

    /// Removes the last `bytes`, which are a part of a line. Returns whether they are gone.
    fn shorten_by(&mut self, bytes: u64) -> bool {
        let shorten = |file: &File| file.set_len(file.metadata()?.len().saturating_sub(bytes));
        self.file.as_ref().is_some_and(|file| shorten(file).is_ok())
    }

    /// Tries again what failed, because the next line may be hours away.
    fn look_for_room(&mut self) {
        match &self.file {
            _ if self.failure.is_none() => {}
            None => self.reopen(),
            // Room that the next lines take. A file system that reserves none leaves it to them.
            Some(file) => {
                let keep = FallocateFlags::KEEP_SIZE;
                let end = file.metadata().map_or(0, |found| found.len());
                if fallocate(file, keep, end, ROOM).is_ok() {
                    self.failure = None;
                }
            }
        }
    }

    /// Whether the event's line has room in its client's share. Counts it as left out if not.
    fn admits(&mut self, now: Instant, seen: &StoredEvent) -> bool {
        let client = seen.event().client.ip();
        let admitted = self.shares.admits(now, &catalogue::LINES_LEFT_OUT, Some(client));
        self.unwritten += u64::from(!admitted);
        self.reported += u64::from(!admitted);
        admitted
    }

    fn log_left_out(&mut self) {
        let skipped = self.shares.take_skipped(&catalogue::LINES_LEFT_OUT);
        let Some(SkippedLines { lines, last: Some(client), .. }) = skipped else { return };
        let (file, count, were) = (self.key, counted(lines, "line"), was_or_were(lines));
        log_event!(
            LINES_LEFT_OUT,
            file,
            lines,
            %client,
            "{file}: {count} {were} left out, the last of client {client}: a client has 1000 a second"
        );
    }

    fn fail(&mut self, error: &io::Error) {
        self.failure = Some(format!("{}: {}: {error}", self.key, self.path.display()));
    }
}

/// Whether the last line of the file at `path` has no end.
fn has_torn_line(path: &Path) -> io::Result<bool> {
    let (mut last, flags) = ([0], OFlags::NONBLOCK.bits().cast_signed());
    let mut file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(file.metadata()?.is_file() && last != *b"\n")
}

fn open(path: &Path) -> io::Result<File> {
    // A FIFO must not hold up the daemon.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    OpenOptions::new().append(true).create(true).mode(0o640).custom_flags(flags).open(path)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use ftp_alg_core::engine::{Event, EventKind};
    use rustix::fs::{CWD, FileType};

    use super::*;
    use crate::{config::Config, daemon::events::EventRing};

    #[test]
    fn what_cannot_be_written_is_counted() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, mode, 0).unwrap();
        // Each write to the device fails with ENOSPC, and a FIFO that nobody reads holds nothing up.
        for path in [Path::new("/dev/full"), Path::new("/proc/absent/transfers"), &fifo] {
            let mut file = LineFile::open(path, TRANSFERS);
            file.append(b"{}\n");
            file.append(b"{}\n{}\n");
            assert_eq!(file.unwritten, 3);
            let failure = format!("log.transfers: {}: ", path.display());
            assert!(file.failure.unwrap().starts_with(&failure));
        }
    }

    #[test]
    fn a_line_for_which_there_is_no_room_leaves_no_part() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("transfers.json");
        let mut file = LineFile::open(&path, TRANSFERS);
        file.append(b"{\"a\":1}\n");
        // As if the last write had been cut.
        file.file.as_mut().unwrap().write_all(b"{\"a\":").unwrap();
        assert!(file.shorten_by(5));
        file.append(b"{\"a\":2}\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"a\":1}\n{\"a\":2}\n");
    }

    #[test]
    fn a_file_that_can_be_written_again_is_no_problem_before_the_next_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("absent/transfers.json");
        let mut file = LineFile::open(&path, TRANSFERS);
        file.look_for_room();
        assert!(file.failure.is_some());
        fs::create_dir(path.parent().unwrap()).unwrap();
        file.look_for_room();
        assert_eq!(file.failure, None);
        // There is room now.
        file.fail(&io::ErrorKind::StorageFull.into());
        file.look_for_room();
        assert_eq!((&file.failure, fs::metadata(&path).unwrap().len()), (&None, 0));
        let mut full = LineFile::open(Path::new("/dev/full"), TRANSFERS);
        full.append(b"{}\n");
        full.look_for_room();
        assert!(full.failure.is_some());
    }

    #[test]
    fn no_line_is_glued_to_a_torn_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("transfers.json");
        fs::write(&path, "{\"a\":").unwrap();
        let mut file = LineFile::open(&path, TRANSFERS);
        // Nothing is written at all.
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let good = file.file.replace(full).unwrap();
        file.append(b"{\"a\":1}\n");
        file.file = Some(good);
        file.reopen();
        file.append(b"{\"a\":2}\n");
        file.append(b"{\"a\":3}\n");
        let expected = "{\"a\":\n{\"a\":2}\n{\"a\":3}\n";
        assert_eq!(fs::read_to_string(&path).unwrap(), expected);
        let mut whole = LineFile::open(&path, TRANSFERS);
        whole.append(b"{\"a\":4}\n");
        assert!(fs::read_to_string(&path).unwrap().ends_with(":3}\n{\"a\":4}\n"));
        // One that was renamed leaves the next one alone.
        whole.is_torn = true;
        fs::rename(&path, directory.path().join("old")).unwrap();
        whole.reopen();
        whole.append(b"{}\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "{}\n");
    }

    #[test]
    fn a_client_has_a_share_of_lines_and_others_have_theirs() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events.json");
        let ring = EventRing::new(0, 7, true);
        let event = |client: &str| Event {
            session: 1,
            client: client.parse().unwrap(),
            server: "203.0.113.9:21".parse().unwrap(),
            user: None,
            kind: EventKind::Encrypted,
        };
        let flood = (0..12_000).map(|_| event("10.0.0.7:1035"));
        let all = flood.chain((0..5).map(|_| event("10.0.0.8:1035")));
        ring.note(all.map(|event| (SystemTime::now(), event)));
        let settings = LogSettings { events: Some(path.clone()), ..Config::default().log };
        let mut files = LogFiles::open(&settings);
        files.append_events(&ring.take_unwritten());
        let text = fs::read_to_string(&path).unwrap();
        let of = |client: &str| text.matches(&format!("\"client\":\"{client}\"")).count();
        assert_eq!([of("10.0.0.7"), of("10.0.0.8")], [10_000, 5]);
        let file = files.events.as_mut().unwrap();
        assert_eq!((file.unwritten, file.reported), (2000, 2000), "{text}");
        let skipped = file.shares.take_skipped(&catalogue::LINES_LEFT_OUT).unwrap();
        assert_eq!((skipped.lines, skipped.last), (2000, "10.0.0.7".parse().ok()));
        assert!(file.shares.take_skipped(&catalogue::LINES_LEFT_OUT).is_none());
    }
}
