//! The edge to the kernel, against this kernel: queue, nf_tables, conntrack, the BPF program.
//!
//! These tests need root.

#![allow(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends at the first surprise")]

#[path = "../../crates/ftp-alg-core/tests/core/support/fast_path/admitted_syns.rs"]
mod admitted_syns;
mod fastpath;
mod interface;
#[path = "../../crates/ftp-alg-core/tests/core/support/fast_path/layout.rs"]
mod layout;
#[path = "../../crates/ftp-alg-core/tests/core/support/fast_path/model.rs"]
mod model;
#[path = "../../crates/ftp-alg-core/tests/core/support/rng.rs"]
mod rng;
