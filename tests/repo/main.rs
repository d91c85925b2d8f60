//! What the repository promises: its layers, its documentation, its messages, the command line.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod architecture;
mod cli;
#[path = "../e2e/common/mod.rs"]
mod common;
mod docs;
mod replay;
mod replay_inputs;
mod selection;
