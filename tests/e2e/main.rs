//! End to end: `ftp-alg run` on a gateway between real clients and servers, in network namespaces.
//!
//! These tests need root. They know the product as a program; `tests/lab` builds the network.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod attacks;
mod bridges;
mod commands;
mod common;
mod confinement;
mod conntrack;
mod dialects;
mod dialogues;
mod doctor;
mod downtime;
mod encrypted;
mod fastpath;
mod flowtable;
mod healing;
mod health;
mod history;
mod image;
mod kills;
mod kubernetes;
mod lab;
mod late_rules;
mod lifecycle;
mod many;
mod matrix;
mod metrics;
mod mishaps;
mod names;
mod overview;
mod packet_marks;
mod page;
mod pair;
mod pictures;
mod policy;
mod privileges;
mod queued;
mod random_ports;
mod recipes;
mod refusals;
mod reload;
mod restart;
#[path = "../../crates/ftp-alg-core/tests/core/support/rng.rs"]
mod rng;
mod rule_audit;
mod same_ports;
mod setup;
mod several_workers;
mod situations;
mod soak;
mod stream;
mod super_packets;
mod synproxy;
mod takeover;
#[cfg(feature = "top")]
mod top;
mod transfers;
mod try_modes;
mod uplinks;
mod watch;
mod whole_marks;
mod wire;
mod zones;
