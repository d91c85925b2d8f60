//! The kernel interface: queue, nftables, conntrack, injection.
//!
//! It treats packets as bytes with addresses and does not read their content. Every system call of the daemon to
//! netfilter, and every `unsafe` block of the crate, is in this module.
//!
//! | submodule | is |
//! | --- | --- |
//! | `netlink` | messages and sockets, nf_tables batches |
//! | [`offload`] | the fast path: what the BPF program of `ftp-alg-fastpath` is to do |
//! | [`broker`] | programs and replaced files, for a confined daemon; capabilities |
//! | [`clocks`] | the clocks by which the kernel dates packets |
//! | [`conntrack`] | conntrack entries: translation, mark, be-liberal; messages of ctnetlink |
//! | [`queue`] | NFQUEUE: packets and verdicts |
//! | [`table`] | our rules and their table, the pinhole back ends, table ownership |
//! | [`parameters`] | the ports, queues and marks that all of them share |
//! | [`probe`] | what this kernel supports |
//! | [`packet_socket`] | copies of the packets of an interface, for `watch` |
//! | [`operator_firewall`] | reads the operator's rules, for `ftp_alg_firewall`; the packet path does not use it |
//!
//! Each of them says what it exports. Here is only what all have in common.

pub mod automatic;
pub mod broker;
mod budget;
pub mod clocks;
pub mod conntrack;
pub mod data_log;
pub mod inject;
pub mod known_rules;
mod legacy_iptables;
mod linux_kernel;
mod netfilter_error;
mod netlink;
pub mod offload;
pub mod operator_firewall;
pub mod packet_socket;
pub mod parameters;
pub mod probe;
pub mod queue;
mod rtnetlink;
pub mod table;

pub use linux_kernel::LinuxKernel;
pub use netfilter_error::NetfilterError;
pub use parameters::RuleParameters;
