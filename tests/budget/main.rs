//! Limits that hold for all connections together: the memory that they use, and how many each client has.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod ended;
mod network;
mod released;
mod resident;
#[path = "../support/rng.rs"]
mod rng;
mod shares;
