//! What `ftp-alg` decides: a batch in, its effects out. Sans-I/O: no socket, no clock, no unsafe code.
//!
//! Each module may import only those above it in this list (a test, `tests/architecture.rs`, holds that):
//!
//! | module | is | knows nothing of |
//! | --- | --- | --- |
//! | [`ftp`] | the control protocol: commands, replies, host-ports, lines | packets, connections, time |
//! | [`packet`] | IPv4, IPv6 and TCP views, checksums, payload replacement | FTP |
//! | [`session`] | one control connection: stream assembly, dialogue, sequence adjustment | other sessions, the kernel |
//! | [`policy`] | what the operator allows | packets, connections |
//! | [`engine`] | a batch in, its effects out; the table of sessions | sockets, the clock |

#![forbid(unsafe_code)]

pub mod engine;
pub mod ftp;
pub mod packet;
pub mod policy;
pub mod session;
