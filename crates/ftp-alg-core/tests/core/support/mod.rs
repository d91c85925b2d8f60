//! What the tests of the engine share: a simulated network of two TCP ends and the gateway.
//!
//! Knows nothing of the engine's inside: everything goes through the public interface.

pub mod attacker;
pub mod crash;
pub mod ends;
pub mod fast_path;
pub mod ftp;
pub mod link;
mod off_path;
pub mod readings;
pub mod recorder;
mod rng;
pub mod scenario;
pub mod script;
pub mod segment;
pub mod selection;
pub mod sim;
pub mod tcp;
pub mod victim;

pub use rng::Rng;
