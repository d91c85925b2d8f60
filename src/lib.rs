//! `ftp-alg`: an application-layer gateway for FTP on a Linux gateway.
//!
//! What it decides is the matter of [`ftp_alg_core`], which does no I/O. Here is all that does; each module may import
//! only those above it in this list (a test, `tests/architecture.rs`, holds that):
//!
//! | module | is | knows nothing of |
//! | --- | --- | --- |
//! | `config` | what the operator allows | packets, connections |
//! | `gateway` | the kernel's edge: queue, nftables, conntrack, injection | FTP |
//! | `daemon` | the engine's host on a gateway; state, reload, control socket | |
//! | `replay` | the engine's host for a capture | the kernel, the configuration |
//! | `cli` | the commands, one file each | |

pub mod cli;
mod config;
#[doc(hidden)] // open for tests and benchmarks alone
pub mod daemon;
#[doc(hidden)]
pub mod gateway;
mod replay;
