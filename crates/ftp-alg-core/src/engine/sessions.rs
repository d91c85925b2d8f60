//! The sessions that are followed, and what they hold: memory, pinholes, their share of what there is.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::AtomicU64},
    time::Instant,
};

use super::{
    Effects, Entry, Epoch, What,
    handover::{FlowChange, FlowChanges},
    memory::Memory,
    pinholes::{Held, PinholeTable},
    saved::Changes,
    shares::Shares,
    table::{Key, Table},
    watch::Watched,
};
use crate::{
    policy::Policy,
    session::{Session, Side},
};

/// Those of one engine.
pub struct Sessions {
    pub(super) policy: Policy,
    pub(super) table: Table,
    pub(super) epoch: Epoch,
    pub(super) pinholes: PinholeTable,
    pub(super) memory: Memory,
    pub(super) shares: Shares,
    pub(super) watched: Watched,
    /// Common to engines beside each other.
    pub(super) last_id: Arc<AtomicU64>,
    /// Which place of the table was looked at last for what is over.
    pub(super) swept: u32,
    /// Where changes are noted, what did.
    pub(super) changes: Option<Changes>,
    /// For records.
    pub(super) record: Vec<u8>,
    /// Whether connections are handed over to the program in the kernel.
    pub(super) hands_over: bool,
    /// How many are handed over of which the server has not greeted.
    pub(super) silent: u32,
    /// What that is to be told.
    pub(super) flow_changes: Vec<FlowChange>,
    /// What it is to be told of batches that were concluded.
    pub(super) untold: FlowChanges,
}

impl Sessions {
    /// None yet.
    pub(super) fn new(policy: Policy) -> Self {
        Self {
            policy,
            table: Table::default(),
            epoch: Epoch::default(),
            pinholes: PinholeTable::default(),
            memory: Memory::default(),
            shares: Shares::default(),
            watched: Watched::default(),
            last_id: Arc::default(),
            swept: 0,
            changes: None,
            record: Vec::new(),
            hands_over: false,
            silent: 0,
            flow_changes: Vec::new(),
            untold: FlowChanges::default(),
        }
    }

    /// None yet, of an engine beside the one of these.
    pub(super) fn beside(&self) -> Self {
        Self {
            table: self.table.beside(),
            pinholes: self.pinholes.beside(),
            memory: self.memory.beside(),
            last_id: Arc::clone(&self.last_id),
            hands_over: self.hands_over,
            ..Self::new(self.policy.clone())
        }
    }

    /// So many pinholes can be open at a time in the kernel.
    pub fn set_capacity(&mut self, capacity: usize) {
        self.pinholes.set_capacity(capacity);
    }

    /// What holds.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// From now on `policy` holds. What is open stays open, and what is followed is followed.
    pub fn set_policy(&mut self, policy: Policy) {
        self.take_all_back();
        if !policy.tells_networks_as(&self.policy) {
            for Entry { control, .. } in self.table.iter_mut() {
                let (client, server) = (control.client().ip(), control.server().ip());
                control.set_network(policy.network_of(client, server));
            }
        }
        self.policy = policy;
        self.share_again();
    }

    /// Closes all pinholes, used or not; sessions stay.
    pub fn close_all(&mut self, effects: &mut Effects) {
        effects.touch(self.pinholes.places());
        self.take_all_back();
        for entry in self.table.iter_mut() {
            for held in entry.control.take_pinholes() {
                self.pinholes.close(held);
            }
        }
        self.pinholes.settle_spent();
        self.pinholes.settle(&mut effects.closings);
    }

    /// Closes the pinholes that nobody has used by their deadline.
    pub(super) fn expire_pinholes(&mut self, now: Instant, effects: &mut Effects) {
        while let Some(owner) = self.pinholes.next_expired(now) {
            self.expire_pinholes_of(owner, now, effects);
            let held = self.table.get_mut(owner).map_or(&[][..], |entry| entry.control.pinholes());
            self.pinholes.await_next(owner, now, held);
        }
    }

    /// The same, of the connection at `index` alone.
    pub(super) fn expire_pinholes_of(&mut self, index: u32, now: Instant, effects: &mut Effects) {
        let Some(Entry { control, .. }) = self.table.get_mut(index) else { return };
        let is_over = |held: &Held| !held.in_use && held.deadline <= now;
        while let Some(at) = control.pinholes().iter().position(&is_over) {
            let Some(held) = control.let_go(at) else { return };
            effects.events.push(control.event(What::Expired(held.pinhole, held.kind)));
            self.pinholes.close(held);
        }
    }

    /// When the next unused pinhole expires.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.pinholes.next_deadline()
    }

    /// How many are followed, with those that are over and linger.
    pub fn count(&self) -> usize {
        self.table.len()
    }

    /// Drops the one between two endpoints, for tools that know that it is over.
    pub fn forget_between(&mut self, a: SocketAddr, b: SocketAddr) {
        if let Some(index) = self.table.find(&Key::between(a, b)) {
            self.forget(index);
        }
    }

    /// The one between two endpoints, for tools that look at both sides of it.
    pub fn between(&mut self, a: SocketAddr, b: SocketAddr) -> Option<(&Session, Side)> {
        let index = self.table.find(&Key::between(a, b))?;
        let entry = self.table.get_mut(index)?;
        Some((&entry.session, entry.control.side(a.into())))
    }

    /// Drops the entry at `index`, and what it holds.
    pub(super) fn forget(&mut self, index: u32) -> Option<Entry> {
        let mut entry = self.remove(index)?;
        for held in entry.control.take_pinholes() {
            self.pinholes.close(held);
        }
        Some(entry)
    }

    /// Drops the entry at `index`, of which the pinholes were taken.
    pub(super) fn remove(&mut self, index: u32) -> Option<Entry> {
        let mut entry = self.table.remove(index)?;
        self.take_back_removed(&mut entry.control);
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
