//! The limits of sessions: their number, the share of each client, their memory, and their timeouts.
//!
//! - `max-sessions`: at the limit, the oldest session is evicted that [is not needed](may_be_evicted): its dialogue is
//!   not verified, or its next packet would restore the same state. If there is none, a client that has more than its
//!   share loses a session.
//! - A client is an IPv4 address, or the /64 of an IPv6 address, because one host has the whole /64. A session counts for
//!   its client once its server has sent a greeting, because an attacker with a spoofed address cannot get that far.
//! - `policy.memory` bounds the bytes of unacknowledged and incomplete data. Hardly any session holds more than
//!   [`UNCOUNTED_BYTES`], and none for long unless an end does not acknowledge. Sessions above that are counted, in the order
//!   in which they exceeded it. If all together exceed the budget, the first of them is reset at both ends. Forgetting its
//!   data would not do, because its packets are adjusted by it and compared with it.
//!
//! All shards share these limits. In the last quarter no shard takes more than an even share, so a flood of one shard leaves
//! room for the others.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use ahash::{AHashMap, AHashSet};

use crate::{
    engine::{
        ClientKey, Entry, Event, EventKind, Kernel, KernelError, QueueMode, SessionEnd, Sessions,
        Verdict, batch::Injection, decision::ConnectionOf, table::entry::Head,
    },
    packet::{self, Packet, Seq, flags},
    session::{DropReason, Phase, Session, Side},
};

/// Number of a client's oldest sessions that are examined for an eviction.
const MAX_EXAMINED: usize = 16;
/// Sessions that hold at most this many bytes are not counted.
const UNCOUNTED_BYTES: usize = 512;
/// Closed sessions stay this long for retransmissions: adjusted sessions because only they can adjust a retransmission,
/// other sessions so that a retransmission is not taken for a new connection.
const LINGER_ADJUSTED: Duration = Duration::from_secs(60);
const LINGER_UNADJUSTED: Duration = Duration::from_secs(10);
/// Timeout of a connection without a greeting.
const GREETING_TIMEOUT: Duration = Duration::from_secs(120);
/// Timeout without an accepted login: longer than servers wait for one.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(900);
/// Timeout after one end has sent a FIN: as in the kernel (nf_conntrack_tcp_timeout_fin_wait).
const HALF_CLOSED_TIMEOUT: Duration = Duration::from_secs(120);
/// Timeout of a session without a packet since it was restored, or since packets may have passed unread: the connection
/// may be closed already.
const UNCONFIRMED_TIMEOUT: Duration = Duration::from_secs(3600);
/// Timeout of other sessions: as for established connections in the kernel (nf_conntrack_tcp_timeout_established).
const IDLE_TIMEOUT: Duration = Duration::from_secs(432_000);
/// Minimum number of table slots that one call of `Engine::expire` examines; in a larger table a sixteenth of them.
const MIN_SWEEP: u32 = 1024;

/// Whether a session counts for the memory budget or for its client's share, or must.
#[inline]
pub(crate) fn is_counted(head: &Head, session: &Session) -> bool {
    should_count_memory(head, session) || should_count_for_client(head, session)
}

impl Sessions {
    /// Counts the session at `index`, and enforces the limits. Near `max-sessions`, the oldest session of a client with more
    /// than its share is evicted if this one starts to count.
    pub(crate) fn update_counts(&mut self, now: Instant, index: u32, kernel: &mut dyn Kernel) {
        if self.note_memory(index) {
            self.enforce_memory_budget(now, kernel);
        }
        if let Some(client) = self.count_for_client(index)
            && self.is_nearly_full()
            && self.clients_over_share.contains(&client)
        {
            self.evict_from_client(now, client, Some(index), kernel);
        }
    }

    /// Whether another session may be inserted.
    pub(crate) fn has_room(&self) -> bool {
        self.table.total_len() < self.policy.max_sessions
    }

    /// Whether another session may be inserted, after an eviction if necessary.
    fn make_room(&mut self, now: Instant, kernel: &mut dyn Kernel) -> bool {
        let limit = self.policy.max_sessions;
        let (all, share) = (self.table.total_len(), limit / self.table.table_count().max(1));
        if all < limit && (all < limit - limit / 4 || self.table.len() <= share) {
            return true;
        }
        self.evict_unverified(now) || self.evict_from_any_client(now, kernel) || all < limit
    }

