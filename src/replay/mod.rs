//! Runs the engine on a capture instead of on packets of the kernel.
//!
//! - `capture` reads and writes records, and finds the IP packet in each record.
//! - `player` puts the segments of control connections in order (`captured_connection`) and passes them to the engine. The
//!   engine's kernel is a simulated NAT gateway (`nat`). The results are in its report.
//! - `outer_view` writes the packets that the outer side sees.
//!
//! The module knows nothing of the command line and of the running kernel.

mod capture;
mod captured_connection;
mod datagram;
mod nat;
mod outer_view;
mod player;
#[cfg(test)]
mod tests;

use std::io::{self, Read, Write};

use ftp_alg_core::policy::Policy;

pub use capture::{CaptureError, CaptureReader};
pub use nat::SimulatedNat;
pub use player::{AnnouncementRow, ReplayReport};

use capture::PcapWriter;
use player::Player;

/// Plays a capture. Returns the report, and the error if the capture was not played to its end. It fails only if the
/// packets cannot be written to `sink`.
pub fn play(
    mut reader: CaptureReader<impl Read>,
    policy: Policy,
    nat: SimulatedNat,
    sink: Option<impl Write>,
) -> io::Result<(ReplayReport, Option<CaptureError>)> {
    let writer = sink.map(|sink| PcapWriter::new(sink, reader.has_nanoseconds())).transpose()?;
    let mut player = Player::new(policy, nat, writer);
    let mut is_readable = false;
    let error = loop {
        match reader.next_record() {
            Ok(Some(record)) => {
                is_readable |= record.link.is_some();
                player.handle_record(&record)?;
            }
            Ok(None) => break None,
            Err(error) => break Some(error),
        }
    };
    if let Some(link) = reader.unsupported_link() {
        if !is_readable {
            return Ok((ReplayReport::default(), Some(CaptureError::Link(link))));
        }
        player.warn(format!(
            "packets of link type {link} were skipped: the link type is not supported"
        ));
    }
    if reader.is_truncated() {
        player.warn("the capture ends within its last record".to_owned());
    }
    Ok((player.finish()?, error))
}
