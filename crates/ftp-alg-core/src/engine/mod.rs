//! A batch in, its effects out; the table of sessions.
//!
//! Sans-I/O: the engine takes packets, copies and the time, and what comes of them is among [`Effects`]. It never touches
//! a socket, a clock or the kernel: whoever [carries effects out](carry_out) does. So the daemon, `replay`, the
//! benchmarks and the tests all run the same code.

mod admission;
mod ahead;
mod announcement;
mod answers;
mod connection;
mod control;
mod copies;
mod counters;
mod decide;
mod drive;
mod effects;
mod event;
mod index;
mod kernel;
mod listing;
mod memory;
mod parked;
mod parting;
mod pinholes;
mod reorder;
mod saved;
mod shares;
mod standalone;
mod table;
mod telling;
#[cfg(test)]
mod tests;
mod watch;

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::AtomicU64},
    time::{Duration, Instant},
};

use control::{Control, Entry, Epoch};
pub use counters::{Counters, Drops, Limits, Unread};
pub use drive::{Host, Step, carry_out};
use effects::SessionRef;
pub use effects::{Effects, Injection, Lookup, Mark, Opening, Released, Token, Verdict};
pub use event::{Action, Decision, Event, What};
pub use kernel::{Answer, Attention, Kernel, KernelError, Pinhole, Translation};
pub use listing::{PinholeInfo, SessionInfo};
use memory::Memory;
use parked::Parked;
use pinholes::PinholeTable;
use reorder::ReorderQueue;
use saved::Changes;
pub use saved::{BadRecord, RECORD_FORMAT, Restored};
use shares::Shares;
pub use standalone::{Fate, Standalone};
use table::{Key, Table};
use watch::Watched;

/// Which end sent a packet.
pub use crate::session::{DropReason, Side, harmless};
use crate::{
    packet::Offload,
    policy::Policy,
    session::{Inspection, Session},
};

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
    /// Whether the packet selection says that it ended a calm. Not of one that waited: another may have begun since.
    pub ended_calm: bool,
    /// Whether it says that the packet begins where one did that ended a calm before: the kernel may have dropped that.
    pub ended_calm_before: bool,
    /// Whether it may wait for what it overtook.
    pub may_wait: bool,
    /// Which end sent it, where the packet selection says so: connection tracking knows, ports do not always show it.
    pub from: Option<Side>,
    /// Whether the packet selection queued it because it queues every packet of its connection.
    pub every: bool,
    /// Whether others of its connection may have passed unread since it was queued.
    pub is_late: bool,
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
    policy: Policy,
    checksums: Checksums,
    table: Table,
    epoch: Epoch,
    pinholes: PinholeTable,
    memory: Memory,
    shares: Shares,
    counters: Counters,
    /// Common to engines beside each other.
    last_id: Arc<AtomicU64>,
    sweep: u32,
    /// Where changes are noted, what did.
    changes: Option<Changes>,
    payload: Vec<u8>,
    inspection: Inspection,
    /// For records.
    record: Vec<u8>,
    /// Whether the packet selection takes answers.
    answers: bool,
    /// Whose calm was ended by a request, while this batch is decided.
    interrupted: Vec<u32>,
    watched: Watched,
    /// Packets whose session waits for the kernel, in the order in which they came.
    parked: Vec<Parked>,
    reorder: ReorderQueue,
}

impl Engine {
    /// An engine that has seen nothing.
    pub fn new(policy: Policy, checksums: Checksums) -> Self {
        Self {
            policy,
            checksums,
            table: Table::default(),
            epoch: Epoch::default(),
            pinholes: PinholeTable::default(),
            memory: Memory::default(),
            shares: Shares::default(),
            counters: Counters::default(),
            last_id: Arc::default(),
            sweep: 0,
            changes: None,
            payload: Vec::new(),
            inspection: Inspection::default(),
            record: Vec::new(),
            answers: false,
            interrupted: Vec::new(),
            watched: Watched::default(),
            parked: Vec::new(),
            reorder: ReorderQueue::default(),
        }
    }

    /// An engine that has seen nothing, for other connections through the same kernel: sessions are
    /// numbered in one row, an external port is given out once, and limits hold over both.
    pub fn beside(&self) -> Self {
        Self {
            table: self.table.beside(),
            pinholes: self.pinholes.beside(),
            memory: self.memory.beside(),
            last_id: Arc::clone(&self.last_id),
            ..Self::new(self.policy.clone(), self.checksums)
        }
    }

