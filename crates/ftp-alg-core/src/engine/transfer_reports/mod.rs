//! Reports of transfers: what the control connection says of a transfer, together with the first and the last packets of its
//! data connection. The host has the packets and the clock.

mod data_connections;
mod finished_transfer;
mod tracker;

pub use data_connections::{DataFlags, DataPacket, OpenDataConnection};
pub use finished_transfer::{FinishedTransfer, TransferFields, TransferResult, TransferSession};
pub use tracker::{PATIENCE as TRANSFER_PATIENCE, TransferTracker};
