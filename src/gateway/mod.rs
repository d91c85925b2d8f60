//! The edge to the kernel: queue, nftables, conntrack, injection.
//!
//! Knows packets only as bytes with addresses, and nothing of what is said in them. Every call
//! into the kernel, and every `unsafe` block of the crate, is in here.

mod error;
mod netlink;
pub mod queue;
pub mod rules;

pub use error::GatewayError;
pub use queue::Queue;
pub use rules::{QueueStatement, RuleParameters};