    /// So many pinholes can be open at a time in the kernel.
    pub fn set_capacity(&mut self, capacity: usize) {
        self.pinholes.set_capacity(capacity);
    }

    /// From now on `policy` holds. What is open stays open, and what is followed is followed.
    pub fn set_policy(&mut self, policy: Policy) {
        if !policy.tells_networks_as(&self.policy) {
            for Entry { control, .. } in self.table.iter_mut() {
                let (client, server) = (control.client().ip(), control.server().ip());
                control.set_network(policy.network_of(client, server));
            }
        }
        self.policy = policy;
        self.share_again();
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
        effects.is_touched = true;
        self.interrupted.clear();
        self.expect(packets.clone().map(|packet| packet.bytes));
        for packet in packets {
            self.counters.packets += 1;
            self.arrive(now, &packet, effects);
        }
        self.release_ordered(now, effects);
    }

    /// Finishes a batch when nothing is asked any more: says what the packet selection is told with each verdict, and
    /// what is to be written and closed.
    pub fn conclude(&mut self, effects: &mut Effects) {
        if self.answers {
            for released in &mut effects.verdicts {
                if !matches!(released.verdict, Verdict::Drop(_)) {
                    released.answer = self.answer(released.session());
                }
            }
        }
        self.address(&mut effects.injections);
        effects.closings.append(&mut effects.closed_first);
        self.pinholes.settle(&mut effects.closings);
        self.take_records(effects);
        effects.waits_until = self.waits_until();
    }

    /// Closes all pinholes, used or not; sessions stay.
    pub fn close_all(&mut self, effects: &mut Effects) {
        effects.is_touched = true;
        for entry in self.table.iter_mut() {
            for held in entry.control.take_pinholes() {
                self.pinholes.close(held);
            }
        }
        self.pinholes.settle_spent();
        self.pinholes.settle(&mut effects.closings);
    }

    /// Drops what is over by `now`. To be called again at the [next deadline](Self::next_deadline), or a second
    /// later.
    pub fn expire(&mut self, now: Instant, effects: &mut Effects) {
        effects.is_touched = true;
        while let Some((owner, serial)) = self.pinholes.next_expired(now) {
            let Some(Entry { control, .. }) = self.table.get_mut(owner) else { continue };
            let at = control.pinholes().iter().position(|p| p.is(serial) && !p.in_use);
            if let Some(held) = at.and_then(|at| control.let_go(at)) {
                effects.events.push(control.event(What::Expired(held.pinhole, held.kind)));
                self.pinholes.close(held);
            }
        }
        self.release_ordered(now, effects);
        self.end_watches(now, effects);
        self.sweep(now);
        self.keep_budget(effects);
        self.pinholes.settle_spent();
    }

    /// When the next unused pinhole expires.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.pinholes.next_deadline()
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

    /// How many control connections are followed, with those that are over and linger.
    pub fn session_count(&self) -> usize {
        self.table.len()
    }

    /// Drops the session between two endpoints, for tools that know that it is over.
    pub fn forget_between(&mut self, a: SocketAddr, b: SocketAddr) {
        if let Some(index) = self.table.find(&Key::between(a, b)) {
            self.forget(index);
        }
    }

    /// The session between two endpoints, for tools that look at both sides of it.
    pub fn session(&mut self, a: SocketAddr, b: SocketAddr) -> Option<(&Session, Side)> {
        let index = self.table.find(&Key::between(a, b))?;
        let entry = self.table.get_mut(index)?;
        Some((&entry.session, entry.control.side(a.into())))
    }

    /// Drops the entry at `index`, and what it holds.
    fn forget(&mut self, index: u32) -> Option<Entry> {
        let mut entry = self.remove(index)?;
        for held in entry.control.take_pinholes() {
            self.pinholes.close(held);
        }
        Some(entry)
    }

    fn remove(&mut self, index: u32) -> Option<Entry> {
        let entry = self.table.remove(index)?;
        if entry.control.weighs {
            self.forget_memory(index);
        }
        if entry.control.counts {
            self.uncount(entry.control.client(), index);
        }
        self.note_gone(entry.control.id);
        Some(entry)
    }
}
