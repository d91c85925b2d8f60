//! The pinholes of one shard: reservation of external ports, limits of clients, and deadlines of pinholes.
//!
//! A port stays reserved while a transfer uses it. Otherwise a server that connects from port 20 would reuse the tuple
//! of its earlier connection. An end's port that had to get another external port gets the same one again: while
//! conntrack remembers the first data connection, a second one to this end by another external port has the same reply
//! tuple, and the kernel drops it. But the port at which another session waits is left to that session. All shards share
//! one [registry](registry) of ports.

pub(crate) mod client_counts;
mod ended_pinholes;
pub(crate) mod held_pinhole;
pub(crate) mod proposal;
pub(crate) mod registry;
pub(crate) mod registry_entry;

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use ahash::RandomState;

use crate::{
    engine::{
        FastPathPinholeClosing, Pinhole,
        offload::handover::FastPathPinhole,
        pinholes::{
            client_counts::{OpenError, max_open},
            ended_pinholes::EndedPinholes,
            held_pinhole::{HeldPinhole, PinholeRecord},
            proposal::{Proposal, reserve},
            registry::{PinholeClosing, PinholeRegistry, RegistryState},
        },
    },
    ftp::AnnouncementKind,
    policy::Policy,
};

/// The pinholes of one shard.
pub struct PinholeTable {
    registry: PinholeRegistry,
    /// Limit of open pinholes.
    capacity: usize,
    /// Pinholes that are closed here, but not yet in the kernel.
    to_close: Vec<HeldPinhole>,
    /// Pinholes whose transfers have ended, so closing them can wait.
    ended: EndedPinholes,
    /// Pinholes to close in the kernel.
    closings: Vec<PinholeClosing>,
    /// Pinholes that the BPF program is to close.
    fast_path_closings: Vec<FastPathPinholeClosing>,
    random: RandomState,
}

impl Default for PinholeTable {
    fn default() -> Self {
        Self {
            registry: PinholeRegistry::default(),
            capacity: usize::from(u16::MAX),
            to_close: Vec::new(),
            ended: EndedPinholes::default(),
            closings: Vec::new(),
            fast_path_closings: Vec::new(),
            random: RandomState::new(),
        }
    }
}

impl PinholeTable {
    /// An empty table for another shard.
    pub fn new_shard(&self) -> Self {
        Self {
            registry: self.registry.clone(),
            capacity: self.capacity,
            random: self.random.clone(),
            ..Self::default()
        }
    }

    /// Reserves an external port for `proposal` of the session `owner`, which holds `own`. It differs from the announced
    /// port if that is taken, or does not fill the room of its format: an announcement that keeps its length changes no
    /// sequence numbers. Pinholes that must be closed before this one opens, or may be closed with it, are added to
    /// `closed` or to the [closings of the BPF program](Self::take_fast_path_closings).
    pub fn propose(
        &mut self,
        (now, owner, own): (Instant, u32, &[HeldPinhole]),
        policy: &Policy,
        proposal: &mut Proposal,
        closed: &mut Vec<PinholeClosing>,
    ) -> Result<(), OpenError> {
        let client = proposal.client;
        let mut state = self.registry.lock();
        let limit = policy.max_pinholes_per_client;
        let ended = self.ended.close_for_opening(now, (owner, client), &mut self.to_close);
        let is_scarce =
            ended > 0 && state.check(client, limit.saturating_sub(ended), self.capacity).is_err();
        if proposal.candidates.set.is_some() || is_scarce {
            self.ended.close_all(&mut self.to_close);
        }
        settle(&mut self.to_close, &mut state, closed, &mut self.fast_path_closings);
        state.check(client, limit, self.capacity)?;
        proposal.candidates.is_displaced = state.is_displaced(&proposal.opening.pinhole);
        let closings = (closed, &mut self.fast_path_closings);
        reserve(&mut state, proposal, policy, own, &self.random, closings)
    }

    /// Reserves the next port, because the kernel has another pinhole at this one.
    pub fn propose_next_port(
        &mut self,
        policy: &Policy,
        own: &[HeldPinhole],
        proposal: &mut Proposal,
        closed: &mut Vec<PinholeClosing>,
    ) -> Result<(), OpenError> {
        let mut state = self.registry.lock();
        proposal.withdraw(&mut state, closed);
        let closings = (closed, &mut self.fast_path_closings);
        reserve(&mut state, proposal, policy, own, &self.random, closings)
    }

    /// Withdraws a reservation, because the kernel did not open the pinhole. If the entry that it replaced must be
    /// closed, it is added to `closed`.
    pub fn withdraw(&mut self, proposal: &Proposal, closed: &mut Vec<PinholeClosing>) {
        proposal.withdraw(&mut self.registry.lock(), closed);
    }

