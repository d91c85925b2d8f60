//! `ftp-alg pinholes`: the data connections that may come now.

use clap::Args;

use super::{Failure, SocketOption, table};
use crate::daemon::snapshot::PinholeRow;

/// List the pinholes that are open now
///
/// Each admits one connection from INITIATOR to ARRIVAL, which is sent to TARGET with SOURCE as
/// its source address. It closes when used, or after REMAINING.
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub struct Pinholes {
    /// Print one JSON array
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: SocketOption,
}

impl Pinholes {
    /// Asks and prints.
    pub fn run(&self) -> Result<(), Failure> {
        self.socket.list("pinholes", self.json, text)
    }
}

fn text(pinholes: &[PinholeRow]) -> String {
    if pinholes.is_empty() {
        return "no pinholes\n".to_owned();
    }
    let rows: Vec<_> = pinholes
        .iter()
        .map(|row| {
            [
                row.session.to_string(),
                row.kind.to_string(),
                row.initiator.to_string(),
                row.arrival.to_string(),
                row.target.to_string(),
                row.source.to_string(),
                table::span(row.remaining_seconds),
            ]
        })
        .collect();
    let header = [">SESSION", "KIND", "INITIATOR", "ARRIVAL", "TARGET", "SOURCE", ">REMAINING"];
    table::render(header, &rows)
}
