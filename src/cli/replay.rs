//! `ftp-alg replay`: runs captures through the engine, offline.
//!
//! This file has the options and the order of work; `simulated_gateway` has the options that `watch` has, too. `notes`
//! prints, and `text` has the output for people. `crate::replay` does the work.

pub(super) mod notes;
pub(super) mod simulated_gateway;
mod text;

use std::{
    fs::{self, File, Metadata},
    io::{self, BufWriter, IsTerminal},
    net::IpAddr,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
};

use clap::Args;
use signal_hook::{consts::SIGINT, flag};

use super::Failure;
use crate::replay::{CaptureError, CaptureReader, Compression, Player};
use notes::{NotePrinter, OutputOptions};
use simulated_gateway::SimulatedGateway;

/// The exit code of a program that SIGINT ended.
const INTERRUPTED: i32 = 130;
/// The name of standard input as a capture.
const STDIN: &str = "-";

/// Show what the gateway would do with recorded sessions, offline
///
/// Runs captures (pcap or pcapng) through the engine. Prints one line for each
/// announcement as soon as it is read: the announced endpoint, the action and the
/// reason. Logins, transfers and encryption have lines, too. A summary ends the
/// output. With --external, a simulated NAT hides the clients and servers in
/// --inside.
///
/// Several captures are played one after the other, as one stream of packets. Name
/// them in the order of time. A compressed capture, and live traffic until Ctrl-C:
///   zcat CAPTURE | ftp-alg replay -
///   tcpdump -U -w - tcp port 21 | ftp-alg replay -
///
/// --write writes the packets as the outer side sees them. With --external these
/// are all packets that cross the gateway, and hosts in --inside appear as ADDR.
/// Without --external it is the server's side.
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub(super) struct ReplayOptions {
    /// The captures; - is standard input
    #[arg(required = true, value_name = "CAPTURE")]
    captures: Vec<PathBuf>,
    #[command(flatten)]
    output: OutputOptions,
    /// Write the packets that the outer side would see (pcap, raw IP)
    #[arg(long, value_name = "OUT")]
    write: Option<PathBuf>,
    #[command(flatten)]
    gateway: SimulatedGateway,
}

impl ReplayOptions {
    pub fn run(&self) -> Result<(), Failure> {
        self.check_standard_input()?;
        let (policy, external) = self.gateway.policy("replay")?;
        let player = Player::new(policy, self.gateway.nat(external)?);
        if self.captures.iter().any(|path| is_stdin(path)) {
            leave_first_interrupt_to_the_writer().map_err(Failure::failed)?;
        }
        let mut replay = Replay::new(self, player, external);
        for (index, path) in self.captures.iter().enumerate() {
            replay.play(index, path)?;
        }
        replay.finish()
    }

    fn check_standard_input(&self) -> Result<(), Failure> {
        let problem = match self.captures.iter().filter(|path| is_stdin(path)).count() {
            0 => return Ok(()),
            1 if !io::stdin().is_terminal() => return Ok(()),
            1 => {
                "standard input is a terminal; send a capture to it, as in `tcpdump -U -w - tcp port 21 | ftp-alg replay -`"
            }
            _ => "standard input (-) is named twice; name it once",
        };
        Err(Failure::Usage(problem.to_owned()))
    }

    /// Opens `out` for writing, unless it is one of the captures itself.
    fn create(&self, out: &Path) -> Result<BufWriter<File>, Failure> {
        let same = |capture: Metadata, out: &Metadata| {
            (capture.dev(), capture.ino()) == (out.dev(), out.ino())
        };
        if let Ok(there) = fs::metadata(out)
            && self.captures.iter().filter_map(|path| metadata(path).ok()).any(|c| same(c, &there))
        {
            let out = out.display();
            return Err(Failure::Failed(format!(
                "cannot write {out}: it is the capture itself; use another file"
            )));
        }
        File::create(out).map(BufWriter::new).map_err(|error| self.cannot_write(&error))
    }

    fn cannot_write(&self, error: &io::Error) -> Failure {
        let out = self.write.as_deref().unwrap_or(Path::new(""));
        Failure::Failed(format!("cannot write {}: {error}", out.display()))
    }
}

fn is_stdin(path: &Path) -> bool {
    path == Path::new(STDIN)
}

/// What to type, so that `reader` can read the compressed file `name`.
pub(super) fn compressed(path: &Path, name: &str, found: Compression, reader: &str) -> String {
    let Compression { format, command } = found;
    let command = match is_stdin(path) {
        true => format!("... | {command}"),
        false => format!("{command} {}", in_shell(name)),
    };
    format!("{name} is compressed with {format}: {command} | ftp-alg {reader} -")
}

