//! Writes to standard output, which may be closed or full at any time.

use std::{
    fs::File,
    io::{self, BufWriter, IsTerminal, StdoutLock, Write},
    os::fd::AsFd,
};

use serde::Serialize;

use super::Failure;

/// Writes and flushes `text`.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(write_failure)
}

fn write_failure(error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::Closed,
        _ => Failure::Failed(format!("cannot write the output: {error}")),
    }
}

/// Standard output for many lines, which a reader may follow. Only a regular file is written in blocks.
pub(super) struct Lines {
    stdout: BufWriter<StdoutLock<'static>>,
    is_file: bool,
    /// Whether standard output is a terminal.
    pub is_terminal: bool,
}

impl Lines {
    pub fn new() -> Self {
        let stdout = io::stdout().lock();
        let file = stdout.as_fd().try_clone_to_owned().map(File::from);
        let is_file = file.and_then(|file| file.metadata()).is_ok_and(|found| found.is_file());
        let is_terminal = stdout.is_terminal();
        Self { stdout: BufWriter::new(stdout), is_file, is_terminal }
    }

    /// Writes `text`, which ends with a newline.
    pub fn print(&mut self, text: &str) -> Result<(), Failure> {
        self.stdout.write_all(text.as_bytes()).map_err(write_failure)?;
        if self.is_file { Ok(()) } else { self.finish() }
    }

    /// Writes what was not written yet.
    pub fn finish(&mut self) -> Result<(), Failure> {
        self.stdout.flush().map_err(write_failure)
    }
}

/// Writes `report`, as one JSON object in a line or as `text` formats it.
pub(super) fn print_report<T: Serialize>(
    json: bool,
    report: &T,
    text: impl Fn(&T) -> String,
) -> Result<(), Failure> {
    match json {
        true => print_line(&serde_json::to_string(report).map_err(Failure::failed)?),
        false => print(&text(report)),
    }
}

/// Writes `line` and a newline.
pub(super) fn print_line(line: &str) -> Result<(), Failure> {
    print(&format!("{line}\n"))
}
