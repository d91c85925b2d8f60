//! The kernel interface: queue, nftables, conntrack, injection.
//!
//! It treats packets as bytes with addresses and does not read their content. Every system call of the daemon to
//! netfilter, and every `unsafe` block of the crate, is in this module.
//!
//! | submodule | is |
//! | --- | --- |
//! | `netlink` | messages and sockets, nf_tables batches, conntrack requests |
//! | [`offload`] | the fast path: what the BPF program of `ftp-alg-fastpath` is to do |
//! | `broker` | programs and replaced files, for a confined daemon; capabilities |
//! | `conntrack` | conntrack entries: translation, mark, be-liberal |
//! | `queue` | NFQUEUE: packets and verdicts |
//! | `table` | our rules and their table, the pinhole back ends, table ownership |
//! | [`operator_firewall`] | reads the operator's rules, for `ftp_alg_firewall`; the packet path does not use it |

mod automatic;
pub mod broker;
mod budget;
mod claimed_ports;
mod conntrack;
mod error;
mod inject;
mod legacy_iptables;
mod linux_kernel;
mod netlink;
pub mod offload;
pub mod operator_firewall;
mod parameters;
mod probe;
mod queue;
mod routes;
mod table;

pub use automatic::automatic_backend;
pub use broker::programs::run_for_output;
pub use claimed_ports::ClaimedPorts;
pub use conntrack::{Conntrack, admitted_connections, consumed_pinholes};
pub use error::NetfilterError;
pub use inject::Injector;
pub use linux_kernel::LinuxKernel;
pub use parameters::{Backend, CtMarkUse, Learned, QueueStatement, RuleParameters};
pub use probe::{ConntrackAbilities, HostSettings, KernelFeatures, read_routing};
pub use queue::{MAXIMUM_WAITING, Queue, QueueCounts, QueuePacket, QueueVerdict, Verdicts, Waker};
pub use table::{
    ChangeNotices, Commits, Expectations, HEARTBEAT_TIMEOUT, Heartbeat, OpenPinhole, Pinholes,
    Table, TableCondition, TableRecord, readers, rules,
};
