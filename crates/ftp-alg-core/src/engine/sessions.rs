//! The sessions of one shard, and their resources: memory, pinholes, client shares.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    engine::{
        Batch, ClientKey, ClosedRange, Counters, Entry, Epoch, EventKind, Kernel, SessionEnd,
        Shares,
        limits::MemoryBudget,
        packets::find::RouteAnswers,
        pinholes::{
            PinholeTable,
            pinhole::{Pinhole, renewal_interval},
        },
        ranges::{RangeFinder, Ranges},
        records::UnwrittenChanges,
        table::{Key, Table},
        timers::Timers,
    },
    policy::Policy,
    session::{Session, Side},
};

/// The sessions of one shard.
#[derive(Default)]
pub struct Sessions {
    pub(crate) policy: Policy,
    pub(crate) counters: Counters,
    pub(crate) table: Table,
    pub(crate) epoch: Epoch,
    pub(crate) pinholes: PinholeTable,
    pub(crate) ranges: Ranges,
    pub(crate) memory: MemoryBudget,
    /// The table slots of each client's sessions, by session number.
    pub(crate) client_shares: Shares<ClientKey, u32>,
    /// Clients that have more than their share.
    pub(crate) clients_over_share: BTreeSet<ClientKey>,
    pub(crate) timers: Timers,
    pub(crate) routes: RouteAnswers,
    /// The last session number; all shards share it.
    pub(crate) last_id: Arc<AtomicU64>,
    /// Table slot that the last sweep examined.
    pub(crate) swept: u32,
    /// Changes that are not written yet, if they are tracked.
    pub(crate) unwritten: Option<UnwrittenChanges>,
    /// Buffer for encoding records.
    pub(crate) record_buffer: Vec<u8>,
    /// Whether connections are handed over to the BPF program.
    pub(crate) uses_fast_path: bool,
    /// Indices of the interfaces that can have the BPF program, in order; `None`: all can.
    pub(crate) fast_path_interfaces: Option<Arc<[u32]>>,
    /// Number of connections that were handed over before the greeting.
    pub(crate) ungreeted_handovers: u32,
    /// The decisions that the host has not carried out yet.
    pub(crate) batch: Batch,
}

impl Sessions {
    /// No sessions.
    pub(crate) fn new(policy: Policy) -> Self {
        Self { policy, ..Self::default() }
    }

    /// The sessions of another shard. It gets packets, or it `is_restored`: then it has sessions of an earlier daemon until
    /// the shards that get their packets [adopt](Self::adopt) them.
    pub(crate) fn new_shard(&self, is_restored: bool) -> Self {
        Self {
            table: self.table.new_shard(is_restored),
            pinholes: self.pinholes.new_shard(is_restored),
            ranges: self.ranges.new_shard(),
            memory: self.memory.new_shard(),
            last_id: Arc::clone(&self.last_id),
            uses_fast_path: self.uses_fast_path,
            fast_path_interfaces: self.fast_path_interfaces.clone(),
            ..Self::new(self.policy.clone())
        }
    }

    /// Gives new sessions, of all shards, numbers behind `last`.
    pub fn number_behind(&self, last: u64) {
        self.last_id.fetch_max(last, Ordering::Relaxed);
    }

    /// Sets how many pinholes the kernel can hold.
    pub fn set_capacity(&mut self, capacity: usize) {
        self.pinholes.set_capacity(capacity);
    }

    /// The policy.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Sets the policy. Sessions stay, and open pinholes until
    /// [`close_forbidden_pinholes`](Self::close_forbidden_pinholes).
    pub fn set_policy(&mut self, policy: Policy) {
        self.take_all_back();
        if !policy.has_same_networks_as(&self.policy) {
            for entry in self.table.iter_mut() {
                let (client, server) = (entry.head.client().ip(), entry.head.server().ip());
                entry.head.set_network(policy.network_of(client, server));
            }
        }
        self.policy = policy;
        self.recompute_shares();
    }

    /// Closes all pinholes, used or not; sessions stay.
    pub fn close_all_pinholes(&mut self) {
        self.take_all_back();
        (0..self.table.slot_count()).for_each(|index| self.pinholes.close_all_of(index));
    }

