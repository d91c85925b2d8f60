//! The engine of `ftp-alg`: a batch of packets in, verdicts out. Sans-I/O: no socket, no clock, no unsafe code.
//!
//! Each module may import only modules above it in this list; `tests/repo/architecture.rs` checks that.
//!
//! | module | is | does not know |
//! | --- | --- | --- |
//! | [`ftp`] | the control protocol: commands, replies, host-ports, lines | packets, connections, time |
//! | [`packet`] | IPv4, IPv6 and TCP views, checksums, payload replacement | FTP |
//! | [`session`] | one control connection: stream assembly, dialogue, sequence adjustment | other sessions, the kernel |
//! | [`policy`] | what the operator allows | packets, connections |
//! | [`engine`] | a batch of packets in, verdicts out; the table of sessions | sockets, the clock |

#![forbid(unsafe_code)]

pub mod engine;
pub mod ftp;
pub mod packet;
pub mod policy;
pub mod session;

#[cfg(test)]
#[path = "../tests/core/support/script.rs"]
#[allow(dead_code, reason = "each user has a use for a part")]
mod script;
