//! `ftp-alg setup` with real firewalls: it shows a change, applies it, the change survives a reload, and undo restores
//! every byte.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "../common/mod.rs"]
mod common;
mod docker;
mod faults;
mod firewalld;
mod machine;
mod native;
mod openwrt;
#[path = "../e2e_recipes/site.rs"]
#[allow(dead_code, reason = "the recipes' tests use the rest")]
mod site;
mod ufw;
