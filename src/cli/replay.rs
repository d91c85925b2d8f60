//! `ftp-alg replay`: a capture through the same engine, offline.
//!
//! `capture` reads records and `link` finds the IP packet in each; `player` puts the segments of
//! control connections in order (`flow`) and hands them to the engine, whose kernel is a simulated
//! `nat`; `view` and `writer` write what the outer side sees; `report` prints.

mod capture;
mod datagram;
mod flow;
mod link;
mod nat;
mod player;
mod report;
#[cfg(test)]
mod tests;
mod view;
mod writer;

use std::{
    fs::{self, File},
    io::{self, BufReader, BufWriter, Read, Write},
    net::IpAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use clap::Args;
use ftp_alg_core::policy::Policy;
use ipnetwork::IpNetwork;

use super::{Failure, output};
use capture::{CaptureError, Reader};
use nat::Nat;
use player::Player;
use report::Report;
use writer::Writer;

/// Addresses that are not routed in the Internet (RFC 1918, RFC 6598, RFC 4193).
const PRIVATE: [&str; 5] =
    ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7"];

/// Run a capture (pcap or pcapng) through the same engine, offline
///
/// Prints a line for each announcement: what was announced, what becomes of it, and why. With
/// --external, clients and servers within --inside are seen as behind NAT.
///
/// --write shows what the outer side sees: with --external all that passes the gateway, hosts
/// within --inside as ADDR; without, what the server's side sees.
#[derive(Args, Debug)]
pub struct Replay {
    /// The capture
    pub capture: PathBuf,
    /// Print one JSON object a line
    #[arg(long)]
    pub json: bool,
    /// Ports of control connections
    #[arg(
        long,
        value_name = "PORT,..",
        value_delimiter = ',',
        default_value = "21",
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    pub ports: Vec<u16>,
    /// Write what the gateway would have sent on (pcap, raw IP)
    #[arg(long, value_name = "OUT")]
    pub write: Option<PathBuf>,
    /// The external address of the simulated NAT
    #[arg(long, value_name = "ADDR")]
    pub external: Option<IpAddr>,
    /// The network behind the simulated NAT [default: all private addresses]
    #[arg(long, value_name = "CIDR", requires = "external")]
    pub inside: Option<IpNetwork>,
}

/// Why a replay ended.
#[derive(Debug, thiserror::Error)]
enum ReplayError {
    /// The capture cannot be read.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// The written one cannot be written.
    #[error("{0}")]
    Write(io::Error),
}

impl Replay {
    /// Reads, judges, prints.
    pub fn run(&self) -> Result<(), Failure> {
        let capture = self.capture.display();
        let fail = |error: &dyn std::fmt::Display| Failure::Failed(format!("{capture}: {error}"));
        let nat = self.nat()?;
        let input = File::open(&self.capture).map_err(|error| fail(&error))?;
        let reader = Reader::open(BufReader::new(&input)).map_err(|error| fail(&error))?;
        let policy = Policy { control_ports: self.ports.clone(), ..Policy::default() };
        let out = self.write.as_deref();
        let sink = out.map(|out| create(out, &input)).transpose()?;
        let (report, error) = play(reader, policy, nat, sink);
        for warning in &report.warnings {
            // A closed standard error is no reason to withhold the report.
            let _ = writeln!(io::stderr(), "ftp-alg: {capture}: {warning}");
        }
        match error {
            Some(ReplayError::Write(error)) => {
                return Err(Failure::Failed(cannot_write(out.unwrap_or(Path::new("")), &error)));
            }
            Some(error) if report.packets == 0 => return Err(fail(&error)),
            _ => {}
        }
        if self.json {
            output::print(&report.json().map_err(Failure::failed)?)?;
        } else {
            output::print(&report.text())?;
        }
        error.map_or(Ok(()), |error| Err(fail(&error)))
    }

    fn nat(&self) -> Result<Nat, Failure> {
        let inside = match (self.external, self.inside) {
            (Some(external), Some(inside)) if external.is_ipv4() != inside.is_ipv4() => {
                return Err(Failure::Usage(format!(
                    "--external {external} and --inside {inside} are of two address families"
                )));
            }
            (_, Some(inside)) => vec![inside],
            (Some(_), None) => PRIVATE.iter().filter_map(|network| network.parse().ok()).collect(),
            (None, None) => Vec::new(),
        };
        Ok(Nat::new(self.external, inside))
    }
}

/// Opens `out` for writing, unless it is the capture itself.
fn create(out: &Path, capture: &File) -> Result<BufWriter<File>, Failure> {
    let fail = |error: io::Error| Failure::Failed(cannot_write(out, &error));
    if let (Ok(there), Ok(here)) = (fs::metadata(out), capture.metadata())
        && (there.dev(), there.ino()) == (here.dev(), here.ino())
    {
        let out = out.display();
        return Err(Failure::Failed(format!("{out}: is the capture itself; name another file")));
    }
    File::create(out).map(BufWriter::new).map_err(fail)
}

fn cannot_write(out: &Path, error: &io::Error) -> String {
    format!("cannot write {}: {error}", out.display())
}

/// Plays a capture; gives what was found, and why it was not played to its end.
fn play(
    mut reader: Reader<impl Read>,
    policy: Policy,
    nat: Nat,
    sink: Option<impl Write>,
) -> (Report, Option<ReplayError>) {
    let writer = sink.map(|sink| Writer::new(sink, reader.has_nanoseconds())).transpose();
    let mut player = match writer {
        Ok(writer) => Player::new(policy, nat, writer),
        Err(error) => return (Report::default(), Some(ReplayError::Write(error))),
    };
    let mut error = None;
    let mut is_readable = false;
    loop {
        match reader.next() {
            Ok(Some(record)) => {
                is_readable |= record.link.is_some();
                if let Err(failure) = player.record(&record) {
                    return (Report::default(), Some(ReplayError::Write(failure)));
                }
            }
            Ok(None) => break,
            Err(failure) => {
                error = Some(failure.into());
                break;
            }
        }
    }
    if let Some(link) = reader.unread_link() {
        if !is_readable {
            return (Report::default(), Some(CaptureError::Link(link).into()));
        }
        player.warn(format!("packets of link type {link} are not read"));
    }
    if reader.is_cut() {
        player.warn("the capture is cut off within its last record".to_owned());
    }
    match player.finish() {
        Ok(report) => (report, error),
        Err(failure) => (Report::default(), Some(ReplayError::Write(failure))),
    }
}
