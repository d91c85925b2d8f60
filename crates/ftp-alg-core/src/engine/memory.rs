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
    time::Instant,
};

use ahash::AHashMap;

use super::{
    Attention, Engine, Entry, Kernel, KernelError, Translation, Verdict, What,
    control::Control,
    telling::{Injection, attend_afresh},
};
use crate::{
    packet::{self, Edit, Packet, Seq, flags},
    session::Side,
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

impl Engine {
    /// How many bytes all sessions hold, of this engine and those beside it, that are counted.
    pub fn memory(&self) -> usize {
        self.memory.all()
    }

    /// Takes note of what the session at `index` holds now, and keeps all of them in their budget.
    #[inline]
    pub(super) fn weigh(&mut self, now: Instant, index: u32, kernel: &mut impl Kernel) {
        if self.note_memory(index) {
            self.keep_budget(now, kernel);
        }
    }

    /// Takes note of what the session at `index` holds now. Whether it is more than before.
    #[inline]
    pub(super) fn note_memory(&mut self, index: u32) -> bool {
        let Some(Entry { session, control }) = self.table.get_mut(index) else { return false };
        let bytes = session.heap();
        if bytes <= ORDINARY && !control.weighs {
            return false;
        }
        control.weighs = bytes > ORDINARY;
        self.memory.set(index, if bytes > ORDINARY { bytes } else { 0 })
    }

    /// The session that was at `index` has gone.
    pub(super) fn forget_memory(&mut self, index: u32) {
        self.memory.set(index, 0);
    }

    /// Ends sessions until what is held is in its budget.
    #[cold]
    pub(super) fn keep_budget(&mut self, now: Instant, kernel: &mut impl Kernel) {
        let budget = self.policy.memory;
        while self.memory.exceeds(budget, self.table.tables())
            && let Some((index, bytes)) = self.memory.oldest()
        {
            self.counters.limits.memory += 1;
            self.end(
                now,
                index,
                format!(
                    "it has held {bytes} bytes for longest, and all hold more than policy.memory"
                ),
                kernel,
            );
            self.note_change(index);
        }
    }

    /// Ends the session at `index` because of `why`: nothing of it goes on, and both ends are told.
    pub(super) fn end(&mut self, now: Instant, index: u32, why: String, kernel: &mut impl Kernel) {
        let moment = self.epoch.moment(now);
        let Some(Entry { session, control }) = self.table.get_mut(index) else { return };
        for held in control.take_pinholes() {
            self.pinholes.close(held);
        }
        self.events.push(control.event(What::Ended(why)));
        // Its other packets are dropped here, and answered.
        let told = attend_afresh(kernel, control.client(), control.server(), Attention::Every);
        match told {
            Ok(()) => control.told(Attention::Every, moment),
            Err(KernelError::Unknown) => {}
            Err(error) => {
                self.counters.errors += 1;
                self.events.push(control.event(What::Failed(error.to_string())));
            }
        }
        if let Some(translation) = translation(control, kernel) {
            for to in [Side::Client, Side::Server] {
                let [first, second] = session.resets(to);
                let ack = session.next_of(to);
                self.injections.push(reset(control, &translation, to, first, ack));
                if second != first {
                    self.injections.push(reset(control, &translation, to, second, ack));
                }
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
        kernel: &mut impl Kernel,
    ) -> Verdict {
        let Some(Entry { session, control }) = self.table.get_mut(index) else {
            return Verdict::Drop;
        };
        if !session.concerns(from, packet) {
            return Verdict::Accept;
        }
        if packet.has(flags::ACK)
            && !packet.has(flags::RST)
            && let Some(translation) = translation(control, kernel)
        {
            let ack = packet.seq() + packet.payload().len() as u32; // a packet's
            self.injections.push(reset(control, &translation, from, packet.ack(), ack));
        }
        Verdict::Drop
    }
}

/// The connection's translation, looked up once.
fn translation(control: &mut Control, kernel: &mut impl Kernel) -> Option<Translation> {
    if control.translation().is_none() {
        let found = kernel.translation(control.client(), control.server());
        control.set_translation(found.ok().flatten());
    }
    control.translation().copied()
}

/// A reset for `to`, which expects `seq` and has sent what precedes `ack`.
fn reset(control: &Control, translation: &Translation, to: Side, seq: Seq, ack: Seq) -> Injection {
    let (source, destination) = translation.seen_by(to);
    let (mut plain, mut packet) = (Vec::new(), Vec::new());
    packet::acknowledgement(source, destination, seq, ack, 0, None, &mut plain);
    if let Ok(plain) = Packet::parse(&plain) {
        let flags = flags::RST | flags::ACK;
        let edit = Edit { seq, ack, payload: None, flags, urgent: 0 };
        plain.rebuild(&edit, |_| None, &mut packet);
    }
    Injection::of(control, packet)
}
