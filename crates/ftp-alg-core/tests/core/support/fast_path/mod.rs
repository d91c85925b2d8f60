//! The fast path's program, as the simulated kernel has it.
//!
//! `model` decides about a line. `tests/kernel/fastpath` checks that the BPF program decides alike.

pub mod layout;
pub mod model;
pub mod program;
