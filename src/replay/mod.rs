//! Runs the engine on a capture instead of on packets of the kernel.
//!
//! - `capture` reads records, and `link_type` finds the IP packet in each record.
//! - `player` puts the segments of control connections in order (`connection`) and passes them to the engine. The
//!   engine's kernel is a simulated NAT gateway (`nat`).
//! - `outer_view` and `writer` write the packets that the outer side sees.
//! - `report` collects the results.
//!
//! The module knows nothing of the command line and of the running kernel.

mod capture;
mod connection;
mod datagram;
mod link_type;
mod nat;
mod outer_view;
mod player;
mod report;
#[cfg(test)]
mod tests;
mod writer;

use std::io::{self, Read, Write};

use ftp_alg_core::policy::Policy;

pub use capture::{CaptureError, CaptureReader};
pub use nat::SimulatedNat;
pub use report::{AnnouncementRow, ReplayReport};

use player::Player;
use writer::PcapWriter;

/// The error that ended a replay.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    #[error(transparent)]
    Capture(#[from] CaptureError),
    #[error("{0}")]
    Write(io::Error),
}

/// Plays a capture. Returns the report, and the error if the capture was not played to its end.
pub fn play(
    mut reader: CaptureReader<impl Read>,
    policy: Policy,
    nat: SimulatedNat,
    sink: Option<impl Write>,
) -> (ReplayReport, Option<ReplayError>) {
    let writer = sink.map(|sink| PcapWriter::new(sink, reader.has_nanoseconds())).transpose();
    let mut player = match writer {
        Ok(writer) => Player::new(policy, nat, writer),
        Err(error) => return (ReplayReport::default(), Some(ReplayError::Write(error))),
    };
    let mut error = None;
    let mut is_readable = false;
    loop {
        match reader.next_record() {
            Ok(Some(record)) => {
                is_readable |= record.link.is_some();
                if let Err(failure) = player.handle_record(&record) {
                    return (ReplayReport::default(), Some(ReplayError::Write(failure)));
                }
            }
            Ok(None) => break,
            Err(failure) => {
                error = Some(failure.into());
                break;
            }
        }
    }
    if let Some(link) = reader.unsupported_link() {
        if !is_readable {
            return (ReplayReport::default(), Some(CaptureError::Link(link).into()));
        }
        player.warn(format!(
            "packets of link type {link} were skipped: the link type is not supported"
        ));
    }
    if reader.is_truncated() {
        player.warn("the capture ends within its last record".to_owned());
    }
    match player.finish() {
        Ok(report) => (report, error),
        Err(failure) => (ReplayReport::default(), Some(ReplayError::Write(failure))),
    }
}
