//! The edge to the kernel: queue, nftables, conntrack, injection.
//!
//! Knows packets only as bytes with addresses, and nothing of what is said in them. Every call
//! into the kernel, and every `unsafe` block of the crate, is in here.
//!
//! | room | is |
//! | --- | --- |
//! | `netlink` | messages and sockets, batches of nf_tables, requests of conntrack |
//! | [`fastpath`] | the BPF program that judges lines before they are queued |
//! | `broker` | programs, and files that are replaced, for a confined daemon; rights |
//! | `conntrack` | connections: how one is translated, which bits it has |
//! | `queue` | NFQUEUE: packets and verdicts |
//! | `table` | our rules and their table, what holds pinholes, whose the table is |
//! | [`firewall`] | the operator's rules; nothing here or in the packet's path knows it |

mod automatic;
pub mod broker;
mod claimed_ports;
mod conntrack;
mod error;
pub mod fastpath;
pub mod firewall;
pub mod flows;
mod inject;
mod ip_version;
mod kernel;
mod netlink;
mod parameters;
mod probe;
mod queue;
mod table;

pub use automatic::automatic;
pub use broker::programs::output_of;
pub use claimed_ports::ClaimedPorts;
pub use conntrack::{Conntrack, used_pinholes};
pub use error::GatewayError;
pub use inject::Injector;
pub use kernel::LinuxKernel;
pub use parameters::{Backend, QueueStatement, RuleParameters};
pub use probe::{ConflictingSettings, ConntrackAbilities, Features, Routing};
pub use queue::{MAXIMUM_WAITING, Queue, QueueCounts, QueuePacket, QueueVerdict, Verdicts, Waker};
pub use table::{
    ChangeNotices, Commits, Expectations, HEARTBEAT_TIMEOUT, Heartbeat, OpenPinhole, Pinholes,
    Table, TableCondition, TableRecord, readers, rules,
};
