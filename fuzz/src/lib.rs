//! The layers of `ftp-alg` that do no I/O, compiled by themselves from the same files.
//!
//! A fuzz build then needs neither the resolver nor netlink's libraries, is done in a minute, and
//! counts the coverage of nothing else. What is fuzzed may still be no more than the public
//! interface that the crate itself has.

#![allow(rustdoc::broken_intra_doc_links, reason = "the other layers are not here")]

#[path = "../../src/engine/mod.rs"]
pub mod engine;
#[path = "../../src/ftp/mod.rs"]
pub mod ftp;
#[path = "../../src/packet/mod.rs"]
pub mod packet;
#[path = "../../src/policy.rs"]
pub mod policy;
#[path = "../../src/session/mod.rs"]
pub mod session;
