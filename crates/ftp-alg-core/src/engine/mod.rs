//! The engine: a batch of packets in, verdicts out; the table of sessions.
//!
//! Sans-I/O: the engine takes packets and the time. It uses no socket and no clock, and of the kernel what the trait
//! [`Kernel`] says. So the daemon, `replay`, the benchmarks and the tests run the same code. [`Engine::take`] handles
//! the packets, and [`Engine::finish`] carries the decisions out.

mod activity;
mod batch;
mod counters;
mod decision;
mod endpoints;
mod events;
#[cfg(any(test, feature = "fake-kernel"))]
mod fake;
mod kernel;
mod limits;
mod offload;
mod packets;
mod pinholes;
mod ranges;
mod records;
mod sessions;
mod shares;
mod standalone;
mod table;
#[cfg(test)]
mod tests;
mod timers;
mod transfers;
mod tries;

use std::time::{Duration, Instant};

pub use activity::{ClientActivity, EndedSession, PendingTransfer, SessionEnd};
pub use batch::{Batch, Host, Released, Token, Verdict};
pub use counters::{
    Count, Countable, CounterDescription, Counters, Drops, Limits, Refusals, Unread,
};
pub use endpoints::{ClientKey, PinholeEnds, Translation};
pub use events::{
    ClosedRange, Decision, Event, EventDescription, EventKind, Level, MissingConnection,
    OmittedEvents, Refusal, RefusedLogin, Stray, UnusedPinhole, Words,
};
#[cfg(any(test, feature = "fake-kernel"))]
pub use fake::FakeKernel;
pub use kernel::{Closing, InstalledIn, Kernel, KernelError, Opening, QueueMode, RouteLookup};
pub use offload::handover::{
    FastPathLine, FlowChange, Handover, LoginStage, PinholeId, SequenceOffset, Withdrawal,
};
use packets::reorder::{self, ReorderQueue};
pub use ranges::{
    EncryptedConnection, LIFETIME as RANGE_LIFETIME, OpenRange, PortsText, RangeFinder, RangeInfo,
};
pub use records::{EncodedRecord, RECORD_FORMAT, RecordError, RestoredCounts, SessionRecords};
pub use sessions::Sessions;
pub use shares::Shares;
pub use standalone::{PacketOutcome, Standalone};
use table::entry::{Entry, Epoch};
pub use table::listing::{PinholeInfo, SessionDetails, SessionInfo};
pub use transfers::{
    DataFlags, DataPacket, PACKETS_WAIT, Transfer, TransferEnd, TransferResult, TransferTracker,
    forgotten_reason,
};
pub use tries::Tries;

/// The end of a connection that sent a packet.
pub use crate::session::{DropReason, Side};
use crate::{packet::Offload, policy::Policy};

/// A packet in a kernel queue.
#[derive(Clone, Copy, Debug)]
pub struct QueuedPacket<'p> {
    /// How the host identifies the packet.
    pub token: Token,
    /// The packet from its IP header on.
    pub bytes: &'p [u8],
    /// What the host knows about the packet.
    pub meta: PacketMeta,
}

/// What a host knows about a packet besides its bytes.
#[derive(Clone, Copy, Debug)]
pub struct PacketMeta {
    /// Its offload state.
    pub offload: Offload,
    /// Whether it may wait in the reorder queue.
    pub may_wait: bool,
    /// The end that sent it, if the rules say so: conntrack knows the direction, ports do not always show it.
    pub from: Option<Side>,
    /// Whether it was queued because every packet of its connection is.
    pub queues_all: bool,
    /// Whether other packets of its connection may have passed unread since it was queued.
    pub is_late: bool,
    /// Index of the interface on which it arrived; 0 if this machine sent it.
    pub input: u32,
    /// Index of the interface by which it leaves; 0 if this machine receives it.
    pub output: u32,
    /// Its packet mark, without the bits of our rules.
    pub mark: u32,
}

