//! Writes to standard output, which may be closed or full at any time.

use std::io::{self, Write};

use serde::Serialize;

use super::Failure;

/// Writes and flushes `text`.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(|error| {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::Closed,
            _ => Failure::Failed(format!("cannot write the output: {error}")),
        }
    })
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
