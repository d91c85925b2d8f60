//! The fast path's BPF program, run by the kernel (`BPF_PROG_TEST_RUN`) packet by packet: which lines it lets pass,
//! and at which packets it hands the flow back.
//!
//! These tests need root. Packets are built and parsed with etherparse.

mod announcements;
mod data;
pub mod frames;
mod ignored;
mod processors;
mod retransmitted_syns;
pub mod scene;
mod walk;

use crate::{admitted_syns, layout, model, rng};
