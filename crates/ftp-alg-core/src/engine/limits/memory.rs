//! The memory budget of all sessions: bytes of unacknowledged and incomplete data outside the session table.
//!
//! Hardly any session holds more than [`UNCOUNTED_BYTES`], and none for long unless an end does not acknowledge.
//! Sessions above that are counted, in the order in which they exceeded it. If all together exceed the budget, the
//! first of them is reset at both ends. Forgetting its data would not do, because its packets are adjusted by it and
//! compared with it.
//!
//! All shards share one budget. In its last quarter no shard takes more than an even share, so a flood of one shard
//! leaves room for the others.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use ahash::AHashMap;

use crate::{
    engine::{
        EventKind, Kernel, QueueMode, SessionEnd, Sessions, Verdict, batch::Injection,
        decision::decider::ConnectionOf, packets::forward::injection, table::entry::Head,
    },
    packet::{self, Packet, PacketEdit, Seq, flags},
    session::{DropReason, Session, Side},
};

/// Sessions that hold at most this many bytes are not counted.
const UNCOUNTED_BYTES: usize = 512;

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
    fn set(&mut self, slot: u32, bytes: usize) -> bool {
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

    /// Whether this shard must free memory, if `engines` shards share `budget`.
    fn exceeds(&self, budget: usize, engines: usize) -> bool {
        let total = self.total();
        total > budget || (total > budget - budget / 4 && self.own > budget / engines.max(1))
    }

    /// The session that has been counted longest, and its bytes.
    fn oldest(&self) -> Option<(u32, usize)> {
        let slot = *self.by_age.first_key_value()?.1;
        Some((slot, self.held.get(&slot)?.1))
    }
}

/// Whether a session's memory must be recorded.
#[inline]
pub(super) fn should_count(head: &Head, session: &Session) -> bool {
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

    /// Records the memory of the session at `index`. Returns whether it holds more than before.
    #[inline]
    pub(crate) fn record_memory(&mut self, index: u32) -> bool {
        let Some(entry) = self.table.get_mut(index) else { return false };
        if !should_count(&entry.head, &entry.session) {
            return false;
        }
        let bytes = heap_size(&entry.head, &entry.session);
        entry.head.is_in_memory_budget = bytes > UNCOUNTED_BYTES;
        self.memory.set(index, if bytes > UNCOUNTED_BYTES { bytes } else { 0 })
    }

    /// Removes the session at `index` from the budget.
    pub(crate) fn release_memory(&mut self, index: u32) {
        self.memory.set(index, 0);
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
        decider.pinholes.close_all_of(index);
        decider.push_event(EventKind::Reset(reason));
        // Its later packets are dropped here, and answered.
        let _ = decider.set_queue_mode(QueueMode::All, ConnectionOf::Session);
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
        let id = head.id as u32;
        let counted = std::mem::take(&mut head.counts_for_client).then(|| head.client());
        // It may be evicted for any other session.
        self.table.by_age.push_back((index, id));
        self.memory.set(index, 0);
        if let Some(client) = counted {
            self.uncount(client, index);
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
    let (client, server) = (head.client(), head.server());
    let (source, destination) = match to {
        Side::Client => (server, client),
        Side::Server => (client, server),
    };
    let (mut acknowledgement, mut packet) = (Vec::new(), Vec::new());
    packet::build_acknowledgement(source, destination, seq, ack, 0, None, &mut acknowledgement);
    let acknowledgement = Packet::parse(&acknowledgement).ok()?;
    let flags = flags::RST | flags::ACK;
    let edit = PacketEdit { seq, ack, payload: None, flags, window: 0, urgent: 0 };
    acknowledgement.rebuild(&edit, |_| None, &mut packet);
    injection(head, to, packet)
}
