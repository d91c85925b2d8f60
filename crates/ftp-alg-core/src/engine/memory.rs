//! One budget over all sessions, in bytes: what they hold beside their places in the table, until it is acknowledged or
//! complete.
//!
//! Hardly any session holds more than [`ORDINARY`] bytes, and none for long unless an end keeps it from being acknowledged.
//! Those that do are counted, in the order in which they began to. Where all together hold more than the budget,
//! the one that has done so for longest is ended: both its ends are reset. Forgetting it would not do, as what it holds
//! is what its packets are put right with, and compared with.
//!
//! Engines beside each other count together. Of the last quarter of the budget none takes more than an even share,
//! so that what floods one leaves room for the sessions of the others.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use ahash::AHashMap;

use super::{
    Attention, Counters, Effects, Entry, Injection, Sessions, Verdict, What,
    control::Control,
    effects::{Purpose, SessionRef},
    telling::mark_afresh,
};
use crate::{
    packet::{self, Edit, Packet, Seq, flags},
    session::{DropReason, Session, Side},
};

/// A session that holds no more than this is not counted.
const ORDINARY: usize = 512;

/// What the sessions of one engine hold, of those that hold more than is [`ORDINARY`].
#[derive(Default)]
pub(super) struct Memory {
    /// Of all engines beside each other.
    all: Arc<AtomicUsize>,
    own: usize,
    /// Since when, as a serial, and how much, by places in the table.
    held: AHashMap<u32, (u64, usize)>,
    /// Places by these serials.
    by_age: BTreeMap<u64, u32>,
    serial: u64,
}

impl Memory {
    /// Of an engine beside this one's.
    pub(super) fn beside(&self) -> Self {
        Self { all: Arc::clone(&self.all), ..Self::default() }
    }

    /// How much is held in all engines beside each other.
    pub(super) fn all(&self) -> usize {
        self.all.load(Ordering::Relaxed)
    }

    /// The session at `place` holds `bytes` from now on. Whether that is more than before.
    fn set(&mut self, place: u32, bytes: usize) -> bool {
        let before = self.held.get(&place).copied();
        if bytes == 0 {
            if let Some((serial, _)) = self.held.remove(&place) {
                self.by_age.remove(&serial);
            }
        } else if let Some((_, held)) = self.held.get_mut(&place) {
            *held = bytes;
        } else {
            self.serial += 1;
            self.held.insert(place, (self.serial, bytes));
            self.by_age.insert(self.serial, place);
        }
        let before = before.map_or(0, |(_, held)| held);
        if bytes >= before {
            self.all.fetch_add(bytes - before, Ordering::Relaxed);
        } else {
            self.all.fetch_sub(before - bytes, Ordering::Relaxed);
        }
        self.own = self.own - before + bytes;
        bytes > before
    }

    /// Whether something is to be given back, where so many engines share `budget`.
    fn exceeds(&self, budget: usize, engines: usize) -> bool {
        let all = self.all();
        all > budget || (all > budget - budget / 4 && self.own > budget / engines.max(1))
    }

    /// Which session has held more than is ordinary for longest, and how much that is.
    fn oldest(&self) -> Option<(u32, usize)> {
        let place = *self.by_age.first_key_value()?.1;
        Some((place, self.held.get(&place)?.1))
    }
}

/// Whether it is to be noted how much a session holds.
#[inline]
pub(super) fn is_to_be_weighed(session: &Session, control: &Control) -> bool {
    control.weighs || session.heap() > ORDINARY
}

impl Sessions {
    /// How many bytes all sessions hold, of this engine and those beside it, that are counted.
    pub fn memory(&self) -> usize {
        self.memory.all()
    }

    /// Takes note of what the session at `index` holds now, and keeps all of them in their budget.
    #[inline]
    pub(super) fn weigh(&mut self, counters: &mut Counters, index: u32, effects: &mut Effects) {
        if self.note_memory(index) {
            self.keep_budget(counters, effects);
        }
    }

