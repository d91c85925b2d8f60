//! The recipes in `rules/recipes`, applied as an operator applies them. With the rule for `ftp-alg`, transfers pass a
//! firewall that drops by default. Without it they do not. An outsider finds no open port.

mod docker;
mod firewalld;
mod how_to;
mod native;
mod openwrt;
mod queueing;
pub mod site;
mod ufw;
