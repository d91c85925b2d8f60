//! Attacks through the real gateway: they open no pinhole, no connection of the attacker gets through, and legitimate
//! transfers still work.

mod ambiguous_lines;
mod conntrack_lookups;
mod fast_open;
mod floods;
mod forged_ends;
mod forgotten_entries;
mod full_sets;
mod hidden_transfers;
mod overlaps;
mod port_conflicts;
mod sane_helper;
mod scene;
mod tuple_reuse;
mod urgent;
