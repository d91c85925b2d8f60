//! `ftp-alg replay`: a capture through the same engine, offline.

use std::{net::IpAddr, path::PathBuf};

use clap::Args;
use ipnetwork::IpNetwork;

use super::Failure;

/// Run a capture (pcap or pcapng) through the same engine, offline
///
/// Prints a line for each announcement: what was announced, what becomes of it, and why. With
/// --external, clients and servers within --inside are seen as behind NAT.
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
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
    /// Write what the gateway would have sent on
    #[arg(long, value_name = "OUT")]
    pub write: Option<PathBuf>,
    /// The external address of the simulated NAT
    #[arg(long, value_name = "ADDR")]
    pub external: Option<IpAddr>,
    /// The network behind the simulated NAT [default: all private addresses]
    #[arg(long, value_name = "CIDR", requires = "external")]
    pub inside: Option<IpNetwork>,
}

impl Replay {
    /// Reads, judges, prints.
    pub fn run(&self) -> Result<(), Failure> {
        Err(Failure::Failed("replay is not part of this build".to_owned()))
    }
}
