//! Transfers: what the control connection says of one, together with the first and the last packets of its data connection.
//! The host has the packets and the clock.

mod data_connections;
mod tracker;
mod transfer;

pub use data_connections::{DataFlags, DataPacket};
pub use tracker::{PACKETS_WAIT, TransferTracker, forgotten_reason};
pub use transfer::{Transfer, TransferEnd, TransferResult};
