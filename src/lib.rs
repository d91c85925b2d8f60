//! `ftp-alg`: an application-layer gateway for FTP on a Linux gateway.
//!
//! The crate is layered; each module may import only those above it in this list (a test,
//! `tests/architecture.rs`, holds that):
//!
//! | module | is | knows nothing of |
//! | --- | --- | --- |
//! | [`ftp`] | the control protocol: commands, replies, host-ports, lines | packets, connections, time |
//! | [`packet`] | IPv4, IPv6 and TCP views, checksums, payload replacement | FTP |
//! | [`session`] | one control connection: stream assembly, dialogue, sequence adjustment | other sessions, the kernel |
//! | [`policy`], [`config`] | what the operator allows | |
//! | [`engine`] | packet in, verdict and wishes out; the table of sessions | sockets, the clock |
//! | [`gateway`] | the kernel's edge: queue, nftables, conntrack, injection | FTP |
//! | [`daemon`] | wires engine to gateway; reload, control socket | |
//! | [`lab`] | namespaces, servers and clients for the demo and the tests | the product, but as a program |
//! | [`cli`] | the commands, one file each | |

pub mod cli;
pub mod config;
pub mod daemon;
pub mod engine;
pub mod ftp;
pub mod gateway;
pub mod lab;
pub mod packet;
pub mod policy;
pub mod session;
