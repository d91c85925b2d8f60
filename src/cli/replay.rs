//! `ftp-alg replay`: runs a capture through the engine, offline.
//!
//! This file has the options and the output. `crate::replay` does the work.

use std::{
    fs::{self, File},
    io::{self, BufReader, BufWriter, Write},
    net::IpAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use clap::Args;
use ftp_alg_core::{engine::DecidedAnnouncement, policy::Policy};
use ipnetwork::IpNetwork;

use super::{Failure, output, table};
use crate::replay::{self, AnnouncementRow, CaptureReader, ReplayReport, SimulatedNat};

/// Address ranges that are not routed in the Internet (RFC 1918, RFC 6598, RFC 4193).
const PRIVATE: [&str; 5] =
    ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7"];

/// Show what the gateway would do with a recorded session, offline
///
/// Runs a capture (pcap or pcapng) through the engine. Prints one line for each
/// announcement: the announced endpoint, the action and the reason. With
/// --external, a simulated NAT hides the clients and servers in --inside.
///
/// --write writes the packets as the outer side sees them. With --external these
/// are all packets that cross the gateway, and hosts in --inside appear as ADDR.
/// Without --external it is the server's side.
#[derive(Args, Debug)]
pub(super) struct ReplayOptions {
    /// The capture
    capture: PathBuf,
    /// Print one JSON object for each announcement
    #[arg(long)]
    json: bool,
    /// Ports of control connections
    #[arg(
        long,
        value_name = "PORT,..",
        value_delimiter = ',',
        default_value = "21",
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    ports: Vec<u16>,
    /// Write the packets that the outer side would see (pcap, raw IP)
    #[arg(long, value_name = "OUT")]
    write: Option<PathBuf>,
    /// The external address of the simulated NAT
    #[arg(long, value_name = "ADDR")]
    external: Option<IpAddr>,
    /// The network behind the simulated NAT [default: all private addresses]
    #[arg(long, value_name = "CIDR", requires = "external")]
    inside: Option<IpNetwork>,
}

impl ReplayOptions {
    pub fn run(&self) -> Result<(), Failure> {
        let capture = self.capture.display();
        let fail = |error: &dyn std::fmt::Display| Failure::Failed(format!("{capture}: {error}"));
        let nat = self.nat()?;
        let input = File::open(&self.capture).map_err(|error| fail(&error))?;
        let reader = CaptureReader::open(BufReader::new(&input)).map_err(|error| fail(&error))?;
        let policy = Policy { control_ports: self.ports.clone(), ..Policy::default() };
        let out = self.write.as_deref();
        let sink = out.map(|out| create(out, &input)).transpose()?;
        let (report, error) = replay::play(reader, policy, nat, sink)
            .map_err(|error| Failure::Failed(cannot_write(out.unwrap_or(Path::new("")), &error)))?;
        for warning in &report.warnings {
            // The report is printed even if standard error is closed.
            let _ = writeln!(io::stderr(), "ftp-alg: {capture}: {warning}");
        }
        if let Some(error) = error.as_ref().filter(|_| report.packets == 0) {
            return Err(fail(error));
        }
        if self.json {
            output::print(&json(&report).map_err(Failure::failed)?)?;
        } else {
            output::print(&text(&report))?;
        }
        error.map_or(Ok(()), |error| Err(fail(&error)))
    }

    fn nat(&self) -> Result<SimulatedNat, Failure> {
        let inside = match (self.external, self.inside) {
            (Some(external), Some(inside)) if external.is_ipv4() != inside.is_ipv4() => {
                return Err(Failure::Usage(format!(
                    "address families differ: --external {external}, --inside {inside}; use two IPv4 or two IPv6 values"
                )));
            }
            (_, Some(inside)) => vec![inside],
            (Some(_), None) => PRIVATE.iter().filter_map(|network| network.parse().ok()).collect(),
            (None, None) => Vec::new(),
        };
        Ok(SimulatedNat::new(self.external, inside))
    }
}

/// Opens `out` for writing, unless it is the capture itself.
fn create(out: &Path, capture: &File) -> Result<BufWriter<File>, Failure> {
    let fail = |error: io::Error| Failure::Failed(cannot_write(out, &error));
    if let (Ok(there), Ok(here)) = (fs::metadata(out), capture.metadata())
        && (there.dev(), there.ino()) == (here.dev(), here.ino())
    {
        let out = out.display();
        return Err(Failure::Failed(format!(
            "cannot write {out}: it is the capture itself; use another file"
        )));
    }
    File::create(out).map(BufWriter::new).map_err(fail)
}

fn cannot_write(out: &Path, error: &io::Error) -> String {
    format!("cannot write {}: {error}", out.display())
}

/// One JSON object for each announcement, one object a line.
fn json(report: &ReplayReport) -> Result<String, serde_json::Error> {
    report.rows.iter().map(|row| Ok(serde_json::to_string(row)? + "\n")).collect()
}

/// A table of the announcements and a summary.
fn text(report: &ReplayReport) -> String {
    let mut text = if report.rows.is_empty() {
        "no announcements\n".to_owned()
    } else {
        let header =
            [">FRAME", ">SESSION", "FROM", "KIND", "ANNOUNCED", "ACTION", "REWRITTEN", "REASON"];
        table::render(header, &report.rows.iter().map(cells).collect::<Vec<_>>())
    };
    text.push('\n');
    let count = |action| {
        format!("{action} {}", report.rows.iter().filter(|row| row.action == action).count())
    };
    let actions = DecidedAnnouncement::ACTIONS.map(count);
    let mut items = vec![
        ("packets", report.packets.to_string()),
        ("of control connections", report.control_packets.to_string()),
        ("sessions", report.sessions.to_string()),
        ("announcements", format!("{}: {}", report.rows.len(), actions.join(", "))),
        ("malformed", report.malformed.to_string()),
    ];
    for (name, number) in [
        ("not IP", report.not_ip),
        ("captured in part", report.incomplete),
        ("gaps", report.gaps),
        ("inside only", report.inside_only),
    ] {
        if number > 0 {
            items.push((name, number.to_string()));
        }
    }
    if let Some(written) = report.written {
        items.push(("written", written.to_string()));
    }
    text + &table::list(&items)
}

fn cells(row: &AnnouncementRow) -> [String; 8] {
    let unread = || row.unread_line.as_ref().map_or("-".to_owned(), |said| format!("\"{said}\""));
    [
        row.frame.to_string(),
        row.session.to_string(),
        row.from.to_owned(),
        row.kind.to_string(),
        row.announced.clone().unwrap_or_else(unread),
        row.action.to_owned(),
        row.rewritten.clone().unwrap_or_else(|| "-".to_owned()),
        row.reason.clone(),
    ]
}