    /// Closes the pinholes that the policy forbids, after it was set, or after sessions were restored.
    pub fn close_forbidden_pinholes(&mut self) {
        for index in 0..self.table.slot_count() {
            let Some(entry) = self.table.get_mut(index) else { continue };
            let Some(translation) = entry.head.extra().translation else { continue };
            let policy = self.policy.for_network(entry.head.network());
            let lacks_login = policy.require_login && !entry.session.dialogue.is_logged_in();
            let is_forbidden = |pinhole: &Pinhole| {
                let from_client = pinhole.kind.is_active();
                let own = if from_client { translation.client } else { translation.server };
                lacks_login || policy.forbids(pinhole.ends.target, own.ip())
            };
            let mut has_changed = false;
            while let Some(closed) = self.pinholes.close_first(index, is_forbidden) {
                let closed = closed.closed_because("the configuration forbids it", None);
                self.batch.events.push(entry.head.event(closed));
                has_changed = true;
            }
            if has_changed {
                self.mark_changed(index);
            }
        }
        self.pinholes.close_all_ended();
        self.close_forbidden_ranges();
    }

    /// The finder of the sessions of encrypted data connections, of all shards.
    pub fn range_finder(&self) -> RangeFinder {
        self.ranges.finder()
    }

    /// Opens ranges again, because the kernel has lost them all; those of restored sessions for the first time.
    pub fn reopen_ranges(&mut self, now: Instant, kernel: &mut dyn Kernel) {
        self.ranges.forget_refusals();
        self.look_at_ranges(now, kernel);
        self.ranges.reopen(kernel);
    }

    /// Closes the range of the session at `index`, if there is one.
    fn close_range(&mut self, index: u32, why: &'static str) {
        let range = self.ranges.close(index);
        if let Some((range, entry)) = range.zip(self.table.get(index)) {
            let closed = EventKind::RangeClosed(ClosedRange { range, why });
            self.batch.events.push(entry.head.event(closed));
        }
    }

    /// Renews open ranges, and closes those of which conntrack has forgotten the control connection, until it knows it again.
    pub(crate) fn look_at_ranges(&mut self, now: Instant, kernel: &mut dyn Kernel) {
        for index in self.ranges.owners_to_look_at() {
            if let Some((mut decider, _)) = self.decider_at(now, index, kernel) {
                decider.look_at_range();
            }
        }
    }

    /// Closes the ranges of servers whose configured ports have changed. New sessions get the new ports.
    fn close_forbidden_ranges(&mut self) {
        for index in self.ranges.owners() {
            let (Some(range), Some(entry)) = (self.ranges.of(index), self.table.get(index)) else {
                continue;
            };
            let policy = self.policy.for_network(entry.head.network());
            let is_here = entry.session.interfaces.is_this_machine(Side::Server);
            if range.control.passive_ports(policy, is_here) != range.ports {
                self.close_range(index, "the configuration has other passive ports");
                self.mark_changed(index);
            }
        }
    }

    /// Looks at the sessions whose deadlines have passed: closes and renews pinholes, ends watches, reports what waits
    /// for its data connection.
    pub(crate) fn look_at_due(&mut self, now: Instant, kernel: &mut dyn Kernel) {
        while self.batch.events.has_room()
            && let Some(index) = self.timers.take_due(now)
        {
            self.pinholes.close_ended_before(now);
            self.expire_pinholes_of(index, now, kernel);
            self.report_waiting(index, now);
            self.end_watch(index, now, kernel);
            self.add_timer(index, now);
        }
    }

    /// Adds the next deadline `after` this time of the session at `index`.
    pub(crate) fn add_timer(&mut self, index: u32, after: Instant) {
        let Some(entry) = self.table.get_mut(index) else { return };
        let lifetime = self.policy.for_network(entry.head.network()).pinhole_timeout;
        let due = [
            entry.head.next_due(after, &self.epoch),
            self.pinholes.next_due(index, after, lifetime),
        ];
        due.into_iter().flatten().for_each(|at| self.timers.add(at, index));
    }

