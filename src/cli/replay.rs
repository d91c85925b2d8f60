//! `ftp-alg replay`: runs captures through the engine, offline.
//!
//! This file has the options and the order of work; `text` has the output for people, and `progress` the progress bar.
//! `crate::replay` does the work.

mod progress;
mod text;

use std::{
    fs::{self, File, Metadata},
    io::{self, BufWriter, IsTerminal, Write},
    net::IpAddr,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
};

use clap::Args;
use ftp_alg_core::policy::{ExternalAddress, Policy};
use ipnetwork::IpNetwork;
use serde::Serialize;
use signal_hook::{consts::SIGINT, flag};

use super::{Failure, output::Lines};
use crate::{
    config::{Config, ExternalSetting},
    replay::{AnnouncementRow, CaptureReader, Note, Player, SimulatedNat},
};
use progress::Progress;
use text::NoteTable;

/// Address ranges that are not routed in the Internet (RFC 1918, RFC 6598, RFC 4193).
const PRIVATE: [&str; 5] =
    ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7"];
/// The exit code of a program that SIGINT ended.
const INTERRUPTED: i32 = 130;
/// The name of standard input as a capture.
const STDIN: &str = "-";

/// Show what the gateway would do with recorded sessions, offline
///
/// Runs captures (pcap or pcapng, also compressed by gzip or zstd) through the
/// engine. Prints one line for each announcement as soon as it is read: the
/// announced endpoint, the action and the reason. Logins and encryption have
/// lines, too. A summary ends the output. With --external, a simulated NAT hides
/// the clients and servers in --inside.
///
/// Several captures are played one after the other, as one stream of packets. Name
/// them in the order of time. To follow live traffic, until Ctrl-C:
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
    /// Print one JSON object for each announcement
    #[arg(long)]
    json: bool,
    /// Use policy, networks, servers, control ports and external address of this configuration
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Ports of control connections [default: control-ports of --config, or 21]
    #[arg(
        long,
        value_name = "PORT,..",
        value_delimiter = ',',
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    ports: Option<Vec<u16>>,
    /// Write the packets that the outer side would see (pcap, raw IP)
    #[arg(long, value_name = "OUT")]
    write: Option<PathBuf>,
    /// The external address of the simulated NAT [default: nat.external-address of --config]
    #[arg(long, value_name = "ADDR")]
    external: Option<IpAddr>,
    /// The network behind the simulated NAT [default: all private addresses]
    #[arg(long, value_name = "CIDR")]
    inside: Option<IpNetwork>,
}

impl ReplayOptions {
    pub fn run(&self) -> Result<(), Failure> {
        self.check_standard_input()?;
        let (policy, external) = self.policy()?;
        let player = Player::new(policy, self.nat(external)?);
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

    /// The policy, and the external address of the simulated NAT.
    fn policy(&self) -> Result<(Policy, Option<IpAddr>), Failure> {
        let Some(path) = &self.config else {
            let default = Policy::default();
            let control_ports = self.ports.clone().unwrap_or(default.control_ports);
            return Ok((Policy { control_ports, ..default }, self.external));
        };
        let mut config = Config::load(Some(path))?;
        if let Some(ports) = &self.ports {
            config.control_ports.clone_from(ports);
        }
        if let Some(external) = self.external {
            config.nat.external_address = ExternalSetting::Address(external);
        }
        let external = match &config.nat.external_address {
            ExternalSetting::Auto => None,
            ExternalSetting::Address(address) => Some(*address),
            ExternalSetting::Dns(name) => {
                return Err(Failure::Usage(format!(
                    "{}: nat.external-address is the name {name}, and replay looks up no names; give its address with --external",
                    path.display()
                )));
            }
        };
        for name in config.external_names() {
            warn(
                &path.display().to_string(),
                &format!(
                    "replay looks up no names, so what is to be announced as {} is refused; write its address into a copy of this file",
                    name.name
                ),
            );
        }
        Ok((config.policy(|_| ExternalAddress::Unresolved, &Arc::default()), external))
    }

    fn nat(&self, external: Option<IpAddr>) -> Result<SimulatedNat, Failure> {
        let inside = match (external, self.inside) {
            (Some(external), Some(inside)) if external.is_ipv4() != inside.is_ipv4() => {
                return Err(Failure::Usage(format!(
                    "address families differ: --external {external}, --inside {inside}; use two IPv4 or two IPv6 values"
                )));
            }
            (None, Some(inside)) => {
                return Err(Failure::Usage(format!(
                    "--inside {inside} has no external address; add --external ADDR"
                )));
            }
            (_, Some(inside)) => vec![inside],
            (Some(_), None) => PRIVATE.iter().filter_map(|network| network.parse().ok()).collect(),
            (None, None) => Vec::new(),
        };
        Ok(SimulatedNat::new(external, inside))
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
        File::create(out).map(BufWriter::new).map_err(|error| cannot_write(out, &error))
    }

    fn cannot_write(&self, error: &io::Error) -> Failure {
        cannot_write(self.write.as_deref().unwrap_or(Path::new("")), error)
    }
}

fn is_stdin(path: &Path) -> bool {
    path == Path::new(STDIN)
}

/// Ctrl-C in `tcpdump -w - | ftp-alg replay -` ends tcpdump, and then the capture. So the summary still follows. A
/// second one ends the replay, too.
fn leave_first_interrupt_to_the_writer() -> io::Result<()> {
    let was_interrupted = Arc::new(AtomicBool::new(false));
    flag::register_conditional_shutdown(SIGINT, INTERRUPTED, Arc::clone(&was_interrupted))?;
    flag::register(SIGINT, was_interrupted).map(drop)
}

fn open(path: &Path) -> io::Result<File> {
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

fn cannot_write(out: &Path, error: &io::Error) -> Failure {
    Failure::Failed(format!("cannot write {}: {error}", out.display()))
}

/// Prints a warning. The replay goes on even if standard error is closed.
fn warn(about: &str, warning: &str) {
    let _ = writeln!(io::stderr(), "ftp-alg: {about}: {warning}");
}

/// The line of an announcement. [`AnnouncementRow`] has the fields of the contract.
#[derive(Serialize)]
struct JsonLine<'a> {
    #[serde(flatten)]
    row: &'a AnnouncementRow,
    /// The capture, if there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<&'a str>,
}

/// A replay, and where its output goes.
struct Replay<'a> {
    options: &'a ReplayOptions,
    player: Player<BufWriter<File>>,
    /// The captures in messages.
    names: Vec<String>,
    lines: Lines,
    table: NoteTable,
    progress: Progress,
    /// Why captures were not played to their end.
    errors: Vec<String>,
}

