//! Prints what a player finds: for people, or one JSON object a line.

use std::{
    io::{self, Write as _},
    net::IpAddr,
};

use clap::Args;
use ftp_alg_core::engine::{Event, Transfer};
use serde::Serialize;

use super::{
    STDIN,
    text::{self, NoteTable},
};
use crate::{
    cli::{Failure, output::Lines},
    replay::{FramePosition, Note, Summary},
};

/// Prints a warning. The command goes on even if standard error is closed.
pub fn warn(about: &str, warning: &str) {
    let _ = writeln!(io::stderr(), "ftp-alg: {about}: {warning}");
}

/// A line of the contract.
#[derive(Serialize)]
struct JsonLine<'a, R> {
    #[serde(flatten)]
    row: &'a R,
    /// The capture, if there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<&'a str>,
}

/// The fields of a transfer: the fields of the daemon's event, and the frame with the last reply.
#[derive(Serialize)]
struct EventLine<'a> {
    /// `transfer`.
    event: &'static str,
    frame: u64,
    session: u64,
    client: IpAddr,
    server: IpAddr,
    user: Option<&'a str>,
    #[serde(flatten)]
    transfer: &'a Transfer,
}

impl<'a> EventLine<'a> {
    fn of(position: FramePosition, event: &'a Event) -> Option<Self> {
        Some(Self {
            event: "transfer",
            frame: position.frame,
            session: event.session,
            client: event.client.ip(),
            server: event.server.ip(),
            user: event.user.as_deref(),
            transfer: event.kind.ended_transfer()?,
        })
    }
}

/// The name of a capture in messages.
fn name_of(file: &str) -> &str {
    if file == STDIN { "standard input" } else { file }
}

/// What the output has.
#[derive(Args, Clone, Copy, Debug)]
pub struct OutputOptions {
    /// Print one JSON object for each announcement
    #[arg(long)]
    json: bool,
    /// With --json, print an object for each transfer, too
    #[arg(long, requires = "json")]
    transfers: bool,
}

/// Where the notes go.
pub struct NotePrinter {
    json: bool,
    /// Whether the objects of JSON include transfers.
    has_transfers: bool,
    /// The captures as they were named.
    files: Vec<String>,
    lines: Lines,
    table: NoteTable,
}

impl NotePrinter {
    /// Prints the notes of captures that were named `files`, of a NAT with the address `external`.
    pub fn new(
        OutputOptions { json, transfers }: OutputOptions,
        files: Vec<String>,
        external: Option<IpAddr>,
    ) -> Self {
        let names: Vec<_> = files.iter().map(|file| name_of(file)).collect();
        let table = NoteTable::new(&names, external);
        Self { json, has_transfers: transfers, files, lines: Lines::new(), table }
    }

    /// The name of a capture in messages.
    pub fn name(&self, capture: usize) -> &str {
        name_of(&self.files[capture])
    }

    /// Prints `notes`.
    pub fn print(&mut self, notes: Vec<Note>) -> Result<(), Failure> {
        for note in notes {
            let line = match note {
                Note::Warning(capture, warning) => {
                    warn(self.name(capture), &warning);
                    continue;
                }
                Note::Announcement(row) if self.json => self.json(row.capture, &row)?,
                Note::Session(position, event) if self.json => {
                    match EventLine::of(position, &event).filter(|_| self.has_transfers) {
                        Some(line) => self.json(position.capture, &line)?,
                        None => continue,
                    }
                }
                Note::Announcement(row) => self.table.announcement(&row),
                Note::Session(position, event) => self.table.session(position, &event),
            };
            self.lines.print(&line)?;
        }
        Ok(())
    }

    fn json<R: Serialize>(&self, capture: usize, row: &R) -> Result<String, Failure> {
        let file = (self.files.len() > 1).then(|| self.files[capture].as_str());
        let line = serde_json::to_string(&JsonLine { row, file }).map_err(Failure::failed)?;
        Ok(line + "\n")
    }

    /// Writes what was not written yet.
    pub fn flush(&mut self) -> Result<(), Failure> {
        self.lines.finish()
    }

    /// Prints the summary, unless the output is JSON.
    pub fn finish(&mut self, summary: &Summary) -> Result<(), Failure> {
        if !self.json {
            let none = if self.table.is_empty() { "no announcements\n" } else { "" };
            self.lines.print(&format!("{none}\n{}", text::summary(summary)))?;
        }
        self.flush()
    }
}