    /// Closes expired pinholes of the session at `index`. Renews those that a transfer waits for.
    pub(crate) fn expire_pinholes_of(&mut self, index: u32, now: Instant, kernel: &mut dyn Kernel) {
        let Some(Entry { head, session }) = self.table.get_mut(index) else { return };
        let lifetime = self.policy.for_network(head.network()).pinhole_timeout;
        if !self.pinholes.has_due(index, now, lifetime) {
            return;
        }
        let mut has_changed = false;
        if let Some(translation) = head.extra().translation
            && session.dialogue.has_pending_transfer()
        {
            has_changed = self.pinholes.renew(now, index, &translation, lifetime, kernel);
        }
        // The port of a pinhole in use stays reserved.
        self.pinholes.end_lifetimes(index, now, kernel);
        let is_over = |pinhole: &Pinhole| !pinhole.is_in_transfer() && pinhole.deadline <= now;
        while let Some(expired) = self.pinholes.close_first(index, is_over) {
            self.batch.events.push(head.event(match expired.is_refused() {
                true => {
                    expired.closed_because(
                        "the server refused the command that was to use it",
                        Some(now),
                    )
                }
                false => EventKind::PinholeExpired(expired.unused("", Some(now))),
            }));
            has_changed = true;
        }
        if has_changed {
            self.mark_changed(index);
        }
    }

    /// How often [`expire`](super::Engine::expire) must be called, at least, so that no pinhole expires before it is
    /// renewed.
    pub fn expiry_interval(&self) -> Duration {
        let networks = self.policy.networks.iter().map(|network| &network.policy);
        let lifetimes = networks.chain([&self.policy]).map(|policy| policy.pinhole_timeout);
        renewal_interval(lifetimes.min().unwrap_or_default())
    }

    /// When a session is looked at next.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Number of sessions, including closed ones that linger.
    pub fn count(&self) -> usize {
        self.table.len()
    }

    /// Removes the session between two endpoints, for tools that know that it is closed.
    pub fn forget_between(&mut self, a: SocketAddr, b: SocketAddr) {
        if let Some(index) = self.table.find(&Key::between(a, b)) {
            self.forget(index, SessionEnd::Replaced);
        }
    }

    /// Whether the session between these ends is the one with the number `id`.
    pub fn has_session(&mut self, client: SocketAddr, server: SocketAddr, id: u64) -> bool {
        self.index_of(client, server, id).is_some()
    }

    /// The table slot of the session between these ends, if it is the one with the number `id`.
    pub(crate) fn index_of(
        &mut self,
        client: SocketAddr,
        server: SocketAddr,
        id: u64,
    ) -> Option<u32> {
        let index = self.table.find(&Key::between(client, server))?;
        self.table.get_session(index, id).map(|_| index)
    }

    /// The session between two endpoints, for tools that look at both directions.
    pub fn session_between(&mut self, a: SocketAddr, b: SocketAddr) -> Option<(&Session, Side)> {
        let index = self.table.find(&Key::between(a, b))?;
        let entry = self.table.get_mut(index)?;
        Some((&entry.session, entry.head.side_of(a.into())))
    }

    /// Removes the session at `index`, reports its `end`, and closes its pinholes.
    pub(crate) fn forget(&mut self, index: u32, end: SessionEnd) -> Option<Entry> {
        let announcement = self.pinholes.last_announcement(index);
        let head = &mut self.table.get_mut(index)?.head;
        head.end_session(end, announcement, &mut self.batch.events);
        for unused in self.pinholes.of(index).filter(|pinhole| !pinhole.is_in_transfer()) {
            let closed = unused.closed_because("the session is not followed any more", None);
            self.batch.events.push(head.event(closed));
        }
        self.remove(index)
    }

    /// Removes the session at `index`, and closes its pinholes.
    pub(crate) fn remove(&mut self, index: u32) -> Option<Entry> {
        self.take_back(index);
        self.pinholes.close_all_of(index);
        self.close_range(index, "the session was forgotten");
        self.take_out(index)
    }

    /// Removes all sessions without a report, because another machine continues them, and closes their pinholes.
    pub fn clear(&mut self) {
        for index in 0..self.table.slot_count() {
            self.remove(index);
        }
    }

    /// Takes the session at `index` out of this shard, with everything that it holds.
    pub(crate) fn take_out(&mut self, index: u32) -> Option<Entry> {
        let mut entry = self.table.remove(index)?;
        let head = &mut entry.head;
        if std::mem::take(&mut head.is_in_memory_budget) {
            self.memory.set(index, 0);
        }
        if std::mem::take(&mut head.counts_for_client) {
            self.uncount(head.client(), head.id);
        }
        head.changed = false;
        self.mark_removed(head.id);
        Some(entry)
    }
}
