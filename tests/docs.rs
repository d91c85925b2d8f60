//! The documentation: its links lead somewhere, its commands are the program's, its rules load, its configurations are
//! valid, and its tables of fields, states and problems are complete.
//!
//! Rules and firewall commands run in network namespaces of their own, so these tests need root.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod common;

#[path = "docs/commands.rs"]
mod commands;
#[path = "docs/links.rs"]
mod links;
#[path = "docs/live.rs"]
mod live;
#[path = "docs/outputs.rs"]
mod outputs;
#[path = "docs/pages.rs"]
mod pages;
#[path = "docs/reference.rs"]
mod reference;
#[path = "docs/rules.rs"]
mod rules;
#[path = "docs/shell.rs"]
mod shell;
