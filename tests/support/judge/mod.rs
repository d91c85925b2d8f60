//! The program of the fast path, as the simulated kernel has it.
//!
//! What it makes of a line is in `model`, which `tests/fastpath` ties to the program itself.

#![allow(dead_code, reason = "each test binary uses a part")]

pub mod layout;
pub mod model;
pub mod program;