impl PacketMeta {
    /// Of a packet that a machine with one interface forwards, and of which nothing else is known.
    pub const FORWARDED: Self = Self {
        offload: Offload { is_super_packet: false, lacks_checksum: false },
        may_wait: false,
        from: None,
        queues_all: false,
        is_late: false,
        input: 1,
        output: 1,
        mark: 0,
    };

    /// Whether this machine is an end of its connection.
    fn is_local(&self) -> bool {
        self.input == 0 || self.output == 0
    }
}

/// Whether TCP checksums are verified. A receiver discards a segment with a wrong checksum, so its content must not
/// count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksums {
    /// They are verified; a segment with a wrong one passes unread.
    Verify,
    /// They are assumed correct: captures show packets before the network card computes checksums.
    Trust,
}

/// Interval after which an unchanged queue mode is set again, because conntrack may have been flushed.
const RESEND_INTERVAL: Duration = Duration::from_secs(1);

/// The engine of one shard.
pub struct Engine {
    /// The sessions of this shard.
    pub sessions: Sessions,
    checksums: Checksums,
    changed_payload: Vec<u8>,
    reorder_queue: ReorderQueue,
}

impl Engine {
    /// An engine without sessions.
    pub fn new(policy: Policy, checksums: Checksums) -> Self {
        Self::from_sessions(Sessions::new(policy), checksums)
    }

    /// The engine of another shard of the same gateway. Shards share the session numbers, the external ports, and the
    /// limits.
    pub fn new_shard(&self) -> Self {
        Self::from_sessions(self.sessions.new_shard(false), self.checksums)
    }

    /// As [`new_shard`](Self::new_shard), for the sessions of an earlier daemon. It gets no packets; the shards that do
    /// [adopt](Sessions::adopt) these sessions.
    pub fn new_restored_shard(&self) -> Self {
        Self::from_sessions(self.sessions.new_shard(true), self.checksums)
    }

    fn from_sessions(sessions: Sessions, checksums: Checksums) -> Self {
        Self {
            sessions,
            checksums,
            changed_payload: Vec::new(),
            reorder_queue: ReorderQueue::default(),
        }
    }

    /// Handles a batch of packets. The caller [finishes](Self::finish) it.
    ///
    /// An out-of-order packet stays until its predecessors have arrived. Its verdict comes later.
    pub fn take<'p>(
        &mut self,
        now: Instant,
        packets: impl Iterator<Item = QueuedPacket<'p>> + Clone,
        kernel: &mut dyn Kernel,
    ) {
        // If it is used, `stop_fast_path` has done that.
        if !self.sessions.uses_fast_path {
            self.sessions.prefetch(packets.clone().map(|packet| packet.bytes));
        }
        // The thread that calls `expire` may sleep while packets of these sessions arrive.
        self.sessions.look_at_due(now, kernel);
        for packet in packets {
            self.sessions.counters.packets += 1;
            self.handle_packet(now, &packet, kernel);
        }
        self.release_ordered(now, kernel);
    }

    /// Removes expired pinholes, watches and sessions. The caller calls it again at the
    /// [next deadline](Sessions::next_deadline), or [an interval](Sessions::expiry_interval) later.
    pub fn expire(&mut self, now: Instant, kernel: &mut dyn Kernel) {
        self.sessions.look_at_due(now, kernel);
        self.release_ordered(now, kernel);
        self.sessions.look_at_ranges(now, kernel);
        self.sessions.sweep(now);
        self.sessions.enforce_memory_budget(now, kernel);
        self.sessions.pinholes.requeue_closings();
    }

    /// The next deadline of the reorder queue.
    pub fn reorder_deadline(&self) -> Option<Instant> {
        reorder::next_deadline(&self.reorder_queue)
    }

    /// The counters since the start.
    pub fn counters(&self) -> Counters {
        self.sessions.counters
    }
}