impl<'a> Replay<'a> {
    fn new(
        options: &'a ReplayOptions,
        player: Player<BufWriter<File>>,
        external: Option<IpAddr>,
    ) -> Self {
        let names = options.captures.iter().map(|path| match is_stdin(path) {
            true => "standard input".to_owned(),
            false => path.display().to_string(),
        });
        let names: Vec<String> = names.collect();
        Self {
            options,
            player,
            lines: Lines::new(),
            table: NoteTable::new(&names, external),
            names,
            progress: Progress::new(),
            errors: Vec::new(),
        }
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
            self.print_notes()?;
            self.progress.update(reader.position());
        };
        if let Some(error) = self.player.end_capture(&reader).or(error) {
            self.errors.push(format!("{}: {error}", self.names[index]));
        }
        self.print_notes()
    }

    /// Opens a capture. The error names it.
    fn open(&mut self, index: usize, path: &Path) -> Result<CaptureReader<File>, String> {
        let name = &self.names[index];
        let describe = |error: &dyn std::fmt::Display| format!("{name}: {error}");
        let file = open(path).map_err(|error| describe(&error))?;
        let found = file.metadata().map_err(|error| describe(&error))?;
        let size = (found.is_file() && !is_stdin(path)).then_some(found.len());
        self.progress.begin(name, size);
        CaptureReader::open(file).map_err(|error| describe(&error))
    }

    /// Creates the capture to write, as soon as there is something to write.
    fn begin_writing(&mut self, has_nanoseconds: bool) -> Result<(), Failure> {
        let Some(out) = &self.options.write else { return Ok(()) };
        if self.player.writes() {
            return Ok(());
        }
        let sink = self.options.create(out)?;
        // A later capture may have nanoseconds.
        let nanoseconds = has_nanoseconds || self.names.len() > 1;
        self.player.write_to(sink, nanoseconds).map_err(|error| cannot_write(out, &error))
    }

    /// Prints what was found since the last call.
    fn print_notes(&mut self) -> Result<(), Failure> {
        for note in self.player.take_notes() {
            let line = match note {
                Note::Warning(capture, warning) => {
                    self.progress.clear();
                    warn(&self.names[capture], &warning);
                    continue;
                }
                Note::Announcement(row) if self.options.json => self.json(&row)?,
                Note::Session(_) if self.options.json => continue,
                Note::Announcement(row) => self.table.announcement(&row),
                Note::Session(row) => self.table.session(&row),
            };
            if self.lines.is_terminal {
                self.progress.clear();
            }
            self.lines.print(&line)?;
        }
        Ok(())
    }

    fn json(&self, row: &AnnouncementRow) -> Result<String, Failure> {
        let path = self.options.captures[row.capture].to_string_lossy();
        let file = (self.names.len() > 1).then_some(&*path);
        let line = serde_json::to_string(&JsonLine { row, file }).map_err(Failure::failed)?;
        Ok(line + "\n")
    }

    /// Prints the summary, and reports why captures were not played to their end.
    fn finish(mut self) -> Result<(), Failure> {
        self.progress.clear();
        self.player.finish().map_err(|error| self.options.cannot_write(&error))?;
        self.print_notes()?;
        let is_summed_up = self.errors.is_empty() || self.player.has_read();
        if !self.options.json && is_summed_up {
            let none = if self.table.is_empty() { "no announcements\n" } else { "" };
            self.lines.print(&format!("{none}\n{}", text::summary(self.player.summary())))?;
        }
        self.lines.finish()?;
        match self.errors.is_empty() {
            true => Ok(()),
            false => Err(Failure::Failed(self.errors.join("\n"))),
        }
    }
}
