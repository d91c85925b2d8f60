//! The engine as a whole: bytes in, verdicts out, between simulated ends of TCP.
//!
//! Nothing here needs root, a kernel or the daemon.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends at the first surprise")]

mod budget;
mod simulated_network;
mod support;
mod wire_cases;
