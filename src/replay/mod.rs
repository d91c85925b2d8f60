//! Runs the engine on captures, or on copies of packets, instead of on packets of the kernel.
//!
//! - `capture` reads and writes records, and finds the IP packet in each record.
//! - `player` puts the segments of control connections in order (`captured_connection`) and passes them to the engine. The
//!   engine's kernel is a simulated NAT gateway (`nat`).
//! - `played_transfers` joins transfers with their data connections.
//! - `report` has what the player reports.
//! - `outer_view` writes the packets that the outer side sees.
//!
//! Memory is bounded, whatever a capture holds: nothing here grows with its length.
//!
//! The module knows nothing of the command line and of the running kernel.

mod capture;
mod captured_connection;
mod datagram;
mod nat;
mod outer_view;
mod played_transfers;
mod player;
mod report;
#[cfg(test)]
mod tests;

pub use capture::{CaptureError, CaptureReader, Compression, LinkType, Record};
pub use nat::SimulatedNat;
pub use player::Player;
pub use report::{AnnouncementRow, FramePosition, Note, Summary};
