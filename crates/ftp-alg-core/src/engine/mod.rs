//! A batch in, its effects out; the table of sessions.
//!
//! Sans-I/O: the engine takes packets and the time, and what comes of them is among [`Effects`]. It never touches
//! a socket, a clock or the kernel: whoever [carries effects out](carry_out) does. So the daemon, `replay`, the
//! benchmarks and the tests all run the same code.

mod admission;
mod ahead;
mod announcement;
mod answers;
mod connection;
mod control;
mod counters;
mod deadlines;
mod decide;
mod drive;
mod effects;
mod event;
mod flows;
mod handover;
mod index;
mod kernel;
mod lapse;
mod listing;
mod memory;
mod parked;
mod parting;
mod pinholes;
mod places;
mod reorder;
mod saved;
mod sessions;
mod shares;
mod standalone;
mod table;
mod telling;
#[cfg(test)]
mod tests;
mod watch;

use std::time::{Duration, Instant};

use control::{Control, Entry, Epoch};
pub use counters::{Counters, Drops, Limits, Unread};
pub use drive::{Host, Step, carry_out};
use effects::SessionRef;
pub use effects::{Effects, Injection, Lookup, Mark, Opening, Released, Token, Verdict};
pub use event::{Action, Decision, Event, What};
pub use handover::{FlowChange, FlowChanges, Handover, Hole, JudgedLine, Login, Shift, TakenBack};
pub use kernel::{Attention, Kernel, KernelError, Pinhole, Translation};
pub use listing::{PinholeInfo, SessionInfo};
use parked::Parked;
pub use pinholes::Shut;
pub use places::Places;
use reorder::ReorderQueue;
pub use saved::{BadRecord, RECORD_FORMAT, Restored, SavedSessions};
pub use sessions::Sessions;
pub use standalone::{Fate, Standalone};
use table::Key;

/// Which end sent a packet.
pub use crate::session::{DropReason, Side};
use crate::{packet::Offload, policy::Policy, session::Inspection};

/// A packet that waits in a queue.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'p> {
    /// Which one it is to its host.
    pub token: Token,
    /// From its IP header on.
    pub bytes: &'p [u8],
    /// How it comes here.
    pub how: Queued,
}

/// How a packet comes here.
#[derive(Clone, Copy, Debug, Default)]
pub struct Queued {
    /// What is left to do of it.
    pub offload: Offload,
    /// Whether it may wait for what it overtook.
    pub may_wait: bool,
    /// Which end sent it, where the packet selection says so: connection tracking knows, ports do not always show it.
    pub from: Option<Side>,
    /// Whether the packet selection queued it because it queues every packet of its connection.
    pub every: bool,
    /// Whether others of its connection may have passed unread since it was queued.
    pub is_late: bool,
    /// Whether this machine is an end of its connection.
    pub is_local: bool,
}

/// Whether TCP checksums are checked. A segment whose checksum is wrong is discarded by its
/// receiver, so what it says must not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksums {
    /// They are; a segment with a wrong one passes unread.
    Verify,
    /// They are taken for right: captures show them before the network card computes them.
    Trust,
}

/// What the kernel was told is told again after this long, as conntrack may have been flushed.
const REMINDER: Duration = Duration::from_secs(1);

/// The engine.
pub struct Engine {
    /// Those that are followed.
    pub sessions: Sessions,
    checksums: Checksums,
    counters: Counters,
    payload: Vec<u8>,
    inspection: Inspection,
    /// Packets whose session waits for the kernel, in the order in which they came.
    parked: Vec<Parked>,
    reorder: ReorderQueue,
}

impl Engine {
    /// An engine that has seen nothing.
    pub fn new(policy: Policy, checksums: Checksums) -> Self {
        Self::with(Sessions::new(policy), checksums)
    }

    /// An engine that has seen nothing, for other connections through the same kernel: sessions are
    /// numbered in one row, an external port is given out once, and limits hold over both.
    pub fn beside(&self) -> Self {
        Self::with(self.sessions.beside(), self.checksums)
    }

    fn with(sessions: Sessions, checksums: Checksums) -> Self {
        Self {
            sessions,
            checksums,
            counters: Counters::default(),
            payload: Vec::new(),
            inspection: Inspection::default(),
            parked: Vec::new(),
            reorder: ReorderQueue::default(),
        }
    }

    /// Decides about a batch of packets, as far as that can be done without the kernel; [carry out](carry_out) what comes
    /// of it.
    ///
    /// A packet that needs an answer of the kernel stays here until that [is given](Self::answered), with those of its
    /// session that follow it, and one that overtook others until these have come. So their verdicts come later.
    pub fn take<'p>(
        &mut self,
        now: Instant,
        packets: impl Iterator<Item = Arrival<'p>> + Clone,
        effects: &mut Effects,
    ) {
        effects.touch(self.sessions.pinholes.places());
        self.sessions.expect(packets.clone().map(|packet| packet.bytes));
        // Who sees to what is over may sleep, where packets of these sessions come by other queues.
        self.sessions.expire_pinholes(now, effects);
        for packet in packets {
            self.counters.packets += 1;
            self.arrive(now, &packet, effects);
        }
        self.release_ordered(now, effects);
    }

    /// Finishes a batch when nothing is asked any more: says what is to be written and closed.
    pub fn conclude(&mut self, effects: &mut Effects) {
        self.address(&mut effects.injections);
        effects.closings.append(&mut effects.closed_first);
        self.sessions.pinholes.settle(&mut effects.closings);
        self.sessions.pinholes.take_shut(&mut effects.shut);
        if self.sessions.hands_over || !self.sessions.flow_changes.is_empty() {
            self.sessions.untold.add(&mut self.sessions.flow_changes);
            effects.flow_changes = Some(self.sessions.untold.clone());
        }
        self.take_records(effects);
        effects.waits_until = self.waits_until();
    }

    /// Adds a record of each session that changed to `effects`.
    pub fn take_records(&mut self, effects: &mut Effects) {
        self.sessions.take_records(&mut self.counters, effects);
    }

    /// Drops what is over by `now`. To be called again at the [next deadline](Sessions::next_deadline), or a second
    /// later.
    pub fn expire(&mut self, now: Instant, effects: &mut Effects) {
        effects.touch(self.sessions.pinholes.places());
        self.sessions.expire_pinholes(now, effects);
        self.release_ordered(now, effects);
        self.end_watches(now, effects);
        self.sessions.sweep(now);
        self.sessions.keep_budget(&mut self.counters, effects);
        self.sessions.pinholes.settle_spent();
    }

    /// When a packet of the reorder queue has waited for long enough.
    pub fn waits_until(&self) -> Option<Instant> {
        reorder::next_deadline(&self.reorder)
    }

    /// What was done since the start.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// So many requests failed that the kernel got from whoever carries effects out.
    pub fn count_errors(&mut self, errors: u64) {
        self.counters.errors += errors;
    }
}