    /// Evicts sessions of an earlier daemon without a verified dialogue, so that other shards have room for those that begin
    /// with one of `packets`.
    pub fn make_room_for<'p>(&mut self, now: Instant, packets: impl Iterator<Item = &'p [u8]>) {
        let begun: AHashSet<_> = packets
            .filter_map(|packet| Packet::parse(packet).ok())
            .filter(|packet| packet.has(flags::SYN | flags::ACK))
            .map(|packet| (packet.source(), packet.destination()))
            .collect();
        while !begun.is_empty()
            && self.table.total_len() + begun.len() > self.policy.max_sessions
            && self.evict_unverified(now)
        {}
    }

    /// Evicts the oldest session without a verified dialogue. Returns whether there was one.
    fn evict_unverified(&mut self, now: Instant) -> bool {
        let Some(index) = self.table.take_oldest(may_be_evicted) else { return false };
        if let Some(entry) = self.forget(index, SessionEnd::Forgotten)
            && !entry.session.is_over()
        {
            self.counters.limits.sessions += 1;
            let age = self.epoch.timestamp(now).duration_since(entry.head.first_seen).as_secs();
            let text =
                format!("evicted after {age} s for a newer connection: max-sessions is reached");
            self.batch.events.push(entry.head.event(EventKind::Limit(text.into())));
        }
        true
    }

    /// Starts a session between these endpoints, if policy inspects the connection and there is room.
    pub(crate) fn insert(
        &mut self,
        now: Instant,
        client: SocketAddr,
        server: SocketAddr,
        session: Session,
        kernel: &mut dyn Kernel,
    ) -> Option<u32> {
        let network = self.policy.network_of(client.ip(), server.ip());
        if !self.policy.inspects(network) {
            self.counters.unread.not_followed += 1;
            self.bypass_connection(client, server, kernel);
            return None;
        }
        let id = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        let timestamp = self.epoch.timestamp(now);
        let mut entry = Entry::new(id, client, server, session, timestamp);
        entry.head.set_network(network);
        // A session picked up mid-stream evicts no other.
        let is_picked_up = entry.session.dialogue.phase() == Phase::PickedUp;
        if !(if is_picked_up { self.has_room() } else { self.make_room(now, kernel) }) {
            self.counters.uninspected += 1;
            self.counters.unread.not_followed += 1;
            self.batch.events.push(
                entry.head.event(EventKind::Limit("not inspected: max-sessions is reached".into())),
            );
            return None;
        }
        let index = self.table.insert(entry);
        self.counters.sessions_started += 1;
        self.counters.sessions_picked_up += u64::from(is_picked_up);
        self.mark_changed(index);
        Some(index)
    }

    /// Sets in the kernel that no packet of the connection is queued any more.
    fn bypass_connection(
        &mut self,
        client: SocketAddr,
        server: SocketAddr,
        kernel: &mut dyn Kernel,
    ) {
        let found = kernel.lookup_translation(client, server);
        let found = found.and_then(|found| found.ok_or(KernelError::Unknown));
        let kind = match found.and_then(|found| kernel.set_queue_mode(&found, QueueMode::None)) {
            Ok(()) => {
                EventKind::Change("not inspected: its [[network]] has inspect = false".into())
            }
            // The queue mode is set with its next packet.
            Err(KernelError::Unknown) => return,
            Err(error) => {
                self.counters.errors += 1;
                EventKind::Kernel(error.to_string().into())
            }
        };
        let session = self.last_id.fetch_add(1, Ordering::Relaxed) + 1;
        self.batch.events.push(Event { session, client, server, user: None, kind });
    }

    /// Removes sessions whose timeout has passed, in a part of the table at a time.
    pub(crate) fn sweep(&mut self, now: Instant) {
        let slots = self.table.slot_count();
        let is_nearly_full = self.is_nearly_full();
        let now = self.epoch.timestamp(now);
        for _ in 0..MIN_SWEEP.max(slots / 16).min(slots) {
            if !self.batch.events.has_room() {
                return; // the next call goes on
            }
            self.swept = (self.swept + 1) % slots;
            let Some(entry) = self.table.get_mut(self.swept) else { continue };
            let needs_login = self.policy.for_network(entry.head.network()).require_login;
            // If the table is nearly full, a client without a login cannot stay by sending a line now and then.
            let is_timed_from_start = is_nearly_full
                && needs_login
                && matches!(entry.session.dialogue.phase(), Phase::Greeted | Phase::Verified)
                && !(has_login(&entry.session)
                    || entry.session.is_adjusted()
                    || entry.session.is_over());
            let since =
                if is_timed_from_start { entry.head.first_seen } else { entry.head.last_seen };
            if now.duration_since(since) >= idle_timeout(&entry.session, needs_login) {
                self.forget(self.swept, SessionEnd::Expired);
            }
        }
    }
}

