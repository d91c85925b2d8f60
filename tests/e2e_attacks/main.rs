//! What an attacker tries, through the real gateway: nothing opens for it, no connection of it gets
//! through, and what is legitimate next to it works.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "../common/mod.rs"]
mod common;

mod addresses;
mod ambiguous_lines;
mod bytes;
mod conntrack_lookups;
mod consumed_pinholes;
mod dialogue;
mod floods;
mod full_sets;
mod overlaps;
mod pinhole_theft;
mod port_conflicts;
mod resource_limits;
mod sane_helper;
mod scene;
mod slipstream;
mod spoofed;
mod tuple_reuse;
mod urgent;