/// `name` as a word of a shell's command line.
fn in_shell(name: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:,@".contains(c);
    match name.chars().all(is_plain) {
        true => name.to_owned(),
        false => format!("'{}'", name.replace('\'', r"'\''")),
    }
}

/// Ctrl-C in `tcpdump -w - | ftp-alg replay -` ends tcpdump, and then the capture. So the summary still follows. A
/// second one ends the replay, too.
fn leave_first_interrupt_to_the_writer() -> io::Result<()> {
    let was_interrupted = Arc::new(AtomicBool::new(false));
    flag::register_conditional_shutdown(SIGINT, INTERRUPTED, Arc::clone(&was_interrupted))?;
    flag::register(SIGINT, was_interrupted).map(drop)
}

/// Opens a file, or standard input.
pub(super) fn open(path: &Path) -> io::Result<File> {
    match is_stdin(path) {
        true => io::stdin().as_fd().try_clone_to_owned().map(File::from),
        false => File::open(path),
    }
}

fn metadata(path: &Path) -> io::Result<Metadata> {
    match is_stdin(path) {
        true => open(path)?.metadata(),
        false => fs::metadata(path),
    }
}

/// A replay, and where its output goes.
struct Replay<'a> {
    options: &'a ReplayOptions,
    player: Player<BufWriter<File>>,
    printer: NotePrinter,
    /// Why captures were not played to their end.
    errors: Vec<String>,
}

impl<'a> Replay<'a> {
    fn new(
        options: &'a ReplayOptions,
        player: Player<BufWriter<File>>,
        external: Option<IpAddr>,
    ) -> Self {
        let files = options.captures.iter().map(|path| path.display().to_string()).collect();
        let printer = NotePrinter::new(options.output, files, external);
        Self { options, player, printer, errors: Vec::new() }
    }

    /// Plays the next capture. It fails only if the output cannot be written.
    fn play(&mut self, index: usize, path: &Path) -> Result<(), Failure> {
        self.player.begin_capture();
        let mut reader = match self.open(index, path) {
            Ok(reader) => reader,
            Err(error) => {
                self.errors.push(error);
                return Ok(());
            }
        };
        self.begin_writing(reader.has_nanoseconds())?;
        let error = loop {
            match reader.next_record() {
                Ok(Some(record)) => self.player.handle_record(&record),
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
            .map_err(|error| self.options.cannot_write(&error))?;
            self.printer.print(self.player.report.take_notes())?;
        };
        if let Some(error) = self.player.end_capture(&reader).or(error) {
            self.errors.push(format!("{}: {error}", self.printer.name(index)));
        }
        self.printer.print(self.player.report.take_notes())
    }

    /// Opens a capture. The error names it.
    fn open(&mut self, index: usize, path: &Path) -> Result<CaptureReader<File>, String> {
        let name = self.printer.name(index).to_owned();
        let describe = |error: &dyn std::fmt::Display| format!("{name}: {error}");
        let file = open(path).map_err(|error| describe(&error))?;
        CaptureReader::open(file).map_err(|error| match error {
            CaptureError::Compressed(found) => compressed(path, &name, found, "replay"),
            error => describe(&error),
        })
    }

    /// Creates the capture to write, as soon as there is something to write.
    fn begin_writing(&mut self, has_nanoseconds: bool) -> Result<(), Failure> {
        let Some(out) = &self.options.write else { return Ok(()) };
        if self.player.report.summary.written.is_some() {
            return Ok(());
        }
        let sink = self.options.create(out)?;
        // A later capture may have nanoseconds.
        let nanoseconds = has_nanoseconds || self.options.captures.len() > 1;
        let begun = self.player.write_to(sink, nanoseconds);
        begun.map_err(|error| self.options.cannot_write(&error))
    }

    /// Prints the summary, and reports why captures were not played to their end.
    fn finish(mut self) -> Result<(), Failure> {
        self.player.finish().map_err(|error| self.options.cannot_write(&error))?;
        self.printer.print(self.player.report.take_notes())?;
        let is_summed_up = self.errors.is_empty() || self.player.report.summary.packets > 0;
        match is_summed_up {
            true => self.printer.finish(&self.player.report.summary)?,
            false => self.printer.flush()?,
        }
        match self.errors.is_empty() {
            true => Ok(()),
            false => Err(Failure::Failed(self.errors.join("\n"))),
        }
    }
}