/// Whether a session may be evicted for a newer one: its dialogue is not verified, or its next packet would restore the
/// same state.
pub(crate) fn may_be_evicted(entry: &Entry) -> bool {
    let phase = entry.session.dialogue.phase();
    let is_unneeded = !phase.has_greeted() || entry.session.is_over();
    phase == Phase::PickedUp || is_unneeded && !entry.session.is_adjusted()
}

/// Timeout of a session without packets.
fn idle_timeout(session: &Session, needs_login: bool) -> Duration {
    match session.dialogue.phase() {
        _ if session.is_over() && (session.is_adjusted() || session.was_reset()) => LINGER_ADJUSTED,
        _ if session.is_over() => LINGER_UNADJUSTED,
        Phase::NotGreeted
        | Phase::ClientFirst
        | Phase::CommandFirst
        | Phase::TextFirst
        | Phase::CommandAfterText
        | Phase::PickedUp => GREETING_TIMEOUT, // its next packet restores the same state
        _ if session.is_half_closed() => HALF_CLOSED_TIMEOUT,
        Phase::Greeted => LOGIN_TIMEOUT,
        Phase::Verified | Phase::NotFtp | Phase::PickedUpFtp
            if needs_login && !has_login(session) && !session.is_adjusted() =>
        {
            LOGIN_TIMEOUT
        }
        _ if session.is_unconfirmed() && !session.is_adjusted() => UNCONFIRMED_TIMEOUT,
        Phase::PickedUpFtp
        | Phase::Verified
        | Phase::PacketsMissed
        | Phase::OutOfStep
        | Phase::NotFtp => IDLE_TIMEOUT,
    }
}

/// Whether a login was accepted, as far as is known.
pub(crate) fn has_login(session: &Session) -> bool {
    session.dialogue.is_logged_in() || session.is_encrypted()
}

/// Whether a session has to be counted for its client.
#[inline]
fn should_count_for_client(head: &Head, session: &Session) -> bool {
    !head.counts_for_client
        && !matches!(session.dialogue.phase(), Phase::NotGreeted | Phase::PickedUp)
        && !session.is_over()
}

impl Sessions {
    /// Whether the number of sessions is so near the limit that shares apply.
    pub(crate) fn is_nearly_full(&self) -> bool {
        let limit = self.policy.max_sessions;
        self.table.total_len() > limit - limit / 4
    }

    /// Counts the session at `index` for its client if it starts to count.
    #[inline]
    pub(crate) fn count_for_client(&mut self, index: u32) -> Option<ClientKey> {
        let entry = self.table.get_mut(index)?;
        if !should_count_for_client(&entry.head, &entry.session) {
            return None;
        }
        entry.head.counts_for_client = true;
        let (client, id) = (entry.head.client().ip().into(), entry.head.id);
        self.client_shares.insert(client, id, index);
        if self.client_shares.count_of(client) > self.share() {
            self.clients_over_share.insert(client);
        }
        Some(client)
    }

    /// Counts the session `id` out of those of `client`.
    pub(crate) fn uncount(&mut self, client: SocketAddr, id: u64) {
        let client = client.ip().into();
        self.client_shares.remove(client, id);
        if self.client_shares.count_of(client) <= self.share() {
            self.clients_over_share.remove(&client);
        }
    }

    /// The share of a client in this shard: an even part of its share in all shards.
    fn share(&self) -> usize {
        (self.policy.max_sessions_per_client / self.table.table_count().max(1)).max(1)
    }

    /// Recomputes shares after a policy change.
    pub(crate) fn recompute_shares(&mut self) {
        let share = self.share();
        let over = self.client_shares.counts().filter(|(_, count)| *count > share);
        self.clients_over_share = over.map(|(client, _)| client).collect();
    }

