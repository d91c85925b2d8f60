//! `ftp-alg setup` with real firewalls: it shows a change, applies it, the change survives a reload, and undo restores
//! every byte.

mod docker;
mod faults;
pub mod firewalld;
mod forwarding;
pub mod machine;
mod native;
mod openwrt;
mod pair;
pub mod ufw;

use crate::recipes::site;
