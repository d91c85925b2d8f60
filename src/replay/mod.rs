//! A host of the engine beside the daemon: a capture in place of the kernel.
//!
//! `capture` reads records and `link` finds the IP packet in each; `player` puts the segments of
//! control connections in order (`flow`) and hands them to the engine, whose kernel is a simulated
//! `nat`; `view` and `writer` write what the outer side sees; `report` has what was found.
//!
//! Knows nothing of the command line, nor of the running kernel.

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

use std::io::{self, Read, Write};

use ftp_alg_core::policy::Policy;

pub use capture::{CaptureError, Reader};
pub use nat::Nat;
pub use report::{Report, Row};

use player::Player;
use writer::Writer;

/// Why a replay ended.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    #[error(transparent)]
    Capture(#[from] CaptureError),
    #[error("{0}")]
    Write(io::Error),
}

/// Plays a capture; gives what was found, and why it was not played to its end.
pub fn play(
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
        match reader.next_record() {
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
