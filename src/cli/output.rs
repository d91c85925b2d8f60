//! Writes to standard output, which may be closed or full at any time.

use std::{
    fs::File,
    io::{self, BufWriter, IsTerminal, StdoutLock, Write},
    os::fd::AsFd,
};

use rustix::termios::tcgetwinsize;
use serde::Serialize;

use super::Failure;
use crate::daemon;

/// How standard output shows text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    /// The width of the terminal. `None` without a terminal.
    pub width: Option<usize>,
    pub has_colours: bool,
}

/// The style of a file or pipe.
pub(super) const PLAIN: Style = Style { width: None, has_colours: false };

impl Style {
    /// The width of running text: that of the terminal, or 80 without one.
    pub fn text_width(&self) -> usize {
        self.width.unwrap_or(80)
    }

    /// The style of standard output.
    pub fn of_stdout() -> Self {
        let stdout = io::stdout();
        let size = || tcgetwinsize(&stdout).ok().map(|size| usize::from(size.ws_col));
        // A terminal whose width is not known has 0.
        let width = stdout.is_terminal().then(|| size().filter(|width| *width > 0).unwrap_or(80));
        Self { width, has_colours: daemon::wants_colours(&stdout) }
    }

    /// `text` in bold, where there are colours.
    pub fn bold(self, text: &str) -> String {
        self.with_code("1", text)
    }

    /// `text` as the mark of a success, where there are colours.
    #[cfg(feature = "demo")]
    pub fn green(self, text: &str) -> String {
        self.with_code("32", text)
    }

    /// `text` as the mark of a problem, where there are colours.
    pub fn red(self, text: &str) -> String {
        self.with_code("1;31", text)
    }

    /// `text` as the mark of a warning, where there are colours.
    pub fn yellow(self, text: &str) -> String {
        self.with_code("1;33", text)
    }

    fn with_code(self, code: &str, text: &str) -> String {
        if self.has_colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

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
}

impl Lines {
    pub fn new() -> Self {
        let stdout = io::stdout().lock();
        let file = stdout.as_fd().try_clone_to_owned().map(File::from);
        let is_file = file.and_then(|file| file.metadata()).is_ok_and(|found| found.is_file());
        Self { stdout: BufWriter::new(stdout), is_file }
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
