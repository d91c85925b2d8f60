//! What the tests of the engine share: a simulated network of two TCP ends and the gateway.
//!
//! Knows nothing of the engine's inside: everything goes through the public interface.

#![allow(dead_code, reason = "each test binary uses a part")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test may panic, its helpers as well"
)]

pub mod attacker;
pub mod crash;
pub mod fast_path;
pub mod ftp;
pub mod link;
mod off_path;
pub mod readings;
pub mod recorder;
mod rng;
pub mod scenario;
pub mod segment;
pub mod selection;
pub mod sim;
pub mod tcp;
pub mod victim;

pub use rng::Rng;
