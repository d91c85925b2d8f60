//! `ftp-alg`: an application-layer gateway for FTP on a Linux gateway.
//!
//! [`ftp_alg_core`] makes the decisions without I/O, and [`ftp_alg_fastpath`] has the BPF program. This crate does the
//! other I/O. Each module may import only those above
//! it in this list (`tests/repo/architecture.rs` checks that):
//!
//! | module | is | knows nothing of |
//! | --- | --- | --- |
//! | `config` | the configuration | packets, connections |
//! | `kernel` | the kernel interface: queue, nftables, conntrack, injection | FTP |
//! | `daemon` | the engine's host on a gateway; state, reload, control socket | |
//! | `replay` | the engine's host for a capture | the kernel, the configuration |
//! | `cli` | the commands | |

pub mod cli;
mod config;
#[doc(hidden)] // open for tests and benchmarks alone
pub mod daemon;
#[doc(hidden)]
pub mod kernel;
mod replay;
