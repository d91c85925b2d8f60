//! The recipes in `rules/recipes`, each applied as an operator applies it: with its line for
//! `ftp-alg` transfers pass a default drop, without it they do not, and an off-path attacker finds nothing.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "../common/mod.rs"]
mod common;

mod docker;
mod firewalld;
mod how_to;
mod native;
mod openwrt;
mod queueing;
mod side_by_side;
mod site;
mod ufw;