    /// Holds `pinhole`, which the BPF program opened at the time `at` for the session `owner`. It `is_granted` if the
    /// session is on the fast path. The session has closed its earlier one with these endpoints.
    pub fn hold_fast_path_pinhole(
        &mut self,
        (fast_path, at): (FastPathPinhole, Instant),
        (owner, is_granted): (u32, bool),
        client: IpAddr,
        (kind, lifetime): (AnnouncementKind, Duration),
        pinhole: Pinhole,
    ) -> HeldPinhole {
        let (client, deadline) = (client.into(), at + lifetime);
        let mut state = self.registry.lock();
        self.ended.close_replaced(owner, &pinhole, &mut self.to_close);
        settle(&mut self.to_close, &mut state, &mut self.closings, &mut self.fast_path_closings);
        let (serial, replaced) =
            state.insert_from_fast_path((pinhole, fast_path), (client, is_granted));
        drop(state);
        self.closings.extend(replaced);
        HeldPinhole::new(pinhole, kind, deadline, (client, serial), Some(fast_path))
    }

    /// Whether the BPF program may open another pinhole for `client`; if so, it is counted. Half of the client's limit
    /// is reserved for its connections that are inspected inline.
    pub fn grant_fast_path(&mut self, policy: &Policy, client: IpAddr) -> bool {
        let (client, mut state) = (client.into(), self.registry.lock());
        let limit = max_open(policy.max_pinholes_per_client, self.capacity) / 2;
        let is_granted = limit > 0 && state.check(client, limit, self.capacity).is_ok();
        if is_granted {
            state.clients.add(client);
        }
        is_granted
    }

    /// The identity of `held` in the BPF program, if that has it and not the rules.
    pub fn fast_path_id(&self, held: &HeldPinhole) -> Option<FastPathPinhole> {
        held.fast_path.filter(|_| !self.registry.lock().is_in_rules(&held.pinhole, held.serial))
    }

    /// Whether the BPF program has `held`, not the rules.
    pub fn has_fast_path(&self, held: &HeldPinhole) -> bool {
        self.fast_path_id(held).is_some()
    }

    /// The record of `held`, with this deadline.
    pub fn record(&self, held: &HeldPinhole, deadline: u64) -> PinholeRecord {
        let HeldPinhole { pinhole, kind, serial, answered, in_use, .. } = *held;
        let fast_path = self.fast_path_id(held);
        PinholeRecord { pinhole, kind, serial, deadline, answered, in_use, fast_path }
    }

    /// Moves `held` from the BPF program to the rules. Returns its identity in the program if the rules must have it.
    pub fn move_to_rules(&mut self, held: &mut HeldPinhole) -> Option<FastPathPinhole> {
        let id = self.fast_path_id(held)?;
        held.fast_path = None;
        if self.registry.lock().move_to_rules(held.pinhole, held.serial) && !held.is_consumed {
            return Some(id);
        }
        self.fast_path_closings.push(FastPathPinholeClosing { pinhole: held.pinhole, id });
        None
    }

    /// Counts a grant that was made before a restart.
    pub fn recount_fast_path_grant(&mut self, client: IpAddr) {
        self.registry.lock().clients.add(client.into());
    }

    /// Takes back the grant of one pinhole for `client`. If one of `held` is open by it, that counts itself now.
    pub fn revoke_fast_path_grant(&mut self, client: IpAddr, held: &[HeldPinhole]) {
        let mut state = self.registry.lock();
        state.clients.remove_grant(client.into());
        held.iter().for_each(|held| state.end_grant(&held.pinhole, held.serial));
    }

    /// Takes the pinholes that the BPF program is to close.
    pub fn take_fast_path_closings(
        &mut self,
        fast_path_closings: &mut Vec<FastPathPinholeClosing>,
    ) {
        fast_path_closings.append(&mut self.fast_path_closings);
    }

    /// Sets the limit of open pinholes.
    pub fn set_capacity(&mut self, capacity: usize) {
        self.capacity = capacity.max(1);
    }

    /// Restores a pinhole of `client` from a record.
    pub fn restore(
        &mut self,
        client: IpAddr,
        record: &PinholeRecord,
        deadline: Instant,
    ) -> HeldPinhole {
        let PinholeRecord { pinhole, kind, serial, answered, in_use, fast_path, .. } = *record;
        let client = client.into();
        let mut state = self.registry.lock();
        let serial = match fast_path {
            Some(fast_path) => {
                let opened = (pinhole, fast_path);
                let (serial, replaced) = state.insert_from_fast_path(opened, (client, false));
                self.closings.extend(replaced);
                serial
            }
            None => {
                state.restore(pinhole, serial, client);
                serial
            }
        };
        if in_use {
            state.record_start(&pinhole, serial);
        }
        drop(state);
        let mut held = HeldPinhole::new(pinhole, kind, deadline, (client, serial), fast_path);
        (held.answered, held.in_use) = (answered, in_use);
        held
    }