    /// Evicts a session of a client that has more than its share. Returns whether there was one.
    pub(crate) fn evict_from_any_client(&mut self, now: Instant, kernel: &mut dyn Kernel) -> bool {
        let Some(client) = self.clients_over_share.first().copied() else { return false };
        self.evict_from_client(now, client, None, kernel) && self.evict_unverified(now)
    }

    /// Evicts a session of `client` other than the one at `except`: the first of the oldest that is closed or has no
    /// login. If all have a login, the one that was idle longest, preferably without pending commands.
    fn evict_from_client(
        &mut self,
        now: Instant,
        client: ClientKey,
        except: Option<u32>,
        kernel: &mut dyn Kernel,
    ) -> bool {
        let timestamp = self.epoch.timestamp(now);
        // Whether commands are pending, how long it was idle, and its slot.
        let mut found: Option<(bool, Duration, u32)> = None;
        for (_, &slot) in self.client_shares.of(client).take(MAX_EXAMINED) {
            if Some(slot) == except {
                continue;
            }
            let Some(entry) = self.table.get_mut(slot) else { continue };
            let idle = timestamp.duration_since(entry.head.last_seen);
            if entry.session.is_over() || !has_login(&entry.session) {
                found = Some((false, idle, slot));
                break;
            }
            let is_busy = entry.session.dialogue.has_pending_commands();
            if found.is_none_or(|(other_busy, other_idle, _)| {
                (other_busy, idle) > (is_busy, other_idle)
            }) {
                found = Some((is_busy, idle, slot));
            }
        }
        let Some((_, idle, slot)) = found else { return false };
        self.counters.limits.client_sessions += 1;
        let reason = format!(
            "its client has more than its share of max-sessions, and this session was idle for {} s",
            idle.as_secs()
        );
        self.reset_session(now, slot, reason, kernel);
        self.mark_changed(slot);
        true
    }
}

/// The counted sessions of one shard.
#[derive(Default)]
pub(crate) struct MemoryBudget {
    /// Bytes held in all shards.
    total: Arc<AtomicUsize>,
    own: usize,
    /// Serial number and bytes, by table slot.
    held: AHashMap<u32, (u64, usize)>,
    /// Table slots by serial number.
    by_age: BTreeMap<u64, u32>,
    serial: u64,
}

impl MemoryBudget {
    /// The budget of another shard.
    pub(crate) fn new_shard(&self) -> Self {
        Self { total: Arc::clone(&self.total), ..Self::default() }
    }

    /// Bytes held in all shards.
    pub(crate) fn total(&self) -> usize {
        self.total.load(Ordering::Relaxed)
    }

    /// Sets the bytes of the session in table slot `slot`. Returns whether it holds more than before.
    pub(crate) fn set(&mut self, slot: u32, bytes: usize) -> bool {
        let before = self.held.get(&slot).copied();
        if bytes == 0 {
            if let Some((serial, _)) = self.held.remove(&slot) {
                self.by_age.remove(&serial);
            }
        } else if let Some((_, held)) = self.held.get_mut(&slot) {
            *held = bytes;
        } else {
            self.serial += 1;
            self.held.insert(slot, (self.serial, bytes));
            self.by_age.insert(self.serial, slot);
        }
        let before = before.map_or(0, |(_, held)| held);
        if bytes >= before {
            self.total.fetch_add(bytes - before, Ordering::Relaxed);
        } else {
            self.total.fetch_sub(before - bytes, Ordering::Relaxed);
        }
        self.own = self.own - before + bytes;
        bytes > before
    }

    /// Whether this shard must free memory, if so many `shards` share `budget`.
    fn exceeds(&self, budget: usize, shards: usize) -> bool {
        let total = self.total();
        total > budget || (total > budget - budget / 4 && self.own > budget / shards.max(1))
    }

    /// The session that has been counted longest, and its bytes.
    fn oldest(&self) -> Option<(u32, usize)> {
        let slot = *self.by_age.first_key_value()?.1;
        Some((slot, self.held.get(&slot)?.1))
    }
}

/// Whether a session's memory must be counted.
#[inline]
fn should_count_memory(head: &Head, session: &Session) -> bool {
    head.is_in_memory_budget || heap_size(head, session) > UNCOUNTED_BYTES
}

