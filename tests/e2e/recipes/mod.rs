//! The recipes in `rules/recipes`, applied as an operator applies them. With the rule for `ftp-alg`, transfers pass a
//! firewall that drops by default. Without it they do not. An outsider finds no open port.

pub mod docker;
mod firewalld;
mod how_to;
pub mod native;
mod openwrt;
pub mod queueing;
pub mod site;
mod ufw;
