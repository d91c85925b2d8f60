//! The file of `log.transfers`: one JSON object a line. A file that cannot be written costs lines, which are counted, and
//! nothing else.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

/// A file to which lines are appended.
#[derive(Debug)]
pub struct TransferFile {
    path: PathBuf,
    file: io::Result<File>,
    /// Whether the last line may be there in part.
    is_torn: bool,
    /// Whether the failure was reported that lasts.
    is_reported: bool,
    /// Lines that were not written.
    pub unwritten: u64,
}

impl TransferFile {
    /// Opens `path`, or makes it, readable for its owner and group.
    pub fn open(path: &Path) -> Self {
        let file = open(path);
        let mut this =
            Self { path: path.to_owned(), file, is_torn: false, is_reported: false, unwritten: 0 };
        this.report_failure();
        this
    }

    /// The directory in which the file is made again.
    pub fn directory(&self) -> &Path {
        self.path.parent().unwrap_or(&self.path)
    }

    /// Opens the path again, because logrotate has renamed the file, or because it could not be opened.
    pub fn reopen(&mut self) {
        self.file = open(&self.path);
        (self.is_torn, self.is_reported) = (false, false);
        self.report_failure();
    }

    /// Appends lines, each with its end.
    pub fn append(&mut self, lines: &str) {
        if lines.is_empty() {
            return;
        }
        let start = if self.is_torn { "\n" } else { "" };
        let bytes = [start, lines].concat().into_bytes();
        let written = match &mut self.file {
            Ok(file) => match file.write(&bytes) {
                Ok(written) if written == bytes.len() => {
                    (self.is_torn, self.is_reported) = (false, false);
                    return;
                }
                Ok(written) => {
                    self.warn(&io::ErrorKind::StorageFull.into());
                    written
                }
                Err(error) => {
                    self.warn(&error);
                    0
                }
            },
            // The error was reported when the file was opened.
            Err(_) => 0,
        };
        let (there, missing) = bytes.split_at(written);
        self.is_torn = there.last().map_or(self.is_torn, |last| *last != b'\n');
        self.unwritten += missing.iter().filter(|byte| **byte == b'\n').count() as u64;
    }

    fn report_failure(&mut self) {
        if let Err(error) = &self.file {
            let error = io::Error::new(error.kind(), error.to_string());
            self.warn(&error);
        }
    }

    fn warn(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.is_reported, true) {
            let path = self.path.display();
            tracing::warn!(
                event = "transfer-file-failed",
                "log.transfers: {path}: {error}; transfers are missing there and counted, and the log has them. Make \
                 room, or let the daemon's user write there; then systemctl reload ftp-alg"
            );
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn lines_are_appended_and_a_renamed_file_is_made_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("transfers.json");
        let mut file = TransferFile::open(&path);
        assert_eq!(file.directory(), directory.path());
        file.append("{\"a\":1}\n{\"a\":2}\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"a\":1}\n{\"a\":2}\n");
        let old = directory.path().join("transfers.json.1");
        fs::rename(&path, &old).unwrap();
        file.append("{\"a\":3}\n");
        file.reopen();
        file.append("{\"a\":4}\n");
        assert!(fs::read_to_string(&old).unwrap().ends_with("{\"a\":3}\n"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"a\":4}\n");
        assert_eq!(file.unwritten, 0);
    }

    #[test]
    fn what_cannot_be_written_is_counted() {
        // Each write to this device fails with ENOSPC.
        let mut full = TransferFile::open(Path::new("/dev/full"));
        full.append("{}\n");
        full.append("{}\n{}\n");
        assert_eq!((full.unwritten, full.is_reported), (3, true));
        let mut absent = TransferFile::open(Path::new("/proc/absent/transfers"));
        absent.append("{}\n");
        absent.reopen();
        absent.append("{}\n");
        assert_eq!(absent.unwritten, 2);
    }
}
