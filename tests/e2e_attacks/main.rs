//! What an attacker tries, through the real gateway: nothing opens for it, no connection of it gets
//! through, and what is legitimate beside it works.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "../common/mod.rs"]
mod common;

mod addresses;
mod again;
mod bytes;
mod crowds;
mod dialogue;
mod floods;
mod forged;
mod full;
mod lookups;
mod overlaps;
mod ports;
mod readings;
mod reborn;
mod scanner;
mod scene;
mod slipstream;
mod stealing;
mod urgent;
