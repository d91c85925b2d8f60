//! The fast path's program, as the simulated kernel has it.
//!
//! `model` decides about a line, and `admitted_syns` remembers SYNs. `tests/kernel/fastpath` checks that the BPF program
//! decides alike.

pub mod admitted_syns;
pub mod layout;
pub mod model;
pub mod program;