/// Heap memory in bytes of what peers can make large.
#[inline]
fn heap_size(head: &Head, session: &Session) -> usize {
    session.heap_size() + head.names_size()
}

impl Sessions {
    /// Bytes that the counted sessions of all shards hold.
    pub fn memory(&self) -> usize {
        self.memory.total()
    }

    /// Notes the memory of the session at `index`. Returns whether it holds more than before.
    #[inline]
    pub(crate) fn note_memory(&mut self, index: u32) -> bool {
        let Some(entry) = self.table.get_mut(index) else { return false };
        if !should_count_memory(&entry.head, &entry.session) {
            return false;
        }
        let bytes = heap_size(&entry.head, &entry.session);
        entry.head.is_in_memory_budget = bytes > UNCOUNTED_BYTES;
        self.memory.set(index, if bytes > UNCOUNTED_BYTES { bytes } else { 0 })
    }

    /// Resets sessions until the budget is met.
    #[cold]
    pub(crate) fn enforce_memory_budget(&mut self, now: Instant, kernel: &mut dyn Kernel) {
        let budget = self.policy.memory;
        while self.memory.exceeds(budget, self.table.table_count())
            && let Some((index, bytes)) = self.memory.oldest()
        {
            self.counters.limits.memory += 1;
            let reason = format!(
                "policy.memory is exceeded, and this session has held its {bytes} bytes longest"
            );
            self.reset_session(now, index, reason, kernel);
            self.mark_changed(index);
        }
    }

    /// Resets the session at `index` because of `reason`: both ends get a RST, and no later packet is forwarded.
    pub(crate) fn reset_session(
        &mut self,
        now: Instant,
        index: u32,
        reason: String,
        kernel: &mut dyn Kernel,
    ) {
        let Some((mut decider, session)) = self.decider_at(now, index, kernel) else { return };
        decider.report_end(SessionEnd::Reset);
        decider.close_all_pinholes("the control connection was reset");
        decider.close_range("the control connection was reset");
        decider.push_event(EventKind::Ended(reason.into()));
        // Its later packets are dropped here, and answered. The resets go out also if conntrack has just forgotten it.
        let _ = decider.translation();
        let _ = decider.set_queue_mode(QueueMode::EveryPacket, ConnectionOf::Endpoints);
        let head = &mut *decider.head;
        for to in [Side::Client, Side::Server] {
            let [expected, other] = session.reset_numbers(to);
            let ack = session.next_seq(to);
            decider.batch.injections.extend(reset(head, to, expected, ack));
            if other != expected {
                decider.batch.injections.extend(reset(head, to, other, ack));
            }
        }
        session.reset();
        head.is_in_memory_budget = false;
        let id = head.id;
        let counted = std::mem::take(&mut head.counts_for_client).then(|| head.client());
        // It may be evicted for any other session.
        self.table.by_age.push_back((index, id as u32));
        self.memory.set(index, 0);
        if let Some(client) = counted {
            self.uncount(client, id);
        }
    }

    /// The verdict on a packet of `from` that belongs to a session which was reset.
    #[cold]
    pub(crate) fn answer_reset_session(
        &mut self,
        index: u32,
        from: Side,
        packet: &Packet<'_>,
    ) -> Verdict {
        const DROP: Verdict = Verdict::Drop(DropReason::SessionEnded);
        let Some(entry) = self.table.get_mut(index) else { return DROP };
        if !entry.session.is_in_window(from, packet) {
            return Verdict::Accept;
        }
        if packet.has(flags::ACK) && !packet.has(flags::RST) {
            let ack = packet.seq() + packet.payload().len() as u32; // at most a packet's length
            self.batch.injections.extend(reset(&entry.head, from, packet.ack(), ack));
        }
        DROP
    }
}

/// A reset for `to`, which expects `seq` and has sent everything before `ack`.
fn reset(head: &Head, to: Side, seq: Seq, ack: Seq) -> Option<Injection> {
    let (source, destination) = head.ends_to(to);
    let flags = flags::RST | flags::ACK;
    let mut packet = Vec::new();
    let header = packet::Header { source, destination, seq, ack, window: 0, flags };
    packet::build_segment(&header, &[], &mut packet);
    Injection::new(head, to, packet)
}