    /// Whether a session of any shard holds a pinhole of the rules with these endpoints.
    pub fn is_held(&self, initiator: IpAddr, arrival: SocketAddr) -> bool {
        self.registry.lock().is_held(initiator, arrival)
    }

    /// The registry of all shards.
    pub fn registry(&self) -> &PinholeRegistry {
        &self.registry
    }

    /// Records that a transfer uses `held`. Its data connection may still have to come, so it stays open.
    pub fn mark_in_use(&mut self, held: &mut HeldPinhole) {
        if !std::mem::replace(&mut held.in_use, true) {
            self.registry.lock().record_start(&held.pinhole, held.serial);
        }
    }

    /// Whether the kernel may have `held` open, as far as is known.
    pub fn is_open(&self, held: &HeldPinhole) -> bool {
        self.registry.lock().is_open(&held.pinhole, held.serial)
    }

    /// Records that `held` is consumed or expired, so that it no longer counts for its client.
    pub fn record_closed(&mut self, held: &HeldPinhole) {
        self.registry.lock().record_closed(&held.pinhole, held.serial);
    }

    /// Whether the kernel may be asked `now` which pinholes are consumed.
    pub fn may_look_for_consumed(&self, now: Instant) -> bool {
        self.registry.lock().may_look(now)
    }

    /// Closes `held`. The next call of [`take_closings`](Self::take_closings) returns it for the kernel, and its port
    /// is free again.
    pub fn close(&mut self, held: HeldPinhole) {
        self.to_close.push(held);
    }

    /// Closes `held` of the session `owner` after its transfer, later in the kernel. It no longer counts.
    pub fn close_ended(&mut self, now: Instant, owner: u32, held: HeldPinhole) {
        let mut state = self.registry.lock();
        let may_be_open = state.is_open(&held.pinhole, held.serial);
        state.record_closed(&held.pinhole, held.serial);
        drop(state);
        self.to_close.extend(if held.in_use && !held.is_consumed {
            self.ended.push(now, held, owner, may_be_open)
        } else {
            Some(held)
        });
    }

    /// Adds pinholes to `closed` that are to be closed in the kernel.
    pub fn take_closings(&mut self, closed: &mut Vec<PinholeClosing>) {
        closed.append(&mut self.closings);
        if !self.to_close.is_empty() {
            settle(
                &mut self.to_close,
                &mut self.registry.lock(),
                closed,
                &mut self.fast_path_closings,
            );
        }
    }

    /// Adds closings that failed to `closed`.
    pub fn take_failed_closings(&mut self, closed: &mut Vec<PinholeClosing>) {
        closed.append(&mut self.registry.lock().take_failed_closings());
    }

    /// The pinholes that have outlived their transfers and may be open, with the sessions that announced them.
    pub fn ended(&self, now: Instant) -> impl Iterator<Item = (u32, &HeldPinhole)> {
        let is_own = |held: &HeldPinhole| self.registry.lock().has(&held.pinhole, held.serial);
        self.ended.open_at(now).filter(move |(_, held)| is_own(held))
    }

    /// Closes pinholes that have outlived their transfers for long enough.
    pub fn close_ended_before(&mut self, now: Instant) {
        self.ended.close_before(now, &mut self.to_close);
    }

    /// When the next pinhole is to be closed that has outlived its transfer, of those of the session `owner`.
    pub fn next_ended_of(&self, owner: u32) -> Option<Instant> {
        self.ended.next_of(owner)
    }

    /// Closes the pinholes of the session `owner` that have outlived their transfers.
    pub fn close_ended_of(&mut self, owner: u32) {
        self.ended.close_of(owner, &mut self.to_close);
    }

    /// Closes all pinholes that have outlived their transfers.
    pub fn close_all_ended(&mut self) {
        self.ended.close_all(&mut self.to_close);
    }
}

/// Moves `to_close` to `closed` and `fast_path_closings`, except pinholes whose endpoints were opened again: the new
/// pinhole has replaced the old one.
fn settle(
    to_close: &mut Vec<HeldPinhole>,
    state: &mut RegistryState,
    closed: &mut Vec<PinholeClosing>,
    fast_path_closings: &mut Vec<FastPathPinholeClosing>,
) {
    for held in to_close.drain(..) {
        let of_program = held.fast_path.filter(|_| !held.is_consumed);
        if let Some(fast_path) =
            of_program.filter(|_| !state.is_in_rules(&held.pinhole, held.serial))
        {
            fast_path_closings
                .push(FastPathPinholeClosing { pinhole: held.pinhole, id: fast_path });
        }
        closed.extend(state.release(held.pinhole, held.serial, held.client));
    }
}

#[cfg(test)]
mod tests;