    /// Takes note of what the session at `index` holds now. Whether it is more than before.
    #[inline]
    pub(super) fn note_memory(&mut self, index: u32) -> bool {
        let Some(Entry { session, control }) = self.table.get_mut(index) else { return false };
        if !is_to_be_weighed(session, control) {
            return false;
        }
        let bytes = session.heap();
        control.weighs = bytes > ORDINARY;
        self.memory.set(index, if bytes > ORDINARY { bytes } else { 0 })
    }

    /// The session that was at `index` has gone.
    pub(super) fn forget_memory(&mut self, index: u32) {
        self.memory.set(index, 0);
    }

    /// Ends sessions until what is held is in its budget.
    #[cold]
    pub(super) fn keep_budget(&mut self, counters: &mut Counters, effects: &mut Effects) {
        let budget = self.policy.memory;
        while self.memory.exceeds(budget, self.table.tables())
            && let Some((index, bytes)) = self.memory.oldest()
        {
            counters.limits.memory += 1;
            self.end(
                index,
                format!(
                    "it has held {bytes} bytes for longest, and all hold more than policy.memory"
                ),
                effects,
            );
            self.note_change(index);
        }
    }

    /// Ends the session at `index` because of `why`: nothing of it goes on, and both ends are told.
    pub(super) fn end(&mut self, index: u32, why: String, effects: &mut Effects) {
        let Some(Entry { session, control }) = self.table.get_mut(index) else { return };
        for held in control.take_pinholes() {
            self.pinholes.close(held);
        }
        effects.events.push(control.event(What::Ended(why)));
        // Its other packets are dropped here, and answered.
        mark_afresh(effects, index, control, Attention::Every, Purpose::Session);
        for to in [Side::Client, Side::Server] {
            let [first, second] = session.resets(to);
            let ack = session.next_of(to);
            effects.injections.push(reset(index, control, to, first, ack));
            if second != first {
                effects.injections.push(reset(index, control, to, second, ack));
            }
        }
        session.end();
        control.weighs = false;
        let id = control.id as u32;
        let counted = std::mem::take(&mut control.counts).then(|| control.client());
        // It gives way to any other.
        self.table.by_age.push_back((index, id));
        self.memory.set(index, 0);
        if let Some(client) = counted {
            self.uncount(client, index);
        }
    }

    /// What becomes of a packet of `from` that belongs to a session which was ended.
    #[cold]
    pub(super) fn answer_ended(
        &mut self,
        index: u32,
        from: Side,
        packet: &Packet<'_>,
        effects: &mut Effects,
    ) -> Verdict {
        const DROP: Verdict = Verdict::Drop(DropReason::SessionEnded);
        let Some(Entry { session, control }) = self.table.get_mut(index) else { return DROP };
        if !session.concerns(from, packet) {
            return Verdict::Accept;
        }
        if packet.has(flags::ACK) && !packet.has(flags::RST) {
            let ack = packet.seq() + packet.payload().len() as u32; // a packet's
            effects.injections.push(reset(index, control, from, packet.ack(), ack));
        }
        DROP
    }
}

/// A reset for `to`, which expects `seq` and has sent what precedes `ack`.
fn reset(index: u32, control: &Control, to: Side, seq: Seq, ack: Seq) -> Injection {
    let (client, server) = (control.client(), control.server());
    let (source, destination) = match to {
        Side::Client => (server, client),
        Side::Server => (client, server),
    };
    let (mut plain, mut packet) = (Vec::new(), Vec::new());
    packet::acknowledgement(source, destination, seq, ack, 0, None, &mut plain);
    if let Ok(plain) = Packet::parse(&plain) {
        let flags = flags::RST | flags::ACK;
        let edit = Edit { seq, ack, payload: None, flags, urgent: 0 };
        plain.rebuild(&edit, |_| None, &mut packet);
    }
    let session = SessionRef { index, id: control.id };
    Injection { session, to, client, server, packet }
}
