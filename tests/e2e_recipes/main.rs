//! The recipes in `rules/recipes`, applied as an operator applies them. With the rule for `ftp-alg`, transfers pass a
//! firewall that drops by default. Without it they do not. An outsider finds no open port.
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
